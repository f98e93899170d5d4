"The plan of chapter 67 equals what torch counts and is within 10 % of what torch's allocator held; the benchmarks that use it run"
import json, subprocess, sys
from dataclasses import replace
import pytest, torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from conftest import ROOT
from common import refused
from brainharmonix.core import BadInput
from brainharmonix.model import blocks
from brainharmonix.model.blocks import Packed, attend, attention, backends
from brainharmonix.model.function import FunctionConfig
from brainharmonix.model.harmonizer import Harmonizer, HarmonizerConfig
from brainharmonix.model.structure import StructureConfig
from brainharmonix.train.plan import allocated, flops, hours, largest, memory, per_session, plan, recipe, rehearsal, two_steps

S, F, H = StructureConfig.smoke(), FunctionConfig.smoke(), HarmonizerConfig.smoke()

def counted(loss):
    with FlopCounterMode(display=False) as f, sdpa_kernel(SDPBackend.MATH): loss().backward()
    return f.get_total_flops()

# ---- operations
@pytest.mark.parametrize('cfg,batch,windows,t1', [
    (S, 3, 0, 0), (replace(S, dim=192, depth=5, dec_dim=96, dec_depth=3, mask=.6), 1, 0, 0),
    (F, 3, 2, 0), (replace(F, depth=2, pred_depth=4, harmonics=50, k0=24), 2, 3, 0),
    (H, 2, 1, 70), (replace(H, decoders=1, hubs=32, depth=2, dec_depth=3), 3, 1, 40), (replace(H, in_dim=64), 1, 2, 30)])
def test_operations_are_those_that_torch_counts(cfg, batch, windows, t1):
    _, loss, step = rehearsal(cfg, batch, windows, t1)
    assert counted(loss) == flops(step)['total']

def test_a_withheld_modality_is_counted_where_it_is_rebuilt_only():
    torch.manual_seed(0); har = Harmonizer(H)
    of = lambda n, grid: Packed(torch.randn(n, H.in_dim), (n,), torch.arange(n), grid)
    bold, t1 = of(400, (400,1)), of(60, (60,1,1))
    for u,enter in ((.1, 60), (.5, 460), (.9, 400)):
        assert counted(lambda: har.loss(bold, t1, torch.tensor([u])).mean()) == flops(plan(H, (400,), (60,), (enter,)))['total'], u

def test_mean_cost_lies_between_the_extremes():
    total = lambda *a: flops(plan(H, (400,), (60,), *a))['total']
    assert total((60,)) < per_session(H, windows=1, t1=60) < total()
    assert abs(per_session(H, 1, 60) - (.5*total() + .25*total((60,)) + .25*total((400,)))) < 1

# ---- bytes
MODELS = {'S':(replace(S, dim=192, depth=6, heads=3, dec_dim=96, dec_depth=4, dec_heads=3), 2, 0, 0),
          'F':(replace(F, dim=192, depth=6, heads=3, pred_dim=96, pred_depth=3, pred_heads=3), 2, 2, 0),
          'Harmonizer':(replace(H, in_dim=192, dim=288, depth=4, heads=6, dec_dim=96, dec_depth=3, dec_heads=3), 1, 1, 100)}

@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('precision,checkpoint,fresh', [('float32', False, False), ('bf16', False, False), ('float32', True, False), ('float32', False, True)])
def test_memory_is_within_a_tenth(name, precision, checkpoint, fresh):
    cfg, batch, windows, t1 = MODELS[name]
    make = lambda: rehearsal(cfg, batch, windows, t1)
    want, got = memory(make()[2], precision, checkpoint, fresh)['peak'], allocated(lambda: two_steps(make, precision, checkpoint, fresh))
    assert abs(want/got-1) < .1, f'{want/1e6:.1f} MB planned, {got/1e6:.1f} MB held'

def test_memory_of_the_report():
    "What reports/scaling.json says was planned is what the plan says now, and it was within 10 % of what was measured"
    rows = json.loads((ROOT/'reports'/'scaling.json').read_text())['memory']
    assert len({r['config'] for r in rows}) >= 3
    for r in rows:
        assert abs(r['planned']/r['allocator']-1) < .1, r['config']
        assert sum(v for k,v in r['terms'].items() if k != 'peak') == r['terms']['peak'] or r['fresh']

def test_memory_terms():
    step = plan(HarmonizerConfig(), (4000,)*8, (1200,)*8)
    m = memory(step); n = sum(p.numel() for p in Harmonizer(HarmonizerConfig(depth=1, dec_depth=1)).parameters())
    assert m['peak'] == sum(v for k,v in m.items() if k != 'peak') and m['gradients']*2 == m['moments'] and m['target'] == 0 and m['weights'] > 4*n
    assert memory(step, checkpoint=True)['peak'] < m['peak']/3 and memory(step, 'bf16')['peak'] < .7*m['peak'] and memory(step, fresh=True)['peak'] <= m['peak']

@pytest.mark.parametrize('room', [5e9, 80e9])
def test_largest_batch(room):
    of = lambda b: plan(StructureConfig(), b); n = largest(of, room)
    assert memory(of(n), 'bf16')['peak'] <= room < memory(of(n+1), 'bf16')['peak'] and largest(of, 1e9) == 0

# ---- hours
def test_hours():
    assert hours(3600*8*989e12*.45) == 1 and hours(7.2e18, 2, 1e15, .5) == 2
    r = {x['stage']:x for x in recipe(draws=5)}
    assert list(r) == ['structure','function','latents','harmonizer'] and (r['structure']['sessions'], r['function']['sessions']) == (64_594, 252_961)  # method.md 4.1
    assert all(x['total'] == x['sessions']*x['epochs']*x['each'] for x in r.values())

def test_refusals():
    refused(lambda: hours(1e18, share=0), 'share')
    refused(lambda: memory(plan(S, 1), 'fp8'), 'fp8')
    refused(lambda: plan(3), 'int'); refused(lambda: rehearsal('S', 1), 'str')

# ---- attention, chosen for a whole run
def test_attention_is_chosen_and_given_back(monkeypatch):
    q, k, v = torch.randn(3, 5, 2, 8); used = []
    for b in ('sdpa','tiled'): monkeypatch.setattr(blocks, f'_{b}', lambda q, *a, b=b: used.append(b) or q)
    attend(q, k, v, (5,), (5,))
    with attention('tiled'):
        attend(q, k, v, (5,), (5,)); attend(q, k, v, (5,), (5,), 'sdpa')
        with attention('sdpa'): attend(q, k, v, (5,), (5,))
        with pytest.raises(KeyError), attention('sdpa'): raise KeyError
        attend(q, k, v, (5,), (5,))
    attend(q, k, v, (5,), (5,))
    assert used == ['sdpa','tiled','sdpa','sdpa','tiled','sdpa']

def test_attention_that_is_not_there():
    def use():
        with attention('ring'): pass
    refused(use, 'ring', *backends())

def test_residual_stream_is_float32_in_all_models():
    "Under autocast, what enters and leaves the blocks; bf16 sums would lose small updates"
    for cfg in (S, F, H):
        model, loss, _ = rehearsal(cfg, 2, 1, 30); seen = []
        for m in model.modules():
            if isinstance(m, blocks.Block): m.register_forward_hook(lambda m, i, o: seen.extend((i[0].dtype, o.dtype)))
        with torch.autocast('cpu', torch.bfloat16): loss()
        assert seen and set(seen) == {torch.float32}, type(cfg).__name__

# ---- scripts
def test_pretraining_benchmark_runs(tmp_path):
    r = subprocess.run([sys.executable, ROOT/'benchmarks'/'pretrain.py', '--device', 'cpu', '--smoke', '--stages', 'F', '--batches', '1', '--seconds', '.01', '--out', tmp_path], capture_output=True, text=True, timeout=300)
    assert r.returncode == 0, r.stderr[-2000:]
    d = json.loads((tmp_path/'pretrain.json').read_text()); report = (tmp_path/'pretrain.md').read_text()
    assert {x['stage'] for x in d['rows']} == {'F'} and not [x for x in d['rows'] if 'fault' in x]
    assert {'as the loop runs it', 'sdpa', 'checkpointing', 'torch.compile of MLPs', 'torch.compile of blocks'} <= {x['how'] for x in d['rows']} and all(0 < x['share'] < 2 and x['seconds'] > 0 for x in d['rows'])
    assert [h['stage'] for h in d['hours']] == ['function'] and all(d['ops'].values())
    assert 'SMOKE SIZE' in report and 'data: simulated' in report
