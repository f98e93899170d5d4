"Jobs over processes and clusters: nobody is lost, whoever dies"
import os, stat, sys, time
import pytest
from brainharmonix.core import BadInput
from brainharmonix.preprocess.batch import Failure, _slurm, _trial, client, guarded, spread

JOBS = [1, 2, 'die', 0, 4, 5, 8]
def expect(came):
    assert sorted(came) == list(range(len(JOBS)))
    assert {i:r for i,r in came.items() if not isinstance(r, Failure)} == {i:1/j for i,j in enumerate(JOBS) if j not in ('die', 0)}
    assert 'killed' in came[2].reason and 'ZeroDivisionError' in came[3].reason and 'in _trial' in came[3].trace

def where(job): time.sleep(.3); return os.getpid()
def mark(job): open(job, 'x').close(); return job

def test_processes_of_this_machine(tmp_path):
    expect(dict(spread(_trial, JOBS, 2, marks=tmp_path/'marks')))
    assert not list((tmp_path/'marks').glob('[013456]')), 'finished jobs leave no mark'

def test_no_job_runs_twice_where_nobody_dies(tmp_path):
    jobs = [str(tmp_path/str(i)) for i in range(6)]
    assert sorted(r for _,r in spread(mark, jobs, 2, marks=tmp_path/'marks')) == jobs  # `mark` refuses a second visit

def test_one_process_is_this_one():
    assert dict(spread(where, [0], 1)) == {0:os.getpid()}

def test_a_local_dask_cluster_of_two_workers():
    expect(dict(spread(_trial, JOBS, scheduler='local://2')))
    pids = {r for _,r in spread(where, range(8), scheduler='local://2')}
    assert len(pids) == 2 and os.getpid() not in pids

def test_a_scheduler_that_runs_already():
    from distributed import LocalCluster
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as c:
        for scheme in ('dask','tcp'): assert dict(spread(_trial, [4], scheduler=c.scheduler_address.replace('tcp', scheme))) == {0:.25}

@pytest.mark.skipif(sys.platform == 'win32', reason='the stand-in for sbatch is a shell script')
def test_slurm_submits_workers(tmp_path, monkeypatch):
    "dask-jobqueue writes the job script; a stand-in for sbatch runs it here"
    sbatch, scancel = tmp_path/'sbatch', tmp_path/'scancel'
    sbatch.write_text(f'#!/bin/bash\ncp "${{@: -1}}" {tmp_path}/submitted\nsetsid bash {tmp_path}/submitted > {tmp_path}/log 2>&1 &\necho $! > {tmp_path}/pid\necho "Submitted batch job 17"\n')
    scancel.write_text(f'#!/bin/bash\nkill -- -$(cat {tmp_path}/pid)\n')
    for f in (sbatch, scancel): f.chmod(f.stat().st_mode | stat.S_IEXEC)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}'); monkeypatch.chdir(tmp_path)
    url = 'slurm://?jobs=1&cores=1&memory=1GB&walltime=01:23:00&queue=night&account=lab&interface=lo'
    sessions = {r for _,r in spread(os.getsid, [0, 0], scheduler=url)}  # work that a worker can import
    assert sessions == {int((tmp_path/'pid').read_text())}, 'the jobs ran in what was submitted'
    script = (tmp_path/'submitted').read_text()
    for line in ('-p night', '-A lab', '-t 01:23:00', '--mem=954M', '-n 1'): assert line in script, f'{line} is not in\n{script}'

@pytest.mark.parametrize('url,fault', [('10.0.0.1:8786','is \'10.0.0.1:8786\''), ('slurm://?jobs=2','without memory'), ('local://','use dask://'), ('slurm://?memory=1GB&nonsense=3','cannot be reached or started'), ('dask://127.0.0.1:1','cannot be reached')])
def test_bad_schedulers(url, fault):
    with pytest.raises(BadInput, match='--scheduler') as e: list(spread(_trial, [1], scheduler=url))
    assert fault in str(e.value) and '\n' not in str(e.value)

def test_bad_number_of_processes():
    with pytest.raises(BadInput, match='--n-jobs: is 0'): spread(_trial, [1], 0)

def test_faults_of_the_job_are_not_blamed_on_the_scheduler():
    (_, r), = spread(open, ['/nowhere/at/all'], scheduler='local://1')
    assert 'FileNotFoundError' in r.reason

def test_refusals_come_back_as_they_are():
    def work(j): raise BadInput('x.nii: is empty; copy it again.')
    assert guarded(work, 1) == Failure('x.nii: is empty; copy it again.')
