"""A process of a training run, as test_train.py starts it: `torchrun --nproc-per-node 2 pretrain_worker.py '{"stages": ["function"], ...}'`"""
import io, json, os, resource, signal, sys, time
from dataclasses import replace
from pathlib import Path
import accelerate, accelerate.utils as u, torch, torch.distributed as dist, torch.distributed.checkpoint.state_dict, torch.distributed.fsdp, torch._dynamo # the last three are for the fork server
import brainharmonix.train.loop as loop
from brainharmonix.core import BadInput, seed_all
from brainharmonix.model.function import FunctionConfig, FunctionEncoder, FunctionJEPA
from brainharmonix.model.harmonizer import Harmonizer, HarmonizerConfig
from brainharmonix.model.structure import StructureConfig, StructureEncoder, StructureMAE
from brainharmonix.train.data import Session, chance
from brainharmonix.train.function import function_feed
from brainharmonix.train.harmonizer import Fusion, scan_feed, token_feed
from brainharmonix.train.latents import latents
from brainharmonix.train.optim import Machine, TrainConfig
from brainharmonix.train.stages import finished
from brainharmonix.train.structure import structure_feed

R, TRS, WINDOWS = 20, (.8,)*4 + (2.,)*3, (5,3,7,4,6,2,5)  # a batch of 3 leaves one scan over in the first group; lengths differ
S = StructureConfig(volume=(32,32,48), dim=24, depth=2, heads=2, dec_dim=24, dec_depth=1, dec_heads=2)
F = FunctionConfig(regions=R, gradients=3, harmonics=4, dim=24, depth=2, heads=2, pred_dim=8, pred_depth=2, pred_heads=2)
H = HarmonizerConfig(in_dim=24, dim=24, depth=2, heads=2, hubs=4, dec_dim=24, dec_depth=1, dec_heads=2)
BASE = dict(train=dict(batch=3, steps=24, save=5, lr=3e-3), machine=dict(device='cpu', precision='float64', trackers=()))

def sessions(poison=None):
    g, bad = chance('sessions'), lambda i: torch.nan if f's{i}' == poison else 1.
    return [Session(f's{i}', torch.randn(R, p, 48, generator=g).half()*bad(i), torch.ones(p).bool(), torch.randn(*S.volume, generator=g).half()*bad(i), tr, f's{i}') for i,(tr,p) in enumerate(zip(TRS, WINDOWS))]

def encoders():
    seed_all(1)
    return FunctionEncoder(F, torch.randn(R,3), torch.randn(R,4)).eval(), StructureEncoder(S).eval()

def stage(name, poison=None):
    "Model and feed"
    s = sessions(poison); seed_all(0)
    if name == 'structure': m = StructureMAE(S); return m, structure_feed(s, m, augment=True)
    if name == 'function': m = FunctionJEPA(FunctionEncoder(F, torch.randn(R,3), torch.randn(R,4))); return m, function_feed(s, R, crop=4)
    f, t = encoders(); seed_all(0)
    if name == 'fly': return Fusion(Harmonizer(H), f, t), scan_feed(s)
    tokens = latents(s, f, t); tokens[2], tokens[5] = (tokens[2][0], None), (None, tokens[5][1])  # some have one modality only
    return Fusion(Harmonizer(H)), token_feed(tokens, [x.id for x in s])

def as_if_gpu():
    "accelerate offers FSDP on GPUs only; tell it that this machine's processes are GPUs, to see the numbers of FSDP2 on a CPU"
    made, Plugin, kept = loop.processes, u.FullyShardedDataParallelPlugin, {}
    def plugin(**kw): kept['plugin'] = Plugin(**kw); return kept['plugin']
    def processes(machine, out=None):
        acc = made(machine, out)
        if machine.shard:
            if acc.mixed_precision != 'no': kept['plugin'].set_mixed_precision(acc.mixed_precision)  # as accelerate does on GPUs
            acc.state.distributed_type, acc.state.fsdp_plugin = u.DistributedType.FSDP, kept['plugin']
        return acc
    u.FullyShardedDataParallelPlugin, loop.processes = plugin, processes

def watched(out, limit=None, pause=0, did=loop.one_step):
    "Writes down which scans each process worked on, and its part of the weights; limit: (steps, bytes), after so many steps no file can grow larger; pause: seconds after each step, so that one can be met in it"
    n, rank, mine = [0], os.environ.get('RANK', 0), lambda p: getattr(p, 'to_local', lambda: p)().numel()
    def one_step(acc, model, *a, **k):
        got = did(acc, model, *a, **k); n[0] += 1; time.sleep(pause)
        if n[0] == 1 and not limit: (out/f'parts-{rank}.txt').write_text(str(sum(map(mine, model.parameters()))/sum(p.numel() for p in model.parameters())))
        if not limit:
            with open(out/f'indices-{rank}.txt', 'a') as f: f.write(json.dumps([i for i,w,_ in got[2] if w]) + '\n')
        elif n[0] == limit[0]: no_larger(limit[1])
        return got
    loop.one_step = one_step

def no_larger(size=resource.RLIM_INFINITY): resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY)) # bytes of a file

def cut_short(n):
    "The process is killed in the middle of its n-th write of a state"
    whole, left = torch.save, [n]
    def save(what, f):
        left[0] -= 1
        if left[0]: return whole(what, f)
        whole(what, b := io.BytesIO()); f.write(b.getvalue()[:b.tell()//2]); f.flush(); os.kill(os.getpid(), signal.SIGKILL)
    torch.save = save

def main(stages, out, train={}, machine={}, other={}, poison=None, limit=None, cut=None, pause=0):
    if limit and not limit[0]: no_larger(limit[1])
    if cut: cut_short(cut)
    rank = int(os.environ.get('RANK', 0))
    for name in stages:
        (at := Path(out)/name).mkdir(parents=True, exist_ok=True); watched(at, limit, pause)
        model, feed = stage(name, poison)
        if rank: train = train | other.get('train', {}); feed = replace(feed, ids=[i + other.get('ids', '') for i in feed.ids])
        loop.fit(model, feed, TrainConfig(**BASE['train'] | train), at, Machine(**BASE['machine'] | machine))

def work(*jobs)->int: # exit status
    torch.set_num_threads(1); as_if_gpu(); code = 0
    try:
        for j in jobs: main(**j)
    except BadInput as e: no_larger(); print(f'REFUSED {e}', flush=True); code = 2
    finished(failed=code > 0)
    return code

def child(jobs, said, env):
    "The same in a process of a fork server, which has imported everything; its session is its own, so that it can be killed with all its workers"
    os.setsid(); os.environ.update(env)
    with open(said, 'a') as f: os.dup2(f.fileno(), 1); os.dup2(f.fileno(), 2)
    code = work(*jobs)
    sys.stdout.flush(); sys.stderr.flush()
    sys.exit(code)

if __name__ == '__main__': sys.exit(work(*map(json.loads, sys.argv[1:])))
