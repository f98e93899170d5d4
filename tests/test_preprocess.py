"A whole dataset: nobody stops anybody, nothing is half written, nothing is done twice"
import json, os, shutil, signal, subprocess, sys
from pathlib import Path
import nibabel as nib, numpy as np, pandas as pd, pytest
from brainharmonix.app import main
from brainharmonix.cohort import manifest
from brainharmonix.core import BadInput, sample
from brainharmonix.preprocess.bids import Settings, bids_people, derivative_people, group, is_raw, manifest_people, one_person, participants, status
from brainharmonix.preprocess.bold import read_bold, schaefer_names
from brainharmonix.preprocess.t1 import mni152, read_t1
from brainharmonix.record import Store, load_record

rng = np.random.default_rng(0)
SERIES = rng.standard_normal((400, 60)).cumsum(1)

def run(*argv, capsys=None):
    code = main(list(map(str, argv))); said = capsys.readouterr() if capsys else None
    return (code, said.out, said.err) if capsys else code

@pytest.fixture
def tables(tmp_path):
    "A manifest of six runs, of which the fourth is cut short"
    for i in range(6): np.save(tmp_path/f'{i}.npy', SERIES*(i+1)+10*i)
    (tmp_path/'3.npy').write_bytes((tmp_path/'3.npy').read_bytes()[:500])
    pd.DataFrame([dict(subject=f'sub-{i:02}', bold=f'{i}.npy', tr=2., order='7', site='AB'[i%2], mean_fd=.1*i) for i in range(6)]).to_csv(tmp_path/'cohort.csv', index=False)
    return tmp_path

def bids(folder, *files, **sidecars):
    "A raw dataset whose images are given"
    folder.mkdir(); (folder/'dataset_description.json').write_text('{"Name": "test", "BIDSVersion": "1.9.0"}')
    for name, image in files:
        f = folder/name; f.parent.mkdir(parents=True, exist_ok=True)
        nib.save(image, f) if isinstance(image, nib.Nifti1Image) else f.write_bytes(image)
    for name, meta in sidecars.items(): (folder/f'{name}.json').write_text(json.dumps(meta))
    return folder

ZERO = nib.Nifti1Image(np.zeros((9,9,9), np.int16), np.eye(4)); ZERO.header.set_sform(np.eye(4), 1)
def sha(folder): return {str(p.relative_to(folder)):p.read_bytes() for p in Store(folder).files}

# ---- one bad scan stops nobody
def test_records_and_reasons(tables):
    did = participants(manifest_people(tables/'cohort.csv'), tables/'out'); paths = group(tables/'out')
    assert (did['new'], did['quarantined']) == (5, 1) and '3.npy' in did['aside'][0] and '\n' not in did['aside'][0]
    m = manifest(paths['manifest.csv'], need=('bold','tr','site'), files=True)
    assert list(m.subject) == [f'sub-{i}' for i in ('00','01','02','04','05')] and list(m.frames) == [60]*5 and np.allclose(m.mean_fd, [0,.1,.2,.4,.5])
    aside = pd.read_csv(paths['quarantine.tsv'], sep='\t', dtype=str)
    assert list(aside.subject) == ['03'] and aside.reason[0] == did['aside'][0]
    b = read_bold(tables/'out'/m.bold[1]); direct = read_bold(tables/'1.npy', tr=2., order='7')
    assert b.tr == 2 and b.order == '7' and np.abs(b.x-direct.x).max() < 4e-3

def test_every_decision_lies_beside_the_record(tables):
    participants(manifest_people(tables/'cohort.csv'), tables/'out', Settings(band=(.01,.1)))
    side = json.loads((tables/'out/sub-00/func/sub-00_desc-parcels_timeseries.json').read_text())
    assert side['Settings']['band'] == [.01,.1] and side['decisions']['band'] == [.01,.1] and side['Sources'] == [str(tables/'0.npy')] and side['Software']['packages']['nilearn']
    assert json.loads((tables/'out/dataset_description.json').read_text())['DatasetType'] == 'derivative'

def test_checksums_are_those_of_the_files(tables):
    import hashlib
    participants(manifest_people(tables/'cohort.csv'), tables/'out'); m = pd.read_csv(group(tables/'out')['manifest.csv'])
    assert [hashlib.sha256((tables/'out'/b).read_bytes()).hexdigest() for b in m.bold] == list(m.checksum)

def test_pages(tables):
    participants(manifest_people(tables/'cohort.csv'), tables/'out'); group(tables/'out')
    assert 'Set aside' in (tables/'out/sub-03.html').read_text() and 'Carpet plot' in (tables/'out/sub-00.html').read_text()
    assert 'sub-00_desc-parcels' in (tables/'out/group_qc.html').read_text()

# ---- nothing twice
def test_second_run_does_nothing_and_says_so(tables, capsys):
    argv = 'preprocess', '--manifest', tables/'cohort.csv', '--out', tables/'out'
    code, out, _ = run(*argv, capsys=capsys); assert code == 3 and '5 new records' in out and '1 scan set aside' in out and '3.npy' in out
    times = {p:p.stat().st_mtime_ns for p in (tables/'out').rglob('sub-*') if p.is_file()}
    code, out, _ = run(*argv, capsys=capsys); assert code == 3 and 'nothing new: 5 records up to date' in out
    assert times == {p:p.stat().st_mtime_ns for p in (tables/'out').rglob('sub-*') if p.is_file()}

@pytest.mark.parametrize('change,again', [('data',1), ('sidecar',1), ('settings',5), ('lost record',1), ('cut record',1), ('mended file',1), ('retry',0)])
def test_what_changed_is_done_again(tables, change, again):
    people, out, settings = manifest_people(tables/'cohort.csv'), tables/'out', Settings()
    participants(people, out); record = out/'sub-00/func/sub-00_desc-parcels_timeseries.safetensors'
    if change == 'data': np.save(tables/'0.npy', SERIES[:,::-1])
    if change == 'sidecar': (tables/'0.json').write_text('{"RepetitionTime": 2.0}')
    if change == 'settings': settings = Settings(fd=.2)
    if change == 'lost record': record.unlink()
    if change == 'cut record': record.write_bytes(record.read_bytes()[:-100])
    if change == 'mended file': np.save(tables/'3.npy', SERIES)
    tried = lambda: (tables/'out/sub-03.html').stat().st_mtime_ns; before = tried()
    did = participants(people, out, settings, retry=change == 'retry')
    assert (tried() > before) == (change in ('settings','mended file','retry'))
    assert did['new'] == again
    assert all(load_record(f) for f in Store(out).files)

# ---- nothing half written
KILLED = '''
import os, sys
import brainharmonix.record as record
from brainharmonix.app import main
sync, left = record._sync, [int(sys.argv[1])]
def dies(path): # after the bytes, before the file has its name
    left[0] -= 1
    os.kill(os.getpid(), 9) if not left[0] else sync(path)
record._sync = dies
main(sys.argv[2:])
'''
@pytest.mark.parametrize('at,there,left', [(1,0,True), (3,1,True), (4,2,False)]) # file, folder, file, folder ..
def test_kill_in_the_middle_of_a_write(tables, at, there, left):
    "What was whole stays, what was not is absent, and the next run ends as if nothing had happened"
    argv = 'preprocess', '--manifest', str(tables/'cohort.csv'), '--out'
    died = subprocess.run([sys.executable, '-c', KILLED, str(at), *argv, str(tables/'out')], capture_output=True)
    assert died.returncode == -signal.SIGKILL and bool(list((tables/'out').rglob('.brainharmonix-*'))) == left, died.stderr
    assert len(sha(tables/'out')) == there and all(load_record(f) for f in Store(tables/'out').files)
    assert run(*argv, tables/'out') == 3 and run(*argv, tables/'straight') == 3
    assert sha(tables/'out') == sha(tables/'straight') and len(sha(tables/'out')) == 5
    assert not list((tables/'out').rglob('.brainharmonix-*')), 'swept'

def test_a_full_disk_is_a_reason(tables, monkeypatch):
    import brainharmonix.preprocess.bids as b
    def full(path, x): raise OSError(28, 'No space left on device')
    monkeypatch.setattr(b, 'save_bold', full)
    did = participants(manifest_people(tables/'cohort.csv'), tables/'out')
    assert did['new'] == 0 and did['aside'][0].endswith('No space left on device; free space or check the permissions, and use --retry.')

# ---- many processes
def test_a_dask_cluster_and_joblib_give_the_same_records(tables):
    people = manifest_people(tables/'cohort.csv')
    for out, how in (('one',{}), ('joblib',dict(n_jobs=2)), ('dask',dict(scheduler='local://2'))): participants(people, tables/out, **how)
    assert sha(tables/'one') == sha(tables/'joblib') == sha(tables/'dask') and len(sha(tables/'one')) == 5

def test_relative_paths_reach_a_worker_elsewhere(tables, monkeypatch):
    monkeypatch.chdir(tables); people = manifest_people('cohort.csv')
    assert all(os.path.isabs(s.path) for p in people for s in p.scans) and participants(people, 'out', scheduler='local://1')['new'] == 5 and len(sha(tables/'out')) == 5

def test_mixed_settings_are_said(tables, capsys):
    people = manifest_people(tables/'cohort.csv'); participants(people[:2], tables/'out'); participants(people[2:], tables/'out', Settings(fd=.2)); m = pd.read_csv(group(tables/'out')['manifest.csv'])
    assert 'records of 2 different settings' in capsys.readouterr().err and m.settings.nunique() == 2

# ---- BIDS folders
def test_a_folder_is_read_by_its_names(tmp_path):
    d = bids(tmp_path/'d', ('sub-01/ses-a/anat/sub-01_ses-a_T1w.nii.gz', ZERO), ('sub-01/ses-b/func/sub-01_ses-b_task-rest_run-1_bold.nii.gz', ZERO), ('sub-02/func/sub-02_task-rest_bold.nii', ZERO),
             ('sub-02/func/sub-02_task-nback_bold.nii.gz', ZERO), ('sub-02/func/sub-02_task-rest_sbref.nii.gz', ZERO), ('sub-02/anat/sub-02_T2w.nii.gz', ZERO), ('sub-02/func/sub-02_task-rest_part-phase_bold.nii.gz', ZERO))
    (d/'participants.tsv').write_text('participant_id\tage\tsex\nsub-01\t31\tF\nsub-02\tn/a\tM\n')
    a, b = bids_people(d)
    assert [(s.kind, s.session) for s in a.scans] == [('t1','a'),('bold','b')] and dict(a.about) == dict(age='31', sex='F') and dict(b.about) == dict(sex='M')
    assert sorted(dict(s.entities)['task'] for s in b.scans) == ['nback','rest']
    assert [p.subject for p in bids_people(d, ['sub-02'], ['rest'])] == ['02'] and len(bids_people(d, ['02'], ['rest'])[0].scans) == 1

@pytest.mark.parametrize('scans,fault', [
    ([('anat/sub-01_T1w.nii.gz', ZERO)], 'constant'),
    ([('anat/sub-01_T1w.nii.gz', b'')], 'is empty'),
    ([('anat/sub-01_T1w.nii.gz', b'\x1f\x8b\x08 no')], 'cut off or damaged'),
    ([('func/sub-01_task-rest_bold.nii.gz', ZERO)], 'without a T1'),
    ([('anat/sub-01_T1w.nii.gz', ZERO), ('func/sub-01_task-rest_bold.nii.gz', ZERO)], 'its T1 cannot'),
    ([('func/sub-01_task-rest_run-1_bold.nii.gz', ZERO), ('func/sub-01_task-rest_run-01_bold.nii.gz', ZERO)], 'has the same name as'),
    ([('func/sub-01_task-rest_echo-1_bold.nii.gz', ZERO)], 'multi-echo')])
def test_bad_scans_of_a_folder(tmp_path, scans, fault):
    "One sentence each, and no record"
    d = bids(tmp_path/'d', *((f'sub-01/{n}', i) for n,i in scans), **{'task-rest_bold':dict(RepetitionTime=2.)})
    did = participants(bids_people(d), tmp_path/'out')
    assert did['new'] == 0 and did['quarantined'] == len(scans) and any(fault in r for r in did['aside']) and not any('\n' in r for r in did['aside'])
    assert not list((tmp_path/'out').rglob('*.safetensors'))

def test_a_dangling_link(tmp_path):
    d = bids(tmp_path/'d', ('sub-01/anat/sub-01_T1w.nii.gz', ZERO)); f = d/'sub-01/anat/sub-01_T1w.nii.gz'; f.unlink(); f.symlink_to('../../.git/annex/objects/nothing')
    assert 'datalad get' in participants(bids_people(d), tmp_path/'out')['aside'][0]

@pytest.mark.parametrize('argv,fault', [
    (('nowhere','out'), 'is not a folder'), (('plain','out'), 'has no dataset_description.json'), (('broken','out'), 'cannot be read'), (('d','out','--participant-label','99'), 'has no participant 99'),
    (('d','out','--task','sleep','--participant-label','02'), 'holds no T1w and no bold'), (('d',), 'give OUT_DIR'), (('--t1','x.nii.gz'), 'give --out'), (('--t1','x.nii.gz','--out','out'), 'does not exist'), (('--out','out'), 'was given no scans'), ((), 'was not told where to write'),
    (('d','out','--manifest','m.csv'), 'more than one of'), (('d','out','group'), 'holds no records'), (('d','out','--n-jobs','0'), '--n-jobs'), (('d','out','--scheduler','here'), '--scheduler'),
    (('--manifest','twice.csv','--out','out'), 'twice.csv'), (('--manifest','up.csv','--out','out'), 'up.csv'), (('--manifest','absent.csv','--out','out'), 'absent.csv'), (('--manifest','alike.csv','--out','out'), 'same file name')])
def test_bad_calls(tmp_path, monkeypatch, capsys, argv, fault):
    monkeypatch.chdir(tmp_path); (tmp_path/'plain').mkdir(); (tmp_path/'broken').mkdir(); (tmp_path/'broken/dataset_description.json').write_text('{"Name')
    bids(tmp_path/'d', ('sub-01/anat/sub-01_T1w.nii.gz', ZERO), ('sub-02/func/sub-02_task-rest_bold.nii.gz', ZERO))
    for n,ids in dict(twice=('a','a'), up=('../a','b'), alike=('a_b','ab')).items(): (tmp_path/f'{n}.csv').write_text('subject,session,bold,tr\n' + ''.join(f'{i},1,{i}.npy,2\n' for i in ids))
    code, out, err = run('preprocess', *argv, capsys=capsys)
    assert code == 2 and fault in err and err.count('\n') == 1 and not list(tmp_path.rglob('sub-*.html')), (code, err)

def test_ids_with_letters_that_a_shell_knows(tmp_path, monkeypatch, capsys):
    "The proposed next command can be pasted"
    import shlex; monkeypatch.chdir(tmp_path); (tmp_path/'a b').mkdir(); np.save(tmp_path/'a b/x y.npy', SERIES)
    code, out, _ = run('preprocess', '--bold', 'a b/x y.npy', '--tr', 2, '--out', 'my records', capsys=capsys)
    said = shlex.split(next(l for l in out.splitlines() if l.startswith('next'))[4:])
    assert code == 0 and said[:2] == ['brainharmonix','embed'] and Path(said[said.index('--bold')+1]).is_file()

def test_dry_run_writes_nothing(tables, capsys):
    code, out, _ = run('preprocess', '--manifest', tables/'cohort.csv', '--out', tables/'out', '--dry-run', capsys=capsys)
    assert code == 0 and '6 people, 6 scans, 6 to do' in out and not (tables/'out').exists()

# ---- finished derivatives
def finished(folder, raw=None):
    "An fMRIPrep folder with a surface run and a T1 in MNI152 space"
    f = folder/'sub-01/func'; a = folder/'sub-01/anat'; f.mkdir(parents=True); a.mkdir()
    (folder/'dataset_description.json').write_text('{"Name": "fMRIPrep", "BIDSVersion": "1.9.0", "DatasetType": "derivative"}')
    for h in 'LR':
        x = np.random.default_rng(ord(h)).standard_normal((10242,40)).astype(np.float32)
        nib.save(nib.GiftiImage(darrays=[nib.gifti.GiftiDataArray(v, intent='NIFTI_INTENT_TIME_SERIES') for v in x.T]), f/f'sub-01_task-rest_hemi-{h}_space-fsaverage5_bold.func.gii')
        (f/f'sub-01_task-rest_hemi-{h}_space-fsaverage5_bold.json').write_text('{"RepetitionTime": 2.0}')
    (f/'sub-01_task-rest_desc-confounds_timeseries.json').write_text('{}')
    pd.DataFrame(np.random.default_rng(1).standard_normal((40,8))*[.1,.1,.1,.001,.001,.001,5,5], columns=[*(f'{k}_{a}' for k in ('trans','rot') for a in 'xyz'), 'csf', 'white_matter']).to_csv(f/'sub-01_task-rest_desc-confounds_timeseries.tsv', sep='\t', index=False)
    shutil.copy(mni152(), a/'sub-01_space-MNI152NLin2009cAsym_desc-preproc_T1w.nii.gz')
    return folder

def test_derivatives(tmp_path):
    d = finished(tmp_path/'fmriprep'); assert not is_raw(d)
    assert run('preprocess', d, tmp_path/'out', '--fd', 9) == 0
    m = pd.read_csv(tmp_path/'out/manifest.csv', dtype=str); assert m.t1.notna().all() and len(m) == 1
    b = read_bold(tmp_path/'out'/m.bold[0]); assert b.names == schaefer_names() and b.decisions['pipeline'] == 'fmriprep' and len(b.decisions['confounds']) == 14
    assert read_t1(tmp_path/'out'/m.t1[0], spacing=2.).likeness > .95

def test_derivatives_beside_a_raw_dataset(tmp_path):
    "BOLD from the derivatives; a T1 that they lack from the raw dataset"
    d = finished(tmp_path/'fmriprep'); next((d/'sub-01/anat').glob('*T1w*')).unlink()
    raw = bids(tmp_path/'raw', ('sub-01/anat/sub-01_T1w.nii.gz', ZERO)); assert is_raw(raw)
    (p,) = derivative_people(d, raw=raw); assert [(s.kind, s.via) for s in p.scans] == [('t1','raw'),('bold','fmriprep')]
    did = participants([p], tmp_path/'out', Settings(fd=9)); assert did['new'] == 1 and 'constant' in did['aside'][0], 'a finished run does not need the T1'

# ---- real scans
@pytest.mark.skipif(not sample('stages'), reason='BRAINHARMONIX_DATA does not hold the samples')
@pytest.mark.parametrize('name,rows,parcels,trs', [('abide1',44,200,{1.5,1.656,1.75,2.,2.2,2.5,3.}), ('stages',12,400,{2.})])
def test_real_cohorts_become_records_through_their_manifests(tmp_path, name, rows, parcels, trs):
    d = sample(name); argv = ('--tables', d) if name == 'abide1' else ()
    assert run('manifest', name, *argv, '--files', d, '--out', tmp_path/'m.csv') == 0
    m = manifest(tmp_path/'m.csv', files=True); assert len(m) == rows and set(m.tr) <= trs
    keep = m.groupby('site').head(1).index if name == 'abide1' else m.index # one of each site
    m.loc[keep].to_csv(tmp_path/'some.csv', index=False)
    assert run('preprocess', '--manifest', tmp_path/'some.csv', '--out', tmp_path/'out', '--n-jobs', 2) == 0
    made = pd.read_csv(tmp_path/'out/manifest.csv'); assert len(made) == len(keep) and set(made.tr) <= set(m.tr)
    for f in made.bold: assert len(read_bold(tmp_path/'out'/f).x) == parcels

@pytest.mark.skipif(not sample('studyforrest'), reason='BRAINHARMONIX_DATA does not hold the studyforrest scans')
def test_from_the_scanner_to_hub_tokens_in_two_commands(tmp_path, capsys):
    t1, bold = (sample('studyforrest')/f for f in ('sub-02_T1w.nii.gz','sub-02_task-oneback_run-1_bold.nii.gz'))
    code, out, err = run('preprocess', '--t1', t1, '--bold', bold, '--out', tmp_path/'records', capsys=capsys); assert code == 0, err
    said = next(l for l in out.splitlines() if l.startswith('next')).split()[2:]  # the command that it proposes
    assert said[0] == 'embed' and run(*said[:-1], tmp_path/'tokens') == 0
    from safetensors.numpy import load_file
    assert np.isfinite(load_file(tmp_path/'tokens/tokens.safetensors')['hub']).all()
    m = {k:v for e in status(tmp_path/'records', '02').values() for k,v in e['metrics'].items() if v is not None}
    assert m['dice'] > .93 and m['likeness'] > .8 and m['homologous_margin'] > .15 and m['tsnr'] > 30 and 0 < m['mean_fd'] < .3, m

def _dies(person, settings, out, retry):
    from brainharmonix.preprocess.bids import process
    if person.subject == '02': os.kill(os.getpid(), 9)
    return process(person, settings, out, retry)

def test_a_person_whose_process_dies_is_set_aside(tables, monkeypatch):
    import brainharmonix.preprocess.bids as b
    people = manifest_people(tables/'cohort.csv'); monkeypatch.setattr(b, 'process', _dies)
    did = participants(people, tables/'out', n_jobs=2); monkeypatch.undo()
    assert (did['new'], did['quarantined']) == (4, 2) and any('2.npy: its process was killed' in r and '--retry' in r for r in did['aside'])
    assert participants(people, tables/'out')['tried'] == 0, 'it is not tried again by itself'
    assert participants(people, tables/'out', retry=True)['new'] == 1

def test_a_raw_run_depends_on_its_t1(tmp_path):
    d = bids(tmp_path/'d', ('sub-01/anat/sub-01_T1w.nii.gz', ZERO), ('sub-01/func/sub-01_task-rest_bold.nii.gz', ZERO), **{'task-rest_bold':dict(RepetitionTime=2.)})
    go = lambda: participants(bids_people(d), tmp_path/'out')['tried']
    assert (go(), go()) == (2, 0)
    (d/'sub-01/anat/sub-01_T1w.nii.gz').write_bytes(b'another'); assert (go(), go()) == (2, 0), 'the T1, and the run that goes by it'
    (d/'sub-01/func/sub-01_task-rest_bold.nii.gz').write_bytes(b'another'); assert (go(), go()) == (1, 0)

def test_runs_of_another_task_are_kept(tmp_path):
    d = bids(tmp_path/'d', *((f'sub-01/func/sub-01_task-{t}_bold.nii.gz', ZERO) for t in ('rest','nback')))
    assert participants(bids_people(d), tmp_path/'out')['tried'] == 2
    (d/'sub-01/func/sub-01_task-rest_bold.nii.gz').write_bytes(b'another')
    did = participants(bids_people(d, tasks=['rest']), tmp_path/'out'); assert (did['tried'], did['quarantined'], len(status(tmp_path/'out', '01'))) == (1, 1, 2)
    assert participants(bids_people(d), tmp_path/'out')['tried'] == 0
    (d/'sub-01/func/sub-01_task-nback_bold.nii.gz').unlink(); (d/'sub-01/func/sub-01_task-rest_bold.nii.gz').write_bytes(b'a third')
    participants(bids_people(d), tmp_path/'out'); assert len(status(tmp_path/'out', '01')) == 1, 'what is gone from the dataset is forgotten'

def test_the_manifest_of_records_can_be_split(tables):
    from brainharmonix.cohort import split
    participants(manifest_people(tables/'cohort.csv'), tables/'out'); f = group(tables/'out')['manifest.csv']; m = manifest(f, need=('bold','site'), files='sha256')
    s = split(m, stratify=('site',)); assert sorted(i for v in s.values() for i in v) == list(range(5))

# ---- ids, visits, cohorts
def test_each_visit_keeps_its_own_values(tmp_path):
    for i in range(2): np.save(tmp_path/f'{i}.npy', SERIES*(i+1))
    pd.DataFrame([dict(subject='a', session=str(i+1), bold=f'{i}.npy', tr=2., age=30+5*i, label=i+1, site='AB'[i]) for i in range(2)]).to_csv(tmp_path/'c.csv', index=False)
    participants(manifest_people(tmp_path/'c.csv'), tmp_path/'out'); m = manifest(group(tmp_path/'out')['manifest.csv'])
    assert (list(m.age), list(m.site), [int(l) for l in m.label], list(m.session)) == ([30,35], ['A','B'], [1,2], ['1','2'])

def test_equal_numbers_of_two_cohorts_are_two_people(tmp_path):
    for i in range(2): np.save(tmp_path/f'{i}.npy', SERIES*(i+1))
    pd.DataFrame([dict(cohort=c, subject='01', bold=f'{i}.npy', tr=2.) for i,c in enumerate('AB')]).to_csv(tmp_path/'c.csv', index=False)
    people = manifest_people(tmp_path/'c.csv'); assert [p.subject for p in people] == ['A01','B01']
    participants(people, tmp_path/'out'); m = manifest(group(tmp_path/'out')['manifest.csv']); assert list(m.subject) == ['01','01'] and list(m.cohort) == ['A','B'], 'the ids of the manifest come back'

def test_two_tasks_and_directions_make_a_manifest(tmp_path):
    for i in range(4): np.save(tmp_path/f'sub-1_task-{"ab"[i%2]}_dir-{("AP","PA")[i//2]}_bold{i}.npy', SERIES*(i+1))
    from brainharmonix.preprocess.bids import Person, Scan
    scans = tuple(Scan('bold', str(f), (('task', f.name.split('task-')[1][0]), ('dir', f.name.split('dir-')[1][:2])), 'table', (('tr', 2.),)) for f in sorted(tmp_path.glob('*.npy')))
    participants([Person('1', scans)], tmp_path/'out'); assert len(manifest(group(tmp_path/'out')['manifest.csv'])) == 4

def test_single_files_without_ids_stay_apart(tmp_path):
    for n in ('alice','bob'): np.save(tmp_path/f'{n}.npy', SERIES)
    assert [run('preprocess', '--bold', tmp_path/f'{n}.npy', '--tr', 2, '--out', tmp_path/'out') for n in ('alice','bob')] == [0, 0] and Store(tmp_path/'out').subjects == ['alice','bob']

def test_lists_that_cannot_be_meant(tables, capsys):
    participants(manifest_people(tables/'cohort.csv'), tables/'out'); f = group(tables/'out')['manifest.csv']
    code, _, err = run('preprocess', '--manifest', f, '--out', tables/'x', capsys=capsys); assert code == 2 and 'lists records already' in err
    code, _, err = run('preprocess', '--manifest', tables/'cohort.csv', '--out', tables/'x', '--participant-label', '00', '99', capsys=capsys); assert code == 2 and 'names 99' in err
    assert run('preprocess', '--manifest', tables/'cohort.csv', '--out', tables/'x', '--participant-label', 'sub-00') == 0 and Store(tables/'x').subjects == ['00']
    code, _, err = run('preprocess', '--manifest', tables/'cohort.csv', '--out', tables/'x', '--derivatives', tables, capsys=capsys); assert code == 2 and '--derivatives' in err

def test_confounds_beside_the_manifest(tmp_path):
    (tmp_path/'d').mkdir(); np.save(tmp_path/'d/a.npy', SERIES); pd.DataFrame(rng.standard_normal((60,2)), columns=['p','q']).to_csv(tmp_path/'d/c.tsv', sep='\t', index=False)
    pd.DataFrame([dict(subject='a', bold='a.npy', confounds='c.tsv', tr=2.)]).to_csv(tmp_path/'d/m.csv', index=False); people = manifest_people(tmp_path/'d/m.csv')
    assert participants(people, tmp_path/'out')['new'] == 1 and next(iter(status(tmp_path/'out', 'a').values()))['decisions']['confounds'] == ['p','q']
    pd.DataFrame(rng.standard_normal((60,2)), columns=['p','q']).to_csv(tmp_path/'d/c.tsv', sep='\t', index=False); assert participants(people, tmp_path/'out')['new'] == 1, 'other confounds, another record'

def test_odd_ages_and_an_empty_result_leave_a_manifest_that_can_be_read(tables, capsys):
    d = bids(tables/'d', ('sub-01/anat/sub-01_T1w.nii.gz', ZERO)); participants(bids_people(d), tables/'none'); assert len(pd.read_csv(group(tables/'none')['manifest.csv'])) == 0
    from dataclasses import replace
    people = [replace(p, about=(('age','90+'),('sex','O'))) for p in manifest_people(tables/'cohort.csv')]; participants(people, tables/'out')
    m = manifest(group(tables/'out')['manifest.csv']); assert m.age.isna().all() and 'leaves blank 10 ages or sexes' in capsys.readouterr().err

# ---- what a record hangs on
def test_inherited_sidecars(tmp_path):
    d = bids(tmp_path/'d', ('sub-01/func/sub-01_task-rest_bold.nii.gz', ZERO), ('sub-01/anat/sub-01_T1w.nii.gz', ZERO), **{'task-rest_bold':dict(RepetitionTime=2.), 'task-other_bold':dict(RepetitionTime=3.)})
    go = lambda: participants(bids_people(d), tmp_path/'out')['tried']
    assert (go(), go()) == (2, 0)
    (d/'task-other_bold.json').write_text('{"RepetitionTime": 2.5}'); assert go() == 0, 'of another task'
    (d/'task-rest_bold.json').write_text('{"RepetitionTime": 2.55}'); assert go() == 1
    from brainharmonix.preprocess.bids import sidecar_fields
    f = d/'sub-01/func/sub-01_task-rest_bold.nii.gz'; assert sidecar_fields(f)['RepetitionTime'] == 2.55
    (d/'task-rest_bold.json').write_text('{"Repet')
    with pytest.raises(BadInput, match='task-rest_bold.json'): sidecar_fields(f)

def test_finished_runs_hang_on_what_lies_beside_them(tmp_path):
    d = finished(tmp_path/'fmriprep'); next((d/'sub-01/anat').glob('*T1w*')).unlink(); go = lambda: participants(derivative_people(d), tmp_path/'out', Settings(fd=9))['new']
    assert (go(), go()) == (1, 0)
    for f in ('sub-01_task-rest_desc-confounds_timeseries.tsv','sub-01_task-rest_hemi-R_space-fsaverage5_bold.func.gii'): os.utime(d/'sub-01/func'/f, ns=(1, 1)); assert go() == 1, f

def test_a_record_leaves_with_its_source(tables):
    people, f = manifest_people(tables/'cohort.csv'), tables/'out/sub-00/func/sub-00_desc-parcels_timeseries.safetensors'
    participants(people, tables/'out'); assert f.exists(); (tables/'0.npy').write_bytes(b'broken'); participants(people, tables/'out'); assert not f.exists() and len(Store(tables/'out')) == 4

def test_a_status_of_another_kind_is_made_again(tables):
    people = manifest_people(tables/'cohort.csv'); participants(people, tables/'out')
    for i,text in enumerate(('{"scans": {"x": 3}}', '[]', '{"scans"')): (tables/f'out/sub-0{i}/sub-0{i}_status.json').write_text(text)
    assert participants(people, tables/'out')['new'] == 3

def test_layouts_of_hcp_and_uk_biobank(tmp_path):
    from brainharmonix.preprocess.bids import finished_t1
    for f in ('HCA6002236_V1_MR/MNINonLinear/T1w_restore_brain.nii.gz', '100307/MNINonLinear/T1w_restore_brain.nii.gz', '1234567_20252_2_0/T1/T1_brain_to_MNI.nii.gz', '1234567_20252_3_0/T1/T1_brain_to_MNI.nii.gz', 'space-MNI152_desc-preproc_T1w.nii.gz'):
        (tmp_path/f).parent.mkdir(parents=True, exist_ok=True); (tmp_path/f).touch()
    assert sorted((w, s.session) for w,s in finished_t1(tmp_path)) == [('100307',''), ('1234567','2'), ('1234567','3'), ('HCA6002236','V1')]

def test_a_manifest_knows_finished_t1s(tmp_path):
    for f in ('1234567_20252_2_0/T1/T1_brain_to_MNI.nii.gz', 'raw_T1w.nii.gz'): (tmp_path/f).parent.mkdir(parents=True, exist_ok=True); (tmp_path/f).touch()
    pd.DataFrame([dict(subject=s, t1=f) for s,f in (('a','1234567_20252_2_0/T1/T1_brain_to_MNI.nii.gz'),('b','raw_T1w.nii.gz'))]).to_csv(tmp_path/'c.csv', index=False)
    assert [p.scans[0].via for p in manifest_people(tmp_path/'c.csv')] == ['finished','raw']

def test_raw_runs_of_two_acquisitions_stay_apart(tmp_path):
    d = finished(tmp_path/'fmriprep'); f = d/'sub-01/func'
    for p in list(f.iterdir()): shutil.copy(p, f/p.name.replace('task-rest', 'task-rest_acq-645'))
    assert sorted(dict(s.entities).get('acq', '') for p in derivative_people(d) for s in p.scans if s.kind == 'bold') == ['','645']

def test_levels_and_derivatives_of_the_command_line(tmp_path):
    d = finished(tmp_path/'fmriprep'); next((d/'sub-01/anat').glob('*T1w*')).unlink(); raw = bids(tmp_path/'raw', ('sub-01/func/sub-01_task-rest_bold.nii.gz', ZERO)); out = tmp_path/'out'
    assert run('preprocess', raw, out, 'participant', '--derivatives', d, '--fd', 9, '--strategy', 'motion6', '--task', 'rest') == 0 and not (out/'manifest.csv').exists()
    assert run('preprocess', raw, out, 'group') == 0 and len(pd.read_csv(out/'manifest.csv')) == 1
    assert len(next(iter(status(out, '01').values()))['decisions']['confounds']) == 6
