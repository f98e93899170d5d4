"TAPE: what the chapter does not show of its promises (golden parity, gradients, locality, refusals)"
import math, time
import numpy as np, pytest, torch, torch.nn.functional as F
from safetensors.numpy import load_file
from brainharmonix.core import BadInput, golden
from brainharmonix.model.tape import TapeEmbed, canonical, projection, resize_kernel, resize_matrix, windows

TAU = 35.28
GOLD = golden('tape.safetensors')
rnd = lambda *s, seed=0: torch.randn(*s, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
trs = pytest.mark.parametrize('tr', (.3, .72, .735, .8, 1.4, 1.47, 2., 2.5, 3., 4.2))

@pytest.mark.parametrize('k0', (16, 48, 49))
@pytest.mark.parametrize('k', (1, 2, 9, 12, 18, 24, 44, 47, 48, 49, 96, 97))
def test_resize_matrix_is_torchs(k0, k):
    ref = F.interpolate(torch.eye(k0, dtype=torch.float64)[:,None,None], (1,k), mode='bicubic', antialias=True)[:,0,0].T
    np.testing.assert_allclose(resize_matrix(k0,k), ref, atol=1e-12)

@pytest.mark.skipif(GOLD is None, reason='no golden files')
@pytest.mark.parametrize('k', (9,12,14,16,18,21,24,44,48,50,96))
def test_golden(k):
    ref = load_file(GOLD); w = torch.tensor(ref['weight48'])
    np.testing.assert_allclose(resize_matrix(48,k).T, ref[f'resize_matrix{k}_f64'], atol=1e-12)
    np.testing.assert_allclose(resize_kernel(w.double(),k), ref[f'resized{k}_f64'], atol=1e-11)
    np.testing.assert_allclose(resize_kernel(w,k), ref[f'resized{k}'], atol=5e-5)
    assert resize_kernel(w,k).dtype == torch.float32 and resize_kernel(w,k).shape == (*w.shape[:-1],k)

@pytest.mark.parametrize('k', (5, 24, 47, 48, 49, 100))
def test_resize_kernel_property_and_gradient(k):
    w, x, B = rnd(3,48), rnd(7,48,seed=1), torch.tensor(resize_matrix(48,k))
    v = resize_kernel(w, k)
    if k >= 48: torch.testing.assert_close(x@B.T@v.T, x@w.T, rtol=0, atol=1e-10)
    assert (B@(B.T@v.T-w.T)).abs().max() < 1e-10
    assert torch.autograd.gradcheck(lambda w: resize_kernel(w,k), w[:1].clone().requires_grad_())

@pytest.mark.parametrize('k', (0, -3, 2.5, float('nan'), True))
def test_resize_kernel_refuses(k):
    with pytest.raises(BadInput): resize_kernel(rnd(2,48), k)

@trs
def test_windows_hold_their_seconds(tr):
    T = int(3000/tr); win = windows(T, tr); t = tr/2 + tr*np.arange(T)
    rel = t[win.frames] - win.starts[:,None]
    assert (rel > -1e-6).all() and (rel < TAU+1e-6).all() # no drift, however long
    used = np.unique(win.frames)
    assert len(used) >= T-int(TAU/tr)-1                   # every frame speaks, but those of a last window too empty
    own = [set(f) for f in win.frames]
    assert sum(map(len, own)) == len(used)                # and in one window only

@trs
@pytest.mark.parametrize('prior', ('band', 'white'))
def test_a_frame_outside_changes_nothing(tr, prior):
    T = int(180/tr); win = windows(T, tr, prior=prior); t = tr/2+tr*np.arange(T)
    x = rnd(2,T); y = x.clone(); y[:,(t<2*TAU)|(t>=3*TAU)] = float('nan')
    assert torch.equal(canonical(x,win)[:,2], canonical(y,win)[:,2])

@pytest.mark.parametrize('kw', ({}, dict(halo=6.), dict(prior='white'), dict(prior='linear'), dict(released=True), dict(white=1e-3)))
def test_canonical_tr_changes_nothing(kw):
    x = rnd(2,3,480)
    torch.testing.assert_close(canonical(x, windows(480,.735,**kw)), x.unflatten(-1,(10,48)), rtol=0, atol=1e-8)

def test_offset_and_missing_place_frames_in_time():
    t = lambda n, tr, o: o+tr*np.arange(n)
    sig = lambda t: torch.tensor(np.sin(2*np.pi*.03*t)+np.cos(2*np.pi*.07*t+1))[None]
    ref = sig(t(480,.735,.3675)).unflatten(-1,(10,48))
    for n,tr,o in ((250,1.4,.7), (250,1.4,0.), (250,1.4,2.1), (170,2.,1.9)):
        y = sig(t(n,tr,o)); miss = np.zeros(n,bool); miss[::9] = True; y[:,miss] = float('inf')
        z = canonical(y, windows(n,tr,offset=o,missing=miss))
        P = min(z.shape[-2], 9)
        assert F.cosine_similarity(z[:,1:P], ref[:,1:P], -1).min() > .995
    wrong = canonical(sig(t(170,2.,4.)), windows(170,2.))
    assert F.cosine_similarity(wrong[:,1:P], ref[:,1:P], -1).min() < .95 # a wrong offset shows

def test_missing_windows():
    miss = np.zeros(180,bool); miss[60:100] = True
    win = windows(180, 2., missing=miss)
    z = canonical(rnd(2,180), win)
    assert win.mask.dtype == bool and not win.mask.all() and (z[:,~win.mask] == 0).all() and (z[:,win.mask].abs().sum(-1) > 0).all()
    miss[:3] = True; x = rnd(2,180); x[:,miss] = float('nan') # not even as padding
    assert canonical(x, windows(180,2.,missing=miss)).isfinite().all()
    assert np.array_equal(windows(180,2.,missing=np.zeros(180,int)).K, windows(180,2.).K)
    with pytest.raises(BadInput, match='0 usable frames'): windows(180, 2., missing=np.ones(180,bool))

@pytest.mark.parametrize('n', range(8,48))
def test_a_frame_on_a_border_begins_a_window(n):
    for i in (1,7): # whatever floating point makes of n+.5 frames per window
        win = windows(9*n+9, TAU/(n+.5) if i==1 else TAU*i/(n+.5+(i-1)*n))
        assert win.frames[i][0] == (n if i==1 else n+(i-1)*n)

def test_half_filled_rule():
    assert windows(48+24,.735).P == 2 and windows(48+23,.735).P == 1
    assert windows(48+23,.735,min_fill=.4).P == 2 and windows(24,.735).P == 1
    with pytest.raises(BadInput, match='17.64 s'): windows(23,.735)

@pytest.mark.parametrize('tr', (.72,.735,.8,1.4,2.,2.5,3.))
@pytest.mark.parametrize('T', (50, 176, 300))
def test_released_is_the_convolution(tr, T):
    k = round(TAU/tr); emb = TapeEmbed(48,16).double(); torch.nn.init.normal_(emb.proj.bias)
    x = rnd(5,T); win = windows(T,tr,released=True)
    assert win.P == math.ceil(T/k) and win.mask.all()
    conv = F.conv1d(F.pad(x,(0,win.P*k-T))[:,None], resize_kernel(emb.proj.weight,k)[:,None], emb.proj.bias, stride=k).mT
    torch.testing.assert_close(emb(canonical(x,win)), conv, rtol=0, atol=1e-10)

@pytest.mark.parametrize('tr', (.8, 2., 3.))
def test_linear_is_interpolation_of_the_series(tr):
    T = int(200/tr); x = rnd(1,T); win = windows(T,tr,prior='linear'); t = tr/2+tr*np.arange(T)
    to = (np.arange(win.P*48)+.5)*TAU/48
    np.testing.assert_allclose(canonical(x,win)[0].flatten(), np.interp(to,t,x[0]), atol=1e-10)

@pytest.mark.parametrize('tr', (.72,.8,1.4,2.,2.5,3.))
def test_tokens_stay_under_tr(tr):
    r = np.random.default_rng(1); f, p, a = r.uniform(.01,.1,(100,40,1)), r.uniform(0,7,(100,40,1)), r.standard_normal((100,40,1))
    sig = lambda tr: torch.tensor((a*np.sin(2*np.pi*f*(np.arange(int(250/tr))+.5)*tr+p)).sum(1))
    emb = TapeEmbed(48,256).double()
    tok = lambda tr, **kw: emb(canonical(sig(tr), windows(int(250/tr),tr,**kw)))
    cos = lambda **kw: F.cosine_similarity(tok(tr,**kw)[:,[0,5]], tok(.735)[:,[0,5]], dim=-1).mean(0)
    with torch.no_grad():
        assert (cos() >= .99).all()
        if tr in (2.,3.): assert cos(released=True)[1] < .5 # what it is a remedy for

def test_canonical_differentiable_and_any_dtype():
    win = windows(60, 2.)
    assert torch.autograd.gradcheck(lambda x: canonical(x,win), rnd(1,60).requires_grad_())
    x = rnd(2,3,60)
    torch.testing.assert_close(canonical(x.float(),win).double(), canonical(x,win), rtol=0, atol=1e-5)
    assert canonical(torch.ones(2,60,dtype=torch.int16),win).dtype == torch.float32
    with pytest.raises(BadInput, match='61 frames'): canonical(torch.ones(2,61), win)

def test_frames_of_a_tenth_of_a_second():
    K = projection(tuple((np.arange(352)+.5)*.1), .1, TAU, 48)
    assert np.isfinite(K).all() and (K**2).sum(0).max() < 2

def test_cached():
    clock = lambda: -time.perf_counter()
    a = clock(); first = windows(318, 1.99713); a += time.perf_counter()
    b = clock(); again = windows(318, 1.99713); b += time.perf_counter()
    assert first.P == 18 and again is first and a < .2 and b < a

@pytest.mark.parametrize('kw,word', ((dict(tr=2000.),'milliseconds'), (dict(tr=0.),'seconds'), (dict(tr=-1.),'seconds'), (dict(tr=float('nan')),'TR'), (dict(tr=float('inf')),'TR'), (dict(tr=None),'TR'),
    (dict(tr='2'),'TR'), (dict(T=0),'frames'), (dict(T=10.5),'frames'), (dict(tau=0.),'tau'), (dict(k0=0),'k0'), (dict(k0=4.5),'k0'), (dict(missing=[True]*179),'missing'), (dict(missing=[3,7]),'missing'),
    (dict(missing=np.full(180,np.nan)),'missing'), (dict(offset=float('nan')),'offset'), (dict(min_fill=0.),'min_fill'), (dict(min_fill=2.),'min_fill'), (dict(prior='cubic'),'prior'), (dict(halo=-1.),'halo'),
    (dict(white=0.),'white'), (dict(released=True,missing=[True]+[False]*179),'released'), (dict(T=3),'17.64'), (dict(offset=-1e4),'usable')))
def test_refusals(kw, word):
    with pytest.raises(BadInput, match=word) as e: windows(**dict(T=180,tr=2.)|kw)
    assert '\n' not in str(e.value) and str(e.value).endswith('.')
