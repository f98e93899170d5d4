"The weights that ship: small, sealed, with results that are theirs, and used where nothing else is named"
import json, time
import numpy as np
from safetensors.numpy import load_file
from brainharmonix.app import main
from brainharmonix.cohort import id_hash
from brainharmonix.demo import DemoConfig, RESULTS, results
from brainharmonix.embed import demo_checkpoint, load_model

FOLDER = demo_checkpoint()

def test_it_is_small_and_whole():
    files = {f.name:f.stat().st_size for f in FOLDER.iterdir()}
    assert {'model.safetensors','config.json','passport.json','README.md',RESULTS} <= set(files) and sum(files.values()) <= 8e6, files

def test_passport_and_card_say_what_it_is():
    p, card = load_model().passport, (FOLDER/'README.md').read_text()
    assert 'simulated' in p.cohorts and id_hash(['sub-010188']) in p.subject_hashes and p.subjects == DemoConfig().pretrain+1
    assert 'not for clinical use' in p.note and p.note in card and 'Not for: diagnosis' in card and results(FOLDER)['verdict'] in card

def test_results_are_of_these_weights_and_this_recipe():
    r = results(FOLDER)
    assert r['of'] == load_model().passport.sha256 and r['data'] == 'simulated' and r['config'] == DemoConfig().as_dict()
    assert r['probed_on'] == DemoConfig().sim.subjects-DemoConfig().pretrain and {'Bayes optimum, both','FC + logistic regression'} <= {row['features'] for row in r['label']}

def test_the_demo_takes_less_than_two_minutes(tmp_path, capsys):
    t = time.monotonic()
    assert main(['demo', '--out', str(tmp_path)]) == 0 and time.monotonic()-t < 120
    page, hub = (tmp_path/'report.html').read_text(), load_file(tmp_path/'tokens.safetensors')
    assert np.isfinite(hub['hub']).all() and set(hub) == {'hub','hub_bold','hub_t1'} and 'was in the training of these weights' in json.dumps(json.loads((tmp_path/'passport.json').read_text())['notes'])
    assert results(FOLDER)['verdict'].split(';')[0] in page

def test_options_of_training_need_train(capsys): assert main(['demo', '--steps', '3']) == 2 and 'add --train' in capsys.readouterr().err

def test_embed_uses_it_and_says_so(tmp_path, capsys):
    np.save(tmp_path/'x.npy', np.random.default_rng(0).standard_normal((400,120)).cumsum(1).astype('float32'))
    assert main(['embed', '--bold', str(tmp_path/'x.npy'), '--tr', '2', '--out', str(tmp_path/'out')]) == 0
    assert 'demonstration' in capsys.readouterr().err and json.loads((tmp_path/'out'/'passport.json').read_text())['checkpoint']['sha256'] == load_model().passport.sha256
