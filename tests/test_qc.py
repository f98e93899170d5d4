"Flags say what they mean, unknown numbers stay blank, and no text on a page runs as code"
import base64, json, re
from html.parser import HTMLParser
from types import SimpleNamespace as NS
import nibabel as nib, numpy as np, pandas as pd, pytest
from hypothesis import given, settings, strategies as st
from matplotlib.figure import Figure
from brainharmonix.preprocess import qc
from brainharmonix.preprocess.qc import (CAPTIONS, METRICS, SORT, bold_figures, bold_metrics, coverage_figure, dvars, group_page, group_table, outliers, png, save_table, scan_flags, strips, subject_page,
                                         t1_figures, t1_metrics, zscore)
from brainharmonix.preprocess.t1 import t1_grid

EVIL = '<script>alert(1)</script>"\'><img src=x onerror=alert(1)>&'

class Page(HTMLParser):
    "Tags, references, handlers and text of a page"
    void = {'meta','img','br','hr','link','input'}
    def __init__(self, s):
        super().__init__(); self.tags, self.refs, self.on, self.words, self.open, self.closed = [], [], [], [], [], set()
        self.feed(s); self.close(); self.text = ' '.join(' '.join(self.words).split())
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag); self.refs += [v for k,v in attrs if k in ('src','href','xlink:href','srcset','data','action','poster')]; self.on += [k for k,_ in attrs if k.startswith('on')]
        if tag not in self.void: self.open.append(tag)
    def handle_startendtag(self, tag, attrs): self.handle_starttag(tag, attrs); tag in self.void or self.open.pop()
    def handle_endtag(self, tag): assert tag in self.void or self.open.pop() == tag, tag
    def handle_data(self, d):
        if not self.open or self.open[-1] not in ('style','script'): self.words.append(d)

def opened(path):
    s = path.read_text(encoding='utf-8'); p = Page(s); assert not p.open and not p.on
    assert all(r.startswith(('#', 'data:image/png;base64,')) for r in p.refs), [r[:60] for r in p.refs]
    assert not re.search(r'url\((?!#)|@import|https?://', s)
    return p

NAMES = tuple(f'7Networks_{h}_{n}_{i}' for h in ('LH','RH') for n in ('Vis','Default') for i in range(5))
def run(T=80, seed=0, **kw):
    rng = np.random.default_rng(seed); s = rng.standard_normal((10, T)); x = np.concatenate([s, s])+.1*rng.standard_normal((20, T))
    return NS(**dict(x=x, tr=2., names=NAMES, missing=np.arange(T) < 8, fd=np.r_[0, np.full(T-1, .2)], coverage=np.r_[.2, .4, np.ones(18)], mean=np.full(20, 1000.), sd=np.full(20, 20.)) | kw)

# ---- flags
def test_outliers_in_closed_form():
    "Median 3, MAD 1: the bounds are 3 -+ 4.4478"
    for v,hit in ((7.44, 0), (7.45, 1), (np.nan, 0)): assert outliers([1,2,3,4,v])[0].sum() == hit
    assert outliers([1,2,3,4,100], 1)[0].tolist() == [False]*4+[True] and not outliers([1,2,3,4,100], -1)[0].any()
    assert outliers([-100,1,2,3,4], -1)[0].tolist() == [True]+[False]*4 and outliers([-100,1,2,3,4])[0].sum() == 1 and not outliers([-100,1,2,3,4], 1)[0].any()
    assert not outliers([1,2,3,100])[0].any() and not outliers([np.nan]*9+[1,2,3,100])[0].any() # fewer than 5 numbers
    assert not outliers([1,1,1,1,100])[0].any() and not outliers([])[0].any() and not outliers([np.nan])[0].any() # no spread, no numbers

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-999, 999), min_size=5, max_size=40), st.sampled_from([-1,0,1]), st.integers(1, 64), st.integers(-999, 999))
def test_outliers_know_no_unit(v, worse, a, b):
    "Scaling and shifting the column changes nothing; turning it over turns the bad side over"
    v = np.array(v, float); hit = outliers(v, worse)[0]
    assert (outliers(a*v+b, worse)[0] == hit).all() and (outliers(-v, -worse)[0] == hit).all() and hit.sum() <= len(v)/2

def test_limits_in_words():
    assert scan_flags(dict(mean_fd=.81)) == ['mean FD 0.81 mm is above 0.5'] and scan_flags(dict(dice=.87)) == ['Dice 0.87 is below 0.9']
    assert scan_flags(dict(mask_ml=800, tsnr=.1)) == ['brain volume 800 ml is below 900'] and scan_flags(dict(mask_ml=2100)) == ['brain volume 2.1e+03 ml is above 2000']
    assert scan_flags(dict(mean_fd=.5, dice=.9, minutes_left=4., tsnr=None, cjv=np.nan, other=9)) == [] # on the limit is within it
    for k,(_,_,worse,limit,_) in METRICS.items(): assert worse in (-1,0,1) and (limit is None or isinstance(limit, tuple) == (worse == 0)), k

def test_group_table():
    rows = [dict(subject=f'{i:02d}', name=f'r{i}', kind='bold', mean_fd=.1+.01*i, dvars=1., cjv=None) for i in range(9)] + [dict(subject='09', name='r9', kind='bold', mean_fd=.45, task='rest'), dict(subject='10', name='t', kind='t1', dice=.5)]
    d = group_table(rows); assert list(d.columns) == ['subject','name','kind','task','mean_fd','dvars','dice','cjv','flags']
    assert d['flags'][:9].eq('').all() and d['flags'][9] == 'mean FD 0.45 mm is an outlier (median 0.145 mm)' and d['flags'][10] == 'Dice 0.5 is below 0.9'
    assert d.subject.tolist()[0] == '00' and np.isnan(d.dvars[9]) and np.isnan(d.mean_fd[10]) and d.cjv.isna().all()
    few = group_table(rows[7:]); assert few['flags'].iloc[2] == '' # 3 numbers: limits only
    assert 'above 0.5 and an outlier' in group_table(rows+[dict(subject='x', name='n', kind='bold', mean_fd=3.)])['flags'].iloc[-1]
    assert len(group_table([])) == 0 and group_table([dict(subject='a', name='b', kind='t1')])['flags'].tolist() == [''] and group_table([dict(subject='a', name='b', kind='bold', mean_fd=np.inf)])['flags'].tolist() == ['']

# ---- numbers
def test_bold_numbers_in_closed_form():
    m = bold_metrics(run()); ok = dict(censored=.1, minutes=80*2/60, minutes_left=72*2/60, mean_fd=.2, max_fd=.2, tsnr_parcels=50., coverage_min=.2, coverage_median=1., parcels_low=2)
    for k,v in ok.items(): assert m[k] == pytest.approx(v), k
    fc = np.corrcoef(run().x[:,8:]); i = np.arange(10); assert m['homologous_margin'] == pytest.approx(fc[i,i+10].mean()-fc[np.triu_indices(20, 1)].mean()) and m['homologous_margin'] > .8

def test_what_is_not_known_is_none():
    m = bold_metrics(run(fd=None, coverage=None, mean=None, sd=None, names=None, missing=None)); gone = {k for k,v in m.items() if v is None}
    assert gone == {'mean_fd','max_fd','tsnr','tsnr_parcels','bbr','dice_t1','coverage_min','coverage_median','parcels_low','homologous_margin'} and m['censored'] == 0
    assert bold_metrics(run(mean=np.zeros(20)))['tsnr_parcels'] is None and bold_metrics(run(fd=np.full(80, np.nan)))['mean_fd'] is None # a series without its mean; FD that was never known
    assert bold_metrics(NS(x=run().x, tr=2., names=None, missing=None))['mean_fd'] is None # an older Bold
    m = bold_metrics(run(), dict(tsnr=61., dice=.93, bbr=.4, censored=8, fc_homologous=.6, fc_mean=.2, epi='text')) # 11b counts frames, we give a share; its Dice is with the T1
    assert (m['tsnr'], m['dice_t1'], m['bbr'], m['censored']) == (61., .93, .4, .1) and m['homologous_margin'] == pytest.approx(.4) and set(m) <= set(METRICS) and 'dice' not in m
    dead = run(); dead.x[3] = 0; assert np.isfinite(bold_metrics(dead)['homologous_margin']) and bold_figures(dead)
    assert json.loads(json.dumps(m)) == m

def test_dvars_leaves_out_missing_frames():
    z, _ = zscore(np.random.default_rng(0).standard_normal((300, 200)), np.arange(200) == 50); d = dvars(z)
    assert np.flatnonzero(np.isnan(d)).tolist() == [0, 50, 51] and np.nanmedian(d) == pytest.approx(2**.5, abs=.03)
    z, _ = zscore(np.r_[np.tile([[1., -1.]], (4, 50)), np.ones((1, 100))]); assert np.allclose(dvars(z)[1:], 2) # every frame jumps by 2; a constant parcel says nothing

def test_t1_numbers_in_closed_form():
    shape, A = t1_grid(2.); g, w = qc._tissues(shape, tuple(A.ravel())); rng = np.random.default_rng(0); x = np.zeros(shape)
    assert w.sum() > 10_000 and g.sum() > 3_000 and not (g & w).any()
    x[g] = -1+.3*rng.standard_normal(g.sum()); x[w] = 1+.1*rng.standard_normal(w.sum()); t1 = NS(x=x, affine=A, likeness=.8)
    m = t1_metrics(t1); assert m['cjv'] == pytest.approx(.2, abs=.005) and m['likeness'] == .8 and m['dice'] is None and m['mask_ml'] is None
    mask = np.zeros((9,9,9), 'u1'); mask[2:7,2:7,2:7] = 1
    assert t1_metrics(t1, NS(mask=nib.Nifti1Image(mask, np.diag([2,2,2,1.])), dice=.93, likeness=.9)) | dict(cjv=0) == dict(dice=.93, likeness=.9, mask_ml=1., cjv=0)
    assert t1_metrics(NS(x=np.ones(shape), affine=A, likeness=None))['cjv'] is None # no contrast, no ratio

# ---- pictures
def test_pictures():
    shape, A = t1_grid(4.); x = np.random.default_rng(0).standard_normal(shape); t1 = NS(x=x, affine=A)
    for figs,names in ((bold_figures(run()), {'carpet','fc','coverage'}), (bold_figures(run(names=None, fd=None, coverage=None, missing=None)), {'carpet','fc'}), (t1_figures(t1), {'planes'}), (t1_figures(t1, NS(mask_mni=np.ones((182,218,182), bool))), {'planes'})):
        assert set(figs) == names <= set(CAPTIONS) and all(p.startswith(b'\x89PNG') and len(p) > 3000 for p in figs.values())
    assert png(coverage_figure(run().coverage, NAMES)) == png(coverage_figure(run().coverage, NAMES))

def test_low_parcels_are_named():
    words = [t.get_text() for t in coverage_figure(run().coverage, NAMES).axes[0].texts]; assert words == ['LH_Vis_0', 'LH_Vis_1']

# ---- pages
def scans(): return [dict(kind='t1', name='sub-01_T1w', source='a.nii', status='ok', metrics=dict(dice=.87, likeness=.9, mask_ml=1234.6, cjv=None), figures=dict(planes=b'\x89PNG'), decisions=dict(dof=12, steps=dict(strip='template')), notes=['likeness 0.90']),
                     dict(kind='bold', name='sub-01_bold', source='b.nii', metrics=bold_metrics(run()), figures=bold_figures(run())), dict(kind='bold', name='sub-01_run-2_bold', source='c.nii', status='quarantined', reason='c.nii: is empty; copy it again.')]

def test_subject_page(tmp_path):
    p = opened(subject_page(tmp_path/'p.html', '01', scans())); assert 'script' not in p.tags
    for w in ('Subject 01', 'sub-01_T1w', 'Dice 0.87 is below 0.9', 'at least 0.9', '900 to 2000', 'c.nii: is empty; copy it again.', 'Set aside', '1 set aside', 'steps · strip', 'template', 'likeness 0.90', '1235', '2 BOLD'): assert w in p.text, w
    for k in (*bold_metrics(run()), 'dice', 'likeness', 'mask_ml', 'cjv'): assert METRICS[k][0] in p.text, k
    assert p.tags.count('img') == 4 and base64.b64encode(scans()[1]['figures']['fc']).decode() in (tmp_path/'p.html').read_text()

def test_unknown_numbers_are_blank(tmp_path):
    subject_page(tmp_path/'p.html', '1', [dict(kind='t1', name='a', metrics=dict(cjv=None, dice=np.nan, likeness=.9))]); s = (tmp_path/'p.html').read_text()
    for k in ('CJV','Dice'): assert re.search(rf'{k}</th>\s*<td class="n"></td>', s), k
    d = group_table([dict(subject='1', name='a', kind='t1', dice=.95, cjv=None), dict(subject='2', name='b', kind='t1', dice=None, cjv=.4)]); group_page(tmp_path/'g.html', d); save_table(tmp_path/'g.tsv', d)
    assert len(re.findall(r'<td class="n"></td>', (tmp_path/'g.html').read_text())) == 2 and (tmp_path/'g.tsv').read_text().count('n/a') == 2

def test_no_text_runs_as_code(tmp_path):
    s = [dict(kind='bold', name=EVIL, source=EVIL, metrics={EVIL:1., 'mean_fd':1.}, figures={EVIL:b'\x89PNG', 'fc':Figure()}, decisions={EVIL:{EVIL:EVIL}}, notes=[EVIL]), dict(kind=EVIL, name=EVIL, status=EVIL, reason=EVIL, source=EVIL)]
    p = opened(subject_page(tmp_path/'p.html', EVIL, s)); assert 'script' not in p.tags and p.tags.count('img') == 1 and p.text.count('alert(1)</script>') > 8
    d = group_table([dict(subject=EVIL, name=EVIL, kind=EVIL, task=EVIL, mean_fd=i*1.) for i in range(9)]); p = opened(group_page(tmp_path/'g.html', d))
    assert p.tags.count('script') == 1 and 'img' not in p.tags and SORT in (tmp_path/'g.html').read_text() and 'alert' not in SORT

def test_pages_of_nothing(tmp_path):
    assert 'No scan' in opened(subject_page(tmp_path/'p.html', '1', [])).text and '0 scans' in opened(group_page(tmp_path/'g.html', group_table([]))).text
    assert 'No numbers' in opened(subject_page(tmp_path/'p.html', '1', [dict(kind='t1')])).text and 'No numbers' in opened(group_page(tmp_path/'g.html', group_table([dict(subject='1', name='a', kind='t1')]))).text
    assert 'No reason' in opened(subject_page(tmp_path/'p.html', '1', [dict(kind='t1', status='quarantined')])).text

def test_group_page(tmp_path):
    rng = np.random.default_rng(0); d = group_table([dict(subject=f'{i:02d}', name=f'sub-{i:02d}', kind='bold', **{k:1.+.1*rng.standard_normal() for k in METRICS}) for i in range(12)]); p = opened(group_page(tmp_path/'g.html', d))
    for k in METRICS: assert METRICS[k][0] in p.text, k
    assert p.tags.count('tr') == 13 and '12 subjects' in p.text and 'fewer than' not in p.text and 'fewer than 5' in opened(group_page(tmp_path/'h.html', d[:4])).text
    figs = strips(d); assert len([a for a in figs.axes if a.get_visible()]) == len(METRICS)

def test_large_cohorts_show_the_flagged_first(tmp_path):
    rows = [dict(subject=f'{i:04d}', name=f's{i:04d}', kind='t1', dice=.95+1e-4*(i%7)) for i in range(2500)]; rows[2400]['dice'] = .2; p = opened(group_page(tmp_path/'g.html', group_table(rows)))
    assert p.tags.count('tr') == 2001 and p.text.index('s2400') < p.text.index('s0000') and '2,500' in p.text and (tmp_path/'g.html').stat().st_size < 2e6

def test_table_file(tmp_path):
    d = group_table([dict(subject='001', name='a', kind='t1', task='x\ty\nz', dice=.123456789, mask_ml=1000.), dict(subject='002', name='b', kind='bold', mean_fd=.1)]); f = save_table(tmp_path/'group_qc.tsv', d)
    back = pd.read_csv(f, sep='\t', dtype=str, keep_default_na=False); about = json.loads(f.with_suffix('.json').read_text())
    assert back.subject.tolist() == ['001','002'] and back.dice.tolist() == ['0.123457','n/a'] and back.task[0] == 'x y z' and list(back) == list(d)
    assert about['dice']['Limits'] == [.9, None] and about['mean_fd'] == dict(LongName='mean FD', Description=METRICS['mean_fd'][4], Units='mm', Limits=[None, .5]) and about['mask_ml']['Limits'] == [900, 2000] and 'flags' in about

def test_a_failed_page_leaves_the_old_one(tmp_path):
    f = subject_page(tmp_path/'p.html', '1', scans()); old = f.read_text()
    with pytest.raises(Exception): subject_page(f, '1', [dict(kind='t1', name='x', metrics=3)])
    assert f.read_text() == old and [p.name for p in tmp_path.iterdir()] == ['p.html']
