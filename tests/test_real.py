"From a cohort's files to People; an encoder on an atlas that it was not trained with"
from dataclasses import replace
from pathlib import Path
import nibabel as nib, numpy as np, pandas as pd, pytest, torch
from hypothesis import HealthCheck, given, settings, strategies as st
from brainharmonix.bench import real
from brainharmonix.bench.arena import Protocol, guarded, learns, splits_of, toy_people
from brainharmonix.bench.real import (Placed, Places, abide_sample, check_places, connectivity_places, coupling, for_atlas, people_of, rows_of, shipped_model, stages_sample, tokens_of,
                                      vertex_tables, volume_places)
from brainharmonix.cohort import id_hash
from brainharmonix.core import BadInput
from brainharmonix.geometry.gradients import gradient_table, group_fc
from brainharmonix.geometry.harmonics import harmonic_table, schaefer
from brainharmonix.model.passport import BrainHarmonix
from brainharmonix.preprocess.atlas import Atlas, shipped_atlas
from brainharmonix.preprocess.bold import Bold, parcellate, save_bold
from common import refused

@pytest.fixture(scope='module')
def cohort(tmp_path_factory):
    "Folder and manifest of 16 records"
    at, toy = tmp_path_factory.mktemp('cohort'), toy_people(16, regions=8, frames=60)
    m = pd.DataFrame(dict(subject=[f'{k:07d}' for k in range(51000, 51016)], session='1', site=np.repeat(['A','B'], 8), tr=2., label=[str(1+k%2) for k in range(16)]))
    m['bold'] = [str(save_bold(at/f'sub-{s}_timeseries.safetensors', toy.scans(i)[0])) for i,s in enumerate(m.subject)]
    return at, m

@pytest.fixture(scope='module')
def model(): return shipped_model()

@pytest.fixture(scope='module')
def volume(): return volume_places(shipped_atlas())

# ---- people
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(label=st.lists(st.sampled_from(['1','2',None]), min_size=16, max_size=16), scan=st.lists(st.booleans(), min_size=16, max_size=16))
def test_every_row_is_kept_or_listed(cohort, label, scan):
    at, m = cohort; m = m.assign(label=label, bold=m.bold.where(scan))
    ok = [l is not None and s for l,s in zip(label, scan)]
    if len({l for l,k in zip(label, ok) if k}) < 2: refused(lambda: people_of('abide1', m, check=False), 'abide1'); return
    p, left = people_of('abide1', m, check=False)
    assert p.table.subject.tolist() == m.subject[ok].tolist() and sorted([*p.table.subject, *left.subject]) == m.subject.tolist()
    assert p.y.tolist() == [{'1':1,'2':0}[l] for l,k in zip(label, ok) if k] and p.classes == ('control','autism')  # 1 is autism in its codes, and positive
    assert not {'label','bold','score'} & set(p.table)

def test_a_broken_scan_is_listed_and_the_rest_goes_on(cohort, tmp_path):
    at, m = cohort; f = tmp_path/'sub-x_timeseries.safetensors'; f.write_bytes(Path(m.bold[2]).read_bytes()[:400])
    other = save_bold(tmp_path/'sub-y_timeseries.safetensors', Bold(np.random.default_rng(0).standard_normal((5, 60)).astype(np.float32), 2.))
    p, left = people_of('abide1', m.assign(bold=m.bold.where(m.index != 2, str(f)).where(m.index != 3, str(other))))
    assert len(p) == 14 and left.subject.tolist() == m.subject[2:4].tolist()
    assert 'damaged' in left.reason[0] and 'number of regions' in left.reason[1]

def test_scans_are_read_when_they_are_asked_for(cohort, monkeypatch):
    at, m = cohort; read = []; true = real.read_bold
    monkeypatch.setattr(real, 'read_bold', lambda path, **kw: read.append(path) or true(path, **kw))
    p, _ = people_of('abide1', m, check=False); assert not read
    p.part('edges', 4); assert [str(r) for r in read] == [m.bold[4]]
    p.part('edges', 4); assert len(read) == 1                      # what was made of it is kept
    read.clear(); people_of('abide1', m); assert len(read) == 16   # `check` reads each once

def test_paths_are_relative_to_the_manifest(cohort):
    at, m = cohort; m.assign(bold=m.bold.map(lambda f: Path(f).name)).to_csv(at/'m.csv', index=False)
    p, left = people_of('abide1', at/'m.csv'); assert len(p) == 16 and not len(left) and p.part('bold', 0).tr == 2

def test_provenance_holds_counts_and_hashes_and_no_id(cohort):
    at, m = cohort; p, left = people_of('abide1', m.assign(label=m.label.where(m.index > 1)), check=False); q = p.provenance
    assert not any(s in str(q) or s.lstrip('0') in str(q) for s in m.subject)
    assert q['ids'] == id_hash(m.subject[2:]) and q['rows'] == 14 and q['left'] == 2 and q['sites'] == {'A':6, 'B':8}
    assert people_of('abide1', m, check=False)[0].provenance['manifest'] != q['manifest']

def test_one_modality_is_enough_unless_both_are_needed(cohort):
    at, m = cohort; t1 = m.assign(t1='x.nii.gz', bold=m.bold.where(m.index > 3))
    assert len(people_of('abide1', t1, check=False)[0]) == 16 and len(people_of('abide1', t1, check=False, need=('bold',))[0]) == 12
    assert len(people_of('abide1', t1, check=False, need=('bold','t1'))[0]) == 12
    refused(lambda: people_of('abide1', m, check=False, need=('t1',)), 'no t1')

def test_own_columns(cohort):
    at, m = cohort; m = m.assign(sex=['M','F']*8, iq=np.arange(16)+.5, age=20.)
    p, _ = people_of('abide1', m, column='sex', check=False); assert p.kind == 'binary' and p.classes == ('F','M') and p.y.tolist() == [1, 0]*8
    p, _ = people_of('abide1', m, column='iq', kind='regression', check=False); assert p.y.tolist() == (np.arange(16)+.5).tolist()
    for call, *words in ((lambda: people_of('abide1', m, column='subject'), 'column', 'id'), (lambda: people_of('abide1', m.assign(number=m.subject), column='number', kind='regression', check=False), 'ids'),
                         (lambda: people_of('abide1', m, column='age', kind='regression', check=False), 'one score'),
                         (lambda: people_of('abide1', m, column='height'), 'no column height')): refused(call, *words)
    with pytest.raises(BadInput, match='16 different labels'): people_of('abide1', m.assign(code=m.subject), column='code', kind='multiclass', check=False)

def test_bad_cohorts_are_one_sentence(cohort):
    at, m = cohort; lone = m.assign(site=['C', *m.site[1:]])
    for call, *words in ((lambda: people_of('abide7', m), 'abide7'), (lambda: people_of('abide1', m, task='iq'), 'no task iq'), (lambda: people_of('abide1', m.assign(label=None)), 'nobody', 'diagnosis'), (lambda: people_of('abide1', m.drop(columns='label')), 'label'),
                         (lambda: people_of('abide1', m[m.label == '1'], check=False), 'one class, autism'), (lambda: splits_of(people_of('abide1', lone, check=False)[0], Protocol('loso')), 'one subject at site C'), (lambda: people_of('stages', m), 'no task'),
                         (lambda: people_of('abide1', m.assign(bold=[str(at/'none_timeseries.safetensors')]*16)), 'no session that can be used')): refused(call, *words)

# ---- places
def test_vertex_tables_are_the_tables_of_chapters_20_and_21():
    xyz, mask, psi, grad = vertex_tables(); lab = np.concatenate(schaefer().labels)
    assert np.allclose(parcellate(psi, lab), harmonic_table().values) and np.allclose(parcellate(grad, lab), gradient_table().values)

def test_a_volume_of_known_parcels_gives_their_table(volume):
    r = lambda a, b: np.array([np.corrcoef(x, y)[0,1] for x,y in zip(a.T, b.T)])
    assert volume.how == ('cortex',)*400 and r(volume.harmonics, harmonic_table().values).min() > .9 and r(volume.gradients, gradient_table().values).min() > .95

def balls(*centres, radius=9): # label volume with a ball at each place, mm
    A = np.diag([3., 3, 3, 1]); A[:3,3] = -90, -126, -72
    at = np.stack(np.meshgrid(*(np.arange(61),)*3, indexing='ij'), -1)@A[:3,:3] + A[:3,3]; x = np.zeros((61,)*3, np.int16)
    for i,c in enumerate(centres, 1): x[np.linalg.norm(at-np.array(c), axis=-1) < radius] = i
    return Atlas(nib.Nifti1Image(x, A), np.arange(1, len(centres)+1), source='balls')

def test_regions_without_cortex_are_left_out_or_flagged():
    v = balls((-40, -25, 55), (10, -90, 5), (-12, -20, 8))  # hand area, visual cortex, thalamus
    a, b = volume_places(v), volume_places(v, beyond='near')
    assert a.rows.tolist() == [0, 1] and a.how == ('cortex',)*2 and b.how == ('cortex','cortex','near') and np.isfinite(b.harmonics).all()
    assert np.array_equal(a.harmonics, b.harmonics[:2]) and np.linalg.norm(b.xyz[2]-[-12, -20, 8]) < 2
    near = np.abs(schaefer().centroids-[-40, -25, 55]).sum(1).argmin()   # what lies in the same place has a similar place
    assert np.corrcoef(a.harmonics[0,:30], harmonic_table().values[near,:30])[0,1] > .7
    for call, *words in ((lambda: volume_places(balls((-12, -20, 8))), 'cortex'), (lambda: volume_places(v, beyond='drop'), 'drop'), (lambda: volume_places(v, names=('a',)), '1 names'), (lambda: volume_places('nowhere.nii.gz'), 'nowhere')): refused(call, *words)

def test_an_atlas_of_other_data_is_refused(volume):
    got = check_places(volume, group_fc()); assert got['r'] > .2 > 3*got['shuffled']
    mixed = replace(volume, rows=np.random.default_rng(0).permutation(400))
    refused(lambda: check_places(mixed, group_fc()), 'not the atlas of these data')
    refused(lambda: check_places(volume, group_fc()[:200,:200]), '200 regions')
    refused(lambda: check_places(replace(volume, xyz=None), group_fc()), 'coordinates')

def test_regions_are_found_by_their_connections():
    B = group_fc(); mix = np.random.default_rng(1).permutation(400)
    T = coupling(group_fc('holdout'), B, widths=(.02,.005,.002)); assert np.allclose(T.sum(1), 1) and (T.argmax(1) == np.arange(400)).mean() > .95
    few = np.sort(mix[:120]); U = coupling(B[np.ix_(few, few)], B); again = coupling(B[np.ix_(few[::-1], few[::-1])], B)
    assert np.allclose(U, again[::-1], atol=1e-6)                                    # the order of the rows does not matter
    C = B[np.ix_(few, few)]; assert np.allclose(coupling(np.tanh(C)*.3, B), U, atol=1e-6)  # nor does the scale of the correlations

# ---- the model elsewhere
def test_the_same_weights_on_the_same_places_give_the_same_tokens(model, tmp_path):
    run = toy_people(2, regions=400, frames=90).part('bold', 0); p = Places('again', schaefer().names, gradient_table().values, harmonic_table().values, np.arange(400), ('cortex',)*400)
    new = for_atlas(model, p); a, b = model.embed(run), new.embed(run)
    assert torch.allclose(a.hub, b.hub, atol=1e-5) and torch.allclose(a.bold.x, b.bold.x, atol=2e-3)  # the checkpoint holds its tables in float16
    half = for_atlas(model, p.some(np.arange(0, 400, 2))); e = half.embed(rows_of(run, np.arange(0, 400, 2)))
    assert e.bold.grid[0] == 200 and e.hub.shape == a.hub.shape and len(half.passport.names) == 200
    refused(lambda: half.embed(run), '400 parcels', '200')
    back = BrainHarmonix.from_pretrained(half.save_pretrained(tmp_path/'half')); assert torch.allclose(back.embed(rows_of(run, np.arange(0, 400, 2))).hub, e.hub, atol=1e-3)
    assert model.config.function.regions == 400 and torch.equal(model.embed(run).hub, a.hub)   # the old one is as it was

def test_statistics_of_single_parcels_are_not_carried_over(model):
    class Fitted: passport = replace(model.passport, bold_norm='robust', statistics=dict(median=[0.]))
    p = connectivity_places(group_fc()[:50,:50]); refused(lambda: for_atlas(Fitted(), p), 'robust')

def test_places_come_from_training_people_alone(model):
    people, seen = toy_people(20, regions=30, frames=60), []
    def place(fc): seen.append(fc); return connectivity_places(fc)
    Placed(model, place=place).fit(people.view(range(8)), people.view(range(8, 14)), 0)
    assert np.allclose(seen[0], np.mean([people.part('fc', i) for i in range(8)], 0))

def test_the_guards_hold(model): assert guarded(lambda: Placed(model), toy_people(20, regions=16, frames=60)) == dict(labels=0., others=0.)

@pytest.mark.parametrize('kind', ['binary','multiclass','regression'])
def test_it_learns_a_separable_problem_and_no_shuffled_one(model, kind):
    got = learns(lambda: Placed(model), kind, n=60, regions=16, frames=90); chance = dict(binary=.5, multiclass=1/3, regression=0.)[kind]
    assert got['signal'] > chance+.25 and got['shuffled'] < chance+.25

def test_tokens_belong_to_their_regions(model):
    p = connectivity_places(group_fc()[:40,:40]); new, run = for_atlas(model, p), toy_people(2, regions=40, frames=100).part('bold', 0)
    got = tokens_of(new, p).of(run); x, e = got['function'].reshape(40, -1), new.embed(run).bold
    y = np.stack([e.x[e.at//e.grid[1] == r].numpy() for r in range(40)]); r = np.corrcoef((y-y.mean(0)).reshape(40, -1))[2,5]
    assert np.isclose(np.tanh(got['edges'][np.flatnonzero((np.triu_indices(40, 1)[0] == 2) & (np.triu_indices(40, 1)[1] == 5))[0]]), r, atol=1e-5)
    assert np.allclose(x[7], e.x[e.at//e.grid[1] == 7].mean(0), atol=1e-5)
    refused(lambda: Placed(model, 'both'), 'both')

# ---- samples
def test_the_abide_sample():
    if (got := abide_sample()) is None: pytest.skip('the ABIDE sample is not at hand')
    p, left = got; assert len(p) == 44 and len(left) == 2 and left.reason.str.contains('TR not known').all()
    assert p.table.site.nunique() == 20 and len(splits_of(p, Protocol('loso'))) == 20 and set(p.table.tr) == {1.5, 1.656, 2., 2.2, 2.5, 3.}
    assert p.part('bold', 0).x.shape[0] == 200 and p.part('bold', 0).tr == p.table.tr[0]

def test_the_stages_sample():
    if (p := stages_sample()) is None: pytest.skip('the STAGES sample is not at hand')
    assert len(p) == 12 and p.table.subject.nunique() == 8 and p.part('bold', 3).x.shape[0] == 400 and p.part('bold', 0).order == '7'
    assert (p.y == np.unique(p.table.subject, return_inverse=True)[1]).all()
