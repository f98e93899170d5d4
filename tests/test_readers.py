"Scans in all their forms read the same; what cannot be used ends in one sentence with file, fault and remedy"
import gzip, json, shutil
import nibabel as nib, numpy as np, pandas as pd, pytest
from nilearn import signal
from scipy.fft import dct
from nilearn.image import resample_img
from brainharmonix.core import sample
from brainharmonix.preprocess import bold
from brainharmonix.preprocess.bold import (LEAST, MOVES, cleaned, despiked, embedded_run, finish, fsaverage5_labels, project, read_bold, read_confounds, save_bold,
                                           save_ptseries, schaefer_names, strategy_columns)
from brainharmonix.preprocess.t1 import mni152, read_t1, t1_grid
from common import refused

R, T = 400, 40
NAMES = tuple(f'7Networks_{"LR"[i//200]}H_P_{i+1}' for i in range(R))

@pytest.fixture(scope='module')
def x(): return np.random.default_rng(0).standard_normal((R,T)).astype('f4')

@pytest.fixture
def npy(tmp_path):
    def put(a, name='run.npy'): np.save(tmp_path/name, a); return tmp_path/name
    return put

def gifti(path, part): # [V,T]
    nib.save(nib.gifti.GiftiImage(darrays=[nib.gifti.GiftiDataArray(np.ascontiguousarray(part[:,t]), intent='NIFTI_INTENT_TIME_SERIES') for t in range(part.shape[1])]), path)

@pytest.fixture(scope='module')
def forms(tmp_path_factory, x):
    "One series in every form: {form: (path, arguments)}"
    d = tmp_path_factory.mktemp('forms'); np.save(d/'x.npy', x); frame = pd.DataFrame(x, index=NAMES)
    frame.to_csv(d/'x.csv'); frame.to_csv(d/'x.csv.gz', header=False); frame.to_csv(d/'x.tsv', sep='\t', index=False, header=False)
    frame.T.to_csv(d/'x.1D', sep='\t', index=False)
    lab = np.repeat(np.arange(1,201), 2)
    for h,part in (('L',x[:200]), ('R',x[200:])): gifti(d/f'x_hemi-{h}.func.gii', np.repeat(part, 2, 0))
    for h,part in (('lh',x[:200]), ('rh',x[200:])): nib.save(nib.MGHImage(np.repeat(part, 2, 0).reshape(400,1,1,T), np.eye(4)), d/f'x.{h}.mgz')
    nib.save(nib.Nifti1Image(np.repeat(np.arange(R).reshape(20,20,1)+1, 2, 2).astype('i2'), np.eye(4)), d/'atlas.nii.gz')
    v = nib.Nifti1Image(np.repeat(x.reshape(20,20,1,T), 2, 2), np.eye(4)); v.header.set_xyzt_units('mm', 'sec'); v.header.set_zooms((1,1,1,.735)); nib.save(v, d/'x.nii.gz')
    save_ptseries(d/'x.ptseries.nii', x, .735, NAMES)
    for f in ('x.json','x_hemi-L.json'): (d/f).write_text(json.dumps(dict(RepetitionTime=.735)))
    surf = dict(labels=(lab,lab))
    return {'npy':('x.npy',{}), 'csv':('x.csv',{}), 'csv.gz':('x.csv.gz',{}), 'tsv':('x.tsv',{}), '1D':('x.1D',{}), 'gii':('x_hemi-L.func.gii',surf), 'gii right':('x_hemi-R.func.gii',dict(surf, tr=.735)),
            'gii both':(f'{d}/x_hemi-L.func.gii,{d}/x_hemi-R.func.gii',surf), 'mgz':('x.lh.mgz',dict(surf, tr=.735)), 'volume':('x.nii.gz',dict(atlas=d/'atlas.nii.gz')), 'ptseries':('x.ptseries.nii',{})}, d

@pytest.mark.parametrize('form', ['npy','csv','csv.gz','tsv','1D','gii','gii right','gii both','mgz','volume','ptseries'])
def test_one_series_in_every_form(forms, x, form):
    f, kw = forms[0][form]
    b = read_bold(f if ',' in f else forms[1]/f, clean=False, parcels=R, **kw)
    assert b.x.dtype == np.float32 and np.allclose(b.x, x, atol=1e-4) and b.tr == .735 and b.missing.shape == (T,)
    if form in ('csv','csv.gz','1D','ptseries'): assert b.names == NAMES and b.order == '7'

def test_cleaning_is_a_z_score(npy, x):
    y = read_bold(npy(1e4+100*x), tr=2).x
    assert abs(y.mean(1)).max() < 1e-4 and abs(y.std(1, ddof=1)-1).max() < 1e-4

# ---- tables
def test_transposed(npy, x): refused(lambda: read_bold(npy(x.T), tr=2, parcels=R), 'run.npy', 'transposed')
def test_transposed_by_its_names(tmp_path, x):
    pd.DataFrame(x.T, columns=NAMES).to_csv(tmp_path/'t.csv', index=False)
    refused(lambda: read_bold(tmp_path/'t.csv', tr=2), 't.csv', 'transposed')
def test_number_of_parcels(npy, x): refused(lambda: read_bold(npy(x[:360]), tr=2, parcels=R), 'run.npy', 360, 400)
@pytest.mark.parametrize('bad', [np.nan, np.inf, -np.inf])
def test_not_finite(npy, x, bad):
    y = x.copy(); y[6,11] = bad
    refused(lambda: read_bold(npy(y), tr=2), 'run.npy', 'parcel 7, frame 12')
def test_not_a_number_in_text(tmp_path, x):
    d = pd.DataFrame(x).astype(object); d.iloc[6,11] = 'n/a'; d.to_csv(tmp_path/'t.csv', header=False, index=False)
    refused(lambda: read_bold(tmp_path/'t.csv', tr=2), 't.csv', 'parcel 7, frame 12')
def test_constant(npy, x):
    y = x.copy(); y[[3,9]] = 1e4
    refused(lambda: read_bold(npy(y), tr=2), 'run.npy', '2 constant parcels (4, 10)')
@pytest.mark.parametrize('n', [0,1])
def test_frames(npy, x, n): refused(lambda: read_bold(npy(x[:,:n]), tr=2), 'run.npy', f'{n} frame')
def test_shape(npy, x): refused(lambda: read_bold(npy(x[None]), tr=2), 'run.npy', 'shape')
def test_npy_of_objects(npy): refused(lambda: read_bold(npy(np.array(['a','b'])), tr=2), 'run.npy', 'not numbers')
def test_number_of_names(npy, x): refused(lambda: read_bold(npy(x), tr=2, names=NAMES[:9]), 'run.npy', '9 names')
def test_ending(tmp_path): (tmp_path/'run.mat').write_bytes(b'x'); refused(lambda: read_bold(tmp_path/'run.mat', tr=2), 'run.mat', '.npy')
def test_absent(tmp_path): refused(lambda: read_bold(tmp_path/'no.npy', tr=2), 'no.npy', 'does not exist')
def test_empty(tmp_path): (tmp_path/'e.csv').touch(); refused(lambda: read_bold(tmp_path/'e.csv', tr=2), 'e.csv', 'empty')

# ---- TR
def test_tr_missing(npy, x): refused(lambda: read_bold(npy(x)), 'run.npy', 'no TR')
def test_tr_in_milliseconds(npy, x): refused(lambda: read_bold(npy(x), tr=735), 'run.npy', 'milliseconds', 'tr=0.735')
@pytest.mark.parametrize('tr', [0, -2, np.nan])
def test_tr_not_positive(npy, x, tr): refused(lambda: read_bold(npy(x), tr=tr), 'run.npy', 'positive')
def test_tr_of_sidecar(npy, x):
    f = npy(x); f.with_suffix('.json').write_text('{"RepetitionTime": 1.4}')
    assert read_bold(f).tr == 1.4
    refused(lambda: read_bold(f, tr=2), 'run.json', '1.4 s', 'given is 2 s')
    b = read_bold(f, tr=2, trust_tr=True); assert b.tr == 2 and any('1.4' in n and 'run.json' in n for n in b.notes)
    assert any('1.4' in n for n in read_bold(f, tr=1.41).notes)  # a rounding is noted
    f.with_suffix('.json').write_text('{"RepetitionTime": 1400}'); refused(lambda: read_bold(f), 'run.json', 'tr=1.4')
    f.with_suffix('.json').write_text('{"RepetitionTime": '); refused(lambda: read_bold(f), 'run.json', 'cut off')
def test_tr_of_header(forms, tmp_path):
    im = nib.load(forms[1]/'x.nii.gz'); nib.save(im, tmp_path/'h.nii.gz'); of = dict(tr=2, atlas=forms[1]/'atlas.nii.gz')
    refused(lambda: read_bold(tmp_path/'h.nii.gz', **of), 'h.nii.gz', '0.735', 'trust_tr')
    b = read_bold(tmp_path/'h.nii.gz', **of, trust_tr=True); assert b.tr == 2 and any('0.735' in n for n in b.notes)
    im.header.set_xyzt_units('mm', 'msec'); im.header.set_zooms((1,1,1,735)); nib.save(im, tmp_path/'ms.nii.gz')
    refused(lambda: read_bold(tmp_path/'ms.nii.gz', atlas=forms[1]/'atlas.nii.gz'), 'ms.nii.gz', 'tr=0.735')
    im.header.set_xyzt_units('mm', 'unknown'); im.header.set_zooms((1,1,1,1)); nib.save(im, tmp_path/'none.nii.gz')
    refused(lambda: read_bold(tmp_path/'none.nii.gz', atlas=forms[1]/'atlas.nii.gz'), 'none.nii.gz', 'no TR')

# ---- order of parcels
def test_order(npy, x):
    f, seventeen = npy(x), [n.replace('7N', '17N') for n in NAMES]
    refused(lambda: read_bold(f, tr=2, names=seventeen, expect_order='7'), 'run.npy', '17-network', '7-network order is expected')
    refused(lambda: read_bold(f, tr=2, order='17', expect_order='7'), '17-network')
    refused(lambda: read_bold(f, tr=2, names=NAMES, order='17'), '7-network', '17-network')
    refused(lambda: read_bold(f, tr=2, order='9'), '9')
    assert read_bold(f, tr=2, names=NAMES, expect_order='7').order == '7'
    assert any('not stated' in n for n in read_bold(f, tr=2).notes)

# ---- files cut short
@pytest.mark.parametrize('form', ['npy','csv.gz','gii','mgz','volume','ptseries'])
@pytest.mark.parametrize('share', [.02,.5,.95])
def test_cut_short(forms, tmp_path, form, share):
    d = tmp_path/'d'; shutil.copytree(forms[1], d); f, kw = forms[0][form]
    (d/f).write_bytes((d/f).read_bytes()[:int(share*(d/f).stat().st_size)])
    refused(lambda: read_bold(d/f, parcels=R, **dict(kw, tr=.735)), f, 'copy or download it again')

@pytest.mark.parametrize('form', ['npy','csv.gz','gii','mgz','volume','ptseries'])
def test_other_content(forms, tmp_path, form):
    d = tmp_path/'d'; shutil.copytree(forms[1], d); f, kw = forms[0][form]
    (d/f).write_text('this is not what the name says\n')
    refused(lambda: read_bold(d/f, parcels=R, **dict(kw, tr=.735)), f)

# ---- surfaces, volumes, CIFTI
def test_one_hemisphere(forms, tmp_path):
    shutil.copy(forms[1]/'x_hemi-L.func.gii', tmp_path)
    refused(lambda: read_bold(tmp_path/'x_hemi-L.func.gii', tr=2), 'x_hemi-L.func.gii', 'one hemisphere only', 'x_hemi-R.func.gii')
    (tmp_path/'x_hemi-L.func.gii').rename(tmp_path/'run.func.gii')
    refused(lambda: read_bold(tmp_path/'run.func.gii', tr=2), 'does not say which')
def test_mesh_without_labels(forms): refused(lambda: read_bold(forms[1]/'x.lh.mgz', tr=2), 'x.lh.mgz', '400 + 400 vertices', 'labels=')
def test_labels_of_another_mesh(forms): refused(lambda: read_bold(forms[1]/'x.lh.mgz', tr=2, labels=fsaverage5_labels()), 'x.lh.mgz', 10242)
def test_hemispheres_of_two_runs(forms, tmp_path, x):
    for h,n in (('lh',T),('rh',T-1)): nib.save(nib.MGHImage(x[:,:n].reshape(R,1,1,n).copy(), np.eye(4)), tmp_path/f'x.{h}.mgz')
    refused(lambda: read_bold(tmp_path/'x.lh.mgz', tr=2), 'x.rh.mgz', T-1, T)
def test_volume_without_atlas(forms): refused(lambda: read_bold(forms[1]/'x.nii.gz'), 'x.nii.gz', 'no atlas')
def test_volume_is_3d(forms): refused(lambda: read_bold(forms[1]/'atlas.nii.gz', tr=2, atlas=forms[1]/'atlas.nii.gz'), 'atlas.nii.gz', '3-D')
def test_volume_elsewhere(forms, tmp_path):
    im = nib.load(forms[1]/'x.nii.gz'); A = np.eye(4); A[0,3] = 15; nib.save(nib.Nifti1Image(im.get_fdata(dtype='f4'), A, im.header), tmp_path/'far.nii.gz')
    refused(lambda: read_bold(tmp_path/'far.nii.gz', tr=2, atlas=forms[1]/'atlas.nii.gz'), 'far.nii.gz', 'does not cover', 'space of the atlas')
def test_cifti_of_maps(tmp_path): refused(lambda: read_bold(tmp_path/'a.dscalar.nii', tr=2), 'a.dscalar.nii', 'maps', '.dtseries.nii')
@pytest.mark.parametrize('background', [0,1,None])
def test_label_table_that_counts_background(tmp_path, background):
    "Names stay with their parcels, also where the volume lost the first one"
    rows = ([(background,'Background')] if background is not None else [])+[(i+1+(background or 0), n) for i,n in enumerate(NAMES)]
    pd.DataFrame(rows, columns=['index','name']).to_csv(tmp_path/'l.csv', index=False)
    assert bold.label_names(tmp_path/'l.csv', np.arange(1,R+1))[0] == NAMES
    assert bold.label_names(tmp_path/'l.csv', np.arange(2,R+1))[0] == NAMES[1:]
def test_label_table_of_another_atlas(tmp_path):
    pd.DataFrame(dict(index=range(1,10), name=NAMES[:9])).to_csv(tmp_path/'l.csv', index=False)
    refused(lambda: bold.label_names(tmp_path/'l.csv', np.arange(1,R+1)), 'l.csv', 9, R)

# ---- confounds
def test_confounds_of_another_length(npy, x, tmp_path):
    pd.DataFrame(np.zeros((T-1,2)), columns=['a','b']).to_csv(tmp_path/'c.tsv', sep='\t', index=False)
    refused(lambda: read_bold(npy(x), tr=2, confounds=tmp_path/'c.tsv'), 'c.tsv', T-1, T)
def test_too_many_confounds(npy, x): refused(lambda: read_bold(npy(x), tr=2, confounds=np.random.default_rng(0).standard_normal((T,T))), 'confounds', 'columns=')
def test_confounds_with_holes(npy, x, tmp_path):
    c = pd.DataFrame(np.random.default_rng(0).standard_normal((T,2)), columns=['a','b']).astype(object); c.iloc[0,1] = 'n/a'; c.to_csv(tmp_path/'c.tsv', sep='\t', index=False)
    assert np.isfinite(read_bold(npy(x), tr=2, confounds=tmp_path/'c.tsv').x).all()
    c.iloc[7,1] = 'n/a'; c.to_csv(tmp_path/'c.tsv', sep='\t', index=False)
    refused(lambda: read_bold(npy(x), tr=2, confounds=tmp_path/'c.tsv'), 'c.tsv', 'column b, row 8')
    refused(lambda: read_bold(npy(x), tr=2, confounds=tmp_path/'c.tsv', columns=['z']), 'c.tsv', 'no column z')
    assert np.isfinite(read_bold(npy(x), tr=2, confounds=tmp_path/'c.tsv', columns=['a']).x).all()
def test_spikes_are_missing_frames(npy, x):
    c = pd.DataFrame(dict(trans_x=np.arange(T)**2., trans_y=np.sin(np.arange(T)), rot_x=np.cos(np.arange(T)), rot_z=np.ones(T), rot_y=np.ones(T), trans_z=np.ones(T), global_signal=x.mean(0), motion_outlier00=np.eye(T)[5]))
    used = read_confounds(c, T)[2]; b = read_bold(npy(x), tr=2, confounds=c)
    assert 'global_signal' not in used and b.missing.tolist() == [t == 5 for t in range(T)] and (b.x[:,5] == 0).all() and abs(b.x.mean(1)).max() < 1e-4
def test_band_beyond_nyquist(npy, x): refused(lambda: read_bold(npy(x), tr=6, band=(.009,.1)), 'band', 'TR 6 s')

# ---- cleaning
@pytest.fixture(scope='module')
def nuisance():
    "200 frames of a known signal under known confounds"
    rng = np.random.default_rng(0); n = 200; d = pd.DataFrame(.02*rng.standard_normal((n,6)).cumsum(0), columns=MOVES).assign(white_matter=rng.standard_normal(n), csf=rng.standard_normal(n), global_signal=rng.standard_normal(n)); d.loc[100:,'trans_x'] += 2; d[list(MOVES[3:])] /= 50 # rad
    truth = rng.standard_normal((9,n)); return truth, 800+truth+3*rng.standard_normal((9,9)) @ (d/d.std()).to_numpy().T+np.arange(n), d

def test_projection_is_that_of_nilearn(nuisance):
    _, x, d = nuisance; c = d.to_numpy()
    assert np.allclose(cleaned(x, 2., c), signal.clean(x.T, detrend=True, confounds=c, standardize='zscore_sample', standardize_confounds=True).T, atol=1e-5)

@pytest.mark.parametrize('missing', [False, True])
def test_nothing_comes_back(nuisance, missing):
    "After the one projection the series are orthogonal to mean, trend, confounds and every cosine out of the band, over the frames that exist"
    _, x, d = nuisance; n = x.shape[1]; m = np.zeros(n, bool); m[[5,6,80]] = missing; keep = ~m; c = d.to_numpy(); y, df = project(x, 2., c, m, (.01,.1))
    f = np.arange(n)/(2*n*2.); k = np.flatnonzero((f < .01) | (f > .1)); out = np.cos(np.pi*np.outer(np.arange(n)+.5, k)/n)
    Z = np.c_[out, np.arange(n), c][keep]; Z = Z/np.linalg.norm(Z, axis=0)
    assert abs(y[:,keep] @ Z).max() < 1e-8*abs(x).max() and (y[:,m] == 0).all() and df == keep.sum()-np.linalg.matrix_rank(Z, tol=1e-6)
    if not missing: assert (dct(y, axis=1)[:,k]**2).sum() < 1e-12*(dct(y, axis=1)**2).sum()

def test_a_confound_of_the_stop_band_does_not_come_back():
    t = np.arange(300)*2.; truth, slow, fast = (np.sin(2*np.pi*f*t+p) for f,p in ((.04,1), (.06,0), (.2,2))); c = (slow+3*fast)[:,None]
    b = finish('run', (truth+slow+3*fast)[None], 2., confounds=c, columns=['1'], band=(.01,.1)); power = lambda y,f: abs(y @ np.exp(2j*np.pi*f*t))
    assert power(b.x[0], .2) < .01*power(b.x[0], .04) and np.corrcoef(b.x[0], truth)[0,1] > .98
    naive = signal.clean(signal.clean((truth+slow+3*fast)[:,None], t_r=2., low_pass=.1, high_pass=.01, standardize=None), confounds=c, standardize=None)[:,0]; assert power(naive, .2) > .1*power(naive, .04)

@pytest.mark.parametrize('strategy,n', [('none',0), ('motion6',6), ('motion12',12), ('motion24',24), ('motion6+wm+csf',8), ('motion24+wm+csf+global',27), ('motion24+wm4+csf4+global4',36), ('wm2',2), ('default',14), ('paper',15)])
def test_strategies(nuisance, strategy, n):
    c, _, used = read_confounds(nuisance[2], 200, strategy=strategy); assert c.shape == (200,n) and len(set(used)) == n and np.isfinite(c).all()
    if 'motion24' in strategy: i = used.index('rot_y_derivative1_power2'); assert np.allclose(c[1:,i], np.diff(nuisance[2].rot_y)**2)
@pytest.mark.parametrize('bad', ['motion7','gsr','','motion6+','wm3','aroma'])
def test_unknown_strategy(npy, x, nuisance, bad): refused(lambda: read_bold(npy(x), tr=2, strategy=bad), 'strategy', repr(bad)); refused(lambda: strategy_columns(bad), 'unknown part')
def test_strategy_without_its_columns(npy, x): refused(lambda: read_bold(npy(x), tr=2, strategy='motion6'), 'no confounds'); refused(lambda: read_bold(npy(x), tr=2, strategy='motion6', confounds=np.zeros((T,2))), 'no column trans_x')

def test_the_truth_under_the_confounds(nuisance):
    truth, x, d = nuisance; r = lambda **kw: np.mean([np.corrcoef(a, b)[0,1] for a,b in zip(finish('run', x, 2., confounds=d, **kw).x, truth)])
    assert r(strategy='none') < .5 < .9 < r(strategy='motion6+wm+csf+global')
def test_paper_preset(nuisance):
    b = finish('run', nuisance[1], 2., confounds=nuisance[2], strategy='paper'); s = b.decisions['steps']
    assert b.decisions['band'] == [.009,.08] and len(b.decisions['confounds']) == 15 and s[0].startswith('despiked') and '15 confounds, frequencies outside 0.009-0.08 Hz' in s[1] and s[-1].startswith('z-scored')
    assert finish('run', nuisance[1], 2., confounds=nuisance[2], strategy='paper', band=(.01,.1), despike=False).decisions['band'] == [.01,.1]

def test_censoring(nuisance):
    _, x, d = nuisance; b = finish('run', x, 2., confounds=d, fd=.5); moved = np.flatnonzero(b.missing).tolist(); assert moved == np.flatnonzero(b.fd > .5).tolist() and 100 in moved and (b.x[:,b.missing] == 0).all()
    assert np.isclose(b.fd[100], np.abs(np.diff(d[list(MOVES)].to_numpy(), axis=0))[99] @ [1,1,1,50,50,50])
    keep = ~b.missing; assert abs(b.x[:,keep].mean(1)).max() < 1e-5 and np.allclose(b.x[:,keep].std(1, ddof=1), 1, atol=1e-4)
    i = finish('run', x, 2., confounds=d, fd=.5, censor='interpolate'); assert not i.missing.any() and np.array_equal(i.x[:,keep], b.x[:,keep])
    m = np.zeros(200, bool); m[[0,50,199]] = True; i = finish('run', x, 2., missing=m, censor='interpolate'); assert np.allclose(i.x[:,50], (i.x[:,49]+i.x[:,51])/2, atol=1e-6) and np.array_equal(i.x[:,0], i.x[:,1]) and np.array_equal(i.x[:,199], i.x[:,198])
    refused(lambda: finish('run', x, 2., missing=m, censor='drop'), 'censor', 'interpolate'); assert any('no framewise displacement' in n for n in finish('run', x, 2., fd=.5).notes)

def test_despiking():
    x = np.tile([0,1.,0,-1,2,-2], 40)[None].repeat(2, 0); x[0,120] = 1e3; y = despiked(x); s = np.sqrt(np.pi/2)*1  # the median deviation of 0 0 1 1 2 2 is 1
    assert np.isclose(y[0,120], 4*s, rtol=1e-6) and np.array_equal(np.delete(y, 120, 1), np.delete(x, 120, 1)) and np.array_equal(y[1], x[1])
    x[0,120] = 3*s; assert np.isclose(despiked(x)[0,120], s*(2.5+1.5*np.tanh(.5/1.5)))
    m = np.zeros(240, bool); m[120] = True; assert despiked(x, m)[0,120] == x[0,120]

def test_degrees_of_freedom(nuisance):
    _, x, d = nuisance; n = LEAST+2+27-1; refused(lambda: finish('run', x[:,:n], 2., confounds=d.iloc[:n], strategy='motion24+wm+csf+global'), 'confounds', f'leave {LEAST-1} of {n} degrees of freedom', '27 columns')
    assert finish('run', x[:,:n+1], 2., confounds=d.iloc[:n+1], strategy='motion24+wm+csf+global').decisions['degrees_of_freedom'] == LEAST
    refused(lambda: finish('run', x[:,:60], 2., confounds=d.iloc[:60], strategy='motion24', band=(.009,.08)), 'degrees of freedom', '0.009-0.08 Hz', 'columns=')
    assert finish('run', x[:,:60], 2., confounds=d.iloc[:60], strategy='motion6').decisions['degrees_of_freedom'] == 60-2-6

def test_signal_is_mean_and_sd(npy, x):
    b = read_bold(npy(1e4+100*x), tr=2); t = np.arange(T)-(T-1)/2; y = 1e4+100*x.astype(float); slope = y @ t/(t @ t)
    assert np.allclose(b.mean[:,None]+b.sd[:,None]*b.x+slope[:,None]*t, y, atol=.01)  # what went was the trend

# ---- records
def test_record(tmp_path, npy, x):
    m = np.arange(T) == 7; b = read_bold(npy(5e3+20*x), tr=2, names=NAMES, missing=m); b.fd = np.linspace(0, 1, T).astype('f4'); b.coverage = np.linspace(.5, 1, R).astype('f4')
    f = save_bold(tmp_path/'a_timeseries.safetensors', b); a = read_bold(f, parcels=R, expect_order='7', tr=2)
    for k in ('mean','sd','coverage','fd','missing'): assert np.array_equal(getattr(a, k), getattr(b, k)), k
    assert (a.tr, a.names, a.order, a.atlas, a.source, a.notes, a.decisions) == (b.tr, NAMES, '7', 'Schaefer-400', b.source, b.notes, b.decisions) and a.x.dtype == np.float32 and (a.x[:,m] == 0).all()
    s, r = (v.mean[:,None]+v.sd[:,None]*v.x for v in (b, a)); assert (abs(s-r) <= 2**-11*abs(b.sd[:,None]*b.x)+1e-3).all()
    for kw,w in ((dict(tr=.8), '0.8'), (dict(names=NAMES[::-1]), 'names'), (dict(order='17'), '17'), (dict(expect_order='17'), '17-network'), (dict(parcels=200), '200'), (dict(band=(.01,.1)), 'band'), (dict(confounds=np.zeros((T,1))), 'confounds'), (dict(missing=m), 'missing'), (dict(strategy='motion6'), 'strategy')):
        refused(lambda: read_bold(f, **kw), 'a_timeseries.safetensors', w)
    f.write_bytes(f.read_bytes()[:-9]); refused(lambda: read_bold(f), 'a_timeseries.safetensors', 'cut off')
def test_record_of_a_run_that_was_not_cleaned(tmp_path, npy, x):
    b = read_bold(npy(5e3+20*x), tr=2, clean=False); a = read_bold(save_bold(tmp_path/'a_timeseries.safetensors', b)); assert abs(a.mean[:,None]+a.sd[:,None]*a.x-b.x).max() < .1 and abs(a.x.std(1, ddof=1)-1).max() < 1e-3
    assert a.decisions['steps'] == ['not cleaned'] and b.mean is None

def test_real_run():
    b = embedded_run()
    assert b.x.shape == (400,652) and b.tr == 1.4 and b.order == '7' and b.names == schaefer_names() and b.coverage.min() > .5 and any('says TR 1 s' in n for n in b.notes)

def test_fsaverage5_labels_agree_with_the_annot():
    if sample('parcellations') is None: pytest.skip('BRAINHARMONIX_DATA does not hold parcellations')
    true, names = bold.surface_labels(sample('parcellations')/'micapipe_lh.schaefer-400_fsaverage5.annot')
    assert len(names) == 400 and bold.order_of(names) == '7'
    assert np.mean(np.concatenate(true) == np.concatenate(fsaverage5_labels())) > .86

# ---- T1
@pytest.fixture(scope='module')
def template():
    A = np.diag([-2.,2,2,1]); A[:3,3] = 90, -126, -72
    return resample_img(nib.load(mni152()), A, (91,109,91), interpolation='linear', copy_header=True, force_resample=True)

@pytest.fixture
def t1(tmp_path, template):
    def put(x=None, affine=None, name='t1.nii.gz', code=4):
        affine = template.affine if affine is None else affine
        im = nib.Nifti1Image(np.asarray(template.dataobj if x is None else x, 'f4'), affine); im.set_sform(affine, code); im.set_qform(affine, code); nib.save(im, tmp_path/name); return tmp_path/name
    return put

def test_t1_reads_any_grid(t1, template):
    a = read_t1(t1(), 2.); assert a.x.shape == (80,96,80) and a.x.dtype == np.float32 and np.array_equal(a.affine, t1_grid(2.)[1])
    v = np.asarray(template.dataobj)[...,None]; A = template.affine@np.diag([-1,1,1,1]); A[:3,3] = template.affine[:3,3]+template.affine[:3,0]*90
    b = read_t1(t1(v[::-1], A), 2.)  # turned to RAS, with a fourth axis of length 1
    assert np.allclose(a.x, b.x, atol=1e-3)

@pytest.mark.parametrize('change,words', [
    (lambda v: np.stack([v,v], -1), ['4-D']), (lambda v: np.where(np.indices(v.shape).sum(0) == 0, np.nan, v), ['1 NaN', '(0, 0, 0)']),
    (lambda v: np.full_like(v, 3), ['constant']), (lambda v: v[:,::-1], ['not in MNI space']), (lambda v: v.max()-v, ['not in MNI space']),
    (lambda v: np.random.default_rng(0).random(v.shape), ['not in MNI space'])])
def test_t1_refused(t1, template, change, words):
    refused(lambda: read_t1(t1(change(np.asarray(template.dataobj))), 2.), 't1.nii.gz', *words)

def test_t1_out_of_place(t1, template):
    A = template.affine.copy(); A[2,3] += 15; refused(lambda: read_t1(t1(affine=A), 2.), 'not in MNI space', 'register')
    A[2,3] += 60; refused(lambda: read_t1(t1(affine=A), 2.), 'not in MNI space', 'lies inside')
def test_t1_without_affine(t1): refused(lambda: read_t1(t1(code=0)), 't1.nii.gz', 'sform and qform')
@pytest.mark.parametrize('share', [.001,.5,.98])
def test_t1_cut_short(t1, share):
    f = t1(); f.write_bytes(f.read_bytes()[:max(10, int(share*f.stat().st_size))]); refused(lambda: read_t1(f), 't1.nii.gz', 'download it again')
def test_t1_files(tmp_path):
    (tmp_path/'a.nii.gz').write_bytes(gzip.compress(b'nothing')); (tmp_path/'a.mnc').touch(); (tmp_path/'e.nii').touch()
    for f,w in (('a.nii.gz','damaged'), ('a.mnc','.nii.gz'), ('e.nii','empty'), ('no.nii','does not exist')): refused(lambda: read_t1(tmp_path/f), f, w)
def test_t1_options(t1): refused(lambda: read_t1(t1(), 3.), 'spacing'); refused(lambda: read_t1(t1(), norm='robust'), 'norm')
def test_t1_raw_scan():
    if sample('studyforrest') is None: pytest.skip('BRAINHARMONIX_DATA does not hold studyforrest')
    refused(lambda: read_t1(sample('studyforrest')/'sub-02_T1w.nii.gz', 2.), 'not in MNI space', 'register')
