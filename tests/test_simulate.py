"Cohorts, splits, the simulated cohort and the probe: promises with closed forms"
import numpy as np, pandas as pd, pytest
from scipy.stats import norm
from brainharmonix.core import BadInput
from brainharmonix.cohort import deal, id_hash, kfold, manifest, split
from brainharmonix.simulate import SimConfig, bayes, latents, simulate
from brainharmonix.bench.probe import compare, fc_features, out_of_fold, probe, project, verdict


def table(n=50, seed=0):
    rng = np.random.default_rng(seed)
    m = pd.DataFrame(dict(subject=[f'{i:03d}' for i in range(n)], session=1, site=rng.choice(list('ABCDE'), n), label=rng.integers(0, 2, n)))
    return pd.concat([m, m[:n//3].assign(session=2)]).sample(frac=1, random_state=seed).reset_index(drop=True)

@pytest.mark.parametrize('seed', range(20))
def test_no_subject_on_both_sides(seed):
    m = table(12 + 9*seed, seed)
    for parts in [list(split(m, seed=seed).values())] + [list(f) for f in kfold(m, 4, seed)]:
        who = [set(m.subject[p]) for p in parts]
        assert sum(map(len, who)) == len(set.union(*who)) and sorted(np.concatenate(parts)) == list(range(len(m)))
    tests = [b for _,b in kfold(m, 4, seed)]
    assert sorted(np.concatenate(tests)) == list(range(len(m)))

@pytest.mark.parametrize('seed', range(20))
def test_every_part_has_its_share_of_every_stratum(seed):
    rng = np.random.default_rng(seed)
    strata, q = rng.integers(0, 7, rng.integers(20, 200)), rng.dirichlet([3, 3, 3])
    part = deal(strata, q, seed)
    assert (np.abs(np.bincount(part, minlength=3)-q*len(strata)) < 1.01).all()
    for k in set(strata): assert (np.abs(np.bincount(part[strata == k], minlength=3)-q*(strata == k).sum()) < 2.02).all()

def test_splits_depend_on_the_seed_and_on_nothing_else():
    m = table()
    assert all((a == b).all() for a,b in zip(split(m, seed=1).values(), split(m, seed=1).values()))
    assert any(len(a) != len(b) or (a != b).any() for a,b in zip(split(m, seed=1).values(), split(m, seed=2).values()))

def test_manifest_keeps_leading_zeros_and_refuses(tmp_path):
    f = tmp_path/'m.csv'; table().to_csv(f, index=False)
    assert set(manifest(f).subject) == set(table().subject)
    for bad in (lambda: split(table().drop(columns='label')), lambda: kfold(table(3), 9), lambda: manifest([]), lambda: manifest([dict(session=1)]), lambda: kfold(table().assign(site=lambda m: m.session), by='site')):
        with pytest.raises(BadInput, match=r'; .*\.$'): bad()

def test_id_hash_is_of_the_set():
    assert id_hash(['b', 'a', 'a ']) == id_hash(['a', 'b']) != id_hash(['ab'])


@pytest.mark.parametrize('kw,q', [({}, (1, 1)), (dict(rho=-.4, a=1.5, b=.7, sigma=.3), (1, 1)), (dict(rho=.7, a=.4, sigma_score=2.), (.8, .95))])
def test_bayes_is_what_regression_on_the_latents_reaches(kw, q):
    cfg, rng, n = SimConfig(**kw), np.random.default_rng(2), 200_000
    z = latents(n, cfg, rng); B = bayes(cfg, q)
    obs = np.stack([c*z[k] + np.sqrt(1-c*c)*rng.standard_normal(n) for k,c in zip('sf', q)], 1)
    for k,cols in dict(structure=[0], function=[1], both=[0, 1]).items():
        p = obs[:,cols]@np.linalg.lstsq(obs[:,cols], z['score'], rcond=None)[0]
        assert abs(np.mean((p > 0) == z['label'])-B[k]['accuracy']) < .006
        assert abs(np.corrcoef(p, z['score'])[0,1]-B[k]['r']) < .006

def test_bayes_limits():
    sure = bayes(SimConfig(sigma=1e-9, sigma_score=1e-9))
    assert sure['both']['accuracy'] > .9999 and sure['both']['auc'] > .9999 and sure['both']['r2'] > .9999
    assert abs(bayes(SimConfig(a=0., b=1., rho=0.))['structure']['accuracy']-.5) < 1e-9
    b = bayes(SimConfig()); assert b['structure']['accuracy'] < b['both']['accuracy'] > b['function']['accuracy']

@pytest.fixture(scope='module')
def cohort(): return simulate(SimConfig.smoke(subjects=8, repeat=.25))

def test_scans_depend_on_seed_and_session_alone(cohort):
    other = simulate(cohort.cfg); order = (5, 1)
    for i in order: assert np.array_equal(other.bold(i)[0], cohort.bold(i)[0]) and np.array_equal(other.t1(i), cohort.t1(i))
    assert not np.array_equal(simulate(SimConfig.smoke(subjects=8, repeat=.25, seed=1)).bold(1)[0][:,:50], cohort.bold(1)[0][:,:50])
    again = int(np.flatnonzero(cohort.manifest.session == 2)[0]); first = int(np.flatnonzero(cohort.manifest.subject == cohort.manifest.subject[again])[0])
    assert cohort.truth.s[first] == cohort.truth.s[again] and cohort.manifest.site[first] != cohort.manifest.site[again]
    like = [np.corrcoef(cohort.t1(first).ravel(), cohort.t1(i).ravel())[0,1] for i in range(8) if i != first]
    assert np.corrcoef(cohort.t1(first).ravel(), cohort.t1(again).ravel())[0,1] > max(like)  # one brain, two scanners

def test_shapes_scale_and_words(cohort):
    m = cohort.manifest
    assert set(m.data) == {'simulated'} and len(cohort.names) == 400 and cohort.order == '7' and sorted(set(m.tr)) == [.735, .8, 2., 2.5]
    for i in range(4):
        x, tr = cohort.bold(i)
        assert x.shape == (400, m.frames[i]) and x.dtype == np.float32 and tr == m.tr[i] and np.abs(x.mean(1)).max() < 1e-4 and np.abs(x.std(1)-1).max() < 1e-3
    v = cohort.t1(0); assert v.shape == (80, 96, 80) and v.dtype == np.float32 and abs(v[v != 0].std()-1) < 1e-2

def test_another_tr_is_the_same_brain(cohort):
    a, b = cohort.bold(0, tr=.8)[0], cohort.bold(0, tr=2.4)[0]
    n = min(b.shape[1], a[:,1::3].shape[1])  # frame centres coincide; noise is the scanner's, drawn anew
    r = np.mean([np.corrcoef(p[1::3][:n], q[:n])[0,1] for p,q in zip(a, b)])
    assert r > .75

def test_homologous_parcels_and_latents_show():
    few = simulate(SimConfig(subjects=6, minutes=(8.,)*4, noise=(0.,)*4))
    for i in range(6): few.truth.loc[i, ['f', 'gamma', 'theta']] = [(-2., 2.)[i % 2], 0., 0.]
    fc = [np.corrcoef(few.bold(i)[0]) for i in range(6)]
    assert np.mean([c[:200,200:].max(1).mean() for c in fc]) > .4
    near = [np.abs(c).mean() for c in fc]
    assert min(near[1::2]) > max(near[::2])  # a larger scale r couples more of the cortex

def test_precompute_resumes_and_equals_fresh(tmp_path):
    cfg = SimConfig.smoke(subjects=2); a, b = simulate(cfg, tmp_path), simulate(cfg)
    folder = a.precompute(); (folder/'bold-00001.npy').unlink(); stamp = (folder/'t1-00000.npy').stat().st_mtime_ns
    a.precompute()
    assert (folder/'t1-00000.npy').stat().st_mtime_ns == stamp and len(list(folder.iterdir())) == 4
    assert np.array_equal(a.bold(1)[0], b.bold(1)[0]) and np.array_equal(a.t1(1), b.t1(1))


def test_projection_is_exact():
    rng = np.random.default_rng(0); A, B = rng.standard_normal((20, 300)), rng.standard_normal((5, 300)); A[:,7] = 3.
    a, b = project(A, B)
    sd = np.where(A.std(0) > 0, A.std(0), np.inf)*np.sqrt(300); x, y = (A-A.mean(0))/sd, (B-A.mean(0))/sd
    assert a.shape[1] <= 20 and np.allclose(a@a.T, x@x.T, atol=1e-9) and np.allclose(b@a.T, y@x.T, atol=1e-9)

def test_near_bayes_on_gaussians_and_chance_on_permuted_labels():
    rng = np.random.default_rng(0); n, d = 1000, 1.2
    y = rng.integers(0, 2, n); X = rng.standard_normal((n, 5)); X[:,0] += d*y
    kw = dict(repeats=1, boots=300)
    assert abs(probe(X, y, np.arange(n), **kw)['scores']['balanced_accuracy']-norm.cdf(d/2)) < .03
    nulls = [probe(X[:150], rng.permutation(y[:150]), np.arange(150), **kw)['scores']['balanced_accuracy'] for _ in range(5)]
    assert abs(np.mean(nulls)-.5) < .07
    e = rng.standard_normal(n); t = X[:,0]+e; assert abs(probe(X, t, np.arange(n), 'score', **kw)['scores']['r2']-(1-e.var()/t.var())) < .02

def test_identity_does_not_leak():
    rng = np.random.default_rng(3); who = np.repeat(np.arange(50), 4); y = rng.integers(0, 2, 50)[who]
    X = rng.standard_normal((50, 30))[who]
    kw = dict(repeats=1, boots=50)
    assert probe(X, y, np.arange(200), **kw)['scores']['balanced_accuracy'] > .8 > .66 > probe(X, y, who, **kw)['scores']['balanced_accuracy']
    _, fold = out_of_fold(X, y, who, 'label', 5, 0)
    assert (pd.Series(fold).groupby(who).nunique() == 1).all()

def test_three_classes_and_an_uneven_one():
    rng = np.random.default_rng(1); y = rng.choice(3, 300, p=[.6, .3, .1]); X = rng.standard_normal((300, 4)); X[:,0] += 5*(y == 1); X[:,1] += 5*(y == 2)
    s = probe(X, y, np.arange(300), repeats=1, boots=50)['scores']
    assert s['balanced_accuracy'] > .9 and s['auc'] > .97
    t = compare(dict(FC=X, tokens=X), y, np.arange(300), repeats=1, boots=50).set_index('features')
    assert t.balanced_accuracy['majority class'] == pytest.approx(1/3) and t.gain['tokens'] == 0

def test_verdict_does_not_flatter():
    rng = np.random.default_rng(0); n = 300; y = rng.integers(0, 2, n)
    good, weak, noise = (rng.standard_normal((n, 4)) + k*y[:,None] for k in (2., .5, 0.))
    kw = dict(repeats=1, boots=300)
    t = compare({'good tokens':good, 'same':weak, 'noise':noise, 'FC':weak}, y, np.arange(n), bayes(SimConfig()), **kw)
    assert '"good tokens" beats functional connectivity' in verdict(t) and 'simulated' in verdict(t) and '0.85' in verdict(t)
    assert 'does not beat functional connectivity' in verdict(t, 'same') and 'chance' not in verdict(t, 'same')
    assert 'does not beat functional connectivity' in verdict(t, 'noise') and 'not shown to be above chance' in verdict(t, 'noise')
    assert 'was not compared with functional connectivity' in verdict(compare(dict(tokens=good), y, np.arange(n), **kw))
    with pytest.raises(BadInput): verdict(t, 'FC')

def test_fc_features_are_fisher_z():
    rng = np.random.default_rng(0); x = rng.standard_normal((5, 200))
    assert np.allclose(np.tanh(fc_features(x)), np.corrcoef(x)[np.triu_indices(5, 1)], atol=1e-5)
    gone = np.arange(200) < 9; assert np.allclose(fc_features(np.where(gone, 99, x), gone), fc_features(x[:,~gone]), atol=1e-5) and np.allclose(fc_features(np.where(gone, np.nan, x)), fc_features(x[:,~gone]), atol=1e-5)
    for bad in (np.ones((4, 9)), np.full((4, 9), np.nan), np.zeros(4)):
        with pytest.raises(BadInput): fc_features(bad)
