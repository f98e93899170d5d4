"Each arm of benchmarks/ablations.py differs from the reference in what it says it does"
import csv, json, sys
import numpy as np, pytest, torch
from brainharmonix.docs import root
from brainharmonix.geometry.harmonics import PERMUTATION_17_TO_7, harmonic_table
from brainharmonix.model.masking import MaskConfig
from brainharmonix.model.structure import normalised
from brainharmonix.preprocess.bold import Bold

sys.path.insert(0, str(root()/'benchmarks'))
import ablations as A

@pytest.fixture(scope='module')
def cfg():
    torch.set_num_threads(1)
    return A.Ablation.smoke()

def test_cutting_in_index_order_starves_the_right_hemisphere():
    "Batch 16 on Brain-JEPA's grid, 50 subcortical parcels first: .168, .645 and .188 of the context were seen there (field notes, J3)"
    ctx, _ = A.batch_masks(torch.ones(16, 10, dtype=torch.bool), 450, MaskConfig(truncate='first', as_coded=True), torch.Generator().manual_seed(0))
    assert len({len(i) for i in ctx}) == 1
    shares = lambda how: A.context_shares(450, 10, 16, MaskConfig(truncate=how, as_coded=True), (0,50,250,450), 12)
    assert np.abs(shares('first') - (.168, .645, .188)).max() < .03
    assert np.abs(shares('random') - (50/450, 200/450, 200/450)).max() < .02

def test_training_masks(cfg):
    "Only the arms cut in index order see less of the right; only the reference lets lengths differ"
    sessions = [A.Session(str(i), torch.zeros(100,8,48), torch.ones(8, dtype=torch.bool)) for i in range(16)]
    for masks in ('own', 'random', 'first', 'coded'):
        feed = A.feed_of(cfg, sessions, masks)
        drawn = [feed.collate([feed.sample(i, torch.Generator().manual_seed(8*t+i)) for i in range(8)]) for t in range(8)]
        assert any(len({len(i) for i in ctx}) > 1 for _,ctx,_,_ in drawn) == (masks == 'own')
        assert any(len(i.unique()) < len(i) for _,_,want,_ in drawn for i in want) == (masks == 'coded')  # cells guessed twice
        share = A.right_share(feed, 100, 8, 20)
        assert share < .4 if masks in ('first', 'coded') else abs(share-.5) < .03

def test_permuted_table_is_the_17_network_order():
    rows, values = np.arange(0, 400, 4), harmonic_table().values
    (g, h), (g2, wrong), (g3, none) = (A.tables(4, k) for k in ('aligned', 'permuted', 'zeros'))
    assert torch.equal(h, torch.tensor(values[rows])) and torch.equal(wrong, torch.tensor(values[PERMUTATION_17_TO_7[rows]]))
    assert torch.equal(g, g2) and torch.equal(g, g3) and not none.any()
    assert (h != wrong).any(1).float().mean() > .9 and ((PERMUTATION_17_TO_7 < 200) == (np.arange(400) < 200)).all()

@pytest.fixture(scope='module')
def runs():
    rng = np.random.default_rng(0)
    return [Bold(rng.standard_normal((4, int(300/tr))).astype(np.float32), tr) for tr in (.735, .8, 2., 2.5)]

def test_every_person_is_met_as_often(runs):
    plain = A.scans(runs)
    for rule in ('antialias', 'released'):
        more = A.scans(runs, rule)
        assert [sum(s.subject == str(i) for s in more) for i in range(4)] == [12]*4
        assert sorted({round(s.tr, 3) for s in more}) == [.735, .8, 1.47, 1.6, 2., 2.205, 2.4, 2.5, 2.94]
        assert all(any(torch.equal(p.z, s.z) for s in more) for p in plain)
    filtered, picked = (next(s for s in A.scans(runs, r) if s.tr > 2.9).z for r in ('antialias', 'released'))
    assert not torch.equal(filtered, picked)

def test_windows_in_frames(runs):
    ours, released = A.scans(runs), A.scans(runs, released=True)
    for b,s,r in zip(runs, ours, released):
        k = round(35.28/b.tr)
        assert len(r.mask) == -(-b.x.shape[1]//k)                               # the last window, filled or not
        assert torch.equal(s.z[:,:8], r.z[:,:8]) == (b.tr == .735)             # k frames last tau seconds at that TR only

def test_padding_enters_the_released_loss(cfg):
    torch.manual_seed(0); d = A.replace(cfg.harmonizer, decoders=1, drop=0., balance=False, cls=True)
    x, mask = torch.randn(2, 40, 48), torch.ones(2, 40, dtype=torch.bool); mask[0,5:20] = False
    other = x.clone(); other[0,5:20] += torch.randn(15, 48)
    full, valid = A.Stage1(d, True), A.Stage1(d, False); valid.load_state_dict(full.state_dict())
    with torch.no_grad():
        assert torch.allclose(full(x, mask).mean(), full.released.loss(x, mask))   # the release's number
        assert full(x, mask)[0] != full(other, mask)[0] and full(x, mask)[1] == full(other, mask)[1]
        assert torch.equal(valid(x, mask), valid(other, mask))
        assert torch.equal(full.released(x, mask), full.released(other, mask))     # hub tokens never see padding
        err = (full.released.predict(x, mask)-normalised(x)).pow(2).mean(2)
        assert torch.allclose(valid(x, mask)[0], err[0][mask[0]].mean())

def test_every_arm_trains_another_model(cfg, monkeypatch):
    monkeypatch.setattr(A, 'right_share', lambda *a: 0.)
    w = {a:torch.cat([p.flatten() for p in A.trained(cfg, 0, **kw)[0].parameters()]) for a,kw in A.FUNCTION.items()}
    first = torch.cat([p.flatten() for p in A.untrained(cfg, 0).target.parameters()])
    reference = w.pop(A.REFERENCE)
    assert not torch.equal(reference, first) and all(len(v) == len(first) and not torch.equal(v, reference) for v in w.values())

def test_a_stopped_run_goes_on(cfg, tmp_path, monkeypatch, capsys):
    "Lines that are there are kept, a line that was cut is made anew, and tables and figure follow from the lines"
    fake = lambda c, arm, seed, out: dict(arm=arm, seed=seed, config=c.hash(), people='p', f=.5+.01*seed, label=.6, f_again=.4, f_mean=.1, s=.3, f_rebuilt=.2, bold=.1, t1=.2, std=1., rank=3., loss=.1, right=.5, seconds=1, cpu=1)
    monkeypatch.setattr(A, 'one', fake); monkeypatch.setattr(A, 'context_shares', lambda *a: np.array([.5,.5]))
    monkeypatch.setattr(sys, 'argv', ['ablations.py', '--smoke', '--seeds', '2', '--out', str(tmp_path/'runs'), '--reports', str(tmp_path)])
    A.main(); f = tmp_path/'runs'/'results.jsonl'; lines = f.read_text().strip().splitlines()
    arms = [A.FC, A.BLIND, *A.FUNCTION, *A.FUSION]
    assert {(r['arm'], r['seed']) for r in map(json.loads, lines)} == {(a, s) for s in (0, 1) for a in arms} and len(lines) == 2*len(arms)
    f.write_text('\n'.join(lines[:-1]) + '\n' + lines[-1][:30]); capsys.readouterr()
    A.main()
    assert len(capsys.readouterr().out.splitlines()) == 1 and len(A.results(tmp_path/'runs', cfg)) == 2*len(arms)
    head, *rows = (tmp_path/'ablations-simulated.csv').read_text().splitlines()
    for word in ('simulated', 'commit', 'manifests', f'config {cfg.hash()}', 'seeds 0, 1', 'CPU'): assert word in head
    assert {r['arm'] for r in csv.DictReader(rows)} == set(arms) and (tmp_path/'figures'/'ablations-simulated.png').stat().st_size > 5000
    text = (tmp_path/'ablations.md').read_text()
    assert text.count(head.removeprefix('# ')) == text.count('\n## ')  # one for the file and one for each table; '## What came out' has no table

def test_intervals_are_students():
    m, lo, hi = A.interval([1., 2., 3., 4., 5.])
    assert m == 3 and np.isclose(hi-m, 2.776445*np.sqrt(2.5/5)) and np.isclose(m-lo, hi-m)

def test_smoke_run(cfg, tmp_path):
    "One arm of each kind, from simulated people to scores"
    f = A.one(cfg, A.REFERENCE, 0, tmp_path)
    h = A.one(cfg, 'Harmonizer, released model and loss', 0, tmp_path)  # on the F that the arm before left
    assert {'f', 'label', 'f_again', 'f_mean', 'std', 'rank', 'right', 'loss'} < f.keys() and {'f', 's', 'label', 'f_rebuilt', 'bold', 't1', 'std', 'rank', 'loss'} < h.keys()
    assert f['people'] == h['people'] and all(np.isfinite(v) for r in (f, h) for v in r.values() if isinstance(v, float))
    assert 0 < f['label'] < 1 and 1 <= f['rank'] <= cfg.model.dim
