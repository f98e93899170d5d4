"Promises of the repository that no chapter can show"
import argparse, ast, configparser, hashlib, json, os, re, shutil, subprocess, sys
from pathlib import Path
import pytest
import brainharmonix
from brainharmonix.core import golden, sample
from brainharmonix.docs import chapters, parameters, readme_parts, root

ROOT, LIB = root(), root()/'brainharmonix'
CHAPTERS = chapters()[1:]
each_chapter = pytest.mark.parametrize('nb', CHAPTERS, ids=lambda p: p.stem)
each_notebook = pytest.mark.parametrize('nb', chapters(), ids=lambda p: p.stem)

def cells(nb, kind): return [''.join(c['source']) for c in json.loads(nb.read_text())['cells'] if c['cell_type']==kind]
def exports(nb):
    "The modules that a chapter prints"
    return {m for s in cells(nb, 'code') for m in re.findall(r'^#\|\s*(?:default_exp|exporti?s?)[ \t]+(\S+)', s, re.M)}
HOME = {f'brainharmonix.{m}':nb for nb in CHAPTERS for m in exports(nb)}  # module -> chapter

# ---- chapters and modules
def test_file_names_are_numbers_and_modules():
    for nb in CHAPTERS:
        number, _, name = nb.stem.partition('_')
        assert re.fullmatch(r'\d\d[a-z]?', number), nb.name
        assert exports(nb) <= {name}, f'{nb.name} prints {exports(nb)}'

def test_modules_equal_their_notebooks(tmp_path):
    shutil.copytree(ROOT/'nbs', tmp_path/'nbs', symlinks=True)
    for f in ('settings.ini', 'pyproject.toml'): shutil.copy(ROOT/f, tmp_path)
    env = {k:v for k,v in os.environ.items() if k not in ('IN_TEST', 'PYTHONPATH')}
    subprocess.run([sys.executable, '-c', 'from nbdev.doclinks import nbdev_export; nbdev_export()'], cwd=tmp_path, env=env, check=True)
    new = {p.relative_to(tmp_path).as_posix():p.read_text() for p in (tmp_path/'brainharmonix').rglob('*.py')}
    here = {p.relative_to(ROOT).as_posix():p.read_text() for p in LIB.rglob('*.py')}
    assert not (stale := sorted(here.keys()-new.keys())), f'modules without a notebook: {stale}'
    assert not (absent := sorted(new.keys()-here.keys())), f'not exported: {absent}'
    assert not (differ := sorted(k for k in new if new[k]!=here[k])), f'run nbdev_export: {differ}'

def imports(source, module):
    "Modules of this package that a source imports, wherever in it"
    for n in ast.walk(ast.parse(source)):
        if isinstance(n, ast.Import): names = [a.name for a in n.names]
        elif isinstance(n, ast.ImportFrom):
            base = '.'.join([*module.split('.')[:-n.level], *filter(None, [n.module])]) if n.level else n.module
            names = [base, *(f'{base}.{a.name}' for a in n.names)]
        else: continue
        yield from (m for m in names if m in HOME)

def test_imports_are_found():
    "The finder sees absolute, relative and nested imports"
    known = sorted(HOME)[0]; short = known.removeprefix('brainharmonix.')
    for s in (f'import {known}', f'from {known} import x', f'def f():\n from {known} import x', 'from brainharmonix import core'): assert list(imports(s, 'brainharmonix.z')), s
    assert list(imports('from .core import x', 'brainharmonix.z')) == ['brainharmonix.core'] == list(imports('from ..core import x', 'brainharmonix.model.z'))

@each_chapter
def test_imports_point_down(nb):
    "A chapter, and the module it prints, use chapters above it only"
    sources = [re.sub(r'^([ \t]*)[%!].*$', r'\1pass', s, flags=re.M) for s in cells(nb, 'code')]
    for m in (m for m,h in HOME.items() if h==nb): sources.append((ROOT/(m.replace('.', '/')+'.py')).read_text())
    me = next((m for m,h in HOME.items() if h==nb), 'brainharmonix.none')
    up = sorted({m for s in sources for m in imports(s, me) if HOME[m].name > nb.name})
    assert not up, f'{nb.name} imports from later chapters: {up}'

# ---- notebooks
@each_notebook
def test_opens_with_title_and_sentence(nb):
    first = json.loads(nb.read_text())['cells'][0]
    assert first['cell_type']=='markdown' and re.match(r'# \S.*\n+> \S', ''.join(first['source'])), 'first cell: "# title", then "> one sentence"'

@each_notebook
def test_notebook_is_clean(nb):
    "nbdev_clean would change nothing"
    from execnb.nbio import nb2str
    from nbdev.clean import _nbdev_clean
    text = nb.read_text(); d = json.loads(text)
    _nbdev_clean(d)
    assert nb2str(d) == text, f'run nbdev_clean ({nb.name})'

@each_notebook
def test_notebook_is_light(nb): assert nb.stat().st_size < 400_000

@each_notebook
def test_stored_outputs_hold_no_error(nb):
    assert not [o for c in json.loads(nb.read_text())['cells'] for o in c.get('outputs', []) if o['output_type']=='error']

@each_chapter
def test_parameters_cell(nb):
    "Chapters that simulate, train, benchmark or make a table can be run at another scale"
    number, _, name = nb.stem.partition('_')
    if number=='22' or name.startswith(('train.', 'bench.')) or number.startswith('8'): assert parameters(nb), f'{nb.name} needs a cell tagged parameters, with at least one'
    tagged = [c for c in json.loads(nb.read_text())['cells'] if 'parameters' in c['metadata'].get('tags', [])]
    assert len(tagged) <= 1 and bool(tagged)==bool(parameters(nb)), 'one parameters cell, of plain assignments'

# ---- what the repository says of itself
def test_readme_is_the_index():
    text, images = readme_parts()
    assert (ROOT/'README.md').read_text() == text, 'run make readme'
    for f,data in images.items(): assert (ROOT/f).read_bytes() == data, f'run make readme ({f})'

def test_readme_links_lead_somewhere():
    text = (ROOT/'README.md').read_text()
    links = {to.partition('#')[0] for to in re.findall(r'\]\(([^)\s]+)\)|src="([^"]+)"', text) for to in to if to and not re.match(r'[a-z]+:|#', to)}
    assert links and not (dead := sorted(f for f in links if not (ROOT/f).exists())), f'README.md links to {dead}'

def test_one_version():
    ini = configparser.ConfigParser(); ini.read(ROOT/'settings.ini')
    newest = re.search(r'^## \[?(\d[^\]\s]*)', (ROOT/'CHANGELOG.md').read_text(), re.M)[1]
    assert ini['DEFAULT']['version'] == brainharmonix.__version__ == newest

def test_manifest_columns_are_documented():
    from brainharmonix.cohort import COLUMNS
    rows = re.findall(r'^\| `(\w+)` \| (.+?) \|$', (ROOT/'data_manifests'/'README.md').read_text(), re.M)
    assert dict(rows) == COLUMNS

def options(parser, name='brainharmonix'):
    "(command, option) of a parser and of its commands"
    for a in parser._actions:
        if isinstance(a, argparse._SubParsersAction):
            said = {c.dest:c.help for c in a._choices_actions}
            for k,sub in a.choices.items():
                yield f'{name} {k}', None, said.get(k)
                yield from options(sub, f'{name} {k}')
        else: yield name, '/'.join(a.option_strings) or a.dest, a.help

def test_every_option_has_a_help_line():
    if not (LIB/'app.py').exists(): pytest.skip('the command line has no chapter yet')
    from brainharmonix.app import parser
    found = list(options(parser()))
    assert {'brainharmonix embed', 'brainharmonix demo'} <= {c for c,_,_ in found}
    assert not (mute := [(c,o) for c,o,h in found if not h or not h.strip() or h==argparse.SUPPRESS]), f'no help line: {mute}'

def test_help_lists_the_commands():
    if not (LIB/'app.py').exists(): pytest.skip('the command line has no chapter yet')
    from brainharmonix.app import parser
    said = subprocess.run([sys.executable, '-c', 'from brainharmonix.app import main; main(["--help"])'], capture_output=True, text=True, timeout=120)
    commands = {c.split()[1] for c,o,_ in options(parser()) if o is None}
    assert said.returncode==0 and commands and all(c in said.stdout for c in commands), said.stdout+said.stderr

# ---- what git holds
@pytest.fixture(scope='module')
def tracked():
    "Files that git holds or would add"
    r = subprocess.run(['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT, capture_output=True, text=True)
    if r.returncode or not r.stdout: pytest.skip('not a git checkout')
    return [p for f in r.stdout.split('\0') if f and (p := ROOT/f).is_file()]

PRIVATE = re.compile(r'(?<![\w.~-])/(?:work|root|home/\w+|Users/\w+|tmp/\w+)/[\w.]')

def test_private_path_is_recognised():
    assert PRIVATE.search('"/'+'work/main/x"') and PRIVATE.search(' /'+'home/ann/x') and not PRIVATE.search('https://a.org/'+'work/x') and not PRIVATE.search('~/.cache/x')

def test_no_private_paths(tracked):
    found = {}
    for p in tracked:
        try: text = p.read_text()
        except UnicodeDecodeError: continue
        if m := PRIVATE.search(text): found[p.relative_to(ROOT).as_posix()] = text[max(0, m.start()-20):m.end()+40]
    assert not found, f'paths of one machine: {found}'

def test_no_data_in_git(tracked):
    "No scan, weights or reference tensor, under any name; but for the demonstration weights, which ship"
    tracked = [p for p in tracked if p.parent != LIB/'checkpoints'/'demo']
    kinds = ('.nii', '.nii.gz', '.mgz', '.gii', '.annot', '.pth', '.pt', '.safetensors', '.npz', '.npy', '.1D.gz', '.pkl')
    assert not (named := [p.name for p in tracked if p.name.endswith(kinds)]), named
    assert not (heavy := [p.name for p in tracked if p.stat().st_size > 1_000_000]), heavy
    sha = lambda p: hashlib.sha256(p.read_bytes()).hexdigest()
    outside = {sha(p):p.name for d in (golden(), sample()) if d for p in d.rglob('*')
               if p.is_file() and p.stat().st_size < 1_000_000 and not p.name.startswith(('LICENSE', 'README'))}
    assert not (copies := [(p.name, outside[s]) for p in tracked if (s := sha(p)) in outside]), copies
