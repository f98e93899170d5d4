"Other TRs without aliasing; a cohort's scale that no test subject can move, in bounded memory, with a stated error"
import copy, json, tracemalloc
import numpy as np, pytest
from hypothesis import given, settings, strategies as st
from brainharmonix.core import sample
from brainharmonix.cohort import id_hash, manifest, split
from brainharmonix.preprocess import scale
from brainharmonix.preprocess.bold import Bold, read_bold
from brainharmonix.preprocess.scale import (BINS, HOW, Histogram, Statistics, augmentations, bold_norm, check_unseen, decimated, downsample, fit_norm,
                                            load_norm, low_pass, normalised, released_frames, save_norm, signal_of)
from common import refused

def run(seed=0, R=5, T=80, tr=.735, level=1000., sd=20., missing=None, **kw):
    "A run with intensities"
    rng = np.random.default_rng(seed); b = Bold(rng.standard_normal((R,T)).astype('f4'), tr, missing=np.zeros(T, bool) if missing is None else missing, source=f'run {seed}')
    b.mean, b.sd = (level*(1+.1*rng.standard_normal(R))).astype('f4'), (sd*np.exp(.2*rng.standard_normal(R))).astype('f4')
    for k,v in kw.items(): setattr(b, k, v)
    return b

phases = np.linspace(0, 6, 9)[:,None]
def tone(f, at): return np.sin(2*np.pi*f*at+phases) # f in cycles per old frame

# ---- downsampling
@pytest.mark.parametrize('r', [2,3,4,5])
def test_tones(r):
    "Below .8 new Nyquist: amplitude, phase and time of every frame within 1 %; above 1: less than .01 % of the power"
    T = 1000; middle = np.arange(T//r)*r+(r-1)/2; inner = slice(25, -25)
    for share in (.02,.1,.4,.6,.8):
        y, gone = decimated(tone(share/2/r, np.arange(T)), r)
        assert not gone.any() and y.shape == (9,T//r) and abs(y-tone(share/2/r, middle))[:,inner].max() < .01
    for share in (1.,1.01,1.3,1.7,*(() if r < 3 else (2.,2.6)),r-.01):
        y, _ = decimated(tone(share/2/r, np.arange(T)), r); assert (y[:,inner]**2).mean() < 1e-4*.5

@pytest.mark.parametrize('r', [2,3,4])
def test_ends_and_gaps(r):
    "At both ends and across gaps a slow tone (.02 Hz at UK Biobank's TR) stays within 5 % of its amplitude"
    T, f = 490, .02*.735; missing = np.zeros(T, bool); missing[np.random.default_rng(0).choice(T, 30, replace=False)] = True; missing[[0,1,-1]] = True
    for m in (None, missing):
        y, gone = decimated(tone(f, np.arange(T)), r, m); assert gone.mean() < .05
        assert abs(y-tone(f, np.arange(T//r)*r+(r-1)/2))[:,~gone].max() < .05

def test_filter_is_centred_and_keeps_a_constant():
    for r in (2,3,4,7): h = low_pass(r); assert np.allclose(h, h[::-1]) and abs(h.sum()-1) < 1e-12 and len(h)%2 == r%2
    assert abs(decimated(np.full((2,101), 5.), 4)[0]-5).max() < 1e-5

@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2**31), st.integers(2,5), st.integers(24,120), st.floats(0,.6))
def test_missing_frames_are_never_read(seed, r, T, share):
    rng = np.random.default_rng(seed); missing = rng.random(T) < share; missing[rng.integers(T)] = False; x = rng.standard_normal((3,T)); burst = x.copy(); burst[:,missing] = np.nan
    (a, gone), (b, again) = decimated(x, r, missing), decimated(burst, r, missing)
    assert np.array_equal(a, b) and np.array_equal(gone, again) and np.isfinite(a).all() and not a[:,gone].any() and a.shape == (3,T//r)
    if gone.any(): assert missing.any()

def test_a_long_gap_stays_a_gap_and_a_short_one_is_bridged():
    m = np.zeros(240, bool); m[100:130] = True; m[20] = True
    for r in (2,3,4):
        gone = decimated(np.random.default_rng(0).standard_normal((2,240)), r, m)[1]
        where = np.flatnonzero(gone); assert len(where) and abs(where.min()*r-100) <= r and abs((where.max()+1)*r-130) <= r and not gone[:90//r].any()

@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(8,1200), st.integers(2,4), st.integers(0, 2**31))
def test_released_rule(T, r, seed):
    "Its closed form: T//r frames within the scan, stride of (clip-1)/(n-1) cut to whole frames, the same for the same seed"
    n = T//r
    k, start, stride = released_frames(T, r, seed), np.random.default_rng(seed).uniform(0, T-r*n), (r*n-1)/(n-1)
    assert len(k) == n and 0 <= k[0] and k[-1] < T and (abs(k+.5-(start+np.arange(n)*stride)) <= .5+1e-9).all() and set(np.diff(k)) <= {int(stride), int(stride)+1}
    assert np.array_equal(k, released_frames(T, r, seed))

def test_released_rule_aliases_and_the_default_does_not():
    b = Bold(tone(.3*.735, np.arange(1960)).astype('f4'), .735); band = slice(2, None)
    power = lambda d: np.abs(np.fft.rfft(d.x))**2
    a, c = downsample(b, 4, 'released', 0), downsample(b, 4)
    assert (a.x**2).mean() > .4 and (c.x[:,20:-20]**2).mean() < 5e-5
    f = np.fft.rfftfreq(a.x.shape[1], a.tr)[power(a).mean(0)[band].argmax()+2]; assert abs(f-(1/2.94-.3)) < .005  # where the folded tone lands

@pytest.mark.parametrize('rule', ['antialias','released'])
def test_what_travels(rule):
    m = np.zeros(83, bool); m[30:42] = True; b = run(T=83, missing=m, fd=np.full(83, .1, 'f4'), decisions=dict(band=(.009,.08), steps=['cleaned']), names=tuple('abcde'), order='7', notes=['before']); x = b.x.copy()
    d = downsample(b, 3, rule, 1)
    assert d.x.shape == (5,27) and d.x.dtype == np.float32 and abs(d.tr-2.205) < 1e-9 and d.missing.shape == (27,) and d.missing.any() and not d.x[:,d.missing & (rule == 'antialias')].any()
    assert d.names == b.names and d.order == '7' and d.notes[0] == 'before' and '0.735' in d.notes[1] and rule in d.notes[1] and set(d.decisions) == {'band','downsample','steps'} and d.decisions['steps'][0] == 'cleaned' and len(d.decisions['steps']) == 2 and d.decisions['downsample']['factor'] == 3
    assert d.fd.shape == (27,) and abs(d.fd[1:-1]-.3).max() < .11 and d.mean is b.mean and d.sd is b.sd
    assert b.tr == .735 and np.array_equal(b.x, x) and b.notes == ['before'] and b.decisions == dict(band=(.009,.08), steps=['cleaned'])  # the run that was handed in stays

def test_downsample_refuses():
    for bad in (1, 0, -2, 2.5, True): refused(lambda: downsample(run(), bad), 'factor')
    refused(lambda: downsample(run(), 40), 'run 0', 'smaller'); refused(lambda: downsample(run(), 2, 'linear'), 'rule', 'linear')
    m = np.ones(80, bool); refused(lambda: downsample(run(missing=m), 2), 'run 0'); m = m.copy(); m[3:6] = False; refused(lambda: downsample(run(missing=m), 2), 'run 0', 'frames left')

def test_augmentations_of_the_paper():
    assert augmentations(.735) == (2,3,4) and augmentations(.8) == (2,3) and augmentations(2.) == augmentations(3.) == () and augmentations(1.) == (2,3) and augmentations(1.5) == (2,)

# ---- quantiles in one pass
numbers = st.floats(-1e6, 1e6, width=32)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(numbers, min_size=1, max_size=30), min_size=1, max_size=6), st.randoms(use_true_random=False), st.sampled_from([0,.1,.25,.5,.75,.9,1]))
def test_histogram(parts, rnd, q):
    "Counts do not depend on order or grouping, and a quantile lies less than a bin from the true order statistic"
    add = lambda ps: [h := Histogram(1)] and [h.add(np.array([p])) for p in ps][-1]
    one = add(parts); mixed = parts[:]; rnd.shuffle(mixed); cut = rnd.randint(1, len(mixed))
    two = add(mixed[:cut]).merge(add(mixed[cut:])) if cut < len(mixed) else add(mixed)
    assert np.array_equal(one.n, two.n) and one.step == two.step and one.first == two.first and one.n.sum() == sum(map(len, parts))
    true = np.quantile(np.concatenate([np.float64(p) for p in parts]), q, method='inverted_cdf')
    assert abs(one.quantile(q)[0]-true) < 2.**one.step[0] and 2.**one.step[0] <= max(4*(one.high-one.low)[0]/BINS, 1e-8*max(abs(one.high[0]), abs(one.low[0])), 1e-29)

# ---- statistics
def cohort(n=6, **kw): return [run(i, **kw) for i in range(n)], [f's{i}' for i in range(n)]

@pytest.mark.parametrize('with_gaps', [False,True])
def test_robust_is_the_quartiles_of_all_frames(with_gaps):
    m = np.zeros(80, bool); m[10:30] = with_gaps; runs, who = cohort(missing=m)
    for b in runs: b.x[:,10:12] = 1e3 if with_gaps else b.x[:,10:12]
    s = fit_norm(iter(runs), 'robust', who, who); every = np.concatenate([signal_of(b)[:,~m] for b in runs], 1); low, mid, high = np.quantile(every, (.25,.5,.75), axis=1, method='inverted_cdf')
    assert s.error < .01 and (abs(np.array(s.median)-mid) <= s.error*np.array(s.iqr)).all() and (abs(np.array(s.iqr)-(high-low)) <= 2*s.error*np.array(s.iqr)).all() and (s.scans, s.frames) == (6, 6*(80-20*with_gaps))
    z = normalised(runs[2], s); assert z.dtype == np.float32 and np.allclose(z[:,~m], (signal_of(runs[2])[:,~m]-mid[:,None])/(high-low)[:,None], atol=.02) and not z[:,m].any()

def test_centred_takes_each_scans_mean():
    runs, who = cohort(); s = fit_norm(runs, 'centred', who, who); every = np.concatenate([(v := signal_of(b))-v.mean(1, keepdims=True) for b in runs], 1)
    assert np.allclose(s.iqr, np.subtract(*np.quantile(every, (.75,.25), axis=1)), rtol=.03) and abs(normalised(runs[0], s).mean(1)).max() < .2
    far = copy.copy(runs[0]); far.mean = far.mean+5000; assert np.allclose(normalised(far, s), normalised(runs[0], s), atol=1e-3)

def test_released_is_the_quartiles_of_means():
    "method.md 4.2: per parcel median and p75-p25, over subjects, of the temporal mean; x <- (x-median)/iqr, no epsilon"
    runs, who = cohort(); s = fit_norm(runs, 'released', who, who); low, mid, high = np.percentile([b.mean for b in runs], (25,50,75), axis=0)
    assert np.allclose(s.median, mid) and np.allclose(s.iqr, high-low) and s.error == 0
    assert np.allclose(normalised(runs[1], s), (signal_of(runs[1])-mid[:,None])/(high-low)[:,None], rtol=1e-4, atol=1e-4)
    twice = fit_norm([*runs, runs[0]], 'released', [*who, who[0]], who); assert np.allclose(twice.median, s.median) and len(twice.subjects) == 6 and twice.scans == 7  # a subject counts once

@pytest.mark.parametrize('how', HOW)
def test_a_parcel_that_a_run_does_not_have(how):
    "Kept as zeros (sd 0): it moves no statistic and stays 0"
    runs, who = cohort(); gone = copy.deepcopy(runs[0]); gone.x[3], gone.mean[3], gone.sd[3] = 0, 0, 0
    a, b = fit_norm([gone, *runs[1:]], how, who, who), fit_norm(runs[1:], how, who[1:], who)
    assert a.median[3:4] == b.median[3:4] and a.iqr[3:4] == b.iqr[3:4] and np.isfinite(normalised(gone, a)).all() and not normalised(gone, a)[3].any()
    if a.median: refused(lambda: fit_norm([gone], how, 'a', 'a'), 'parcel')

def test_zscore_and_none():
    m = np.zeros(80, bool); m[:9] = True; b = run(missing=m)
    z = normalised(b, Statistics('zscore')); assert abs(z[:,9:].mean(1)).max() < 1e-5 and abs(z[:,9:].std(1)-1).max() < 1e-4 and not z[:,:9].any()
    far = copy.copy(b); far.mean, far.sd = 3*b.mean+9, 3*b.sd; assert np.array_equal(normalised(far, Statistics('zscore')), z)  # a scanner's gain and offset
    n = normalised(b, Statistics('none')); assert np.allclose(n[:,9:], signal_of(b)[:,9:]) and not n[:,:9].any()
    bare = Bold(b.x, 2.); assert np.array_equal(normalised(bare, Statistics('none')), b.x) and np.array_equal(signal_of(bare), b.x)

@pytest.mark.parametrize('how', HOW)
def test_no_test_subject_moves_a_statistic(how):
    "Oracle: another test set, the same statistics; and a test subject cannot get in"
    m = manifest([dict(subject=f's{i//2}', session=i%2, site=i%3, label=i%2) for i in range(0,40)]); m['label'] = m.groupby('subject').label.transform('first'); m['site'] = m.groupby('subject').site.transform('first')
    parts = split(m); runs = [run(i) for i in range(40)]; train = m.subject[parts['train']]
    fit = lambda runs: fit_norm([runs[i] for i in parts['train']], how, train, train, 'demo')
    spoilt = [b if i in parts['train'] else run(i, level=9e5, sd=9e3) for i,b in enumerate(runs)]
    s = fit(runs); assert fit(spoilt) == s and s.ids == id_hash(train) and len(s.subjects) == train.nunique() and s.scans == len(train) and s.cohort == 'demo'
    check_unseen(s, m.subject[parts['test']]); check_unseen(s, m.subject[parts['val']])
    refused(lambda: check_unseen(s, m.subject), '12 of these')
    def unread(): raise AssertionError('was read'); yield
    for part in ('val','test'): refused(lambda: fit_norm(unread(), how, m.subject[[*parts['train'], parts[part][0]]], train), m.subject[parts[part][0]], 'not training')

def test_fit_refuses():
    runs, who = cohort()
    refused(lambda: fit_norm([], 'robust', [], []), 'no run'); refused(lambda: fit_norm(runs, 'best', who, who), 'best')
    refused(lambda: fit_norm([runs[0], run(1, R=4)], 'robust', 'ab', 'ab'), 'run 1', '4 parcels'); refused(lambda: fit_norm([run(0, order='7'), run(1, order='17')], 'robust', 'ab', 'ab'), 'run 1', '17')
    refused(lambda: fit_norm([run(0, names=tuple('abcde')), run(1, names=tuple('abced'))], 'robust', 'ab', 'ab'), 'run 1', "'e'", 'row 4')
    refused(lambda: fit_norm([run(0, names=tuple('abcde')), run(0, names=tuple('abcde'))], 'released', 'ab', 'ab'), 'IQR of parcel a', '0')
    bad = run(3); bad.x[0,0] = np.nan; refused(lambda: fit_norm([run(0), bad], 'robust', 'ab', 'ab'), 'run 3', 'NaN')
    wild = run(4); wild.x[2,5] = 1e7; refused(lambda: fit_norm([*runs, wild], 'robust', [*who, 'w'], [*who, 'w']), 'parcel 3', 'far out')

def test_released_needs_intensities():
    refused(lambda: fit_norm([Bold(run(0).x, 2., source='bare')], 'released', 'a', 'a'), 'bare', 'no mean'); lost = run(1); lost.mean = lost.mean*1e-9
    refused(lambda: fit_norm([run(0), lost], 'released', 'ab', 'ab'), 'run 1', 'lost'); runs, who = cohort(); s = fit_norm(runs, 'released', who, who)
    refused(lambda: normalised(lost, s), 'run 1', 'lost')

@pytest.mark.skipif(sample('abide1/index.csv') is None, reason='no ABIDE samples at hand')
def test_released_refuses_real_tables_without_means():
    f = sample('abide1/CMU_a_0050642_rois_cc200.1D.gz'); b = read_bold(f, tr=2., clean=False); b.mean, b.sd = b.x.mean(1), b.x.std(1)
    refused(lambda: fit_norm([b], 'released', ['0050642'], ['0050642']), 'CMU_a_0050642', 'lost its mean')

def test_other_parcels_are_refused():
    runs, who = cohort(names=tuple('abcde'), order='7', atlas='A'); s = fit_norm(runs, 'robust', who, who)
    for kw, word in ((dict(names=tuple('edcba')), 'row 1'), (dict(order='17', names=None), '17'), (dict(atlas='B', names=None), 'atlas B'), (dict(x=run().x[:3], names=None), '3 parcels')):
        refused(lambda: normalised(run(0, **{**dict(names=tuple('abcde'), order='7', atlas='A'), **kw}), s), 'run 0', word)
    assert normalised(run(0), s).shape == (5,80); refused(lambda: normalised(run(0), Statistics('robust')), 'no median')

def test_saved_and_loaded(tmp_path):
    runs, who = cohort(names=tuple('abcde'), order='7'); f = tmp_path/'norm.json'
    for how in HOW: s = fit_norm(runs, how, who, who, 'demo'); save_norm(f, s); assert load_norm(f) == s and np.array_equal(normalised(runs[0], load_norm(f)), normalised(runs[0], s))
    assert not [w for w in who if f'"{w}"' in f.read_text()]  # hashes, not ids
    d = json.loads(f.read_text()); f.write_text(json.dumps({**d, 'scans':7})); refused(lambda: load_norm(f), 'norm.json', 'changed')
    for bad in ('{', '[]', '{}', json.dumps({**d, 'what':1}), '3', 'null'): f.write_text(bad); refused(lambda: load_norm(f), 'norm.json')
    refused(lambda: load_norm(tmp_path/'no.json'), 'no.json', 'not exist')

def test_memory_does_not_grow_with_the_cohort():
    "400 parcels: one histogram of 52 MB and its sums, however many runs stream through"
    runs = lambda n: (run(i, R=400, T=60) for i in range(n)); peak = []
    for n in (3,30):
        tracemalloc.start(); fit_norm(runs(n), 'robust', range(n), range(n)); peak.append(tracemalloc.get_traced_memory()[1]); tracemalloc.stop()
    assert peak[1] < peak[0]+5e6 and peak[1] < 250e6

def test_arrays_as_before():
    x = run().x.astype(float); assert np.allclose(bold_norm(x, 'zscore'), (x-x.mean(1, keepdims=True))/x.std(1, keepdims=True), atol=1e-5); refused(lambda: bold_norm(x, 'best'), 'best')
