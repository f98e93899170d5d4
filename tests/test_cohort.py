"Manifests, splits, the leakage guard, cohort files and the builders: promises that must hold for any table"
import hashlib, json
from pathlib import Path
import numpy as np, pandas as pd, pytest, yaml
from hypothesis import HealthCheck, given, settings, strategies as st
from brainharmonix.core import BadInput, sample
from brainharmonix.cohort import ALIKE, COLUMNS, check_leakage, copies, deal, fingerprint, id_hash, in_step, kfold, load_split, locate, loso, manifest, save_split, split, split_hash
from brainharmonix.cohorts import build, cohort, cohorts, fetch, manifest_folder, save_manifest, summary, target

quick = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
PAPER = 'ukb abcd abide1 abide2 adhd200 ppmi adni hcpa macc demo'.split()
NAMES = sorted(p.stem for p in manifest_folder().glob('*.yaml'))

def refused(*said):
    "One sentence that says all of these"
    return pytest.raises(BadInput, match='(?s)' + ''.join(f'(?=.*{s})' for s in said) + r'.*; .*\.$')

# ---- manifests
BASE = pd.DataFrame(dict(subject=['0051459', 'b2', 'b3'], session='1', tr=2., bold='x.npz#k', age=30, sex='F', label=1))
FAULTS = [('subject', '../b2', 'no id'), ('subject', 'a/b', 'no id'), ('subject', 'a\\b', 'no id'), ('subject', 'a\0b', 'no id'), ('subject', '.hidden', 'no id'), ('session', '../1', 'no id'),
          ('tr', 2000, 'milliseconds'), ('tr', 0, 'repetition time'), ('tr', None, 'missing'), ('tr', 'two', 'number'), ('tr', np.inf, 'number'), ('age', -9999, 'age'), ('age', 130, 'age'), ('sex', '2', 'M nor F'), ('label', 9, 'none of 0, 1'),
          ('frames', 1.5, 'frames'), ('mean_fd', -1, 'displacement'), ('score', 'high', 'number'), ('checksum', 'abc', 'SHA-256')]

@pytest.mark.parametrize('column,value,said', FAULTS)
def test_a_fault_is_named_with_line_and_column(column, value, said):
    m = BASE.astype(object); m.loc[1, column] = value
    with refused('line 3', column, said): manifest(m, labels=(0, 1))

@pytest.mark.parametrize('value', [None, '', '  '])
def test_a_row_without_an_id(value):
    with refused('line 3', 'no subject id'): manifest(BASE.assign(subject=['a', value, 'c']))

def test_ids_that_differ_in_case_only():
    for i in ('B2', '\uff422'):  # the second is full-width
        with refused('line 4', 'case'): manifest(BASE.assign(subject=['a', 'b2', i]))

def test_duplicate_rows_and_runs():
    twice = pd.concat([BASE, BASE[:1]])
    with refused('line 5', 'repeats'): manifest(twice)
    assert len(manifest(twice.assign(run=[1, 1, 1, 2]))) == 4   # told apart
    with refused('line 5', 'repeats'): manifest(twice.assign(run=[1, 1, 1, 1.]))

@pytest.mark.parametrize('column,two', [('task', ('rest', 'nback')), ('acq', ('mb4', 'mb8')), ('dir', ('AP', 'PA')), ('run', ('1', '2'))])
def test_runs_of_one_session_are_told_apart(column, two):
    m = pd.concat([BASE[:1]]*2, ignore_index=True).assign(**{'run':'1', 'task':'rest', column:two})
    assert list(manifest(m)[column]) == list(two)
    with refused('line 3', 'repeats', column): manifest(m.assign(**{column:two[0]}))
    with refused('line 3', column, 'no id'): manifest(m.assign(**{column:[two[0], '../x']}))

def test_the_order_of_networks_is_7_or_17(tmp_path):
    (tmp_path/'m.csv').write_text('subject,order\na,7.0\nb,17\nc,\n')
    m = manifest(tmp_path/'m.csv'); assert list(m.order[:2]) == ['7', '17'] and pd.isna(m.order[2])
    assert list(manifest(dict(subject=['a', 'b'], order=[7., 17])).order) == ['7', '17']
    for bad in (8, '7n', 7.5, 70):
        with refused('line 3, order', 'neither 7 nor 17'): manifest(dict(subject=['a', 'b'], order=[7, bad]))

def test_confounds_are_a_file_of_the_manifest(tmp_path):
    (tmp_path/'d').mkdir(); f = tmp_path/'d/c.tsv'; f.write_text('x'); m = pd.DataFrame(dict(subject=['a', 'b'], confounds=[str(f), None])); save_manifest(tmp_path/'m.csv', m)
    assert list(manifest(tmp_path/'m.csv', files=True).confounds)[0] == 'd/c.tsv'
    f.unlink()
    with refused('line 2, confounds', 'd/c.tsv is not there'): manifest(tmp_path/'m.csv', files=True)

def test_all_faults_are_counted():
    m = pd.DataFrame(dict(subject=[f's{i}' for i in range(10)], tr=2000.))
    with refused('line 2,', 'line 3,', 'line 4,', 'and 7 more'): manifest(m)

def test_lines_are_those_of_the_file(tmp_path):
    f = tmp_path/'m.csv'; f.write_bytes('\ufeffsubject,session,tr,note\r\n0051459,1,2,hello\r\n\r\n007,01,2000,\r\n'.encode())
    with refused(f.name, 'line 4', 'tr'): manifest(f)
    f.write_bytes(f.read_bytes().replace(b'2000', b'2.5'))
    m = manifest(f)
    assert list(m.subject) == ['0051459', '007'] and list(m.session) == ['1', '01'] and m.note[0] == 'hello' and list(m.tr) == [2, 2.5]

@pytest.mark.parametrize('text', [b'', b'\xff\xfe\x00s', b'subject\n"a\n', b'subject,subject\na,b\n', b'id\n1\n', b'subject\n'])
def test_files_that_are_no_manifest(tmp_path, text):
    f = tmp_path/'m.csv'; f.write_bytes(text)
    if text == b'subject,subject\na,b\n': assert list(manifest(f).subject) == ['a']  # pandas renames the second
    else:
        with refused(f.name): manifest(f)

def test_values_have_one_form():
    m = manifest(pd.DataFrame(dict(subject=[1., 2.], session=[1, 2], sex=['Female', 'm'], tr=['2', 2.5], checksum=['AB'*32, None], own=[[1], {}])))
    assert list(m.subject) == ['1', '2'] and list(m.sex) == ['F', 'M'] and m.tr.dtype == float and m.checksum[0] == 'ab'*32 and m.own[0] == [1]

def test_files_are_looked_for_beside_the_manifest(tmp_path):
    (tmp_path/'a.npz').write_bytes(b'x'); (tmp_path/'l.gii').write_bytes(b'l'); (tmp_path/'r.gii').write_bytes(b'r')
    m = pd.DataFrame(dict(subject=['a', 'b'], tr=2., bold=['a.npz#k', 'l.gii,r.gii'], checksum=[hashlib.sha256(b'x').hexdigest(), None]))
    m.to_csv(tmp_path/'m.csv', index=False)
    assert len(manifest(tmp_path/'m.csv', files='sha256')) == 2
    assert locate('a.npz#k', tmp_path) == (tmp_path/'a.npz', 'k') and locate('l.gii,r.gii', tmp_path)[0] == (tmp_path/'l.gii', tmp_path/'r.gii')
    (tmp_path/'a.npz').write_bytes(b'y'); (tmp_path/'r.gii').unlink()
    with refused('line 2, checksum', 'line 3, bold', 'not there'): manifest(tmp_path/'m.csv', files='sha256')

@quick
@given(st.lists(st.dictionaries(st.sampled_from([*COLUMNS, 'other']), st.one_of(st.none(), st.text(max_size=6), st.floats(), st.integers(-10**6, 10**6), st.booleans())), max_size=6))
def test_any_table_is_a_manifest_or_one_sentence(rows):
    try: m = manifest(rows, labels=(0, 1))
    except BadInput as e: assert str(e).endswith('.')
    else: assert len(m) == len(rows) and m.subject.notna().all()

@quick
@given(st.binary(max_size=60), st.sampled_from(['{', 'PTID,VISCODE,DX\n', '{"parts": ', 'title: ']))
def test_bytes_are_read_or_refused_in_one_sentence(tmp_path, junk, head):
    f = tmp_path/'ADNIMERGE.csv'; f.write_bytes(head.encode()+junk); m = tmp_path/'x.yaml'; m.write_bytes(head.encode()+junk)
    for read in (lambda: manifest(f), lambda: build('adni', f), lambda: load_split(f, BASE), lambda: cohort(m), lambda: cohort('adni', m)):
        try: read()
        except BadInput as e: assert str(e).endswith('.')

# ---- splits
@st.composite
def tables(draw):
    n = draw(st.integers(8, 60)); rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    m = pd.DataFrame(dict(subject=[f'{i:04d}' for i in range(n)], site=rng.choice(list('ABCDEF'), n), label=rng.integers(0, 3, n)))
    if draw(st.booleans()): m['family'] = [f'f{k}' if k >= 0 else None for k in rng.integers(-n//2, n, n)]
    m = pd.concat([m.assign(session='1'), m[rng.random(n) < .4].assign(session='2', label=lambda d: rng.integers(0, 3, len(d)), family=lambda d: [f'f{k}' for k in rng.integers(0, 9*n, len(d))])])
    return m.sample(frac=1, random_state=int(rng.integers(99))).reset_index(drop=True), draw(st.integers(0, 99))

def households(m): # by hand: join until nothing changes
    g = {s:s for s in m.subject}
    while True:
        old = dict(g)
        for _,d in m.dropna(subset='family').groupby('family'):
            low = min(g[s] for s in d.subject)
            for s in d.subject: g[s] = low
        if g == old: return m.subject.map(g)

@quick
@given(tables())
def test_no_subject_and_no_family_on_two_sides(tm):
    m, seed = tm; home = households(m)
    try: s = split(m, seed=seed)
    except BadInput: return
    for parts in [list(s.values())] + [list(f) for f in kfold(m, 3, seed)]:
        assert sorted(np.concatenate(parts)) == list(range(len(m)))
        sets = [set(home.iloc[p]) for p in parts]
        assert sum(map(len, sets)) == len(set.union(*sets))

@quick
@given(tables())
def test_sizes_are_near_their_quota(tm):
    m, seed = tm; home = households(m); big = m.subject.groupby(home).nunique().max(); n = m.subject.nunique()
    try: s = split(m, seed=seed)
    except BadInput: return
    for q,p in zip((.6, .2, .2), s.values()): assert abs(m.subject.iloc[p].nunique()-q*n) < 1.01*big

@quick
@given(tables())
def test_the_order_of_rows_has_no_say(tm):
    m, seed = tm
    try: s = split(m, seed=seed)
    except BadInput: return
    other = m.sample(frac=1, random_state=seed); t = split(other, seed=seed)
    assert all(set(m.subject.iloc[s[k]]) == set(other.subject.iloc[t[k]]) for k in s) and split_hash(m, s) == split_hash(other, t)
    assert all((a == b).all() for a,b in zip(s.values(), split(m, seed=seed).values()))

@quick
@given(st.integers(20, 150), st.integers(0, 999))
def test_labels_and_sites_within_labels_are_level(n, seed):
    rng = np.random.default_rng(seed)
    m = pd.DataFrame(dict(subject=[f'{i}' for i in range(n)], site=rng.integers(0, 20, n), label=rng.integers(0, 2, n)))
    s = split(m, seed=seed)
    for q,p in zip((.6, .2, .2), s.values()):
        for k in (['label'], ['label', 'site']):
            have = m.iloc[p].groupby(k).size().reindex(m.groupby(k).size().index, fill_value=0)
            assert (abs(have-q*m.groupby(k).size()) < 2.02).all()

def test_leave_one_site_out():
    m = pd.DataFrame(dict(subject=list('abcdef'), site=list('XXYYZZ'), family=['1', '1', None, None, '2', '2']))
    parts = loso(m)
    assert list(parts) == ['X', 'Y', 'Z'] and all(set(m.site[b]) == {k} and k not in set(m.site[a]) and len(a)+len(b) == 6 for k,(a,b) in parts.items())
    with refused('family', '3 sites'): loso(m.assign(family='1'))
    with refused('one site'): loso(m.assign(site='X'))
    with refused('line 3', 'no site'): loso(m.assign(site=['X', None, 'Y', 'Y', 'Z', 'Z']))

def test_an_empty_part_is_refused():
    with refused('stays empty'): split(pd.DataFrame(dict(subject=list('abc'))), stratify=())
    with refused('sum to 1'): split(BASE, (np.nan, .5, .5), stratify=())

def test_a_saved_split_comes_back(tmp_path):
    m = pd.DataFrame(dict(subject=[f'{i:07d}' for i in range(40)], site=['NYU', 'UM_1']*20, label=[1, 1, 2, 2]*10)); s = split(m, seed=5)
    h = save_split(tmp_path/'s.json', m, s); back = load_split(tmp_path/'s.json', m[::-1])
    assert split_hash(m[::-1], back) == h != split_hash(m, split(m, seed=6)) and back.rule == s.rule
    save_split(tmp_path/'r.json', m, s, released=True)
    d = json.loads((tmp_path/'r.json').read_text())
    assert set(d) == {'train', 'val', 'test'} and set(d['train'][0]) == {'id', 'label'} and {r['label'] for r in d['train']} == {1, 2}
    assert all((load_split(tmp_path/'r.json', m)[k] == s[k]).all() for k in s)
    with refused('1 subjects', 'partial'): load_split(tmp_path/'s.json', m[1:])
    assert sum(map(len, load_split(tmp_path/'s.json', m[1:], partial=True).values())) == 39
    kin = m.assign(family=None); kin.loc[[s['train'][0], s['test'][0]], 'family'] = 'f'
    with refused('relatives'): load_split(tmp_path/'s.json', kin)
    d = json.loads((tmp_path/'s.json').read_text()); d['parts']['train'].append(d['parts']['test'].pop()); (tmp_path/'t.json').write_text(json.dumps(d))
    with refused('hash'): load_split(tmp_path/'t.json', m)
    d['parts']['test'].append(d['parts']['train'][0]); (tmp_path/'t.json').write_text(json.dumps(d))
    with refused('two parts'): load_split(tmp_path/'t.json', m)
    for text in ('', '[]', '{"train": 3}', '{"parts": {"train": [1]}}'):
        (tmp_path/'t.json').write_text(text)
        with refused('t.json'): load_split(tmp_path/'t.json', m)

# ---- leakage
A = pd.DataFrame(dict(subject=['0051459', 'b'], family=['1', '2'], checksum=['a'*64, 'b'*64]))
B = pd.DataFrame(dict(subject=['c', 'd'], family=['3', '4'], checksum=['c'*64, 'd'*64]))

def test_what_is_apart_passes_and_is_counted():
    assert check_leakage(A, B, hashes=[id_hash(['b'])]) == dict(subjects=2, families=2, checksums=2, hashes=1, runs=0)

@pytest.mark.parametrize('train,said', [(['c'], 'subjects'), (['sub-C', 'x'], 'subjects'), (A.assign(family=['1', '4']), 'families'), (A.assign(checksum=['a'*64, 'D'*64]), 'files')])
def test_what_is_shared_is_refused(train, said):
    with refused('share', said): check_leakage(train, B)

def test_ids_without_their_zeros_and_hashed_ids():
    with refused('share 1 subjects'): check_leakage(['51459'], A)
    for i in ('0051459', '51459', 'sub-51459', 'sub-0051459'):
        with refused('by hash'): check_leakage(test=A, hashes=[id_hash(['other']), id_hash([i])])

@pytest.mark.parametrize('own,written', [('NDAR_INV1AB', 'NDARINV1AB'), ('002_S_0295', '002S0295'), ('sub-NDAR_INV1AB', 'ndarinv1ab'), ('0051-459', '51459')])
def test_ids_as_preprocessing_writes_them(own, written):
    a, b = (pd.DataFrame(dict(subject=[i])) for i in (own, written))
    for train, test in ((a, b), (b, a)):
        with refused('share 1 subjects'): check_leakage(train, test)
    for i in (own, written, f'sub-{written}'):
        with refused('by hash', own): check_leakage(test=a, hashes=[id_hash([i])])
    assert check_leakage(pd.DataFrame(dict(subject=['\u4e00'])), pd.DataFrame(dict(subject=['\u4e8c'])))['subjects'] == 1  # ids without Latin letters stay apart

def test_families_are_joined_across_the_two_tables():
    link = pd.DataFrame(dict(subject=['x', 'x'], family=['3', '9']))  # x is kin to c, and to y
    with refused('families'): check_leakage(pd.concat([link[1:], pd.DataFrame(dict(subject=['y'], family=['9']))]), pd.concat([B, pd.DataFrame(dict(subject=['z'], family=['9']))]))

def test_one_number_in_two_studies_is_two_people():
    a, b = (pd.DataFrame(dict(subject=['1'], cohort=[c], family=['1'])) for c in 'ab')
    assert check_leakage(a, b)['subjects'] == 1
    with refused('share'): check_leakage(a, b.assign(cohort='a'))

def test_copies_of_noise(): # a floor that needs no data: white noise has the fewest frames in common
    rng = np.random.default_rng(0); runs = [rng.standard_normal((60, 150)) for _ in range(40)]; p = [fingerprint(x) for x in runs]
    again = [fingerprint(5*x[:,3:]+rng.standard_normal((60, 1))+.3*rng.standard_normal((60, 147))) for x in runs]
    assert {(i, j) for i,j,_ in copies(p, again, candidates=5)} == {(i, i) for i in range(40)} and copies(p[:20], p[20:]) == [] == copies([], p)
    with refused('20 or more'): fingerprint(runs[0][:,:10])
    with refused('copied runs'): check_leakage(A, B, prints=(p, again[:1]))

def test_sessions_of_one_patient_are_no_copies_and_copies_are():
    f = sample('stages/stages_schaefer400-7net_plus19sub_nogsr_dev.npz')
    if f is None: pytest.skip('no STAGES sample: set BRAINHARMONIX_DATA')
    rng = np.random.default_rng(0)
    with np.load(f) as z: runs = {k:z[k] for k in z}
    p = {k:fingerprint(x) for k,x in runs.items()}
    visits = [(p[k], p[k.replace('ses-1', 'ses-2')]) for k in p if 'ses-1' in k and k.replace('ses-1', 'ses-2') in p]
    assert len(visits) == 4 and copies([a for a,_ in visits], [b for _,b in visits]) == []
    for change in (lambda x: x[:,6:], lambda x: 3*x-7, lambda x: x+.4*x.std(1, keepdims=True)*rng.standard_normal(x.shape)):
        assert {(i, j) for i,j,_ in copies(list(p.values()), [fingerprint(change(x)) for x in runs.values()])} == {(i, i) for i in range(12)}
    assert max(in_step([a[1]], b[1])[0] for a,b in visits) < ALIKE - .15

# ---- cohort files
def test_every_cohort_of_the_paper_has_its_file(): assert set(PAPER) <= set(NAMES) and set(cohorts().index) == set(NAMES)

@pytest.mark.parametrize('name', NAMES)
def test_cohort_files(name):
    c = cohort(name)
    assert all(n.source for n in c.counts) and c.tr.source
    for t in c.tasks:
        codes = [str(v) for v in sum(t.classes.values(), [])]
        assert set(codes) <= {str(k) for k in c.labels} and len(codes) == len(set(codes)) and (t.kind != 'binary' or (len(t.classes) == 2 and t.positive in t.classes))
    for t in c.tables: assert 'subject' in t.columns
    if c.access.kind == 'restricted': assert not c.rows  # no people in git

def test_numbers_of_the_paper():
    n = lambda c, what: next(k.n for k in cohort(c).counts if what in k.what)
    assert (n('ukb', 'people'), n('ukb', 'T1'), n('ukb', 'rest'), n('abcd', 'people'), n('abcd', 'T1'), n('abcd', 'rest')) == (43112, 46455, 40162, 11221, 18139, 30771)
    assert n('ukb', 'after')+n('abcd', 'after') == 252961 and n('ukb', 'after') == 4*n('ukb', 'rest') and n('abcd', 'after') == 3*n('abcd', 'rest')
    assert n('abide1', 'with autism')+n('abide1', 'controls') == n('abide1', 'people') and n('abide2', 'with autism')+n('abide2', 'controls') == n('abide2', 'people')

@pytest.mark.parametrize('text,said', [('title: [', 'YAML'), ('3', 'no keys'), ('title: x', 'field required'), (None, 'extra inputs')])
def test_bad_cohort_files(tmp_path, text, said):
    f = tmp_path/'mine.yaml'; f.write_text(text if text else (manifest_folder()/'ukb.yaml').read_text()+'\ncolour: red\n')
    with refused('mine.yaml', said): cohort(f)

def test_folder_of_cohort_files(tmp_path, monkeypatch):
    (tmp_path/'mine.yaml').write_text((manifest_folder()/'macc.yaml').read_text()); monkeypatch.setenv('BRAINHARMONIX_MANIFESTS', str(tmp_path))
    assert list(cohorts().index) == ['mine']
    with refused('ukb', 'use one of mine'): cohort('ukb')

# ---- builders, on fabricated rows in the official layout
def write(path, *rows, sep=',', newline='\n', encoding='utf-8', quote=''):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((newline.join(sep.join(f'{quote}{c}{quote}' for c in r) for r in rows)+newline).encode(encoding)); return path

def touch(folder, *names):
    for n in names: (folder/n).parent.mkdir(parents=True, exist_ok=True); (folder/n).write_bytes(n.encode())

@pytest.mark.parametrize('names', [['eid', '31-0.0', '21003-{}.0', '54-{}.0', '25741-{}.0'], ['f.eid', 'f.31.0.0', 'f.21003.{}.0', 'f.54.{}.0', 'f.25741.{}.0'], ['eid', 'p31', 'p21003_i{}', 'p54_i{}', 'p25741_i{}']])
def test_ukb(tmp_path, names):
    head = [names[0], names[1], *(n.format(i) for n in names[2:] for i in (2, 3)), '20002-0.0']
    write(tmp_path/'ukb12.csv', head, ['1000001', 0, 61, 64, 11025, 11026, .11, .2, 'x'], ['1000002', 1, '', '', '', '', '', '', ''], ['1000003', 1, -3, '', 11027, '', '', '', -7], quote='"', encoding='utf-8-sig', newline='\r\n')
    touch(tmp_path/'ts', 'a/1000001_20227_2_0.schaefer400.csv.gz', 'a/1000001_20227_3_0.schaefer400.csv.gz', '9999999_20227_2_0.csv.gz')
    m, left = build('ukb', tmp_path/'ukb12.csv', tmp_path/'ts')
    assert list(m.subject) == ['1000001']*2 and list(m.session) == ['2', '3'] and list(m.age) == [61, 64] and list(m.sex) == ['F', 'F'] and list(m.site) == ['Cheadle', 'Reading'] and (m.tr == .735).all() and list(m.mean_fd) == [.11, .2]
    assert set(left.reason) == {'no file under ts', 'in no table'} and len(left) == 2
    assert len(build('ukb', tmp_path/'ukb12.csv')[0]) == 3
    write(tmp_path/'ukb12.csv', [names[0], names[2].format(2), names[3].format(2)], ['1', 61, 11025])
    assert list(build('ukb', tmp_path/'ukb12.csv')[0].session) == ['2']  # a table without the second visit
    write(tmp_path/'ukb12.csv', [names[0], names[2].format(2)], ['1', 61])
    with refused('none of the columns'): build('ukb', tmp_path/'ukb12.csv')
    write(tmp_path/'ukb12.csv', head[:6], ['1', 0, 61, '', 99999, ''])
    with refused('line 2', '99999', 'mapping'): build('ukb', tmp_path/'ukb12.csv')

def nda(path, head, *rows, newline='\r\n'): return write(path, head, [f'What {h} means, "quoted"'.replace('"', "'") for h in head], *rows, sep='\t', newline=newline, quote='"')

def test_abcd_4_and_5_are_one(tmp_path):
    base, two = 'baseline_year_1_arm_1', '2_year_follow_up_y_arm_1'
    visits = [('NDAR_INVA', base, 'site01', 118), ('NDAR_INVA', two, 'site01', 142), ('NDAR_INVB', base, 'site02', 120), ('NDAR_INVB', '1_year_follow_up_y_arm_1', 'site02', 132)]
    nda(tmp_path/'r4/abcd_lt01.txt', ['subjectkey', 'src_subject_id', 'eventname', 'site_id_l', 'interview_age', 'sex'], *((s, s, e, k, a, 'F') for s,e,k,a in visits))
    nda(tmp_path/'r4/acspsw03.txt', ['src_subject_id', 'eventname', 'rel_family_id'], ('NDAR_INVA', base, 7), ('NDAR_INVA', two, ''), ('NDAR_INVB', base, 7))
    nda(tmp_path/'r4/abcd_mri01.txt', ['src_subject_id', 'eventname', 'mri_info_deviceserialnumber'], *((s, e, 'HASH1') for s,e,*_ in visits))
    write(tmp_path/'r5/core/abcd-general/abcd_y_lt.csv', ['src_subject_id', 'eventname', 'site_id_l', 'rel_family_id', 'interview_age'], *((s, e, k, 7, a) for s,e,k,a in visits))
    write(tmp_path/'r5/imaging/mri_y_adm_info.csv', ['src_subject_id', 'eventname', 'mri_info_deviceserialnumber'], *((s, e, 'HASH1') for s,e,*_ in visits))
    a, b = (build('abcd', tmp_path/r)[0] for r in ('r4', 'r5'))
    common = ['subject', 'session', 'site', 'family', 'age', 'scanner', 'tr']
    pd.testing.assert_frame_equal(a[common], b[common], check_dtype=False)
    assert list(a.session) == ['baselineYear1Arm1', '2YearFollowUpYArm1', 'baselineYear1Arm1'] and set(a.family) == {'7'} and a.age[0] == pytest.approx(118/12) and set(a.sex) == {'F'}
    touch(tmp_path/'s', *(f'sub-NDARINVA/ses-baselineYear1Arm1/func/sub-NDARINVA_ses-baselineYear1Arm1_task-rest_run-{r:02d}_bold.nii.gz' for r in (1, 2)))
    m, left = build('abcd', tmp_path/'r5', tmp_path/'s')
    assert list(m.run) == ['01', '02'] and len(left) == 2

def test_abide_and_the_fetcher(tmp_path, monkeypatch):
    head = ['', 'Unnamed: 0', 'SUB_ID', 'X', 'subject', 'SITE_ID', 'FILE_ID', 'DX_GROUP', 'AGE_AT_SCAN', 'SEX', 'func_mean_fd', 'MEDICATION_NAME']
    rows = [[0, 1, 50003, 2, 50003, 'PITT', 'Pitt_0050003', 1, 24.45, 1, .08, '"aspirin, other"'], [1, 2, 50004, 3, 50004, 'PITT', 'no_filename', 1, 19.09, 1, '', ''],
            [2, 3, 51329, 4, 51329, 'MAX_MUN', 'MaxMun_d_0051329', 2, -9999, 2, .1, ''], [3, 4, 50952, 5, 50952, 'NYU', 'NYU_0050952', 2, 8.7, 2, .2, '']]
    def fake(data_dir, n_subjects, pipeline, band_pass_filtering, global_signal_regression, derivatives, quality_checked, verbose):
        d = Path(data_dir)/'ABIDE_pcp'; write(d/'Phenotypic_V1_0b_preprocessed1.csv', head, *rows)
        touch(d/pipeline/'nofilt_noglobal', *(f'{r[6]}_{derivatives[0]}.1D' for r in rows[:n_subjects] if r[6] != 'no_filename'))
    monkeypatch.setattr('nilearn.datasets.fetch_abide_pcp', fake)
    for derivative in ('rois_cc200', 'rois_cc400'):
        m, left = fetch('abide1', tmp_path/derivative, derivative=derivative, checksums=True)
        assert list(m.subject) == ['0050003', '0050952'] and list(m.tr) == [1.5, 2] and list(m.label) == ['1', '2'] and list(m.sex) == ['M', 'F'] and list(target(m, 'abide1')) == [1, 0]
        assert m.checksum[0] == hashlib.sha256(f'Pitt_0050003_{derivative}.1D'.encode()).hexdigest() and set(left.subject) == {'0050004', '0051329'} and any('TR not known' in r for r in left.reason)
    assert len(fetch('abide1', tmp_path/'three', subjects=3)[0]) == 1
    def offline(**kw): raise ConnectionError('no route')
    monkeypatch.setattr('nilearn.datasets.fetch_abide_pcp', offline)
    with refused('could not be downloaded', 'network'): fetch('abide1', tmp_path/'x')
    with refused('nilearn', '40'): fetch('adhd200', tmp_path/'x')

def test_abide2_reads_odd_names_and_letters(tmp_path):
    write(tmp_path/'ABIDEII_Composite_Phenotypic.csv', ['SITE_ID', 'SUB_ID', 'DX_GROUP', 'AGE_AT_SCAN ', 'SEX', 'NOTE'], ['ABIDEII-KUL_3', 28675, 1, 23, 1, 'caf\xe9'], ['ABIDEII-IU_1', 29571, 2, -9999, 2, ''], encoding='latin-1')
    touch(tmp_path/'f', 'sub-28675/func/sub-28675_task-rest_run-1_bold.nii.gz')
    m, _ = build('abide2', tmp_path)
    assert list(m.age)[0] == 23 and np.isnan(m.age[1]) and list(target(m, 'abide2')) == [1, 0]
    with refused('no usable row', 'TR not known'): build('abide2', tmp_path, tmp_path/'f')
    m, _ = build('abide2', tmp_path, tmp_path/'f', mapping=dict(tr=dict(sites={'ABIDEII-KUL_3':2.5})))
    assert list(m.tr) == [2.5]

def test_adhd200(tmp_path):
    head = ['ScanDir ID', 'Site', 'Gender', 'Age', 'Handedness', 'DX', 'Secondary Dx ']
    write(tmp_path/'KKI_phenotypic.csv', head, [1018959, 3, 0, 12.36, 1, 0, ''], [2026113, 3, 1, -999, -999, 1, 'anxiety'])
    write(tmp_path/'NYU_phenotypic.csv', head, [10001, 5, 1, 9, .5, 3, ''], [10002, 5, -999, 9, .5, 'pending', ''])
    m, _ = build('adhd200', tmp_path)
    assert list(m.subject) == ['1018959', '2026113', '0010001', '0010002'] and list(m.site) == ['KKI', 'KKI', 'NYU', 'NYU'] and list(m.sex[:3]) == ['F', 'M', 'M'] and pd.isna(m.sex[3]) and np.isnan(m.age[1])
    y = target(m, 'adhd200'); assert list(y[:3]) == [0, 1, 1] and np.isnan(y[3])
    write(tmp_path/'KKI_phenotypic.csv', head, [1, 3, 0, 12, 1, 7, ''])
    with refused('KKI_phenotypic.csv', 'line 2', 'DX'): build('adhd200', tmp_path)

def test_adni(tmp_path):
    write(tmp_path/'ADNIMERGE.csv', ['RID', 'PTID', 'VISCODE', 'SITE', 'AGE', 'PTGENDER', 'DX'], [2, '011_S_0002', 'bl', 11, 74.3, 'Male', 'CN'], [2, '011_S_0002', 'm12', 11, 74.3, 'Male', 'MCI'], [3, '011_S_0003', 'bl', 11, -4, 'Female', 'Dementia'], quote='"')
    touch(tmp_path/'b', 'sub-ADNI011S0002/ses-m12/func/sub-ADNI011S0002_ses-m12_task-rest_bold.nii.gz')
    m, _ = build('adni', tmp_path)
    y = target(m, 'adni'); assert list(y[:2]) == [0, 1] and np.isnan(y[2]) and np.isnan(m.age[2]) and m.rid[0] == '2'
    m, left = build('adni', tmp_path, tmp_path/'b', mapping=dict(tr=dict(value=3.)))
    assert list(m.session) == ['m12'] and len(left) == 2

def test_ppmi(tmp_path):
    write(tmp_path/'PPMI_Curated_Data_Cut_Public_20240129.csv', ['PATNO', 'EVENT_ID', 'COHORT', 'SEX', 'age', 'SITE'], *[[3000+i, 'BL', i, i%2, 60+i, 290] for i in (1, 2, 3, 4)])
    m, _ = build('ppmi', tmp_path); assert list(target(m, 'ppmi')) == [3, 0, 1, 2] and list(m.sex) == ['M', 'F', 'M', 'F']
    write(tmp_path/'p/Participant_Status_01Jan2024.csv', ['PATNO', 'COHORT', 'ENROLL_AGE'], [3001, 1, 61.5]); write(tmp_path/'p/Demographics_01Jan2024.csv', ['PATNO', 'SEX', 'EVENT_ID'], [3001, 0, 'TRANS'])
    m, _ = build('ppmi', tmp_path/'p'); assert list(m.sex) == ['F'] and list(m.age) == [61.5]

def test_hcpa_needs_the_name_of_its_score(tmp_path):
    nda(tmp_path/'ndar_subject01.txt', ['subjectkey', 'src_subject_id', 'interview_age', 'sex'], ['NDAR1', 'HCA6000001', 480, 'F'], ['NDAR2', 'HCA6000002', -9999, 'M'])
    nda(tmp_path/'flanker01.txt', ['src_subject_id', 'the_score'], ['HCA6000001', 98.5])
    m, _ = build('hcpa', tmp_path); assert m.age[0] == 40 and np.isnan(m.age[1]) and (m.tr == .8).all()
    with refused('no column score'): target(m, 'hcpa')
    f = tmp_path/'map.yaml'; f.write_text(yaml.safe_dump(dict(tables=[dict(file=['flanker01.txt'], described=True, columns=dict(subject={'from':['src_subject_id']}, score={'from':['the_score']}))])))
    y = target(build('hcpa', tmp_path, mapping=f)[0], 'hcpa'); assert y[0] == 98.5 and np.isnan(y[1])

RESULTS = 'fmriresults01/HCA6002236_V1_MR/MNINonLinear/Results'

def test_hcpa_has_a_row_for_each_run_and_direction(tmp_path):
    nda(tmp_path/'t/ndar_subject01.txt', ['subjectkey', 'src_subject_id', 'interview_age', 'sex'], ['NDAR1', 'HCA6002236', 480, 'F'])
    runs = [f'rfMRI_REST{r}_{d}' for r in (1, 2) for d in ('AP', 'PA')]; clean = 'Atlas_MSMAll_hp0_clean.dtseries.nii'
    touch(tmp_path/'f', f'{RESULTS}/../T1w_restore_brain.nii.gz', *(f'{RESULTS}/{r}/{r}{e}' for r in runs for e in ('.nii.gz', '_hp0_clean.nii.gz', '_Atlas.dtseries.nii', '_Atlas_MSMAll.dtseries.nii', '_Atlas_hp0_clean.dtseries.nii', f'_{clean}')))
    m, left = build('hcpa', tmp_path/'t', tmp_path/'f')
    assert [f'rfMRI_REST{r}_{d}' for r,d in zip(m.run, m.dir)] == runs and [Path(p).name for p in m.bold] == [f'{r}_{clean}' for r in runs] and len(left) == 0
    assert set(m.session) == {'V1'} and (m.tr == .8).all() and m.t1.notna().all() and len(manifest(m, files=True)) == 4
    for f in (tmp_path/'f').rglob('*_clean.*'): f.unlink()
    assert [Path(p).name for p in build('hcpa', tmp_path/'t', tmp_path/'f')[0].bold] == [f'{r}_Atlas_MSMAll.dtseries.nii' for r in runs]
    touch(tmp_path/'raw', *(f'sub-HCA6002236/ses-V1/func/sub-HCA6002236_ses-V1_task-{t}_dir-{d}_run-01_bold.nii.gz' for t in ('rest', 'facename') for d in ('AP', 'PA')))
    m, _ = build('hcpa', tmp_path/'t', tmp_path/'raw'); assert list(m.dir) == ['AP', 'PA'] and all('task-rest' in p for p in m.bold)

def test_preprocessed_volumes_are_not_taken_for_raw_scans(tmp_path):
    write(tmp_path/'a/index.csv', ['SUB_ID', 'FILE_ID', 'SITE_ID'], [50952, 'NYU_0050952', 'NYU']); touch(tmp_path/'a', 'NYU_0050952_func_preproc.nii.gz')
    write(tmp_path/'u/ukb.csv', ['eid', '54-2.0'], [1000001, 11025]); touch(tmp_path/'u', '1000001_20227_2_0/fMRI/rfMRI.ica/filtered_func_data_clean.nii.gz')
    for name, folder in (('abide1', 'a'), ('ukb', 'u')):
        with refused('no usable row', 'no file'): build(name, tmp_path/folder, tmp_path/folder)
        assert 'read_derivative' in cohort(name).release

def test_macc_is_renamed(tmp_path):
    write(tmp_path/'clinic.csv', ['PID', 'amyloid'], ['P1', 1], ['P2', 0])
    mapping = dict(tables=[dict(file=['*.csv', '*.tsv'], columns=dict(subject={'from':['PID']}, label={'from':['amyloid']}))], tr=dict(value=2.))
    m, _ = build('macc', tmp_path, mapping=mapping); assert list(target(m, 'macc')) == [1, 0] and (m.tr == 2).all()
    with refused('no column subject'): build('macc', tmp_path)
    for bad in (dict(tables=[3]), dict(tables=[dict(file=['x'])]), dict(colour=1)):
        with refused('mapping'): cohort('macc', bad)

def test_two_files_for_one_row_and_ids_with_a_path(tmp_path):
    write(tmp_path/'t/ADNIMERGE.csv', ['PTID', 'VISCODE'], ['a1', 'bl']); touch(tmp_path/'f', 'x/sub-a1_ses-bl_bold.nii.gz', 'y/sub-a1_ses-bl_desc-preproc_bold.nii.gz')
    with refused('for one bold', 'mapping'): build('adni', tmp_path/'t', tmp_path/'f')
    write(tmp_path/'t/ADNIMERGE.csv', ['PTID', 'VISCODE'], ['../a1', 'bl'])
    with refused('no id'): build('adni', tmp_path/'t')

def test_saved_manifests_travel_with_their_files(tmp_path):
    write(tmp_path/'t/ADNIMERGE.csv', ['PTID', 'VISCODE', 'DX'], ['a1', 'bl', 'CN']); touch(tmp_path/'d/f', 'sub-a1_ses-bl_T1w.nii.gz')
    m, _ = build('adni', tmp_path/'t', tmp_path/'d/f', checksums=True); save_manifest(tmp_path/'d/m.tsv', m)
    (tmp_path/'d').rename(tmp_path/'elsewhere')
    assert str(manifest(tmp_path/'elsewhere/m.tsv', files='sha256').t1[0]) == 'f/sub-a1_ses-bl_T1w.nii.gz'

def test_a_summary_names_nobody():
    m = pd.DataFrame(dict(subject=['SECRET1', 'SECRET2'], site=['A', 'B'], label=['1', '2'], tr=2.)); s = json.dumps(summary(m))
    assert 'SECRET' not in s and json.loads(s)['ids'] == id_hash(m.subject) and json.loads(s)['sites'] == dict(A=1, B=1)

def test_the_samples_become_manifests():
    if (d := sample('abide1')) is None or (e := sample('stages')) is None: pytest.skip('no samples: set BRAINHARMONIX_DATA')
    m, left = build('abide1', d, d)
    assert len(m) == 44 and len(left) == 2 and m.tr.between(1.5, 3).all() and manifest(m, files=True).bold.notna().all() and set(target(m, 'abide1')) == {0, 1}
    m, _ = build('stages', files=e)
    assert len(m) == 12 and m.subject.nunique() == 8 and all(locate(p)[0].is_file() and locate(p)[1] == f'sub-{s}_ses-{v}' for p,s,v in zip(m.bold, m.subject, m.session))

def test_the_demo_cohort_is_installed(): assert len(manifest(build('demo')[0], files=True)) == 2
