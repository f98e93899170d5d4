"Finished derivatives in their official layouts: found by name, read with what lies beside them, values known in closed form"
import nibabel as nib, numpy as np, pandas as pd, pytest
from brainharmonix.core import sample, shipped
from brainharmonix.preprocess.bold import CORTEX, MOVES, fslr_labels, fsaverage5_labels, read_bold, read_confounds, save_bold, save_ptseries, schaefer_names, strategy_columns
from brainharmonix.preprocess.derivatives import find_derivatives, pipeline_of, read_derivative
from common import refused

T, NAMES = 30, schaefer_names()
BM, SERIES = nib.cifti2.BrainModelAxis, nib.cifti2.SeriesAxis

@pytest.fixture(scope='module')
def x(): return (1000+np.random.default_rng(0).standard_normal((400,T)).cumsum(1)).astype('f4')

def made(path): path.parent.mkdir(parents=True, exist_ok=True); return path

def cortex(): # vertices outside the medial wall
    d = sample('surfaces')
    return [np.flatnonzero(np.loadtxt(d/f'brainEigenmodes_fsLR_32k_cortex-{h}_mask.txt') if d else l) for h,l in zip(('lh','rh'), fslr_labels())]

def grayordinates(): # both cortices and a block of subcortical voxels
    a, b = (BM.from_surface(v, 32492, n) for v,n in zip(cortex(), CORTEX)); m = np.zeros((91,109,91), bool); m[40:44,50:54,30:34] = True
    return a+b+BM.from_mask(m, 'CIFTI_STRUCTURE_THALAMUS_LEFT', affine=np.diag([-2.,2,2,1]))

def dtseries(path, x, tr=.8, axis=None): # every grayordinate holds the series of its parcel; others a constant of their own
    axis = axis or grayordinates(); lab = np.zeros(len(axis), int)
    for n,rows,part in axis.iter_structures():
        if n in CORTEX: lab[rows] = fslr_labels()[CORTEX.index(n)][part.vertex]
    nib.save(nib.Cifti2Image(np.where((lab > 0)[:,None], x[lab-1], 77).T.astype('f4'), (SERIES(0, tr, x.shape[1]), axis)), made(path)); return lab, axis

def confounds(path, seed=0, **columns):
    rng = np.random.default_rng(seed); d = pd.DataFrame(.01*rng.standard_normal((T,6)), columns=MOVES).assign(csf=rng.standard_normal(T), white_matter=rng.standard_normal(T), global_signal=rng.standard_normal(T), framewise_displacement=.1)
    d = d.assign(**columns); d.loc[0,'framewise_displacement'] = np.nan; d.to_csv(made(path), sep='\t', index=False, na_rep='n/a'); return d

# ---- fMRIPrep
STEM = 'sub-01/ses-1/func/sub-01_ses-1_task-rest_run-1'

def test_fmriprep_cifti(tmp_path, x):
    lab, axis = dtseries(tmp_path/f'{STEM}_space-fsLR_den-91k_bold.dtseries.nii', x)
    if sample('surfaces'): assert [len(v) for v in cortex()] == [29696,29716]
    confounds(tmp_path/f'{STEM}_desc-confounds_timeseries.tsv', non_steady_state_outlier00=np.eye(T)[0], motion_outlier00=np.eye(T)[9])
    run, = find_derivatives(tmp_path); assert (run.subject, run.session, run.task, run.run, run.space, run.pipeline) == ('01','1','rest','1','fsLR','fmriprep')
    b = read_derivative(run.path, clean=False); there = np.delete(np.arange(T), [0,9])
    assert np.allclose(b.x[:,there], x[:,there], atol=1e-3) and (b.x[:,[0,9]] == 0).all() and b.names == NAMES and b.order == '7' and np.isclose(b.tr, .8) and b.atlas == 'Schaefer-400'
    size, seen = (np.bincount(l, minlength=401)[1:] for l in (np.concatenate(fslr_labels()), lab)); assert np.allclose(b.coverage, seen/size, atol=1e-6)
    b = read_derivative(run.path, strategy='motion6+wm'); c, _, used = read_confounds(tmp_path/f'{STEM}_desc-confounds_timeseries.tsv', T, strategy='motion6+wm')
    assert len(used) == 7 and b.decisions['confounds'] == used and b.decisions['beside'] == [f'{STEM}_desc-confounds_timeseries.tsv'.split('/')[-1]]
    c = c[there]-c[there].mean(0); assert abs(b.x[:,there] @ c/np.linalg.norm(c, axis=0)).max() < 1e-3 and np.isclose(b.fd[5], .1) and b.fd[0] == 0

def test_fmriprep_gifti(tmp_path, x):
    for h,l in zip('LR', fsaverage5_labels()):
        v = np.where((l > 0)[:,None], x[l-1], 5).astype('f4')
        nib.save(nib.gifti.GiftiImage(darrays=[nib.gifti.GiftiDataArray(v[:,t].copy()) for t in range(T)]), made(tmp_path/f'{STEM}_hemi-{h}_space-fsaverage5_bold.func.gii'))
    (tmp_path/f'{STEM}_hemi-L_space-fsaverage5_bold.json').write_text('{"RepetitionTime": 1.5}')
    run, = find_derivatives(tmp_path); b = read_derivative(run.path, clean=False)
    assert np.allclose(b.x, x, atol=1e-3) and b.tr == 1.5 and b.names == NAMES and run.space == 'fsaverage5' and (b.coverage == 1).all()

@pytest.fixture
def volume(tmp_path):
    L = np.zeros((12,12,12), 'i2'); L[2:10,2:10,2:10] = np.arange(1,65).reshape(4,4,4).repeat(2, 0).repeat(2, 1).repeat(2, 2); A = np.diag([8.,8,8,1]); A[:3,3] = -48
    x = 500+np.random.default_rng(1).standard_normal((64,T)); nib.save(nib.Nifti1Image(L, A), tmp_path/'atlas.nii.gz')
    im = nib.Nifti1Image(np.where((L > 0)[...,None], x[L-1], 100+np.arange(T)).astype('f4'), A); im.header.set_xyzt_units('mm','sec'); im.header.set_zooms((8,8,8,2.))
    f = made(tmp_path/f'{STEM}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz'); nib.save(im, f); return f, L, A, x, tmp_path/'atlas.nii.gz'

def test_fmriprep_volume_and_its_mask(volume):
    f, L, A, x, atlas = volume; inside = L > 0; inside[8:10,2:4,2:4] = False; gone = int(L[8,2,2]); inside[8,2,2] = True  # one parcel keeps one voxel of eight
    nib.save(nib.Nifti1Image(inside.astype('u1'), A), f.with_name(f.name.replace('preproc_bold','brain_mask')))
    b = read_derivative(f, atlas=atlas, clean=False)
    assert np.allclose(b.x, x, atol=1e-3) and np.isclose(b.coverage[gone-1], 1/8) and np.delete(b.coverage, gone-1).tolist() == [1]*63 and b.atlas == 'atlas'
    assert any('1 parcels are covered to less than 50%' in n for n in b.notes) and not any('covered' in n for n in read_derivative(f, atlas=atlas, least=.1).notes)
    nib.save(nib.Nifti1Image(inside[1:].astype('u1'), A), f.with_name(f.name.replace('preproc_bold','brain_mask'))); refused(lambda: read_derivative(f, atlas=atlas), 'brain_mask', 'grid')

def test_volume_without_an_atlas_takes_the_installed_one(volume): refused(lambda: read_derivative(volume[0]), 'does not cover', 'space of the atlas')
def test_all_zero_volume(volume):
    f, L, A, x, atlas = volume; nib.save(nib.Nifti1Image(np.zeros((*L.shape,T), 'f4'), A), f); refused(lambda: read_derivative(f, atlas=atlas, tr=2.), f.name, 'no voxel that changes')
def test_truncated_volume(volume): f = volume[0]; f.write_bytes(f.read_bytes()[:4000]); refused(lambda: read_derivative(f, atlas=volume[4], tr=2.), f.name, 'copy or download it again')
def test_atlas_in_another_space(volume):
    f, L, A, x, atlas = volume; B = A.copy(); B[0,3] += 70; nib.save(nib.Nifti1Image(L, B), atlas); refused(lambda: read_derivative(f, atlas=atlas), 'does not cover', 'space of the atlas')

def test_fmriprep_without_confounds(volume):
    f, *_, atlas = volume; assert read_derivative(f, atlas=atlas).decisions['strategy'] == 'none'
    refused(lambda: read_derivative(f, atlas=atlas, strategy='motion6'), 'no confounds beside it')
def test_confounds_of_another_length(volume):
    f, *_, atlas = volume; confounds(f.with_name('sub-01_ses-1_task-rest_run-1_desc-confounds_timeseries.tsv')).iloc[:-1].to_csv(g := f.with_name('sub-01_ses-1_task-rest_run-1_desc-confounds_timeseries.tsv'), sep='\t', index=False)
    refused(lambda: read_derivative(f, atlas=atlas), g.name, T-1, T)
def test_confounds_of_another_run_are_not_taken(volume):
    f, *_, atlas = volume
    for other in ('sub-01_ses-1_task-rest_run-10','sub-01_ses-1_task-rest_run-2'): confounds(f.with_name(f'{other}_desc-confounds_timeseries.tsv'))
    assert read_derivative(f, atlas=atlas).decisions['beside'] == []
@pytest.mark.parametrize('side,words', [('{"RepetitionTime": 2000}', ['tr=2']), ('{"TaskName": "rest"}', ['no TR']), ('{"RepetitionTime": "fast"}', ['not a number'])])
def test_sidecar(volume, side, words):
    f, *_, atlas = volume; im = nib.load(f); v = im.get_fdata(dtype='f4'); new = nib.Nifti1Image(v, im.affine); new.header.set_zooms((8,8,8,1)); new.header.set_xyzt_units('mm','unknown'); nib.save(new, f)
    f.with_name(f.name.replace('.nii.gz','.json')).write_text(side); refused(lambda: read_derivative(f, atlas=atlas), *words)

@pytest.mark.parametrize('strategy', ['simple','scrubbing'])
def test_strategies_of_nilearn(tmp_path, strategy):
    rng = np.random.default_rng(0); f = tmp_path/'sub-01_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz'; columns = strategy_columns('motion24+wm4+csf4+global4')
    L = np.arange(1,9, dtype='i2').reshape(2,2,2).repeat(2, 0); A = np.diag([8.,8,8,1]); nib.save(nib.Nifti1Image(L, A), tmp_path/'atlas.nii.gz'); im = nib.Nifti1Image(rng.standard_normal((*L.shape,200)).astype('f4'), A); im.header.set_xyzt_units('mm','sec'); im.header.set_zooms((8,8,8,2.)); nib.save(im, f)
    d = pd.DataFrame(rng.standard_normal((200,36)), columns=columns).assign(cosine00=np.cos(np.arange(200)/60), framewise_displacement=.1, std_dvars=1., non_steady_state_outlier00=np.eye(200)[0]); d.loc[60,'framewise_displacement'] = 2
    tsv = tmp_path/'sub-01_task-rest_desc-confounds_timeseries.tsv'; d.to_csv(tsv, sep='\t', index=False); tsv.with_suffix('.json').write_text('{}')
    b = read_derivative(f, atlas=tmp_path/'atlas.nii.gz', strategy=strategy); used = b.decisions['confounds']
    assert set(used) == {*strategy_columns('motion24+wm+csf' if strategy == 'simple' else 'motion24+wm4+csf4'), 'cosine00'} and b.decisions['strategy'] == strategy and b.fd[60] == 2
    assert b.missing[0] and b.missing[60] == (strategy == 'scrubbing') and abs(b.x[:,~b.missing] @ d.trans_x[~b.missing].to_numpy()-b.x[:,~b.missing].sum(1)*d.trans_x.mean()).max() < .05
    refused(lambda: read_derivative(f, atlas=tmp_path/'atlas.nii.gz', strategy='compcor'), tsv.name, 'compcor', 'motion24+wm+csf')  # no CompCor columns in this table

@pytest.mark.parametrize('which', ['nilearn_test-v21_desc-confounds_timeseries','nilearn_test_desc-confounds_regressors','nilearn_no_nonsteady_desc-confounds_regressors'])
def test_real_confound_tables(which):
    if sample('derivatives') is None: pytest.skip('BRAINHARMONIX_DATA does not hold derivatives')
    for strategy,n in (('default',14), ('motion24+wm4+csf4+global4',36)): c, _, used = read_confounds(sample(f'derivatives/{which}.tsv'), 30, strategy=strategy); assert c.shape == (30,n) and np.isfinite(c).all()
def test_oldest_column_names(volume):
    f, *_, atlas = volume; d = confounds(f.with_name('c.tsv')).rename(columns=dict(zip(MOVES, ('X','Y','Z','RotX','RotY','RotZ'))) | dict(csf='CSF', white_matter='WhiteMatter', global_signal='GlobalSignal', framewise_displacement='FramewiseDisplacement'))
    d.to_csv(f.with_name('sub-01_ses-1_task-rest_run-1_bold_confounds.tsv'), sep='\t', index=False, na_rep='n/a')
    b = read_derivative(f, atlas=atlas, strategy='motion12+wm+csf+global'); assert len(b.decisions['confounds']) == 15 and np.isclose(b.fd[3], .1)
    refused(lambda: read_derivative(f, atlas=atlas, strategy='simple'), 'nilearn', 'motion24+wm+csf')
    refused(lambda: read_derivative(f, atlas=atlas, strategy='motion7'), "'motion7'", 'motion24')

# ---- labels
def test_labels_for_dtseries(tmp_path, x):
    lab, axis = dtseries(tmp_path/'a.dtseries.nii', x); table_ = {0:('???',(0,0,0,0))} | {10*i+10:(n,(1,0,0,1)) for i,n in enumerate(NAMES)} | {5000:('LEFT-THALAMUS',(0,1,0,1))}
    part = np.where(lab > 0, 10*lab, 0); part[axis.name == 'CIFTI_STRUCTURE_THALAMUS_LEFT'] = 5000; order = np.arange(len(axis))[::-1]
    nib.save(nib.Cifti2Image(part[order][None].astype('f4'), (nib.cifti2.LabelAxis(['a'], [table_]), axis[order])), tmp_path/'a.dlabel.nii')
    im = nib.load(tmp_path/'a.dtseries.nii'); v = im.get_fdata(dtype='f4'); v[:,axis.name == 'CIFTI_STRUCTURE_THALAMUS_LEFT'] = np.arange(T)[:,None]**2; nib.save(nib.Cifti2Image(v, im.header), tmp_path/'b.dtseries.nii')
    b = read_bold(tmp_path/'b.dtseries.nii', labels=tmp_path/'a.dlabel.nii', clean=False)
    assert b.names == (*NAMES,'LEFT-THALAMUS') and np.allclose(b.x[:400], x, atol=1e-3) and np.allclose(b.x[400], np.arange(T)**2) and (b.coverage == 1).all()
    plain = read_bold(tmp_path/'a.dtseries.nii', clean=False); pair = read_bold(tmp_path/'a.dtseries.nii', labels=fslr_labels(), clean=False); assert np.array_equal(plain.x, pair.x) and pair.names is None
    if (d := sample('parcellations')):
        g = read_bold(tmp_path/'a.dtseries.nii', labels=d/'micapipe_schaefer-400_fsLR32k_lh.label.gii', clean=False); assert len(g.x) == 400 and np.mean([np.corrcoef(p, q)[0,1] for p,q in zip(g.x, x)]) > .99

def test_dtseries_without_cortex(tmp_path, x):
    axis = grayordinates(); dtseries(tmp_path/'a.dtseries.nii', x, axis=axis[axis.name == 'CIFTI_STRUCTURE_THALAMUS_LEFT']); refused(lambda: read_bold(tmp_path/'a.dtseries.nii'), 'no cortex left and no cortex right')
    dtseries(tmp_path/'b.dtseries.nii', x, axis=axis[axis.name != CORTEX[1]]); refused(lambda: read_bold(tmp_path/'b.dtseries.nii'), 'no cortex right')
    refused(lambda: read_bold(tmp_path/'b.dtseries.nii', labels=fsaverage5_labels()), 'no cortex right')
    lab, axis = dtseries(tmp_path/'a.dtseries.nii', x); refused(lambda: read_bold(tmp_path/'a.dtseries.nii', labels=fsaverage5_labels()), '32492 vertices', 10242)

def test_finer_fsaverage(tmp_path):
    stem = shipped('brainspace', 'preprocessing')/'sub-010188_ses-02_task-rest_acq-AP_run-01.fsa5'; rng = np.random.default_rng(0)
    for h in ('lh','rh'):
        v = np.asarray(nib.load(f'{stem}.{h}.mgz').dataobj, np.float32).reshape(10242, -1)[:,:60]
        for name,w in (('five',v), ('six',np.r_[v, rng.standard_normal((30720,60)).astype('f4')]), ('other',np.r_[rng.permutation(v), np.zeros((30720,60), 'f4')])): nib.save(nib.MGHImage(w.reshape(len(w),1,1,60), np.eye(4)), tmp_path/f'{name}.{h}.mgz')
    five, six = (read_bold(tmp_path/f'{n}.lh.mgz', tr=1.4, clean=False) for n in ('five','six'))
    assert np.array_equal(five.x, six.x) and any('10242 vertices of fsaverage5 among 40962' in n for n in six.notes)
    refused(lambda: read_bold(tmp_path/'other.lh.mgz', tr=1.4), 'not nested', 'labels=')

# ---- XCP-D
XCP = 'sub-02/func/sub-02_task-rest_run-1'
@pytest.fixture
def xcpd(tmp_path, x):
    f = made(tmp_path/f'{XCP}_space-fsLR_seg-4S456Parcels_stat-mean_timeseries.tsv'); pd.DataFrame(x.T, columns=NAMES).to_csv(f, sep='\t', index=False); out = np.zeros(T, int); out[[3,17,18]] = 1
    pd.DataFrame(dict(framewise_displacement=out)).to_csv(tmp_path/f'{XCP}_outliers.tsv', sep='\t', index=False); pd.DataFrame(dict(framewise_displacement=.1+.9*out)).to_csv(tmp_path/f'{XCP}_motion.tsv', sep='\t', index=False)
    pd.DataFrame(dict(Node=NAMES, coverage=np.linspace(.4, 1, 400))).to_csv(tmp_path/f'{XCP}_space-fsLR_seg-4S456Parcels_stat-coverage_bold.tsv', sep='\t', index=False)
    f.with_suffix('.json').write_text('{"RepetitionTime": 2}'); return f, out > 0

def test_xcpd(xcpd, x):
    f, out = xcpd; assert pipeline_of(f) == 'xcpd'; b = read_derivative(f); y = x[:,~out].astype(float)
    assert np.array_equal(b.missing, out) and (b.x[:,out] == 0).all() and np.allclose(b.x[:,~out], (y-y.mean(1, keepdims=True))/y.std(1, ddof=1, keepdims=True), atol=1e-3)  # only z-scored: a trend stays
    assert b.names == NAMES and b.tr == 2 and np.allclose(b.coverage, np.linspace(.4, 1, 400)) and np.allclose(b.fd, .1+.9*out) and 'not cleaned again' in b.decisions['denoised'] and len(b.decisions['beside']) == 3
    assert np.allclose((b.mean[:,None]+b.sd[:,None]*b.x)[:,~out], y, atol=1e-2)
    assert np.array_equal(read_derivative(f, band=(.01,.1), despike=True, clean=True).x, b.x) and b.decisions['low_coverage'] == dict(below=.5, parcels=int((np.linspace(.4, 1, 400) < .5).sum()))
    refused(lambda: read_derivative(f, strategy='motion24'), f.name, 'denoised already')
def test_xcpd_kept_frames_go_back_to_their_places(xcpd, x):
    f, out = xcpd; whole = read_derivative(f); pd.DataFrame(x.T[~out], columns=NAMES).to_csv(f, sep='\t', index=False); b = read_derivative(f)
    assert b.x.shape == (400,T) and np.array_equal(b.missing, out) and np.allclose(b.x, whole.x, atol=1e-5)
    pd.DataFrame(x.T[:9], columns=NAMES).to_csv(f, sep='\t', index=False); refused(lambda: read_derivative(f), 'outliers.tsv', T, 9)
def test_xcpd_parcel_without_coverage(xcpd, x):
    f, out = xcpd; y = x.T.copy(); y[:,7] = np.nan; pd.DataFrame(y, columns=NAMES).to_csv(f, sep='\t', index=False, na_rep='n/a')
    refused(lambda: read_derivative(f), f.name, 'NaN'); b = read_derivative(f, empty='keep'); assert b.coverage[7] == 0 and (b.x[7] == 0).all() and b.sd[7] == 0 and np.isfinite(b.mean).all()
def test_xcpd_dtseries_is_preferred(xcpd, x, tmp_path):
    f, out = xcpd; dtseries(tmp_path/f'{XCP}_space-fsLR_den-91k_desc-denoised_bold.dtseries.nii', x, tr=2.); run, = find_derivatives(tmp_path); assert '.dtseries' in run.path.name
    b = read_derivative(run.path); assert np.array_equal(b.missing, out) and np.allclose(b.x, read_derivative(f).x, atol=2e-2) and len(find_derivatives(tmp_path, every=True)) == 2

# ---- HCP, ABCD
@pytest.mark.parametrize('name,clean', [('rfMRI_REST1_LR_Atlas_MSMAll', False), ('rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean', True)])
def test_hcp(tmp_path, x, name, clean):
    d = tmp_path/'100307/MNINonLinear/Results/rfMRI_REST1_LR'; dtseries(d/f'{name}.dtseries.nii', x, tr=.72); m = .1*np.random.default_rng(0).standard_normal((T,12)); np.savetxt(d/'Movement_Regressors.txt', m)
    run, = find_derivatives(tmp_path); assert (run.subject, run.task, run.run, run.dir) == ('100307','rest','1','LR')
    b = read_derivative(run.path); assert len(b.decisions['confounds']) == (0 if clean else 12) and np.isclose(b.tr, .72)
    p = m[:,:6]*np.repeat([1,np.pi/180], 3); assert np.allclose(b.fd[1:], abs(np.diff(p, axis=0)) @ np.repeat([1,50], 3), atol=1e-5)
    assert np.allclose(read_derivative(run.path, clean=False).x, x, atol=1e-3)
    np.savetxt(d/'Movement_Regressors.txt', m[:-1]); refused(lambda: read_derivative(run.path), 'Movement_Regressors.txt', T-1, T)

@pytest.mark.parametrize('form', ['dtseries','ptseries'])
def test_abcd(tmp_path, x, form):
    f = made(tmp_path/f'sub-NDARINV1/ses-2Y/func/sub-NDARINV1_ses-2Y_task-rest_bold_desc-filtered_timeseries.{form}.nii')
    dtseries(f, x) if form == 'dtseries' else save_ptseries(f, x, .8, NAMES)
    run, = find_derivatives(tmp_path); assert (run.subject, run.session, run.task, run.pipeline) == ('NDARINV1','2Y','rest','abcd')
    b = read_derivative(run.path); assert b.order == '7' and 'denoised' in b.decisions and any('.mat' in n for n in b.notes) and np.allclose(b.mean[:,None]+b.sd[:,None]*b.x, x, atol=2e-2)
    m = np.arange(T) < 5; assert np.array_equal(read_derivative(run.path, missing=m).missing, m)

# ---- tables
def test_ukb(tmp_path):
    x = np.random.default_rng(0).standard_normal((400,490)); names = [n.replace('7N','17N') for n in NAMES]; f = made(tmp_path/'1000011/fMRI.Schaefer17n400p.csv.gz')
    pd.DataFrame(x, index=pd.Index(names, name='label_name'), columns=[f'timepoint_{t}' for t in range(490)]).to_csv(f)
    run, = find_derivatives(tmp_path); assert (run.subject, run.pipeline) == ('1000011','ukb'); b = read_derivative(run.path, clean=False)
    assert np.allclose(b.x, x, atol=1e-5) and b.tr == .735 and b.order == '17' and b.names == tuple(names) and any('0.735' in n for n in b.notes)
    x = x[:,:40]; pd.DataFrame(x, index=[f'{i+1}' for i in range(400)]).to_csv(f); b = read_derivative(f, clean=False); assert np.allclose(b.x, x, atol=1e-5) and b.order == '17' and b.names is None  # numbered; the order by the name of the file
    pd.DataFrame(x).to_csv(f, index=False, header=False); refused(lambda: read_derivative(f), f.name, 'first column', 'labels')
    pd.DataFrame(x, index=names).to_csv(f); refused(lambda: read_derivative(f, order='7'), '17-network', '7-network'); refused(lambda: read_derivative(f, expect_order='7'), '7-network order is expected')

def test_two_visits_of_ukb(tmp_path):
    names = '1234567_20227_2_0.csv.gz', '1234567_20227_3_0.csv.gz', '1234567/1234567_20227_2_0.csv.gz', '1234567_20227_3_0/fMRI.Schaefer17n400p.csv.gz', '1234567/fMRI.csv.gz'
    for n in names: made(tmp_path/n).touch()
    runs = find_derivatives(tmp_path, every=True); assert {r.path.relative_to(tmp_path).as_posix():(r.subject, r.session) for r in runs} == dict(zip(names, (('1234567', s) for s in ('2','3','2','3',''))))
    assert [r.session for r in find_derivatives(tmp_path)] == ['','2','3']

def test_abide(tmp_path):
    x = np.random.default_rng(0).standard_normal((200,90)); x[[4,150]] = 0; f = tmp_path/'Pitt_0050003_rois_cc200.1D'; np.savetxt(f, x.T, delimiter='\t', header='\t#'.join(str(i) for i in range(2001,2201)), comments='#')
    run, = find_derivatives(tmp_path); assert (run.subject, run.pipeline) == ('0050003','abide')
    refused(lambda: read_derivative(f, tr=1.5), f.name, '2 constant parcels', "empty='keep'"); b = read_derivative(f, tr=1.5, empty='keep', clean=False)
    assert np.allclose(b.x, x, atol=1e-5) and np.flatnonzero(b.coverage == 0).tolist() == [4,150] and b.atlas == 'cc200' and any('2 parcels have no signal' in n for n in b.notes)
    refused(lambda: read_derivative(f, empty='keep'), 'no TR'); refused(lambda: read_derivative(f, tr=1.5, empty='drop'), 'empty', "'keep'")
    b = read_derivative(f, tr=1.5, empty='keep'); r = save_bold(tmp_path/'a_timeseries.safetensors', b); back = read_bold(r); assert np.array_equal(back.coverage, b.coverage) and (back.x[4] == 0).all()

def test_npz(tmp_path):
    x = np.random.default_rng(0).standard_normal((419,50)).astype('f4'); np.savez(tmp_path/'runs.npz', **{'sub-001_ses-1':x, 'sub-001_ses-2':x[:400]*2}); one, two = find_derivatives(tmp_path)
    assert (one.subject, one.session, two.session) == ('001','1','2'); b = read_derivative(one.path, tr=2., clean=False)
    assert np.array_equal(b.x, x[:400]) and b.names == NAMES and any('19 rows' in n for n in b.notes) and np.array_equal(read_derivative(f'{tmp_path}/runs.npz#sub-001_ses-2', tr=2., clean=False).x, 2*x[:400])
    refused(lambda: read_derivative(f'{tmp_path}/runs.npz#x', tr=2.), 'runs.npz', "'x'", 'sub-001_ses-1'); refused(lambda: read_derivative(one.path), 'no TR')

def test_real_samples():
    if sample('abide1') is None or sample('stages') is None: pytest.skip('BRAINHARMONIX_DATA does not hold abide1 and stages')
    f = find_derivatives(sample('abide1')); assert len(f) == 46 and read_derivative(f[0].path, tr=2.).x.shape[0] == 200
    s = find_derivatives(sample('stages')); assert len(s) == 12 and read_derivative(s[0].path, tr=2.).order == '7'

# ---- folders and arguments
def test_folder(tmp_path):
    refused(lambda: find_derivatives(tmp_path/'no'), 'no', 'not a folder'); refused(lambda: find_derivatives(tmp_path, 'spm'), 'pipeline', "'spm'"); assert find_derivatives(tmp_path) == []
    made(tmp_path/'.hidden/sub-01_task-rest_space-fsLR_den-91k_bold.dtseries.nii').touch(); assert find_derivatives(tmp_path) == []
    refused(lambda: read_derivative('a.npy', 'spm'), 'pipeline', "'spm'")
@pytest.mark.parametrize('entity', ['task','acq','ce','rec','dir','run','echo'])
def test_every_entity_that_tells_runs_apart(tmp_path, entity):
    order = ['task','acq','ce','rec','dir','run','echo']; forms = '_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz', '_space-fsLR_den-91k_bold.dtseries.nii'
    for v in ('1','2'):
        e = dict(task='rest') | {entity:v}
        for f in forms: (tmp_path/f"sub-01_{'_'.join(f'{k}-{e[k]}' for k in order if k in e)}{f}").touch()
    runs = find_derivatives(tmp_path)
    assert [getattr(r, entity) for r in runs] == ['1','2'] and all('.dtseries' in r.path.name for r in runs) and all(getattr(r, k) == '' for r in runs for k in order if k not in ('task', entity))

def test_two_hemispheres_of_different_runs(tmp_path):
    for h,n in (('L',T),('R',T+1)): nib.save(nib.gifti.GiftiImage(darrays=[nib.gifti.GiftiDataArray(np.zeros(10242, 'f4')+t) for t in range(n)]), tmp_path/f'sub-01_task-rest_hemi-{h}_space-fsaverage5_bold.func.gii')
    refused(lambda: read_derivative(tmp_path/'sub-01_task-rest_hemi-L_space-fsaverage5_bold.func.gii'), 'hemi-R', T+1, T)
