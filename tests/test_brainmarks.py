"Our models in Brainmarks: its contract, and its own test where it is installed"
import os, subprocess, sys, tomllib
from pathlib import Path
import pytest, torch
from torch.utils.data import default_collate
from brainharmonix.bench.brainmarks import Transform, brainharmonix_function, brainharmonix_hub, checkpoint, installed
from brainharmonix.geometry.harmonics import PERMUTATION_17_TO_7
from brainharmonix.preprocess.bold import Bold
from common import refused

ROOT = Path(__file__).resolve().parents[1]
MODELS = brainharmonix_function, brainharmonix_hub

def sample(T, tr=1., seed=0):
    g = torch.Generator().manual_seed(seed)
    return dict(tr=tr, bold=torch.randn(T, 400, generator=g), mean=torch.randn(1, 400, generator=g), std=torch.rand(1, 400, generator=g)+.5, target=seed)

@pytest.mark.parametrize('make', MODELS)
@pytest.mark.parametrize('T', [16, 160])
def test_the_contract(make, T):
    "What `brainmarks.models.test_models` asks for"
    transform, model = make(); assert model.__space__ == 'schaefer400' and not any(w.requires_grad for w in model.parameters())
    batch = default_collate([transform(sample(T, seed=s)) for s in range(2)]); assert batch['target'].tolist() == [0, 1]
    cls, reg, patch = model(batch)
    assert cls.shape[:2] == (2, 1) and patch.shape[:2] == (2, 400) and (reg is None) == (make is brainharmonix_function) and (reg is None or reg.shape[:2] == (2, 128))
    assert all(x is None or x.ndim == 3 and x.dtype == torch.float32 and torch.isfinite(x).all() for x in (cls, reg, patch))

def test_scans_of_all_lengths_and_trs_make_one_batch_and_leave_each_other_alone():
    transform, model = brainharmonix_hub(); runs = [sample(16, 1., 1), sample(90, 2., 2), sample(200, .8, 3)]
    together = model(default_collate([transform(r) for r in runs]))
    for i,r in enumerate(runs):
        alone = model(default_collate([transform(r)]))
        assert torch.allclose(alone.reg_embeds[0], together.reg_embeds[i], atol=1e-5) and torch.allclose(alone.patch_embeds[0], together.patch_embeds[i], atol=1e-5)

@pytest.mark.parametrize('order', ['7','17'])
def test_its_rows_are_brought_to_the_order_of_the_checkpoint(order):
    "The same tokens as `embed` gives for the run in 7-network order"
    s = sample(110, 1.5); x = s['bold'].numpy().T; seven = x.copy()
    if order == '17': seven[PERMUTATION_17_TO_7] = x
    transform, model = brainharmonix_hub(order=order); e, true = model(default_collate([transform(s)])), checkpoint().embed(Bold(seven, 1.5))
    assert torch.allclose(e.reg_embeds[0], true.hub, atol=1e-4) and torch.allclose(e.cls_embeds[0,0], true.hub.mean(0), atol=1e-4)
    R, P = true.bold.grid; assert torch.allclose(e.patch_embeds[0,7], true.bold.x[true.bold.at//P == 7].mean(0), atol=1e-4)
    wrong = brainharmonix_hub(order='17' if order == '7' else '7')[0](s); assert not torch.allclose(wrong['z'], transform(s)['z'])

def test_windows_beyond_the_last_are_not_read_and_those_that_do_not_exist_not_counted():
    few, many = (brainharmonix_function(most=m) for m in (3, 12)); a, b = sample(250), sample(250)
    b['bold'] = torch.cat([a['bold'][:106], torch.randn(144, 400)])
    assert torch.allclose(few[0](a)['z'][:,:2], many[0](a)['z'][:,:2]) and few[0](a)['exists'].sum() == 3 and many[0](a)['exists'].sum() == 7
    s = sample(60); assert torch.allclose(*(m(default_collate([t(s)])).patch_embeds for t,m in (few, many)), atol=1e-5)

def test_it_runs_in_the_precision_of_its_scripts():
    transform, model = brainharmonix_hub(); batch = default_collate([transform(sample(80))])
    with torch.autocast('cpu', dtype=torch.bfloat16): low = model(batch)
    assert torch.nn.functional.cosine_similarity(low.reg_embeds.float(), model(batch).reg_embeds, -1).min() > .98

def test_the_checkpoint_is_a_choice(tmp_path, monkeypatch):
    other = checkpoint()
    with torch.no_grad(): other.harmonizer.hub_tokens += 1
    folder = other.save_pretrained(tmp_path/'other'); s = sample(60); out = {}
    def hub(**kw): t, m = brainharmonix_hub(**kw); return m(default_collate([t(s)])).reg_embeds
    shipped, named = hub(), hub(ckpt_path=str(folder)); monkeypatch.setenv('BRAINHARMONIX_CHECKPOINT', str(folder))
    assert not torch.allclose(shipped, named) and torch.equal(named, hub())

def test_bad_arguments_are_one_sentence(tmp_path):
    refused(lambda: brainharmonix_hub(order='21'), '21'); refused(lambda: brainharmonix_hub(layers=3), 'layers'); refused(lambda: brainharmonix_hub(ckpt_path=tmp_path), 'config.json', 'missing')

def test_a_checkpoint_of_another_atlas_is_refused():
    from brainharmonix.bench.real import connectivity_places, for_atlas
    from brainharmonix.geometry.gradients import group_fc
    refused(lambda: Transform(for_atlas(checkpoint(), connectivity_places(group_fc()[:50,:50]))), '50 regions', 'schaefer400')

# ---- how it is found
def test_the_plug_in_registers_both(monkeypatch):
    "Its file, run against a registry such as that of Brainmarks"
    from types import ModuleType
    found = {}; registry = ModuleType('brainmarks.models.registry'); registry.register_model = lambda f: found.setdefault(f.__name__, f)
    for name,m in (('brainmarks', ModuleType('brainmarks')), ('brainmarks.models', ModuleType('brainmarks.models')), ('brainmarks.models.registry', registry)): monkeypatch.setitem(sys.modules, name, m)
    exec((ROOT/'plugins/brainmarks/models/brainharmonix.py').read_text(), {})
    assert found == {f.__name__:f for f in MODELS}

def test_the_plug_in_is_part_of_the_package():
    find = tomllib.loads((ROOT/'pyproject.toml').read_text())['tool']['setuptools']['packages']['find']
    assert 'plugins' in find['where'] and 'brainmarks.models' in find['include'] and not list((ROOT/'plugins').rglob('__init__.py'))  # a namespace package has none

def test_its_namespace_alone_is_not_brainmarks(tmp_path):
    "An installation of ours without theirs has a folder brainmarks/, too"
    if installed(): pytest.skip('Brainmarks is installed')
    code = 'from brainharmonix.bench.brainmarks import installed; import brainmarks.models; print(installed())'
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT/'plugins')]))
    assert subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, env=env, cwd=tmp_path).stdout.strip() == 'False'

def test_in_brainmarks(tmp_path):
    "`python -m brainmarks.models.test_models brainharmonix`; BRAINMARKS_PYTHON names the Python of another environment that has it"
    python = os.environ.get('BRAINMARKS_PYTHON') or sys.executable
    env = os.environ | dict(PYTHONPATH=os.pathsep.join([str(ROOT), str(ROOT/'plugins')]))
    if subprocess.run([python, '-c', 'import brainmarks.models.test_models'], capture_output=True, env=env, cwd=tmp_path).returncode: pytest.skip('Brainmarks is not installed')
    r = subprocess.run([python, '-m', 'brainmarks.models.test_models', 'brainharmonix'], capture_output=True, text=True, env=env, cwd=tmp_path)
    assert ' 4 passed' in r.stdout and 'failed' not in r.stdout, r.stdout+r.stderr
