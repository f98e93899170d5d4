"""Records on disk: one safetensors file per scan beside shards, Zarr, HDF5 and npz. Simulated records; writes reports/storage.md and reports/storage.json.

    python benchmarks/storage.py [--records 10000] [--t1s 100] [--folder /scratch]
"""
import argparse, hashlib, json, os, platform, shutil, signal, subprocess, sys, tempfile, time
from multiprocessing import get_context
from pathlib import Path
import h5py, numcodecs, numpy as np, safetensors, zarr
from safetensors import safe_open
from safetensors.numpy import save_file
from scipy.ndimage import gaussian_filter, gaussian_filter1d
from brainharmonix import record
from brainharmonix.core import provenance
from brainharmonix.preprocess.t1 import brain_mask, mni152, read_t1
from brainharmonix.record import Store, load_record, save_record

R, LONG, REPORTS = 400, 652, Path(__file__).parents[1]/'reports'

# ---- simulated records
def lengths(n): # frames of each record: 78 to 652, log-uniform
    return np.exp(np.random.default_rng(0).uniform(np.log(78), np.log(LONG), n)).round().astype(int)

def pool(): # [R,8192] float16: 50 smooth signals, mixed, and noise
    rng = np.random.default_rng(1)
    s = gaussian_filter1d(rng.standard_normal((50, 8192), dtype='f4'), 1.5, 1)
    x = rng.standard_normal((R, 50), dtype='f4')@s; x = x/x.std(1, keepdims=True)+.5*rng.standard_normal(x.shape, dtype='f4')
    return (x/x.std(1, keepdims=True)).astype('f2')
POOL = None
def bold(i, T): # [R,T] float16, known from i
    global POOL
    if POOL is None: POOL = pool()
    at = i*7919 % (8192-LONG)
    return np.ascontiguousarray(POOL[:,at:at+T])
def arrays(i, T):
    x = bold(i, T)
    return dict(x=x, mean=x[:,0], sd=x[:,1], missing=np.zeros(T), coverage=np.ones(R), fd=np.zeros(T))
META = dict(kind='bold', tr=.735, names=[f'17Networks_LH_VisCent_ExStr_{i}' for i in range(R)], order='17', atlas='Schaefer-400', source='simulated', notes=[], decisions={})

# ---- contenders: write(folder, numbers, lengths, said) and open(folder, lengths) -> i -> x
def _name(folder, i): return folder/f'sub-{i//1000:03d}'/f'sub-{i:05d}_timeseries.safetensors'
def write_record(d, ids, T, said=lambda i: None):
    for i in ids: save_record(_name(d, i), arrays(i, T[i]), META); said(i)
def open_record(d, T): return lambda i: load_record(_name(d, i))[0]['x']
def open_unverified(d, T): return lambda i: load_record(_name(d, i), arrays='x', verify=False)[0]['x']

def write_npz(d, ids, T, said=lambda i: None):
    for i in ids: np.savez(d/f'{i:05d}.npz', **{k:np.asarray(v, 'f2' if k == 'x' else 'f4') for k,v in arrays(i, T[i]).items()}); said(i)
def open_npz(d, T):
    def read(i):
        with np.load(d/f'{i:05d}.npz') as z: return z['x']
    return read

def _shards(n):
    def write(d, ids, T, said=lambda i: None):
        part = {}
        for i in ids:
            part[str(i)] = bold(i, T[i]); said(i)
            if i % n == n-1 or i == ids[-1]: save_file(part, d/f'{i//n:05d}.safetensors'); part = {}
    def open_(d, T):
        files = {f.stem:safe_open(f, 'numpy') for f in sorted(d.glob('*.safetensors'))}
        return lambda i: files[f'{i//n:05d}'].get_tensor(str(i))
    return write, open_

CHUNK, SHARD = 64, 64*400 # frames
def _make_ragged(d, T): # records one after the other, 64 frames to a chunk
    return zarr.create_array(d/'x.zarr', shape=(int(sum(T)), R), chunks=(CHUNK, R), shards=(SHARD, R), dtype='f2', compressors=None)
def write_ragged(d, ids, T, said=lambda i: None):
    a = _make_ragged(d, T); part, at, n = [], 0, 0
    for i in ids:
        part.append(bold(i, T[i]).T); n += T[i]; said(i)
        if n >= SHARD or i == ids[-1]:
            x = np.concatenate(part); keep = len(x) if i == ids[-1] else len(x)//SHARD*SHARD # whole shards
            a[at:at+keep] = x[:keep]; at += keep; part = [x[keep:]]; n = len(x)-keep
def open_ragged(d, T):
    a, end = zarr.open_array(d/'x.zarr', mode='r'), np.cumsum(T)
    return lambda i: np.ascontiguousarray(a[int(end[i]-T[i]):int(end[i])].T)

def _make_padded(d, T, shard=100): # a record is one chunk, filled up to 652 frames
    return zarr.create_array(d/'p.zarr', shape=(len(T), R, LONG), chunks=(1, R, LONG), shards=(shard, R, LONG), dtype='f2', compressors=zarr.codecs.ZstdCodec(level=3))
def write_padded(d, ids, T, said=lambda i: None):
    a, part, first = _make_padded(d, T), [], 0
    for i in ids:
        x = np.zeros((R, LONG), 'f2'); x[:,:T[i]] = bold(i, T[i]); part.append(x); said(i)
        if len(part) == 100 or i == ids[-1]: a[first:first+len(part)] = np.stack(part); first += len(part); part = []
def open_padded(d, T):
    a = zarr.open_array(d/'p.zarr', mode='r')
    return lambda i: np.ascontiguousarray(a[i,:,:int(T[i])])

def write_h5(d, ids, T, said=lambda i: None):
    with h5py.File(d/'x.h5', 'w') as f:
        for i in ids: f.create_dataset(str(i), data=bold(i, T[i])); said(i)
def open_h5(d, T):
    f = h5py.File(d/'x.h5', 'r')
    return lambda i: f[str(i)][:]

FORMATS = { # name -> folder, write, open
    'one safetensors file per scan, verified':('record', write_record, open_record),
    'the same files, `x` alone, not verified':('record', None, open_unverified),
    'safetensors shards of 256':('s256', *_shards(256)), 'safetensors shards of 1024':('s1024', *_shards(1024)),
    'Zarr 3, shards, not compressed':('ragged', write_ragged, open_ragged), 'Zarr 3, shards, zstd':('padded', write_padded, open_padded),
    'HDF5, one file':('h5', write_h5, open_h5), 'npz per scan':('npz', write_npz, open_npz)}

# ---- tasks of worker processes
OPEN = {}
def reader(fmt, root, T):
    if fmt not in OPEN: OPEN[fmt] = FORMATS[fmt][2](Path(root)/FORMATS[fmt][0], T)
    return OPEN[fmt]
def burst(a): # records read in the same `span` seconds by each process
    fmt, root, n, seed, start, span = a
    read, rng, k = reader(fmt, root, lengths(n)), np.random.default_rng(seed), 0
    while time.time() < start: time.sleep(.001)
    while time.time() < start+span: read(int(rng.integers(n))).copy(); k += 1
    return k
def one_by_one(a): # a writer that knows of no other; what it could not write
    kind, root, ids, n = a; T, d = lengths(n), Path(root); failed = ''
    for i in ids:
        try:
            if kind == 'record': write_record(d, [i], T)
            elif kind == 'h5':
                with h5py.File(d/'x.h5', 'a') as f: f.create_dataset(str(i), data=bold(i, T[i]))
            else:
                x = np.zeros((R, LONG), 'f2'); x[:,:T[i]] = bold(i, T[i]); zarr.open_array(d/'p.zarr', mode='r+')[i] = x
        except Exception as e: failed = type(e).__name__
    return failed

def state(fmt, root, ids, T): # how many of the records are right, wrong without a word, refused
    d, out = Path(root)/FORMATS[fmt][0], dict(right=0, wrong=0, refused=0)
    try: read = FORMATS[fmt][2](d, T)
    except Exception: return dict(out, refused=len(ids))
    for i in ids:
        try: out['right' if np.array_equal(read(i), bold(i, T[i])) else 'wrong'] += 1
        except Exception: out['refused'] += 1
    return out

# ---- measuring
def size(d): # bytes, files and folders
    found = list(Path(d).rglob('*'))
    return sum(f.stat().st_size for f in found if f.is_file()), len(found)

def forget(files): # ask the kernel to drop them from its cache
    for f in files:
        with open(f, 'rb') as o: os.posix_fadvise(o.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)

def unsynced(): # leave out fsync, for the bulk
    record._sync = lambda p: None

def ms(t): return round(1e3*float(t), 3)

def write_all(root, T):
    rows = {}
    for fmt,(folder,write,_) in FORMATS.items():
        if not write: continue
        d = root/folder; d.mkdir(); sync = record._sync; unsynced(); t = time.perf_counter(); write(d, range(len(T)), T); t = time.perf_counter()-t; record._sync = sync
        b, files = size(d); rows[fmt] = dict(write_s=round(t, 1), bytes=b, entries=files); print(f'{fmt}: {t:.1f} s, {b/1e9:.2f} GB', flush=True)
    return rows

def one_process(root, T, rounds=3, n=150): # interleaved: median and 95 % of ms per record
    times, rng, opening = {f:[] for f in FORMATS}, np.random.default_rng(2), {}
    for f in FORMATS: # the time to open, then warm
        OPEN.clear(); t = time.perf_counter(); reader(f, root, T); opening[f] = time.perf_counter()-t
    t = time.perf_counter(); assert len(Store(root/'record')) == len(T); opening[next(iter(FORMATS))] = time.perf_counter()-t
    for _ in range(rounds):
        for f in FORMATS:
            read = reader(f, root, T)
            for i in rng.integers(len(T), size=n): t = time.perf_counter(); read(int(i)).copy(); times[f].append(time.perf_counter()-t)
    return {f:dict(open_ms=ms(opening[f]), ms=ms(np.median(v)), p95=ms(np.quantile(v, .95))) for f,v in times.items()}

def many_processes(root, n, pool, counts=(1,2,4,8), rounds=3, span=.35): # records per s
    rate = {f:{k:[] for k in counts} for f in FORMATS}
    pool.map(burst, [(f, root, n, 0, 0, 0) for f in FORMATS for _ in range(32)], chunksize=1)
    for r in range(rounds):
        for k in counts:
            for f in FORMATS:
                start = time.time()+.05
                rate[f][k].append(sum(pool.map(burst, [(f, root, n, 10*r+s, start, span) for s in range(k)], chunksize=1))/span)
    return {f:{k:round(float(np.median(v))) for k,v in d.items()} for f,d in rate.items()}

def cold(root, T, n=100, rounds=2): # ms per record after the kernel was asked to forget the files
    times, rng = {f:[] for f in FORMATS}, np.random.default_rng(3)
    for _ in range(rounds):
        for f,(folder,_,open_) in FORMATS.items():
            OPEN.clear(); ids = rng.choice(len(T), n, replace=False); d = root/folder
            forget([_name(d, i) for i in ids] if folder == 'record' else [d/f'{i:05d}.npz' for i in ids] if folder == 'npz' else [p for p in d.rglob('*') if p.is_file()])
            read = open_(d, T)
            for i in ids: t = time.perf_counter(); read(int(i)).copy(); times[f].append(time.perf_counter()-t)
    return {f:dict(cold_ms=ms(np.median(v)), cold_p95=ms(np.quantile(v, .95))) for f,v in times.items()}

def killed(root, T): # a writer is killed while it writes; what the records that it had finished or begun look like
    out = {}
    for fmt,(folder,write,_) in FORMATS.items():
        if not write: continue
        (root/folder).mkdir(parents=True)
        p = subprocess.Popen([sys.executable, __file__, '--write', fmt, '--folder', root, '--records', str(len(T))], stdout=subprocess.PIPE, text=True)
        p.stdout.readline(); time.sleep(1.); p.send_signal(signal.SIGKILL)
        done = [int(s) for s in p.stdout.read().split('\n')[:-1] if s.isdigit()]; p.wait()
        out[fmt] = dict(handed=len(done), **state(fmt, root, done, T))
    return out

def together(root, T, pool, k=4, n=96): # k processes write every k-th record into one place
    out = {}
    for kind,fmt in (('record','one safetensors file per scan, verified'), ('padded','Zarr 3, shards, zstd'), ('h5','HDF5, one file')):
        d = root/kind; d.mkdir(parents=True)
        if kind == 'padded': _make_padded(d, T[:n], 32)
        failed = pool.map(one_by_one, [(kind, d, range(s, n, k), len(T)) for s in range(k)], chunksize=1)
        out[fmt] = dict(written=n, error=max(failed), **state(fmt, root, range(n), T if kind != 'padded' else T[:n]))
    return out

def synced(root, T, n=200): # what fsync costs, in turns
    real, times = record._sync, {True:[], False:[]}
    for i in range(n):
        for on in times:
            record._sync = real if on else lambda p: None
            a = arrays(i, T[i]); t = time.perf_counter(); save_record(root/'s'/f'{on}{i}_timeseries.safetensors', a, META); times[on].append(time.perf_counter()-t)
    record._sync = real
    return dict(fsync_ms=ms(np.median(times[True])), no_fsync_ms=ms(np.median(times[False])))

# ---- T1
def volumes(k=6): # template and smooth noise, exactly 0 outside the brain, float16
    x, m, rng = read_t1(mni152()).x, brain_mask(), np.random.default_rng(4)
    for _ in range(k):
        n = gaussian_filter(rng.standard_normal(x.shape, dtype='f4'), .7); yield np.where(m, x+.2*n/n.std(), 0).astype('f2')

def t1s(root, n, rounds=3):
    vols, zstd, blosc = list(volumes()), numcodecs.Zstd(3), numcodecs.Blosc('lz4', 5, numcodecs.Blosc.SHUFFLE); shape = vols[0].shape
    def hashed(b): hashlib.sha256(b).digest(); return b
    def dense(f):
        with safe_open(f, 'numpy') as o: x = o.get_tensor('x')
        hashed(x.reshape(-1).view('u1').data); return x
    def plain(codec): return lambda f: np.frombuffer(codec.decode(hashed(f.read_bytes())), 'f2').reshape(shape)
    ways = {'all voxels':(lambda f,x: save_file(dict(x=x), f), dense), 'brain voxels and a bit per voxel (the record)':(lambda f,x: save_record(f, dict(x=x), dict(kind='t1')), lambda f: load_record(f)[0]['x']),
            'all voxels, zstd 3':(lambda f,x: f.write_bytes(zstd.encode(x)), plain(zstd)), 'all voxels, Blosc lz4, bytes shuffled':(lambda f,x: f.write_bytes(blosc.encode(x)), plain(blosc))}
    files = {w:[root/f'{j}_{i:03d}.safetensors' for i in range(n)] for j,w in enumerate(ways)}; root.mkdir(); writes, reads, colds, rng = ({w:[] for w in ways} for _ in range(3)), None, None, np.random.default_rng(5)
    writes, reads, colds = writes; sync = record._sync; unsynced()
    for i in range(n):
        for w,(put,_) in ways.items(): t = time.perf_counter(); put(files[w][i], vols[i%len(vols)]); writes[w].append(time.perf_counter()-t)
    record._sync = sync; os.sync()
    for _ in range(rounds):
        for w,(_,get) in ways.items():
            for i in rng.integers(n, size=12): t = time.perf_counter(); x = get(files[w][i]).copy(); reads[w].append(time.perf_counter()-t); assert np.array_equal(x[80], vols[i%len(vols)][80])
    for w,(_,get) in ways.items():
        forget(files[w][:20])
        for f in files[w][:20]: t = time.perf_counter(); get(f).copy(); colds[w].append(time.perf_counter()-t)
    return {w:dict(bytes=files[w][0].stat().st_size, write_ms=ms(np.median(writes[w])), ms=ms(np.median(reads[w])), cold_ms=ms(np.median(colds[w]))) for w in ways}

# ---- the plan on paper
COHORTS = dict(UKB=dict(t1=46_455, bold=40_162, frames=490, series=4), ABCD=dict(t1=18_139, bold=30_771, frames=375, series=3)) # counts: the paper; ABCD: 5 minutes at TR .8 s
NODES, CORES = 100, 32
GPUS, FLOPS = 8, 4e14 # assumed: 4e14 FLOP/s of bf16 kept up by each, 40 % of what an H100 can

def plan(sec_t1=None, sec_bold=None, bytes_t1=4.4e6, bytes_bold=3.6e5, cores_t1=1, cores_bold=1):
    "Rows of the table for the published cohorts: what, T1, BOLD; times are seconds of one scan on so many cores"
    t1, runs = (sum(c[k] for c in COHORTS.values()) for k in ('t1','bold'))
    copies = sum(c['bold']*c['frames']*sum(1/k for k in range(1, c['series']+1)) for c in COHORTS.values())/sum(c['bold']*c['frames'] for c in COHORTS.values())
    series = sum(c['bold']*c['series'] for c in COHORTS.values())
    hours = lambda n,s,c: None if s is None else n*s*c/3600
    h = [hours(t1, sec_t1, cores_t1), hours(runs, sec_bold, cores_bold)]; say = lambda v,u: 'not measured' if v is None else f'{v:,.1f} {u}' if v < 100 else f'{v:,.0f} {u}'
    return [('scans', f'{t1:,}', f'{runs:,}'), ('bytes of a record', f'{bytes_t1/1e6:.2f} MB', f'{bytes_bold/1e6:.3f} MB'), ('bytes', f'{t1*bytes_t1/1e9:,.0f} GB', f'{runs*bytes_bold/1e9:,.0f} GB'),
            (f'bytes, were all {series:,} series stored', '', f'{runs*bytes_bold*copies/1e9:,.0f} GB'), ('files, and as many JSON sidecars', f'{t1:,}', f'{runs:,}'),
            ('seconds of one scan', *('not measured' if s is None else f'{s:,.0f} s on {c} core{"s"*(c>1)}' for s,c in ((sec_t1, cores_t1), (sec_bold, cores_bold)))),
            ('core hours', *(say(v, 'h') for v in h)), (f'hours on {NODES} nodes of {CORES} cores', *(say(None if v is None else v/NODES/CORES, 'h') for v in h))]

def seconds_of_preprocessing(): # {t1: s, bold: s} of reports/preprocess.json, where there is one
    f = REPORTS/'preprocess.json'
    d = json.loads(f.read_text()) if f.is_file() else {}
    return {k:d.get(k) for k in ('sec_t1','sec_bold')} | {k:d.get(k, 1) for k in ('cores_t1','cores_bold')}

def feed(t1_bytes, bold_bytes, ms_t1, ms_bold): # rows: what GPUS cards ask of the disk
    f, rows = REPORTS/'speed.json', []
    if not f.is_file(): return rows
    flop = {r['part']:r['gflops']*1e9*r['seconds'] for r in json.loads(f.read_text())['rows'] if r['how'] == 'ours float32'}
    for part,what,b,t in (('S encoder','T1',t1_bytes,ms_t1), ('F encoder','BOLD',bold_bytes,ms_bold)):
        n = GPUS*FLOPS/(3*flop[part]) # forward and backward are three forwards
        rows.append((part, what, f'{n:,.0f}', f'{n*b/1e9:.2f} GB/s', f'{n*t/1e3:.1f}'))
    return rows

# ---- the report
def table(head, rows): return '\n'.join('| '+' | '.join(map(str, r))+' |' for r in (head, ['---']*len(head), *rows))

def written(r):
    b, t1, p = r['bold'], r['t1'], seconds_of_preprocessing(); own, rec = next(iter(FORMATS)), 'brain voxels and a bit per voxel (the record)'
    line = lambda f: [f, f'{b[f]["bytes"]/1e9:.2f}' if 'bytes' in b[f] else '', f'{b[f]["entries"]:,}' if 'entries' in b[f] else '', b[f].get('write_s', ''), f'{b[f]["open_ms"]:.1f}' if b[f]['open_ms'] > .1 else '', f'{b[f]["ms"]:.2f} / {b[f]["p95"]:.2f}', f'{b[f]["cold_ms"]:.2f} / {b[f]["cold_p95"]:.2f}', *(f'{v:,}' for v in b[f]['rate'].values())]
    cut = [[f, v['handed'], v['right'], v['wrong'], v['refused']] for f,v in r['killed'].items()]; tog = [[f, v['written'], v['right'], v['wrong'], v['refused'], v['error']] for f,v in r['together'].items()]
    bytes_bold = sum(c['bold']*(r['overhead']+r['frame']*c['frames']) for c in COHORTS.values())/sum(c['bold'] for c in COHORTS.values())
    best = max((f for f in FORMATS if f not in (own, 'the same files, `x` alone, not verified')), key=lambda f: b[f]['rate'][2]); shard = 'safetensors shards of 256'
    return f'''# Records on disk

- commit {(r['commit'] or '?')[:10]} · seeds 0 to 5 · device: {r['cores']} cores of {r['cpu']}, {r['memory']} GB memory · safetensors {safetensors.__version__}, zarr {zarr.__version__}, h5py {h5py.__version__} · data: simulated
- {r['n']:,} BOLD records, float16 [400, T], T log-uniform from 78 to 652 (mean {r['frames']:.0f}); `python benchmarks/storage.py --records {r['n']}`, {r['minutes']:.1f} minutes

Contenders take turns and the median is given. The record also holds five small arrays, the meta data and the checksum, and hashes what it reads; npz holds the arrays; the others hold `x` alone, and nothing tells them that a bit has flipped.
Warm: files in the page cache. Cold-ish: after `posix_fadvise(DONTNEED)`, as the caches of the disk itself cannot be dropped; {r['forgets']}. Times to open are of all {r['n']:,} records: listing and sorting the folder for the record, opening handles for the rest.

{table(['container', 'GB', 'files and folders', 'write, s', 'open, ms', 'one record warm, ms (median / 95 %)', 'cold-ish, ms (median / 95 %)', *(f'records/s, {k} process'+'es'*(k>1) for k in r['counts'])], [line(f) for f in FORMATS])}

Written without `fsync`, by one process. A record that is forced to the disk takes {r['fsync']['fsync_ms']:.1f} ms in place of {r['fsync']['no_fsync_ms']:.1f} ms (in turns), which is nothing beside the seconds that make it.

A writer was killed (kill -9) one second into its work. Of the records that it had been handed:

{table(['container', 'handed', 'right', 'wrong, nothing said', 'cannot be read'], cut)}

Four processes write every fourth record into one place, not knowing of each other:

{table(['container', 'written', 'right', 'wrong, nothing said', 'cannot be read', 'error'], tog)}

## The T1

{r['t1s']} volumes of 160x192x160 in float16 ({r['voxels']:.0%} of the voxels lie in the brain; the rest is exactly 0): the MNI152 template with smooth noise. Each way hashes what it reads.

{table(['what is stored', 'MB', 'write, ms', 'read warm, ms', 'read cold-ish, ms'], [[w, f'{v["bytes"]/1e6:.2f}', v['write_ms'], v['ms'], v['cold_ms']] for w,v in t1.items()])}

## Decision

One safetensors file per scan, T1s as brain voxels with one bit per voxel.

- Speed does not decide: a verified record takes {b[own]['ms']:.2f} ms, and two processes read {b[own]['rate'][2]:,} a second, where {GPUS} GPUs ask for hundreds (below). Left unverified the same files give {b['the same files, `x` alone, not verified']['rate'][2]:,}; the fastest other container ({best}) {b[best]['rate'][2]:,}.
- What decides is writing. Records are made over days by many processes that die. A file per scan is whole or absent, needs no coordination, and a second run sees by the name what is done. A shard loses what its writer had collected; Zarr fills what was not written with zeros and says nothing; two writers of one Zarr shard overwrite each other; HDF5 has one writer.
- Shards of safetensors (256), not verified, read {b[shard]['rate'][2]/b[own]['rate'][2]:.1f} times as many records per second as verified files from a warm cache, and save inodes; cold, the first read of a shard costs more. They are not worth a second format here: {sum(c['t1']+c['bold'] for c in COHORTS.values()):,} files are few for a file system, and whoever trains from a network file system with slow metadata can pack a copy.
- Brain voxels alone save {1-t1[rec]['bytes']/t1['all voxels']['bytes']:.0%} of a T1. zstd would save {1-t1['all voxels, zstd 3']['bytes']/t1[rec]['bytes']:.0%} of what is left and Blosc {1-t1['all voxels, Blosc lz4, bytes shuffled']['bytes']/t1[rec]['bytes']:.0%} (read in {t1['all voxels, Blosc lz4, bytes shuffled']['ms']:.1f} ms, ours in {t1[rec]['ms']:.1f} ms), but every reader would then need a codec, where safetensors and `numpy.unpackbits` do now; BOLD in float16 shrinks by {1-b['Zarr 3, shards, zstd']['bytes']/b['Zarr 3, shards, not compressed']['bytes']:.0%} with zstd.

## The published cohorts, on paper

UKB and ABCD, {NODES} nodes with {CORES} cores each. Series at longer TRs are cut from the originals when they are read, so they are not stored.

{table(['', 'T1', 'BOLD'], plan(p['sec_t1'], p['sec_bold'], t1[rec]['bytes'], bytes_bold, p['cores_t1'], p['cores_bold']))}

To keep {GPUS} GPUs busy, {FLOPS:.0e} FLOP/s each (assumed; FLOPs of one session from `speed.json`, times three for training, no masking), the disks must give:

{table(['stage', 'reads', 'records/s', 'bytes', 'cores that read and verify'], feed(t1[rec]['bytes'], bytes_bold, t1[rec]['ms'], b[own]['ms']))}

So the bottleneck of pretraining S is reading T1s, not the container: all of them together fit into the memory of one large node, whose page cache serves from the second epoch on, and `verify=False` after a first verified epoch saves the hash. BOLD asks for little.
For preprocessing the bottleneck is registration on the cores and reading the raw scans from the shared file system; records are small beside those.
'''

def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0]); a.add_argument('--records', type=int, default=10000); a.add_argument('--t1s', type=int, default=100)
    a.add_argument('--folder', type=Path, help='where the temporary files go'); a.add_argument('--write', help=argparse.SUPPRESS); a = a.parse_args()
    if a.write: # the writer that will be killed
        T = lengths(a.records); bold(0, 78); print('ready', flush=True); FORMATS[a.write][1](a.folder/FORMATS[a.write][0], range(a.records), T, lambda i: print(i, flush=True)); time.sleep(60)
    T = lengths(a.records); need = 8*T.sum()*R*2+4e9; clock = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=a.folder, prefix='storage-') as tmp:
        root = Path(tmp)
        if (free := shutil.disk_usage(root).free) < need: sys.exit(f'{root} has {free/1e9:.0f} GB free, {need/1e9:.0f} GB are needed: name another --folder, or fewer --records')
        two = []
        for t in (100, 500): two.append(save_record(root/f'{t}_timeseries.safetensors', arrays(0, t), META).stat().st_size)
        frame = (two[1]-two[0])/400; fsync = synced(root, T); (root/'all').mkdir(); bolds = write_all(root/'all', T); os.sync(); print('written and synced', flush=True)
        with get_context('spawn').Pool(8) as pool: rate = many_processes(root/'all', len(T), pool); tog = together(root/'together', T, pool)
        print(rate, tog, flush=True)
        for f,v in one_process(root/'all', T).items(): bolds.setdefault(f, {}).update(v, rate=rate[f])
        for f,v in cold(root/'all', T).items(): bolds[f].update(v)
        OPEN.clear(); shutil.rmtree(root/'all'); cut = killed(root/'killed', T); print(cut, flush=True); vols = t1s(root/'t1', a.t1s)
    cpu = next((s.split(':')[1].strip() for s in open('/proc/cpuinfo') if 'model name' in s), platform.machine()); own = next(iter(FORMATS))
    forgets = 'here that made reading slower, so files came from the disk' if bolds[own]['cold_ms'] > 1.5*bolds[own]['ms'] else 'here that changed little, so these figures may still be warm'
    r = dict(data='simulated', n=a.records, t1s=a.t1s, frames=float(T.mean()), counts=[1,2,4,8], frame=frame, overhead=two[0]-100*frame, bold=bolds, fsync=fsync, killed=cut, together=tog, t1=vols, voxels=float(brain_mask().mean()), forgets=forgets,
             cores=os.cpu_count(), cpu=cpu, memory=round(os.sysconf('SC_PAGE_SIZE')*os.sysconf('SC_PHYS_PAGES')/1e9), commit=provenance()['commit'], minutes=(time.perf_counter()-clock)/60)
    (REPORTS/'storage.json').write_text(json.dumps(r, indent=1)+'\n'); (REPORTS/'storage.md').write_text(written(r)); print(f'{r["minutes"]:.1f} minutes; reports/storage.md')

if __name__ == '__main__': main()
