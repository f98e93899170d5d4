"""What a training step costs against tokens, width, windows, hub tokens and batch; its memory beside the plan of chapter 67; the data loading of one GPU; growth to a million subjects.

    python benchmarks/scaling.py [--only cost memory loading] [--rounds 3]

One thread, float32, random weights and inputs. Time is CPU time of the process (`time.process_time`), the least of all rounds, so that other work on the machine disturbs little; a shared cache and shared memory still do.
Peak memory is what torch's allocator held (profiler), and beside it the resident peak of another process. Results go to reports/scaling.json, scaling.md and two figures; with --only, the rest of the JSON stays.
"""
import os
os.environ.setdefault('OMP_NUM_THREADS', '1')
import argparse, gc, json, subprocess, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from scipy.optimize import nnls
from brainharmonix.core import atomic, progress, provenance
from brainharmonix.model.function import FunctionConfig as F
from brainharmonix.model.harmonizer import HarmonizerConfig as H
from brainharmonix.model.structure import StructureConfig as S
from brainharmonix.train.plan import COHORTS, EPOCHS, PAIRS, Stack, allocated, flops, hours, kept, memory, plan, recipe, rehearsal, two_steps

REPORTS = Path(__file__).parents[1]/'reports'

# ---- time

def s(dim, **kw): return S(dim=dim, depth=6, heads=dim//64 or 1, dec_dim=96, dec_depth=4, dec_heads=3, **kw)
def f(dim): return F(dim=dim, depth=6, heads=dim//64 or 1, pred_dim=dim//2, pred_depth=3, pred_heads=dim//64 or 1)
def h(dim, hubs=128): return H(in_dim=192, dim=dim, depth=6, heads=dim//64 or 1, hubs=hubs, dec_dim=96, dec_depth=4, dec_heads=3)

def points(): # (model, what varies, its value, config, batch, windows, T1 tokens)
    for v in ((80,96,80), (112,128,112), (160,192,160), (192,224,192)): yield 'S', 'tokens N', int(np.prod(v))//4096, s(192, volume=v), 1, 0, 0
    for D in (96, 192, 384, 768): yield 'S', 'width D', D, s(D), 1, 0, 0
    for B in (1, 2, 4, 8): yield 'S', 'batch B', B, s(192, volume=(112,128,112)), B, 0, 0
    for P in (2, 4, 7, 10, 14, 18): yield 'F', 'windows P', P, f(192), 1, P, 0
    for D in (96, 192, 384, 768): yield 'F', 'width D', D, f(D), 1, 4, 0
    for B in (1, 2, 4, 8): yield 'F', 'batch B', B, f(192), B, 4, 0
    for P in (2, 4, 7, 10): yield 'Harmonizer', 'windows P', P, h(192), 1, P, 600
    for n in (32, 64, 128, 256): yield 'Harmonizer', 'hub tokens H', n, h(192, n), 1, 4, 600
    for D in (96, 192, 384, 576): yield 'Harmonizer', 'width D', D, h(D), 1, 4, 600
    for B in (1, 2, 4): yield 'Harmonizer', 'batch B', B, h(192), B, 2, 300

def tokens(step): # that exist, of all sessions
    if isinstance(step.cfg, S): return sum(step.trained['decoder'].lens)
    return sum(step.frozen['target'].lens) if isinstance(step.cfg, F) else sum(step.trained['encoder'].lens) - step.cfg.hubs*step.samples

def attention_of(step): return sum(3*p.attention for p in step.trained.values() if isinstance(p, Stack)) + sum(p.attention for p in step.frozen.values() if isinstance(p, Stack))

def seconds(cfg, B, P, N): # CPU time of forward pass, backward pass and AdamW, after a step to warm up
    model, loss, step = rehearsal(cfg, B, P, N)
    opt, each = torch.optim.AdamW(p for p in model.parameters() if p.requires_grad), []
    for _ in range(2):
        t = time.process_time(); opt.zero_grad(); loss().backward(); opt.step(); each.append(time.process_time()-t)
    return min(each), step, sum(p.numel() for p in model.parameters() if p.requires_grad)

def cost(rounds):
    rows = []
    for r in range(rounds):
        for i,(model,what,value,cfg,B,P,N) in enumerate(progress(list(points()), f'round {r+1}')):
            t, step, params = seconds(cfg, B, P, N)
            if r == 0: rows.append(dict(model=model, what=what, value=value, samples=step.samples, tokens=tokens(step), flops=flops(step)['total'], attention=attention_of(step), params=params,
                                        touched=sum(kept(p) for p in step.trained.values())//4 + sum(step.errors), seconds=t))
            rows[i]['seconds'] = min(rows[i]['seconds'], t); gc.collect()
    A = np.array([[r['flops']-r['attention'], r['attention'], r['touched'], r['params'], 1] for r in rows], float); t = np.array([r['seconds'] for r in rows])
    c, _ = nnls(A/t[:,None]/(scale := A.max(0)), np.ones(len(t))); c = c/scale # least squares of relative errors
    for r,p in zip(rows, A@c): r['law'] = p
    peak = 0
    for _ in range(5):
        a, b = torch.randn(2, 1536, 1536); u = time.process_time(); a@b; peak = max(peak, 2*1536**3/(time.process_time()-u))
    return dict(rows=rows, law=dict(zip(('linear','attention','touched','params','step'), c)), peak_gflops=peak/1e9, rounds=rounds)

# ---- memory

CONFIGS = {'S, width 384, batch 2':                (S(dim=384, heads=6, dec_dim=192, dec_heads=6), 2, 0, 0),
           'F, width 384, batch 1, 10 windows':    (F(dim=384, heads=6, pred_dim=192, pred_heads=6), 1, 10, 0),
           'F, width 384, batch 3, 5 windows':     (F(dim=384, heads=6, pred_dim=192, pred_heads=6), 3, 5, 0),
           'Harmonizer, width 288, batch 1, 4 windows': (H(in_dim=384, dim=288, heads=6, dec_dim=192, dec_heads=6), 1, 4, 600),
           'S, ViT-B, batch 1':                    (S(), 1, 0, 0),
           'F, ViT-B, batch 1, 2 windows':         (F(), 1, 2, 0)}
CASES = [(n, 'float32', False, False) for n in CONFIGS] + [('S, width 384, batch 2', 'bf16', False, False), ('S, width 384, batch 2', 'float32', True, False), ('S, width 384, batch 2', 'float32', False, True),
         ('Harmonizer, width 288, batch 1, 4 windows', 'bf16', False, False), ('Harmonizer, width 288, batch 1, 4 windows', 'float32', True, False)]

def child(name, precision, checkpoint, fresh, how): # in a process of its own: how = allocator or resident
    cfg, B, P, N = CONFIGS[name]; run = lambda: two_steps(lambda: rehearsal(cfg, B, P, N), precision, checkpoint, fresh)
    if how == 'allocator': return allocated(run)
    status = lambda k: int(next(l for l in open('/proc/self/status') if l.startswith(k)).split()[1])*1024
    two_steps(lambda: rehearsal(S.smoke(), 1)); gc.collect(); before = status('VmRSS') # libraries are loaded
    with open('/proc/self/clear_refs', 'w') as o: o.write('5')                          # start the peak anew (Linux)
    run(); return status('VmHWM') - before

def peaks():
    rows = []
    for case in progress(CASES, 'memory'):
        cfg, B, P, N = CONFIGS[case[0]]; want = memory(rehearsal(cfg, B, P, N)[2], *case[1:])
        got = {how:int(subprocess.run([sys.executable, __file__, '--child', json.dumps([*case, how])], capture_output=True, text=True, check=True).stdout.split()[-1]) for how in ('allocator','resident')}
        rows.append(dict(config=case[0], precision=case[1], checkpoint=case[2], fresh=case[3], planned=want['peak'], terms=want, **got)); print(rows[-1]['config'], case[1:], f"{want['peak']/got['allocator']-1:+.1%}", flush=True)
    return rows

# ---- loading

def each(call, n, args=None): # ms of CPU time and of the clock per call, median
    u = []
    for i in range(n):
        t, w = time.process_time(), time.perf_counter(); call(*(args(i) if args else ())); u.append((time.process_time()-t, time.perf_counter()-w))
    return [round(1e3*float(np.median(x)), 3) for x in zip(*u[n//5:])]

def loading(n=60):
    from safetensors.torch import save_file
    from safetensors import safe_open
    from brainharmonix.model.masking import sample_masks
    from brainharmonix.model.tape import canonical, windows
    from brainharmonix.preprocess.bold import read_bold
    from brainharmonix.preprocess.scale import Statistics, downsample, normalised
    from brainharmonix.preprocess.t1 import mni152, read_t1
    from brainharmonix.record import load_record, save_record
    from brainharmonix.train.structure import light
    rng, out = np.random.default_rng(0), {}
    with tempfile.TemporaryDirectory(dir=REPORTS) as d:
        d = Path(d); meta = dict(kind='bold', tr=.735, names=[f'parcel {i}' for i in range(400)], order='17', atlas='Schaefer-400', source='simulated', notes=[], decisions={})
        for i in range(n): save_record(d/f'{i}_timeseries.safetensors', dict(x=rng.standard_normal((400,490)).astype('f2'), mean=np.ones(400), sd=np.ones(400), missing=np.zeros(490), coverage=np.ones(400), fd=np.zeros(490)), meta)
        out['BOLD record, read and verified'] = each(lambda i: load_record(d/f'{i}_timeseries.safetensors'), n, lambda i: (i,))
        out['BOLD record, its head alone (once, at the start of a run)'] = each(lambda i: load_record(d/f'{i}_timeseries.safetensors', 'bold', arrays=['missing']), n, lambda i: (i,))
        run = read_bold(d/'0_timeseries.safetensors')
        out['BOLD, z-score'] = each(lambda: normalised(run, Statistics('zscore')), n)
        out['BOLD, downsampling by 2 (augmentation)'] = each(lambda: downsample(run, 2), n)
        x, w = torch.from_numpy(normalised(run, Statistics('zscore'))), windows(490, .735)
        out['BOLD, canonical samples of 10 windows'] = each(lambda: canonical(x, w).half(), n)
        m, g = torch.ones(1, 10).bool(), torch.Generator().manual_seed(0)
        out['BOLD, masks'] = each(lambda: sample_masks(m, 400, g=g), n)
        t1 = read_t1(mni152(), norm='brain'); f16 = np.asarray(t1.x).astype('f2')
        for i in range(6): save_record(d/f'{i}_t1.safetensors', dict(x=f16), dict(kind='t1', source='MNI152'))
        try: read = lambda i: read_t1(d/f'{i%6}_t1.safetensors'); read(0)
        except Exception: read = lambda i: load_record(d/f'{i%6}_t1.safetensors')
        out['T1 record, read and verified'] = each(read, 30, lambda i: (i,))
        out['T1 record, read, not verified'] = each(lambda i: load_record(d/f'{i%6}_t1.safetensors', verify=False), 30, lambda i: (i,))
        v, g = torch.from_numpy(f16).float(), torch.Generator().manual_seed(0)
        out['T1, to float32'] = each(lambda: torch.from_numpy(f16).float(), 30)
        out['T1, light augmentation'] = each(lambda: light(v, g), 30)
        for k in range(8): save_file({f'{i}.bold':torch.randn(4000,768).bfloat16() for i in range(8)} | {f'{i}.t1':torch.randn(1200,768).bfloat16() for i in range(8)}, d/f'latents-{k}.safetensors')
        def latents(i):
            with safe_open(d/f'latents-{i%8}.safetensors', 'pt') as o: return o.get_tensor(f'{i//8%8}.bold').float(), o.get_tensor(f'{i//8%8}.t1').float()
        out['latents of a session (bf16, 5,200 x 768), read from a shard, to float32'] = each(latents, 60, lambda i: (i,))
        size = dict(bold=(d/'0_timeseries.safetensors').stat().st_size, t1=(d/'0_t1.safetensors').stat().st_size, latents=(d/'latents-0.safetensors').stat().st_size/8)
    return dict(ms=out, bytes=size)

# ---- telling

PEAK, SHARE, GPUS = 989e12, .45, 8 # of an H100 in bf16, as its maker says; the share that this project aims at; neither was measured
SUBJECTS = 43_112 + 11_221         # method.md 4.1
PREPROCESS = dict(t1=38, bold=13)  # s on one core, reports/storage.md

def table(head, rows): return '\n'.join('| '+' | '.join(map(str, r))+' |' for r in (head, ['---']*len(head), *rows))

def cost_tables(c):
    out = []
    for model in ('S','F','Harmonizer'):
        rows = [(r['what'], r['value'], f"{r['tokens']:,}", f"{r['flops']/1e9:.1f}", f"{r['attention']/r['flops']:.0%}", f"{r['seconds']:.2f}", f"{r['flops']/r['tokens']/1e6:.1f}", f"{1e3*r['seconds']/r['tokens']:.3f}",
                 f"{r['seconds']/r['samples']:.2f}", f"{r['flops']/r['seconds']/1e9:.0f}", f"{r['law']/r['seconds']-1:+.0%}") for r in c['rows'] if r['model'] == model]
        out += [f'### {model}', '', table(('what varies','value','tokens','GFLOP, counted','of it attention','CPU s, measured','MFLOP per token','CPU ms per token','CPU s per subject','GFLOP/s','law'), rows), '']
    return out

def loads(l): # what one GPU asks for: stage -> sessions/s, CPU ms of a session
    ms = {k:v[0] for k,v in l['ms'].items()}; get = lambda *keys: sum(next(v for n,v in ms.items() if n.startswith(k)) for k in keys)
    r = {x['stage']:x for x in recipe(draws=20)}; per_s = lambda k: PEAK*SHARE/r[k]['each']
    runs, series = sum(c['runs'] for c in COHORTS.values()), sum(c['runs']*c['trs'] for c in COHORTS.values())
    f = get('BOLD record, read', 'BOLD, z-score', 'BOLD, canonical', 'BOLD, masks'); t = get('T1 record, read and', 'T1, to')
    return [('S', per_s('structure'), t, l['bytes']['t1']), ('S, light augmentation', per_s('structure'), t+get('T1, light'), l['bytes']['t1']), ('S, hashes not checked', per_s('structure'), get('T1 record, read, not', 'T1, to'), l['bytes']['t1']),
            ('F', per_s('function'), f + (series-runs)/series*get('BOLD, downsampling'), l['bytes']['bold']), ('F, without longer TRs', per_s('function'), f, l['bytes']['bold']),
            ('Harmonizer, latents from disk', per_s('harmonizer'), get('latents'), l['bytes']['latents'])]

def growth(l):
    r, n = {x['stage']:x for x in recipe(draws=20)}, {k:sum(c[k] for c in COHORTS.values())/SUBJECTS for k in ('t1','runs')}
    for subjects in (1e3, 1e4, SUBJECTS, 1e5, 1e6):
        k = subjects/SUBJECTS; files = 2*subjects*(n['t1']+n['runs'])
        yield dict(subjects=subjects, hours={s:hours(x['total']*k, GPUS, PEAK, SHARE) for s,x in r.items()}, t1=subjects*n['t1']*l['bytes']['t1'], bold=subjects*n['runs']*l['bytes']['bold'], latents=PAIRS*k*l['bytes']['latents'], files=files,
                   start=subjects*(n['t1']+n['runs'])*next(v[0] for q,v in l['ms'].items() if 'its head' in q)/1e3, core_hours=subjects*(n['t1']*PREPROCESS['t1']+n['runs']*PREPROCESS['bold'])/3600)

def first_target(): # what F would need if the target ran before the context encoder
    step = plan(F(), *((n,)*16 for n in (1100, 1000, 4000))); m = memory(step, 'bf16'); held = sum(v for k,v in m.items() if k.startswith('kept')); U = 4*step.errors[0]
    return f"ViT-B, batch 16, bf16: {(m['peak']-m['working set']-held+max(m['working set'], held+5*U))/1e9:.1f} GB in place of {m['peak']/1e9:.1f}"

def figures(c, l):
    import matplotlib; matplotlib.use('Agg'); import matplotlib.pyplot as plt
    fig, (a, b) = plt.subplots(1, 2, figsize=(8, 2.6), layout='constrained')
    for i,(m,what) in enumerate((('S','tokens N'), ('F','windows P'), ('Harmonizer','windows P'))):
        rows = [r for r in c['rows'] if (r['model'], r['what']) == (m, what)]; x = [r['tokens'] for r in rows]
        a.plot(x, [1e3*r['seconds']/r['tokens'] for r in rows], f'C{i}o', ms=4, label=m); a.plot(x, [1e3*r['law']/r['tokens'] for r in rows], f'C{i}', lw=1)
    a.set(xlabel='tokens of one session (width 192)', ylabel='CPU ms per token', ylim=0); a.legend(frameon=False, fontsize=8)
    for i,m in enumerate(('S','F','Harmonizer')):
        rows = [r for r in c['rows'] if r['model'] == m]; b.loglog([r['flops']/1e9 for r in rows], [r['seconds'] for r in rows], f'C{i}o', ms=4, label=m)
    lo, hi = min(r['flops'] for r in c['rows']), max(r['flops'] for r in c['rows'])
    b.plot([lo/1e9, hi/1e9], [lo/1e9/c['peak_gflops'], hi/1e9/c['peak_gflops']], 'k--', lw=1, label='matmul peak'); b.set(xlabel='counted GFLOP of a step', ylabel='CPU s'); b.legend(frameon=False, fontsize=8)
    for ax in (a, b): ax.spines[['top','right']].set_visible(False)
    fig.savefig(REPORTS/'figures'/'scaling-cost.png', dpi=110); plt.close(fig)
    fig, (a, b) = plt.subplots(1, 2, figsize=(8, 2.6), layout='constrained'); g = list(growth(l)); x = [r['subjects'] for r in g]
    for k in ('function','harmonizer','structure','latents'): a.loglog(x, [r['hours'][k] for r in g], '-', label=k)
    a.set(xlabel='subjects', ylabel=f'hours on {GPUS} GPUs (arithmetic)'); a.legend(frameon=False, fontsize=8)
    for k,n in (('latents','latents, bf16'), ('t1','T1 records'), ('bold','BOLD records')): b.loglog(x, [r[k]/1e12 for r in g], label=n)
    b.axhline(1, color='k', ls='--', lw=1); b.text(1.1e3, 1.2, '1 TB: memory of a large node', fontsize=7); b.set(xlabel='subjects', ylabel='TB (arithmetic)'); b.legend(frameon=False, fontsize=8)
    for ax in (a, b): ax.spines[['top','right']].set_visible(False)
    fig.savefig(REPORTS/'figures'/'scaling-growth.png', dpi=110); plt.close(fig)

def written(r):
    if any(k not in r for k in ('cost','memory','loading')): return
    c, m, l = r['cost'], r['memory'], r['loading']; figures(c, l); w = c['law']; err = np.array([x['law']/x['seconds']-1 for x in c['rows']])
    ask, g, need = loads(l), list(growth(l)), lambda k: next(x for x in loads(l) if x[0] == k)
    s, sl, sn = need('S'), need('S, light augmentation'), need('S, hashes not checked'); cores = lambda x: x[1]*x[2]/1e3
    last, fit = g[-1], 1e12/(sum(q['t1'] for q in COHORTS.values())/SUBJECTS*l['bytes']['t1'])
    rate = lambda v, unit: f'{1/v/1e9:.0f} {unit}' if v else 'not seen'
    out = ['# Cost and scale', '', f"- commit {str(r['software']['commit'])[:10]} · seeds 0 · device: 1 thread of a CPU ({r['software']['machine']}) shared with other work · torch {torch.__version__}, float32 · data: simulated (random tensors of the real shapes)",
           f"- `python benchmarks/scaling.py --rounds {c['rounds']}`; the plan and its formulas are chapter 67", '',
           'Times are CPU time of the process, so that other work on the machine disturbs little. It still does through shared caches and memory; a quiet machine is faster.',
           '**The GPU part has not been run**: no GPU was at hand. `benchmarks/pretrain.py` is that part (tokens/s, share of the measured matmul peak, memory against batch, attention backends, compilation, checkpointing, profile, projected hours); it is tested on a CPU with small models only.',
           'Every number below that speaks of a GPU is arithmetic, and is labelled so.', '',
           '## A training step: measured beside counted', '', f"Forward pass, backward pass and AdamW; widths and depths are given in `benchmarks/scaling.py` (6 blocks, width 192 where not varied). Counted: `FlopCounterMode` and the closed form of chapter 67 agree exactly. `law`: what the fitted law below gives, against the measurement. Matmul peak of the thread in the same run: {c['peak_gflops']:.0f} GFLOP/s.", '', *cost_tables(c),
           '![cost](figures/scaling-cost.png)', '', 'Dots: measured; lines: the law.', '',
           '### The law', '', f"One law for all three models, fitted by non-negative least squares of relative errors to the {len(c['rows'])} steps above:", '',
           'CPU seconds = linear FLOPs / a + attention FLOPs / b + values kept / c + parameters / d + e', '',
           table(('term','rate'), [('a: matrix products of layers', rate(w['linear'], 'GFLOP/s')), ('b: attention (its model FLOPs; the fused kernel does 7 products where 6 are counted)', rate(w['attention'], 'GFLOP/s')), ('c: elementwise work, per value kept for the backward pass', rate(w['touched'], 'G values/s') if w['touched'] == 0 or 1/w['touched'] > 1e9 else f"{1/w['touched']/1e6:.0f} M values/s"),
                  ('d: AdamW and what goes with the size of the weights', f"{1/w['params']/1e6:.0f} M parameters/s" if w['params'] else 'not seen'), ('e: per step', f"{1e3*w['step']:.1f} ms")]), '',
           f"The law is off by {np.median(abs(err)):.0%} in the median and {abs(err).max():.0%} at worst (S, where elementwise work on voxels weighs most). Linear FLOPs and values kept grow together, so the single rates a and c are less certain than their sum; a may come out above the measured peak. FLOPs themselves follow from the sizes: per token $24LD^2+4LnD$ forward, three times that for a step, so cost per token grows linearly with $n$ (windows, T1 tokens) and with $D^2$; "
           'batch changes nothing per session, hub tokens little. F is cheaper per token than the Harmonizer because its context encoder sees a quarter of the cells and its target needs no backward pass.', '',
           '## Memory: planned beside measured', '', "`allocator`: the exact peak of what torch's CPU allocator held (profiler). `resident`: growth of the resident set of another process over the same two steps; kernels' own workspace and what the C library does not give back are in it. Gradients are kept between steps except in the row that says so.", '',
           table(('configuration','precision','','planned, MB','allocator, MB','error','resident, MB'), [(x['config'], x['precision'], 'checkpointing' if x['checkpoint'] else 'gradients freed first' if x['fresh'] else '', f"{x['planned']/1e6:,.0f}", f"{x['allocator']/1e6:,.0f}", f"{x['planned']/x['allocator']-1:+.1%}", f"{x['resident']/1e6:,.0f}") for x in m]), '',
           'The terms, in MB:', '', table(('configuration','weights','target','gradients','moments','cast weights','inputs','kept','working set'), [(x['config'], *(f"{sum(v for k,v in x['terms'].items() if k.startswith(t))/1e6:,.0f}" for t in ('weights','target','gradients','moments','cast','inputs','kept','working set'))) for x in m if x['precision'] == 'float32' and not x['checkpoint'] and not x['fresh']]), '',
           'In F the working set is the target encoder: it runs over all tokens after the context encoder, while everything that encoder kept is still held. Running it first would need less (arithmetic: ' + first_target() + ').', '',
           '## Loading: how many cores feed one GPU', '', 'Measured, one thread: a BOLD record of 400 x 490 values in float16, a T1 of 160 x 192 x 160, files in the page cache; clock and CPU differ where other work took the core.', '',
           table(('what','CPU ms','clock ms'), [(k, *v) for k,v in l['ms'].items()]), '',
           f'**Arithmetic**: one GPU at {SHARE:.0%} of {PEAK/1e12:.0f} TFLOP/s in bf16 (an H100 as its maker says; the share is an aim), ViT-B, FLOPs of chapter 67:', '',
           table(('stage','sessions/s','CPU ms per session','cores','MB/s read'), [(k, f'{n:,.0f}', f'{t:.1f}', f'{n*t/1e3:.1f}', f'{n*b/1e6:,.0f}') for k,n,t,b in ask]), '',
           '## Storage', '', f"Records: `reports/storage.md`. Latents in bf16: {l['bytes']['latents']/1e6:.2f} MB a session (4,000 BOLD and 1,200 T1 tokens of width 768, UK Biobank; ABCD has 9 windows, 7.37 MB), twice that in float32; the release's padded float32 files have 25.8 MB.", '',
           table(('what','per item','items','total'), [('T1 records', f"{l['bytes']['t1']/1e6:.2f} MB", '64,594', f"{64_594*l['bytes']['t1']/1e9:,.0f} GB"), ('BOLD records (490 frames)', f"{l['bytes']['bold']/1e6:.2f} MB", '70,933', f"{70_933*l['bytes']['bold']/1e9:,.0f} GB"),
                  ('latents, bf16', f"{l['bytes']['latents']/1e6:.2f} MB", f'{PAIRS:,}', f"{PAIRS*l['bytes']['latents']/1e9:,.0f} GB"), ('latents, float32', f"{2*l['bytes']['latents']/1e6:.2f} MB", f'{PAIRS:,}', f"{2*PAIRS*l['bytes']['latents']/1e9:,.0f} GB")]), '',
           'Making latents on the fly instead costs a forward pass of both encoders per session and step: ' + (lambda x: f"{x['latents']['each']/1e12:.2f} TFLOP beside the {x['harmonizer']['each']/1e12:.2f} of the Harmonizer's own step, {x['latents']['each']/x['harmonizer']['each']:.0%} more")({x['stage']:x for x in recipe(draws=5)}) + ', and no storage.', '',
           '## From a thousand to a million subjects', '', f'**Arithmetic.** Scans per subject as in the published cohorts ({SUBJECTS:,} subjects); epochs {EPOCHS["structure"]}, {EPOCHS["function"]} and {EPOCHS["harmonizer"]} whatever the size; {GPUS} GPUs as above. Preprocessing: 38 s per T1 and 13 s per run on one core (`storage.md`). Start: reading the head of every record once.', '',
           table(('subjects','S, h','F, h','latents, h','Harmonizer, h','T1, TB','BOLD, TB','latents, TB','files, M','start, min','preprocessing, core h'), [(f"{x['subjects']:,.0f}", *(f"{x['hours'][k]:,.2f}" for k in ('structure','function','latents','harmonizer')), *(f"{x[k]/1e12:,.3f}" for k in ('t1','bold','latents')), f"{x['files']/1e6:,.3f}", f"{x['start']/60:,.1f}", f"{x['core_hours']:,.0f}") for x in g]), '',
           '![growth](figures/scaling-growth.png)', '', 'What breaks, in this order (arithmetic):', '',
           f"1. **T1 loading for S, at any size.** {GPUS} GPUs ask for {GPUS*s[1]:,.0f} T1s a second: {GPUS*cores(s):,.0f} cores to read and check them, {GPUS*cores(sl):,.0f} with light augmentation, {GPUS*cores(sn):,.0f} with neither, and {GPUS*s[1]*s[3]/1e9:.0f} GB/s. Augmentation belongs on the GPU, hashes are to be checked in the first epoch only, and S may simply wait: it is the shortest stage.",
           f"2. **The page cache, near {fit:,.0f} subjects.** Up to there all T1 records fit into 1 TB of memory; beyond, every epoch of S comes from the disks at the rate above. Latents fill 1 TB at {1e12/(PAIRS/SUBJECTS*l['bytes']['latents']):,.0f} subjects, but the Harmonizer reads only {GPUS*need('Harmonizer, latents from disk')[1]*l['bytes']['latents']/1e9:.1f} GB/s of them.",
           f"3. **Files, at a million.** {last['files']/1e6:.1f} million files, and {last['start']/60:.0f} minutes to open every record once before training starts, on one thread and a warm cache. Shards or an index of heads are needed there, not before.",
           f"4. **Hours of F and of the Harmonizer, at a million.** {last['hours']['function']:,.0f} and {last['hours']['harmonizer']:,.0f} h on {GPUS} GPUs at fixed epochs; preprocessing takes {last['core_hours']:,.0f} core hours, {last['core_hours']/3200:.1f} h on 100 nodes of 32 cores. Memory of a step does not depend on the number of subjects."]
    with atomic(REPORTS/'scaling.md') as tmp: tmp.write_text('\n'.join(out) + '\n')

def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument('--only', nargs='+', default=['cost','memory','loading'], choices=['cost','memory','loading','write'], help='parts to measure; write: only the report')
    p.add_argument('--rounds', type=int, default=3)
    p.add_argument('--child', help=argparse.SUPPRESS)
    a = p.parse_args(); torch.set_num_threads(1)
    if a.child: print(child(*json.loads(a.child))); return
    file = REPORTS/'scaling.json'; r = json.loads(file.read_text()) if file.exists() else {}
    for k,call in dict(cost=lambda: cost(a.rounds), memory=peaks, loading=loading).items():
        if k in a.only:
            r[k] = call() ; r['software'] = provenance()
            with atomic(file) as tmp: tmp.write_text(json.dumps(r, indent=1))
    written(r)

if __name__ == '__main__': main()
