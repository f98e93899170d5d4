"""What could register and strip a head: ANTsPy and DIPY (and brainextractor, BET in Python, where it is installed), on studyforrest's sub-02. Prints the table of reports/registration.md; the seconds are CPU seconds, those of ours the wall seconds of the remembered run.

    BRAINHARMONIX_DATA=... OMP_NUM_THREADS=1 python benchmarks/registration.py
"""
import time
import nibabel as nib, numpy as np, pandas as pd
from nibabel.affines import apply_affine
from scipy.ndimage import binary_dilation
from brainharmonix.core import sample
from brainharmonix.preprocess.register import dice, isotropic, linear, place, pull, register, start, template
from brainharmonix.preprocess.t1 import FULL, _full_affine, _mask, load_t1

rows = []
def timed(call): t = time.process_time(); out = call(); return out, time.process_time()-t

def main():
    scan = sample('studyforrest/sub-02_T1w.nii.gz')
    if scan is None: raise SystemExit('BRAINHARMONIX_DATA does not hold studyforrest')
    r = register(scan, remember=True); F = np.linalg.inv(r.affine); y, A = r.t1.get_fdata(dtype=np.float32), r.t1.affine; own = r.mask.get_fdata() > 0
    points = apply_affine(_full_affine(), np.argwhere(_mask())[::499]); away = lambda P: float(np.median(np.linalg.norm(apply_affine(P, points)-apply_affine(F, points), axis=1)))
    f, m, fA = template(4.); near = binary_dilation(m, iterations=2); x4, A4 = isotropic(y, A, 4.); S = start(x4, A4)

    def ants(): return linear(f, near, fA, x4, A4, linear(f, near, fA, x4, A4, S, 'Rigid'))
    def dipy(masked):
        from dipy.align.imaffine import AffineRegistration, MutualInformationMetric
        from dipy.align.transforms import AffineTransform3D, RigidTransform3D
        reg, P = AffineRegistration(metric=MutualInformationMetric(nbins=32), level_iters=[200,100], sigmas=[1,0], factors=[2,1], verbosity=0), S
        for kind in (RigidTransform3D(), AffineTransform3D()):
            P = reg.optimize(f.astype(float), x4.astype(float), kind, None, static_grid2world=fA, moving_grid2world=A4, starting_affine=P, **(dict(static_mask=near.astype(np.int32)) if masked else {})).affine
        return P
    for name,call in (('ANTsPy, rigid then affine', ants), ('DIPY, the same, whole image', lambda: dipy(False)), ('DIPY, the same, masked', lambda: dipy(True))):
        P, s = timed(call); rows.append(dict(step='whole head to template, 4 mm', tool=name, seconds=s, likeness=place(y, A, P), mm_from_ours=away(P)))

    def otsu(): from dipy.segment.mask import median_otsu; return median_otsu(isotropic(y, A, 2.)[0], median_radius=2, numpass=4)[1]
    def bet():
        from brainextractor import BrainExtractor
        x2, A2 = isotropic(y, A, 2.); b = BrainExtractor(nib.Nifti1Image(x2, A2)); b.run(); return b.compute_mask() > 0
    for name,call in (('ours: SyN carries the template\'s mask', lambda: own), ('DIPY median_otsu', otsu), ('brainextractor (BET)', bet)):
        try: v, s = timed(call)
        except ImportError: print(f'{name}: not installed'); continue
        B = A if v.shape == own.shape else isotropic(y, A, 2.)[1]; v = np.asarray(v) > 0
        there = pull(v.astype(np.float32), B, F, FULL, _full_affine()) > .5
        rows.append(dict(step='skull strip', tool=name, seconds=r.seconds['warp']+r.seconds['mask'] if v is own or s < .01 else s, litres=v.sum()*abs(np.linalg.det(B[:3,:3]))/1e6, dice_mni=dice(there, _mask())))
    t = pd.DataFrame(rows).round(3).astype(object).fillna('').astype(str)
    for row in (list(t), ['---']*t.shape[1], *t.values): print('| '+' | '.join(row)+' |')

if __name__ == '__main__': main()
