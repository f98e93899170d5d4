"Simple baselines: closed forms, equal paths, what is fitted where, and that the guards find it"
from functools import partial
import numpy as np, pandas as pd, pytest, warnings
from scipy.linalg import logm, sqrtm
from sklearn.covariance import LedoitWolf
from sklearn.cross_decomposition import CCA
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.svm import SVC
from common import refused
from brainharmonix.preprocess.bold import Bold
from brainharmonix.bench import fusion
from brainharmonix.bench.arena import FC_ROW, People, Protocol, enter, guarded, learns, splits_of, standings, toy_people
from brainharmonix.bench.connectivity import COVARIANCE, LAMBDAS, REFERENCES, ComBat, Harmonise, KernelRidge, Tangent, covariance_of, kernel_ridge, tangent_at, unit_rows
from brainharmonix.bench.fusion import Canonical, CCAFusion, LateFusion, parcels_of, simple_systems
from brainharmonix.bench.probe import Linear, Span
from brainharmonix.bench.simple import Confounds, Encoder, Majority, SitePrior, confounds_of, inner_folds, ridge_classifier, svm

KINDS = 'binary', 'multiclass', 'regression'
FC, T1 = partial(Linear, 'edges'), partial(Linear, 't1_blocks')
FUSE = partial(LateFusion, FC, T1)
def everybody(view): p = view.people.part.__closure__[0].cell_contents; return p.view(np.arange(len(p)))  # breaks in: a view has no way to all people

def thirds(p):
    r = next(iter(splits_of(p, Protocol(splits=1)).values()))
    return p.view(r['train']), p.view(r['val']), p.view(r['test'], labels=False)

# every system learns, is at chance on dealt labels, and sees nothing of the test rows

SYSTEMS = dict(confounds=Confounds, with_confounds=partial(Confounds, None, 'edges'), svm=partial(Linear, 'edges', svm), ridge_classifier=partial(Linear, 'edges', ridge_classifier),
               tangent=Tangent, tangent_thin=partial(Tangent, 'log-euclidean', 10, 8), tangent_geometric=partial(Tangent, 'geometric', regions=6), kernel=partial(KernelRidge, folds=5), combat=ComBat, late=partial(LateFusion, FC, T1, folds=2), cca=CCAFusion)

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', SYSTEMS)
def test_a_system_learns(name, kind):
    if name == 'ridge_classifier' and kind == 'regression': pytest.skip('a classifier')
    make, p = SYSTEMS[name], toy_people(60, kind, confound=3. if 'confounds' in name else 0.)
    train, val, test = thirds(p); s = make().fit(train, val, 0); y = p.y[test.rows]; q = s.predict(test)
    assert (np.corrcoef(q, y)[0,1] > .75) if kind == 'regression' else (q.argmax(1) == y).mean() > (.75 if kind == 'binary' else .6)
    if kind != 'regression': assert q.shape == (len(test), len(p.classes)) and np.allclose(q.sum(1), 1) and (q >= 0).all()
    assert s.size() > 0 and s.config
    assert np.array_equal(make().fit(train, val, 0).predict(test), q)                       # the same seed, the same prediction
    assert np.allclose(s.predict(test.take(np.array([2]))), q[2:3], atol=1e-6)              # a row alone

@pytest.mark.parametrize('name', SYSTEMS)
def test_a_system_is_guarded(name):
    assert guarded(SYSTEMS[name], toy_people(40, signal=1., confound=1.)) == dict(labels=0., others=0.)

@pytest.mark.parametrize('name', ['confounds','svm','tangent','kernel','combat','late'])
def test_dealt_labels_are_at_chance(name):
    score = []
    for seed in range(2):
        p = toy_people(120, shuffled=True, seed=seed, confound=1.); train, val, test = thirds(p)
        score.append((SYSTEMS[name]().fit(train, val, seed).predict(test).argmax(1) == p.y[test.rows]).mean())
    assert abs(np.mean(score)-.5) < 3*.5/np.sqrt(2*len(test))

# counting

def test_majority_and_the_site_prior_are_counts():
    p = toy_people(60, 'multiclass', signal=1.); train, val, test = thirds(p); both = train+val
    m, s = Majority().fit(train, val, 0), SitePrior().fit(train, val, 0)
    assert np.allclose(m.predict(test), np.bincount(both.y)/len(both))
    a = both.y[both.table.site.eq('A')]; assert np.allclose(s.predict(test)[test.table.site.eq('A')], (np.bincount(a, minlength=3)+1)/(len(a)+3))
    test.table['site'] = 'nowhere'; assert np.allclose(s.predict(test), m.predict(test))
    t = standings(enter(p, dict(m=Majority), Protocol(splits=2)), boots=2); assert np.isclose(t.balanced_accuracy[0], 1/3) and t.auc[0] == .5 and t.mcc[0] == 0
    p = toy_people(60, 'regression'); train, val, test = thirds(p); both = train+val; b = both.y[both.table.site.eq('B')]
    assert np.allclose(Majority().fit(train, val, 0).predict(test), both.y.mean())
    assert np.isclose(SitePrior().fit(train, val, 0).at['B'], (b.sum()+both.y.mean())/(len(b)+1))
    t = standings(enter(p, dict(m=Majority), Protocol(splits=2)), boots=2); assert np.isnan(t.r[0]) and t.r2[0] <= 0

# confounds

def test_missing_values_are_the_training_median_and_a_flag_and_new_sites_are_zeros():
    m = pd.DataFrame(dict(age=[1., 2, 9, np.nan], mean_fd=[.1, .2, .3, .4], site=list('AABC'), sex=['F', 'M', None, 'F'], frames=[90, 120, 150, 60], tr=2.))
    cols = 'age', 'mean_fd', 'minutes', 'site', 'sex'; e = Encoder(confounds_of(m, cols)); names = [n.split('__')[1] for n in e.maker.get_feature_names_out()]
    new = pd.DataFrame(dict(age=[None, 5], mean_fd=[np.nan, .5], site=['Z', 'A'], sex=['M', 'X'], frames=[30, 30], tr=[2., 4.]))
    x = pd.DataFrame(e(confounds_of(new, cols)), columns=names)
    assert x.age.tolist() == [2, 5] and x.missingindicator_age.tolist() == [1, 0] and np.allclose(x.mean_fd, [.25, .5]) and np.allclose(x.minutes, [1, 2])
    assert x.filter(like='site_').sum(axis=1).tolist() == [0, 1] and x.filter(like='sex_').sum(axis=1).tolist() == [1, 0] and x.site_A[1] == 1
    assert e(confounds_of(m, cols))[2, names.index('sex_unknown')] == 1

def test_the_encoder_never_sees_test_ages():
    p = toy_people(60, confound=2.); train, val, test = thirds(p); p.table.loc[test.rows, 'age'] = 1e6
    c = Confounds('age').fit(p.view(train.rows), p.view(val.rows), 0)
    assert c.spans[0].mu[0] < 100

# equal paths

def test_the_span_gives_the_scores_of_all_features():
    rng = np.random.default_rng(0); X, B, y = rng.standard_normal((30, 300)), rng.standard_normal((8, 300)), np.arange(30) % 2
    s, flat = Span(X), lambda x: (x-X.mean(0))/X.std(0)/np.sqrt(300)
    for C in (.01, 1, 100):
        a, b = SVC(kernel='linear', C=C, tol=1e-10).fit(s(X), y), SVC(kernel='linear', C=C, tol=1e-10).fit(flat(X), y); assert np.allclose(a.decision_function(s(B)), b.decision_function(flat(B)), atol=1e-7)
        a, b = (LogisticRegression(C=C, tol=1e-10, max_iter=2000).fit(f(X), y).decision_function(f(B)) for f in (s, flat)); assert np.allclose(a, b, atol=1e-4*np.abs(b).max())
        a, b = (Ridge(alpha=1/C).fit(f(X), y).predict(f(B)) for f in (s, flat)); assert np.allclose(a, b, atol=1e-8)

def test_probabilities_of_a_machine_follow_its_margin():
    p = toy_people(60, signal=1.); train, val, test = thirds(p); s = Linear('edges', svm).fit(train, val, 0)
    z = s.model.calibrated_classifiers_[0].estimator.decision_function(s.spans[0](s.x(test)[0])); q = s.predict(test)[:,1]
    assert (np.argsort(z) == np.argsort(q)).all() and 0 < q.min() and q.max() < 1

def test_inner_folds_keep_subjects_together_and_have_all_classes():
    y, who = np.array([0]*40+[1]*6), np.arange(46)//2
    cv = inner_folds(y, who, 'label'); assert len(cv) == 3 and sorted(np.concatenate([b for _,b in cv])) == list(range(46))
    assert all(not set(who[a]) & set(who[b]) and len(set(y[b])) == 2 for a,b in cv)

# tangent space

def test_the_tangent_map_is_the_log_of_the_whitened_covariance():
    rng = np.random.default_rng(1); S = [a@a.T/20 for a in rng.standard_normal((6, 5, 20))]
    for how,ref in REFERENCES.items():
        G = ref(S); W = np.linalg.inv(sqrtm(G)); v = tangent_at(G).transform(S)
        for s,x in zip(S, v):
            V = logm(W@s@W); V[np.diag_indices(5)] /= np.sqrt(2); assert np.allclose(x, V[np.tril_indices(5)], atol=1e-6), how
    W = np.linalg.inv(sqrtm(REFERENCES['geometric'](S))); assert np.abs(np.mean([logm(W@s@W) for s in S], 0)).max() < 1e-4  # the mean of the logs is zero: what makes it the geometric mean
    D = [np.diag(d) for d in rng.gamma(2, 1, (5, 4))+.2]; mean = np.exp(np.mean([np.log(np.diag(d)) for d in D], 0))
    assert np.allclose(np.diag(REFERENCES['geometric'](D)), mean, atol=1e-5) and np.allclose(np.diag(REFERENCES['log-euclidean'](D)), mean)

def test_covariances_are_ledoit_wolf_of_the_frames_that_exist():
    rng = np.random.default_rng(2); x = rng.standard_normal((30, 25)).astype(np.float32); gone = np.arange(25) < 4
    z = (x[:,4:]-x[:,4:].mean(1, keepdims=True))/x[:,4:].std(1, keepdims=True)
    c = covariance_of(Bold(x, 2., gone)); assert np.allclose(c, LedoitWolf().fit(z.T).covariance_, atol=1e-4) and np.linalg.eigvalsh(c)[0] > 0
    refused(lambda: covariance_of(Bold(np.r_[np.ones((1, 25)), x[1:]].astype(np.float32), 2., source='run 7')), 'run 7', 'constant')

def test_the_reference_is_of_training_subjects_and_of_as_many_as_asked():
    p = toy_people(60); train, val, test = thirds(p); t = Tangent().fit(train, val, 0)
    assert np.allclose(t.G, np.mean([s for s in (train+val).part(COVARIANCE)], 0))
    few = Tangent(people=5, regions=8); few.fit(train, val, 3); assert few.G.shape == (8, 8) and not np.allclose(few.G, Tangent(regions=8).fit(train, val, 3).G)
    assert np.allclose(few.G, Tangent(people=5, regions=8).fit(train, val, 3).G) and few.size() == 8*9//2+1 + 8*9//2

# kernel ridge

@pytest.mark.parametrize('n,F', [(15, 80), (15, 6)])
def test_kernel_ridge_is_the_direct_solution(n, F):
    rng = np.random.default_rng(n); X = rng.standard_normal((n, F)); U = unit_rows(X); K = U@U.T; Y = rng.standard_normal((n, 2)); one = np.ones(n)
    assert np.allclose(K, np.corrcoef(X))
    lams = [l for l in LAMBDAS if l or F > n]; alpha, b = kernel_ridge(K, Y, lams)
    for l,a,c in zip(lams, alpha, b):
        M = np.linalg.inv(K+l*np.eye(n)); d = (one@M@Y)/(one@M@one)
        assert np.allclose(c, d, atol=1e-6) and np.allclose(a, M@(Y-d), atol=1e-6*np.abs(a).max())
    if F > n: assert np.allclose(K@alpha[0]+b[0], Y)            # without a penalty it goes through all points
    assert np.isfinite(kernel_ridge(K, Y, [0])[0]).all()        # also where the kernel has no inverse
    big = kernel_ridge(K, Y, [1e9]); assert np.allclose(K@big[0][0]+big[1][0], Y.mean(0), atol=1e-6)

def test_the_inner_folds_choose_penalty_and_threshold():
    p = toy_people(60, 'regression', signal=1.); train, val, test = thirds(p); k = KernelRidge().fit(train, val, 0)
    assert k.lam == LAMBDAS[k.cod.argmax()] and k.cod.max() > .3
    p = toy_people(100, signal=.5); y = (np.arange(100) % 5 == 0).astype(int)  # one in five: a threshold of 0 calls nobody
    uneven = People('uneven', p.table, y, 'binary', lambda i: p.scans(2*(i//2)+y[i]), ('a','b'), 'simulated')
    train, val, test = thirds(uneven); s = KernelRidge().fit(train, val, 0); zero = KernelRidge(thresholds=(0.,), lambdas=(20,)).fit(train, val, 0)
    assert s.threshold < 0 and zero.predict(test).argmax(1).sum() == 0 and s.predict(test).argmax(1).sum() > 0
    raw = s.x(test)@s.X.T@s.alpha+s.b; assert np.array_equal(s.predict(test).argmax(1), (raw[:,0] > s.threshold).astype(int))

# ComBat

def sites(n=400, F=150, seed=0):
    rng = np.random.default_rng(seed); at = rng.integers(0, 3, n); age = rng.standard_normal(n)+.5*at; slope = rng.standard_normal(F)
    X = age[:,None]*slope + 2*rng.standard_normal((3, F))[at] + rng.uniform(.5, 2, (3, F))[at]*rng.standard_normal((n, F))
    return X, at, age[:,None], slope

def test_after_combat_site_means_and_variances_agree_and_age_is_kept():
    X, at, age, slope = sites(); one = np.eye(3)[at]
    h = Harmonise(X, at, age, shrink=False); e = h(X, at, age)-age*h.beta
    assert all(np.allclose(e[at == s].mean(0), h.mean) and np.allclose(e[at == s].var(0, ddof=1), h.sd**2) for s in range(3))
    spread = lambda Y: np.array([np.std([f(Y[at == s]-age[at == s]*slope) for s in range(3)], 0).mean() for f in (lambda e: e.mean(0), lambda e: e.var(0))])
    b = Harmonise(X, at, age); Y = b(X, at, age); assert (spread(Y) < .15*spread(X)).all()
    beta = np.linalg.lstsq(np.c_[one, age], Y, rcond=None)[0][3]; assert np.abs(beta-slope).mean() < .1 and np.corrcoef(beta, slope)[0,1] > .99
    blind = Harmonise(X, at, age[:,:0])(X, at, age[:,:0]); lost = np.linalg.lstsq(np.c_[np.ones(400), age], blind, rcond=None)[0][1]
    kept = np.linalg.lstsq(np.c_[np.ones(400), age], Y, rcond=None)[0][1]; assert np.abs(kept-slope).mean() < np.abs(lost-slope).mean()  # without the covariate, what sites differ in age goes too

def test_combat_shrinks_by_the_equations_of_johnson():
    X, at, age, _ = sites(60); h = Harmonise(X, at, age, tol=1e-10); z = (X-h.mean-age@h.beta)/h.sd
    for s in range(3):
        g, d, n = z[at == s].mean(0), z[at == s].var(0, ddof=1), (at == s).sum(); t2, m, v = g.var(ddof=1), d.mean(), d.var(ddof=1); a, b = (2*v+m*m)/v, (m*v+m**3)/v
        G, D = h.gamma[s], h.delta[s]
        assert np.allclose(G, (n*t2*g+D*g.mean())/(n*t2+D), atol=1e-7) and np.allclose(D, (b+.5*((z[at == s]-G)**2).sum(0))/(n/2+a-1), atol=1e-7)  # a fixed point of the two conditional means
        assert np.var(G) < np.var(g)

def test_combat_and_neurocombat_agree():
    nc = pytest.importorskip('neuroCombat', reason='neuroCombat is not installed')
    X, at, age, _ = sites(90); r = nc.neuroCombat(dat=X.T, covars=pd.DataFrame(dict(site=at, age=age[:,0])), batch_col='site', continuous_cols=['age'])
    assert np.abs(r['data'].T-Harmonise(X, at, age)(X, at, age)).max() < 1e-5

def test_an_unseen_site_and_a_constant_feature_stay_as_they_are():
    X, at, age, _ = sites(60); X[:,3] = 1.; h = Harmonise(X, at, age)
    assert np.array_equal(h(X, ['elsewhere']*60, age), X) and (h(X, at, age)[:,3] == 1).all() and np.isfinite(h(X, at, age)).all()
    one = np.zeros(60); assert np.allclose(Harmonise(X, one, age)(X, one, age), X, atol=.2)  # one site: nothing but its own degrees of freedom

def test_combat_takes_the_site_away_and_leaves_the_class():
    p = toy_people(80, signal=1.); shift = np.where(p.table.site == 'A', 1, 0)
    def scans(i): b, t = p.scans(i); return Bold(b.x+2*shift[i]*np.random.default_rng(i).standard_normal(120).astype(np.float32), b.tr, source=b.source), t  # a global signal at one site
    q = People('sites', p.table, p.y, 'binary', scans, ('a','b'), 'simulated'); train, val, test = thirds(q); both = train+val
    c = ComBat().fit(train, val, 0); gap = lambda X: np.abs(X[both.table.site.eq('A')].mean(0)-X[both.table.site.eq('B')].mean(0)).mean()
    assert gap(c.x(both)[0]) < .3*gap(both.matrix('edges')) and (c.predict(test).argmax(1) == q.y[test.rows]).mean() > .7

# fusion

def test_late_fusion_gains_where_both_carry_signal():
    f, s = (toy_people(150, 'regression', seed=k) for k in (5, 6)); u = f.y+s.y
    for kind,y in dict(binary=(u > 0).astype(int), regression=u).items():
        p = People('halves', f.table, y, kind, lambda i: (f.scans(i)[0], s.scans(i)[1]), ('a','b') if kind == 'binary' else (), 'simulated')
        t = standings(enter(p, dict(fc=FC, t1=T1, both=FUSE), Protocol(splits=1)), boots=2).set_index('system')['auc' if kind == 'binary' else 'r2']
        assert t['both'] > max(t['fc'], t['t1']) + .02, (kind, t)

def test_a_member_of_noise_does_no_harm_and_stacks_hold_any_system():
    p = toy_people(60, signal=1.); train, val, test = thirds(p)
    s = LateFusion(FC, SitePrior, Confounds).fit(train, val, 0); assert (s.predict(test).argmax(1) == p.y[test.rows]).mean() > .8
    w = np.abs(s.model.coef_[0]); assert w[0] > 2*w[1:].max()
    class Frozen(Linear):
        def __init__(self): super().__init__('edges', seen=('a',), hashes=('h',))
    assert LateFusion(Frozen, FC).seen == ('a',) and LateFusion(Frozen, FC).hashes == ('h',)  # a leak of a member is a leak of the stack

def test_the_stack_is_weighed_on_rows_its_members_have_not_seen():
    asked, taught = [], []
    class Spy(Linear):
        def __init__(self): super().__init__('edges')
        def fit(self, train, val, seed): taught.append(set(train.rows)|set(val.rows)); return super().fit(train, val, seed)
        def predict(self, view): asked.append(set(view.rows)); assert view.y is None; return super().predict(view)
    p = toy_people(60); train, val, test = thirds(p); LateFusion(Spy).fit(train, val, 0)
    assert len(asked) == 5 and all(not a & b for a,b in zip(asked, taught)) and set.union(*asked) == set((train+val).rows)

def test_canonical_variates_are_those_of_the_closed_form():
    rng = np.random.default_rng(3); h = rng.standard_normal((300, 2)); A, B = (h@rng.standard_normal((2, k))+rng.standard_normal((300, k)) for k in (7, 9))
    U, V = Canonical(A, B, 2)(A, B); W = [np.linalg.svd(X-X.mean(0), full_matrices=False)[0] for X in (A, B)]
    assert np.allclose([np.corrcoef(u, v)[0,1] for u,v in zip(U.T, V.T)], np.linalg.svd(W[0].T@W[1])[1][:2], atol=1e-3)
    c = Canonical(rng.standard_normal((60, 200)), rng.standard_normal((60, 5)), 20); assert c.k == 5 and c.pca[0].n_components_ == 6

def test_t1_parcels_are_means_of_their_voxels():
    x = np.random.default_rng(0).standard_normal((20, 24, 20)).astype(np.float32); at = fusion._t1_labels(x.shape, 100); v = parcels_of(None, x)  # 8 mm
    assert v.shape == (100,) and all(np.isclose(v[k-1], x.ravel()[at == k].mean(), atol=1e-5) for k in set(at)-{0}) and len(set(at)) > 80
    refused(lambda: parcels_of(None, np.zeros((16, 16, 16))), '16', 't1_blocks')

# leaks: each guard, and what happens without it

class Best(Linear):
    "The ten edges that differ most among the rows of `from_whom`"
    def from_whom(self, both): return both
    def fit(self, train, val, seed): w = self.from_whom(train+val); self.best = SelectKBest(f_classif, k=10).fit(w.matrix('edges'), w.y); return super().fit(train, val, seed)
    def x(self, view): return [self.best.transform(view.matrix('edges'))]
class BestOfAll(Best):
    def from_whom(self, both): return everybody(both)
class TangentOfAll(Tangent):
    def refer(self, both, seed): return super().refer(everybody(both), seed)
class ComBatOfAll(ComBat):
    def learn(self, both): super().learn(everybody(both))
class ScaledByAsked(Confounds):
    def predict(self, test): self.spans[0].mu = self.x(test)[0].mean(0); return super().predict(test)
class PCAOfAll(CCAFusion):
    def fit(self, train, val, seed): super().fit(train, val, seed); e = everybody(train); self.canonical = Canonical(*self.raw(e), self.k); X = self.x(train+val); self.spans = [Span(x) for x in X]; return self

def test_features_chosen_outside_the_fold_make_noise_look_like_signal():
    noise = toy_people(100, shuffled=True, signal=0., regions=40)
    t = standings(enter(noise, dict(inside=partial(Best, 'edges'), outside=partial(BestOfAll, 'edges')), Protocol(splits=4)), versus='inside', boots=2).set_index('system').balanced_accuracy
    assert t['outside'] > .7 and t['inside'] < .62
    assert guarded(partial(BestOfAll, 'edges'), noise)['labels'] > 1e-3 and guarded(partial(Best, 'edges'), noise) == dict(labels=0., others=0.)

@pytest.mark.parametrize('leak', [TangentOfAll, ComBatOfAll, ScaledByAsked, PCAOfAll])
def test_a_guard_that_is_removed_is_missed(leak):
    assert guarded(leak, toy_people(40, 'regression', signal=1., confound=1.))['others'] > 1e-4  # an honest one moves by exactly 0

# names and refusals

@pytest.mark.parametrize('kind', KINDS)
def test_every_row_has_its_name_and_can_be_made(kind):
    s = simple_systems(kind); assert FC_ROW[kind] in s and type(s[FC_ROW[kind]]()) is Linear
    line = 'ridge' if kind == 'regression' else 'logistic regression'
    for n in ('site prior','confounds only','age only','sex only','site only','mean FD only','FC + SVM',f'tangent FC + {line}','kernel ridge',f'FC + ComBat + {line}',f'T1 blocks + {line}','late fusion of FC and T1','CCA of FC and T1'): assert n in s
    assert ('mean of the cohort' if kind == 'regression' else 'majority class') in s and ('FC + ridge classifier' in s) == (kind != 'regression')
    config = {n:(type(m()).__name__, str(m().config)) for n,m in s.items()}; assert len(set(config.values())) == len(config)  # no two rows are the same thing
    new = simple_systems(kind, loso=True, t1=False); assert not any('site' in n or 'T1' in n for n in new) and 'site' not in new['confounds only']().columns
    assert not {'age only','sex only','mean FD only'} & set(simple_systems(kind, pd.DataFrame(dict(subject=[1], site=['a']))))

def test_bad_input_is_one_sentence():
    toy = toy_people(40); v = toy.view(np.arange(30)), toy.view(np.arange(30, 40))
    refused(lambda: Confounds('iq'), 'iq'); refused(lambda: Confounds(['age','tiv']).fit(*v, 0), 'tiv'); refused(lambda: Confounds('minutes').fit(*(People('x', toy.table[['subject']], toy.y, 'binary', toy.scans, ('a','b')).view(np.arange(30)),)*2, 0), 'minutes')
    refused(lambda: Tangent('median'), 'median'); refused(lambda: Tangent(people=0), 'people=0'); refused(lambda: KernelRidge(lambdas=(-1,)), '-1'); refused(lambda: ComBat(keep=('site',)), 'site')
    refused(LateFusion, 'no members'); refused(lambda: CCAFusion(('edges',)), 'parts'); refused(lambda: CCAFusion(ks=()), 'components'); refused(lambda: simple_systems('ranking'), 'ranking')
    toy.table.loc[0, 'site'] = 'lone'; said = refused(lambda: ComBat().fit(toy.view(np.arange(30)), v[1], 0), 'lone', 'one training row')
    o = enter(toy, {'combat':ComBat, 'majority class':Majority}, Protocol(splits=1)); assert 'majority class' in o.runs   # the others go on
    refused(lambda: inner_folds(np.r_[np.zeros(9), 1, 1], np.arange(11), 'label'), '2 subjects')
