"""What only a CUDA device can show; skipped, saying so, without one."""
import pytest, torch
from brainharmonix.core import seed_all
from brainharmonix.embed import new_model
from brainharmonix.model.blocks import attend, backends
from brainharmonix.model.passport import ModelConfig

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='no CUDA device')

@pytest.mark.parametrize('lens', [(70,70,70), (90,1,40)])
def test_backends_agree(lens):
    seed_all(0); n = sum(lens)
    q, k, v = torch.randn(3, n, 4, 64, device='cuda')
    want = attend(q, k, v, lens, lens, 'sdpa')
    half = [t.bfloat16() for t in (q,k,v)]
    for b in backends(): assert torch.allclose(attend(*half, lens, lens, b).float(), want, atol=3e-2), b

def test_hub_tokens_equal_those_of_the_cpu():
    from types import SimpleNamespace
    import numpy as np
    m = new_model(ModelConfig.smoke()); x = np.random.default_rng(0).standard_normal((400,150)).astype('float32')
    scan = SimpleNamespace(x=x, tr=2., names=None, order='7', missing=None, source='noise')
    cpu = m.embed(scan).hub
    assert torch.allclose(m.cuda().embed(scan).hub.cpu(), cpu, atol=1e-3)

def test_training_is_that_of_the_cpu():
    from pretrain_worker import stage
    from brainharmonix.train.loop import fit
    from brainharmonix.train.optim import Machine, TrainConfig
    for name in ('structure','function','harmonizer'):
        losses = []
        for machine in (dict(device='cpu'), {}, dict(precision='bf16', workers=2)):
            m, feed = stage(name); losses.append(torch.tensor(fit(m, feed, TrainConfig(steps=4, batch=3), machine=Machine(trackers=(), **machine))))
        assert torch.allclose(losses[0], losses[1], rtol=1e-3) and torch.allclose(losses[0], losses[2], rtol=5e-2), name
