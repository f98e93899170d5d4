"""The command line as a stranger uses it: three files or none, and a sentence for every bad input."""
import gzip, json, shutil
import nibabel as nib, numpy as np, pytest
from safetensors.numpy import load_file
from brainharmonix.app import main
from brainharmonix.embed import new_model
from brainharmonix.model.passport import ModelConfig
from brainharmonix.preprocess.t1 import mni152

FILES = ['passport.json', 'report.html', 'tokens.safetensors']

@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory): return new_model(ModelConfig.smoke()).save_pretrained(tmp_path_factory.mktemp('model')/'checkpoint')

@pytest.fixture(scope='module')
def series(): return np.random.default_rng(0).standard_normal((400,120)).cumsum(1).astype('float32')

@pytest.fixture
def bold(tmp_path, series):
    np.save(tmp_path/'scan.npy', series)
    return tmp_path/'scan.npy'

def run(capsys, *argv):
    code = main(list(map(str, argv)))
    return code, capsys.readouterr()

def refused(capsys, tmp_path, *argv, says):
    "Exit code 2, one sentence that holds `says`, nothing left behind"
    before = sorted(p.name for p in tmp_path.iterdir())
    code, out = run(capsys, 'embed', '--out', tmp_path/'out', *argv)
    lines = [l for l in out.err.splitlines() if l.startswith('brainharmonix:')]
    assert code == 2 and len(lines) == 1 and lines[0].endswith('.') and 'Traceback' not in out.err
    assert all(s in lines[0] for s in says), lines[0]
    assert sorted(p.name for p in tmp_path.iterdir()) == before

@pytest.mark.parametrize('with_bold,with_t1', [(True,True), (True,False), (False,True)])
def test_either_modality_may_be_missing(tmp_path, capsys, checkpoint, bold, with_bold, with_t1):
    argv = (['--bold', bold, '--tr', 2] if with_bold else []) + (['--t1', mni152()] if with_t1 else [])
    code, out = run(capsys, 'embed', '--checkpoint', checkpoint, '--out', tmp_path/'out', *argv)
    assert code == 0, out.err
    assert sorted(p.name for p in (tmp_path/'out').iterdir()) == FILES
    hub = load_file(tmp_path/'out'/'tokens.safetensors')['hub']
    assert hub.dtype == np.float32 and hub.shape == (128,96) and np.isfinite(hub).all()
    passport = json.loads((tmp_path/'out'/'passport.json').read_text())
    assert set(passport['input']) == {k for k,w in (('BOLD',with_bold), ('T1',with_t1)) if w} and passport['checkpoint']['sha256']

def test_the_same_twice(tmp_path, capsys, checkpoint, bold):
    hubs = []
    for name in 'ab':
        assert run(capsys, 'embed', '--checkpoint', checkpoint, '--bold', bold, '--tr', 2, '--out', tmp_path/name)[0] == 0
        hubs.append(load_file(tmp_path/name/'tokens.safetensors')['hub'])
    assert np.array_equal(*hubs)

def test_colleagues_may_read_them(tmp_path, capsys, checkpoint, bold):
    assert run(capsys, 'embed', '--checkpoint', checkpoint, '--bold', bold, '--tr', 2, '--out', tmp_path/'out')[0] == 0
    (tmp_path/'plain').open('w').close(); assert {f.stat().st_mode for d in (tmp_path/'out', checkpoint) for f in d.iterdir()} == {(tmp_path/'plain').stat().st_mode}

def test_other_files_in_the_folder_stay(tmp_path, capsys, checkpoint, bold):
    (tmp_path/'out').mkdir(); (tmp_path/'out'/'mine.txt').write_text('keep')
    assert run(capsys, 'embed', '--checkpoint', checkpoint, '--bold', bold, '--tr', 2, '--out', tmp_path/'out')[0] == 0
    assert (tmp_path/'out'/'mine.txt').read_text() == 'keep'

def volume(path, x, affine=np.diag([2.,2,2,1])):
    im = nib.Nifti1Image(x.astype('float32'), affine); im.header.set_sform(affine, 4); nib.save(im, path)
    return path

def broken(kind, tmp, x):
    "Make one bad input; the arguments that hand it in, and what the sentence must say"
    f = tmp/f'{kind}.npy'
    if kind == 'nan': np.save(f, np.where(np.arange(120) == 7, np.nan, x)); return ['--bold', f, '--tr', 2], [f.name, 'NaN']
    if kind == 'infinite': np.save(f, np.where(np.arange(120) == 7, np.inf, x)); return ['--bold', f, '--tr', 2], [f.name, 'infinite']
    if kind == 'constant': np.save(f, np.where(np.arange(400)[:,None] == 3, 1., x)); return ['--bold', f, '--tr', 2], [f.name, 'constant']
    if kind == 'parcels': np.save(f, x[:399]); return ['--bold', f, '--tr', 2], [f.name, '399', '400']
    if kind == 'transposed': np.save(f, x.T); return ['--bold', f, '--tr', 2], [f.name, 'transposed']
    if kind == 'short': np.save(f, x[:,:8]); return ['--bold', f, '--tr', 2], [f.name, 'window']
    if kind == 'no_tr': np.save(f, x); return ['--bold', f], [f.name, 'TR']
    if kind == 'ms': np.save(f, x); return ['--bold', f, '--tr', 2000], [f.name, 'milliseconds']
    if kind == 'sidecar': np.save(f, x); f.with_suffix('.json').write_text('{"RepetitionTime": 0.8}'); return ['--bold', f, '--tr', 2], ['0.8', '2 s']
    if kind == 'order': np.save(f, x); return ['--bold', f, '--tr', 2, '--order', '17'], [f.name, '17-network', '7-network']
    if kind == 'cut_npy': np.save(f, x); f.write_bytes(f.read_bytes()[:5000]); return ['--bold', f, '--tr', 2], [f.name]
    if kind == 'absent': return ['--bold', tmp/'absent.npy', '--tr', 2], ['absent.npy']
    if kind == 'nothing': return [], ['--bold', '--t1']
    f = tmp/f'{kind}.nii.gz'
    if kind == 't1_4d': return ['--t1', volume(f, np.random.rand(10,12,10,3))], [f.name, '4']
    if kind == 't1_native': return ['--t1', volume(f, np.random.rand(40,40,40))], [f.name, 'MNI']
    if kind == 't1_cut': f.write_bytes(mni152().read_bytes()[:200_000]); return ['--t1', f], [f.name]
    if kind == 't1_garbage': f.write_bytes(gzip.compress(b'not an image')); return ['--t1', f], [f.name]
    raise KeyError(kind)

@pytest.mark.parametrize('kind', 'nan infinite constant parcels transposed short no_tr ms sidecar order cut_npy absent nothing t1_4d t1_native t1_cut t1_garbage'.split())
def test_bad_input_is_one_sentence(kind, tmp_path, capsys, checkpoint, series):
    argv, says = broken(kind, tmp_path, series)
    refused(capsys, tmp_path, '--checkpoint', checkpoint, *argv, says=says)

def test_a_header_may_be_overruled(tmp_path, capsys, checkpoint, bold):
    bold.with_suffix('.json').write_text('{"RepetitionTime": 0.8}')
    code, out = run(capsys, 'embed', '--checkpoint', checkpoint, '--bold', bold, '--tr', 2, '--trust-tr', '--out', tmp_path/'out')
    assert code == 0 and '0.8' in ' '.join(json.loads((tmp_path/'out'/'passport.json').read_text())['notes'])

@pytest.mark.parametrize('name', ['model.safetensors', 'passport.json', 'config.json'])
@pytest.mark.parametrize('where', [.1, .5, .99])
def test_a_flipped_bit_is_refused(tmp_path, capsys, bold, checkpoint, name, where):
    shutil.copytree(checkpoint, tmp_path/'c'); f = tmp_path/'c'/name
    b = bytearray(f.read_bytes()); b[int(where*len(b))] ^= 4; f.write_bytes(b)
    refused(capsys, tmp_path, '--checkpoint', tmp_path/'c', '--bold', bold, '--tr', 2, says=[str(tmp_path/'c')])

def test_a_checkpoint_leaves_other_files_alone(tmp_path):
    (tmp_path/'c').mkdir(); (tmp_path/'c'/'mine').write_text('stays')
    new_model(ModelConfig.smoke()).save_pretrained(tmp_path/'c')
    assert (tmp_path/'c'/'mine').read_text() == 'stays' and len(list((tmp_path/'c').iterdir())) == 5

@pytest.mark.parametrize('says,code', [(1., 2), (2.005, 0)])
def test_a_sidecar_that_contradicts(tmp_path, capsys, checkpoint, bold, says, code):
    bold.with_suffix('.json').write_text(json.dumps({'RepetitionTime':says}))
    assert run(capsys, 'embed', '--checkpoint', checkpoint, '--bold', bold, '--tr', 2, '--out', tmp_path/'out')[0] == code

def test_info_shows_the_passport(capsys, checkpoint):
    code, out = run(capsys, 'info', checkpoint)
    assert code == 0 and json.loads(out.out)['sha256']

def test_a_device_that_is_not_there(tmp_path, capsys, checkpoint, bold):
    refused(capsys, tmp_path, '--checkpoint', checkpoint, '--bold', bold, '--tr', 2, '--device', 'cuda:99', says=['--device', 'cuda:99'])

def test_another_atlas_is_refused(tmp_path, capsys, bold):
    from dataclasses import replace
    from brainharmonix.model.passport import BrainHarmonix, Passport
    import torch
    m = ModelConfig.smoke(); m = replace(m, function=replace(m.function, regions=200))
    BrainHarmonix(m, torch.randn(200,30), torch.randn(200,200), Passport(atlas='CC200')).save_pretrained(tmp_path/'c')
    refused(capsys, tmp_path, '--checkpoint', tmp_path/'c', '--bold', bold, '--tr', 2, says=['400', '200'])

def test_out_that_is_a_file(tmp_path, capsys, checkpoint, bold):
    (tmp_path/'f').write_text('x')
    code, out = run(capsys, 'embed', '--checkpoint', checkpoint, '--bold', bold, '--tr', 2, '--out', tmp_path/'f')
    assert code == 2 and 'is a file' in out.err and (tmp_path/'f').read_text() == 'x'
