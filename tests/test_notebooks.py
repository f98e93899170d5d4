"Every chapter runs from top to bottom, in reading order, as papermill runs it"
import time
from pathlib import Path
import nbformat, pytest
from nbformat.v4 import new_code_cell, new_notebook
from brainharmonix.core import BadInput
from brainharmonix.docs import chapters, overrides, root, run_notebook

LIMIT = 120  # s for a chapter; they are written to stay well under 60 on two cores
ORDER = chapters()[1:]+chapters()[:1]

@pytest.mark.parametrize('nb', ORDER, ids=lambda p: p.stem)
def test_chapter(nb, tmp_path, monkeypatch):
    monkeypatch.delenv('MPLBACKEND', raising=False)  # the kernel's own: figures are drawn inline
    start = time.monotonic()
    done = run_notebook(nb, tmp_path/nb.name, LIMIT)
    took = time.monotonic()-start
    code = [c for c in done.cells if c.cell_type=='code' and c.source.strip()]
    assert all(c.execution_count for c in code), 'a cell was left out'
    assert took < LIMIT, f'{nb.name} took {took:.0f} s: make its smoke scale smaller'

def test_paper_parameters():
    "reports/paper.yaml names chapters and parameters that exist"
    if not (f := root()/'reports'/'paper.yaml').exists(): pytest.skip('reports/paper.yaml does not exist yet')
    overrides(f)

def _notebook(f, *cells):
    nbformat.write(new_notebook(cells=[new_code_cell(s, metadata=dict(tags=t)) for s,t in cells],
                                metadata=dict(kernelspec=dict(name='python3', display_name='python3', language='python'))), f)
    return f

def test_misspelt_parameter_is_refused(tmp_path):
    nb = _notebook(tmp_path/'a.ipynb', ('seeds = 1', ['parameters']))
    with pytest.raises(BadInput, match='a.ipynb: has no parameter seed; use seeds'): run_notebook(nb, tmp_path/'out.ipynb', seed=2)
    assert not (tmp_path/'out.ipynb').exists()

def test_unknown_chapter_is_refused(tmp_path):
    (tmp_path/'p.yaml').write_text('99_nothing: {a: 1}')
    with pytest.raises(BadInput, match='99_nothing'): overrides(tmp_path/'p.yaml')

def test_kernel_is_this_python_and_this_checkout(tmp_path, monkeypatch):
    "Also where another kernel is registered under the same name"
    bad = tmp_path/'kernels'/'python3'; bad.mkdir(parents=True)
    (bad/'kernel.json').write_text('{"argv": ["/nonexistent"], "display_name": "python3", "language": "python"}')
    monkeypatch.setenv('JUPYTER_PATH', str(tmp_path))
    nb = _notebook(tmp_path/'a.ipynb', ('import sys, brainharmonix; print(sys.executable); print(brainharmonix.__file__)', []))
    import sys
    said = run_notebook(nb, None).cells[-1].outputs[0].text.split('\n')
    assert said[:2] == [sys.executable, str(root()/'brainharmonix'/'__init__.py')]

def test_an_error_in_a_chapter_is_raised(tmp_path):
    nb = _notebook(tmp_path/'a.ipynb', ('1/0', []))
    with pytest.raises(Exception, match='ZeroDivisionError'): run_notebook(nb, tmp_path/'out.ipynb')
