"The arena: what it refuses, what it keeps, and that its guards guard"
import json, os, signal, subprocess, sys, time
from pathlib import Path
import numpy as np, pandas as pd, pytest
from scipy import stats
from sklearn import metrics as sk
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from common import refused
from brainharmonix.bench import arena
from brainharmonix.bench.arena import Part, People, Protocol, System, enter, fc_of, guarded, learns, splits_of, standings, toy_people, verdict
from brainharmonix.bench.metrics import KINDS, corrected, holm, scores, subject_weights
from brainharmonix.bench.probe import Linear
from brainharmonix.core import BadInput

class Known(System):
    "Says what it is told, for tests of what comes after"
    def __init__(self, right, people=None): self.right, self.people = right, people; self.config = dict(right=right)
    def fit(self, train, val, seed): self.C = train.classes_n; self.rng = np.random.default_rng(seed); return self
    def predict(self, v):
        y = (self.people.y if self.people is not None else np.arange(400) % 2)[v.rows]; guess = np.where(self.rng.random(len(y)) < self.right, y, 1-y)
        return np.eye(self.C)[guess]*.8 + .1

# ---- metrics
@pytest.mark.parametrize('C', [2, 4])
def test_metrics_are_those_of_whole_test_sets(C):
    rng = np.random.default_rng(C); y, p = rng.integers(0, C, 103), rng.dirichlet(np.ones(C), 103); s, g = scores('binary' if C == 2 else 'multiclass', p, y), p.argmax(1)
    assert s['balanced_accuracy'] == pytest.approx(sk.balanced_accuracy_score(y, g)) and s['mcc'] == pytest.approx(sk.matthews_corrcoef(y, g)) and s['f1_macro'] == pytest.approx(sk.f1_score(y, g, average='macro'))
    batches = np.mean([sk.f1_score(y[a:a+8], g[a:a+8], average='macro') for a in range(0, 96, 8)])
    assert abs(batches-s['f1_macro']) > .01  # averaging over batches is another number

def test_one_class_in_a_test_set_has_no_auc():
    s = scores('binary', np.tile([.3, .7], (5, 1)), np.ones(5, int))
    assert np.isnan(s['auc']) and s['recall_1'] == 1 and np.isnan(s['recall_0']) and np.isnan(s['balanced_accuracy'])

def test_holm_against_the_definition():
    p = np.array([.001, .02, .03, .04, .5]); n = len(p)
    want, top = [], 0
    for i,q in enumerate(np.sort(p)): top = max(top, min(1, q*(n-i))); want.append(top)
    assert np.allclose(np.sort(holm(p)), want) and np.allclose(holm(p[::-1])[::-1], holm(p))

def test_corrected_variance():
    d = np.random.default_rng(0).normal(.03, .05, 12); c = corrected(d, 80, 20); se = d.std(ddof=1)*np.sqrt(1/12+.25)
    assert c['low'] == pytest.approx(d.mean()-stats.t.ppf(.975, 11)*se) and c['p'] == pytest.approx(2*stats.t.sf(d.mean()/se, 11))
    assert np.isnan(corrected(d[:1], 80, 20)['p']) and corrected(d, 80, 20, floor=1.)['p'] > .9

# ---- guards
class Peeks(Known):
    "Would be right if the labels were there"
    def predict(self, v): return np.eye(self.C)[v.y] if v.y is not None else np.full((len(v), self.C), 1/self.C)

def test_labels_of_a_test_view_are_absent():
    p = toy_people(40); o = enter(p, dict(peeks=lambda: Peeks(1)), Protocol(splits=2))
    assert scores('binary', o.runs['peeks']['seed-0']['p'], p.y[o.splits['seed-0']['test']])['accuracy'] <= .6
    v = p.view([0, 1], labels=False)
    assert not hasattr(v.people, 'y') and not hasattr(p.view([0]).people, 'y') and v.y is None and v.take([0]).y is None and (v+p.view([2])).y is None and not {'label','score','y'} & set(v.table)

@pytest.mark.parametrize('kind', KINDS)
def test_changed_test_labels_change_no_prediction(kind): assert guarded(lambda: Linear(['edges','t1_blocks']), toy_people(60, kind)) == dict(labels=0., others=0.)

def test_the_guard_finds_one_who_standardises_with_test_rows():
    class Cheat(Linear):
        def x(self, v): X = super().x(v); return [(x-x.mean(0)) for x in X]
    assert guarded(lambda: Cheat('edges'), toy_people(60))['others'] > 1e-3

NOISE = Part('noise', lambda b, t: np.random.default_rng(int(abs(b.x[0,0])*1e6)).standard_normal(3000))
def test_choosing_features_inside_the_fold_gains_nothing_from_noise():
    "An oracle would gain: the same choice made on all rows scores far above chance"
    p = toy_people(80, signal=0.); X = p.view(range(80)).matrix(NOISE); every = SelectKBest(k=20).fit(X, p.y)
    class Inside(System):
        def fit(self, train, val, seed):
            self.pick = self.chosen(train); self.model = LogisticRegression().fit(self.pick.transform(train.matrix(NOISE)), train.y); return self
        def chosen(self, train): return SelectKBest(k=20).fit(train.matrix(NOISE), train.y)
        def predict(self, v): return self.model.predict_proba(self.pick.transform(v.matrix(NOISE)))
    class Outside(Inside):
        def chosen(self, train): return every
    t = standings(enter(p, dict(inside=Inside, outside=Outside), Protocol(splits=5)), 'inside', 10).set_index('system').balanced_accuracy
    assert t['outside'] > .7 and t['inside'] < .62

def test_a_part_sees_one_session_alone():
    p = toy_people(12); asked = []
    def of(b, t): asked.append(b.source); return fc_of(b)
    p.view([3, 5]).part(Part('watched', of)); p.view([3]).part(Part('watched', of))
    assert asked == ['toy 3', 'toy 5']

def test_test_subjects_in_the_pretraining_are_refused_and_the_rest_goes_on():
    from brainharmonix.cohort import id_hash
    p = toy_people(40)
    class Seen(Known): seen = ('toy-007',)
    class Hashed(Known): hashes = (id_hash(['toy-011']),)
    o = enter(p, {'seen':lambda: Seen(1.), 'hashed':lambda: Hashed(1.), 'fine':lambda: Known(.8)}, Protocol(splits=2))
    assert set(o.runs) == {'fine'} and 'toy-007' in o.failed['seen'] and 'toy-011' in o.failed['hashed']
    t = standings(o, 'fine'); assert set(t.system) == {'seen','hashed','fine'} and 'has no result' in verdict(t, 'seen')

def test_splits_never_share_a_subject():
    m = toy_people(60); who = np.repeat(m.table.subject.to_numpy()[:30], 2)
    p = People('twice', m.table.assign(subject=who, site=np.repeat(m.table.site.to_numpy()[:30], 2)), np.repeat(m.y[:30], 2), 'binary', m.scans)
    for how in ('random','loso'):
        for s in splits_of(p, Protocol(how, 3)).values():
            ids = [set(p.table.subject[s[k]]) for k in ('train','val','test')]
            assert not ids[0]&ids[1] and not ids[0]&ids[2] and not ids[1]&ids[2] and sum(map(len, s.values())) == len(p)

# ---- what is kept
def test_a_killed_run_goes_on(tmp_path):
    "The same command, after kill -9, computes only what is missing, and the table is that of an uninterrupted run"
    code = '''
import sys, time
from brainharmonix.bench.arena import *
from brainharmonix.bench.probe import Linear
class Slow(Linear):
    def fit(self, *a): print('fit', flush=True); time.sleep(float(sys.argv[2])); return super().fit(*a)
o = enter(toy_people(40), dict(a=lambda: Slow('edges'), b=lambda: Slow('t1_blocks')), Protocol(splits=3), sys.argv[1])
print(standings(o, 'a', 5).drop(columns='seconds').to_csv())
'''
    run = lambda out, wait: subprocess.Popen([sys.executable, '-c', code, str(out), str(wait)], stdout=subprocess.PIPE, text=True)
    p = run(tmp_path/'x', 1.)
    for _ in range(3): p.stdout.readline()
    time.sleep(.3); p.kill(); p.wait(); done = len(list((tmp_path/'x').rglob('seed-*.json'))); assert 1 <= done < 6
    again, _ = run(tmp_path/'x', 0).communicate(); whole, _ = run(tmp_path/'y', 0).communicate()
    assert again.count('fit') == 6-done and again[again.index(',system'):] == whole[whole.index(',system'):]

def test_results_of_other_people_are_not_taken(tmp_path):
    enter(toy_people(40), dict(a=lambda: Known(1.)), Protocol(splits=2), tmp_path); n = len(list(tmp_path.rglob('*.json')))
    enter(toy_people(40, seed=1), dict(a=lambda: Known(1.)), Protocol(splits=2), tmp_path); enter(toy_people(40), dict(a=lambda: Known(.5)), Protocol(splits=2), tmp_path)
    assert len(list(tmp_path.rglob('*.json'))) == 3*n

def test_results_of_other_scans_or_other_code_are_not_taken(tmp_path, monkeypatch):
    said = lambda **kw: standings(enter(toy_people(40, **kw), dict(a=lambda: Linear('edges')), Protocol(splits=2), tmp_path), 'a', 2).balanced_accuracy[0]
    assert said() > .9 and said(signal=0.) < .8
    n = len(list(tmp_path.rglob('*.json'))); monkeypatch.setattr(arena, 'source', lambda *a: 'other'); said()
    assert len(list(tmp_path.rglob('*.json'))) > n

def test_a_system_that_breaks_does_not_take_the_table_with_it():
    class Breaks(Known):
        def fit(self, *a): raise np.linalg.LinAlgError('SVD did not converge')
    o = enter(toy_people(40), dict(breaks=lambda: Breaks(1.), fine=lambda: Known(1.)), Protocol(splits=2))
    assert set(o.runs) == {'fine'} and 'LinAlgError (SVD did not converge)' in o.failed['breaks']

def test_a_constant_answer_is_worth_one_half_however_small_the_test_part():
    class Constant(Known):
        def predict(self, v): return np.tile([.9, .1], (len(v), 1))
    p = toy_people(40); q = People('few', p.table, (np.arange(40) < 6).astype(int), 'binary', p.scans)
    r = standings(enter(q, dict(a=lambda: Constant(1.)), Protocol(splits=3)), 'a').iloc[0]
    assert r.balanced_accuracy == r.low == r.high == .5

def test_one_site_left_out_is_scored_on_all_sites_together():
    p = toy_people(60, 'regression'); m = p.table.assign(site=[f'{k//3}' for k in range(60)]); q = People('many sites', m, p.y, 'regression', p.scans)
    class Mean(Known):
        def fit(self, train, val, seed): self.m = train.y.mean(); return self
        def predict(self, v): return np.full(len(v), self.m)
    t = standings(enter(q, dict(a=lambda: Mean(1.), b=lambda: Linear('edges')), Protocol('loso')), 'a').set_index('system')
    assert -.2 < t.r2['a'] < .05 and t.r2['b'] > .5 and t.gain_low['b'] > 0 and np.isnan(t.sd['a'])
    y = (np.arange(60) < 3).astype(int); refused(lambda: splits_of(People('x', m, y, 'binary', p.scans), Protocol('loso')), 'lacks a class')

def test_a_system_that_returns_nonsense_is_listed():
    class Odd(Known):
        def predict(self, v): return np.ones(len(v))
    class Lost(Known):
        def predict(self, v): return np.full((len(v), 2), np.nan)
    o = enter(toy_people(40), dict(odd=lambda: Odd(1.), lost=lambda: Lost(1.), fine=lambda: Known(1.)), Protocol(splits=2))
    assert set(o.runs) == {'fine'} and 'shape' in o.failed['odd'] and 'no number' in o.failed['lost']

# ---- what may be said
def test_verdicts_follow_the_numbers():
    p = toy_people(400); o = enter(p, {'FC + logistic regression':lambda: Known(.6), 'better':lambda: Known(.9), 'same':lambda: Known(.6), 'worse':lambda: Known(.3)}, Protocol(splits=10)); t = standings(o)
    assert ' beats FC' in verdict(t, 'better') and 'does not beat FC' in verdict(t, 'same') and 'is worse than FC' in verdict(t, 'worse')
    for n in ('better','same','worse'): r = t.set_index('system').loc[n]; assert f'{100*r.gain:+.1f} points' in verdict(t, n) and f'{100*r.gain_low:+.1f} to {100*r.gain_high:+.1f}' in verdict(t, n)

def test_splits_that_agree_by_luck_prove_nothing():
    "Differences of two small splits can be equal; the bootstrap over subjects keeps the interval open"
    p = toy_people(40)
    class Fixed(Known):
        def predict(self, v): y = (np.arange(400) % 2)[v.rows]; y[:int(self.right)] = 1-y[:int(self.right)]; return np.eye(2)[y]*.8+.1
    t = standings(enter(p, {'FC + logistic regression':lambda: Fixed(3), 'one better':lambda: Fixed(2)}, Protocol(splits=2))).set_index('system').loc['one better']
    assert t.gain > 0 and t.gain_low < 0 < t.gain_high and t.p_holm > .05

def test_intervals_cover(n=60):
    "Bootstrap intervals of a system with a known accuracy contain it about as often as they say"
    p = toy_people(100); hit = 0
    for k in range(n):
        o = enter(p, dict(a=lambda k=k: Known(.7)), Protocol(splits=2, seed=5*k)); r = standings(o, 'a', 200).iloc[0]; hit += r.low <= .7 <= r.high
    assert hit/n > .85

# ---- bad input
def test_bad_cohorts():
    m = toy_people(30).table; y = np.arange(30) % 2; make = lambda **kw: People('x', **dict(dict(table=m, y=y, kind='binary', scans=None) | kw))
    refused(lambda: make(y=np.zeros(30)), 'one class'); refused(lambda: make(y=np.where(y, np.nan, 0)), '15 sessions without a label', 'toy-001')
    refused(lambda: make(y=np.arange(30), kind='multiclass'), 'looks like an id'); [refused(lambda ids=ids: make(table=m.assign(subject=ids), y=np.arange(30), kind='regression'), 'subject ids as the score') for ids in (np.arange(30), [f'sub-{k:03d}' for k in range(30)])]
    refused(lambda: make(y=np.ones(30), kind='regression'), 'one score'); refused(lambda: make(y=y[:9]), '30 sessions and 9 labels'); refused(lambda: make(y=np.arange(30) % 3), "use kind 'multiclass'")
    refused(lambda: make(table=m.drop(columns='subject')), 'no column subject'); refused(lambda: splits_of(make(table=m.assign(site=['lone']+['A']*29)), Protocol('loso')), 'one subject at site lone')
    refused(lambda: splits_of(make(y=(np.arange(30) < 2).astype(int)), Protocol()), 'too few subjects')

def test_more_features_than_memory(monkeypatch):
    monkeypatch.setattr(arena, 'memory', lambda: 10_000)
    o = enter(toy_people(40), dict(a=lambda: Linear('edges'), b=lambda: Known(1.)), Protocol(splits=1))
    assert 'GB' in o.failed['a'] and set(o.runs) == {'b'}

def test_a_missing_modality_is_one_sentence():
    p = toy_people(20); q = People('half', p.table, p.y, 'binary', lambda i: (p.scans(i)[0], None))
    assert refused(lambda: q.view([0]).matrix('t1_blocks'), 'has no t1', 'toy-000')

# ---- straight lines
@pytest.mark.parametrize('kind', KINDS)
def test_linear_learns_and_does_not_invent(kind):
    got = learns(lambda: Linear('edges'), kind); chance = dict(binary=.5, multiclass=1/3, regression=0.)[kind]
    assert got['signal'] > chance+.3 and got['shuffled'] < chance+.25
