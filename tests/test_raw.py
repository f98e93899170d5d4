"A raw run with known answers gives them back; what cannot be used ends in one sentence"
import json, os, tempfile
import nibabel as nib, numpy as np, pytest
from nibabel.affines import apply_affine
from nilearn.datasets import load_mni152_brain_mask
from scipy.ndimage import gaussian_filter
from brainharmonix.core import sample
from brainharmonix.preprocess import atlas as atlases, raw
from brainharmonix.preprocess.atlas import shipped_atlas, tissue, volume_atlas
from brainharmonix.preprocess.t1 import mni152
from common import refused

# ---- atlas

@pytest.fixture(scope='module')
def schaefer(): return shipped_atlas()

def test_the_shipped_atlas_holds_every_parcel_on_its_side(schaefer):
    x = np.asarray(schaefer.image.dataobj); c = raw.centroids(schaefer)
    assert np.array_equal(np.unique(x), np.arange(401)) and np.bincount(x.ravel())[1:].min() > 30
    assert (c[:200,0] < 0).all() and (c[200:,0] > 0).all() and schaefer.order == '7'

def test_the_shipped_atlas_is_grey_and_does_not_depend_on_the_grid(schaefer):
    x = np.asarray(schaefer.image.dataobj); mm = apply_affine(schaefer.image.affine, np.argwhere(x))
    assert tissue('gm', mm).min() >= .2
    assert np.array_equal(np.asarray(shipped_atlas(spacing=4.).image.dataobj), x[::2,::2,::2])

def test_the_shipped_atlas_agrees_with_the_published_one(schaefer):
    path = sample('parcellations/neurostorm_schaefer400_7net_2mm.nii.gz')
    if path is None: pytest.skip('BRAINHARMONIX_DATA does not hold parcellations')
    a, b = (np.asarray(i.dataobj).astype(int) for i in (schaefer.image, nib.load(path))); both = (a > 0) & (b > 0)
    assert (a == b)[both].mean() > .74 and 2*((a == b) & both).sum()/((a > 0).sum()+(b > 0).sum()) > .62

def test_any_atlas_file_and_a_fetched_one(schaefer, tmp_path, monkeypatch):
    x = np.asarray(schaefer.image.dataobj); f = tmp_path/'a.nii.gz'; nib.save(nib.Nifti1Image(np.where(x > 390, x, 0).astype('i2'), schaefer.image.affine), f)
    assert volume_atlas(f).ids.tolist() == list(range(391, 401))
    class Got: maps, labels = f, ['Background']+[f'17Networks_LH_X_{i}' for i in range(10)]
    monkeypatch.setattr(atlases, 'fetch_atlas_schaefer_2018', lambda *a, **k: Got)
    a = volume_atlas('schaefer400', fetch=True, networks=17)
    assert a.order == '17' and len(a.names) == len(a.ids) == 10
    def none(*a, **k): raise ConnectionError('no network\nhere')
    monkeypatch.setattr(atlases, 'fetch_atlas_schaefer_2018', none)
    refused(lambda: volume_atlas('schaefer400', fetch=True), 'schaefer400', 'cannot be fetched', 'leave out fetch')

def test_atlases_that_are_none(tmp_path):
    f = tmp_path/'a.nii.gz'
    for x,word in ((np.zeros((4,4,4)), 'no label'), (np.full((4,4,4), .5), 'no labels'), (np.zeros((4,4,4,2)), '4-D')):
        nib.save(nib.Nifti1Image(x.astype('f4'), np.eye(4)), f); refused(lambda: volume_atlas(f), f, word)
    refused(lambda: volume_atlas('schaefer401'), 'schaefer100'); refused(lambda: volume_atlas(networks='17'), 'fetch'); refused(lambda: volume_atlas(tmp_path/'b.nii.gz'), 'does not exist')

# ---- parts

def test_first_volumes():
    rng = np.random.default_rng(0); n = np.arange(200)
    for seed in range(20):
        r = np.random.default_rng(seed); assert raw.unsteady(1000+r.normal(0, 2, 200)) <= 1
    assert raw.unsteady(1000*(1+.6*np.exp(-2*n/1.4))+rng.normal(0, 8, 200)) == 3  # 60, 14 and 3.4 % too bright; then .8, like the noise
    assert raw.unsteady(np.r_[np.full(50, 1000.), np.full(50, 2000.)]) == 0 and raw.unsteady(np.full(30, 5.)) == 0
    assert raw.unsteady(np.r_[900, 1000+rng.normal(0, 1, 80)]) == 0  # darker is not brighter

def test_fd_and_dvars_in_closed_form():
    p = np.zeros((4,6)); p[1] = [.1,-.2,.3,.001,-.002,.003]
    assert np.allclose(raw.fd_power(p), [0, .6+.3, .9, 0])
    y = np.arange(20.)[:,None]*5-2*np.arange(30)  # a ramp that moves by 2 units per frame
    assert np.allclose(raw.dvars(y)[0][1:], 2) and np.isnan(raw.dvars(y)[0][0])
    white = np.random.default_rng(0).standard_normal((3000,300)); assert abs(np.nanmean(raw.dvars(white)[1])-1) < .02

def test_dvars_is_nipypes(tmp_path, monkeypatch):
    confounds = pytest.importorskip('nipype.algorithms.confounds')
    monkeypatch.setattr(confounds, '_AR_est_YW', lambda v, order, rxx=None: v[1:]@v[:-1]/(v@v)) # lag-1 autocorrelation; the original needs nitime
    x = (1000+50*gaussian_filter(np.random.default_rng(0).standard_normal((6,6,6,80)), (0,0,0,1))).astype('f4')
    nib.save(nib.Nifti1Image(x, np.eye(4)), tmp_path/'x.nii'); nib.save(nib.Nifti1Image(np.ones((6,6,6), 'u1'), np.eye(4)), tmp_path/'m.nii')
    std, plain, _ = confounds.compute_dvars(str(tmp_path/'x.nii'), str(tmp_path/'m.nii'), intensity_normalization=0)
    ours = raw.dvars(x.reshape(-1, 80))
    assert np.allclose(ours[0][1:], plain, rtol=1e-4) and np.allclose(ours[1][1:], std, rtol=5e-3)

def test_rigid_and_its_inverse():
    c = np.array([3.,-40,20]); p = np.array([1.,-2,3,.02,-.03,.01])
    assert np.allclose(raw.six(raw.rigid(p, c), c), p) and np.allclose(raw.rigid(np.r_[0,0,0,p[3:]], c)@[*c,1], [*c,1])

@pytest.mark.parametrize('direction', ['k','k-','i','j-'])
def test_slice_timing_restores_the_phase(direction):
    axis = 'ijk'.index(direction[0]); shape = [3,3,3]; shape[axis] = 8; t = np.arange(120)*2.; when = np.array([0,1,.25,1.25,.5,1.5,.75,1.75])
    wave = lambda t: np.sin(2*np.pi*.05*t+.3)
    x = np.empty((*shape,120), 'f4'); np.moveaxis(x, axis, 0)[:] = np.stack([wave(t+s) for s in (when[::-1] if direction.endswith('-') else when)])[:,None,None]
    y = raw.retime(x.copy(), *raw.slice_times(dict(SliceTiming=when.tolist(), SliceEncodingDirection=direction), x.shape, 2.), 2.)
    assert abs(x-wave(t+1))[...,8:-8].max() > .2 and abs(y-wave(t+1))[...,8:-8].max() < 2e-3

def test_slice_times_that_cannot_be():
    shape = (9,9,4,30); said = lambda s, **k: refused(lambda: raw.slice_times(dict(SliceTiming=s, **k), shape, 2., 'run.json'), 'run.json')
    assert '3 slice times' in said([0,1,.5]) and 'TR is 2 s' in said([0,500,1000,1500]) and '-0.1' in said([0,-.1,1,1]) and 'no list of numbers' in said(['a',0,1,2]) and 'no list' in said([[0],[1,2],3,4])
    assert "'x'" in said([0,1,1,1], SliceEncodingDirection='x') and 'slice times' in said([0,1,float('nan'),1])
    assert raw.slice_times({}, shape, 2.) is None

def test_mirror_pairs_are_mutual():
    r = np.random.default_rng(0).uniform(2, 60, (30,3)); pairs = raw.mirror_pairs(np.concatenate([r*[-1,1,1], r[::-1]]))
    assert len(pairs) == 30 and (pairs.sum(1) == 59).all()

# ---- a simulated head and run

class InMNI:
    "A registration that is the MNI152 template itself"
    def __init__(self): self.mask, self.t1 = load_mni152_brain_mask(resolution=1), nib.load(mni152())
    def to_mni(self, mm): return mm
    from_mni = to_mni

TR, T, WHEN = 2., 60, np.array([0,1,.25,1.25,.5,1.5,.75,1.75])

@pytest.fixture(scope='module')
def made(tmp_path_factory, schaefer):
    "A run of 4 mm voxels (simulated): parcels with sinusoids, motion, slice timing, three bright frames, noise"
    rng = np.random.default_rng(0); shape = 49, 58, 47; A = np.diag([4.,4,4,1]); A[:3,3] = -98,-134,-72
    place = raw.rigid(np.array([4.,-6,5,.06,-.03,.04]), np.zeros(3)); mm = apply_affine(place@A, np.indices(shape).reshape(3, -1).T) # scanner to MNI
    brain = load_mni152_brain_mask(resolution=1); inside = raw._look(np.asarray(brain.dataobj), np.linalg.inv(brain.affine), mm) > 0
    g, w = (np.mean([tissue(k, mm+d) for d in ([0,0,0],[1,1,1],[-1,-1,1],[-1,1,-1],[1,-1,-1])], 0) for k in ('gm','wm'))
    base = np.where(inside | (g+w > .3), 1000*g+800*w+1300*np.clip(1-g-w, 0, 1)*inside, 0).reshape(shape)
    lab = raw._look(np.asarray(schaefer.image.dataobj), np.linalg.inv(schaefer.image.affine), mm).reshape(shape)
    f, ph = rng.uniform(.01, .1, (401,3)), rng.uniform(0, 7, (401,3)); f[0] = 0
    series = lambda t: np.sin(2*np.pi*f[...,None]*t+ph[...,None]).sum(1)*(np.arange(401) > 0)[:,None] # [401,T] at times t
    p = gaussian_filter(np.cumsum(rng.normal(0, 1, (T,6)), 0), (3,0)); p = (p-p.mean(0))/np.abs(p-p.mean(0)).max(0)*[1,1,1,.01,.01,.01]
    times = np.resize(WHEN, shape[2]); centre = apply_affine(A, np.argwhere(base > 500).mean(0)); x = np.empty((*shape,T+3), np.float32); t = np.arange(T)*TR
    s = np.stack([series(t+w) for w in WHEN]); which = np.resize(np.arange(8), shape[2])
    for i in range(T): # the head's parcels at the time of each slice, then the head moves
        v = base*(1+.01*s[which[None,None,:], lab, i]); x[...,i+3] = raw.moved(v.astype('f4'), A, np.linalg.inv(raw.rigid(p[i], centre)))+rng.normal(0, 8, shape)
    for i,b in enumerate((1.6, 1.14, 1.034)): x[...,i] = b*x[...,3]
    d = tmp_path_factory.mktemp('raw'); im = nib.Nifti1Image(np.clip(x, 0, None).astype('i2'), A); im.header.set_xyzt_units('mm','sec'); im.header.set_zooms((4,4,4,TR)); im.set_qform(A, 1); im.set_sform(A, 1)
    nib.save(im, d/'run_bold.nii.gz'); (d/'run_bold.json').write_text(json.dumps(dict(RepetitionTime=TR, SliceTiming=times.tolist())))
    return d/'run_bold.nii.gz', place, p, centre, series(t+TR/2)[1:]

@pytest.fixture(scope='module')
def found(made, tmp_path_factory):
    d = tmp_path_factory.mktemp('empty')
    with pytest.MonkeyPatch.context() as m: m.setattr(tempfile, 'tempdir', str(d)); out = raw.raw_bold(made[0], InMNI(), strategy='none')
    assert not os.listdir(d) and len(os.listdir(made[0].parent)) == 2  # nothing is left behind, and nothing was written beside the run
    return out

def test_the_series_come_back(made, found):
    b, qc = found; ok = b.coverage > .9
    t = np.linspace(-1, 1, T); d = lambda s: s-s.mean(1, keepdims=True)-np.outer(s@t/(t@t), t)
    r = np.array([np.corrcoef(u, v)[0,1] for u,v in zip(d(made[4]), b.x)])
    assert ok.sum() > 350 and np.median(r[ok]) > .9, (ok.sum(), np.median(r[ok]))

def test_the_motion_and_the_place_come_back(made, found):
    path, place, p, centre, _ = made; b, qc = found
    at = centre+50*np.random.default_rng(0).uniform(-1, 1, (200,3))
    assert qc['dropped'] == 3 and len(b.fd) == T and b.tr == TR
    assert np.linalg.norm(apply_affine(qc['to_t1'], at)-apply_affine(place, at), axis=1).mean() < 1.5
    assert np.corrcoef(b.fd[1:], raw.fd_power(p)[1:])[0,1] > .8 and abs(b.fd[1:].mean()-raw.fd_power(p)[1:].mean()) < .1

def test_what_comes_with_a_run(found):
    b, qc = found
    assert b.order == '7' and b.names[0].startswith('7Networks_LH_Vis') and b.x.shape == (400,T) and b.atlas and len(b.decisions['steps']) > 5
    assert 'slice timing: 8 times to the middle of the TR' in b.decisions['steps'] and '3 first frames dropped' in b.decisions['steps']
    assert b.mean.shape == b.sd.shape == b.coverage.shape == (400,) and (b.coverage <= 1).all() and (b.coverage[b.x.std(1) == 0] < .5).all()
    want = {f'{k}_{a}{d}' for k in ('trans','rot') for a in 'xyz' for d in ('','_derivative1','_power2','_derivative1_power2')} | {'framewise_displacement','dvars','std_dvars','csf','white_matter','global_signal'}
    assert set(qc['confounds']) == want and len(qc['confounds']) == T
    live = b.x.std(1) > 0; assert np.allclose(b.x[live].std(1, ddof=1), 1, atol=1e-3)

def test_twice_the_same_bit_for_bit(made, found):
    again, qc = raw.raw_bold(made[0], InMNI(), strategy='none')
    assert np.array_equal(again.x, found[0].x) and np.array_equal(qc['to_t1'], found[1]['to_t1']) and qc['confounds'].equals(found[1]['confounds'])

def test_frames_that_move_are_marked(found, monkeypatch):
    b, qc = found; cut = float(np.median(b.fd)); s = raw.finish('run', b.x[b.x.std(1) > 0], TR, confounds=qc['confounds'], strategy='none', fd=cut)
    assert np.array_equal(s.missing, b.fd > np.float32(cut)) and (s.x[:,s.missing] == 0).all()

def test_a_body_that_does_not_register(made, tmp_path):
    im = nib.load(made[0]); x = np.asarray(im.dataobj, np.float32)[...,3:33]; rng = np.random.default_rng(0)
    noise = np.where(x.mean(-1, keepdims=True) > 300, 1000+rng.normal(0, 30, x.shape), 0); nib.save(nib.Nifti1Image(noise.astype('i2'), im.affine), tmp_path/'noise.nii.gz')
    refused(lambda: raw.raw_bold(tmp_path/'noise.nii.gz', InMNI(), tr=2.), 'noise.nii.gz', 'does not register to its T1', 'cost')
    refused(lambda: raw._check_fit('run.nii.gz', dict(bbr=.77, dice=.9), lambda: dict(bbr=.31)), 'left and right are swapped', '0.31 against 0.77')
    raw._check_fit('run.nii.gz', dict(bbr=.31, dice=.9), None)  # a good fit does not ask for the mirror

# ---- files

def put(path, x, affine=np.diag([3.,3,3,1]), zoom=2., change=lambda im:None):
    im = nib.Nifti1Image(x, affine); im.header.set_xyzt_units('mm','sec'); im.set_sform(affine, 1); im.set_qform(affine, 1)
    if x.ndim == 4: im.header.set_zooms((3,3,3,zoom))
    change(im); nib.save(im, path); return path

def test_files_that_are_no_run(tmp_path):
    f = tmp_path/'run.nii.gz'; x = np.random.default_rng(0).normal(1000, 10, (8,8,8,30)).astype('f4'); hole = x.copy(); hole[1,2,3,4] = np.nan; turned = np.diag([-3.,3,3,1]); off = np.diag([3.,3,3,1]); off[0,3] = 9
    run = lambda **k: raw.raw_bold(f, None, **k)
    for bad,words in ((dict(x=x[...,0]), ('3-D','4-D BOLD run')), (dict(x=0*x), ('constant',)), (dict(x=hole), ('1 NaN',)), (dict(x=x[...,:15]), ('15 frames','at least 20')), (dict(x=x[:,:,:2]), ('(8, 8, 2)',)),
                      (dict(x=x, change=lambda im: im.set_qform(turned, 1)), ('flips left and right',)), (dict(x=x, change=lambda im: im.set_qform(off, 1)), ('disagree', '9.0 mm')), (dict(x=x, change=lambda im: (im.set_sform(None, 0), im.set_qform(None, 0))), ('both 0',))):
        put(f, **bad); refused(run, f, *words)
    put(f, x); refused(lambda: run(drop=15), '15 after dropping the first 15'); refused(lambda: run(drop=-1), 'drop', '-1'); refused(lambda: run(tr=2000), 'milliseconds')
    put(f, x, zoom=0); refused(run, 'no TR')
    (tmp_path/'run.json').write_text('{"RepetitionTime": 2000}'); refused(run, 'run.json', 'milliseconds')
    (tmp_path/'run.json').write_text('[1]'); refused(run, 'run.json', 'not a JSON object')
    (tmp_path/'run.json').write_text('{"Repet'); refused(run, 'run.json', 'cannot be read')
    (tmp_path/'run.json').write_text(json.dumps(dict(RepetitionTime=2., SliceTiming=[0,1]))); refused(run, '2 slice times')
    f.write_bytes(f.read_bytes()[:9000]); refused(run, f, 'cut off')

def test_the_sidecar_beats_the_header(tmp_path):
    f = put(tmp_path/'run.nii.gz', np.random.default_rng(0).normal(1000, 10, (8,8,8,30)).astype('f4'), zoom=1.79)
    (tmp_path/'run.json').write_text('{"RepetitionTime": 2.0}'); _, _, tr, _, notes = raw.load_run(f)
    assert tr == 2. and '1.79' in notes[0]
    assert raw.load_run(f, meta=dict(RepetitionTime=1.8))[2] == 1.8  # fields that a dataset inherits stand before the file beside
