"Readouts and our rows: who chooses the epoch, what is trained, what a number of the released evaluation is worth"
import json
from dataclasses import replace
from types import SimpleNamespace
import numpy as np, pytest, torch, torch.nn.functional as F
from safetensors.torch import save_file
from sklearn.metrics import f1_score
from torch import nn
from common import refused
from brainharmonix.bench import readouts
from brainharmonix.bench.arena import MAIN, Part, People, Protocol, enter, guarded, learns, standings, toy_people
from brainharmonix.bench.metrics import KINDS, scores
from brainharmonix.bench.ours import (FRESH, ImageViT, _line, fresh_harmonizer, image_part, image_systems, our_part, our_systems, random_part, says, scans_part, slices_of, untrained)
from brainharmonix.bench.readouts import (MODES, Attend, AttentiveProbe, DropPath, FineTune, LinearHead, Recipe, Scaled, Tuned, TuneConfig, batched_f1, f1_of, few_shot, fit_head, layer_scales, main_score,
                                          released_scores, seeded, shots_of)
from brainharmonix.core import BadInput, golden
from brainharmonix.embed import load_model
from brainharmonix.model.blocks import Block, Packed
from brainharmonix.model.function import FunctionConfig
from brainharmonix.model.harmonizer import Harmonizer, HarmonizerConfig
from brainharmonix.model.passport import BrainHarmonix, ModelConfig, Passport
from brainharmonix.model.structure import StructureConfig
from brainharmonix.preprocess.bold import Bold
from brainharmonix.simulate import SimConfig, simulate
from brainharmonix.train.latents import weights_hash

torch.set_num_threads(1)
QUICK = Recipe(epochs=25, patience=10)
ROWS = Part('rows of r', lambda b, t: np.abs(np.corrcoef(b.x)).astype(np.float32))

def toy_model(seed=0, names=(), order=None, hashes=()):
    g = torch.Generator().manual_seed(seed); table = lambda n: torch.randn(16, n, generator=g)
    c = ModelConfig(StructureConfig((16,)*3, 1., 4, 24, 2, 2, 24, 1, 2), FunctionConfig(16, gradients=3, harmonics=4, dim=24, depth=2, heads=2, pred_dim=24, pred_depth=1, pred_heads=2, init='xavier', signal=5.), HarmonizerConfig(24, 24, 2, 2, 8, 24, 1, 2))
    return seeded(lambda: BrainHarmonix(c, table(3), table(4), Passport(names=names, order=order, note='toy', subject_hashes=hashes)), seed).eval()

@pytest.fixture(scope='module')
def toy(): return toy_model()

@pytest.fixture(scope='module')
def demo(): return load_model()

@pytest.fixture(scope='module')
def sim(): return simulate(SimConfig.smoke(subjects=4, seed=31))

def scan(sim, i): return Bold(*sim.bold(i), names=sim.names, order=sim.order), sim.t1(i)

# --- training and choosing

def data(n=120, seed=0, kind='binary'):
    rng = np.random.default_rng(seed); X = rng.standard_normal((n, 5)); u = X[:,0] + X[:,1] + .8*rng.standard_normal(n)
    y = u if kind == 'regression' else np.digitize(u, [0] if kind == 'binary' else [-.8, .8])
    return torch.tensor(X, dtype=torch.float32), y

def net(C=2): return seeded(lambda: nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Dropout(.2), nn.Linear(32, C)), 1)

@pytest.mark.parametrize('kind', KINDS)
def test_the_best_epoch_of_the_validation_part_is_kept(kind):
    X, y = data(kind=kind); C = dict(binary=2, multiclass=3, regression=1)[kind]
    f = fit_head(net(C), X[:80], y[:80], X[80:], y[80:], kind, Recipe(epochs=20, patience=20), classes=C)
    h = f.history; top = h[h.val == h.val.max()]
    assert f.epoch == top.sort_values('val_loss').epoch.iloc[0] and len(h) == 20
    assert np.isclose(scores(kind, f.predict(X[80:]), y[80:])[MAIN[kind]], h.val.max())  # its weights, not the last ones
    assert h.val.max() > dict(binary=.75, multiclass=.5, regression=.5)[kind]

def test_validation_labels_choose_and_do_not_train():
    X, y = data(); r = Recipe(epochs=25, patience=25)
    a, b = (fit_head(net(), X[:80], y[:80], X[80:], v, 'binary', r, seed=3) for v in (y[80:], 1-y[80:]))
    assert a.epoch != b.epoch and (a.history.loss == b.history.loss).all()

def test_same_seed_same_weights_and_torch_is_left_as_it_was():
    X, y = data(); torch.manual_seed(11); before = torch.get_rng_state()
    a, b, c = (fit_head(net(), X[:80], y[:80], X[80:], y[80:], 'binary', QUICK, seed=s).predict(X) for s in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c) and torch.equal(before, torch.get_rng_state())

def test_patience_ends_a_training():
    X, y = data(); f = fit_head(net(), X[:80], y[:80], X[80:], y[80:], 'binary', Recipe(epochs=200, patience=3))
    assert len(f.history) == f.epoch + 4 or len(f.history) == 200
    assert len(f.history) < 200

def test_balanced_loss_finds_a_rare_class():
    rng = np.random.default_rng(0); y = (np.arange(400) % 10 == 0).astype(int); X = torch.tensor(rng.standard_normal((400, 5)) + y[:,None]*.7, dtype=torch.float32)
    got = {b:fit_head(seeded(lambda: nn.Linear(5, 2), 0), X[:300], y[:300], X[:300], y[:300], 'binary', Recipe(epochs=20, balanced=b)).predict(X[300:]) for b in (True, False)}
    assert scores('binary', got[True], y[300:])['recall_1'] > scores('binary', got[False], y[300:])['recall_1'] + .2

def test_lr_scale_of_zero_keeps_a_group_still():
    X, y = data(); m = net(); before = [p.detach().clone() for p in m.parameters()]; a, b = list(m[0].parameters()), list(m[3].parameters())
    fit_head(m, X[:80], y[:80], X[80:], y[80:], 'binary', QUICK, param_groups=[dict(params=a, lr_scale=0.), dict(params=b)])
    assert torch.equal(m[0].weight, before[0]) and not torch.equal(m[3].weight, before[2])

def test_a_diverging_training_is_refused():
    X, y = data(); refused(lambda: fit_head(net(), X, y, X, y, 'binary', Recipe(lr=1e30)), 'diverged')

# --- heads

def test_paper_head_has_1538_parameters():
    x = torch.randn(5, 768); assert [sum(p.numel() for p in LinearHead('hub', norm=n).module(x, 2).parameters()) for n in readouts.NORMS] == [1538]*3

@pytest.mark.parametrize('make', [lambda: LinearHead(ROWS, recipe=QUICK), lambda: LinearHead(ROWS, recipe=QUICK, norm='layer'), lambda: AttentiveProbe(ROWS, recipe=QUICK, queries=2), lambda: AttentiveProbe(ROWS, recipe=QUICK, heads=2, project=True, norm='layer')],
                         ids=['head', 'head, layer norm', 'attentive', 'attentive, projected'])
def test_heads_learn_and_are_blind(make):
    for kind in KINDS:
        s = learns(make, kind, n=80); chance = dict(binary=.5, multiclass=1/3, regression=0.)[kind]
        assert s['signal'] > chance + .2, (kind, s)
        assert s['shuffled'] < s['signal'] - .2, (kind, s)
        assert guarded(make, toy_people(40, kind)) == dict(labels=0., others=0.), kind

def test_a_norm_by_rows_is_that_of_the_training_rows():
    x = torch.randn(50, 4)*3 + 7; x[:,3] = 2.; z = Scaled(x)(x)
    assert torch.allclose(z[:,:3].mean(0), torch.zeros(3), atol=1e-5) and torch.allclose(z[:,:3].std(0, unbiased=False), torch.ones(3), atol=1e-4) and (z[:,3] == 0).all()

def test_tokens_are_a_set_and_padding_is_not_seen():
    m = seeded(lambda: Attend(nn.Identity(), 8, 2, queries=3, heads=2), 0); m.line.weight.data.normal_(); many = [torch.randn(n, 8) for n in (2, 5, 9)]
    got = m(many)
    for i,t in enumerate(many): assert torch.allclose(got[i], m(t[None])[0], atol=1e-6) and torch.allclose(got[i], m(t[torch.randperm(len(t))][None])[0], atol=1e-6)

def test_an_attentive_probe_finds_the_token_that_tells():
    "The label stands in one of 12 tokens, marked but at a random place: the mean drowns it"
    rng = np.random.default_rng(0); y = np.arange(200) % 2; x = rng.standard_normal((200, 12, 6)).astype(np.float32)*.5; at = rng.integers(0, 12, 200)
    x[np.arange(200), at, 0] += 8; x[np.arange(200), at, 1] = (2*y-1)*.8; X = torch.tensor(x); r = Recipe(lr=.02, epochs=60, patience=60)
    attend = seeded(lambda: Attend(nn.Identity(), 6, 2), 0); line = LinearHead('x', norm='none').module(X.mean(1), 2)
    a, b = (main_score('binary', fit_head(m, v[:120], y[:120], v[120:160], y[120:160], 'binary', r).predict(v[160:]), y[160:]) for m,v in ((attend, X), (line, X.mean(1))))
    assert a > .95 and a > b + .1, (a, b)

# --- tuning

def small(): return seeded(lambda: Harmonizer(HarmonizerConfig(in_dim=16, dim=24, depth=2, heads=2, hubs=6, dec_dim=24, dec_depth=1, dec_heads=2)), 0).eval()

def as_tokens(b, t):
    x, v = torch.tensor(np.corrcoef(b.x)).float(), torch.tensor(np.asarray(t)).float().unfold(0, 8, 8).unfold(1, 8, 8).unfold(2, 8, 8).flatten(3).mean(3).flatten()[:,None].repeat(1, 16)
    return Packed(x, (16,), torch.arange(16), (16, 1)), Packed(v, (8,), torch.arange(8), (2, 2, 2))
TOKENS = Part('toy tokens', as_tokens, ('bold','t1'))

@pytest.mark.parametrize('mode', ['head', 'harmonizer', 'lora'])
def test_tuning_learns_and_is_blind(mode):
    if mode == 'lora': pytest.importorskip('peft')
    h = small(); before = weights_hash(h); make = lambda: FineTune(TOKENS, h, TuneConfig.smoke(mode))
    s = learns(make, n=60); assert s['signal'] > .75 and s['shuffled'] < .75, s
    assert guarded(make, toy_people(40)) == dict(labels=0., others=0.) and weights_hash(h) == before  # the checkpoint is not touched

def test_tuning_regression_and_classes():
    for kind,least in (('regression', .3), ('multiclass', .55)): assert learns(lambda: FineTune(TOKENS, small(), TuneConfig.smoke()), kind, n=60)['signal'] > least

def test_pooled_is_the_mean_of_hubs_before_the_norm():
    h, p = small(), toy_people(20); pairs = [p.part(TOKENS, i) for i in range(4)]; pairs[1] = (None, pairs[1][1]); pairs[2] = (pairs[2][0], None)  # missing scans, too
    want = torch.stack([h.encode(*h.entering([(m, t) for m,t in enumerate(s) if t is not None]), norm=False)[1][0].mean(0) for s in pairs])
    for mode in ('head', 'harmonizer', *(['lora'] if readouts.find_spec('peft') else [])):
        t = Tuned(TuneConfig.smoke(mode), h, 2).eval(); assert torch.allclose(t.pooled(pairs), want, atol=1e-5), mode

def test_pooled_tokens_can_be_scaled_by_the_training_rows():
    p = toy_people(12); x = [p.part(TOKENS, i) for i in range(8)]; ft = FineTune(TOKENS, small(), TuneConfig(norm='rows', drop=0.)); t = ft.module(x, 2).eval(); z = t.fc_norm[0](t.pooled(x)).detach()
    assert torch.allclose(z.mean(0), torch.zeros(24), atol=1e-3) and torch.allclose(z.std(0, unbiased=False), torch.ones(24), atol=1e-2)
    refused(lambda: TuneConfig(norm='batch'), 'norm')

def test_tuned_equals_the_release(tmp_path):
    "Same weights, same logits as the released fine-tuning model"
    from brainharmonix.model.released import ReleasedFinetune
    h = seeded(lambda: Harmonizer(HarmonizerConfig(in_dim=24, dim=24, depth=2, heads=2, hubs=6, decoders=0, cls=True)), 1).eval(); t = Tuned(TuneConfig(), h, 3).eval(); t.head.weight.data.normal_()
    x = torch.randn(2, 10, 24); r = ReleasedFinetune(h, t.fc_norm, t.head)
    own, pos = t.harmonizer, r.table('pos_embed', 10, x)
    seq, lens, read = own.sequence(((x + pos).flatten(0, 1)).split((10, 10)))
    out = readouts.run(own.blocks, seq, lens, read).unflatten(0, (2, -1))[:,1:].mean(1)
    assert torch.allclose(t.head(t.fc_norm(out)), r(x, torch.ones(2, 10)), atol=1e-5)

def test_modes_train_what_they_say(toy):
    n = lambda mode: {k.split('.')[0] for k,p in Tuned(TuneConfig.smoke(mode), toy.harmonizer, 2, toy.function, toy.structure).named_parameters() if p.requires_grad}
    assert n('head') == {'fc_norm','head'} and n('harmonizer') == {'harmonizer','fc_norm','head'} and n('full') == {'harmonizer','function','structure','fc_norm','head'}
    p = toy_people(8); t = Tuned(TuneConfig.smoke('full'), toy.harmonizer, 2, toy.function, toy.structure); t.head.weight.data.normal_()
    t([p.part(scans_part(toy), i) for i in range(2)]).pow(2).sum().backward()
    assert not [k for k,q in t.named_parameters() if q.requires_grad and q.grad is None]     # nothing is counted that is not used

def test_lora_reaches_every_matrix():
    pytest.importorskip('peft')
    l = Tuned(TuneConfig.smoke('lora'), small(), 2); l.head.weight.data.normal_(); p = toy_people(8); l([p.part(TOKENS, i) for i in range(3)]).sum().backward()
    b = {n:q.grad for n,q in l.named_parameters() if 'lora_B' in n}; assert len(b) == 2*4 and all(g.abs().sum() > 0 for g in b.values())
    rows = b['harmonizer.blocks.1.block.attn.qkv.lora_B.default.weight']; assert all(r.abs().sum() > 0 for r in rows.chunk(3))  # q, k and v of the last block
    assert all(not q.requires_grad for n,q in l.harmonizer.named_parameters() if 'lora' not in n)

def test_lora_without_peft_is_refused(monkeypatch):
    monkeypatch.setattr(readouts, 'find_spec', lambda n: None); refused(lambda: FineTune(TOKENS, small(), TuneConfig('lora')), 'LoRA', 'peft')

def test_layer_decay_is_that_of_the_release():
    if not golden('optim_tables.json'): pytest.skip('the released table is not at hand')
    from brainharmonix.model.released import NAMES
    table = json.loads(golden('optim_tables.json').read_text())['layer_decay_065_vit_base']
    ft = FineTune('tokens', Harmonizer(HarmonizerConfig(dim=24, in_dim=24, depth=12, heads=2, hubs=4, decoders=0, cls=True)), TuneConfig.base()); named = dict((t := Tuned(ft.cfg, ft.harmonizer, 2)).named_parameters())
    own = {id(p):(g['lr_scale'], g['weight_decay']) for g in ft.groups(t) for p in g['params']}
    def ours(n):
        n = next((b+n[len(a):] for a,b in NAMES['harmonizer'].items() if n.startswith(a)), n)
        if n.startswith(('head','fc_norm')): return n
        return 'harmonizer.' + (f'{".".join(n.split(".")[:2])}.block.{".".join(n.split(".")[2:])}' if n.startswith('blocks.') else n)
    assert {ours(n) for n in table} == set(named)
    for n,v in table.items(): assert np.allclose(own[id(named[ours(n)])], (v['lr_scale'], v['weight_decay'])), n

def test_layer_decay_by_hand():
    s = layer_scales(['harmonizer.modality','harmonizer.blocks.0.x','harmonizer.blocks.1.x','harmonizer.hub_pos','fc_norm.weight'], 2, .5); assert list(s.values()) == [.125, .25, .5, 1., 1.]

def test_drop_path_is_per_person_and_off_when_asked():
    b = seeded(lambda: Block(8, 2), 0); d = DropPath(b, .5); x = torch.randn(6, 8); lens = (2, 4)
    assert torch.equal(d.eval()(x, lens), b(x, lens)); d.train(); torch.manual_seed(0)
    kept = [d.kept(torch.ones(6, 8), lens) for _ in range(400)]
    assert all((k[:2] == k[0,0]).all() and (k[2:] == k[2,0]).all() for k in kept) and abs(torch.stack(kept).mean()-1) < .1

def test_tokens_that_do_not_fit_are_refused(monkeypatch):
    monkeypatch.setattr(readouts, 'memory', lambda: 1000); p = toy_people(30)
    refused(lambda: FineTune(TOKENS, small(), TuneConfig.smoke()).fit(p.view(np.arange(20)), p.view(np.arange(20, 30)), 0), 'GB', 'fewer people')

def test_full_tuning_learns_from_scans(toy):
    p = toy_people(30, signal=5.); make = our_systems('binary', toy, ('full',), tune=replace(TuneConfig.smoke(), recipe=Recipe(lr=3e-3, epochs=5, batch=8, warm=1)))['BrainHarmonix, fully fine-tuned']
    t = standings(enter(p, dict(full=make), Protocol(splits=1)), versus='full', boots=2); assert t.balanced_accuracy[0] > .8
    assert guarded(make, toy_people(20)) == dict(labels=0., others=0.) and t.parameters[0] > sum(q.numel() for q in toy.function.parameters())

# --- few labels

def test_shots_are_nested_counted_and_stopped():
    p = toy_people(60); rows = np.arange(40)
    draws = {k:shots_of(p, rows, k, 5) for k in (4, 8, 20)}
    for k,(a,b,gone) in draws.items(): assert not gone and not set(a) & set(b) and (np.bincount(p.y[np.r_[a,b]]) == k).all() and len(b) == 2*len([i for i in range(k) if i % 4 == 1])
    assert set(draws[4][0]) <= set(draws[8][0]) <= set(draws[20][0]) and set(draws[4][1]) <= set(draws[8][1])
    assert 'class a has 20 training subjects, fewer than 21' == shots_of(p, rows, 21, 5)[2]
    r = toy_people(60, 'regression'); a, b, _ = shots_of(r, rows, 6, 0); y = r.y[np.r_[a, b]]; assert (y > np.median(r.y[rows])).sum() == 6 == len(y)//2
    assert set(shots_of(p, rows, 4, 6)[0]) != set(draws[4][0])

def test_sessions_of_one_subject_stay_together():
    p = toy_people(40); t = p.table.assign(subject=[f's{i//4*2 + i%2}' for i in range(40)]); q = People('twice', t, p.y, 'binary', p.scans, p.classes)  # two sessions each
    a, b, _ = shots_of(q, np.arange(40), 6, 0); assert len(a)+len(b) == 24 and not set(q.table.subject[a]) & set(q.table.subject[b])

def test_few_shot_table():
    p = toy_people(100); made = []
    class Seen(LinearHead):
        def fit(self, train, val, seed): made.append((sorted(train.people.table.subject[np.r_[train.rows, val.rows]]))); return super().fit(train, val, seed)
    t = few_shot(p, {'head':lambda: Seen(ROWS, recipe=QUICK)}, shots=(20, 5, 50), seeds=range(2))
    assert list(t.shots[:3]) == [5, 20, 50] and t[t.shots == 50].balanced_accuracy.isna().all() and len(t.attrs['stopped']) == 2 and 'fewer than 50' in t.note.iloc[2]
    assert [len(m) for m in made] == [10, 40, 10, 40] and set(made[0]) <= set(made[1]) and t[t.shots == 20].balanced_accuracy.mean() > .8
    class Taught(Seen): seen = ('toy-003',)
    bad = few_shot(p, lambda: _taught(Taught), shots=(5,), seeds=[0]); assert 'toy-003' in bad.note[0]
def _taught(cls): s = cls(ROWS, recipe=QUICK); s.seen = ('toy-003',); return s

# --- the released evaluation

def test_f1_is_that_of_scikit_learn():
    rng = np.random.default_rng(0); y, g = rng.integers(0, 2, 40), rng.integers(0, 2, (7, 40))
    assert np.allclose(f1_of(g, y), [f1_score(y, r) for r in g]) and np.allclose(f1_of(g, y, 0), [f1_score(y, r, pos_label=0) for r in g])
    y, g = rng.integers(0, 4, 50), rng.integers(0, 4, (5, 50)); assert np.allclose(f1_of(g, y, None), [f1_score(y, r, average='weighted') for r in g])
    y, g = rng.integers(0, 2, 37), rng.integers(0, 2, 37)
    want = np.average([f1_score(y[a:a+16], g[a:a+16], zero_division=0) for a in (0, 16, 32)], weights=[16, 16, 5]); assert np.isclose(batched_f1(g[None], y)[0], want)

def hot(g, C=2): return np.eye(C)[np.asarray(g)]

def test_quirks_one_by_one():
    y = np.array([1, 1, 0, 0]); right, half, wrong = y, np.array([1, 0, 0, 0]), 1-y
    val, test = (hot([wrong, half, right, right]), y), (hot([right, right, half, half]), y); lists = dict(val=val, test=test)
    off = dict(batched=False, swapped=False, late=False)
    assert released_scores(lists, **off)['epoch'] == 2 and np.isclose(released_scores(lists, **off)['f1'], 2/3)          # chosen on val, reported on test
    assert released_scores(lists, **off | dict(late=True))['epoch'] == 3                                                # of equals the last
    s = released_scores(lists, **off | dict(swapped=True)); assert s['epoch'] == 0 and s['f1'] == 0 and s['accuracy'] == 0 # chosen on test, reported on val
    b = released_scores(dict(val=val, test=(hot([half]*4), y)), **off | dict(batched=True), batch=2); assert np.isclose(b['f1'], (2/3 + 0)/2)
    assert released_scores(dict(val=(hot([np.ones(4, int)]), y), test=(hot([np.ones(4, int)]), y)))['balanced_accuracy'] == .5
    refused(lambda: released_scores(dict(val=val)), 'test'); refused(lambda: released_scores(dict(val=(val[0][:2], y), test=test)), 'shapes')

# --- our rows

def test_says_what_the_model_says(demo, sim):
    b, t = scan(sim, 0); e, d = demo.embed(b, SimpleNamespace(x=t)), says(demo, b, t)
    assert np.array_equal(d['hub'], e.hub.numpy()) and np.allclose(d['f'], e.bold.x.mean(0).detach(), atol=1e-6) and np.allclose(d['s'], e.t1.x.mean(0).detach(), atol=1e-6)
    assert np.allclose(says(demo, b)['hub'].mean(0), d['hub_bold'], atol=1e-6) and np.allclose(says(demo, None, t)['hub_t1'], d['hub_t1'], atol=1e-6) and 's' not in says(demo, b)
    turned = replace(b, x=b.x[::-1].copy(), names=tuple(np.array(b.names)[::-1])); assert np.array_equal(says(demo, turned, t)['hub'], d['hub'])   # rows in another order
    x, tr = sim.bold(0, tr=2.); again = Bold(x, tr, names=sim.names, order=sim.order)                                      # another TR goes the model's own way
    assert np.array_equal(says(demo, again, t)['hub'], demo.embed(again, SimpleNamespace(x=t)).hub)

def test_random_rows_have_seen_nobody(demo):
    a, b = untrained(demo, 0), untrained(demo, 1)
    assert weights_hash(a) != weights_hash(b) and weights_hash(a) == weights_hash(untrained(demo, 0)) != weights_hash(demo) and not a.passport.subject_hashes and demo.passport.subject_hashes
    assert torch.equal(a.function.pos.gradients, demo.function.pos.gradients) and 'RANDOM' in a.passport.note
    assert weights_hash(fresh_harmonizer(demo, 0)) != weights_hash(demo.harmonizer)
    assert len({our_part(demo).key, our_part(demo, (1,)).key, our_part(demo, latents=True).key, random_part(demo, 0).key, random_part(demo, 1).key}) == 5

def test_the_demo_checkpoint_in_the_arena(demo):
    sim = simulate(SimConfig.smoke(subjects=12, seed=32, minutes=(2.,)*4)); calls = []
    def scans(i): calls.append(i); return scan(sim, i)
    people = People('simulated', sim.manifest.assign(site='one'), np.arange(12) % 2, 'binary', scans, ('a','b'), 'simulated')
    few = {k:v for k,v in our_systems('binary', demo, ('linear','wide','attentive','head','harmonizer'), tune=replace(TuneConfig.smoke(), mode='head', recipe=Recipe(epochs=2))).items() if 'random' not in k and 'fine-tuned' not in k}
    assert 'BrainHarmonix, head of 194 parameters' in few
    o = enter(people, few, Protocol(splits=1)); assert not o.failed and set(o.runs) == set(few)
    assert sorted(calls) == list(range(12))                                                                             # every session was read and embedded once, for nine rows
    assert o.runs['BrainHarmonix, head of 194 parameters']['seed-0']['size'] == 194
    ids = sim.manifest.subject.tolist(); from brainharmonix.cohort import id_hash
    seen = replace(demo.passport, subject_hashes=(*demo.passport.subject_hashes, id_hash([ids[3]]))); old, demo.passport = demo.passport, seen
    try: failed = enter(people, {k:v for k,v in our_systems('binary', demo, ('linear','head')).items()}, Protocol(splits=1)).failed
    finally: demo.passport = old
    assert {'BrainHarmonix', 'BrainHarmonix-F', 'BrainHarmonix-S', f'BrainHarmonix, {FRESH}', 'BrainHarmonix, head of 194 parameters'} <= set(failed) and ids[3] in failed['BrainHarmonix'] and not any('random' in k for k in failed)

def test_row_names():
    m = toy_model(); n = list(our_systems('binary', m, ('linear','attentive','head','harmonizer','lora','full')))
    assert n == ['BrainHarmonix', 'BrainHarmonix-F', 'BrainHarmonix-S', 'BrainHarmonix, BOLD only', 'BrainHarmonix, T1 only', 'BrainHarmonix, random weights', 'BrainHarmonix-F, random weights', 'BrainHarmonix-S, random weights', 'BrainHarmonix, Harmonizer not trained',
                 'BrainHarmonix, attentive probe', 'BrainHarmonix, head of 50 parameters', 'BrainHarmonix, fine-tuned Harmonizer', 'BrainHarmonix, LoRA', 'BrainHarmonix, fully fine-tuned']
    assert len([k for k in our_systems('regression', m, inits=(0, 1)) if 'random weights, init' in k]) == 6 and 'BrainHarmonix, head of 25 parameters' in our_systems('regression', m, ('head',))
    configs = [json.dumps(f().config, sort_keys=True) for f in our_systems('binary', m, ('linear','wide','attentive','head','harmonizer','full'), inits=(0, 1)).values()]; assert len(set(configs)) == len(configs)
    assert json.dumps(our_systems('binary', toy_model(1))['BrainHarmonix']().config) != json.dumps(our_systems('binary', m)['BrainHarmonix']().config)

def rhythms(n=60, shuffled=False, kind='binary'):
    "Labels stand in how fast the BOLD is, which the mean token of F can tell"
    p = toy_people(n, kind, signal=4.); rng = np.random.default_rng(0); y = rng.permutation(p.y) if shuffled else p.y; top = p.y.max() or 1
    def scans(i):
        b, t = p.scans(i); k = 1 + 6*float(p.y[i] - p.y.min())/np.ptp(p.y); x = np.apply_along_axis(lambda v: np.convolve(v, np.ones(int(round(k)))/round(k), 'same'), 1, np.random.default_rng(i).standard_normal(b.x.shape))
        return Bold(x.astype(np.float32), b.tr, source=b.source), t
    return People('rhythms', p.table, y, kind, scans, p.classes, 'simulated')

def test_every_row_learns_what_its_input_holds(toy):
    rows = our_systems('binary', toy, ('linear','wide','attentive','head'), recipe=QUICK); edges = rows.pop('BrainHarmonix-F, token connectivity')  # reads coupling, not rhythm
    score = lambda p: standings(enter(p, rows, Protocol(splits=2)), versus='BrainHarmonix', boots=2).set_index('system').balanced_accuracy
    s, d = score(rhythms()), score(rhythms(shuffled=True))
    assert (s > .75).all(), s
    assert d.mean() < .62 and (s - d > .15).all(), d
    e = learns(edges, n=80, signal=6.); assert e['signal'] > .65 and e['signal'] > e['shuffled'] + .1, e
    for k in ('BrainHarmonix', 'BrainHarmonix, all hub tokens'): assert guarded(rows[k], toy_people(30)) == dict(labels=0., others=0.), k

@pytest.mark.parametrize('kind', ['multiclass', 'regression'])
def test_rows_for_classes_and_scores(toy, kind):
    rows = our_systems(kind, toy, ('linear','attentive','harmonizer'), classes=3 if kind == 'multiclass' else None, recipe=QUICK, tune=TuneConfig.smoke()); rows = {k:rows[k] for k in ('BrainHarmonix','BrainHarmonix, attentive probe','BrainHarmonix, fine-tuned Harmonizer')}
    t = standings(enter(toy_people(60, kind, signal=5.), rows, Protocol(splits=1)), versus='BrainHarmonix', boots=2); assert (t[MAIN[kind]] > .5).all(), t[['system', MAIN[kind]]]

def test_a_missing_scan_is_named(toy):
    p = toy_people(20); whole = p.scans; p.scans = lambda i: (whole(i)[0], None); part = our_part(toy)
    assert _line(part, 'hub mean').x(p.view(np.arange(2)))[0].shape == (2, 24); refused(lambda: _line(part, 's').x(p.view(np.arange(2))), "'s'")
    refused(lambda: our_systems('binary', toy, ('svm',)), 'svm'); refused(lambda: our_systems('multiclass', toy, ('head',)), 'classes='); refused(lambda: our_systems('binary', toy, inits=()), 'seed')

# --- natural images

def fabricated(D=32, depth=2, p=4, grid=4, seed=0):
    g = torch.Generator().manual_seed(seed); w = lambda *s: torch.randn(*s, generator=g)*.2
    sd = dict(cls_token=w(1,1,D), pos_embed=w(1,grid**2+1,D)) | {'patch_embed.proj.weight':w(D,3,p,p), 'patch_embed.proj.bias':w(D), 'norm.weight':1+w(D), 'norm.bias':w(D), 'head.weight':w(10,D), 'head.bias':w(10)}
    for i in range(depth): sd |= {f'blocks.{i}.{k}':w(*s) for k,s in {'norm1.weight':(D,), 'norm1.bias':(D,), 'norm2.weight':(D,), 'norm2.bias':(D,), 'attn.qkv.weight':(3*D,D), 'attn.qkv.bias':(3*D,), 'attn.proj.weight':(D,D), 'attn.proj.bias':(D,), 'mlp.fc1.weight':(4*D,D), 'mlp.fc1.bias':(4*D,), 'mlp.fc2.weight':(D,4*D), 'mlp.fc2.bias':(D,)}.items()}
    return sd

def test_image_network_equals_torch_s_own(tmp_path):
    sd = fabricated(); save_file(sd, tmp_path/'vit.safetensors'); vit, x = ImageViT(tmp_path/'vit.safetensors', heads=4), torch.randn(2, 3, 16, 16)
    h = torch.cat([sd['cls_token'].expand(2,-1,-1), F.conv2d(x, sd['patch_embed.proj.weight'], sd['patch_embed.proj.bias'], 4).flatten(2).mT], 1) + sd['pos_embed']
    for i in range(2):
        l = nn.TransformerEncoderLayer(32, 4, 128, 0., 'gelu', 1e-6, True, True).eval(); s = lambda k: sd[f'blocks.{i}.{k}']
        l.load_state_dict({'self_attn.in_proj_weight':s('attn.qkv.weight'), 'self_attn.in_proj_bias':s('attn.qkv.bias')} | {f'{a}.{k}':s(f'{b}.{k}') for a,b in (('self_attn.out_proj','attn.proj'), ('linear1','mlp.fc1'), ('linear2','mlp.fc2'), ('norm1','norm1'), ('norm2','norm2')) for k in ('weight','bias')})
        with torch.no_grad(): h = l(h)
    assert torch.allclose(F.layer_norm(h[:,0], (32,), sd['norm.weight'], sd['norm.bias'], 1e-6), vit(x), atol=1e-4)

def test_image_rows_learn_and_refuse(tmp_path):
    rows = image_systems(fabricated(), heads=2)
    for n,m in rows.items():
        s = learns(m, n=60, signal=6.); assert s['signal'] > .75 and s['shuffled'] < .75, (n, s)
        assert guarded(m, toy_people(30)) == dict(labels=0., others=0.)
    bold, t1 = toy_people(10).scans(0); d = image_part(ImageViT(fabricated(), 2)).of(bold, t1); assert {k:v.shape for k,v in d.items()} == dict(t1=(32,), fc=(32,))
    assert torch.equal(slices_of(t1*3 + 0, 16), slices_of(t1, 16)) or torch.allclose(slices_of(t1*3, 16), slices_of(t1, 16), atol=1e-4)  # the scanner's unit does not matter
    refused(lambda: ImageViT(fabricated() | {'register_tokens':torch.zeros(1, 4, 32)}), 'register_tokens'); refused(lambda: ImageViT(fabricated() | {'blocks.0.ls1.gamma':torch.zeros(32)}), 'ls1')
    refused(lambda: ImageViT({k:v for k,v in fabricated().items() if k != 'blocks.1.mlp.fc2.weight'}, 2), 'fc2'); refused(lambda: ImageViT(tmp_path/'none.safetensors'), 'none.safetensors')
    (tmp_path/'bad.safetensors').write_bytes(b'junk'); refused(lambda: ImageViT(tmp_path/'bad.safetensors'), 'bad.safetensors')
