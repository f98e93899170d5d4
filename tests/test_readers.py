"Scans in all their forms read the same; what cannot be used ends in one sentence with file, fault and remedy"
import gzip, json, shutil
import nibabel as nib, numpy as np, pandas as pd, pytest
from nilearn.image import resample_img
from brainharmonix.core import BadInput, sample
from brainharmonix.preprocess import bold
from brainharmonix.preprocess.bold import embedded_run, fsaverage5_labels, read_bold, read_confounds, save_ptseries
from brainharmonix.preprocess.t1 import mni152, read_t1, t1_grid

R, T = 400, 40
NAMES = tuple(f'7Networks_{"LR"[i//200]}H_P_{i+1}' for i in range(R))

def refused(call, *words):
    "The sentence, which holds every word"
    with pytest.raises(BadInput) as e: call()
    said = str(e.value)
    assert said.endswith('.') and said.count(';') == 1 and '\n' not in said, said
    for w in words: assert str(w) in said, said
    return said

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
def test_dtseries(tmp_path): refused(lambda: read_bold(tmp_path/'a.dtseries.nii', tr=2), 'a.dtseries.nii', 'parcellate')
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

def test_real_run():
    b = embedded_run()
    assert b.x.shape == (400,652) and b.tr == 1.4 and b.order == '7' and any('says TR 1 s' in n for n in b.notes)

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
