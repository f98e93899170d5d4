"The audit finds what is planted, does not find what is not, and says so"
import math, re
from dataclasses import replace
import numpy as np, pandas as pd, pytest
from scipy.stats import mannwhitneyu
from brainharmonix.bench.arena import Outcome, Part, toy_people
from brainharmonix.bench.audit import (CHANGES, READ, attack, audit, decodable, discriminability, examine, findings_changes, findings_groups, findings_members, findings_read, findings_retest,
                                       groups_of, hats, icc, identify, membership, moved, nearest, noisy, pval, rescanned, retest, robustness, shorter, shuffles, smoothed, coarser, subgroups, twice, u_null, weighed)
from brainharmonix.bench.metrics import scores
from brainharmonix.preprocess.bold import Bold
from common import refused
from test_report import Page

def table(n=60, per=1, seed=0, sites='ABC'):
    r = np.random.default_rng(seed); k = n//per
    return pd.DataFrame(dict(subject=np.repeat([f's{i}' for i in range(k)], per), site=np.repeat(np.array(list(sites))[np.arange(k) % len(sites)], per), age=np.repeat(r.normal(40, 10, k), per),
                             sex=np.repeat(r.permutation(np.resize(['F','M'], k)), per), tr=2., mean_fd=np.repeat(r.lognormal(-2, .5, k), per)))

def planted(m, seed=0):
    r = np.random.default_rng(seed); X = r.standard_normal((len(m), 30))
    return X, X + np.pad(2.*(m.site.to_numpy()[:,None] == np.unique(m.site)), ((0, 0), (0, 30-m.site.nunique()))) + np.eye(30)[9]*(m.age.to_numpy()[:,None]-40)/4

# What can be read

def test_hat_rows_sum_to_one_and_penalty_shrinks():
    r = np.random.default_rng(0); A, B = r.standard_normal((12, 40)), r.standard_normal((4, 40)); y = r.standard_normal(12)
    on, off = hats(A, B, [1e-12, 1e9])
    assert np.allclose(on.sum(2), 1) and np.allclose(off.sum(2), 1)                       # a constant stays a constant
    assert np.allclose(on[0]@y, y, atol=1e-6) and np.allclose(off[1]@y, y.mean(), atol=1e-5) # interpolates without a penalty, the mean with an endless one

def test_found_and_not_found():
    m = table(60, 2); blank, full = planted(m); t = decodable(dict(full=full, blank=blank), m, n=200, boots=100); v = t.set_index(['what','features'])
    assert v.p_holm['site','full'] < .05 and v.value['site','full'] > .6 and v.low['site','full'] > 1/3 and v.p_holm['age','full'] < .05 and v.value['age','full'] > .25
    assert (v.p_holm.drop([('site','full'), ('age','full')]) > .05).all()
    assert v.chance['site','full'] == 1/3 and v.chance['age','full'] == 0 and (t.subjects == 30).all()
    said = findings_read(t, 'full')
    assert said[0].startswith('Site can be read from full: balanced accuracy') and 'chance 33 %' in said[0] and 'from blank' in said[0] and 'Sex is not shown to be readable' in ' '.join(said)

def test_p_values_are_uniform_where_there_is_nothing():
    "Sessions of one subject are alike, classes are of unequal size; a reader or a null that leaks would pile up small p values"
    p = []
    for s in range(30):
        m = table(120, 6, s, 'AAB'); r = np.random.default_rng(1000+s); X = np.repeat(r.standard_normal((20, 10)), 6, 0) + .2*r.standard_normal((120, 10))
        p.append(decodable(dict(x=X), m, dict(site='label', age='score'), deals=1, n=39, boots=4, seed=s).p)
    p = np.array(p); assert (p <= .05).mean() < .13 and .4 < p.mean() < .6

def test_repeated_sessions_are_no_leak():
    "Features that only name the person say nothing of a label dealt to persons"
    m = table(80, 4); X = np.repeat(np.eye(20), 4, 0)
    t = decodable(dict(x=X), m, dict(sex='label'), n=60, boots=10); assert t.p[0] > .05 and t.value[0] < .65

def test_columns_that_cannot_be_asked():
    m = table(60); m.loc[:2, 'site'] = ['x','y','z']; m.loc[3:5, 'age'] = np.nan; m['scanner'] = ['one']*59 + ['two']; blank, _ = planted(m)
    t = decodable(dict(x=blank), m, READ, n=20, boots=10)
    assert set(t.attrs['skipped']) == {'scanner','tr','minutes'} and 'not in the table' in t.attrs['skipped']['minutes'] and 'same for everybody' in t.attrs['skipped']['tr']
    assert 'left out' in t.attrs['notes']['site'] and '3 rows' in t.attrs['notes']['age'] and t.set_index('what').subjects['age'] == 57
    m.loc[:5, 'site'] = list('uvwxyz'); t = decodable(dict(x=blank), m, dict(site='label'), n=20, boots=10)
    assert 'merged' in t.attrs['notes']['site'] and t.classes[0] == 4
    m['tr'] = m.site.map({k:1.+i for i,k in enumerate(sorted(set(m.site)))}); assert 'one TR' in decodable(dict(x=blank), m, dict(tr='score'), n=9, boots=4).attrs['notes']['tr']

def test_shuffles_keep_subjects_whole():
    who = np.array(['a','b','a','c','d','d']); s = shuffles(who, 300); v = np.array([10, 5, 11, 6, 20, 21])[s]
    assert (s[0] == np.arange(6)).all() and ({tuple(p) for p in v[:,[0,2]]} == {tuple(p) for p in v[:,[4,5]]} == {(10,11),(20,21)}) and set(v[:,1]) == {5,6}

# Subgroups

def told(people, p, name='it'): return Outcome(people, {'all':dict(test=np.arange(len(people)))}, {name:{'all':dict(p=p)}})

def soft(y, right, sure=.75): g = np.where(right, y, 1-y); return np.eye(2)[g]*(2*sure-1) + 1-sure

def test_gap_found_and_not_found():
    p = toy_people(300, seed=3); r = np.random.default_rng(0)
    t = subgroups(told(p, soft(p.y, r.random(300) < np.where(p.table.sex == 'F', .95, .6))), 'it'); g = t.attrs['gaps'].set_index(['by','what'])
    assert g.p_holm['sex','score'] < .05 and g.worst['sex','score'] == 'M' and (g.p.xs('score', level='what').drop('sex') > .02).all()
    assert set(t.by) == {'sex','site','age','mean_fd'} and (t[t.by == 'age'].subjects == 100).all() and t.low.lt(t.score).all() and t.high.gt(t.score).all()
    assert any(s.startswith('Balanced accuracy differs by sex') and 'between M and F' in s for s in findings_groups(t))
    assert 'not shown to differ by site' in ' '.join(findings_groups(t))

def test_equal_groups_are_called_unequal_as_rarely_as_promised():
    few = 0
    for s in range(40):
        p = toy_people(90, seed=s); r = np.random.default_rng(s); t = subgroups(told(p, soft(p.y, r.random(90) < .75)), 'it', by=('sex',), boots=2, n=99, seed=s); few += t.attrs['gaps'].p[0] <= .05
    assert few <= 7

def test_prevalence_is_no_gap():
    "Where one group has few controls and the other few patients, their scores scatter more than those of mixed groups: the null must know"
    sex, few = np.r_[np.repeat(['F','M'], [27, 3]), np.repeat(['F','M'], [3, 27])], 0
    for s in range(40):
        p = toy_people(60, seed=s); p.table['sex'] = sex[np.argsort(np.argsort(p.y, kind='stable'), kind='stable')]
        g = subgroups(told(p, soft(p.y, np.random.default_rng(s).random(60) < .7)), 'it', by=('sex',), boots=2, n=99, seed=s).attrs['gaps'].set_index('what'); few += g.p['score'] <= .05
    assert few <= 6

def test_weights_of_one_are_the_plain_metrics():
    r = np.random.default_rng(0); p = r.dirichlet([1,1,1], 80); y = r.integers(0, 3, 80); w, s = weighed('multiclass', p, y, np.ones((1, 80))), scores('multiclass', p, y)
    assert np.isclose(w['score'][0], s['balanced_accuracy']) and np.isclose(w['ece'][0], s['calibration_error'], atol=1e-6) and np.isclose(w['bias'][0], p.max(1).mean() - s['accuracy'])
    x, z = r.standard_normal((2, 50)); w = weighed('regression', x, z, np.ones((1, 50))); assert np.isclose(w['score'][0], scores('regression', x, z)['mae']) and np.isclose(w['bias'][0], (x-z).mean())

def test_miscalibration_of_one_group():
    p = toy_people(400, seed=5); r = np.random.default_rng(0); q = soft(p.y, r.random(400) < .7, .7); m = (p.table.sex == 'M').to_numpy(); q[m,1] = np.clip(q[m,1]+.25, 0, .98); q[m,0] = 1-q[m,1]
    t = subgroups(told(p, q), 'it', by=('sex',)); g = t.attrs['gaps'].set_index('what'); v = t.set_index('group')
    assert g.p['bias'] < .01 and v.bias['M'] > .15 > abs(v.bias['F']) and v.ece['M'] > v.ece['F'] and np.isfinite(v.ece_chance).all()

def test_regression_subgroups_and_skips():
    p = toy_people(150, 'regression', seed=1); r = np.random.default_rng(0); q = p.y + r.standard_normal(150)*np.where(p.table.sex == 'F', .1, 1.5)
    p.table['one'] = 'x'; t = subgroups(told(p, q), 'it', by=('sex','one','handedness')); g = t.attrs['gaps'].set_index(['by','what'])
    assert g.worst['sex','score'] == 'M' and g.p_holm['sex','score'] < .05 and set(t.attrs['skipped']) == {'one','handedness'} and 'ece' not in t
    refused(lambda: subgroups(told(p, q), 'nobody'), 'nobody')

def test_thirds():
    m = pd.DataFrame(dict(subject=[f's{i//2}' for i in range(60)], age=np.repeat(np.arange(30.), 2))); g = groups_of(m, 'age')
    assert sorted(pd.Series(g).value_counts()) == [20,20,20] and (g[::2] == g[1::2]).all()

# Membership

def test_u_is_exact():
    for m,n in ((1,1),(2,3),(5,4),(7,7)):
        f = u_null(m, n); assert len(f) == m*n+1 and np.isclose(f.sum(), 1) and np.allclose(f, f[::-1]) and np.isclose(f[0], 1/math.comb(m+n, m))
    r = np.random.default_rng(0)
    for k in range(5): a, b = r.standard_normal(11)+.3*k, r.standard_normal(8); assert np.isclose(attack(a, b)['p'], mannwhitneyu(a, b, method='exact').pvalue)
    a, b = r.standard_normal(120), r.standard_normal(110); t = attack(a, b); assert np.isclose(t['p'], mannwhitneyu(a, b, method='asymptotic').pvalue, rtol=1e-6) # beyond 10,000 pairs

def test_null_interval_holds_95_percent():
    f = u_null(9, 8); t = attack(range(9), range(8)); U = np.arange(73)/72
    inside = f[(U >= t['null_low']-1e-9)&(U <= t['null_high']+1e-9)].sum(); assert .95 <= inside < .97

def test_memorising_and_honest():
    r = np.random.default_rng(2); a, b = r.standard_normal((2, 40, 20)); near = lambda v: np.abs(v[:,None]-a-.05).sum(2).min(1)
    t = membership(dict(memory=(near(a), near(b)), honest=((a**2).sum(1), (b**2).sum(1))), dict(x=(a, b)), n=200).set_index('attack')
    assert t.auc['memory'] > .99 and t.p_holm['memory'] < .001 and (t.p_holm.drop('memory') > .05).all() and .3 < t.auc['honest'] < .7
    assert 'Training subjects can be told from strangers by memory: AUC 1.00' in findings_members(t.reset_index())[0] and 'are not shown to be told' in findings_members(t.reset_index())[1]
    shift = membership(sets=dict(x=(a+.8, b)), n=200).set_index('attack'); assert shift.p_holm['linear reader, x'] < .05 and shift.auc['linear reader, x'] > .8

def test_packed_members_are_near():
    r = np.random.default_rng(0); hub = r.standard_normal((5, 10)); a = hub[np.arange(30) % 5] + .01*r.standard_normal((30, 10)); b = r.standard_normal((30, 10))
    assert attack(*nearest(a, b))['auc'] > .99

def test_linear_attack_is_fair():
    p = [membership(sets=dict(x=tuple(np.random.default_rng(s).standard_normal((2, 20, 8)))), n=59, seed=s).p for s in range(40)]
    p = np.array(p); assert (p <= .05).mean() < .13 and .38 < p.mean() < .62

# Retest

def test_icc_of_shrout_and_fleiss():
    v = icc([[9,2,5,8],[6,1,3,2],[8,4,6,8],[7,1,2,6],[10,5,6,9],[6,2,4,7]]); assert round(v['icc31'][0], 2) == .71 and round(v['icc21'][0], 2) == .29

def test_icc_extremes():
    r = np.random.default_rng(0); a, e = r.standard_normal((50, 200)), r.standard_normal((50, 200)); two = lambda x, y: np.stack([x, y], 1)
    assert np.allclose(icc(two(a, a))['icc31'], 1) and np.allclose(icc(two(a, a+5))['icc31'], 1) and np.median(icc(two(a, a+5))['icc21']) < .2 and abs(np.median(icc(two(a, e))['icc31'])) < .05
    assert np.allclose(icc(two(a, -a))['icc31'], -1, atol=.1) and np.isnan(icc(np.ones((5, 2, 1)))['icc31']).all()

def test_identification():
    r = np.random.default_rng(1); a = r.standard_normal((20, 50)); v = identify(a, a+.1*r.standard_normal(a.shape)); assert v['identified'] == v['forward'] == v['backward'] == 1 and v['p'] < .001
    four = identify(a[:4], a[:4]); assert np.isclose(four['p'], 1/24) # one of 24 pairings does as well
    p = [identify(*r.standard_normal((2, 6, 30)))['p'] for _ in range(60)]; assert np.mean(np.array(p) <= .05) < .15 and min(p) >= 1/720
    swap = identify(a[:5], a[[1,2,3,4,0]]); assert swap['identified'] == 0 and swap['p'] == 1

def test_discriminability_by_hand():
    assert discriminability(np.array([[0.],[10.]]), np.array([[1.],[11.]])) == 1
    assert discriminability(np.array([[0.],[1.]]), np.array([[10.],[11.]])) == .25 # of 0 and 11 one of two others lies further off than they do, of 1 and 10 none
    r = np.random.default_rng(0); assert abs(discriminability(*r.standard_normal((2, 60, 20)))-.5) < .05

def test_retest_rows():
    r = np.random.default_rng(0); a = r.standard_normal((30, 40)); t = retest(dict(same=(a, a), noise=(a, r.standard_normal(a.shape))), boots=100, n=500).set_index('features')
    assert t.icc31['same'] == t.good['same'] == 1 and abs(t.icc31['noise']) < .15 and t.low['noise'] < 0 < t.high['noise']
    said = findings_retest(t.reset_index(), 'same'); assert 'Test-retest over 30 people: median ICC(3,1) of same 1.00' in said[0] and said[1].startswith('Same find a person again: 100 %') and 'noise' in said[1]
    m = pd.DataFrame(dict(subject=['b','a','b','c','a'], session=[2,1,1,1,2])); assert [v.tolist() for v in twice(m)] == [[1,2],[4,0]]

# Robustness

X = dict(FC='edges', t1=Part('t1-sum', lambda b, t: np.ravel(t[::4,::4,::4]), ('t1',)))

def test_changes_do_what_they_say():
    g = lambda: np.random.default_rng(0); x = np.random.default_rng(1).standard_normal((20, 4000)).astype('f4'); b = Bold(3*x, 2., missing=np.zeros(4000, bool)); t = np.random.default_rng(2).random((12, 16, 12))
    out = noisy(4)(0, b, t, g())[0].x; assert np.allclose((b.x.var(1)/(out-b.x).var(1)), 4, rtol=.15)
    n = moved(.5)(0, b, t, g())[0]; assert np.isclose(n.fd[n.fd > 0].mean(), .5, rtol=.25) and (n.fd > 0).sum() == 200 and n.fd[0] == 0 and np.allclose(n.x[:,0], b.x[:,0]) and not np.allclose(n.x, b.x)
    h = shorter(.25)(0, b, t, g())[0]; assert h.x.shape == (20, 1000) and h.missing.shape == (1000,) and np.array_equal(h.x, b.x[:,:1000])
    assert smoothed(3)(0, b, t, g())[1].std() < .6*t.std() and coarser(2)(0, b, t, g())[1].shape == t.shape and coarser(2)(0, b, t, g())[1].std() < t.std()
    assert all(np.array_equal(f(0, b, t, g())[0].x, f(0, b, t, g())[0].x) for f in (noisy(1), moved(1.))) and CHANGES['BOLD only'](0, b, t, g()) == (b, None)
    assert noisy(1)(0, None, t, g())[0] is None and rescanned(lambda i: i+1)(6, b, t, g())[0] == 7

def test_robustness_rows():
    p = toy_people(20, seed=2); changes = dict(nothing=lambda i, b, t, g: (b, t), other=lambda i, b, t, g: p.scans((i+1) % 20)) | CHANGES; one = robustness(X, p, changes=changes); v = one.set_index(['features','change'])
    assert (v.moves[:,'nothing'] == 0).all() and np.allclose(v.cosine[:,'nothing'].astype(float), 1) and (v.found[:,'nothing'] == 1).all() and (v.found[:,'other'] == 0).all() and v.moves['FC','other'] > .5
    assert v.moves['FC','noise, SNR 1'] > v.moves['FC','noise, SNR 4'] > 0 and v.moves['t1','noise, SNR 1'] == 0 and v.moves['t1','T1 blurred by 3 voxels'] > 0 == v.moves['FC','T1 blurred by 3 voxels']
    assert 'needs BOLD' in v.note['FC','T1 only'] and np.isnan(v.moves['FC','T1 only'])
    assert one.equals(robustness(X, p, changes=changes)) and not one.equals(robustness(X, p, changes=changes, seed=1))
    assert 'cannot be computed' in findings_changes(one, 'FC')[-1]

def test_probe_loses():
    p = toy_people(40, seed=4); of = Part('lag', lambda b, t: np.array([b.x[:4].mean(0).std(), b.x[4:8].mean(0).std()])); f = lambda z: np.stack([z[:,0] < z[:,1], z[:,0] >= z[:,1]], 1).astype(float)
    t = robustness(dict(x=of), p, changes=dict(nothing=lambda i, b, t, g: (b, t), drowned=lambda i, b, t, g: (replace(b, x=b.x[::-1]), t)), probes=dict(x=f)).set_index('change')
    assert t['before'].iloc[0] > .9 and t.loses['nothing'] == 0 and t.loses['drowned'] > .2 and t.loses_low['drowned'] > 0
    assert any('loses most by "drowned"' in s for s in findings_changes(t.reset_index(), 'x'))

# The page

@pytest.fixture(scope='module')
def results():
    p = toy_people(60, seed=6); p.table['subject'] = [f's{i//2}' for i in range(60)]; p.table['session'] = np.arange(60) % 2 + 1
    loss = Part('loss', lambda b, t: np.array([b.x.var()])); r = np.random.default_rng(0)
    return examine(p, dict(ours=Part('ours', lambda b, t: np.r_[b.x.std(1), np.ravel(t[::8,::8,::8])], ('bold','t1')), FC='edges'), dict(loss=loss), np.arange(60) < 30, told(p, soft(p.y, r.random(60) < .8)), 'it', changes={k:CHANGES[k] for k in ('noise, SNR 1','T1 only')}, most=8)

def test_examine_runs_all(results): assert all(isinstance(results[k], pd.DataFrame) for k in ('decodable','subgroups','membership','retest','robustness')), results

def test_page(results, tmp_path):
    f = audit(tmp_path/'a.html', 'ours', results, '<b>cohort</b>', 'simulated', ['a note'], dict(sha256='ab'*32)); html = f.read_text(); p = Page(html)
    assert p.open == [] and all(r.startswith(('data:image/','#')) for r in p.refs) and len(html) < 3e5 and 'script' not in p.tags and html.count('<figure>') == 3
    for s in ('ours on simulated <b>cohort</b>','simulated people','a note','Site ','Test-retest over 30 people','Training subjects','ICC(3,1)','ab'*32,'ECE'): assert s in p.text, s
    for words in (findings_read(results['decodable'], 'ours'), findings_groups(results['subgroups']), findings_members(results['membership']), findings_retest(results['retest'], 'ours'), findings_changes(results['robustness'], 'ours')):
        for s in words: assert s in p.text and s.endswith('.') and 'nan' not in s, s
    assert 'nan' not in re.findall(r'[a-z]+', re.sub(r'(?s)<svg.*?</svg>|<style.*?</style>', '', html))

def test_page_of_what_could_not_be_asked(tmp_path):
    p = toy_people(12, seed=0); r = examine(p, dict(ours='edges')); assert isinstance(r['membership'], str) and isinstance(r['retest'], str)
    text = Page(audit(tmp_path/'a.html', 'ours', r, 'few', 'real').read_text()).text
    assert 'No people have two sessions.' in text and 'real people' in text and 'simulated' not in text.split('Robustness')[0] and 'No predictions were given.' in text

def test_bad_input(tmp_path, results):
    m = table(20); refused(lambda: decodable(dict(x=np.zeros((3, 2))), m), 'x', '20 sessions'); refused(lambda: decodable(dict(x=np.full((20, 2), np.nan)), m), '20 rows'); refused(lambda: decodable({}, m, dict(site='word')), 'site', 'word'); refused(lambda: decodable({}, m.drop(columns='subject')), 'subject')
    refused(lambda: retest(dict(x=(np.ones((4, 2)), np.ones((3, 2))))), 'x'); refused(lambda: retest(dict(x=(np.ones((2, 2)),)*2)), '2 people'); refused(lambda: retest(dict(x=(np.ones((5, 2)),)*2)), 'same values')
    refused(lambda: attack([1.], [1., 2.]), '1 members'); refused(lambda: attack([1., np.nan], [1., 2.])); refused(membership, 'no attack'); refused(lambda: membership(sets=dict(x=(np.ones((3, 2)), np.ones((9, 2))))), 'folds'); refused(lambda: icc(np.ones((1, 2))), '1 people')
    p = toy_people(6); refused(lambda: robustness(dict(x='none'), p), 'none'); refused(lambda: robustness(dict(x='edges'), p, [0, 1]), '2 sessions')
    refused(lambda: audit(tmp_path/'a.html', 'theirs', results, 'c', 'real'), 'theirs'); refused(lambda: audit(tmp_path/'a.html', 'ours', results, 'c', 'both'), 'both'); assert not (tmp_path/'a.html').exists()

def test_p_in_words(): assert [pval(p) for p in (.0001, .0123, .5, 1.)] == ['p < .001', 'p = .012', 'p = .50', 'p = 1.00']
