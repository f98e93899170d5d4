"""Training steps of the three stages at ViT-B size on one device: speed, share of the chip's measured matmul peak, memory, and what the paper's recipe would take.

    python benchmarks/pretrain.py --out reports/runs/pretrain [--stages F] [--seconds 5] [--batches 1 4 16]
    python benchmarks/pretrain.py --device cpu --smoke --out DIR       # small models, to try the script without a GPU

Random weights and tensors of the real shapes: a T1 of 1,200 tokens, a run of 10 windows (UK Biobank: 490 frames at TR .735 s) with masks drawn for each scan. A step is what the loop of chapter 62 does: forward
pass under bf16 autocast, backward pass, clipping, AdamW, and for F the moving average. Speed is in model FLOPs (chapter 67), so work done twice (checkpointing, fused attention) does not count as work.
Everything measured so far is in DIR after each measurement, so a run may be stopped at any time. Loading data is not part of it (`benchmarks/scaling.py`).
"""
import argparse, gc, json, statistics, time
from contextlib import ExitStack
from pathlib import Path
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from brainharmonix.core import atomic, provenance
from brainharmonix.model.blocks import Block, attention, backends
from brainharmonix.model.function import FunctionConfig
from brainharmonix.model.harmonizer import HarmonizerConfig
from brainharmonix.model.structure import StructureConfig
from brainharmonix.train.optim import groups
from brainharmonix.train.plan import flops, hours, memory, recipe, rehearsal

CONFIGS = dict(S=StructureConfig, F=FunctionConfig, Harmonizer=HarmonizerConfig)
STAGE = dict(structure='S', function='F', harmonizer='Harmonizer')

# ---- measuring ----

def wait(device):
    if device == 'cuda': torch.cuda.synchronize()

def seconds(f, device, room, warm=3, least=3): # median of the calls that fit into `room` seconds
    for _ in range(warm): f()
    wait(device); start, times = time.perf_counter(), []
    while len(times) < least or time.perf_counter()-start < room:
        t = time.perf_counter(); f(); wait(device); times.append(time.perf_counter()-t)
    return statistics.median(times)

def matmul_peak(device, sizes, dtype=torch.bfloat16): # FLOP/s of the best size, best of many calls
    best = 0
    for n in sizes:
        a, b = torch.randn(n, n, device=device, dtype=dtype), torch.randn(n, n, device=device, dtype=dtype)
        many = max(1, int((1e13 if device == 'cuda' else 1e9)/n**3)) # calls between clocks, so that starting them does not count
        for _ in range(8):
            wait(device); t = time.perf_counter()
            for _ in range(many): a @ b
            wait(device); best = max(best, many*2*n**3/(time.perf_counter()-t))
    return best

def kernels(device): # name -> () -> contexts that choose the attention of a step; `tiled` cannot be trained
    torchs = [SDPBackend.FLASH_ATTENTION] + [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]*(device == 'cuda')
    return {b:(lambda b=b: [attention(b)]) for b in backends() if b != 'tiled'} | {f'sdpa, {k.name.split("_")[0].lower()} alone':(lambda k=k: [attention('sdpa'), sdpa_kernel(k)]) for k in torchs}

def trainer(a, name, batch, checkpoint=False, compiled='', fused=None): # one step of a stage, and its Step
    model, loss, step = rehearsal(a.configs[name], batch, a.windows, a.t1, a.device)
    for m in model.modules():
        m.checkpointing = checkpoint
        if compiled and isinstance(m, Block): (m.mlp if compiled == 'MLPs' else m).compile(dynamic=True, backend='aot_eager' if a.smoke else 'inductor')
    opt = torch.optim.AdamW(groups(model, .05), lr=1e-4, betas=(.9,.95), fused=fused)
    def go():
        opt.zero_grad()
        with torch.autocast(a.device, torch.bfloat16): l = loss()
        l.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.)
        opt.step()
        if hasattr(model, 'follow'): model.follow(.999)
    return go, step

def measured(a, name, batch, how='as the loop runs it', contexts=list, **kw):
    "One row: speed and memory of a step, or the reason why there is none"
    row = dict(stage=name, batch=batch, how=how); gc.collect()
    if a.device == 'cuda': torch.cuda.empty_cache(); torch.cuda.reset_peak_memory_stats()
    try:
        with ExitStack() as s:
            for c in contexts(): s.enter_context(c)
            go, step = trainer(a, name, batch, **kw); t = seconds(go, a.device, a.seconds, *((1, 1) if a.smoke else ()))
        work = flops(step)['total']; tokens = batch*dict(S=1200 if not a.smoke else 150, F=400*a.windows, Harmonizer=400*a.windows+a.t1)[name]
        row |= dict(seconds=t, sessions_s=batch/t, tokens_s=tokens/t, tflops=work/t/1e12, share=work/t/a.peak, planned_gb=memory(step, 'bf16', kw.get('checkpoint', False), fresh=True)['peak']/1e9,
                    peak_gb=torch.cuda.max_memory_allocated()/1e9 if a.device == 'cuda' else None)
    except torch.OutOfMemoryError: row |= dict(fault='out of memory')
    except (RuntimeError, ImportError, ValueError) as e: row |= dict(fault=' '.join(str(e).split())[:160])
    finally:
        if kw.get('compiled'): torch.compiler.reset()
        go = step = None; gc.collect()
    a.rows.append(row); save(a)
    print(line(row), flush=True)
    return row

def profiled(a, name, batch): # the operations that take most of a step
    from torch.profiler import ProfilerActivity as A, profile
    try:
        go, _ = trainer(a, name, batch); go(); go(); wait(a.device)
        with profile(activities=[A.CPU] + [A.CUDA]*(a.device == 'cuda')) as p: go(); wait(a.device)
    except (torch.OutOfMemoryError, RuntimeError) as e: return str(e)[:160]
    key = lambda e: e.self_device_time_total if a.device == 'cuda' else e.self_cpu_time_total
    rows = sorted(p.key_averages(), key=key, reverse=True); total = sum(map(key, rows)) or 1
    return [dict(op=e.key, calls=e.count, ms=key(e)/1e3, share=key(e)/total) for e in rows[:15]]

# ---- telling ----

def line(r): return f'{r["stage"]:10s} batch {r["batch"]:4d}  {r["how"]:28s} ' + (r['fault'] if 'fault' in r else f'{r["seconds"]*1e3:9.1f} ms  {r["tokens_s"]:12,.0f} tokens/s  {r["share"]:6.1%} of peak' + (f'  {r["peak_gb"]:.1f} GB' if r['peak_gb'] else ''))

def table(head, rows): return '\n'.join(['| ' + ' | '.join(map(str, r)) + ' |' for r in (head, ['---']*len(head), *rows)])

def report(a):
    d = a.about; num = lambda r, k, f: f.format(r[k]) if r.get(k) is not None else ''
    rows = [(r['stage'], r['batch'], r['how'], *([r['fault']] + ['']*6 if 'fault' in r else [num(r, 'seconds', '{:.4f}'), num(r, 'sessions_s', '{:,.1f}'), num(r, 'tokens_s', '{:,.0f}'), num(r, 'tflops', '{:.2f}'), num(r, 'share', '{:.1%}'), num(r, 'peak_gb', '{:.2f}'), num(r, 'planned_gb', '{:.2f}')])) for r in a.rows]
    out = ['# Training steps on one device', '', f'- commit {str(d["software"]["commit"])[:10]} · seeds 0 · device: {d["device"]} · torch {torch.__version__} · data: simulated (random tensors of the real shapes) · {"SMOKE SIZE: small models, to try the script" if a.smoke else "ViT-B"}',
           f'- matmul peak measured in the same run: {a.peak/1e12:.2f} TFLOP/s bf16; attention backends here: {", ".join(backends())}', '', '## Steps', '',
           table(('stage','batch','how','s','sessions/s','tokens/s','TFLOP/s','of measured peak','peak, GB','planned, GB'), rows)]
    for name,ops in a.ops.items(): out += ['', f'## Where a step of {name} goes', '', ops if isinstance(ops, str) else table(('operation','calls','ms','share'), [(o['op'], o['calls'], f'{o["ms"]:.2f}', f'{o["share"]:.1%}') for o in ops])]
    if a.hours:
        out += ['', '## The paper\'s recipe on 8 such chips', '', 'Arithmetic: sessions x epochs x FLOPs of a session / (8 x FLOP/s of the fastest step above). Nothing is taken off for communication and data loading.', '',
                table(('stage','sessions','epochs','TFLOP per session','TFLOP/s of one chip','hours on 8'), [(h['stage'], f'{h["sessions"]:,}', h['epochs'], f'{h["each"]/1e12:.2f}', f'{h["tflops"]:.2f}', f'{h["hours"]:.1f}') for h in a.hours])]
    return '\n'.join(out) + '\n'

def save(a):
    a.out.mkdir(parents=True, exist_ok=True)
    with atomic(a.out/'pretrain.json') as tmp: tmp.write_text(json.dumps(dict(a.about, peak_tflops=a.peak/1e12, rows=a.rows, ops=a.ops, hours=a.hours), indent=1))
    with atomic(a.out/'pretrain.md') as tmp: tmp.write_text(report(a))

def best(a, name, **only): # fastest row of a stage
    ok = [r for r in a.rows if r['stage'] == name and 'share' in r and all(r[k] == v for k,v in only.items())]
    return max(ok, key=lambda r: r['share'], default=None)

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu', help='cuda or cpu')
    p.add_argument('--smoke', action='store_true', help='small models, to try the script')
    p.add_argument('--stages', nargs='+', default=list(CONFIGS), choices=list(CONFIGS), help='what to measure')
    p.add_argument('--batches', nargs='+', type=int, help='sessions per step')
    p.add_argument('--seconds', type=float, default=5., help='of each measurement')
    p.add_argument('--out', type=Path, default=Path('reports/runs/pretrain'), help='folder for pretrain.md and pretrain.json')
    a = p.parse_args()
    a.configs = {k:c.smoke() if a.smoke else c() for k,c in CONFIGS.items()}
    a.windows, a.t1, a.seconds = (2, 50, min(a.seconds, .1)) if a.smoke else (10, 1200, a.seconds)
    batches = a.batches or ([1, 2] if a.smoke else [1, 4, 16, 32, 64, 128, 256])
    a.rows, a.ops, a.hours = [], {}, []
    a.about = dict(device=torch.cuda.get_device_name() if a.device == 'cuda' else f'CPU, {torch.get_num_threads()} threads', smoke=a.smoke, software=provenance())
    a.peak = matmul_peak(a.device, (256,) if a.smoke else (4096, 8192, 16384))
    print(f'{a.about["device"]}: {a.peak/1e12:.2f} TFLOP/s bf16 matmul', flush=True)
    for name in a.stages:
        for b in batches:
            if 'fault' in measured(a, name, b): break
        b = (best(a, name) or dict(batch=batches[0]))['batch'] # where the default fails, other backends may not
        for how,contexts in kernels(a.device).items(): measured(a, name, b, how, contexts)
        measured(a, name, b, 'checkpointing', checkpoint=True)
        for part in ('MLPs', 'blocks'): measured(a, name, b, f'torch.compile of {part}', compiled=part)
        if not a.smoke: measured(a, name, b, 'torch.compile of MLPs, checkpointing', compiled='MLPs', checkpoint=True)
        if a.device == 'cuda': measured(a, name, b, 'fused AdamW', fused=True)
        a.ops[name] = profiled(a, name, b); save(a)
    for r in recipe(*a.configs.values(), draws=2 if a.smoke else 50):
        top = best(a, STAGE.get(r['stage'], ''))
        if top: a.hours.append(r | dict(tflops=top['tflops'], hours=hours(r['total'], 8, top['tflops']*1e12, 1.)))
    save(a)
    print('\n' + report(a))

if __name__ == '__main__': main()
