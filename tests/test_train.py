"Training: the same numbers however it is spread and wherever it is killed; what goes wrong is said in one sentence by every process"
import json, multiprocessing, os, random, shutil, signal, socket, subprocess, sys, time
from importlib.util import find_spec
from multiprocessing import forkserver
from pathlib import Path
import psutil, pytest, torch
from brainharmonix.train.loop import state_files
from brainharmonix.train.optim import Machine
from pretrain_worker import BASE, WINDOWS, child

STAGES, STEPS, SAVE = ('structure','function','harmonizer'), BASE['train']['steps'], BASE['train']['save']
SPREAD = dict(DDP={}, accumulated=dict(micro=1), FSDP2=dict(shard=True), FSDP2_accumulated=dict(shard=True, micro=1))
stages, worlds = pytest.mark.parametrize('name', STAGES), pytest.mark.parametrize('world', (1, 2))
CTX = multiprocessing.get_context('forkserver'); CTX.set_forkserver_preload(['pretrain_worker'])

# ---- processes
@pytest.fixture(scope='module', autouse=True)
def server():
    "Imports everything once; a process of a run is forked from it"
    with pytest.MonkeyPatch.context() as m:
        m.setenv('PYTHONPATH', os.pathsep.join([str(Path(__file__).parent), os.environ['PYTHONPATH']])); m.setenv('OMP_NUM_THREADS', '1')
        forkserver.ensure_running()

def start(said, world, *jobs):
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = lambda r: dict(RANK=r, LOCAL_RANK=r, WORLD_SIZE=world, LOCAL_WORLD_SIZE=world, MASTER_ADDR='127.0.0.1', MASTER_PORT=port) if world > 1 else {}
    ps = [CTX.Process(target=child, args=(jobs, f'{said}-{r}.txt', {k:str(v) for k,v in env(r).items()})) for r in range(world)]
    for p in ps: p.start()
    return ps

def kill(ps):
    for p in ps:
        try: os.killpg(p.pid, signal.SIGKILL)
        except ProcessLookupError: pass
    for p in ps: p.join(20)

def end(ps, timeout=120): # exit status of each
    until = time.time() + timeout
    try:
        for p in ps: p.join(max(0, until-time.time()))
        return [p.exitcode for p in ps]
    finally: kill(ps)

def train(said, world, *jobs, code=0)->list: # what each process said
    for f in (files := [Path(f'{said}-{r}.txt') for r in range(world)]): f.unlink(missing_ok=True)
    codes = end(start(said, world, *jobs)); told = [f.read_text() for f in files]
    assert codes == [code]*world, '\n'.join(told)[-3000:]
    return told

def refused(*a, words):
    "The one sentence with which every process ends"
    said = {t.split('REFUSED ')[-1].strip() for t in train(*a, code=2)}
    assert len(said) == 1 and (one := said.pop()).endswith('.') and one.count(';') == 1 and '\n' not in one, said
    for w in words: assert w in one, one
    return one

def lines(at): return (at/'losses.csv').read_text().splitlines() if (at/'losses.csv').exists() else []

def killed_at(at, k, ps):
    "Killed when more than k steps are done"
    until = time.time() + 90
    while len(lines(at)) <= k+1 and time.time() < until and all(p.exitcode is None for p in ps): time.sleep(.001)
    assert all(p.exitcode is None for p in ps); kill(ps)
    assert k < len(lines(at))-1 < STEPS and not any(f.stem.endswith(f'{STEPS:03d}') for f in state_files(at))

# ---- what they leave behind
def leaves(x, at=''):
    if isinstance(x, dict): return {k:v for a,b in x.items() for k,v in leaves(b, f'{at}/{a}').items()}
    return leaves(dict(enumerate(x)), at) if isinstance(x, (list, tuple)) else {at: x}

def state(at, which=0):
    "All numbers of a state but the seconds"
    s = torch.load(state_files(at)[which], weights_only=True); s['rows'] = s['rows'][:,:-1]
    return leaves(s)

def gap(a, b):
    "Largest difference between two states"
    a, b = state(a), state(b); assert a.keys() == b.keys() and a['/step'] == STEPS
    return max((v-b[k]).abs().max().item() if isinstance(v, torch.Tensor) else float(v != b[k]) for k,v in a.items())

def same(a, b): # bit for bit
    x, y = state(a), state(b)
    assert x.keys() == y.keys() and x['/step'] == STEPS and [k for k,v in x.items() if not (torch.equal(v, y[k]) if isinstance(v, torch.Tensor) else v == y[k])] == []
    assert [l.rsplit(',', 1)[0] for l in lines(a)] == [l.rsplit(',', 1)[0] for l in lines(b)] and len(lines(a)) == STEPS+1

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Uninterrupted runs of all stages: runs[world, arrangement]/stage"
    top = tmp_path_factory.mktemp('runs'); job = lambda w, k: dict(stages=[*STAGES, 'fly'], out=f'{top}/{w}-{k}', machine=SPREAD[k])
    for w,kinds in {1:['DDP'], 2:[*SPREAD], 3:['DDP']}.items(): train(top/f'{w}', w, *(job(w, k) for k in kinds))
    return {(int(d.name[0]), d.name[2:]):d for d in top.iterdir() if d.is_dir()}

# ---- many processes are one
MANY = [*((2, k) for k in SPREAD), (3, 'DDP')]

@pytest.mark.parametrize('name', [*STAGES, 'fly'])
@pytest.mark.parametrize('world,kind', MANY)
def test_many_processes_are_one(runs, world, kind, name):
    at = runs[world, kind]/name
    assert gap(runs[1,'DDP']/name, at) < 1e-10
    scans = [int(l.split(',')[-2]) for l in lines(at)[1:]]
    assert min(scans) < world <= max(scans) and len(set(WINDOWS)) > 3 # uneven batches, one smaller than the number of processes; unequal lengths
    parts = [float((at/f'parts-{r}.txt').read_text()) for r in range(world)]
    assert all(p < .6 for p in parts) and abs(sum(parts)-1) < .1 if 'FSDP2' in kind else parts == [1]*world # FSDP2 did spread the weights

@pytest.mark.parametrize('name', [*STAGES, 'fly'])
@pytest.mark.parametrize('world,kind', [(1, 'DDP'), *MANY])
def test_each_scan_once_an_epoch(runs, world, kind, name):
    by_rank = [[json.loads(l) for l in (runs[world, kind]/name/f'indices-{r}.txt').read_text().splitlines()] for r in range(world)]
    assert {len(b) for b in by_rank} == {STEPS}
    did = [sum(parts, []) for parts in zip(*by_rank)] # scans of each step, over all processes
    per = 3                                           # steps per epoch: 3+3+1 scans, or 3+1 of one TR and 3 of the other
    epochs = [sum(did[a:a+per], []) for a in range(0, STEPS, per)]
    assert all(sorted(e) == list(range(len(WINDOWS))) for e in epochs) and len({tuple(e) for e in epochs}) > 1
    assert all(len({len(d) for d in by_rank}) == 1 and max(len(d) for d in step)-min(len(d) for d in step) <= 1 for step in zip(*by_rank)) # shared out evenly

def test_the_moving_average_is_in_the_state(runs):
    s = state(runs[1,'DDP']/'function'); pairs = [(v, s[k.replace('target', 'encoder')]) for k,v in s.items() if k.startswith('/model/target')]
    assert pairs and any(not torch.equal(a, b) for a,b in pairs)

# ---- kill -9
def life(tmp, name, want, *parts):
    "Several launches (processes, machine), each killed at a random step but the last"
    at, chance = tmp/name, random.Random(f'{name}{parts}')
    ks = sorted(chance.sample([k for k in range(1, STEPS-6) if k % SAVE not in (0, SAVE-1)], len(parts)-1))
    base = want.get('machine', {})
    for (world, machine), k in zip(parts, [*ks, None]):
        job = dict(stages=[name], out=str(tmp), machine=base | machine)
        if k: killed_at(at, k, start(tmp/'said', world, job))
        else: train(tmp/'said', world, job)
    assert (at/'log.txt').read_text().count('resumes after') == sum(k > SAVE for k in ks)
    return at

@stages
@worlds
@pytest.mark.parametrize('workers', ((0, 2), (2, 0)))
def test_killed_and_resumed_bit_for_bit(runs, tmp_path, name, world, workers):
    same(life(tmp_path, name, {}, *((world, dict(workers=w)) for w in workers)), runs[world,'DDP']/name)
