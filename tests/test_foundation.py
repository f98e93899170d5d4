"Foundation baselines: counts, losses, masks, files, and what the arena makes of them"
import json
from dataclasses import replace
import numpy as np, pytest, torch
from common import refused
from brainharmonix.cohort import id_hash
from brainharmonix.preprocess.bold import Bold
from brainharmonix.train.optim import TrainConfig
from brainharmonix.bench.arena import Protocol, enter, guarded, learns, toy_people
from brainharmonix.bench.foundation import budget, bridged, embed, frozen, load, model_of, pretrain, regrid, save, untrained, weights_hash
from brainharmonix.bench.brainmass import BrainMass, BrainMassConfig, shrunk, thinned
from brainharmonix.bench.brainlm import HF, OUTSIDE, BrainLM, BrainLMConfig, Layer, load_brainlm
from brainharmonix.bench.brainjepa import BrainJEPA, BrainJEPAConfig, load_brainjepa
from brainharmonix.bench.uniformer import UniFormer, UniFormerConfig, UniFormerT1, foundation_systems, load_uniformer

torch.set_num_threads(1)
rng = np.random.default_rng(0)
XYZ, GRAD = rng.uniform(-1, 1, (16, 3)), rng.standard_normal((16, 30))
SMALL = dict(brainmass=(replace(BrainMassConfig.smoke(), regions=16, masked=(3, 2)), {}), brainlm=(replace(BrainLMConfig.smoke(), regions=16, conv=65), dict(xyz=XYZ)),
             brainjepa=(replace(BrainJEPAConfig.smoke(), regions=16), dict(gradients=GRAD)), uniformer=(replace(UniFormerConfig.smoke(), shape=(16,)*3, block=4), {}))
LEARNT = dict(brainmass=40, brainlm=40, brainjepa=40, uniformer=30)
KINDS = list(SMALL)
others = toy_people(24, seed=7, signal=6.)
part = lambda kind: 't1' if kind == 'uniformer' else 'bold'
scans = lambda kind, n=24: [others.part(part(kind), i) for i in range(n)]
ids = [f'other-{i}' for i in range(24)]
count = lambda *m: sum(p.numel() for x in m for p in x.parameters())
example = lambda m, n=3: m.collate([m.sample(m.ready(scans(m.kind)[i]), torch.Generator().manual_seed(i)) for i in range(n)])

def fresh(kind, seed=0): torch.manual_seed(seed); cfg, tables = SMALL[kind]; return model_of(cfg, **tables)

@pytest.fixture(scope='module')
def models():
    return {k:pretrain(scans(k), cfg, cfg.recipe('smoke', steps=LEARNT[k], batch=8), subjects=ids, cohort='toys', **t) for k,(cfg,t) in SMALL.items()}

# ---- sizes (baselines.md 0.1 and 10)

def test_counts_of_the_papers():
    with torch.device('meta'):
        m = BrainMass(BrainMassConfig(pool=4)); enc = count(m.online.blocks, m.online.read)
        assert [round(n/1e6, 2) for n in (enc, count(m.online), count(m))] == [7.24, 10.17, 25.36]
        m = BrainMass(BrainMassConfig()); assert [round(n/1e6, 1) for n in (count(m.online.blocks, m.online.read), count(m.online), count(m))] == [36.5, 63.6, 134.7]
        e = BrainJEPA(BrainJEPAConfig(), torch.zeros(400, 30)).jepa; assert round(count(e.encoder.embed, e.encoder.blocks, e.encoder.norm, e.encoder.pos.grad_proj)/1e6, 2) == 85.08 and round(count(e.predictor)/1e6, 2) == 11.24
        u = UniFormerT1(UniFormerConfig()); assert count(u.encoder) == 22_038_464 and round(count(u.decoder)/1e6, 2) == 1.74
    z = np.zeros((400, 3)); assert [round(count(BrainLM(BrainLMConfig(dim=d), z))/1e6, 2) for d in (512, 256)] == [13.04, 4.85]

def test_counts_at_smoke_scale():
    m = BrainMass(BrainMassConfig.smoke()); assert round(count(m.online)/1e3) == 272
    assert count(BrainLM(BrainLMConfig.smoke(), np.zeros((40, 3)))) == 28676
    assert count(UniFormer(UniFormerConfig.smoke())) == 48064

def test_uniformer_takes_a_t1_of_1_mm():
    with torch.device('meta'): assert UniFormer(UniFormerConfig.smoke())(torch.zeros(1, 1, 160, 192, 160)).shape == (1, 32, 10, 12, 10)

# ---- what each must do

def test_regrid_keeps_slow_waves_and_removes_fast_ones():
    t = lambda tr: (np.arange(int(200/tr+1e-6))+.5)*tr
    for tr,to in ((2., .735), (.735, 2.2), (3., 1.47)):
        slow = np.sin(2*np.pi*.02*t(tr))[None]; y = regrid(slow, tr, to)[0]; assert abs(len(y)-len(t(to))) <= 2 and np.abs(y - np.sin(2*np.pi*.02*(np.arange(len(y))+.5)*to))[4:-4].max() < .02
    assert np.abs(regrid(np.sin(2*np.pi*.5*t(.735))[None], .735, 2.2))[:,4:-4].max() < .02
    x = np.arange(20.)[None]; gone = np.zeros(20, bool); gone[5:9] = True
    assert np.allclose(bridged(np.where(gone, 99, x), gone), x)
    refused(lambda: regrid(x, .1, 5.), 'lasts')

def test_brainmass_trains_all_but_the_target():
    m = fresh('brainmass').train(); batch = example(m); before = {k:v.clone() for k,v in m.state_dict().items()}
    opt = torch.optim.AdamW([p for p in m.parameters() if p.requires_grad], lr=1e-2)
    m(*batch).mean().backward(); opt.step()
    moved = lambda p: any(not torch.equal(v, before[k]) for k,v in m.named_parameters() if k.startswith(p))
    assert all(moved(p) for p in ('mask', 'first', 'tell', 'rebuild', 'online', 'predictor')) and not moved('target')
    assert not {id(p) for p in m.target.parameters()} & {id(p) for g in opt.param_groups for p in g['params']} and not m.target.training
    m.follow(.5); k = 'blocks.0.linear1.weight'
    assert torch.allclose(m.target.state_dict()[k], .5*(before[f'online.{k}'] + m.online.state_dict()[k]))
    assert torch.equal(m.target.project[1].running_mean, m.online.project[1].running_mean)

def test_brainmass_has_nothing_to_align_in_two_equal_views():
    m = fresh('brainmass').eval(); m.follow(0.); m.predictor = torch.nn.Identity(); a, b, *_ = example(m)
    with torch.no_grad(): assert m.align(a, a).abs().max() < 1e-5 and (m.align(a, b) > 1e-4).all()

def test_brainmass_views_and_pooling():
    x = scans('brainmass', 1)[0].x; g = torch.Generator().manual_seed(0)
    assert thinned(x, .2, g).shape == (16, 96) and np.allclose(np.diag(shrunk(x)), 1) and np.allclose(shrunk(x), shrunk(x).T)
    flat = x.copy(); flat[3] = 5; c = shrunk(flat); assert np.isfinite(c).all() and (c[3] == 0).all()
    m = BrainMass(replace(SMALL['brainmass'][0], regions=16, pool=2, heads=4)); assert np.allclose(m.ready(Bold(x, 2.)), x.reshape(8, 2, -1).mean(1), atol=1e-6)

def test_brainlm_loss_sees_only_what_is_hidden():
    m = fresh('brainlm').eval(); x = m.ready(scans('brainlm', 1)[0]); w, seen, hidden, key = m.sample(x, torch.Generator().manual_seed(0))
    assert sorted(seen.tolist()+hidden.tolist()) == list(range(w.shape[0]*w.shape[1])) and abs(len(hidden)/(len(seen)+len(hidden))-.75) < .01
    with torch.no_grad():
        y = m.rebuilt([w], [seen], [hidden])[0]; other = w.flatten(0,1).clone(); other[hidden] += 1
        assert torch.equal(y, m.rebuilt([other.view_as(w)], [seen], [hidden])[0])
        other = w.flatten(0,1).clone(); loss = (y-other[hidden]).pow(2).mean(); assert torch.isclose(loss, m([w], [seen], [hidden], key[None])[0])
        one, two = m.sample(x, torch.Generator().manual_seed(1)), m.sample(x[:,:150], torch.Generator().manual_seed(2)) # runs of different lengths share a batch
        both = m(*m.collate([one, two])); assert torch.allclose(both, torch.cat([m(*m.collate([s])) for s in (one, two)]), atol=1e-6)

def test_brainlm_learns_four_scans_by_heart():
    cfg = replace(SMALL['brainlm'][0], conv=0, mask=.5)
    few = pretrain([Bold(b.x[:,:23], 2.) for b in scans('brainlm', 4)], cfg, cfg.recipe('smoke', steps=200, lr=1e-2, batch=4), subjects=ids[:4], xyz=XYZ)
    assert np.mean(few.losses[-10:]) < .8*np.mean(few.losses[:10])

def test_brainjepa_masks_are_fair_and_never_empty():
    m = fresh('brainjepa'); seen = torch.zeros(40)
    m.cfg = replace(m.cfg, regions=40)
    for s in range(200):
        z, mask, context, want = m.sample(torch.randn(40, 109), torch.Generator().manual_seed(s)); assert len(want) and len(context) and not set(want.tolist()) & set(context.tolist())
        seen += torch.bincount(context//len(mask), minlength=40)
    assert abs(float(seen[:20].sum()/seen.sum())-.5) < .02

def test_brainjepa_knows_no_harmonics_and_ends_with_a_still_target(tmp_path):
    cfg, t = SMALL['brainjepa']; m = pretrain(scans('brainjepa', 4), cfg, cfg.recipe('smoke', steps=4, batch=4), tmp_path/'run', subjects=ids[:4], **t)
    e = m.jepa.encoder.pos; assert (e.harmonics == 0).all() and not e.harm_proj.weight.requires_grad and (e.harm_proj.bias == 0).all()
    assert float((tmp_path/'run'/'losses.csv').read_text().splitlines()[-1].split(',')[5]) == 1. # momentum of the last step

def test_uniformer_template_learns_inside_hidden_blocks_only():
    m = fresh('uniformer').train(); x, hidden = example(m, 1); m(x, hidden).mean().backward()
    where = hidden[0].repeat_interleave(4, 0).repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert (m.template.grad[~where] == 0).all() and (m.template.grad[where] != 0).any() and .75 < hidden.float().mean() < .85
    with torch.no_grad(): m.template.copy_(torch.rand(16, 16, 16)*3); y = m.blended(x, hidden)[0]; assert torch.equal(y[~where], x[0][~where]) and 0 <= y[where].min() and y[where].max() <= 1

def test_uniformer_averages_and_pads():
    m = UniFormerT1(UniFormerConfig((80, 96, 80), 2, (8, 8, 8, 8), (1, 1, 1, 1))); x = m.ready(np.random.default_rng(0).standard_normal((80, 96, 80)))
    assert x.shape == (48, 48, 48) and (x[40:] == 0).all() and 0 <= x.min() and x.max() <= 1 and m.features(x).shape == (8,)

# ---- the shared road

@pytest.mark.parametrize('kind', KINDS)
def test_pretraining_lowers_the_loss(models, kind):
    l = models[kind].losses; assert len(l) == LEARNT[kind] and np.mean(l[-5:]) < .95*np.mean(l[:2])

@pytest.mark.parametrize('kind', KINDS)
def test_killed_runs_go_on_to_the_same_weights(tmp_path, kind):
    cfg, t = SMALL[kind]; go = lambda s, out=None: pretrain(s, cfg, TrainConfig(steps=6, batch=4, save=2, lr=1e-3), out, subjects=ids[:7], **t)
    whole = go(scans(kind, 7))
    class Killed(Exception): pass
    class Dying(list):
        left = 17 if kind in ('brainlm', 'brainjepa') else 10  # these read all scans once for the scale
        def __getitem__(self, i):
            type(self).left -= 1
            if type(self).left == 0: raise Killed
            return super().__getitem__(i)
    with pytest.raises(Killed): pretrain(Dying(scans(kind, 7)), cfg, TrainConfig(steps=6, batch=4, save=2, lr=1e-3), tmp_path/'run', subjects=ids[:7], keep=False, **t)
    assert (tmp_path/'run'/'state').exists()
    again = go(scans(kind, 7), tmp_path/'run')
    assert again.losses == whole.losses and weights_hash(again) == weights_hash(whole)

@pytest.mark.parametrize('kind', KINDS)
def test_vectors_are_the_same_each_time_and_hang_on_one_session(models, kind, tmp_path):
    m, p = models[kind], embed(models[kind]); x = [(s, None) if kind != 'uniformer' else (None, s) for s in scans(kind, 3)]
    v = [p.of(*i) for i in x]; assert all(a.ndim == 1 and np.isfinite(a).all() for a in v) and not np.allclose(v[0], v[1])
    assert np.array_equal(p.of(*x[0]), v[0]) and np.array_equal(v[2], p.of(*x[2]))
    again = load(save(m, tmp_path/kind)); assert embed(again).key == p.key and np.array_equal(embed(again).of(*x[0]), v[0]) and again.hashes == m.hashes and again.about == json.loads(json.dumps(m.about))
    assert embed(untrained(m)).key == embed(untrained(m)).key != embed(untrained(m, 1)).key != p.key

@pytest.mark.parametrize('kind', KINDS)
def test_systems_learn_and_do_not_peek(models, kind):
    m = models[kind]; make = frozen('x', embed(m), m.hashes, m.note)
    assert guarded(make, toy_people(40)) == dict(labels=0, others=0)
    got = learns(make, n=100, signal=6.); assert got['signal'] > .68 and got['shuffled'] < .72 and got['signal'] > got['shuffled'], got

@pytest.mark.parametrize('task', ('multiclass', 'regression'))
def test_other_kinds_of_task(models, task):
    m = models['brainmass']; got = learns(frozen('x', embed(m)), task, n=90, signal=6.); assert got['signal'] > (.6 if task == 'multiclass' else .3) and got['signal'] > got['shuffled'] + .15, got

def test_people_seen_in_pretraining_are_refused(models, tmp_path):
    m = models['brainmass']; p = toy_people(40)
    assert m.hashes == tuple(sorted(id_hash([i]) for i in ids))
    m = load(save(m, tmp_path/'m')); m.hashes = (*m.hashes, id_hash(['toy-003']))
    o = enter(p, foundation_systems('binary', dict(m=m), random=False), Protocol(splits=1))
    assert not o.runs and 'share 1 subjects by hash (first toy-003)' in next(iter(o.failed.values()))

def test_rows_have_honest_names(models, tmp_path):
    rows = foundation_systems('binary', {k:save(m, tmp_path/k) for k,m in models.items()})
    assert list(rows) == [r for s,a in (('BrainMass-style', 'BrainMass'), ('BrainLM-style', 'BrainLM'), ('Brain-JEPA-style', 'Brain-JEPA'), ('UniFormer-S T1 (BrainMVP-style)', 'UniFormer-S T1')) for r in (f'{s}, SSL on toys', f'{a} architecture, random frozen')]
    assert rows['BrainLM-style, SSL on toys']().hashes == models['brainlm'].hashes and rows['BrainLM architecture, random frozen']().hashes # its scale was learnt from people
    assert rows['BrainMass architecture, random frozen']().hashes == ()
    refused(lambda: foundation_systems('binary', dict(a=models['brainmass'], b=models['brainmass'])), 'two models')

def test_budget_counts_presented_scans():
    cfg, t = SMALL['brainmass']; m = pretrain(scans('brainmass', 7), cfg, cfg.recipe('demo', epochs=budget(7, 21), batch=4), subjects=ids[:7])
    assert m.about['presented'] == 21 and len(m.losses) == 6 and m.about['scans'] == 7
    assert all(c.recipe('base', steps=5).epochs == 0 and c.recipe('base').epochs >= 100 for c in (BrainMassConfig, BrainLMConfig, BrainJEPAConfig, UniFormerConfig))

# ---- bad input, and files of others

def test_what_cannot_be_used_is_refused(models, tmp_path):
    cfg, t = SMALL['brainlm']; b = scans('brainlm', 1)[0]
    refused(lambda: pretrain([b], cfg, TrainConfig(steps=1), subjects=[], xyz=XYZ), '1 scans and 0 subjects')
    refused(lambda: models['brainlm'].ready(Bold(b.x[:8], 2.)), '8 parcels', '16')
    refused(lambda: models['brainmass'].ready(Bold(b.x[:8], 2.)), '8 parcels', '16')
    refused(lambda: models['brainlm'].ready(Bold(b.x[:,:5], 2.)), 'lasts 10 s')
    refused(lambda: models['brainjepa'].ready(Bold(b.x[:,:5], 2.)), 'two patches')
    refused(lambda: models['uniformer'].ready(np.zeros((16, 16, 8))), 'shape')
    refused(lambda: BrainLM(cfg, XYZ[:4]), 'coordinates'); refused(lambda: BrainMassConfig(regions=400, heads=7), 'heads')
    refused(lambda: model_of(TrainConfig()), 'no foundation baseline')
    f = save(models['brainmass'], tmp_path/'m'); w = f/'model.safetensors'; w.write_bytes(w.read_bytes()[:-4] + b'abcd'); refused(lambda: load(f), 'model.safetensors', 'not the file')
    j = save(models['brainmass'], tmp_path/'n')/'foundation.json'; j.write_text(j.read_text().replace('toys', 'real')); refused(lambda: load(j.parent), 'changed')
    refused(lambda: load(tmp_path/'nothing'), 'does not exist')

def brainlm_file(m, path): # the layout of the layers is Hugging Face's; the other names are invented, as the real ones are not known
    sd, back = {}, {b:a for a,b in HF.items()}
    for k,v in m.state_dict().items():
        if k.startswith('layers.'):
            _, i, rest = k.split('.', 2); stem, w = rest.rsplit('.', 1)
            sd |= {f'x.layer.{i}.attention.self.{q}.{w}':t.clone() for q,t in zip(('query', 'key', 'value'), v.chunk(3))} if stem == 'attn.qkv' else {f'x.layer.{i}.{back[stem]}.{w}':v}
        elif k.split('.')[0] in OUTSIDE: sd[f'x.{k}'] = v
    torch.save(sd, path); return path

def test_published_brainlm(tmp_path, capsys):
    torch.manual_seed(3); m = BrainLM(replace(SMALL['brainlm'][0], dec_depth=0), XYZ).eval(); f = brainlm_file(m, tmp_path/'pytorch_model.bin'); names = {n:f'x.{n}' for n in OUTSIDE}
    got = load_brainlm(f, XYZ, names); x = m.ready(scans('brainlm', 1)[0])
    assert torch.equal(got.features(x), m.features(x)); said = capsys.readouterr().out; assert 'sha256' in said and 'CC BY-NC-ND 4.0' in said
    refused(lambda: load_brainlm(f, XYZ), 'not in our facts', 'embed, place, cls, norm'); refused(lambda: load_brainlm(f, XYZ, names | dict(norm='y')), 'missing', 'norm.weight')
    torch.save({'vit.embeddings.w':torch.zeros(3)}, f); refused(lambda: load_brainlm(f, XYZ, names), 'another architecture')
    refused(lambda: load_brainlm(tmp_path/'none.bin', XYZ), 'does not exist', 'CC BY-NC-ND'); f.write_bytes(b'junk'); refused(lambda: load_brainlm(f, XYZ), 'without running code')

def test_published_brainjepa(models, tmp_path):
    m = models['brainjepa']; back = {'embed.proj.':'patch_embed.proj.', 'pos.grad_proj.':'pos_embed.grad_proj.'}
    sd = {'module.'+next((b+k[len(a):] for a,b in back.items() if k.startswith(a)), k):v for k,v in m.jepa.target.state_dict().items() if not k.startswith(('pos.harm', 'pos.pred', 'pos.gradients'))}
    sd['module.patch_embed.proj.weight'] = sd['module.patch_embed.proj.weight'][:,None,None]; f = tmp_path/'jepa.pth'
    for part in ('target_encoder', 'encoder'):
        torch.save({part:sd, 'epoch':3}, f); got = load_brainjepa(f, GRAD, heads=3); got.median.copy_(m.median); got.iqr.copy_(m.iqr); x = m.ready(scans('brainjepa', 1)[0])
        assert torch.equal(got.features(x), m.features(x))
    torch.save(dict(target_encoder={k.replace('pos_embed.grad_proj', 'gradients.fc'):v for k,v in sd.items()}), f); assert torch.equal(load_brainjepa(f, GRAD, heads=3, names={'gradients.fc.':'pos.grad_proj.'}).jepa.target.pos.grad_proj.weight, m.jepa.target.pos.grad_proj.weight)
    torch.save(dict(target_encoder={k:v for k,v in sd.items() if 'blocks.1.norm1' not in k}), f); refused(lambda: load_brainjepa(f, GRAD, heads=3), '2 tensors missing', 'blocks.1.norm1.weight')

def test_published_uniformer(models, tmp_path):
    m = models['uniformer']; f = tmp_path/'u.pt'; torch.save(dict(state_dict={f'module.net.{k}':v for k,v in m.encoder.state_dict().items()}), f)
    got = load_uniformer(f, m.cfg, {'net.':''}); x = m.ready(scans('uniformer', 1)[0]); assert torch.equal(got.features(x), m.features(x))
    refused(lambda: load_uniformer(f, m.cfg), 'missing', 'names'); refused(lambda: load_uniformer(f, replace(m.cfg, widths=(8, 16, 32, 64)), {'net.':''}), 'another shape')
