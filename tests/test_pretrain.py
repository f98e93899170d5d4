"""`brainharmonix pretrain` as a lab uses it: real records, four stages, a checkpoint that embeds; and a sentence for what is wrong."""
import json, os, stat, subprocess
from dataclasses import replace
from pathlib import Path
import numpy as np, pandas as pd, pytest
from safetensors.numpy import load_file
from brainharmonix.app import main
from brainharmonix.cohort import id_hash, save_split, split
from brainharmonix.preprocess.bold import embedded_run, save_bold
from brainharmonix.preprocess.t1 import mni152, read_t1, save_t1
from brainharmonix.model.passport import BrainHarmonix, Passport

ROOT = Path(__file__).resolve().parents[1]
FEW = ['--device', 'cpu', '--trackers', '--set', 'train.steps=2', 'train.batch=2']

@pytest.fixture(scope='module')
def records(tmp_path_factory):
    "Two visits cut from the run that brainspace ships, with the MNI152 T1; a third whose run was cut short on disk, a fourth without a T1"
    d, run, t1 = tmp_path_factory.mktemp('records'), embedded_run(), read_t1(mni152())
    rows = []
    for i,(a,b) in enumerate(((0,300), (300,652), (0,300), (100,400))):
        f, g = d/f'sub-{i}_desc-parcels_timeseries.safetensors', d/f'sub-{i}_T1w.safetensors'
        save_bold(f, replace(run, x=run.x[:,a:b], missing=None, fd=None))
        if i < 3: save_t1(g, t1)
        rows.append(dict(subject=str(i), cohort='shipped', site='L' if i%2 else 'K', label=i%2, tr=1.4, bold=f.name, t1=g.name if i < 3 else None))
    f = d/rows[2]['bold']; f.write_bytes(f.read_bytes()[:-1000])
    pd.DataFrame(rows).to_csv(d/'manifest.csv', index=False)
    return d

@pytest.fixture(scope='module')
def trained(records, tmp_path_factory):
    "All four stages on these records"
    d = tmp_path_factory.mktemp('run'); parts = ['--function', d/'function'/'checkpoint', '--structure', d/'structure'/'checkpoint']
    run = lambda *a: main(list(map(str, ('pretrain', *a))))
    assert run('structure', records, '--out', d/'structure', *FEW) == 0
    assert run('function', records, '--out', d/'function', *FEW) == 0
    assert run('latents', records, '--out', d/'store', '--device', 'cpu', *parts) == 0
    assert run('harmonizer', '--latents', d/'store', '--out', d/'harmonizer', *parts, *FEW) == 0
    return d

def test_real_records_become_a_checkpoint(trained, records, tmp_path, capsys):
    m = BrainHarmonix.from_pretrained(trained/'harmonizer'/'checkpoint')
    assert m.passport.cohorts == ('shipped',) and m.passport.subjects == 4 and m.passport.tr_range == (1.4, 1.4)
    assert not set(m.passport.subject_hashes) & {id_hash([str(i)]) for i in range(4)}  # nobody knows whether this cohort is open: no single id can be guessed from the passport
    assert main(['embed', '--checkpoint', str(trained/'harmonizer'/'checkpoint'), '--bold', str(records/'sub-0_desc-parcels_timeseries.safetensors'), '--out', str(tmp_path/'out')]) == 0
    assert np.isfinite(load_file(tmp_path/'out'/'tokens.safetensors')['hub']).all()

def test_a_bad_record_is_left_out_and_listed(trained):
    left = pd.read_csv(trained/'function'/'left-out.tsv', sep='\t')
    assert list(left.id) == ['sub-2'] and 'cut off' in left.reason[0]
    assert json.loads((trained/'store'/'index.json').read_text())['ids'] == ['sub-0', 'sub-1', 'sub-2', 'sub-3']  # sub-2 has its T1, sub-3 its BOLD

def test_what_a_run_leaves(trained):
    for stage in ('structure','function','harmonizer'):
        d = trained/stage
        assert len(pd.read_csv(d/'losses.csv')) == 2 and (d/'losses.png').stat().st_size > 2000 and 'step 2/2' in (d/'log.txt').read_text()
        assert json.loads((d/'config.json').read_text())['about']['steps'] == 2
    assert 'rank' in (trained/'function'/'log.txt').read_text()  # collapse is watched

def test_only_training_subjects(records, tmp_path, trained):
    m = pd.read_csv(records/'manifest.csv', dtype=dict(subject=str)).iloc[[0,1,3]]; m.to_csv(records/'three.csv', index=False)
    s = split(m, (.67, 0., .33), seed=1, stratify=()); save_split(tmp_path/'split.json', m, s)
    assert main(['pretrain', 'function', str(records/'three.csv'), '--out', str(tmp_path/'f'), '--split', str(tmp_path/'split.json'), *FEW]) == 0
    p = Passport.from_dict(json.loads((tmp_path/'f'/'checkpoint'/'passport.json').read_text()))
    assert p.subject_hashes == (id_hash(m.subject.iloc[s['train']]),) and p.subjects == len(s['train'])

def test_simulated_people_are_named_by_hashes(tmp_path):
    "Of open cohorts the passport tells each one, so that leakage can be found"
    assert main(['pretrain', 'structure', 'simulated:3', '--out', str(tmp_path/'s'), *FEW]) == 0
    p = Passport.from_dict(json.loads((tmp_path/'s'/'checkpoint'/'passport.json').read_text()))
    assert p.subjects == len(p.subject_hashes) == 3 and 'simulated' in p.note

def test_other_encoders_do_not_continue_a_harmonizer(trained, records, tmp_path, capsys):
    assert main(['pretrain', 'function', str(records), '--out', str(tmp_path/'f'), *FEW, 'train.seed=7']) == 0
    parts = ['--function', str(tmp_path/'f'/'checkpoint'), '--structure', str(trained/'structure'/'checkpoint')]
    assert main(['pretrain', 'latents', str(records), '--out', str(tmp_path/'l'), '--device', 'cpu', *parts]) == 0
    assert main(['pretrain', 'harmonizer', '--latents', str(tmp_path/'l'), '--out', str(trained/'harmonizer'), *parts, *FEW]) == 2
    assert 'encoders was' in capsys.readouterr().err

def test_on_the_fly_is_the_store(trained, records, tmp_path):
    "The same two sessions that have both modalities, from records and from a store: the same losses but for bfloat16"
    m = pd.read_csv(records/'manifest.csv', dtype=dict(subject=str)).iloc[[0,1]]; m.to_csv(records/'two.csv', index=False)
    parts = ['--function', str(trained/'function'/'checkpoint'), '--structure', str(trained/'structure'/'checkpoint')]
    assert main(['pretrain', 'latents', str(records/'two.csv'), '--out', str(tmp_path/'store'), '--device', 'cpu', *parts]) == 0
    assert main(['pretrain', 'harmonizer', '--latents', str(tmp_path/'store'), '--out', str(tmp_path/'a'), *parts, *FEW]) == 0
    assert main(['pretrain', 'harmonizer', str(records/'two.csv'), '--out', str(tmp_path/'b'), *parts, *FEW]) == 0
    a, b = (pd.read_csv(tmp_path/k/'losses.csv').loss for k in 'ab')
    assert np.allclose(a, b, rtol=1e-3) and not np.array_equal(a, b)

def cases(d, t):
    parts = ['--function', t/'function'/'checkpoint', '--structure', t/'structure'/'checkpoint']
    no_tr = d/'no-tr.csv'; pd.read_csv(d/'manifest.csv').drop(columns='tr').to_csv(no_tr, index=False)
    no_t1 = d/'no-t1.csv'; pd.read_csv(d/'manifest.csv').drop(columns='t1').to_csv(no_t1, index=False)
    return {'no data': (['function'], 'no data'), 'no TRs': (['function', no_tr], 'tr: is missing'), 'no T1s': (['structure', no_t1], 'lists no t1'), 'nowhere': (['function', d/'none'], 'is no manifest'),
            'preset': (['function', d, '--preset', 'huge'], "preset 'huge'"), 'option': (['function', d, '--set', 'train.lrr=1'], 'is not known'), 'nan': (['function', d, '--set', 'train.lr=nan'], 'train.lr'),
            'batch': (['function', d, '--set', 'train.batch=0'], 'batch'), 'no parts': (['harmonizer', d], '--function'), 'swapped': (['harmonizer', d, '--function', t/'structure'/'checkpoint', '--structure', t/'structure'/'checkpoint'], 'not of the function part'),
            'store': (['harmonizer', '--latents', d, *parts], 'index.json'), 'other sizes': (['harmonizer', d, '--preset', 'base', *parts], 'width 96'), 'device': (['function', d, '--device', 'cuda:9'], 'CUDA_VISIBLE_DEVICES'),
            'tracker': (['function', d, '--trackers', 'nothing'], 'is not known'), 'split': (['harmonizer', '--latents', t/'store', '--split', d/'s.json', *parts], 'pretrain latents'), 'sizes': (['structure', d, '--set', 'model.spacing=1'], 'volume'), 'heads': (['function', d, '--set', 'model.heads=5'], 'divisor'), 'one modality': (['harmonizer', no_t1, *parts], 'lists no t1')}

@pytest.mark.parametrize('case', ['no data','no TRs','no T1s','nowhere','preset','option','nan','batch','no parts','swapped','store','other sizes','device','tracker','split','sizes','heads','one modality'])
def test_bad_input_is_one_sentence(case, records, trained, tmp_path, capsys):
    argv, says = cases(records, trained)[case]
    code = main(list(map(str, ('pretrain', *argv, '--out', tmp_path/'out')))); lines = [l for l in capsys.readouterr().err.splitlines() if l.startswith('brainharmonix:')]
    assert code == 2 and len(lines) == 1 and says in lines[0] and lines[0].endswith('.'), lines
    assert not list(tmp_path.rglob('*.safetensors')) and not list(tmp_path.rglob('*.pt'))

def test_a_checkpoint_of_another_config(trained, records, capsys):
    assert main(['pretrain', 'function', str(records), '--out', str(trained/'function'), '--device', 'cpu', '--trackers', '--set', 'train.steps=2', 'train.batch=2', 'train.lr=0.5']) == 2
    err = capsys.readouterr().err
    assert 'another config' in err and 'lr was 0.001, is 0.5' in err and (trained/'function'/'checkpoint'/'model.safetensors').exists()

def test_a_store_that_was_cut(trained, records, tmp_path, capsys):
    f = next((trained/'store').glob('*.safetensors')); whole = f.read_bytes(); f.write_bytes(whole[:-10])
    parts = ['--function', str(trained/'function'/'checkpoint'), '--structure', str(trained/'structure'/'checkpoint')]
    try:
        assert main(['pretrain', 'harmonizer', '--latents', str(trained/'store'), '--out', str(tmp_path/'h'), *parts, *FEW]) == 2 and 'was cut short' in capsys.readouterr().err
        assert main(['pretrain', 'latents', str(records), '--out', str(trained/'store'), '--device', 'cpu', *parts]) == 0 and f.read_bytes() == whole  # the remedy
    finally: f.write_bytes(whole)

@pytest.mark.parametrize('script,nodes', [('slurm-8gpu.sbatch', 1), ('slurm-4x8.sbatch', 4)])
def test_slurm_scripts(script, nodes, tmp_path):
    "Stand-ins for srun, torchrun and scontrol write down what would run: every stage, on all processes, in order"
    head = (ROOT/'recipes'/script).read_text()
    assert f'--nodes={nodes}\n' in head and '--gpus-per-node=8' in head
    for name, body in dict(srun='exec "$@"', scontrol='echo node-a; echo node-b', torchrun=f'echo "$@" >> {tmp_path}/log').items():
        f = tmp_path/name; f.write_text(f'#!/bin/sh\n{body}\n'); f.chmod(f.stat().st_mode | stat.S_IEXEC)
    env = os.environ | dict(PATH=f'{tmp_path}:{os.environ["PATH"]}', DATA='records', MICRO='8', SLURM_NNODES=str(nodes), SLURM_JOB_ID='7', SLURM_JOB_NODELIST='node-[a-b]')
    subprocess.run(['bash', f'recipes/{script}'], cwd=ROOT, env=env, check=True, capture_output=True)
    said = (tmp_path/'log').read_text().splitlines()
    assert [l.split(' pretrain ')[1].split()[0] for l in said] == ['structure','function','latents','harmonizer'] and all('--nproc-per-node 8' in l and '--preset base' in l for l in said)
    assert all(f'--nnodes {nodes} ' in l and '--rdzv-endpoint node-a:29500' in l for l in said) if nodes > 1 else all('--standalone' in l for l in said)
    from brainharmonix.app import parser
    for l in said: parser().parse_args(l.split(' brainharmonix ')[1].split())  # every option exists
