"""Files that are cut off, flipped bit by bit or built to deceive: every reader gives a result or one sentence, in bounded time and memory.
`BRAINHARMONIX_FUZZ=1000` runs that many examples per form."""
import gzip, io, json, os, resource, signal, struct, sys, tempfile, zlib
from contextlib import contextmanager
from pathlib import Path
import nibabel as nib, numpy as np, pandas as pd, pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from brainharmonix.cohort import manifest
from brainharmonix.core import BadInput
from brainharmonix.preprocess.bold import find_tr, read_bold, read_confounds, save_ptseries
from brainharmonix.preprocess.t1 import load_image, read_t1
from brainharmonix.record import load_record, save_record

EXAMPLES = int(os.environ.get('BRAINHARMONIX_FUZZ', 0)) or 25
SECONDS, BYTES = 6, 5*10**8  # of one example, at most: time, and memory beyond what the process has
fuzz = settings(max_examples=EXAMPLES, deadline=None, derandomize='BRAINHARMONIX_FUZZ' not in os.environ, database=None, suppress_health_check=list(HealthCheck))
needs_linux = pytest.mark.skipif(not sys.platform.startswith('linux'), reason='the limit of memory is set and read as on Linux')

class Hang(BaseException): "Not an Exception: no reader may swallow it"

@contextmanager
def bounded():
    "Stop after SECONDS; no allocation beyond BYTES"
    def stop(*_): raise Hang(f'longer than {SECONDS} s')
    soft, hard = resource.getrlimit(resource.RLIMIT_AS); used = int(open('/proc/self/statm').read().split()[0])*resource.getpagesize()
    before = signal.signal(signal.SIGALRM, stop); signal.setitimer(signal.ITIMER_REAL, SECONDS); resource.setrlimit(resource.RLIMIT_AS, (used+BYTES, hard))
    try: yield
    finally: resource.setrlimit(resource.RLIMIT_AS, (soft, hard)); signal.setitimer(signal.ITIMER_REAL, 0); signal.signal(signal.SIGALRM, before)

def answers(call):
    "The result, or the sentence of BadInput; nothing else may come out"
    with bounded():
        try: return call()
        except BadInput as e:
            said = str(e); assert said.endswith('.') and '\n' not in said and len(said) < 1500, said
            return said

def refuses(call, *words):
    said = answers(call); assert isinstance(said, str), f'accepted: {said}'
    for w in words: assert str(w) in said, said

# ---- files that are right
R, T = 8, 30
RNG = np.random.default_rng(0)
X = RNG.standard_normal((R,T)).astype('f4')
NAMES = tuple(f'7Networks_LH_P_{i+1}' for i in range(R))

def written(save, end): # -> bytes
    with tempfile.TemporaryDirectory() as d: save(p := Path(d)/f'x{end}'); return p.read_bytes()

def volume(): # each parcel is two voxels
    v = nib.Nifti1Image(np.repeat(X.reshape(4,2,1,T), 2, 2), np.diag([3,3,3,1])); v.header.set_xyzt_units('mm', 'sec'); v.header.set_zooms((3,3,3,2)); return v

ATLAS = written(lambda p: nib.save(nib.Nifti1Image(np.repeat(np.arange(R).reshape(4,2,1)+1, 2, 2).astype('i2'), np.diag([3,3,3,1])), p), '.nii')
def cortex(side): return nib.cifti2.BrainModelAxis.from_surface(np.arange(2*R), 2*R, f'CIFTI_STRUCTURE_CORTEX_{side}')
HEAD = nib.Nifti1Image(RNG.integers(0, 900, (9,10,8)).astype('i2'), np.diag([2.,2,2,1]))
META = dict(kind='bold', tr=2., names=list(NAMES), order='7', atlas='', source='x', notes=[], decisions={})
ARRAYS = dict(x=X, mean=X.mean(1), sd=X.std(1), missing=np.zeros(T, bool), coverage=np.ones(R))
FORMS = {'.npy':lambda p: np.save(p, X), '.csv':lambda p: pd.DataFrame(X, index=NAMES).to_csv(p), '.tsv':lambda p: pd.DataFrame(X).to_csv(p, sep='\t', header=False, index=False), '.txt':lambda p: np.savetxt(p, X, '%.4f'),
         '.1D':lambda p: pd.DataFrame(X.T, columns=NAMES).to_csv(p, sep='\t', index=False), '.csv.gz':lambda p: pd.DataFrame(X, index=NAMES).to_csv(p), '.nii':lambda p: nib.save(volume(), p), '.nii.gz':lambda p: nib.save(volume(), p),
         '.ptseries.nii':lambda p: save_ptseries(p, X, 2., NAMES), '.dtseries.nii':lambda p: nib.save(nib.Cifti2Image(np.tile(np.repeat(X, 2, 0), (2,1)).T.copy(), (nib.cifti2.SeriesAxis(0, 2, T), cortex('LEFT')+cortex('RIGHT'))), p),
         '.lh.mgh':lambda p: nib.save(nib.MGHImage(np.repeat(X, 2, 0).reshape(2*R,1,1,T), np.eye(4)), p), '.lh.mgz':lambda p: nib.save(nib.MGHImage(np.repeat(X, 2, 0).reshape(2*R,1,1,T), np.eye(4)), p),
         '.L.func.gii':lambda p: nib.save(nib.gifti.GiftiImage(darrays=[nib.gifti.GiftiDataArray(np.repeat(X[:,t], 2)) for t in range(T)]), p),
         '_timeseries.safetensors':lambda p: save_record(p, ARRAYS, META)}
RIGHT = {e:written(s, e) for e,s in FORMS.items()}
LABELS = (np.repeat(np.arange(1,R+1), 2),)*2 # 2R parcels: R in each hemisphere

def bold_of(d, end, data): # the run in folder d, its other files beside it
    (d/'atlas.nii').write_bytes(ATLAS); kw = dict(tr=2., trust_tr=True); (f := d/f'x{end}').write_bytes(data)
    if end in ('.nii','.nii.gz'): kw['atlas'] = d/'atlas.nii'
    if '.lh.' in end or '.L.' in end or 'dtseries' in end: kw['labels'] = LABELS
    if '.lh.' in end or '.L.' in end: (d/f'x{end.replace(".lh.", ".rh.").replace(".L.", ".R.")}').write_bytes(RIGHT[end])
    return read_bold(f, **kw)

# ---- what may happen to a file
EXTREME = [struct.pack(f, v) for f,v in (('<i',-1), ('<i',2**31-1), ('<h',-1), ('<h',2**15-1), ('<h',0), ('<f',np.inf), ('<f',np.nan), ('<f',-1e30), ('<f',1e-40), ('<d',np.nan), ('<q',2**62), ('<q',-1), ('>i',2**31-1), ('>i',2**20), ('<i',2**20), ('>i',0))] + [b'999999999999', b'\0'*8, b'\xff'*8, b'\n', b'"', b'<', b',', b'nan', b'1e999']

@st.composite
def spoilt(draw, data):
    "The bytes after one to four accidents, most of them in the first 600"
    b = bytearray(data)
    for _ in range(draw(st.integers(1,4))):
        if not b: break
        top = len(b)-1; at = draw(st.integers(0, min(top, 600)) | st.integers(0, top)); kind = draw(st.sampled_from(['flip','flip','extreme','cut','drop','repeat','zero','noise']))
        n = draw(st.integers(1, 64))
        if kind == 'flip': b[at] ^= 1 << draw(st.integers(0,7))
        elif kind == 'extreme': v = draw(st.sampled_from(EXTREME)); b[at:at+len(v)] = v
        elif kind == 'cut': del b[draw(st.integers(0, top)):]
        elif kind == 'drop': del b[at:at+n]
        elif kind == 'repeat': b[at:at] = b[at:at+n]
        elif kind == 'zero': b[at:at+n] = bytes(len(b[at:at+n]))
        else: b[at:at+n] = draw(st.binary(min_size=n, max_size=n))
    return bytes(b)

def forms(data): # of a .gz also what is inside it: there no checksum notices
    inside = zlib.decompressobj(31).decompress(data) if data[:2] == b'\x1f\x8b' else None
    return spoilt(data) if inside is None else spoilt(data) | spoilt(inside).map(lambda b: gzip.compress(b, 1))

@pytest.fixture(scope='module')
def d(tmp_path_factory): return tmp_path_factory.mktemp('fuzz')

@pytest.mark.parametrize('end', FORMS)
def test_right_files_are_read(d, end):
    b = answers(lambda: bold_of(d, end, RIGHT[end]))
    assert b.x.shape[1] == T and np.isfinite(b.x).all() and b.tr == 2, b

@needs_linux
@pytest.mark.parametrize('end', FORMS)
def test_bold(d, end):
    @fuzz
    @given(forms(RIGHT[end]))
    def go(data):
        b = answers(lambda: bold_of(d, end, data))
        assert isinstance(b, str) or b.x.ndim == 2 and np.isfinite(b.x).all() and .05 <= b.tr <= 20
    go()

@needs_linux
@pytest.mark.parametrize('end', ['.nii','.nii.gz'])
def test_t1(d, end):
    @fuzz
    @given(forms(written(lambda p: nib.save(HEAD, p), end)))
    def go(data):
        (d/f't1{end}').write_bytes(data); v = answers(lambda: load_image(d/f't1{end}')[1])
        assert isinstance(v, str) or v.dtype == np.float32
        assert isinstance(answers(lambda: read_t1(d/f't1{end}', 4.)), str) # such a head is never one in MNI space
    go()

CONFOUNDS = pd.DataFrame(RNG.standard_normal((T,6)), columns=['trans_x','trans_y','trans_z','rot_x','rot_y','rot_z']).assign(motion_outlier00=0).to_csv(sep='\t', index=False).encode()
@needs_linux
def test_confounds(d):
    @fuzz
    @given(forms(CONFOUNDS))
    def go(data):
        (d/'c.tsv').write_bytes(data); c = answers(lambda: read_confounds(d/'c.tsv', T)); assert isinstance(c, str) or c[0].shape[0] == T and np.isfinite(c[0]).all()
    go()

@needs_linux
def test_sidecar(d):
    @fuzz
    @given(forms(json.dumps(dict(RepetitionTime=2., SliceTiming=[0,1.,.5])).encode()))
    def go(data):
        (d/'side.json').write_bytes(data); t = answers(lambda: find_tr(d/'side.nii.gz')); assert isinstance(t, str) or .05 <= t[0] <= 20
    go()

COHORT = pd.DataFrame(dict(subject=['01','02','03'], session=['a','a','b'], site=['x','y','x'], tr=[2,2.,.8], label=[0,1,1])).to_csv(index=False).encode()
@needs_linux
def test_manifest(d):
    @fuzz
    @given(forms(COHORT))
    def go(data):
        (d/'m.csv').write_bytes(data); m = answers(lambda: manifest(d/'m.csv')); assert isinstance(m, str) or len(m) and m.subject.notna().all()
    go()

RECORD = RIGHT['_timeseries.safetensors']
@needs_linux
def test_record(d):
    "Not one bit may change unnoticed"
    @fuzz
    @given(forms(RECORD))
    def go(data):
        (d/'r.safetensors').write_bytes(data); a = answers(lambda: load_record(d/'r.safetensors', 'bold'))
        assert isinstance(a, str) if data != RECORD else not isinstance(a, str)
    go()

# ---- built to deceive
def header(data, hdr=nib.Nifti1Header, **fields): # of a .nii
    h = np.frombuffer(data[:hdr.sizeof_hdr if hasattr(hdr,'sizeof_hdr') else 348], hdr.template_dtype).copy()
    for k,v in fields.items(): h[k] = v
    return h.tobytes()+data[h.nbytes:]

dims = lambda *n: dict(dim=np.r_[len(n), n, np.ones(7-len(n), int)])
BIG = dict(e13=dims(32767,32767,32767), e17=dict(**dims(32767,32767,32767,32767), datatype=64, bitpix=64), gigabytes=dims(30000,30000,2))
ODD = dict(zero=dims(0,9,8), negative=dims(-9,10,8), flat=dims(720), none=dict(dim=np.zeros(8)), eight=dict(dim=np.full(8, 8)), **{f'type {t}':dict(datatype=t) for t in (0,1,32,128,255,1536,1792,2048,2304,9999)},
           **{f'{k} {v}':{k:v} for k in ('vox_offset','scl_slope','scl_inter') for v in (np.nan, np.inf, -1., 1e18, 1e38)}, **{f'{k} {v}':{k:np.full(s, v)} for k,s in (('pixdim',8), ('srow_x',4), ('srow_y',4)) for v in (np.nan, np.inf, 0., -1., 1e30)},
           codes=dict(sform_code=0, qform_code=0), units=dict(xyzt_units=255), unit=dict(xyzt_units=4), code=dict(sform_code=-5, qform_code=1), turn=dict(sform_code=0, qform_code=1, quatern_b=3., quatern_c=3.), pair=dict(magic=b'ni1'), magic=dict(magic=b'xxx'), size=dict(sizeof_hdr=540), swapped=dict(sizeof_hdr=1543569408))
PLAIN = written(lambda p: nib.save(HEAD, p), '.nii')

@needs_linux
@pytest.mark.parametrize('packed', [False,True])
@pytest.mark.parametrize('lie', BIG)
def test_a_volume_larger_than_its_file(d, lie, packed):
    f = d/('big.nii'+'.gz'*packed); data = header(PLAIN, **BIG[lie]); f.write_bytes(gzip.compress(data) if packed else data)
    refuses(lambda: load_image(f), f); refuses(lambda: read_t1(f), f)

@needs_linux
@pytest.mark.parametrize('packed', [False,True])
def test_odd_headers(d, packed):
    for lie,fields in ODD.items():
        f = d/('odd.nii'+'.gz'*packed); data = header(PLAIN, **fields); f.write_bytes(gzip.compress(data, 1) if packed else data)
        try: refuses(lambda: read_t1(f, 4.), f)
        except BaseException as e: raise AssertionError(lie) from e

@needs_linux
def test_odd_headers_of_a_run(d):
    run = RIGHT['.nii']
    for lie,fields in ODD.items():
        try: answers(lambda: bold_of(d, '.nii', header(run, **fields)))
        except BaseException as e: raise AssertionError(lie) from e

@needs_linux
@pytest.mark.parametrize('esize', [2**31-16, 2**30, 0, 8, -16])
def test_extension_of_a_header(d, esize):
    data = bytearray(RIGHT['.nii']); data[348:352] = b'\1\0\0\0'; data[352:352] = struct.pack('<ii', esize, 6)+bytes(24); (f := d/'x.nii').write_bytes(header(bytes(data), vox_offset=384))
    answers(lambda: load_image(f))

@needs_linux
def test_gzip_that_does_not_hold_what_its_header_says(d):
    f, whole = d/'z.nii.gz', gzip.compress(PLAIN)
    f.write_bytes(gzip.compress(PLAIN[:-100])); refuses(lambda: load_image(f), f)
    f.write_bytes(whole[:-9]); refuses(lambda: load_image(f), f)
    z = zlib.compressobj(1, zlib.DEFLATED, 31); f.write_bytes(z.compress(PLAIN)+b''.join(z.compress(bytes(10**7)) for _ in range(60))+z.flush()); v = answers(lambda: load_image(f)); assert isinstance(v, str) or np.array_equal(v[1], HEAD.get_fdata())  # a bomb behind the data: refused or not read

@needs_linux
def test_gzip_checksum(d):
    f, whole = d/'crc.nii.gz', bytearray(gzip.compress(PLAIN)); whole[-8] ^= 1
    f.write_bytes(whole); refuses(lambda: load_image(f), f)

@needs_linux
@pytest.mark.parametrize('end', ['.lh.mgh','.lh.mgz'])
@pytest.mark.parametrize('size', [(2**31-1,)*4, (10**9,1,1,8), (-1,1,1,30), (0,1,1,30), (16,1,1,-30)])
def test_mgh_larger_than_its_file(d, end, size):
    data = bytearray(zlib.decompressobj(31).decompress(RIGHT[end]) if end == '.lh.mgz' else RIGHT[end]); data[4:20] = struct.pack('>4i', *size)
    refuses(lambda: bold_of(d, end, gzip.compress(data) if end == '.lh.mgz' else bytes(data)), f'x{end}')

LAUGHS = '<!DOCTYPE a [<!ENTITY l0 "ha">'+''.join(f'<!ENTITY l{i} "{f"&l{i-1};"*10}">' for i in range(1,12))+']>'
@needs_linux
@pytest.mark.parametrize('kind', ['laughs','deep','dims','negative','base64','encoding','external','no data'])
def test_gifti_xml(d, kind):
    text, end = RIGHT['.L.func.gii'].decode(), '.L.func.gii'; body = text[text.index('<GIFTI'):]
    bad = dict(laughs='<?xml version="1.0"?>'+LAUGHS+body.replace('<Value>', '<Value>&l11;', 1).replace('<MetaData/>', '<MetaData><MD><Name>a</Name><Value>&l11;</Value></MD></MetaData>', 1).replace('<MetaData />', '<MetaData><MD><Name>a</Name><Value>&l11;</Value></MD></MetaData>', 1),
               deep='<?xml version="1.0"?>'+'<GIFTI>'*200_000, dims=text.replace('Dim0="16"', 'Dim0="999999999999"'), negative=text.replace('Dim0="16"', 'Dim0="-16"'), base64=text.replace('<Data>', '<Data>!!!'),
               encoding=text.replace('GZipBase64Binary', 'Rot13'), external=text.replace('GZipBase64Binary', 'ExternalFileBinary').replace('ExternalFileName=""', 'ExternalFileName="/etc/passwd"'), **{'no data':'<?xml version="1.0"?><GIFTI Version="1.0" NumberOfDataArrays="0"></GIFTI>'})[kind]
    assert bad != text; out = answers(lambda: bold_of(d, end, bad.encode()))
    assert isinstance(out, str) and f'x{end}' in out or kind in ('negative','base64')  # these two change no value: the size is in the data, the decoder skips what is no letter of its alphabet

@needs_linux
@pytest.mark.parametrize('kind', ['laughs','deep','points','cut','empty'])
def test_cifti_xml(d, kind):
    data = RIGHT['.ptseries.nii']; i, j = data.index(b'<CIFTI'), data.index(b'</CIFTI>')+8; xml = data[i:j].decode()
    bad = dict(laughs=LAUGHS+xml.replace('<Matrix>', '<Matrix><MetaData><MD><Name>a</Name><Value>&l11;</Value></MD></MetaData>', 1), deep='<a>'*20_000, points=xml.replace(f'NumberOfSeriesPoints="{T}"', 'NumberOfSeriesPoints="999999999999"'), cut=xml[:len(xml)//2], empty='')[kind]
    assert bad != xml; raw = bad.encode(); n = -(-(len(raw)+8)//16)*16; new = data[:540]+b'\1\0\0\0'+struct.pack('<ii', n, 32)+raw.ljust(n-8, b'\0')+data[j:].lstrip(b'\0')[-4*R*T:]
    new = header(new, nib.Nifti2Header, vox_offset=544+n); refuses(lambda: bold_of(d, '.ptseries.nii', new), 'x.ptseries.nii')

def npy(text, version=1): return b'\x93NUMPY'+bytes([version,0])+struct.pack('<H' if version == 1 else '<I', len(text))+text+X.tobytes()
@needs_linux
@pytest.mark.parametrize('text', ["{'descr':'<f4','fortran_order':False,'shape':(1000000,1000000)}", "{'descr':'<f4','fortran_order':False,'shape':(400,1000000)}", "{'descr':'<f4','fortran_order':False,'shape':(-8,30)}", "{'descr':'<f4','fortran_order':False,'shape':(8,%s)}"%('9'*400), '('*9000, '-'*9000+'1', '['*5000,
                                  "{'descr':'|O','fortran_order':False,'shape':(8,30)}", "{'descr':[('a','<f4')],'fortran_order':False,'shape':(8,30)}", "{'descr':'<c8','fortran_order':False,'shape':(8,15)}", "{'descr':'<U99999999','fortran_order':False,'shape':(8,30)}", '{}', ''], ids=range(13))
def test_npy_headers(d, text):
    for v in (1,2,3): refuses(lambda: bold_of(d, '.npy', npy(text.encode()+b'\n', v)), 'x.npy')

@needs_linux
def test_archive_that_calls_itself_npy(d):
    b = io.BytesIO(); np.savez(b, x=X); refuses(lambda: bold_of(d, '.npy', b.getvalue()), 'x.npy')

ROW = ','.join('%.3f'%v for v in X[0])+'\n'
TEXTS = dict(nul=b'\0'*5000, utf16=(ROW*R).encode('utf-16'), latin='\xe9,1,2\n\xfc,2,3\n'.encode('latin-1'), bom=b'\xef\xbb\xbf'+(ROW*R).encode(), quote=b'"'+(ROW*R).encode(), quotes=b'"'*4001, ragged=b'1,2\n1,2,3\n', commas=b','*3000, lines=b'\n'*100_000, one_cell=b'5', word=b'word',
             digits=b'9'*1_000_000+b',1\n2,3\n', exponent=b'1e99999999999,1\n2,3\n', hexa=b'0x10,0x20,0x30\n1,2,3\n', bytes=bytes(range(256))*20, spaces=b' '*100_000, carriage=b'1,2\r2,3\r', comment=b'# a\n1 2\n')
@needs_linux
@pytest.mark.parametrize('end', ['.csv','.tsv','.txt','.1D','.csv.gz'])
@pytest.mark.parametrize('kind', TEXTS)
def test_texts(d, end, kind):
    answers(lambda: bold_of(d, end, gzip.compress(TEXTS[kind], 1) if end == '.csv.gz' else TEXTS[kind]))
    if end == '.tsv': (d/'c.tsv').write_bytes(TEXTS[kind]); answers(lambda: read_confounds(d/'c.tsv', T))

@needs_linux
@pytest.mark.parametrize('kind', TEXTS)
def test_manifest_texts(d, kind):
    for name in ('m.csv','m.tsv'): (d/name).write_bytes(TEXTS[kind]); answers(lambda: manifest(d/name))

def test_manifest_lines_longer_than_the_header(d):
    "An empty cell at the end is harmless; a value without a column is not dropped in silence"
    (f := d/'long.csv').write_text('subject,site\n1,a,\n2,b,\n'); assert answers(lambda: manifest(f)).site.tolist() == ['a','b']
    for text in ('subject,site\n1,a,9\n2,b,9\n', 'subject,site\n1,a\n2,b,9\n'): f.write_text(text); refuses(lambda: manifest(f), f)

@needs_linux
def test_a_table_of_a_hundred_thousand_columns(d): refuses(lambda: bold_of(d, '.csv', b'1,'*100_000+b'2'), 'x.csv')

@needs_linux
@pytest.mark.parametrize('unit', [b'0,', b'0,1\n', b'0'], ids=['one row','two columns','one cell'])
def test_table_bomb(d, unit):
    "A packed table of 400 MB of text"
    z = zlib.compressobj(1, zlib.DEFLATED, 31); part = unit*(10**6//len(unit)); data = b''.join(z.compress(part) for _ in range(400))+z.flush()
    refuses(lambda: bold_of(d, '.csv.gz', data), 'x.csv.gz')

@needs_linux
@pytest.mark.parametrize('text', ['['*200_000, '{"a":'*200_000, '{"RepetitionTime": 1'+'0'*400+'}', '{"RepetitionTime": 1'+'0'*9000+'}', '{"RepetitionTime": 1e999}', '{"RepetitionTime": NaN}', '{"RepetitionTime": -Infinity}', '{"RepetitionTime": [2.0]}', '{"RepetitionTime": {"a":1}}', '{"RepetitionTime": "two"}',
                                  '{"RepetitionTime": ""}', '{"RepetitionTime": true}', '{"RepetitionTime": 2000}', '{"RepetitionTime": null}', '[]', '2', '""', '{}', '\ufeff{"RepetitionTime": 2', '{"RepetitionTime": "\\ud800"}'], ids=range(20))
def test_sidecars(d, text):
    (d/'side.json').write_bytes(text.encode()); refuses(lambda: find_tr(d/'side.nii.gz'), 'side.')

def record(head, data=RECORD): # safetensors with another header
    n = struct.unpack('<Q', data[:8])[0]; h = json.loads(data[8:8+n]); h = head(h); t = h if isinstance(h, bytes) else json.dumps(h).encode(); return struct.pack('<Q', len(t))+t+data[8+n:]
def said(text): return lambda h: {**h, '__metadata__':dict(record=text(json.loads(h['__metadata__']['record'])))} # what a record says of itself
@needs_linux
@pytest.mark.parametrize('kind', ['length','longer','no header','shape','overflow','type','offsets','swapped','deep','list','null','number','no sums','sums list','other version','other order'])
def test_records(d, kind):
    x = lambda h, **kw: {**h, 'x':{**h['x'], **kw}}
    bad = dict(length=struct.pack('<Q', 2**63-1)+RECORD[8:], longer=RECORD+b'0'*64, **{'no header':struct.pack('<Q', 0)}, shape=record(lambda h: x(h, shape=[10**6,10**6])), overflow=record(lambda h: x(h, shape=[2**62,2**62])), type=record(lambda h: x(h, dtype='F99')), offsets=record(lambda h: x(h, data_offsets=[0,10**15])),
               swapped=record(lambda h: x(h, data_offsets=h['x']['data_offsets'][::-1])), **{'deep':record(said(lambda r: '['*100_000)), 'list':record(said(lambda r: '[]')), 'null':record(said(lambda r: 'null')), 'number':record(said(lambda r: '1e999')), 'no sums':record(said(lambda r: json.dumps({**r, 'sums':{}}))), 'sums list':record(said(lambda r: json.dumps({**r, 'sums':[]}))),
               'other version':record(said(lambda r: json.dumps({**r, 'version':2}))), 'other order':record(said(lambda r: json.dumps({**r, 'meta':{**r['meta'], 'order':'17'}})))})[kind]
    (d/'r.safetensors').write_bytes(bad); refuses(lambda: load_record(d/'r.safetensors', 'bold'), 'r.safetensors')

@needs_linux
@pytest.mark.parametrize('lack', [k for k in META if k != 'kind'])
def test_a_whole_record_of_another_version(d, lack):
    save_record(f := d/'v_timeseries.safetensors', ARRAYS, {k:v for k,v in META.items() if k != lack}); answers(lambda: read_bold(f))
