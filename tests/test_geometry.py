"Harmonics and gradients: the promises of chapters 20 and 21 that others build on"
import nibabel as nib, numpy as np, pandas as pd, pytest
from importlib.util import find_spec
from scipy.linalg import eigh
from brainharmonix.core import BadInput, golden, sample
from brainharmonix.geometry import harmonics as H
from brainharmonix.geometry.harmonics import (PERMUTATION_17_TO_7, Table, area, check_order, conte69, fem, harmonic_table, harmonics, icosphere, make_atlas, neighbours,
                                              network_order, parcellate, plot_cortex, read_surface, roughness, schaefer, schaefer_names)
from brainharmonix.geometry.gradients import check_fc, gradient_table, gradients, group_fc

needs = lambda *parts: pytest.mark.skipif(any(p is None for p in parts), reason='reference files are absent (BRAINHARMONIX_DATA, BRAINHARMONIX_GOLDEN)')
BE, PARC, RELEASED = sample('surfaces'), sample('parcellations'), golden('released')
p = PERMUTATION_17_TO_7

@pytest.fixture
def fresh(tmp_path, monkeypatch): monkeypatch.setenv('BRAINHARMONIX_CACHE', str(tmp_path)); return tmp_path

@pytest.fixture(scope='module')
def hcp(): return [read_surface(BE/f'brainEigenmodes_fsLR_32k_midthickness-{h}h.vtk', BE/f'brainEigenmodes_fsLR_32k_cortex-{h}h_mask.txt') for h in 'lr']

def test_sphere(fresh):
    lam, psi = harmonics(*icosphere(4), 49)
    l = np.repeat(np.arange(7), 2*np.arange(7)+1)
    assert np.abs(lam[1:]/(l*(l+1))[1:]-1).max() < .025 and abs(lam[0]) < 1e-9 and (np.diff(lam) >= -1e-12).all()

def test_equals_dense_solver_and_is_mass_orthonormal(fresh):
    "an ellipsoid with a hole: no symmetry to help"
    v, f = icosphere(4); v = v*[1, 1.3, 1.7]+.05*np.sin(3*v[:,::-1])
    mask = v[:,2] < 1.2
    lam, psi = harmonics(v, f, 60, mask)
    keep = f[mask[f].all(1)]; used = np.unique(keep); g = np.searchsorted(used, keep)
    A, M = fem(v[used], g); w, u = eigh(A.toarray(), M.toarray(), subset_by_index=(0, 59))
    assert np.allclose(lam, w, rtol=1e-9, atol=1e-9)
    x = psi[used]
    assert np.allclose(x.T @ M @ x, np.eye(60), atol=1e-9) and np.abs(A @ x-(M @ x)*lam).max() < 1e-8
    assert np.isnan(psi[np.setdiff1d(np.arange(len(v)), used)]).all() and np.isfinite(x).all() and psi.dtype == lam.dtype == np.float64

@pytest.mark.parametrize('unit', [1e-3, 1., 1e3])
def test_unit(fresh, unit):
    v, f = icosphere(3)
    (a, x), (b, y) = harmonics(v, f, 10), harmonics(v*unit, f, 10)
    assert np.allclose(b[1:]*unit**2, a[1:], rtol=1e-8) and np.isclose(np.abs(y[0,0])*unit, np.abs(x[0,0]))

def test_same_result_twice_and_cached(fresh, monkeypatch):
    v, f = icosphere(4)
    one = harmonics(v, f, 12)
    for c in fresh.iterdir(): c.unlink()
    two = harmonics(v, f, 12)
    assert np.array_equal(one[0], two[0]) and np.array_equal(one[1], two[1])
    monkeypatch.setattr(H, '_modes', lambda *a: pytest.fail('computed again'))
    assert np.array_equal(harmonics(v, f, 12)[1], one[1])
    with pytest.raises(pytest.fail.Exception): harmonics(v*1.01, f, 12)

def test_block_method_gives_way_to_lapy(fresh, monkeypatch):
    v, f = icosphere(4); a = harmonics(v, f, 9)[0]
    for c in fresh.iterdir(): c.unlink()
    def broken(*_): raise np.linalg.LinAlgError
    monkeypatch.setattr(H, 'lanczos', broken)
    assert np.allclose(harmonics(v, f, 9)[0], a, atol=1e-9)

@pytest.mark.parametrize('which', ['cholespy', 'sksparse'])
def test_cholesky_factor(which, monkeypatch):
    pytest.importorskip(which)
    other = {'cholespy':'sksparse', 'sksparse':'cholespy'}[which]
    monkeypatch.setattr(H, 'find_spec', lambda n: None if n == other else find_spec(n))
    A, M = fem(*icosphere(3)); b = np.random.default_rng(0).standard_normal((A.shape[0], 3))
    assert np.abs((A+M) @ H.factor(A+M)(b)-b).max() < 1e-10

@needs(BE)
def test_published_eigenvalues(hcp):
    lam = harmonics(hcp[0].vertices, hcp[0].faces, 201, hcp[0].mask)[0]
    published = np.loadtxt(BE/'brainEigenmodes_fsLR_32k_midthickness-lh_eval_50.txt')
    assert np.abs(lam[1:50]/published[1:]-1).max() < 1e-3 and abs(lam[0]) < 1e-6

@needs(BE, PARC, RELEASED)
def test_released_table(hcp):
    theirs = pd.read_csv(RELEASED/'schaefer400_roi_eigenmodes.csv', index_col=0).values
    lab = [np.loadtxt(PARC/f'brainEigenmodes_fsLR_32k_Schaefer400-{h}h.txt').astype(int) for h in 'lr']
    ours = harmonic_table(make_atlas('BrainEigenmodes', lab, schaefer_names(), hcp), hcp, released=True)
    assert np.abs(ours.values-theirs).max() < 2e-5 and ours.order == '7'  # signs included

def test_default_table():
    t, a = harmonic_table(), schaefer()
    assert t.values.shape == (400, 200) and t.values.dtype == np.float64 and np.allclose(t.values.std(0), 1) and t.order == '7' and t.names == a.names
    for h in (slice(200), slice(200, 400)):
        x = t.values[h]; assert (x[np.abs(x).argmax(0), range(200)] > 0).all()
    flag = harmonic_table(released=True, n=3).values
    assert (flag[:200,0] > 0).all() and (flag[200:,0] < 0).all() and flag[:200,0].std() < 1e-9
    assert np.allclose(np.abs(harmonic_table(n=2, unit_variance=False).values), np.abs(flag[:,1:]))

def test_parcellate():
    x = np.array([[1.,2], [3,np.nan], [5,6], [7,8]])
    assert np.array_equal(parcellate(x, [9,9,0,4]), [[7,8],[2,2]]) and np.array_equal(parcellate(x, [9,9,0,4], ids=[9,4]), [[2,2],[7,8]])
    assert np.array_equal(parcellate(x[:,0], [1,1,2,2], weights=[3,1,1,1]), [1.5,6]) and np.isnan(parcellate(x, [1]*4, ids=[1,2])[1]).all()
    assert np.array_equal(parcellate(x, np.array([1.,1,-1,0])), [[2,2]])

def test_names_are_the_atlas():
    names, a = schaefer_names(), schaefer()
    assert len(set(names)) == 400 and [l.max() for l in a.labels] == [200, 400] and network_order(names) == '7'
    if PARC is None: pytest.skip('the name list is absent')
    lut = pd.read_csv(PARC/'micapipe_lut_schaefer-400.csv').dropna()
    assert tuple(lut.label) == names
    for h,l in zip('lr', a.labels): assert np.array_equal(nib.load(PARC/f'micapipe_schaefer-400_fsLR32k_{h}h.label.gii').agg_data(), l)
    xyz = lut[['coor.x','coor.y','coor.z']].values
    assert network_order(centroids=xyz) == '7' and network_order(centroids=xyz[p]) == '17' and network_order(centroids=xyz[::-1]) is None

def test_order_is_checked_and_aligned():
    names = schaefer_names(); t = Table(np.arange(400.)[:,None], names, '7')
    there = t.aligned_to(order='17')
    assert np.array_equal(there.values[:,0], p) and np.array_equal(there.aligned_to(order='7').values, t.values) and np.array_equal(there.aligned_to(names).values, t.values)
    seventeen = [f'17Networks_LH_{i}' for i in range(400)]
    assert np.array_equal(t.aligned_to(seventeen).values, there.values)
    check_order(t, names, 'bold'); check_order(there, seventeen, 'bold'); check_order(there, '17', 'bold')
    for data in ('17', seventeen, np.array(names)[p]):
        with pytest.raises(BadInput, match='bold: .*17-network order.*7-network order'): check_order(t, data, 'bold')
    for data in (names[::-1], None, ['V1','V2'], names[:399]):
        with pytest.raises(BadInput): check_order(t, data, 'bold')
    other = Table(np.ones((2, 1)), ('V1','V2')); check_order(other, ['V1','V2'], 'bold')
    with pytest.raises(BadInput): check_order(other, ['V2','V1'], 'bold')
    with pytest.raises(BadInput): other.aligned_to(order='17')
    with pytest.raises(BadInput): Table(np.ones((3, 1)), ('V1','V2'))

@needs(RELEASED)
def test_released_orders_differ():
    pairs = neighbours(schaefer())
    H7, G = pd.read_csv(RELEASED/'schaefer400_roi_eigenmodes.csv', index_col=0).values[:,1:4], np.loadtxt(RELEASED/'gradient_mapping_400.csv', delimiter=',')[:,:3]
    back = np.argsort(p)
    assert (roughness(H7, pairs) < .2*roughness(H7[back], pairs)).all() and (roughness(G[back], pairs) < .7*roughness(G, pairs)).all()

@pytest.mark.parametrize('bad', ['absent', 'text', 'truncated', 'data', 'index', 'nan', 'side', 'mask'])
def test_broken_surface(tmp_path, bad):
    v, f = icosphere(2); path = tmp_path/'lh.mid'
    if bad == 'text': path.write_text('hello')
    elif bad == 'data':
        path = tmp_path/'lh.func.gii'; nib.save(nib.gifti.GiftiImage(darrays=[nib.gifti.GiftiDataArray(np.zeros(5, 'f4'))]), path)
    elif bad != 'absent':
        if bad == 'side': path = tmp_path/'cortex'
        nib.freesurfer.write_geometry(path, np.where(v>.99, np.nan, v) if bad == 'nan' else v, f+(1000 if bad == 'index' else 0))
        if bad == 'truncated': path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(BadInput, match=str(path)): read_surface(path, mask=np.ones(7) if bad == 'mask' else None)

def test_surface_formats(tmp_path):
    v, f = icosphere(2)
    nib.freesurfer.write_geometry(tmp_path/'rh.midthickness', v, f)
    gii = nib.gifti.GiftiImage(darrays=[nib.gifti.GiftiDataArray(v.astype('f4'), 'NIFTI_INTENT_POINTSET', meta={'AnatomicalStructurePrimary':'CortexRight'}),
                                        nib.gifti.GiftiDataArray(f.astype('i4'), 'NIFTI_INTENT_TRIANGLE')])
    nib.save(gii, tmp_path/'cortex.surf.gii')
    (tmp_path/'rh.cortex.label').write_text('#!ascii label\n2\n3 0 0 0 0\n5 0 0 0 0\n')
    for s in (read_surface(tmp_path/'rh.midthickness', tmp_path/'rh.cortex.label'), read_surface(tmp_path/'cortex.surf.gii', tmp_path/'rh.cortex.label')):
        assert s.hemi == 'R' and np.allclose(s.vertices, v, atol=1e-6) and np.array_equal(s.faces, f) and np.flatnonzero(s.mask).tolist() == [3, 5]
    for name,h in (('sub-1_hemi-L_midthickness.surf.gii','L'), ('S1.R.midthickness.32k_fs_LR.surf.gii','R'), ('conte69_32k_lh.gii','L')):
        nib.save(nib.gifti.GiftiImage(darrays=[nib.gifti.GiftiDataArray(v.astype('f4'), 'NIFTI_INTENT_POINTSET'), gii.darrays[1]]), tmp_path/name)
        assert read_surface(tmp_path/name).hemi == h

def test_mismatched_atlas_and_surface():
    L, R = conte69()
    v, f = icosphere(2); small = [H.Surface(v, f, np.ones(len(v), bool), h) for h in 'LR']
    with pytest.raises(BadInput, match='same mesh'): harmonic_table(schaefer(), small, n=3)
    with pytest.raises(BadInput): plot_cortex(np.ones(399))
    with pytest.raises(BadInput): harmonics(v, f, len(v))
    lab = [(v[:,2]>0)+1]*2; lab[0] = np.where(v[:,0]>2, 1, lab[0])
    hole = [H.Surface(v, f, v[:,2]>0, h) for h in 'LR']
    with pytest.raises(BadInput, match='no cortex under parcel L_1'): harmonic_table(make_atlas('toy', lab), hole, n=3)

def test_gradients(fresh):
    fc = group_fc(); g = gradients(fc)
    assert g.shape == (400, 30) and (g[np.abs(g).argmax(0), range(30)] > 0).all() and np.array_equal(gradients(fc), g)
    i = np.random.default_rng(0).permutation(400)
    assert np.abs(np.abs(gradients(fc[np.ix_(i, i)], 10))-np.abs(g[i,:10])).max() < 1e-6*np.abs(g).max()
    flip = g*np.where(np.arange(30) % 2, 1, -1)
    assert np.allclose(gradients(fc, reference=flip), flip)  # signs come from the reference
    t = gradient_table()
    assert t.kind == 'gradients' and t.order == '7' and np.allclose(t.values.std(0), 1)

@needs(RELEASED)
def test_gradients_near_the_released_ones():
    X = np.loadtxt(RELEASED/'gradient_mapping_400.csv', delimiter=','); fc = group_fc()
    right = Table(X, tuple(np.array(schaefer_names())[p]), '17', 'gradients').aligned_to(order='7').values
    match = lambda X: np.diag(np.corrcoef(gradients(fc, reference=X)[:,:5].T, X[:,:5].T)[:5,5:])
    assert match(right).min() > .9 and match(X).max() < match(right).min()

@pytest.mark.parametrize('bad', ['shape', 'size', 'nan', 'asymmetric', 'empty'])
def test_bad_fc(bad):
    fc = group_fc()
    if bad == 'shape': fc = fc[:,:399]
    if bad == 'size': fc = fc[:100,:100]
    if bad == 'nan': fc[5] = np.nan
    if bad == 'asymmetric': fc = fc*np.arange(400)
    if bad == 'empty': fc[5] = fc[:,5] = 0
    with pytest.raises(BadInput, match='my.csv'): check_fc(fc, 400, 'my.csv')
    with pytest.raises(BadInput): gradient_table(fc)
