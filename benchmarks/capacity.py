"""The published size on a real session, on this CPU: seconds and peak memory. Random weights: a capacity check, not a result.

    python benchmarks/capacity.py [--bf16]
"""
import argparse, json, resource, time
import torch
from brainharmonix.embed import new_model
from brainharmonix.model.passport import ModelConfig
from brainharmonix.preprocess.bold import embedded_run
from brainharmonix.preprocess.t1 import mni152, read_t1

def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0]); a.add_argument('--bf16', action='store_true', help='bfloat16 autocast'); a = a.parse_args()
    model, bold, t1 = new_model(ModelConfig.base()), embedded_run(), read_t1(mni152(), norm='brain')
    t = time.perf_counter(); e = model.embed(bold, t1, torch.bfloat16 if a.bf16 else None); t = time.perf_counter()-t
    print(json.dumps(dict(precision='bf16' if a.bf16 else 'float32', parameters=sum(p.numel() for p in model.parameters()), frames=bold.x.shape[1], tr=bold.tr, windows=int(e.windows.mask.sum()),
                          bold_tokens=len(e.bold.at), t1_tokens=len(e.t1.at), hub=tuple(e.hub.shape), seconds=round(t,1), peak_gb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**20,2), threads=torch.get_num_threads())))

if __name__ == '__main__': main()
