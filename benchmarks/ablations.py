"""What the released masking, tables, windows and loss cost: small models on simulated people whose true answers are known.

    python benchmarks/ablations.py [--seeds 5] [--steps 400] [--smoke] [--out reports/runs/ablations] [--reports reports]

Each arm changes one thing of the reference. A seed is a cohort, its split, the first weights and the order of the scans: all arms share them, so that arms are compared pair by pair. Every result (arm, seed)
is a line of OUT/results.jsonl; a run that was stopped goes on with the next one. The tables and the figure are written from those lines.
"""
import argparse, copy, json, time
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
import numpy as np, pandas as pd, torch
from scipy import stats
from torch import nn
from brainharmonix.bench.probe import fc_features, fit as straight_line, probe, project
from brainharmonix.cohort import kfold
from brainharmonix.core import Config, atomic, digest, progress, provenance, seed_all
from brainharmonix.geometry.gradients import gradient_table
from brainharmonix.geometry.harmonics import harmonic_table
from brainharmonix.model.blocks import Packed
from brainharmonix.model.function import FunctionConfig, FunctionEncoder, FunctionJEPA
from brainharmonix.model.harmonizer import Harmonizer, HarmonizerConfig
from brainharmonix.model.masking import MaskConfig, draw, sizes, trimmed
from brainharmonix.model.released import ReleasedHarmonizer, padded_rows
from brainharmonix.model.structure import StructureConfig, StructureEncoder, normalised
from brainharmonix.preprocess.bold import Bold
from brainharmonix.preprocess.scale import augmentations, downsample
from brainharmonix.simulate import SimConfig, simulate
from brainharmonix.train.data import Feed, Session, session, stacked, stretch
from brainharmonix.train.function import function_feed, liveliness
from brainharmonix.train.harmonizer import Fusion, token_feed
from brainharmonix.train.loop import fit
from brainharmonix.train.optim import Machine, TrainConfig
from brainharmonix.train.structure import pretrain_structure

QUIET = Machine(device='cpu', trackers=())

@dataclass(frozen=True)
class Ablation(Config):
    "Everything that all arms share"
    sim:SimConfig = SimConfig(subjects=240)
    people:int = 80        # of them are trained on; the probe sees only the others
    every:int = 4          # every so manyth parcel of Schaefer-400: 100 parcels, half of them left
    again:float = 3.       # s: TR at which the unseen people are scanned once more; no arm has seen it
    model:FunctionConfig = FunctionConfig(regions=100, dim=48, depth=2, heads=3, pred_dim=48, pred_depth=2, pred_heads=3)
    train:TrainConfig = TrainConfig(steps=400, batch=8, lr=1e-3, ema=(.98, 1.))
    crop:int = 3           # windows per scan and step, and at a time when tokens are made
    structure:StructureConfig = StructureConfig(volume=(80,96,80), spacing=2., dim=48, depth=2, heads=3, dec_dim=48, dec_depth=1, dec_heads=3)
    structure_train:TrainConfig = TrainConfig(steps=200, batch=8, lr=2e-3)
    windows:int = 18       # to which the release pads every scan
    thin:int = 2           # the Harmonizer gets every other parcel: 50 x 18 BOLD tokens to 150 of the T1, 6 to 1 as in the release
    harmonizer:HarmonizerConfig = HarmonizerConfig(in_dim=48, dim=48, depth=2, heads=3, hubs=16, dec_dim=48, dec_depth=1, dec_heads=3)
    harmonizer_train:TrainConfig = TrainConfig(steps=200, batch=4, lr=2e-3)
    @classmethod
    def smoke(cls):
        short = lambda t: replace(t, steps=2)
        d = cls()
        return replace(d, sim=SimConfig.smoke(subjects=30, trs=(.735,2.5), minutes=(3.,3.), noise=(.4,.4)), people=10, windows=6, train=short(d.train), structure_train=short(d.structure_train), harmonizer_train=short(d.harmonizer_train))

REFERENCE, FUSED = 'reference', 'Harmonizer, reference'
FUNCTION = {  # what each arm changes
    REFERENCE: {},
    'masks cut to the shortest of the batch, at random': dict(masks='random'),
    'masks cut to the shortest, in index order': dict(masks='first'),
    'masks of the ancestor, as coded': dict(masks='coded'),
    'more TRs by downsampling': dict(trs='antialias'),
    "more TRs, the release's frames": dict(trs='released'),
    'harmonics left out': dict(harmonics='zeros'),
    'harmonics in the wrong order': dict(harmonics='permuted'),
    'windows in frames': dict(released=True)}
FUSION = {
    FUSED: {},
    'Harmonizer, every token counts the same': dict(balance=False),
    'Harmonizer, released model, loss of tokens that exist': dict(released=True, padding=False),
    'Harmonizer, released model and loss': dict(released=True, padding=True)}
LATER = ['masks of the ancestor, as coded', "more TRs, the release's frames"]  # run when all seeds have the others
BLIND, FC = 'not trained', 'FC'  # rows to read the others against

# ---- people ----

@lru_cache(1)
def people(cfg:Ablation, seed:int)->tuple: # Simulated, runs, runs of the unseen people at another TR
    "A cohort, heard by every so manyth parcel"
    sim = simulate(replace(cfg.sim, seed=seed)); rows = np.arange(0, 400, cfg.every)
    run = lambda i, tr=None: (lambda x, t: Bold(x[rows], t))(*sim.bold(i, tr))
    return sim, [run(i) for i in range(len(sim))], [run(i, cfg.again) for i in range(cfg.people, len(sim))]

def scans(runs, trs=None, released:bool=False, seed:int=0)->list: # of Session
    "Sessions; with `trs` each person is met as often as without, each time at one of the TRs that whole factors reach"
    out = []
    for i,b in enumerate(runs):
        factors = (1, *augmentations(b.tr)) if trs else (1,)
        variants = [session(str(i), b if r == 1 else downsample(b, r, trs, seed+i), released=released) for r in factors]
        out += variants*(12//len(factors) if trs else 1)  # 12: a multiple of 1, 2, 3 and 4 TRs
    return out

@lru_cache(4)
def tables(every:int, harmonics:str='aligned')->tuple: # gradients [R,30], harmonics [R,200]
    "Position tables of the parcels kept; 'permuted' takes 17-network rows for 7-network ones, as the release did the other way round"
    h, g, rows = harmonic_table(), gradient_table(), np.arange(0, 400, every)
    h = dict(aligned=h.values, permuted=h.aligned_to(order='17').values, zeros=np.zeros_like(h.values))[harmonics]
    return torch.tensor(g.values[rows]), torch.tensor(h[rows])

# ---- F ----

def batch_masks(mask, R:int, cfg:MaskConfig, g)->tuple: # [B,P] bool -> two lists of B index tensors
    "As the ancestor: observation and alpha have one size for the whole batch, the two ends are each scan's own, the lists are cut to the shortest"
    P, out = mask.shape[1], []; s = sizes(R, P, cfg, g)
    for m in mask:
        lists = []
        while min(map(len, lists), default=0) < cfg.min_keep:
            ctx, pred = draw(R, P, s|dict(ends=sizes(R, P, cfg, g)['ends']), cfg, g)
            lists = [(ctx*m).flatten().nonzero()[:,0], torch.repeat_interleave(torch.arange(R*P), (pred*m).flatten())]
        out.append(lists)
    return tuple(trimmed(l, cfg.truncate, g) for l in zip(*out))

def batch_feed(sessions:list, R:int, masks:MaskConfig, crop:int)->Feed:
    "Runs whose masks are drawn for the batch"
    def sample(i, g): return *stretch(sessions[i], crop, g), int(torch.randint(2**31, (), generator=g))
    def collate(got):
        z, m = stacked([s[:2] for s in got])
        return z, *batch_masks(m, R, masks, torch.Generator().manual_seed(got[0][2])), m
    return replace(function_feed(sessions, R, masks, crop), sample=sample, collate=collate)

def feed_of(cfg:Ablation, sessions:list, masks:str='own')->Feed:
    R = cfg.model.regions
    if masks == 'own': return function_feed(sessions, R, MaskConfig(), cfg.crop)
    return batch_feed(sessions, R, MaskConfig(truncate='random' if masks == 'random' else 'first', as_coded=masks == 'coded'), cfg.crop)

def right_share(feed:Feed, R:int, batch:int, tries:int=40)->float:
    "Share of right-hemisphere parcels among the context tokens"
    n = np.zeros(2)
    for t in range(tries):
        g = torch.Generator().manual_seed(t); pick = torch.randint(len(feed.ids), (batch,), generator=g).tolist()
        z, ctx, *_ = feed.collate([feed.sample(i, g) for i in pick])
        n += np.bincount((torch.cat(ctx)//z.shape[2] >= R//2).numpy(), minlength=2)
    return n[1]/n.sum()

def untrained(cfg:Ablation, seed:int, harmonics:str='aligned')->FunctionJEPA:
    seed_all(seed)
    return FunctionJEPA(FunctionEncoder(cfg.model, *tables(cfg.every, harmonics)))

@torch.no_grad()
def tokens(enc:FunctionEncoder, s:Session, crop:int)->torch.Tensor: # [R,P,D]
    "Tokens, so many windows at a time as in training"
    cuts = range(0, len(s.mask), crop)
    z, m = stacked([(s.z[:,a:a+crop].float(), s.mask[a:a+crop]) for a in cuts])
    x = enc(z, m).padded().unflatten(1, (-1, z.shape[2])).transpose(0, 1).flatten(1, 2)  # [R,all windows,D]
    return x[:,m.flatten()]

def token_fc(x)->np.ndarray: # [R,P,D] -> [R(R-1)/2]
    "Connectivity of tokens: correlation of parcels over windows and features, after each parcel's mean token"
    return fc_features((x-x.mean(1, keepdim=True)).flatten(1).numpy())

# ---- the Harmonizer ----

class Stage1(nn.Module):
    "The released model and its loss, by session; `padding`: with the tokens that do not exist, as released"
    def __init__(self, cfg:HarmonizerConfig, padding:bool):
        super().__init__()
        self.released, self.padding = ReleasedHarmonizer(Harmonizer(cfg)), padding
    def forward(self, x, mask): # [B,N,D], [B,N] bool -> [B]
        err = (self.released.predict(x, mask)-normalised(x)).pow(2).mean(2)
        w = torch.ones_like(err) if self.padding else mask.to(err)
        return (err*w).sum(1)/w.sum(1)

@torch.no_grad()
def pairs(cfg:Ablation, sessions:list, function, structure)->list: # (x [N,D], mask [N]) of each session
    "BOLD tokens padded to the release's number of windows, as the release pads, then T1 tokens"
    out = []
    for s in sessions:
        n = min(len(s.mask), cfg.windows); R = len(s.z)
        z = torch.zeros(1, R, cfg.windows, s.z.shape[2]); z[0,:,:n] = s.z[:,:n].float()
        there = torch.zeros(1, cfg.windows, dtype=torch.bool); there[0,:n] = s.mask[:n]
        x = padded_rows(function, z, there, function(z, there).padded())[0].unflatten(0, (R,-1))[::cfg.thin]
        t = structure(s.t1.float()[None,None]).x
        mask = torch.cat([there.expand(len(x),-1).flatten(), torch.ones(len(t), dtype=torch.bool)])
        out.append((torch.cat([x.flatten(0,1), t]), mask))
    return out

def packed(cfg:Ablation, x, mask)->tuple: # Packed BOLD, Packed T1
    "The tokens that exist"
    n = (cfg.model.regions//cfg.thin)*cfg.windows; at = mask[:n].nonzero()[:,0]
    grid = tuple(v//cfg.structure.patch for v in cfg.structure.volume)
    return Packed(x[at], (len(at),), at, (n//cfg.windows, cfg.windows)), Packed(x[n:], (len(x)-n,), torch.arange(len(x)-n), grid)

def fuse(cfg:Ablation, seed:int, both:list, released:bool=False, padding:bool=False, balance:bool=True)->tuple: # session -> hub tokens [H,D] and rebuilt tokens that exist [n,D]; losses
    "Train one Harmonizer"
    seed_all(seed); train, ids = replace(cfg.harmonizer_train, seed=seed), list(range(len(both)))
    if released:
        model = Stage1(replace(cfg.harmonizer, decoders=1, drop=0., balance=False, cls=True), padding)
        feed = Feed(ids, [0]*len(both), lambda i, g: both[i], lambda got: tuple(map(torch.stack, zip(*got))))
        losses = fit(model, feed, train, machine=QUIET, desc='released')
        return lambda x, m: (model.released(x[None], m[None])[0], model.released.predict(x[None], m[None])[0,m]), losses
    model = Fusion(Harmonizer(replace(cfg.harmonizer, balance=balance)))
    losses = fit(model, token_feed([packed(cfg, *b) for b in both], ids), train, machine=QUIET, desc='harmonizer')
    def read(x, m):
        have = packed(cfg, x, m); hubs = model.harmonizer(*have)
        return hubs[0], torch.cat(list(model.harmonizer.rebuild(hubs, dict(enumerate(have))).values()))
    return read, losses

# ---- probes ----

def asked(X, y, who, kind)->float: return probe(X, y, who, kind, repeats=2, boots=2)['scores'][dict(label='balanced_accuracy', score='r2')[kind]]

def asked_again(X, again, y, who)->float:
    "R2 on the second scans of people whose first scans the line has not seen either"
    out = np.zeros(len(y))
    for a,b in kfold(pd.DataFrame(dict(subject=who)), 5, stratify=()):
        A, B = project(X[a], again[b]); out[b] = straight_line(A, y[a], who[a], 'score').predict(B)
    return 1 - ((y-out)**2).mean()/y.var()

def truth(cfg, sim): # s, f, label, ids of the unseen people
    t, m = sim.truth[cfg.people:], sim.manifest[cfg.people:]
    return t.s.values, t.f.values, m.label.values, m.subject.values

def function_scores(cfg, seed, enc, released=False)->dict:
    sim, runs, again = people(cfg, seed); _, f, label, who = truth(cfg, sim)
    x, x2 = ([tokens(enc, s, cfg.crop) for s in scans(r, released=released)] for r in (runs[cfg.people:], again))
    X, X2 = (np.stack([token_fc(t) for t in v]) for v in (x, x2))
    mean = np.stack([t.mean((0,1)).numpy() for t in x])
    return dict(f=asked(X, f, who, 'score'), label=asked(X, label, who, 'label'), f_again=asked_again(X, X2, f, who), f_mean=asked(mean, f, who, 'score'), **liveliness(torch.cat([t.flatten(0,1) for t in x[:8]])))

@torch.no_grad()
def fusion_scores(cfg, seed, tok, read)->dict:
    "What hub tokens of the unseen people say, and how much of what is one's own they give back"
    s, f, label, who = truth(cfg, people(cfg, seed)[0]); n = cfg.model.regions//cfg.thin*cfg.windows
    seen, usual = sum(m.float() for _,m in tok[:cfg.people]), sum(normalised(x)*m[:,None] for x,m in tok[:cfg.people])
    usual, H, fc, err, own = usual/seen.clamp(min=1)[:,None], [], [], np.zeros(2), np.zeros(2)  # the training people's mean token of each cell
    for x,m in tok[cfg.people:]:
        hubs, y = read(x, m); t, u, bold = normalised(x)[m], usual[m], int(m[:n].sum()); known = seen[m] > 0
        for k,part in enumerate((slice(None,bold), slice(bold,None))):
            on = known[part]; err[k] += (y[part]-t[part])[on].pow(2).sum(); own[k] += (u[part]-t[part])[on].pow(2).sum()
        H.append(hubs); fc.append(token_fc(y[:bold].unflatten(0, (cfg.model.regions//cfg.thin, -1))))
    X, (bold, t1) = torch.stack(H).flatten(1).numpy(), 1-err/own
    return {k:asked(X, y, who, kind) for k,y,kind in (('f', f, 'score'), ('s', s, 'score'), ('label', label, 'label'))} | dict(f_rebuilt=asked(np.stack(fc), f, who, 'score'), bold=bold, t1=t1) | liveliness(torch.cat(H))

# ---- arms ----

def trained(cfg, seed, masks='own', trs=None, harmonics='aligned', released=False)->tuple: # encoder, what was seen
    _, runs, _ = people(cfg, seed)
    feed, jepa = feed_of(cfg, scans(runs[:cfg.people], trs, released, seed), masks), untrained(cfg, seed, harmonics)
    losses = fit(jepa, feed, replace(cfg.train, seed=seed), machine=QUIET, desc='function')
    return jepa.target, dict(loss=float(np.mean(losses[-20:])), right=right_share(feed, cfg.model.regions, cfg.train.batch))

def encoders(cfg, seed, out)->tuple:
    "F of the reference arm, and an S of its own; kept in files"
    sim, _, _ = people(cfg, seed); path = lambda part: out/f'{part}-{seed}-{cfg.hash()}.pt'
    f, s = untrained(cfg, seed).target, StructureEncoder(cfg.structure)
    if not path('function').exists(): keep(path('function'), trained(cfg, seed)[0])
    if not path('structure').exists():
        t1 = [Session(str(i), t1=torch.tensor(sim.t1(i)).half()) for i in range(cfg.people)]
        keep(path('structure'), pretrain_structure(t1, cfg.structure, replace(cfg.structure_train, seed=seed), machine=QUIET)[0].encoder)
    for part,m in (('function',f), ('structure',s)): m.load_state_dict(torch.load(path(part), weights_only=True))
    return f.eval(), s.eval()

def keep(path, model):
    with atomic(path) as tmp: torch.save(model.state_dict(), tmp)

@lru_cache(1)
def both(cfg, seed, out)->list:
    sim, runs, _ = people(cfg, seed)
    sessions = [replace(s, t1=torch.tensor(sim.t1(i)).half()) for i,s in enumerate(scans(runs))]
    return pairs(cfg, sessions, *encoders(cfg, seed, out))

def one(cfg:Ablation, arm:str, seed:int, out:Path)->dict:
    "Result of one arm and seed"
    torch.set_num_threads(1); t0, t = time.time(), time.process_time(); more = {}
    sim, runs, again = people(cfg, seed); s, f, label, who = truth(cfg, sim)
    if arm == FC:
        X, X2 = (np.stack([fc_features(b.x) for b in r]) for r in (runs[cfg.people:], again))
        got = dict(f=asked(X, f, who, 'score'), label=asked(X, label, who, 'label'), f_again=asked_again(X, X2, f, who))
    elif arm == BLIND: got = function_scores(cfg, seed, untrained(cfg, seed).target.eval())
    elif arm in FUNCTION:
        enc, more = trained(cfg, seed, **FUNCTION[arm])
        got = function_scores(cfg, seed, enc.eval(), FUNCTION[arm].get('released', False))
    else:
        tok = both(cfg, seed, out); read, losses = fuse(cfg, seed, tok[:cfg.people], **FUSION[arm])
        got, more = fusion_scores(cfg, seed, tok, read), dict(loss=float(np.mean(losses[-20:])))
    if arm == REFERENCE: keep(out/f'function-{seed}-{cfg.hash()}.pt', enc)
    return dict(arm=arm, seed=seed, config=cfg.hash(), people=digest(sim.manifest.to_csv())[:16], **{k:round(float(v), 5) for k,v in (got|more).items()}, seconds=round(time.time()-t0), cpu=round(time.process_time()-t))

# ---- tables and figure ----

MEASURES = {'F':dict(f='f', label='label', f_again='f, other TR', f_mean='f, mean token'), 'Harmonizer':dict(f='f', s='s', label='label', f_rebuilt='f, rebuilt', bold='BOLD rebuilt', t1='T1 rebuilt')}
BASE = {'F':REFERENCE, 'Harmonizer':FUSED}

PAIRS = [  # what one thing alone does: arm, against, what differs
    ('masks cut to the shortest, in index order', 'masks cut to the shortest of the batch, at random', 'the right hemisphere is starved; as many cells are seen'),
    ("more TRs, the release's frames", 'more TRs by downsampling', 'no low-pass'),
    ('harmonics in the wrong order', 'harmonics left out', 'wrong against none'),
    ('Harmonizer, released model and loss', 'Harmonizer, released model, loss of tokens that exist', 'padding in the loss')]

def interval(v)->tuple: # mean, low, high
    "Mean over seeds and its 95 % interval (Student's t)"
    v = np.asarray(v, float); half = stats.t.ppf(.975, len(v)-1)*v.std(ddof=1)/len(v)**.5 if len(v) > 1 else np.nan
    return v.mean(), v.mean()-half, v.mean()+half

def table(got:pd.DataFrame)->pd.DataFrame: # one row per arm and measure
    "Means over seeds, and paired differences to the reference"
    rows = []
    for group,measures in MEASURES.items():
        base = got[got.arm == BASE[group]].set_index('seed')
        for arm in ([FC, BLIND, *FUNCTION] if group == 'F' else FUSION):
            g = got[got.arm == arm].set_index('seed')
            for k in measures:
                if k not in g or g[k].isna().all(): continue
                d = (g[k]-base[k]).dropna()
                rows.append(dict(group=group, arm=arm, measure=measures[k], seeds=len(g)) | dict(zip(('mean','low','high'), interval(g[k])))
                            | (dict(zip(('difference','difference_low','difference_high'), interval(d))) if len(d) and arm != BASE[group] else {}))
    return pd.DataFrame(rows)

def context_shares(R:int, P:int, B:int, masks:MaskConfig, borders, tries:int=20)->np.ndarray: # of the context tokens of batches, by groups of parcels
    "Who is seen"
    n, there = np.zeros(len(borders)-1), torch.ones(B, P, dtype=torch.bool)
    for t in range(max(tries, 64//B)): n += np.histogram(torch.cat(batch_masks(there, R, masks, torch.Generator().manual_seed(t))[0]).numpy()//P, borders)[0]
    return n/n.sum()

def right_shares(tries:int=20)->pd.DataFrame: # rows: rule; columns: batch
    "Share of right-hemisphere parcels in the context on the release's grid of 400 x 11"
    rules = {'not cut':MaskConfig(), 'shortest of the batch, at random':MaskConfig(truncate='random'), 'shortest, in index order':MaskConfig(truncate='first')}
    return pd.DataFrame({B:{k:context_shares(400, 11, B, m, (0,200,400), tries)[1] for k,m in rules.items()} for B in (1, 8, 16, 64)})

def told(r)->str:
    "What an interval shows"
    if not np.isfinite(r.difference_low): return 'no interval'
    return 'no difference shown' if r.difference_low <= 0 <= r.difference_high else 'higher' if r.difference > 0 else 'lower'

def summary(t)->list: # lines
    "What is shown and what is not, by measure"
    blind, f = t[(t.arm == BLIND) & (t.measure == 'f')].iloc[0], t[(t.group == 'F') & (t.measure == 'f')].set_index('arm'); half = (f.difference_high-f.difference)[[a for a in FUNCTION if a in f.index and a != REFERENCE]]
    fused = t[t.group == 'Harmonizer'].pivot(index='arm', columns='measure', values='mean')
    out = [f'- Training adds {-blind.difference:.3f} ({-blind.difference_high:.3f} to {-blind.difference_low:.3f}) to the R2 of `f` that the first weights give; FC of the BOLD itself is {f.difference[FC]:+.3f} ({f.difference_low[FC]:+.3f} to {f.difference_high[FC]:+.3f}) from the reference. An arm can lose little more than training adds, and the half widths of the intervals run from {half.min():.3f} to {half.max():.3f}: a small cost would not be seen here.']
    if (fused[['BOLD rebuilt','T1 rebuilt']] < 0).values.all() and (fused.f < .1).all(): out.append('- The small Harmonizer gives the tokens back worse than the mean token of the cell does (`rebuilt` below 0) and its hub tokens say next to nothing of `f`, in all arms: it has not learnt enough for a verdict on `f`.')
    out.append('- The last two arms of the Harmonizer differ from the reference in the model as well as in the loss; what padding alone does stands under "Pairs".')
    for (group,k),rows in t.dropna(subset='difference').groupby(['group','measure'], sort=False):
        said = {}
        for _,r in rows.iterrows(): said.setdefault(told(r), []).append(r.arm.removeprefix('Harmonizer, '))
        out.append(f'- {group}, `{k}`, against the reference: ' + '; '.join(f'**{v}** ' + (f'all {len(rows)}' if len(said) == 1 else f'the other {len(said[v])}' if v == 'no difference shown' else ', '.join(f'"{a}"' for a in said[v])) for v in ('lower','higher','no difference shown','no interval') if v in said) + '.')
    return out

def _cells(t, arm, k, what):
    r = t[(t.arm == arm) & (t.measure == k)]
    if not len(r) or pd.isna(r.iloc[0].get(what, np.nan)): return ''
    m, a, b = r.iloc[0][[what, *((what+'_low', what+'_high') if what != 'mean' else ('low','high'))]]; sign = '+' if what != 'mean' else ''
    return f'{m:{sign}.3f} ({a:{sign}.3f} to {b:{sign}.3f})'

def prose(cfg, got)->list: # of the report
    sim, m, t, h = cfg.sim, cfg.model, cfg.train, cfg.harmonizer_train; rest = sim.subjects-cfg.people
    return [
        f'- A seed is a cohort of {sim.subjects} simulated people (chapter 22; TR {", ".join(f"{v:g}" for v in sim.trs)} s, {", ".join(f"{v:g}" for v in sim.minutes)} minutes), the first weights and the order of scans. {cfg.people} people are trained on, the probe sees the other {rest} (5 folds over people, dealt twice). All arms of a seed share all of it, so differences are taken pair by pair. Intervals: 95 %, Student\'s t over {got.seed.nunique()} seeds, not corrected for the number of rows: of 20 intervals about one leaves out zero by chance.',
        f'- F: {m.regions} of the 400 parcels (every {cfg.every}th of the 7-network order), width {m.dim}, depth {m.depth}; {t.steps} steps of {t.batch} scans, {cfg.crop} windows each, learning rate {t.lr:g}, momentum of the target {t.ema[0]:g} to {t.ema[1]:g}. `f` sets the spatial scale of the waves. It is read by ridge regression from the connectivity of the tokens (correlation of parcels over windows and features); `f, other TR`: the line is fitted on people scanned at their site\'s TR and asked of other people\'s second scan at {cfg.again:g} s, a TR that no arm has seen; `f, mean token`: from the plain mean over tokens; `label`: logistic regression on the connectivity of the tokens. `FC`: the same of the BOLD itself. `{BLIND}`: first weights.',
        '- Readout, learning rate and momentum were chosen in pilots of the reference alone (cohorts 100 and 101, and cohort 0 with other scan lengths), because there training adds to what the first weights say of `f`; from the mean token, which the paper pools, it does not. They were not tuned again for any arm. The simulated BOLD is made of the same harmonics that the table holds, which is the best case for the table.',
        f'- Arms change one thing of the reference. Masks: the reference gives each scan its own and cuts nothing; the other three share the sizes of observation and alpha over the batch, as the ancestor does, and cut the lists to the shortest: at random, in index order (right-hemisphere parcels come last), or in index order with the ancestor\'s two sets swapped and repeated cells (method.md 1.6). TRs: each person is met as often as in the reference, at one of the TRs that whole factors reach up to 3 s, low-passed or by the release\'s frames. Harmonics: zeros (gradients stay), or rows in 17-network order for data in 7-network order: the release\'s mix-up, turned round. Windows in frames: the release\'s rule in training and probe, with its plain pseudo-inverse and its half-filled last window.',
        f'- Harmonizer: F of the reference and a small S (masked autoencoder, {cfg.structure_train.steps} steps), frozen; {cfg.model.regions//cfg.thin} parcels x {cfg.windows} windows of BOLD tokens (padded where a scan is shorter) to 150 T1 tokens, 6 to 1 as in the release; width {cfg.harmonizer.dim}, depth {cfg.harmonizer.depth}, {cfg.harmonizer.hubs} hub tokens, {h.steps} steps of {h.batch}. Reference: loss of the tokens that exist, half of it for each modality, two decoders, modality dropout {cfg.harmonizer.drop:g}. `every token counts the same`: the reference without the halves. Released: one decoder, class token, positions by running index, no dropout, every token counts the same; with the padding in the loss, as released, or without. `f`, `s` (the latent of the T1) and `label`: from all hub tokens; `f, rebuilt`: from the connectivity of the BOLD tokens that the decoder gives back; `rebuilt`: 1 - error / error of the training people\'s mean token of the same cell, over the unseen people.']

def markdown(got:pd.DataFrame, head:str, cfg:Ablation, tries:int=20)->str:
    t = table(got)
    lines = ['# What the released masking, tables, windows and loss cost', '', f'- `python benchmarks/ablations.py` · {head}', *prose(cfg, got), '', '## What came out', '', *summary(t), '', '![differences to the reference, simulated](figures/ablations-simulated.png)', '']
    def add(title, columns, rows): lines.extend([f'## {title}', '', head, '', '| ' + ' | '.join(columns) + ' |', '|---'*len(columns) + '|', *('| ' + ' | '.join(r) + ' |' for r in rows), ''])
    F, H = MEASURES['F'].values(), MEASURES['Harmonizer'].values(); tf, th = (t[t.group == g] for g in MEASURES)
    add('F: what a straight line reads', ['arm', *(f'{k} {"balanced accuracy" if k == "label" else "R2"}' for k in F)], [[a, *(_cells(tf, a, k, 'mean') for k in F)] for a in (FC, BLIND, *FUNCTION)])
    add('F: difference to the reference, pair by pair', ['arm', *F, 'of f'], [[a, *(_cells(tf, a, k, 'difference') for k in F), told(tf[(tf.arm == a) & (tf.measure == 'f')].iloc[0])] for a in (FC, BLIND, *list(FUNCTION)[1:]) if a in set(tf.arm)])
    mean = got.groupby('arm')[['std','rank','loss','right','cpu']].mean(); say = lambda a, k, d: f'{mean[k].get(a, np.nan):.{d}f}'.replace('nan', '')
    add('Collapse, and what was seen', ['arm', 'sd of features', f'effective rank (of {cfg.model.dim})', 'training loss at the end', 'right hemisphere in the context', 'CPU s (of the first Harmonizer arm: with S and all tokens)'], [[a, say(a,'std',3), say(a,'rank',1), say(a,'loss',4), say(a,'right',3), say(a,'cpu',0)] for a in (BLIND, *FUNCTION, *FUSION)])
    add('Harmonizer: what hub tokens say, and what they give back', ['arm', *H], [[a, *(_cells(th, a, k, 'mean') for k in H)] for a in FUSION])
    add('Harmonizer: difference to the reference, pair by pair', ['arm', *H], [[a, *(_cells(th, a, k, 'difference') for k in H)] for a in list(FUSION)[1:]])
    by = {a:got[got.arm == a].set_index('seed') for a in set(got.arm)}
    def pair(a, b, k): m, lo, hi = interval((by[a][k]-by[b][k]).dropna()); return f'{k.replace("_again", ", other TR")} {m:+.3f} ({lo:+.3f} to {hi:+.3f})'
    add('Pairs of arms that differ in one thing', ['arm', 'against', 'what differs', 'difference'], [[a, b, why, ', '.join(pair(a, b, k) for k in (('f','label','f_again') if a in FUNCTION else ('s','label','t1','bold')))] for a,b,why in PAIRS if {a, b} <= set(by)])
    share = right_shares(tries)
    add("Share of the right hemisphere in the context, release's grid (400 x 11), by scans per batch", ['masks', *map(str, share.columns)], [[k, *(f'{v:.3f}' for v in r)] for k,r in share.iterrows()])
    old = context_shares(450, 10, 16, MaskConfig(truncate='first', as_coded=True), (0,50,250,450), tries)
    lines.append(f"On Brain-JEPA's own grid (450 x 10, 50 subcortical parcels first), 16 scans per batch, its rule leaves subcortex, left and right {', '.join(f'{v:.3f}' for v in old)} of the context (even: .111, .444, .444).\n")
    return '\n'.join(lines)

def figure(got:pd.DataFrame):
    "Differences to the reference: every seed a dot, the mean with its interval"
    import matplotlib; matplotlib.use('Agg')
    import matplotlib.pyplot as plt, seaborn as sns
    sns.set_theme(style='whitegrid', context='paper'); t = table(got)
    fig = plt.figure(figsize=(9, 6.4), dpi=110, layout='constrained'); upper, lower = fig.subfigures(2, 1, height_ratios=(8.5, 4.2))
    for sub,group,keys in ((upper,'F',('f','f_again','label')), (lower,'Harmonizer',('s','label','t1','bold'))):
        arms = [a for a in ([BLIND, *list(FUNCTION)[1:]] if group == 'F' else list(FUSION)[1:]) if a in set(got.arm)]; base = got[got.arm == BASE[group]].set_index('seed')
        sub.suptitle(group, fontsize=10, x=.01, ha='left')
        for ax,k in zip(np.atleast_1d(sub.subplots(1, len(keys), sharey=True)), keys):
            for y,a in enumerate(arms):
                d = got[got.arm == a].set_index('seed')[k]-base[k]; m, lo, hi = interval(d)
                ax.plot(d, np.full(len(d), y+.25), 'o', ms=2.5, color='.6'); ax.errorbar(m, y, xerr=[[m-lo], [hi-m]], fmt='o', ms=5, capsize=3, color=sns.color_palette()[0 if lo <= 0 <= hi else 3])
            ax.axvline(0, color='k', lw=.8); ax.set(yticks=range(len(arms)), ylim=(len(arms)-.5, -.5)); ax.set_yticklabels([a.removeprefix('Harmonizer, ') for a in arms])
            ax.set_title(MEASURES[group][k], fontsize=9); ax.set_xlabel('balanced accuracy' if k == 'label' else 'R2'); ax.locator_params(axis='x', nbins=4)
    fig.suptitle(f'Difference to the reference: {got.seed.nunique()} seeds (grey), mean and 95 % interval; red where zero is outside (simulated)', fontsize=10)
    return fig

def write(got:pd.DataFrame, cfg:Ablation, to:Path, tries:int=20):
    made = provenance(); commit = sorted(set(got.commit))
    head = f'data: simulated · commit {", ".join(c[:10] for c in commit)} · manifests {digest(sorted(set(got.people)))[:16]} · config {cfg.hash()} · seeds {", ".join(map(str, sorted(set(got.seed))))} · device: CPU, 1 thread, torch {made["packages"]["torch"]}'
    (to/'figures').mkdir(parents=True, exist_ok=True)
    with atomic(to/'ablations-simulated.csv') as tmp: tmp.write_text(f'# {head}\n' + table(got).round(5).to_csv(index=False))
    with atomic(to/'ablations.md') as tmp: tmp.write_text(markdown(got, head, cfg, tries))
    with atomic(to/'figures'/'ablations-simulated.png') as tmp: figure(got).savefig(tmp)

def results(out:Path, cfg:Ablation)->pd.DataFrame:
    f = out/'results.jsonl'
    rows = [json.loads(l) for l in f.read_text().splitlines() if l.endswith('}')] if f.exists() else []  # a line that was cut short is made anew
    return pd.DataFrame([r for r in rows if r['config'] == cfg.hash()], columns=None if rows else ['arm','seed'])

def main():
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    a.add_argument('--seeds', type=int, default=5, help='cohorts')
    a.add_argument('--steps', type=int, help='of F; default 400')
    a.add_argument('--smoke', action='store_true', help='a few people and steps, to try the script')
    a.add_argument('--out', type=Path, default=Path('reports/runs/ablations'), help='folder of the results so far')
    a.add_argument('--reports', type=Path, default=Path('reports'), help='folder of tables and figure')
    a = a.parse_args(); cfg = Ablation.smoke() if a.smoke else Ablation()
    if a.steps: cfg = replace(cfg, train=replace(cfg.train, steps=a.steps))
    a.out.mkdir(parents=True, exist_ok=True)
    for arms in ([FC, BLIND, *(k for k in (*FUNCTION, *FUSION) if k not in LATER)], LATER):
        for seed in range(a.seeds):
            done = results(a.out, cfg); todo = [arm for arm in arms if not ((done.arm == arm) & (done.seed == seed)).any()]
            for arm in todo:
                row = one(cfg, arm, seed, a.out)
                with open(a.out/'results.jsonl', 'a') as f: f.write('\n' + json.dumps(row | dict(commit=provenance()['commit'] or '')))  # a new line first: one that was cut ends there
                print(row, flush=True)
    write(results(a.out, cfg), cfg, a.reports, 2 if a.smoke else 20)

if __name__ == '__main__': main()
