"The report: self-contained, complete, honest about what is missing, safe with any name, whole or absent"
import re
from html.parser import HTMLParser
import numpy as np, pandas as pd, pytest
from brainharmonix.core import BadInput
from brainharmonix.geometry.harmonics import schaefer
from brainharmonix.bench import probe as bench
from brainharmonix.preprocess.qc import connectivity, homologues, networks, zscore
from brainharmonix.report import alike, erank, report, tidy

EVIL = '<script>alert("x")</script>&\'".nii.gz'
HEADINGS = ['What went in','BOLD','T1','Hub tokens','What the hub tokens read','Training','Probe','Software and weights']
PROBE = pd.DataFrame([('hub tokens, both',.71,.66,.76), ('FC + logistic regression',.69,.64,.74), ('Bayes optimum, both',.86,np.nan,np.nan)], columns=['features','balanced accuracy','lo','hi'])

def inputs(R=58, T=60, H=8, D=16, seed=0):
    rng = np.random.default_rng(seed); t1 = rng.random((40,48,40)).astype('f4')
    return dict(title='one session', scan={'BOLD':'sub-01_bold.npy','TR given, s':2.,'frames':T}, bold=rng.standard_normal((R,T)).astype('f4'), tr=2., missing=np.arange(T)%10==3,
                names=schaefer().names[::400//R][:R], t1=t1, tokens={k:rng.standard_normal((H,D)) for k in ('both','BOLD only','T1 only')},
                reads=dict(roi=rng.random((H,R)), patch=rng.random((H,5,6,5)), share=rng.random(H), even=.7, rule='Last block, mean over heads.'),
                losses={'structure':[3.,2.,1.], 'function':list(np.linspace(2,1,80))}, probe=PROBE, provenance={'python':'3.11','packages':{'torch':'2.13.0'}},
                passport={'sha256':'ab'*32,'licence':'Apache-2.0','config hash':'0123456789abcdef'}, notes=['a note'])

class Page(HTMLParser):
    "Tags, references and text of a page"
    void = {'meta','img','br','hr','link','use','image','path','rect'}
    def __init__(self, s): super().__init__(); self.tags, self.refs, self.words, self.open = [], [], [], []; self.feed(s); self.text = ' '.join(' '.join(self.words).split())
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag); self.refs += [v for k,v in attrs if k in ('src','href','xlink:href','srcset','data','action','poster')]
        if tag not in self.void: self.open.append(tag)
    def handle_startendtag(self, tag, attrs): self.handle_starttag(tag, attrs); self.open and tag not in self.void and self.open.pop()
    def handle_endtag(self, tag):
        if tag in self.void: return
        assert self.open.pop() == tag
    def handle_data(self, d):
        if not self.open or self.open[-1] not in ('style',): self.words.append(d)

@pytest.fixture(scope='module')
def full(tmp_path_factory):
    out = tmp_path_factory.mktemp('report')/'report.html'
    assert report(out, **inputs(400, 120), simulated=True) == out
    return out.read_text(encoding='utf-8')

def test_self_contained(full):
    p = Page(full)
    assert p.refs and all(r.startswith(('data:image/','#')) for r in p.refs)
    assert not {'script','link','iframe','object','embed','video','audio'} & set(p.tags)
    assert not re.search(r'@import|https?://', full) and all(u.startswith('#') for u in re.findall(r'url\(["\']?([^)]*)', full))
    assert p.open == [] and full.startswith('<!doctype html>') and len(full.encode()) < 6e6

def test_anchors_lead_somewhere(full):
    ids = set(re.findall(r'\bid="([^"]+)"', full))
    assert all(r[1:] in ids for r in Page(full).refs if r.startswith('#'))

def test_every_part(full):
    p = Page(full); assert [h for h in re.findall(r'<h2><span>\d</span>([^<]*)</h2>', full)] == HEADINGS
    assert full.count('<figure>') == full.count('<figcaption>') >= 9 and 'figure' in p.tags
    for s in ('sub-01_bold.npy','a note','FC of homologous parcels','effective rank','Last block, mean over heads.','mainly BOLD','times even','Attention on each parcel','Attention per T1 patch',
              'FC + logistic regression','Bayes optimum','no verdict is given','ab'*32,'Apache-2.0','packages · torch','not for clinical use','12 frames missing'): assert s in p.text, s
    assert 'No ' not in ' '.join(re.findall(r'class="missing">([^<]*)', full))

def test_simulated_is_said(full, tmp_path):
    captions = [c for c in re.findall(r'<figcaption>(.*?)</figcaption>', full) if re.search('Loss curves|Linear probe', c)]
    assert len(captions) == 2 and all('simulated' in c for c in captions)
    real = report(tmp_path/'r.html', title='t', scan={}, losses={'a':[1,2]}, probe=PROBE).read_text()
    assert 'simulated' not in real

@pytest.mark.parametrize('part,sentence', [('bold','No BOLD was given.'), ('t1','No T1 was given.'), ('tokens','No hub tokens were given.'), ('reads','No attention was given.'),
                                           ('losses','No loss curves were given.'), ('probe','No probe was given.'), ('passport','Weights: nothing was given.'), ('provenance','Software: nothing was given.')])
def test_missing_part_is_said(part, sentence, full, tmp_path):
    assert sentence not in full
    keep = {k:v for k,v in inputs(T=30).items() if k in ('title','scan')}
    others = {'losses':{'a':[1.,2.]}} if part != 'losses' else {}
    s = report(tmp_path/'r.html', **keep, **others).read_text()
    assert sentence in s and [h for h in re.findall(r'<h2><span>\d</span>([^<]*)</h2>', s)] == HEADINGS

def test_one_modality(tmp_path):
    kw = inputs(T=40); kw |= dict(t1=None, tokens={'BOLD only':kw['tokens']['BOLD only']}, reads={'roi':kw['reads']['roi'].mean(0)})
    s = Page(report(tmp_path/'b.html', **kw).read_text()).text
    assert 'No T1 was given.' in s and 'No attention on T1 patches was given.' in s and 'did not say how attention' in s
    kw = inputs(T=40); kw |= dict(bold=None, tr=None, missing=None, names=None, reads={'patch':kw['reads']['patch'],'rule':'r'})
    s = Page(report(tmp_path/'t.html', **kw).read_text()).text
    assert 'No BOLD was given.' in s and 'No attention on parcels was given.' in s and 'Attention per T1 patch' in s

def test_any_name_is_only_text(tmp_path):
    kw = inputs(R=4, T=40); names = [f'{EVIL}_{i}' for i in range(4)]
    kw |= dict(title=EVIL, scan={EVIL:EVIL}, names=names, reads=kw['reads']|{'rule':EVIL,'roi':np.random.rand(8,4)}, losses={EVIL:[1.,2.]}, notes=[EVIL], passport={EVIL:EVIL}, provenance={EVIL:{EVIL:EVIL}},
               tokens={EVIL:np.eye(4), 'x$_^{':np.eye(4)}, probe=PROBE.assign(features=['hub '+EVIL,'FC '+EVIL,'$\\frac{'], target=EVIL))
    s = report(tmp_path/'r.html', **kw).read_text(); p = Page(s)
    assert '<script' not in s and 'script' not in p.tags and p.open == [] and EVIL in p.text
    s = report(tmp_path/'v.html', title='t', scan={}, verdict=EVIL).read_text()
    assert '<script' not in s and EVIL in Page(s).text

@pytest.mark.parametrize('bad', [dict(bold=np.zeros((4,5,6))), dict(bold=np.zeros((58,30)), missing=np.ones(30,bool)), dict(missing=np.zeros(7,bool)), dict(names=['a','b']), dict(t1=np.zeros((4,4))),
                                 dict(t1=np.full((4,4,4),np.nan)), dict(tokens={'a':np.eye(2),'b':np.eye(3)}), dict(reads={'roi':-np.ones((2,58))}), dict(probe=pd.DataFrame({'x':[1]}))])
def test_refused_and_nothing_left_behind(bad, tmp_path):
    with pytest.raises(BadInput) as e: report(tmp_path/'deep'/'r.html', **(inputs(T=30)|bad))
    assert '\n' not in str(e.value) and str(e.value).endswith('.') and not list(tmp_path.rglob('*.html')) and not list(tmp_path.rglob('.*'))

def test_crash_keeps_the_old_page(tmp_path):
    f = report(tmp_path/'r.html', title='old', scan={}); old = f.read_bytes()
    class Broken:
        def __array__(self, *a, **k): raise RuntimeError('broken')
    with pytest.raises(RuntimeError): report(f, title='new', scan={}, t1=Broken())
    assert f.read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ['r.html']

def test_same_inputs_same_bytes(full, tmp_path): assert report(tmp_path/'r.html', **inputs(400, 120), simulated=True).read_text(encoding='utf-8') == full

def test_full_size(tmp_path):
    rng = np.random.default_rng(0); kw = inputs(400, T=652, H=128, D=768)
    kw |= dict(t1=rng.random((160,192,160)).astype('f4'), reads=kw['reads']|{'patch':rng.random((128,10,12,10))})
    assert report(tmp_path/'r.html', **kw).stat().st_size < 6e6

def test_constant_and_mixed_up_parcels(tmp_path):
    rng = np.random.default_rng(0); a = schaefer(); pairs = homologues(a.names, a); x = rng.standard_normal((400,200)); x[pairs[:,1]] = x[pairs[:,0]]+.3*rng.standard_normal((len(pairs),200))
    text = lambda b: Page(report(tmp_path/'r.html', title='t', scan={}, bold=b, tr=1., names=a.names).read_text()).text
    assert 'check the order' not in text(x) and 'check the order' in text(x[rng.permutation(400)])
    x[[3,5]] = 1; assert '2 parcels never change' in text(x)

def test_numbers():
    rng = np.random.default_rng(0); x = rng.standard_normal((6,50)); gone = np.arange(50)%9==0
    near = lambda z: np.allclose(connectivity(z), np.corrcoef(x[:,~gone]), atol=1e-6) # the model's float32
    assert near(zscore(x, gone)[0]) and near(zscore(1000+20*x, gone)[0])
    y = x.copy(); y[:,gone] = np.nan; assert near(zscore(y)[0])
    y = x.copy(); y[2] = .1; z, none = zscore(y, gone); assert np.isnan(z[2]).all() and np.isnan(z[:,gone]).all() and np.isfinite(np.delete(z, 2, 0)[:,~none]).all() # .1 is not exact: its sd in float is not 0
    assert np.isclose(erank(np.eye(7)), 7) and np.isclose(erank(np.ones((7,3))), 1)
    u = rng.standard_normal((5,9)); c = (u@u.T)/np.outer(*[np.linalg.norm(u,axis=1)]*2)
    assert np.isclose(alike(u), c[~np.eye(5,dtype=bool)].mean())

def test_networks_and_homologues():
    a = schaefer(); net, order, bounds = networks(a.names, 400)
    assert [b[0] for b in bounds] == ['Vis','SomMot','DorsAttn','SalVentAttn','Limbic','Cont','Default'] and sorted(order) == list(range(400))
    assert all((net[order[i:j]]==n).all() for n,i,j in bounds) and bounds[-1][2] == 400
    assert {'VisCent','DefaultA'} == set(networks(['17Networks_LH_VisCent_ExStr_1','17Networks_RH_DefaultA_pCun_2'], 2)[0])
    p = homologues(a.names, a); gap = np.linalg.norm(a.centroids[p[:,0]]*[-1,1,1]-a.centroids[p[:,1]], axis=1)
    assert len(p) > 100 and (p[:,0]<200).all() and (p[:,1]>=200).all() and np.median(gap) < 8

def test_rows_under_any_name():
    d = tidy([{'features':'hub tokens', 'balanced_accuracy':.8, 'CI lo':.7, 'CI hi':.9}, {'features':'FC + logistic regression', 'balanced_accuracy':.7}, {'features':'Bayes optimum, both', 'balanced_accuracy':.9}])
    assert d.kind.tolist() == ['ours','baseline','bound'] and d.lo[0] == .7 and np.isnan(d.lo[1]) and (d.chance == .5).all()

def test_the_verdict_is_that_of_the_probe(tmp_path):
    "Paired differences decide, never two intervals beside each other; a sentence that is handed in comes first"
    rng = np.random.default_rng(0); y = rng.integers(0, 2, 60); x = rng.standard_normal((60,4)); x[:,0] += 3*y
    for sets,word in (({'hub tokens':x, 'FC':rng.standard_normal((60,4))}, '"hub tokens" beats functional connectivity'), ({'hub tokens':x, 'FC':x}, 'does not beat'), ({'hub tokens':x}, 'was not compared')):
        t = bench.compare(sets, y, np.arange(60), repeats=1, boots=100); text = lambda **kw: Page(report(tmp_path/'r.html', title='t', scan={}, **kw).read_text()).text
        assert word in bench.verdict(t) and bench.verdict(t) in text(probe=t) and 'no verdict' not in text(probe=t)
        assert 'mine' in text(probe=t, verdict='mine') and bench.verdict(t) not in text(probe=t, verdict='mine')
    assert 'no verdict is given' in text(probe=PROBE) and 'functional connectivity' not in text(probe=PROBE)

def test_cortex_only_where_the_atlas_is_known(full, tmp_path):
    assert 'Attention on each parcel' in full
    s = report(tmp_path/'r.html', **inputs()).read_text()
    assert 'Attention on each parcel' not in s and 'no cortex is drawn' in s
