"""A process of a training run, as test_train.py starts it: `torchrun --nproc-per-node 2 pretrain_worker.py '{"stages": ["function"], ...}'`"""
import gc, json, os, resource, sys
from dataclasses import replace
from pathlib import Path
import torch, torch.distributed as dist
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
from brainharmonix.train.structure import structure_feed

R, TRS, WINDOWS = 20, (.8,)*4 + (2.,)*3, (5,3,7,4,6,2,5)  # a batch of 3 leaves one scan over in the first group; lengths differ
S = StructureConfig(volume=(32,32,48), dim=24, depth=2, heads=2, dec_dim=24, dec_depth=1, dec_heads=2)
F = FunctionConfig(regions=R, gradients=3, harmonics=4, dim=24, depth=2, heads=2, pred_dim=8, pred_depth=2, pred_heads=2)
H = HarmonizerConfig(in_dim=24, dim=24, depth=2, heads=2, hubs=4, dec_dim=24, dec_depth=1, dec_heads=2)

def sessions(n=7):
    g = chance('sessions')
    return [Session(f's{i}', torch.randn(R, p, 48, generator=g).half(), torch.ones(p).bool(), torch.randn(*S.volume, generator=g).half(), tr, f's{i}') for i,tr,p in list(zip(range(n), TRS, WINDOWS))]

def encoders():
    seed_all(1)
    return FunctionEncoder(F, torch.randn(R,3), torch.randn(R,4)).eval(), StructureEncoder(S).eval()

def stage(name):
    "Model and feed"
    s = sessions(); seed_all(0)
    if name == 'structure': m = StructureMAE(S); return m, structure_feed(s, m, augment=True)
    if name == 'function': m = FunctionJEPA(FunctionEncoder(F, torch.randn(R,3), torch.randn(R,4))); return m, function_feed(s, R, crop=4)
    f, t = encoders(); seed_all(0)
    if name == 'fly': return Fusion(Harmonizer(H), f, t), scan_feed(s)
    tokens = latents(s, f, t); tokens[2], tokens[5] = (tokens[2][0], None), (None, tokens[5][1])  # some have one modality only
    return Fusion(Harmonizer(H)), token_feed(tokens, [x.id for x in s])

def as_if_gpu():
    "accelerate offers FSDP on GPUs only; tell it that this machine's processes are GPUs, to see the numbers of FSDP2 on a CPU"
    from accelerate.utils import DistributedType
    made = loop.spread
    def spread(machine, out=None):
        acc = made(machine, out)
        if machine.shard: plugin = made.plugin; acc.state.distributed_type, acc.state.fsdp_plugin = DistributedType.FSDP, plugin
        return acc
    import accelerate.utils as u
    P = u.FullyShardedDataParallelPlugin
    def keep(**kw): made.plugin = P(**kw); return made.plugin
    u.FullyShardedDataParallelPlugin = keep
    loop.spread = spread

def record(out):
    "Which scans each process worked on"
    did, rank = loop.one_step, int(os.environ.get('RANK', 0))
    def one_step(*a, **k):
        loss, norm, each = did(*a, **k)
        with open(out/f'indices-{rank}.txt', 'a') as f: f.write(json.dumps([i for i,w,_ in each if w]) + '\n')
        return loss, norm, each
    loop.one_step = one_step

def main(stages, out, train={}, machine={}, other=False, fsize=None, fsdp=False):
    torch.set_num_threads(1); rank = int(os.environ.get('RANK', 0)); out = Path(out)
    if fsize: resource.setrlimit(resource.RLIMIT_FSIZE, (fsize, fsize))
    if fsdp: as_if_gpu()
    kept = loop.one_step
    for name in stages:
        model, feed = stage(name); (out/name).mkdir(parents=True, exist_ok=True)
        if other and rank: feed = replace(feed, ids=[f'{i}x' for i in feed.ids])
        loop.one_step = kept; record(out/name)
        loop.fit(model, feed, TrainConfig(**dict(batch=3, steps=12, save=4, lr=3e-3) | train), out/name, Machine(**dict(device='cpu', precision='float64', trackers=()) | machine))

if __name__ == '__main__':
    code = 0
    try: main(**json.loads(sys.argv[1]))
    except BadInput as e: print(f'REFUSED {e}', flush=True); code = 2
    if dist.is_initialized():
        gc.collect()
        if not code: dist.barrier()
        dist.destroy_process_group()
    sys.exit(code)
