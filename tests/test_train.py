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
DDP, FSDP = dict(DDP={}, accumulated=dict(micro=1)), dict(FSDP2=dict(shard=True), FSDP2_accumulated=dict(shard=True, micro=1))
SHORT = dict(steps=6) # two epochs, as gloo is slow under FSDP2
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
    a, b = state(a), state(b); assert a.keys() == b.keys()
    return max((v-b[k]).abs().max().item() if isinstance(v, torch.Tensor) else float(v != b[k]) for k,v in a.items())

def same(a, b): # bit for bit
    x, y = state(a), state(b)
    assert x.keys() == y.keys() and x['/step'] == STEPS and [k for k,v in x.items() if not (torch.equal(v, y[k]) if isinstance(v, torch.Tensor) else v == y[k])] == []
    assert [l.rsplit(',', 1)[0] for l in lines(a)] == [l.rsplit(',', 1)[0] for l in lines(b)] and len(lines(a)) == STEPS+1

@pytest.fixture(scope='module')
def runs(tmp_path_factory):
    "Uninterrupted runs of all stages: runs[world, arrangement]/stage"
    top = tmp_path_factory.mktemp('runs')
    for w,kinds in {1:['DDP','short'], 2:[*DDP, *FSDP], 3:['DDP']}.items():
        train(top/f'{w}', w, *(dict(stages=[*STAGES, 'fly'], out=f'{top}/{w}-{k}', machine=(DDP|FSDP).get(k, {}), train={} if k in DDP else SHORT) for k in kinds))
    return {(int(d.name[0]), d.name[2:]):d for d in top.iterdir() if d.is_dir()}

# ---- many processes are one
MANY = [*((2, k) for k in DDP|FSDP), (3, 'DDP')]

@pytest.mark.parametrize('name', [*STAGES, 'fly'])
@pytest.mark.parametrize('world,kind', MANY)
def test_many_processes_are_one(runs, world, kind, name):
    at = runs[world, kind]/name
    assert gap(runs[1,'short' if kind in FSDP else 'DDP']/name, at) < 1e-10
    scans = [int(l.split(',')[-2]) for l in lines(at)[1:]]
    assert min(scans) < world <= max(scans) and len(set(WINDOWS)) > 3 # uneven batches, one smaller than the number of processes; unequal lengths
    parts = [float((at/f'parts-{r}.txt').read_text()) for r in range(world)]
    assert all(p < .6 for p in parts) and abs(sum(parts)-1) < .1 if 'FSDP2' in kind else parts == [1]*world # FSDP2 did spread the weights

@pytest.mark.parametrize('name', [*STAGES, 'fly'])
@pytest.mark.parametrize('world,kind', [(1, 'DDP'), *MANY])
def test_each_scan_once_an_epoch(runs, world, kind, name):
    by_rank = [[json.loads(l) for l in (runs[world, kind]/name/f'indices-{r}.txt').read_text().splitlines()] for r in range(world)]
    assert {len(b) for b in by_rank} == {steps := SHORT['steps'] if kind in FSDP else STEPS}
    did = [sum(parts, []) for parts in zip(*by_rank)] # scans of each step, over all processes
    per = 3                                           # steps per epoch: 3+3+1 scans, or 3+1 of one TR and 3 of the other
    epochs = [sum(did[a:a+per], []) for a in range(0, steps, per)]
    assert all(sorted(e) == list(range(len(WINDOWS))) for e in epochs) and len({tuple(e) for e in epochs}) > 1
    assert all(len({len(d) for d in by_rank}) == 1 and max(len(d) for d in step)-min(len(d) for d in step) <= 1 for step in zip(*by_rank)) # shared out evenly

def test_the_moving_average_is_in_the_state(runs):
    s = state(runs[1,'DDP']/'function'); pairs = [(v, s[k.replace('target', 'encoder')]) for k,v in s.items() if k.startswith('/model/target')]
    assert pairs and any(not torch.equal(a, b) for a,b in pairs)

# ---- kill -9
def life(tmp, name, *parts, **job):
    "Several launches (processes, machine), each killed at a random step but the last"
    job, at, chance = job | dict(stages=[name], out=str(tmp)), tmp/name, random.Random(f'{name}{parts}')
    ks = sorted(chance.sample([k for k in range(1, STEPS-6) if k % SAVE not in (0, SAVE-1)], len(parts)-1))
    for (world, machine), k in zip(parts, [*ks, None]):
        now = job | dict(machine=job.get('machine', {}) | machine)
        if k: killed_at(at, k, start(tmp/'said', world, now | dict(pause=.05)))
        else: train(tmp/'said', world, now)
    assert (at/'log.txt').read_text().count('resumes after') == sum(k > SAVE for k in ks)
    return at

@stages
@pytest.mark.parametrize('world,workers', ((1, (0, 2)), (1, (2, 0)), (2, (0, 2))))
def test_killed_and_resumed_bit_for_bit(runs, tmp_path, name, world, workers):
    same(life(tmp_path, name, *((world, dict(workers=w)) for w in workers)), runs[world,'DDP']/name)

ELASTIC = dict(fewer_more=[(2, {}), (1, dict(workers=1)), (2, {})], three=[(1, {}), (3, dict(micro=1))])

@stages
@pytest.mark.parametrize('parts', ELASTIC.values(), ids=ELASTIC)
def test_goes_on_with_other_processes(runs, tmp_path, name, parts): assert gap(life(tmp_path, name, *parts), runs[1,'DDP']/name) < 1e-10

def test_goes_on_in_parts_and_whole(runs, tmp_path):
    "DDP, FSDP2 and one process take over from each other"
    assert gap(life(tmp_path, 'function', (2, {}), (2, FSDP['FSDP2']), (1, {})), runs[1,'DDP']/'function') < 1e-10
    shutil.rmtree(tmp_path/'function'); assert gap(life(tmp_path, 'function', (1, {}), (2, FSDP['FSDP2'])), runs[1,'DDP']/'function') < 1e-10

def test_torchrun_is_killed_and_accelerate_goes_on(runs, tmp_path):
    "The two launchers; two processes are killed with all they started, and one goes on"
    at, job = tmp_path/'harmonizer', json.dumps(dict(stages=['harmonizer'], out=str(tmp_path), pause=.05))
    launch = lambda *a: subprocess.Popen([sys.executable, '-m', *a, str(Path(__file__).parent/'pretrain_worker.py'), job], stdout=open(tmp_path/'said.txt', 'a'), stderr=subprocess.STDOUT, env=os.environ | dict(OMP_NUM_THREADS='1'))
    def stop(p):
        for q in [*psutil.Process(p.pid).children(recursive=True), p]: q.kill()
        p.wait(20)
    p, until = launch('torch.distributed.run', '--standalone', '--nproc-per-node', '2'), time.time()+90
    while len(lines(at)) < SAVE+3 and p.poll() is None and time.time() < until: time.sleep(.001)
    stop(p); assert SAVE+3 <= len(lines(at)) <= STEPS, (tmp_path/'said.txt').read_text()[-2000:]
    p = launch('accelerate.commands.launch', '--cpu', '--num_machines', '1', '--num_processes', '1', '--mixed_precision', 'no', '--dynamo_backend', 'no')
    try: assert p.wait(120) == 0, (tmp_path/'said.txt').read_text()[-2000:]
    finally: p.poll() is None and stop(p)
    told = (at/'log.txt').read_text(); assert f'begins: {STEPS} steps on 2 processes' in told and told.count('resumes after') == told.count('steps on 1 process ') == 1
    assert gap(at, runs[1,'DDP']/'harmonizer') < 1e-10

# ---- the last good state stays
@pytest.mark.parametrize('damage', ('killed while writing', 'cut', 'empty', 'garbage'))
def test_a_cut_write_loses_no_more_than_itself(runs, tmp_path, damage):
    at, job = tmp_path/'function', dict(stages=['function'], out=str(tmp_path))
    if damage == 'killed while writing':
        assert end(start(tmp_path/'said', 1, job | dict(cut=3))) == [-signal.SIGKILL]
        assert len(lines(at)) == 3*SAVE+1 and [f.stem[-2:] for f in state_files(at)] == ['10', '05'] and len([*(at/'state').iterdir()]) == 3 # what is half written has another name
        said = train(tmp_path/'said', 1, job)[0]; assert 'cannot be read' not in said
    else:
        killed_at(at, 12, start(tmp_path/'said', 1, job | dict(pause=.05))); f = state_files(at)[0]; whole = f.read_bytes()
        f.write_bytes({'cut':whole[:len(whole)//2], 'empty':b'', 'garbage':whole[::-1]}[damage])
        said = train(tmp_path/'said', 1, job)[0]; assert said.count(f'{f} cannot be read') == 1
    assert sorted(f.name for f in (at/'state').iterdir()) == sorted(f.name for f in state_files(runs[1,'DDP']/'function')) # nothing is left over
    assert f'resumes after {10 if "while" in damage else 5} steps' in (at/'log.txt').read_text()
    same(at, runs[1,'DDP']/'function')

def test_no_state_can_be_read(tmp_path):
    at, job = tmp_path/'harmonizer', dict(stages=['harmonizer'], out=str(tmp_path))
    killed_at(at, 12, start(tmp_path/'said', 2, job | dict(pause=.05)))
    for f in state_files(at): f.write_bytes(b'no')
    refused(tmp_path/'said', 2, job, words=('holds 2 states and none can be read', str(at/'state')))

@worlds
def test_a_full_disk(runs, tmp_path, world):
    "After 12 steps no file can grow beyond a third of a state; the next run finds the disk still full; then there is room again"
    at, job = tmp_path/'function', dict(stages=['function'], out=str(tmp_path)); full = state_files(runs[1,'DDP']/'function')[0].stat().st_size//3
    for limit in ((12, full), (0, full)):
        refused(tmp_path/'said', world, job | dict(limit=limit), words=('step-000000015.pt: could not be written', 'make room'))
        assert sorted(f.stem[-2:] for f in (at/'state').iterdir()) == ['05', '10'] and state(at, 0)['/step'] == 10 and state(at, 1)['/step'] == 5
    train(tmp_path/'said', world, job); same(at, runs[world,'DDP']/'function')

@worlds
@pytest.mark.parametrize('after', (0, 12))
def test_a_disk_too_full_for_a_line(tmp_path, world, after):
    refused(tmp_path/'said', world, dict(stages=['harmonizer'], out=str(tmp_path), limit=(after, 16)), words=('could not be written', 'make room'))

# ---- stops
@stages
@worlds
def test_nan_names_the_scan(runs, tmp_path, name, world):
    by = [(runs[world,'DDP']/name/f'indices-{r}.txt').read_text().splitlines()[:3] for r in range(world)]
    step = next(k for k in (2, 1) if len(json.loads(by[0][k])) > 1); mine = json.loads(by[0][step]); bad = mine[1] # it has a neighbour on its process
    job, at = dict(stages=[name], out=str(tmp_path), train=dict(save=1)), tmp_path/name
    refused(tmp_path/'said', world, job | dict(poison=f's{bad}'), words=(f'step {step+1}: has a loss of nan', f'(s{bad})', 'the last state'))
    told = json.loads((at/'bad-batch.json').read_text()); loss = {s['id']:s['loss'] for s in told['scans']}
    assert told['step'] == step+1 and loss.keys() == {f's{i}' for b in by for i in json.loads(b[step])} and [i for i,v in loss.items() if v == 'nan'] == [f's{bad}']
    assert state(at)['/step'] == step == len(lines(at))-1 and all(torch.isfinite(v).all() for v in state(at).values() if isinstance(v, torch.Tensor))
    train(tmp_path/'said', world, job); same(at, runs[world,'DDP']/name) # the scan is mended

@pytest.mark.parametrize('other', (dict(ids='x'), dict(train=dict(lr=1e-4))), ids=('data', 'config'))
def test_processes_that_see_different_things(tmp_path, other):
    refused(tmp_path/'said', 2, dict(stages=['function'], out=str(tmp_path), other=other), words=('the processes: see different data or configs',))
    assert not state_files(tmp_path/'function')

# ---- precision, memory, compilation
def losses(at): return torch.tensor([float(l.split(',')[2]) for l in lines(at)[1:]])

@pytest.fixture(scope='module')
def kinds(tmp_path_factory):
    top = tmp_path_factory.mktemp('kinds'); machine = dict(float32=dict(precision='float32'), bf16=dict(precision='bf16'), checkpointing=dict(checkpointing=True))
    train(top/'said', 1, *(dict(stages=STAGES, out=str(top/k), machine=m) for k,m in machine.items()))
    return top

@stages
def test_checkpointing_changes_no_number(runs, kinds, name): assert gap(kinds/'checkpointing'/name, runs[1,'DDP']/name) < 1e-12

@stages
def test_bf16_is_near(runs, kinds, name):
    full, half, exact = (losses(d/name) for d in (kinds/'float32', kinds/'bf16', runs[1,'DDP']))
    assert ((full/exact-1).abs() < 1e-3).all() and ((half/full-1).abs() < .05).all() and not torch.equal(half, full)
    assert all(v.dtype == torch.float32 for k,v in state(kinds/'bf16'/name).items() if k.startswith(('/model','/opt')) and isinstance(v, torch.Tensor)) # weights and moments stay whole

@stages
def test_bf16_resumes_bit_for_bit(kinds, tmp_path, name): same(life(tmp_path, name, (1, {}), (1, dict(workers=1)), machine=dict(precision='bf16')), kinds/'bf16'/name)

@pytest.mark.skipif(not any(map(shutil.which, ('g++','clang++','c++'))), reason='no C++ compiler, which torch.compile needs on a CPU')
def test_compiled_blocks_give_the_same_numbers(kinds, tmp_path):
    train(tmp_path/'said', 1, dict(stages=STAGES, out=str(tmp_path), machine=dict(precision='float32', compile=True), train=dict(save=STEPS)))
    for name in STAGES: assert (losses(tmp_path/name)-losses(kinds/'float32'/name)).abs().max() < 1e-5, name

# ---- trackers
def test_tensorboard_by_default(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train(tmp_path/'said', 1, dict(stages=['harmonizer'], out=str(tmp_path), machine=dict(trackers=Machine().trackers)))
    files = {f.parent for f in tmp_path.rglob('events.out.tfevents.*')}; assert files
    seen = {e.step:e.value for d in files for acc in [EventAccumulator(str(d)).Reload()] if 'loss' in acc.Tags()['scalars'] for e in acc.Scalars('loss')}
    assert sorted(seen) == list(range(1, STEPS+1)) and torch.allclose(torch.tensor([seen[k] for k in sorted(seen)]), losses(tmp_path/'harmonizer'))

@pytest.mark.skipif(find_spec('wandb') is not None, reason='wandb is installed')
@worlds
def test_a_tracker_that_is_not_installed(tmp_path, world):
    refused(tmp_path/'said', world, dict(stages=['harmonizer'], out=str(tmp_path), machine=dict(trackers=['wandb'])), words=('wandb', 'is not installed', 'pip install wandb'))

def test_bf16_in_parts_is_bf16_whole(tmp_path):
    "FSDP2 keeps weights and gradients in float32 and computes in bfloat16, as DDP does"
    rows = {}
    for kind,machine in (('whole', {}), ('parts', dict(shard=True))):
        train(tmp_path/'said', 2, dict(stages=['structure','function','fly'], out=str(tmp_path/kind), train=dict(steps=4), machine=dict(precision='bf16') | machine))
        rows[kind] = {s:[float(l.split(',')[2]) for l in lines(tmp_path/kind/s)[1:]] for s in ('structure','function','fly')}
    for s,whole in rows['whole'].items(): assert len(whole) == 4 and all(abs(a-b) < 1e-4*abs(a) for a,b in zip(whole, rows['parts'][s])), s

def test_scans_are_prepared_on_the_cpu():
    "Wherever the model is: a worker that was forked must not touch a GPU"
    from brainharmonix.train.data import chance
    from pretrain_worker import stage
    m, feed = stage('structure'); m.to('meta')
    assert all(t.device.type == 'cpu' for t in feed.sample(0, chance(0)))

def test_a_refusal_in_a_worker_is_one_sentence():
    from dataclasses import replace
    from pretrain_worker import stage
    from brainharmonix.core import BadInput, refuse
    from brainharmonix.train.loop import fit
    from brainharmonix.train.optim import Machine, TrainConfig
    m, feed = stage('function')
    def sample(i, g): refuse('sub-7', 'is damaged', 'copy it again')
    for workers in (0, 1):
        with pytest.raises(BadInput) as e: fit(m, replace(feed, sample=sample), TrainConfig(steps=2), machine=Machine(device='cpu', trackers=(), workers=workers))
        assert str(e.value) == 'sub-7: is damaged; copy it again.'
