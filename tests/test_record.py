"A record comes back bit for bit or is refused in one sentence; writers may die, headers may lie"
import json, os, pickle, random, signal, subprocess, sys, time, tracemalloc
import numpy as np, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.extra.numpy import arrays as np_arrays
from safetensors.numpy import save, save_file
from brainharmonix.core import BadInput, sweep
from brainharmonix.record import FORMS, Store, _json, _sum, content_hash, load_record, part, save_record

R, T = 9, 14
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

def run(seed=0, R=R, T=T):
    rng = np.random.default_rng(seed)
    return dict(x=rng.standard_normal((R,T)), mean=rng.random(R), sd=rng.random(R), missing=np.arange(T) == 3, coverage=rng.random(R), fd=np.r_[np.nan, rng.random(T-1)])
META = dict(kind='bold', tr=.735, names=[f'parcel "{i}" é' for i in range(R)], order=None, atlas='a', source='s', notes=['n'], decisions=dict(b=1, a=[2, dict(c=3.5)]))

def refused(call, *words):
    with pytest.raises(BadInput) as e: call()
    said = str(e.value); assert said.endswith('.') and '\n' not in said and '; ' in said, said
    for w in words: assert str(w) in said, said
    return said

@pytest.fixture
def rec(tmp_path): return save_record(tmp_path/'sub-01_timeseries.safetensors', run(), META)

# ---- what goes in comes out
def test_types_are_the_stated_ones(rec):
    a, meta = load_record(rec, 'bold')
    assert {k:v.dtype.str[1:] for k,v in a.items()} == {k:f[:2] for k,f in FORMS['bold'].items()}
    for k,v in run().items(): assert np.array_equal(a[k], np.asarray(v).astype(a[k].dtype), equal_nan=k == 'fd')
    assert {k:v for k,v in meta.items() if k != 'sha256'} == META and len(meta['sha256']) == 64
    assert all(v.flags.writeable for v in a.values())

@quick
@given(np_arrays(np.float16, st.tuples(*[st.integers(1, 9)]*3), elements=st.one_of(st.just(0.), st.just(-0.), st.floats(-9, 9, width=16))))
def test_a_t1_comes_back_to_the_bit(tmp_path, x):
    a, meta = load_record(save_record(tmp_path/'a_T1w.safetensors', dict(x=x), dict(kind='t1', shape='mine')), 't1')
    assert a['x'].tobytes() == x.tobytes() and a['x'].shape == x.shape and set(a) == {'x'} and meta['shape'] == 'mine'

@quick
@given(st.sampled_from(['f2','f4','f8','i1','i2','i4','i8','u1','u2','u4','?']), st.sampled_from('<>'), st.booleans(), st.lists(st.integers(0, 4), max_size=3))
def test_further_arrays_keep_type_and_shape(tmp_path, kind, order, turned, shape):
    y = np.random.default_rng(0).integers(0, 2, shape).astype(kind).astype(np.dtype(kind).newbyteorder(order)); y = y.T if turned else y
    a = load_record(save_record(tmp_path/'a.safetensors', run() | dict(y=y), META))[0]['y']
    assert a.shape == y.shape and a.dtype == np.dtype(kind) and np.array_equal(a, y)

def test_meta_is_plain_json(tmp_path):
    f = save_record(tmp_path/'a.safetensors', run(), dict(META, a=np.float32(.5), b=np.arange(3), c=np.nan, d=(1, np.inf), e=tmp_path, f=np.bool_(True)))
    m = load_record(f)[1]; assert (m['a'], m['b'], m['c'], m['d'], m['e'], m['f']) == (.5, [0,1,2], None, [1, None], str(tmp_path), True)
    refused(lambda: save_record(f, run(), dict(META, a={1,2})), 'set'); refused(lambda: save_record(f, run(), dict(META, a=b'x')), 'bytes')

def test_checksum_is_of_the_content(tmp_path):
    "Neither the order of arrays nor that of keys counts; every value does"
    sha = lambda a, m: load_record(save_record(tmp_path/'a.safetensors', a, m))[1]['sha256']
    a, turn = run(), lambda d: dict(reversed(list(d.items()))); one = sha(a, META)
    assert one == sha(turn(a), dict(turn(META), decisions=turn(META['decisions']))) == sha(a, load_record(tmp_path/'a.safetensors')[1])
    b = run(); b['fd'][5] += 1e-3
    assert len({one, sha(b, META), sha(a, dict(META, tr=.736)), sha(a | dict(y=np.zeros(1)), META), sha(a | dict(z=np.zeros(1)), META)}) == 5

def test_colleagues_may_read_it(tmp_path, rec):
    (tmp_path/'plain').open('w').close(); assert rec.stat().st_mode == (tmp_path/'plain').stat().st_mode

def test_same_content_same_bytes(tmp_path):
    one, two = (save_record(tmp_path/f'{i}.safetensors', run(), META).read_bytes() for i in (1, 2)); assert one == two

# ---- parts
@quick
@given(st.slices(R).filter(lambda s: s.step in (None, 1)), st.slices(T).filter(lambda s: s.step in (None, 1)))
def test_part_is_numpy_indexing(tmp_path, i, j):
    f = tmp_path/'a_timeseries.safetensors'
    if not f.exists(): save_record(f, run(), META)
    x = load_record(f)[0]['x']; p = part(f, 'x', i, j)
    assert np.array_equal(p, x[i,j]) and p.shape == x[i,j].shape and p.dtype == x.dtype and np.array_equal(part(f, 'x', i), x[i])

def test_part_of_a_t1_and_bad_parts(tmp_path, rec):
    x = np.random.default_rng(0).standard_normal((4,5,6)).astype('f2'); f = save_record(tmp_path/'a_T1w.safetensors', dict(x=x), dict(kind='t1'))
    assert np.array_equal(part(f, 'x', slice(1, 3), slice(None), slice(-2, None)), x[1:3,:,-2:])
    refused(lambda: part(rec, 'x', 3)); refused(lambda: part(rec, 'x', slice(0, 4, 2))); refused(lambda: part(rec, 'q'), 'x'); refused(lambda: part(rec, 'mean', slice(1), slice(1)))

def test_subset_is_verified_by_itself(rec):
    "Damage in one array does not keep another from being read, and is found in its own"
    b = bytearray(rec.read_bytes()); i = b.find(np.asarray(run()['mean'], 'f4').tobytes()); b[i+1] ^= 4; rec.write_bytes(b)
    assert np.array_equal(load_record(rec, arrays='x')[0]['x'], run()['x'].astype('f2')); assert set(load_record(rec, arrays=['sd','fd'])[0]) == {'sd','fd'}
    refused(lambda: load_record(rec, arrays=['x','mean']), 'mean does not match'); assert load_record(rec, verify=False)[0]['mean'].shape == (R,)

# ---- damage
def test_every_flipped_bit_is_noticed(tmp_path):
    f = save_record(tmp_path/'a.safetensors', run(R=2, T=5), dict(META, names=None)); good, bad = f.read_bytes(), tmp_path/'b.safetensors'; rng = random.Random(0)
    for i in range(len(good)):
        b = bytearray(good); b[i] ^= 1 << rng.randrange(8); bad.write_bytes(b); refused(lambda: load_record(bad), bad)

def test_every_flipped_bit_of_a_t1(tmp_path):
    x = np.where(np.indices((5,3,3)).sum(0) % 3, 1.5, 0); f = save_record(tmp_path/'a.safetensors', dict(x=x), dict(kind='t1')); good, bad = f.read_bytes(), tmp_path/'b.safetensors'
    for i in range(len(good)):
        for k in (0, 5): b = bytearray(good); b[i] ^= 1 << k; bad.write_bytes(b); refused(lambda: load_record(bad), bad)

def test_cut_off_or_too_long(rec):
    good = rec.read_bytes()
    for n in [*range(0, 64, 3), *range(64, len(good), 97), len(good)-1]: rec.write_bytes(good[:n]); refused(lambda: load_record(rec))
    for tail in (b'\0', b' ', good): rec.write_bytes(good+tail); refused(lambda: load_record(rec))

def test_not_a_record(tmp_path, rec):
    f = tmp_path/'other.safetensors'
    for data in (save(dict(x=np.zeros(3, 'f4'))), save(dict(x=np.zeros(3)), dict(record='1')), save(dict(x=np.zeros(3)), dict(record='{"version":1}')), save(dict(x=np.zeros(3)), dict(record='{"version":1,"meta":[],"sums":3,"sha256":""}')), save({}, dict(record='{"version":2}')), save({}, dict(record='['*10**5)), b'\x80\x04K\x01.', os.urandom(300)):
        f.write_bytes(data); refused(lambda: load_record(f), f)
    refused(lambda: load_record(tmp_path/'none.safetensors'), 'not exist'); refused(lambda: load_record(tmp_path), 'not a file'); refused(lambda: load_record(rec, 't1'), 'kind bold'); refused(lambda: load_record(rec, arrays='y'), 'coverage')

# ---- lies: a header whose checksum is right and whose sizes are not
def lie(path, stored, meta=dict(kind='t1')):
    sums = {k:_sum(k, v) for k,v in stored.items()}
    save_file(stored, path, dict(record=_json(dict(version=1, meta=meta, sums=sums, sha256=content_hash(sums, meta))))); return path

@pytest.mark.parametrize('shape', [[10**6]*3, [2**62, 4, 1], [-8, -1, 1], [3, 3, 3], [0, 5, 5]])
def test_lying_shapes_allocate_nothing(tmp_path, shape):
    f = lie(tmp_path/'a.safetensors', {'x.shape':np.array(shape), 'x.bits':np.zeros(1, 'u1'), 'x.values':np.zeros(0, 'f2')})
    tracemalloc.start(); refused(lambda: load_record(f)); peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 1e6

def test_ten_terabytes(rec):
    good = rec.read_bytes(); n = 8+int.from_bytes(good[:8], 'little'); head = json.loads(good[8:n]); head['x'] |= dict(shape=[400, 12_500_000_000], data_offsets=[0, 10**13])
    h = json.dumps({k:head[k] for k in ('__metadata__','x')}).encode(); rec.write_bytes(len(h).to_bytes(8, 'little')+h+good[n:])
    tracemalloc.start(); refused(lambda: load_record(rec)); peak = tracemalloc.get_traced_memory()[1]; tracemalloc.stop()
    assert peak < 1e6
    rec.write_bytes((2**63).to_bytes(8, 'little')+good[8:]); refused(lambda: load_record(rec))

# ---- bad input
@pytest.mark.parametrize('change, word', [(dict(x=np.full((R,T), np.nan)), 'NaN'), (dict(x=np.full((R,T), 7e4)), 'float16'), (dict(x=np.zeros((R,T+1))), 'T='), (dict(mean=np.zeros(R+1)), 'mean'), (dict(x=None), 'lacks x'),
    (dict(missing=None), 'lacks missing'), (dict(y=np.array(['a'])), 'numbers'), (dict(y=np.array([None])), 'numbers'), (dict(x=np.zeros((R,T))+1j), 'numbers'), (dict(fd=np.zeros((T,1))), 'fd')])
def test_unfit_arrays(rec, change, word):
    old = rec.read_bytes(); refused(lambda: save_record(rec, run() | change, META), rec, word); assert rec.read_bytes() == old

def test_unfit_names_and_kinds(tmp_path):
    refused(lambda: save_record(tmp_path/'a.npz', run(), META), '.safetensors'); refused(lambda: save_record(tmp_path/'a.safetensors', run(), dict(tr=2)), 'kind'); refused(lambda: save_record(tmp_path/'a.safetensors', run(), dict(kind='t1')), 'shape')
    assert not list(tmp_path.iterdir())

# ---- a writer that dies
def test_kill_leaves_whole_records(tmp_path):
    "kill -9 in the middle of writing: every file that bears a record's name is a whole record"
    code = f'''import sys, numpy as np
from brainharmonix.record import save_record
x = np.random.default_rng(0).standard_normal((400, 3000)); print('go', flush=True)
for i in range(10**6): save_record({str(tmp_path)!r}+f'/sub-{{i % 3}}_timeseries.safetensors', dict(x=x, mean=x[:,0]+i, sd=x[:,1], missing=x[0] > 9), dict(kind='bold', i=i))'''
    left = 0
    for k in range(3):
        p = subprocess.Popen([sys.executable, '-c', code], stdout=subprocess.PIPE); p.stdout.readline(); time.sleep(.25+.013*k); p.send_signal(signal.SIGKILL); p.wait(); p.stdout.close()
        s = Store(tmp_path); assert len(s)
        for a,m in (s[i] for i in range(len(s))): assert a['x'].shape == (400, 3000)
        left += len(list(tmp_path.glob('.brainharmonix-*')))
    sweep(tmp_path); assert {f.suffix for f in tmp_path.iterdir()} == {'.safetensors'} and left < 10

def test_file_and_folder_are_forced_to_the_disk(tmp_path, monkeypatch):
    "The file before it takes its name, the folder after"
    seen, real = [], os.fsync
    monkeypatch.setattr(os, 'fsync', lambda fd: (seen.append((os.readlink(f'/proc/self/fd/{fd}'), (tmp_path/'a.safetensors').exists())), real(fd)))
    save_record(tmp_path/'a.safetensors', run(), META)
    assert [os.path.basename(p) for p,_ in seen] == ['a.safetensors', tmp_path.name] and [e for _,e in seen] == [False, True]

# ---- many
def test_store(tmp_path):
    for s in ('02','01','10'): save_record(tmp_path/f'sub-{s}'/'func'/f'sub-{s}_task-rest_timeseries.safetensors', run(int(s)), META)
    save_record(tmp_path/'sub-01'/'anat'/'sub-01_T1w.safetensors', dict(x=np.ones((2,2,2))), dict(kind='t1'))
    (tmp_path/'.brainharmonix-x-1-y').mkdir(); (tmp_path/'.brainharmonix-x-1-y'/'sub-09_timeseries.safetensors').write_bytes(b'half'); (tmp_path/'tokens.safetensors').write_bytes(b'')
    s = pickle.loads(pickle.dumps(Store(tmp_path, 'bold'))); assert len(s) == 3 and s.subjects == ['01','02','10'] and np.array_equal(s[1][0]['x'], run(2)['x'].astype('f2'))
    assert len(Store(tmp_path)) == 4 and s[1:].subjects == ['02','10'] and Store(list(reversed(s.files))).files == s.files and len(Store([])) == 0
    with pytest.raises(IndexError): s[3]
    refused(lambda: Store(tmp_path/'none'), 'folder'); refused(lambda: Store(tmp_path, 'eeg'), 'eeg')
    os.rename(s.files[0], s.files[0].with_name('01_timeseries.safetensors')); refused(lambda: Store(tmp_path).subjects, '01_timeseries')
