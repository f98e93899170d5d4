"""Forward time at ViT-B size, side by side in one run: the released order of computation, and ours, with the same weights.

    python benchmarks/speed.py [--repeats 3] [--tiny] [--out reports/speed.json]

The reference is what the release computes: attention over valid tokens only (its varlen kernel), everything else over all 18 windows, every row of every block, a 3-D convolution for the T1,
and TAPE's pseudo-inverse at every call. A 6-minute scan at TR 2.0 s fills 10 of 18 windows. Batch 1, CPU, random weights. Each round runs every contender once, in turn; the median over rounds counts.
"""
import argparse, json, platform, statistics, subprocess, sys, time
import torch, torch.nn.functional as F
from torch import nn
from brainharmonix.core import provenance
from brainharmonix.model.blocks import Packed, pack
from brainharmonix.model.function import FunctionConfig, FunctionEncoder
from brainharmonix.model.harmonizer import Harmonizer, HarmonizerConfig
from brainharmonix.model.position import sincos
from brainharmonix.model.structure import StructureConfig, StructureEncoder
from brainharmonix.model.tape import resize_matrix

WINDOWS, VALID, K = 18, 10, 18  # of the released grid, of the scan, frames per window at TR 2.0 s

# ---- the released order of computation ----

def padded_attention(attn, x, mask): # [1,N,D], [N] bool
    q, k, v = attn.qkv(x).unflatten(2, (3, attn.heads, -1)).unbind(2)
    q, k, v = (t[0,mask][None].transpose(1,2) for t in (q,k,v))            # un-pad
    o = F.scaled_dot_product_attention(q, k, v).transpose(1,2).flatten(2)
    full = torch.zeros_like(x, dtype=o.dtype); full[0,mask] = o[0]          # pad with zeros
    return attn.proj(full)

def padded_blocks(blocks, x, mask):
    for b in blocks:
        x = x + padded_attention(b.attn, b.norm1(x), mask)
        x = x + b.mlp(b.norm2(x))
    return x

def reference_function(enc, x, mask): # [1,R,18*k], [18]
    M = torch.stack([F.interpolate(e[None,None,None], (1,K), mode='bicubic', antialias=True)[0,0,0] for e in torch.eye(48)])
    w = (torch.linalg.pinv(M) @ enc.embed.proj.weight.T).T
    t = F.conv2d(x[:,None], w[:,None,None], enc.embed.proj.bias, stride=(1,K)).flatten(2).mT
    return enc.norm(padded_blocks(enc.blocks, t + enc.pos(WINDOWS), mask.repeat(x.shape[1])))

def reference_structure(enc, x):
    p = enc.cfg.patch
    t = F.conv3d(x, enc.embed.weight.view(-1,1,p,p,p), enc.embed.bias, stride=p).flatten(2).mT + enc.pos
    t = torch.cat([enc.cls_token, t], 1)
    return enc.norm(padded_blocks(enc.blocks, t, torch.ones(t.shape[1], dtype=torch.bool)))[:,1:]

def reference_harmonizer(har, tokens, mask, pos): # [1,8400,D], [8400], [8400,D]
    x = torch.cat([har.cls_token, tokens+pos, (har.hub_tokens+har.hub_pos)[None]], 1)
    return har.norm(padded_blocks(har.blocks, x, F.pad(mask, (1,har.cfg.hubs), value=True)))[:,-har.cfg.hubs:]

# ---- measuring ----

def seconds(f):
    t = time.perf_counter(); f(); return time.perf_counter()-t

def peak_matmul(dtype, n=2048, tries=8): # GFLOP/s
    a, b = torch.randn(n,n).to(dtype), torch.randn(n,n).to(dtype)
    a@b
    return 2*n**3/1e9/min(seconds(lambda: a@b) for _ in range(tries))

def flops(blocks, n, keys, read=None): # of a stack: matrix products of n rows, attention of rows to keys; only `read` rows in the last block
    D = blocks[0].norm1.weight.numel(); r = n if read is None else read
    lin, att = 24*n*D*D, 4*n*keys*D
    last = 4*n*D*D + 20*r*D*D + 4*r*keys*D
    return (len(blocks)-1)*(lin+att) + last

def resident(field): # MB
    return int(next(l for l in open('/proc/self/status') if l.startswith(field)).split()[1])/1024

def child(which): # peak resident memory of one contender, in a process of its own
    r = subprocess.run([sys.executable, __file__, '--only', which, *(['--tiny'] if '--tiny' in sys.argv else [])], capture_output=True, text=True)
    return json.loads(r.stdout.strip().splitlines()[-1])['extra_mb'] if r.returncode == 0 else None

def contenders(tiny):
    torch.manual_seed(0); d = dict(dim=192, depth=3, heads=3) if tiny else {}
    cf = FunctionConfig(**d); fn = FunctionEncoder(cf, torch.randn(400,30), torch.randn(400,200)).eval()
    st = StructureEncoder(StructureConfig(**d)).eval()
    ch = HarmonizerConfig(**d, **(dict(in_dim=192) if tiny else {}), decoders=0, cls=True); ha = Harmonizer(ch).eval()
    x, t1 = torch.randn(1,400,WINDOWS*K), torch.randn(1,1,160,192,160)
    mask = torch.arange(WINDOWS) < VALID; x[...,VALID*K:] = 0
    z = x.unflatten(2,(WINDOWS,K)) @ torch.linalg.pinv(torch.tensor(resize_matrix(48,K)).T).float()
    tokens = torch.randn(1,8400,ch.in_dim); keep = F.pad(mask.repeat(400), (0,1200), value=True); pos = sincos(8400, ch.dim); p = pack(tokens, keep[None])
    n, N = VALID*400, WINDOWS*400
    return {'F encoder': (lambda: reference_function(fn, x, mask), lambda: fn(z, mask[None]).x, lambda o: o[0,mask.repeat(400)], flops(fn.blocks, N, n), flops(fn.blocks, n, n)),
            'S encoder': (lambda: reference_structure(st, t1), lambda: st(t1).x, lambda o: o[0], flops(st.blocks, 1201, 1201), flops(st.blocks, 1201, 1201, 1200)),
            'Harmonizer': (lambda: reference_harmonizer(ha, tokens, keep, pos), lambda: ha.encode(p.x, pos[p.at], p.lens)[1][0], lambda o: o[0], flops(ha.blocks, 8529, n+1329), flops(ha.blocks, n+1329, n+1329, 129))}

@torch.no_grad()
def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--repeats', type=int, default=3, help='rounds')
    a.add_argument('--tiny', action='store_true', help='a small model, to try the script')
    a.add_argument('--only', help='run one contender and print its memory (used by the script itself)')
    a.add_argument('--out', help='JSON file for the result')
    a = a.parse_args(); c = contenders(a.tiny); bf16 = lambda f: (lambda: _autocast(f))
    runs = {(part,how):f for part,(ref,ours,*_) in c.items() for how,f in (('reference float32',ref), ('ours float32',ours), ('ours bf16',bf16(ours)))}
    if a.only:
        with open('/proc/self/clear_refs', 'w') as f: f.write('5')  # start the peak anew (Linux)
        before = resident('VmRSS'); runs[tuple(a.only.split('/'))]()
        print(json.dumps(dict(extra_mb=round(resident('VmHWM')-before)))); return
    times = {k:[] for k in runs}
    for _ in range(a.repeats):
        for k,f in runs.items(): times[k].append(seconds(f))
    peak = {d:peak_matmul(t) for d,t in (('float32',torch.float32), ('bf16',torch.bfloat16))}
    med, rows = {k:statistics.median(v) for k,v in times.items()}, []
    for part,(ref,ours,valid,f_ref,f_ours) in c.items():
        want = valid(ref()); full = ours(); err = lambda o: ((o.float()-want).norm()/want.norm()).item()
        for how,out in (('reference float32',None), ('ours float32',full), ('ours bf16',bf16(ours)())):
            s, fl = med[part,how], f_ref if how.startswith('ref') else f_ours
            rows.append(dict(part=part, how=how, seconds=round(s,3), ratio=round(med[part,'reference float32']/s,2), gflops=round(fl/s/1e9,1), share_of_peak=round(fl/s/1e9/peak[how.split()[-1]],2),
                             error=None if out is None else float(f'{err(out):.1e}'), extra_mb=child(f'{part}/{how}')))
            print(rows[-1], flush=True)
    result = dict(data='random weights and inputs', machine=dict(cpu=platform.processor() or platform.machine(), threads=torch.get_num_threads(), capability=torch.backends.cpu.get_cpu_capability()),
                  peak_matmul_gflops={k:round(v) for k,v in peak.items()}, scan=f'{VALID} of {WINDOWS} windows', rounds=a.repeats, software=provenance(), rows=rows)
    print(json.dumps({k:v for k,v in result.items() if k not in ('rows','software')}))
    if a.out: open(a.out, 'w').write(json.dumps(result, indent=1))

def _autocast(f):
    with torch.autocast('cpu', torch.bfloat16, cache_enabled=False): return f()

if __name__ == '__main__': main()
