"""The release's numbers, and what its files may and may not hold."""
import argparse, os
import numpy as np, pytest, torch
from safetensors.torch import load_file
from brainharmonix.core import BadInput, golden
from brainharmonix.model.released import load, renamed, state_dict

needs_golden = pytest.mark.skipif(golden('manifest.json') is None, reason='BRAINHARMONIX_GOLDEN holds no reference tensors')
TOL = dict(n05=2e-6, sharp=1e-4)

def rnd(seed, shape): return torch.tensor(np.random.default_rng(seed).standard_normal(shape), dtype=torch.float32)
def files(case): return golden(f'{case}.weights.safetensors'), load_file(golden(f'{case}.outputs.safetensors'))
def tables(): return dict(gradients=golden('released/gradient_mapping_400.csv'), harmonics=golden('released/schaefer400_roi_eigenmodes.csv'))
def valid(n, total): return torch.arange(total) < torch.tensor(n)[:,None]

@needs_golden
@pytest.mark.parametrize('kind', TOL)
@pytest.mark.parametrize('seed,k,n', [(200,48,[4]), (201,24,[4]), (202,16,[3]), (203,18,[2]), (204,12,[4]), (205,48,[3,1])])
def test_function(kind, seed, k, n):
    weights, ref = files(f'f_encoder_{kind}_p4'); f = load(weights, 'function', heads=4, **tables())
    mask = valid(n, 4); x = rnd(seed, (len(n),1,400,k*4))[:,0]*mask.repeat_interleave(k,1)[:,None]
    with torch.no_grad(): assert (f(x, k, mask)-ref[f'patch{k}_valid{"-".join(map(str,n))}']).abs().max() < TOL[kind]

@needs_golden
def test_jepa():
    weights, ref = files('jepa_tiny'); f = load(weights, 'function', heads=4, **tables())
    mask = valid([4,3], 4); x = rnd(250, (2,1,400,72))[:,0]*mask.repeat_interleave(18,1)[:,None]
    with torch.no_grad(): assert torch.allclose(f.loss(x, 18, ref['mask_enc'].long(), ref['mask_pred'].long(), mask), ref['loss'], atol=1e-6)

@needs_golden
@pytest.mark.parametrize('case,seed,shape', [('n05_patch8',221,(80,96,80)), ('sharp_patch16',220,(160,192,160))])
def test_structure(case, seed, shape):
    weights, ref = files(f't1_encoder_{case}')
    with torch.no_grad(): assert (load(weights, 'structure', heads=4)(rnd(seed, (1,1,*shape)))-ref['out']).abs().max() < TOL[case.split('_')[0]]

@needs_golden
@pytest.mark.parametrize('kind,seed', [('n05',231), ('sharp',230)])
def test_harmonizer_and_its_gradients(kind, seed):
    weights, ref = files(f'harmonizer_pretrain_{kind}'); h = load(weights, 'harmonizer', heads=4); x = rnd(seed, (1,8400,768))
    for v in (18, 10):
        mask = torch.nn.functional.pad(valid([v],18).repeat(1,400), (0,1200), value=True)
        with torch.no_grad():
            assert (h(x, mask)-ref[f'valid{v}__latent'][:,1:]).abs().max() < TOL[kind]
            for norm in (True, False): assert (h.loss(x, mask, norm)-ref[f'valid{v}__loss_norm_pix_{norm}']).abs().max() < TOL[kind]
    if kind == 'sharp':
        h.loss(x, mask).backward()
        want, own = renamed(load_file(golden('harmonizer_pretrain_sharp.grads.safetensors')), 'harmonizer'), dict(h.model.named_parameters())
        assert set(want) == set(own) and all((own[k].grad-g.view_as(own[k])).abs().max() < 2e-4*g.abs().max() for k,g in want.items())

@needs_golden
@pytest.mark.parametrize('kind,seed,width', [('n05',241,32), ('sharp',240,768)])
def test_finetune(kind, seed, width):
    weights, ref = files(f'harmonizer_finetune_{kind}_pool')
    with torch.no_grad(): assert (load(weights, 'finetune', heads=4)(rnd(seed, (2,8400,width)), valid([18,7],18).repeat(1,400))-ref['logits']).abs().max() < TOL[kind]

def test_released_wrapper_is_read(tmp_path):
    torch.save({'model':{'module.a':torch.ones(2)}, 'optimizer':{'state':{}}, 'epoch':3, 'scaler':{}, 'args':argparse.Namespace(lr=1.)}, tmp_path/'m.pth')
    assert list(state_dict(tmp_path/'m.pth')) == ['a']

class Harm:
    def __reduce__(self): return os.mkdir, (str(Harm.at),)

def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    Harm.at = tmp_path/'ran'
    torch.save({'model':{'a':torch.ones(1)}, 'x':Harm()}, tmp_path/'m.pth')
    with pytest.raises(BadInput): state_dict(tmp_path/'m.pth')
    assert not Harm.at.exists()

def jepa_layout(D=64, dp=32, depth=1, windows=11):
    "A state dict in the layout of the released function file (method.md 8.1), small"
    def block(p, d): return {f'{p}.norm{i}.{k}':torch.randn(d) for i in (1,2) for k in ('weight','bias')} | {
        f'{p}.{n}.{k}':torch.randn(*(s if k == 'weight' else s[:1])) for n,s in (('attn.qkv',(3*d,d)), ('attn.proj',(d,d)), ('mlp.fc1',(4*d,d)), ('mlp.fc2',(d,4*d))) for k in ('weight','bias')}
    lin = lambda p, o, i: {f'{p}.weight':torch.randn(o,i), f'{p}.bias':torch.randn(o)}
    pos = lambda p: {f'{p}.emb_h_encoder':torch.randn(400*windows,D//2), f'{p}.emb_h_decoder':torch.randn(400*windows,dp//2), **lin(f'{p}.geo_harm_proj',D//2,200), **lin(f'{p}.grad_proj',D//2,30), **lin(f'{p}.decoder_pos_embed_proj',dp//2,D//2)}
    enc = lambda p: {f'{p}.patch_embed.proj.weight':torch.randn(D,1,1,48), f'{p}.patch_embed.proj.bias':torch.randn(D), **pos(f'{p}.pos_embed'), **{k:v for i in range(depth) for k,v in block(f'{p}.blocks.{i}',D).items()}, f'{p}.norm.weight':torch.randn(D), f'{p}.norm.bias':torch.randn(D)}
    dec = {'decoder.mask_token':torch.randn(1,1,dp), **lin('decoder.predictor_embed',dp,D), **pos('decoder.predictor_pos_embed'), **block('decoder.predictor_blocks.0',dp), 'decoder.predictor_norm.weight':torch.randn(dp), 'decoder.predictor_norm.bias':torch.randn(dp), **lin('decoder.predictor_proj',D,dp)}
    return {**enc('encoder'), **dec, **enc('encoder_ema')}

def test_the_full_function_layout_and_another_number_of_windows():
    torch.manual_seed(0); sd = jepa_layout(); f = load(sd, 'function', gradients=torch.randn(400,30), harmonics=torch.randn(400,200))
    mask = valid([3], 18)
    with torch.no_grad(): out = f(torch.randn(1,400,18*18), 18, mask)   # 18 windows, though the file's tables are for 11
    assert out.shape == (1,7200,64) and torch.isfinite(out).all()
    assert torch.equal(f.encoder.embed.proj.bias, sd['encoder_ema.patch_embed.proj.bias'])  # the moving average is the encoder

@pytest.mark.parametrize('kw', [dict(gradients='absent.csv', harmonics=torch.randn(400,200)), dict(gradients=torch.randn(400,29), harmonics=torch.randn(400,200)), {}])
def test_bad_tables_are_refused(kw):
    with pytest.raises((BadInput)): load(jepa_layout(), 'function', **kw)
