"A raw head ends on the model's grid whatever way it was stored; finished masks and installed programs are used; what is no head ends in one sentence"
import os, stat, sys, tempfile
import nibabel as nib, numpy as np, pytest
from nibabel.affines import apply_affine
from scipy.ndimage import binary_dilation, binary_erosion, gaussian_filter
from scipy.spatial.transform import Rotation
from brainharmonix.core import sample
from brainharmonix.preprocess import register as reg
from brainharmonix.preprocess.register import dice, finished, flirt, isotropic, linear, locate, mask_file, pull, register, rigid, strip_with, stripped_already, template
from brainharmonix.preprocess.t1 import FULL, _full_affine, _mask, normalise, read_t1, save_t1
from common import refused

@pytest.fixture(scope='module')
def head():
    "The template with cerebrospinal fluid, bone and scalp around it, 2 mm: [X,Y,Z], [4,4]"
    f, m, A = template(2.); m = np.pad(m, 12); x = np.pad(f, 12); B = A.copy(); B[:3,3] = apply_affine(A, [-12]*3)
    fluid, bone, scalp = (binary_dilation(m, iterations=k) for k in (1,4,8)); top = x.max(); x = x.copy()
    x[fluid & ~m] = .25*top; x[bone & ~fluid] = .03*top; x[scalp & ~bone] = .9*top
    return gaussian_filter(x, .5), B

def known(angles, shift, scale=(1,1,1)): # MNI mm -> head mm
    P = np.eye(4); P[:3,:3] = Rotation.from_euler('xyz', angles, degrees=True).as_matrix()@np.diag(scale); P[:3,3] = shift
    return P

def stored(x, A, P): # the head moved by P: points p of MNI lie at P p
    return x, P@A

BRAIN = apply_affine(_full_affine(), np.argwhere(_mask())[::499])
def error(P, Q): return np.linalg.norm(apply_affine(P, BRAIN)-apply_affine(Q, BRAIN), axis=1)

# ---- a known answer
@pytest.fixture(scope='module')
def found(head, tmp_path_factory):
    P = known((22,-6,9), (35,-60,48), (.93,1.08,1.04)); x, A = stored(*head, P)
    x = x + .03*x.max()*np.random.default_rng(0).standard_normal(x.shape).astype('f4')
    before, tempfile.tempdir = tempfile.tempdir, str(tmp_path_factory.mktemp('own'))
    Q, like = locate(x, A); f, m, fA = template(2.)
    Q = linear(f, binary_dilation(m, iterations=3), fA, x, A, Q, steps=(50,25))
    left, tempfile.tempdir = os.listdir(tempfile.tempdir), before
    return P, Q, like, x, A, left

def test_known_affine_is_recovered(found):
    P, Q, like, *_ = found; turn = rigid(P)[:3,:3].T@rigid(Q)[:3,:3]
    assert like > .9 and error(P, Q).max() < 1 and np.degrees(np.arccos((np.trace(turn)-1)/2)) < .5
def test_nothing_is_left_in_tmp(found): assert not found[-1]
def test_same_bits_every_time(found):
    x, A = found[3:5]; f, m, fA = template(4.); y = isotropic(x, A, 4.)
    a, b = (linear(f, m, fA, *y, found[0], 'Rigid', steps=(20,10)) for _ in range(2)); assert np.array_equal(a, b)
    np.random.seed(5); assert np.array_equal(a, linear(f, m, fA, *y, found[0], 'Rigid', steps=(20,10)))
def test_rigid_is_a_rotation(found):
    x, A = found[3:5]; f, m, fA = template(4.); R = linear(f, m, fA, *isotropic(x, A, 4.), rigid(found[0]), 'Rigid', steps=(20,10))[:3,:3]
    assert np.allclose(R.T@R, np.eye(3), atol=1e-5) and np.linalg.det(R) > 0
def test_rigid_keeps_the_centre():
    P = known((10,20,-5), (3,4,5), (1.2,.9,1)); assert np.allclose(apply_affine(rigid(P), reg.CENTRE), apply_affine(P, reg.CENTRE))

# ---- finished masks
def test_mask_beside(tmp_path):
    f = tmp_path/'sub-1_desc-preproc_T1w.nii.gz'; assert finished(f) is None
    m = tmp_path/'sub-1_desc-brain_mask.nii.gz'; m.touch(); assert finished(f) == m
    fs = tmp_path/'mri'; fs.mkdir(); (fs/'brainmask.mgz').touch(); assert finished(fs/'T1.mgz') == fs/'brainmask.mgz' and finished(tmp_path/'sub-1_T1w.nii.gz') is None
def test_erased_voxels_of_freesurfer(tmp_path):
    m = _mask()[::2,::2,::2]; A = _full_affine()@np.diag([2.,2,2,1]); v = np.where(m, 90, 0).astype('f4'); erased = m & ~binary_erosion(m, iterations=2); v[erased] = 1
    nib.save(nib.MGHImage(v, A), tmp_path/'brainmask.mgz'); got = mask_file(tmp_path/'brainmask.mgz', m.shape, A)
    assert not got[erased].any() and dice(got, m & ~erased) > .99
def test_mask_of_another(tmp_path):
    far = np.eye(4); far[:3,3] = 500; nib.save(nib.Nifti1Image(np.ones((9,9,9),'f4'), far), tmp_path/'m.nii.gz')
    refused(lambda: mask_file(tmp_path/'m.nii.gz', FULL, _full_affine()), 'm.nii.gz', 'litres')
def test_stripped_already():
    A = np.diag([2.,2,2,1]); m = np.pad(_mask()[::2,::2,::2], 9); assert stripped_already(m*7., A) and not stripped_already(m*7.+1, A) and not stripped_already(binary_dilation(m, iterations=9)*7., A)

@pytest.fixture(scope='module')
def mni(tmp_path_factory): # a finished T1 in MNI space, as fMRIPrep leaves it
    d = tmp_path_factory.mktemp('mni'); f, m, A = template(1.); x = f*1.7; own = binary_erosion(m, iterations=2)
    t1 = d/'sub-01_space-MNI152NLin6Asym_desc-preproc_T1w.nii.gz'; nib.save(nib.Nifti1Image(x, A), t1); nib.save(nib.Nifti1Image(own.astype('u1'), A), d/'sub-01_space-MNI152NLin6Asym_desc-brain_mask.nii.gz')
    return t1, own, x
def test_finished_in_mni_space(mni):
    r = register(mni[0]); assert r.dof == 0 and np.array_equal(r.affine, np.eye(4)) and dice(r.mask_mni, mni[1]) > .999 and 'brain_mask' in r.decisions['strip'] and r.decisions['bias_field'] == 'as finished'
    assert np.corrcoef(r.volume[r.mask_mni], mni[2][r.mask_mni])[0,1] > .98 and np.allclose(r.to_mni(BRAIN), BRAIN)

# ---- records
@pytest.mark.parametrize('spacing', [1.,2.,4.])
@pytest.mark.parametrize('norm', ['brain','released'])
def test_either_normalisation_from_one_record(mni, tmp_path, spacing, norm):
    r = register(mni[0], remember=True); f = save_t1(tmp_path/'sub-01_T1w.safetensors', r.on_grid()); got = read_t1(f, spacing, norm)
    want = r.on_grid(spacing, norm); assert got.x.shape == want.x.shape and np.array_equal(got.affine, want.affine) and got.norm == norm
    assert np.allclose(got.x, want.x, atol=2e-3) and np.array_equal(got.x == 0, want.x == 0)
def test_brain_voxels_are_never_zero(tmp_path):
    v = np.zeros(FULL, 'f4'); m = _mask(); v[m] = np.random.default_rng(0).integers(0, 3, m.sum()) # means and zeros abound
    x = normalise(v, mask=m); assert np.array_equal(x.astype('f2') != 0, m[11:-11,13:-13,11:-11])
def test_record_of_other_grids(mni, tmp_path): refused(lambda: save_t1(tmp_path/'a_T1w.safetensors', register(mni[0], remember=True).on_grid(2.)), 'a_T1w.safetensors', 'spacing 1')

# ---- headers
def put(path, x, sform, qform=None, codes=(1,1)):
    im = nib.Nifti1Image(x, sform); im.set_sform(sform, codes[0]); im.set_qform(sform if qform is None else qform, codes[1]); nib.save(im, path); return path
@pytest.fixture
def small(): return np.random.default_rng(0).random((40,40,40)).astype('f4'), np.diag([4.,4,4,1])
def test_forms_that_disagree(tmp_path, small):
    x, A = small; B = A.copy(); B[:3,3] += 5; refused(lambda: register(put(tmp_path/'a.nii', x, A, B)), 'a.nii', 'disagree', '8.7 mm', 'trust')
    B = known((0,0,5), (0,0,0))@A; refused(lambda: register(put(tmp_path/'b.nii', x, A, B)), '5.0 degrees'); assert 'an sform' not in refused(lambda: register(tmp_path/'b.nii', trust='qform'), 'not a T1w head')
    refused(lambda: register(put(tmp_path/'c.nii', x, A, np.diag([-4.,4,4,1]))), 'left and right'); refused(lambda: register(tmp_path/'c.nii', trust='both'), 'trust')
    assert 'an sform' not in refused(lambda: read_t1(put(tmp_path/'d.nii', x, A, known((0,0,1), (1,0,0))@A)), 'd.nii') # within 2 degrees and 2 mm
@pytest.mark.parametrize('size,word', [(.001,'metres'), (40,'mm'), (0,'inverted')])
def test_voxel_sizes(tmp_path, small, size, word):
    A = np.diag([size]*3+[1.]); im = nib.Nifti1Image(small[0], None); im.set_sform(A, 1); nib.save(im, tmp_path/'a.nii'); refused(lambda: register(tmp_path/'a.nii'), 'a.nii', word)
@pytest.mark.parametrize('spoil,word', [(lambda x: x*0,'constant'), (lambda x: np.where(x > .999, np.nan, x),'NaN'), (lambda x: np.stack([x,x],-1),'4-D')])
def test_voxels(tmp_path, small, spoil, word): refused(lambda: register(put(tmp_path/'a.nii.gz', spoil(small[0]), small[1])), 'a.nii.gz', word)
def test_cut_short(tmp_path, small): f = put(tmp_path/'a.nii.gz', *small); f.write_bytes(f.read_bytes()[:9000]); refused(lambda: register(f), 'a.nii.gz', 'cut off')
def test_too_large(tmp_path):
    h = nib.Nifti1Header(); h.set_data_shape((2000,2000,2000)); h.set_data_dtype('u1'); h.set_sform(np.eye(4), 1); (tmp_path/'a.nii').write_bytes(h.binaryblock+bytes(100)); refused(lambda: register(tmp_path/'a.nii'), 'too large')

# ---- what is no T1w head
def test_noise(tmp_path, small): refused(lambda: register(put(tmp_path/'noise.nii', *small)), 'noise.nii', 'not a T1w head', 'likeness', .68)
def test_t2_is_refused(head): refused(lambda: reg.check_head('t2', head[0].max()-head[0], head[1], np.eye(4), .9), 'not T1-weighted')
def test_size_is_human(head): refused(lambda: reg.check_head('mouse', *head, np.diag([.1,.1,.1,1]), .9), 'human size')
def test_bold_is_refused(tmp_path):
    if not (f := sample('studyforrest/sub-02_task-oneback_run-1_bold.nii.gz')): pytest.skip('BRAINHARMONIX_DATA does not hold studyforrest')
    im = nib.load(f); refused(lambda: register(f), '4-D'); nib.save(nib.Nifti1Image(np.asarray(im.dataobj[...,:4]).mean(-1), im.affine), tmp_path/'mean.nii.gz'); refused(lambda: register(tmp_path/'mean.nii.gz'), 'not a T1w head', 'likeness')

# ---- programs
def test_absent_programs(mni, monkeypatch, tmp_path):
    monkeypatch.setenv('PATH', str(tmp_path))
    for k in ('bet','synthstrip','freesurfer'): refused(lambda: register(mni[0], strip=k), k, 'not installed')
    refused(lambda: register(mni[0], engine='flirt'), 'flirt', 'not installed'); refused(lambda: register(mni[0], strip='none.nii'), 'strip'); refused(lambda: register(mni[0], dof=7), 'dof')

@pytest.fixture
def fake(tmp_path, monkeypatch):
    "Executables that leave what the real ones would"
    d = tmp_path/'bin'; d.mkdir(); monkeypatch.setenv('PATH', f'{d}:{os.environ["PATH"]}'); monkeypatch.setenv('FREESURFER_HOME', str(d)); monkeypatch.setenv('FSLDIR', str(d)); monkeypatch.setenv('FSLOUTPUTTYPE', 'NIFTI_GZ')
    def make(name, body): f = d/name; f.write_text(f'#!{sys.executable}\nimport sys; a = sys.argv\nimport nibabel as nib, numpy as np, os\n{body}'); f.chmod(f.stat().st_mode|stat.S_IEXEC)
    return make
BRIGHT = "def mask(f, to, value=1):\n    im = nib.load(f); x = im.get_fdata(); (nib.save(nib.MGHImage((value*(x > .5*x.max())).astype('f4'), im.affine), to) if to.endswith('mgz') else nib.save(nib.Nifti1Image((x > .5*x.max()).astype('u1'), im.affine), to))\n"
@pytest.mark.parametrize('name,program,body', [('bet','bet',"mask(a[1], a[2].replace('.nii.gz','')+'_mask.nii.gz')"), ('synthstrip','mri_synthstrip',"mask(a[a.index('-i')+1], a[a.index('-m')+1])"),
    ('freesurfer','recon-all',"assert '-autorecon1' in a; d = a[a.index('-sd')+1]+'/'+a[a.index('-subjid')+1]+'/mri'; os.makedirs(d, exist_ok=True); mask(a[a.index('-i')+1], d+'/brainmask.mgz', 90)")])
def test_strip_through_nipype(fake, name, program, body):
    m = _mask()[::2,::2,::2]; x = np.where(m, 100., 5.); A = _full_affine()@np.diag([2.,2,2,1])
    fake(program, BRIGHT+body); assert dice(strip_with(name, x, A), m) > .99
    fake(program, 'sys.stderr.write("no licence\\n"); sys.exit(1)'); refused(lambda: strip_with(name, x, A), name, 'failed')
    fake(program, 'pass'); refused(lambda: strip_with(name, x, A), name)
@pytest.mark.parametrize('ras', [False,True])
def test_flirt_matrix(fake, ras):
    "FLIRT's matrix shifts by 6 mm along its own first axis, which runs from right to left: -6 mm of x"
    fake('flirt', "open(a[a.index('-omat')+1], 'w').write('1 0 0 6\\n0 1 0 0\\n0 0 1 0\\n0 0 0 1\\n'); nib.save(nib.load(a[a.index('-in')+1]), a[a.index('-out')+1])")
    f, _, A = template(4.); x, B = (f[::-1], A@np.array([[-1.,0,0,f.shape[0]-1],[0,1,0,0],[0,0,1,0],[0,0,0,1]])) if ras else (f, A)
    assert (np.linalg.det(B[:3,:3]) > 0) == ras and np.allclose(flirt(f, A, x, B), [[1,0,0,6],[0,1,0,0],[0,0,1,0],[0,0,0,1]])

# ---- a person
@pytest.fixture(scope='module')
def person():
    if not (f := sample('studyforrest/sub-02_T1w.nii.gz')): pytest.skip('BRAINHARMONIX_DATA does not hold studyforrest')
    return f, register(f, remember=True)
def test_person(person):
    r = person[1]; assert r.dice >= .93 and r.likeness > .8 and r.peak < 3 and 1.2e6 < r.mask.get_fdata().sum() < 2e6
    s = np.linalg.svd(r.affine[:3,:3])[1]; assert (.8 < s).all() and (s < 1.25).all() and np.array_equal(r.volume != 0, r.mask_mni)
    p = apply_affine(r.affine, apply_affine(np.linalg.inv(r.affine), BRAIN)); assert np.allclose(p, BRAIN, atol=1e-3) and np.median(np.linalg.norm(r.to_mni(r.from_mni(BRAIN))-BRAIN, axis=1)) < .2
def test_order_and_type_on_disk_change_nothing(person, tmp_path):
    "Axes exchanged and flipped, float64 with another scale: the very same numbers reach the registration"
    im = nib.load(person[0]); x, A = reg.canonical(*reg.load_t1(person[0]))
    t = im.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(im.affine), nib.orientations.axcodes2ornt('PIR'))); h = nib.Nifti1Image(np.asarray(t.dataobj), t.affine); h.header.set_slope_inter(1, 0); nib.save(h, tmp_path/'t.nii')
    y, B = reg.canonical(*reg.load_t1(tmp_path/'t.nii')); assert np.array_equal(x, y) and np.allclose(A, B, atol=1e-4)
def test_the_same_head_stored_otherwise_gives_the_same_record(person, tmp_path):
    "Other axes, 1.2 x 1 x 1.4 mm, int16: correlation of the 1 mm records, in either normalisation"
    im = nib.load(person[0]); A = im.affine.copy(); size = np.array([1.2,1.,1.4]); old = nib.affines.voxel_sizes(A); A[:3,:3] *= size/old
    n = np.ceil(np.array(im.shape)*old/size).astype(int)
    x = gaussian_filter(np.asarray(im.dataobj, 'f4'), .42*np.sqrt(np.maximum(size**2-old**2, 0))/old) # a larger voxel averages
    y = np.clip(pull(x, im.affine, np.eye(4), tuple(n), A, order=3), 0, None)
    v = nib.Nifti1Image((y*(4000/y.max())).round().astype('i2'), A); v.set_qform(A, 1); v.set_sform(A, 1)
    v = v.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(A), nib.orientations.axcodes2ornt('LIP'))); nib.save(v, tmp_path/'v.nii.gz')
    r = register(tmp_path/'v.nii.gz', remember=True)
    for norm in ('brain','released'): assert np.corrcoef(person[1].on_grid(1., norm).x.ravel(), r.on_grid(1., norm).x.ravel())[0,1] >= .99
