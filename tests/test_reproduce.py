"Tables as targets: names, twins, provenance, resuming, one page"
import json, os, re, subprocess, sys
from pathlib import Path
import numpy as np, pandas as pd, pytest
from common import refused
from brainharmonix.app import main, parser
from brainharmonix.bench import reproduce as rep
from brainharmonix.bench.arena import Protocol, toy_people
from brainharmonix.bench.cohorts import TWINS, best, simulated, twin
from brainharmonix.bench.reproduce import TARGETS, index, published, reproduce, root, targets
from brainharmonix.bench.tables import Scale, header, named, rank, read_table, scale_of, write
from brainharmonix.bench.probe import Linear
from brainharmonix.cohorts import cohort
from brainharmonix.core import refuse
from brainharmonix.simulate import SimConfig

def test_every_target_is_a_chapter_with_its_parameters():
    for name,(chapter,params) in TARGETS.items():
        f = root()/'nbs'/f'{chapter}.ipynb'; assert f.exists(), chapter
        assert {'name','scale','out',*params} <= set(rep.parameters(f)), f'{name}: {chapter} lacks a parameter'
    chapters = {p.stem for p in (root()/'nbs').glob('8*.ipynb')}
    assert chapters == {c for c,_ in TARGETS.values()}  # and every table chapter is a target

def test_the_cohorts_of_the_paper_have_targets(): assert {'abide1','abide2','adhd200','ppmi','adni','hcpa','macc','ablations','hubs','probe','fewshot','attention'} <= set(TARGETS)

@pytest.mark.parametrize('name', TWINS)
def test_twins_keep_what_is_known(name):
    p, t, c = simulated(name, 60), twin(name), cohort(name); task = c.tasks[0]
    assert p.data == 'simulated' and p.kind == task.kind and 'twin' in p.title and t.assumed in p.note
    if t.shares: assert np.abs(np.bincount(p.y, minlength=len(t.shares))/len(p)-t.shares).max() <= 1.01/len(p)*len(t.shares) and (p.classes[-1] == task.positive or not task.positive)
    known = {v for v in c.tr.sites.values() if v} or ({c.tr.value} if c.tr.value else set())
    if known: assert set(p.table.tr) <= known

def test_the_optimum_bounds_every_rule_of_one_variable():
    cfg, shares = SimConfig(), (.2, .1, .2, .5); b = best(cfg, shares)
    assert 1/4 < b['structure']['balanced_accuracy'] < b['both']['balanced_accuracy'] < 1 and b['both']['accuracy'] >= max(shares)
    r = best(cfg, (), 10.); assert r['both']['r2'] > r['function']['r2'] and r['both']['mae'] < 10*np.sqrt(2/np.pi)

def test_a_table_says_what_made_it_and_of_whom(tmp_path, monkeypatch):
    monkeypatch.setenv('BRAINHARMONIX_RUNS', str(tmp_path/'runs'))
    t, o, paths = rank('toy', toy_people(60), {'FC + logistic regression':lambda: Linear('edges'), 'T1':lambda: Linear('t1_blocks')}, Scale.smoke(), ['T1'], out=tmp_path)
    back, head = read_table(paths['csv'])
    assert {'data','commit','version','manifest','config','seeds','device'} <= set(head) and head['data'] == 'simulated' and all('simulated' in p.name for p in paths.values())
    assert list(back.system) == list(t.system) and '(simulated data)' in paths['md'].read_text().partition('\n')[0] and f'over {Scale.smoke().splits} splits' in paths['md'].read_text()
    p = toy_people(60); p.data, p.bayes = 'real', None
    *_, paths = rank('toy', p, {'FC + logistic regression':lambda: Linear('edges')}, Scale.smoke(), [], out=tmp_path)
    assert all('simulated' not in f.name for f in paths.values()) and '(real data)' in paths['md'].read_text()

def test_a_table_of_real_people_names_nobody(tmp_path, monkeypatch):
    from brainharmonix.bench.arena import System
    monkeypatch.setenv('BRAINHARMONIX_RUNS', str(tmp_path/'runs')); p = toy_people(60); p.data, p.bayes, p.note = 'real', None, '1 session was left out: /data/study/sub-toy-009_bold.nii.gz: is empty.'
    class Told(System):
        def fit(self, *a): refuse('/data/study/toy-007_bold.nii.gz', 'of toy-007 is empty', 'copy it again')
    *_, paths = rank('toy', p, {'FC + logistic regression':lambda: Linear('edges'), 'told':Told}, Scale.smoke(), ['told'], out=tmp_path)
    text = paths['md'].read_text() + paths['csv'].read_text()
    assert 'is empty; copy it again' in text and not re.search(r'toy-\d', text) and '/data' not in text

def test_kept_tables_say_simulated_and_have_their_header():
    "What git holds of tables: a header line, and the word in name and title where it belongs"
    files = sorted((root()/'reports'/'tables').glob('*.csv'))
    assert files
    for f in files:
        t, head = read_table(f); assert len(t) and {'data','commit','config'} <= set(head), f.name
        assert (head['data'] == 'simulated') == f.stem.endswith('-simulated'), f.name
        assert f'({head["data"]} data)' in f.with_suffix('.md').read_text().partition('\n')[0], f.name

def test_published_numbers_carry_a_source_and_stay_alone():
    for f in (root()/'reports'/'published').glob('*.csv'):
        d = pd.read_csv(f, comment='#', dtype=str, keep_default_na=False)
        assert (d.source.str.len() > 0).all() and (d.value.eq('') | pd.to_numeric(d.value, errors='coerce').notna()).all()
    text = published(root()/'reports'/'published'/'paper.csv'); assert '| BrainHarmonix | 63.13 | 72.63 |' in text
    for f in (root()/'reports'/'tables').glob('*.csv'): assert '72.63' not in f.read_text()

@pytest.fixture
def little(tmp_path, monkeypatch):
    "A target that takes no time, one that fails with a sentence, one that breaks, one that writes nothing"
    import nbformat
    from nbformat.v4 import new_code_cell, new_notebook
    monkeypatch.setenv('BRAINHARMONIX_RUNS', str(tmp_path/'runs')); (tmp_path/'nbs').mkdir()
    (tmp_path/'settings.ini').write_text(''); monkeypatch.setattr(rep, 'root', lambda: tmp_path)
    start = 'name = ""\nscale = "smoke"\nout = None\ncohort = "abide1"\ndata = None\ncheckpoint = None'
    body = dict(fine='import pandas as pd\nfrom brainharmonix.bench.tables import write\nopen(out+"/ran","a").write("x")\nwrite(name, pd.DataFrame(dict(system=["a"], auc=[.5])), dict(data="simulated"), "T", out=out)',
                told='from brainharmonix.core import refuse\nrefuse("scans", "are gone", "bring them back")', broken='1/0', silent='pass', absent='from brainharmonix.bench.tables import skip\nskip(name, "no samples here")')
    for k,v in body.items(): nbformat.write(new_notebook(cells=[new_code_cell(start, metadata=dict(tags=['parameters'])), new_code_cell(v)], metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))), tmp_path/'nbs'/f'8_{k}.ipynb')
    monkeypatch.setattr(rep, 'TARGETS', {k:(f'8_{k}', {}) for k in body})
    return tmp_path

def test_one_that_fails_does_not_stop_the_others_and_finished_ones_are_kept(little):
    run = lambda *names: reproduce(names, out=little/'reports', jobs=1)
    (little/'reports').mkdir(exist_ok=True); (little/'reports'/'tables').mkdir(exist_ok=True); (little/'reports'/'tables'/'silent-smoke-simulated.csv').write_text('old'); r = run('told','broken','silent','absent','fine')
    assert set(r['done']) == {'fine-smoke'} and r['failed']['told-smoke'] == 'scans: are gone; bring them back.' and 'ZeroDivisionError' in r['failed']['broken-smoke'] and 'wrote no table' in r['failed']['silent-smoke'] and r['skipped'] == {'absent-smoke':'no samples here'}
    assert run('fine')['kept'] and (little/'reports'/'ran').read_text() == 'x'
    (little/'reports'/'tables'/'fine-smoke-simulated.csv').unlink(); assert run('fine')['done'] and (little/'reports'/'ran').read_text() == 'xx'
    assert reproduce(('fine',), scale='small', out=little/'reports', jobs=1)['done']  # other parameters, other result
    assert 'fine-smoke-simulated' in r['index'].read_text() and (little/'reports'/'tables'/'fine-small-simulated.csv').exists()

def test_other_data_at_the_same_path_is_another_table(little):
    f = little/'cohort.csv'; (little/'reports').mkdir(exist_ok=True); run = lambda: reproduce(('fine',), data=str(f), out=little/'reports', jobs=1)
    f.write_text('subject\na\n'); assert run()['done']; assert run()['kept']
    f.write_text('subject\nb\n'); assert run()['done']

def test_baselines_without_fair_pretraining_have_an_empty_row():
    "On real people, or beside other weights, the re-implemented models are asked for what ours learned from"
    from types import SimpleNamespace
    from brainharmonix.bench.field import Absent, fair, field
    from brainharmonix.bench.tables import hashes_of, scale_of
    s, p = scale_of('smoke'), toy_people(40); model = lambda *h: SimpleNamespace(passport=SimpleNamespace(subject_hashes=h, cohorts=()))
    assert fair(p, s, model(*hashes_of(s)), None) and not fair(p, s, model(), None) and fair(p, s, model(), 'records')
    p.data = 'real'; assert not fair(p, s, model(*hashes_of(s)), None)
    refused(lambda: Absent('a model was not pretrained for these people; give --pretrain.').fit(None, None, 0), '--pretrain')

def test_names_that_do_not_exist():
    refused(lambda: targets(['table1']), 'table1', 'abide1'); refused(lambda: reproduce(['hubs'], cohort='ukb'), 'ukb'); refused(lambda: reproduce(['abide1'], scale='huge'), 'huge')
    refused(lambda: reproduce(['abide1'], data='/nowhere/x.csv'), 'is not there'); refused(lambda: reproduce([], data='x'), 'one table'); refused(lambda: targets(['adni'], 'ppmi'), 'one cohort')

def test_the_command_lists_and_refuses(capsys):
    assert main(['reproduce','--list']) == 0; said = capsys.readouterr().out; assert all(k in said for k in TARGETS)
    assert main(['reproduce','table1']) == 2 and 'knows no table table1' in capsys.readouterr().err

def test_index_shows_every_table_and_figure(tmp_path):
    import shutil
    for d in ('tables','figures','published'): shutil.copytree(root()/'reports'/d, tmp_path/d)
    text = index(tmp_path).read_text()
    for f in (tmp_path/'tables').glob('*.md'): assert f'id="{f.stem}"' in text
    for src in re.findall(r'<img src="([^"]+)"', text): assert (tmp_path/src).exists(), src
    assert 'id="published-paper"' in text and not re.search(r'(?:src|href)="https?://', text)
