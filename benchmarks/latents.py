"Latents from a store against latents made on the fly, at ViT-B size: python benchmarks/latents.py [--sessions 4] [--smoke]"
import argparse, json, sys, tempfile, time
from pathlib import Path
import numpy as np, torch
from brainharmonix.core import provenance
from brainharmonix.model.function import FunctionConfig, FunctionEncoder
from brainharmonix.model.harmonizer import Harmonizer, HarmonizerConfig
from brainharmonix.model.structure import StructureConfig, StructureEncoder
from brainharmonix.train.data import session
from brainharmonix.train.harmonizer import Fusion, together
from brainharmonix.train.latents import Latents, encode, write_latents

def seconds(call, n): t = time.process_time(); [call(i) for i in range(n)]; return (time.process_time()-t)/n

def main():
    a = argparse.ArgumentParser(); a.add_argument('--sessions', type=int, default=4); a.add_argument('--smoke', action='store_true'); a = a.parse_args()
    size = (lambda c: c.smoke()) if a.smoke else (lambda c: c.base()); cs, cf, ch = map(size, (StructureConfig, FunctionConfig, HarmonizerConfig))
    torch.manual_seed(0); F, S = FunctionEncoder(cf, torch.randn(400,30), torch.randn(400,200)).eval(), StructureEncoder(cs).eval()
    people = [session(f'sim-{i}', np.random.default_rng(i).standard_normal((400, 490)), .735, torch.randn(cs.volume)) for i in range(a.sessions)]  # UK Biobank: 490 frames of .735 s
    made = seconds(lambda i: encode(people[i], F, S), 1)
    with torch.autocast('cpu', torch.bfloat16): half = seconds(lambda i: encode(people[i], F, S), 1)
    with tempfile.TemporaryDirectory() as d:
        store = Latents(write_latents(people, F, S, d)); size_of = sum(f.stat().st_size for f in Path(d).glob('*.safetensors'))/a.sessions
        read = seconds(lambda i: store[i % a.sessions], 20*a.sessions)
        step = Fusion(Harmonizer(ch)); b, t = (together([x]) for x in store[0])
        def train(i): step(b, t, torch.rand(1)).mean().backward()
        trained, tokens = seconds(train, 1), sum(p.lens[0] for p in store[0])
    print(json.dumps(dict(tokens=tokens, encode_float32_s=made, encode_bf16_s=half, read_s=read, megabytes=size_of/1e6, harmonizer_step_per_session_s=trained, threads=torch.get_num_threads(), made=provenance()), indent=1))

if __name__ == '__main__': sys.exit(main())
