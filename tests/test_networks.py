"The network baselines: their layers against explicit sums, their sizes, and what training may look at"
import numpy as np, pytest, torch, torch.nn.functional as F
from torch import nn
from brainharmonix.bench.arena import People, Protocol, enter, guarded, learns, splits_of, toy_people
from brainharmonix.bench.braingnn import GNN, BrainGNN, GNNConfig, RaConv, RPool, edges, edges_of, group_loss, partial, release_losses, topk_loss, unit_loss
from brainharmonix.bench.brainnetcnn import CNN, E2E, BrainNetCNN, CNNConfig, Cross
from brainharmonix.bench.brainnettf import TF, BrainNetTF, Cluster, TFConfig, centres, network_systems
from brainharmonix.bench.nets import Net, Recipe, mixed, outputs, task_loss, train_net, val_score
from common import refused

SYSTEMS = dict(BrainNetCNN=BrainNetCNN.at, bnt_repo=lambda: BrainNetCNN.at(variant='bnt_repo'), BrainGNN=lambda: BrainGNN.at(widths=(16, 16)), release=lambda: BrainGNN.at(variant='release', widths=(16, 16)),
               BrainNetTF=BrainNetTF.at, paper=lambda: BrainNetTF.at(readout='paper'), VanillaTF=lambda: BrainNetTF.at(readout='concat'))
KINDS = 'binary', 'multiclass', 'regression'

def quick(name, **kw): # the same system, a few epochs
    s = SYSTEMS[name](); return type(s)(s.net, Recipe.smoke(**dict(epochs=3, lr=s.recipe.lr, mixup=s.recipe.mixup) | kw))

def fitted(make, people, seed=0):
    rows = next(iter(splits_of(people, Protocol(splits=1)).values()))
    return make().fit(people.view(rows['train']), people.view(rows['val']), seed), people.view(rows['test'], labels=False)

@pytest.fixture(scope='module')
def toys(): return {k:toy_people(60, k) for k in KINDS}

# sizes

@pytest.mark.parametrize('net, count', [
    (lambda: CNN(400, 2, CNNConfig.base()), 8_254_876), (lambda: CNN(400, 2, CNNConfig.base('bnt_repo')), 1_829_277), (lambda: CNN(40, 2, CNNConfig.smoke()), 11_034),
    (lambda: GNN(400, 2, GNNConfig.base('release')), 154_082), (lambda: GNN(400, 2, GNNConfig.base()), 154_082), (lambda: GNN(200, 2, GNNConfig.base('release')), 93_282), (lambda: GNN(40, 2, GNNConfig.smoke()), 2_970),
    (lambda: TF(400, 2, TFConfig.base()), 13_545_290), (lambda: TF(400, 2, TFConfig.base(readout='concat')), 3_758_602), (lambda: TF(40, 2, TFConfig.smoke()), 154_234)])
def test_published_sizes(net, count):
    assert sum(p.numel() for p in net().parameters() if p.requires_grad) == count

@pytest.mark.parametrize('R, outs', [(40, 2), (24, 4), (400, 2)])
def test_cnn_size_is_the_formula(R, outs):
    a, b, e, n, f, g = 32, 32, 64, 256, 128, 30
    want = (2*R*a + 2*a) + (2*R*a*b + 2*b) + (R*b*e + e) + (R*e*n + n) + (n*f + f) + (f*g + g) + (g*outs + outs)
    assert sum(p.numel() for p in CNN(R, outs, CNNConfig.base()).parameters()) == want

def test_frozen_centres_are_not_counted(toys):
    s, _ = fitted(lambda: quick('BrainNetTF'), toys['binary'])
    assert s.size() == sum(p.numel() for p in s.trained.parameters()) and s.trained.pool.E.shape == (8, 16) and 'E' not in dict(s.trained.pool.named_parameters())

# BrainNetCNN

def test_e2e_is_the_double_sum():
    torch.manual_seed(0); A, e = torch.randn(2, 3, 6, 6).double(), E2E(3, 4, 6).double(); w, v = e.row.w, e.col.w; out = e(A)
    for n in range(4):
        for i in range(6):
            for j in range(6):
                want = sum(w[m,k,n]*A[:,m,i,k] + v[m,n,k]*A[:,m,k,j] for m in range(3) for k in range(6)) + e.row.bias[n] + e.col.bias[n]
                assert torch.allclose(out[:,n,i,j], want, atol=1e-12)

def test_columns_are_rows_of_the_transpose():
    torch.manual_seed(0); A, r, c = torch.randn(2, 3, 6, 6), Cross(3, 4, 6), Cross(3, 4, 6, row=False)
    c.w.data, c.bias.data = r.w.data.permute(0, 2, 1).clone(), r.bias.data
    assert torch.allclose(c(A)[:,:,0], r(A.transpose(2, 3))[...,0], atol=1e-5)

def test_repo_form_bends_its_logits():
    torch.manual_seed(0); x = torch.randn(4, 10, 10); net = CNN(10, 2, CNNConfig.smoke(variant='bnt_repo')).eval(); plain = nn.Sequential(net.edges, nn.Flatten(), *net.graph[:-1])
    raw = plain(x[:,None]); assert torch.allclose(net(x), F.leaky_relu(raw, net.graph[-1].negative_slope)) and (raw < 0).any()

# BrainGNN

@pytest.mark.parametrize('release', [False, True])
def test_fast_kernels_are_the_explicit_ones(release):
    torch.manual_seed(0); conv, x = RaConv(7, 5, 4, 3, release).double(), torch.randn(2, 6, 5).double(); E, at = torch.rand(2, 6, 6).double().round(), torch.stack([torch.randperm(7)[:6] for _ in range(2)])
    W = conv.kernels(conv.community(F.one_hot(at, 7).double()).relu()).view(2, 6, 5, 4); y = torch.einsum('bid,bidk->bik', x, W)
    if release:
        A = E + torch.eye(6); P = torch.where(A == 0, 0, A.exp()); want = P/P.sum(-1, keepdim=True)@y + conv.bias
    else: want = (y + torch.nan_to_num(E/E.sum(-1, keepdim=True))@y + conv.bias).relu()
    assert torch.allclose(conv(x, E, at), want, atol=1e-12)

def test_pool_keeps_the_better_half_of_nodes_edges_and_names():
    torch.manual_seed(0); pool, x, E = RPool(4), torch.randn(2, 9, 4), torch.rand(2, 9, 9); at = torch.stack([torch.randperm(30)[:9] for _ in range(2)])
    h, e, left, s = pool(x, E, at); raw = x@pool.w/pool.w.norm()
    assert s.shape == (2, 9) and torch.allclose(s.mean(1), torch.zeros(2), atol=1e-5) and torch.allclose(s.std(1, unbiased=False), torch.ones(2), atol=1e-3)
    for g in range(2):
        i = raw[g].argsort(descending=True)[:5]
        assert left[g].tolist() == at[g,i].tolist() and torch.allclose(h[g], x[g,i]*s[g,i].sigmoid()[:,None]) and torch.equal(e[g], E[g][i][:,i])

def test_topk_loss():
    far = torch.cat([torch.full((4, 6), 40.), torch.full((4, 6), -40.)], 1)[:,torch.randperm(12)]
    assert topk_loss(far, 6) < 1e-12 and np.isclose(topk_loss(torch.zeros(4, 12), 6), np.log(2)) and topk_loss(-far[:,:5], 2) > 1  # 5 nodes, too few or too many high scores
    s = torch.randn(3, 8).double(); p = s.sigmoid().sort(descending=True).values
    assert torch.isclose(topk_loss(s, 4), torch.stack([-(p[m,:4].log().sum()+(1-p[m,4:]).log().sum())/8 for m in range(3)]).mean())

def test_group_loss_compares_regions_not_ranks():
    torch.manual_seed(0); y = torch.tensor([0, 0, 1, 1, 1]); maps = torch.randn(2, 9).double(); same = maps[y]
    assert group_loss(same, y, total=True).abs() < 1e-10
    dealt = torch.stack([r[torch.randperm(9)] for r in same]); assert group_loss(dealt, y) > .1             # the same values at other regions
    assert torch.isclose(group_loss(dealt, y, total=True), sum(((dealt[m]-dealt[n])**2).sum() for m in range(5) for n in range(5) if y[m] == y[n]))

def test_release_losses_are_on_squashed_scores():
    best, _ = release_losses(torch.cat([torch.full((2, 6), 99.), torch.full((2, 6), -99.)], 1), 12, torch.zeros(2, dtype=int))
    assert np.isclose(float(best), 1.006, atol=1e-3)                                                        # the bound it cannot pass
    s = torch.randn(3, 8); ranks = torch.stack([r[torch.randperm(8)] for r in s[:1].expand(3, -1)])
    assert release_losses(ranks, 8, torch.zeros(3, dtype=int))[1](True) < 1e-4                              # blind to which region

def test_first_scores_are_in_the_order_of_regions_and_losses_train_them(toys):
    torch.manual_seed(0); net = GNN(16, 2, GNNConfig.smoke()); x, E = torch.randn(6, 16, 16), torch.rand(6, 16, 16); o = torch.randperm(16)
    s = net.scored(x, E)[1][0]; h = net.convs[0](x, E, torch.arange(16).expand(6, -1)); raw = h@net.pools[0].w/net.pools[0].w.norm()
    assert torch.allclose(s, (raw-raw.mean(1, keepdim=True))/raw.std(1, keepdim=True, unbiased=False), atol=1e-4)
    assert float(unit_loss(torch.tensor([3., 4.]))) == 16
    loss = BrainGNN.at().loss(net, [x, E], F.one_hot(torch.arange(6) % 2, 2).float()); loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for n,p in net.named_parameters() if 'pools' in n or 'community' in n)

def test_each_loss_counts():
    torch.manual_seed(0); x, E, t = torch.randn(6, 16, 16), torch.rand(6, 16, 16), F.one_hot(torch.arange(6) % 2, 2).float(); net = GNN(16, 2, GNNConfig.smoke(dropout=0.)).train()
    total = lambda **kw: float(BrainGNN.at(dropout=0., **dict(unit=0., topk=0., group=0.) | kw).loss(net, [x, E], t).detach()); bare = total()
    s1, s2 = net.scored(x, E)[1]; w1, w2 = (p.w for p in net.pools); near = lambda a,b: np.isclose(a, float(b.detach()), atol=1e-5)
    assert near(bare, task_loss(net(x, E), t)) and near(total(unit=1.)-bare, unit_loss(w1)+unit_loss(w2))
    assert near(total(topk=.5)-bare, .5*(topk_loss(s1, 8)+topk_loss(s2, 4))) and near(total(group=.5)-bare, .5*group_loss(s1, t.argmax(1)))

def test_edges(toys):
    big = toy_people(3, regions=30, frames=60); b = big.part('bold', 0); E = edges_of(b); r = partial(b); up = np.triu_indices(30, 1); cut = np.sort(r[up])[-round(.1*435)]
    assert (E == E.T).all() and E.min() == 0 and np.allclose(E, np.where((r >= cut) & (r > 0), r, 0)) and (E[up] > 0).sum() == round(.1*435)
    assert np.allclose(edges_of(b, share=None), np.abs(np.arctanh(r)), atol=1e-6)
    assert big.part(edges(3, .1), 0).shape == (10, 10) and not np.allclose(big.part(edges(3, None), 0), edges_of(b, share=None)[::3,::3])  # partial correlations of the regions that stay

# Brain Network Transformer

def test_centres_are_gram_schmidt():
    torch.manual_seed(5); E = centres(12, 40); torch.manual_seed(5); C = nn.init.xavier_uniform_(torch.empty(12, 40)).double(); u = []
    for c in C: v = c - sum((o@c)/(o@o)*o for o in u); u.append(v)
    assert (E@E.T-torch.eye(12)).abs().max() < 1e-6 and (E-torch.stack([v/v.norm() for v in u])).abs().max() < 1e-6

@pytest.mark.parametrize('squared', [False, True])
def test_assignments(squared):
    torch.manual_seed(0); pool, z = Cluster(5, 16, squared), torch.randn(3, 16, 16); P = pool.shares(z); d = z@pool.E.T
    assert (P.sum(-1)-1).abs().max() < 1e-6 and torch.allclose(P, (d**2 if squared else d).softmax(-1)) and torch.allclose(pool(z), torch.einsum('brk,brd->bkd', P, z), atol=1e-5)

def test_order_of_regions_is_order_of_tokens():
    torch.manual_seed(0); net, x, o = TF(16, 2, TFConfig.smoke()).double().eval(), torch.randn(2, 16, 16).double(), torch.randperm(16); z = net.encode(x)
    assert (net.encode(x[:,o])-z[:,o]).abs().max() < 1e-12 and (z[:,o]-z).abs().max() > .1
    for l in net.layers:  # an embedding is made of regions, too: weights that read them move along
        for p in (l.self_attn.in_proj_weight, l.linear1.weight): p.data = p.data[:,o]
        for p in (l.self_attn.out_proj.weight, l.self_attn.out_proj.bias, l.linear2.weight, l.linear2.bias, l.norm1.weight, l.norm1.bias, l.norm2.weight, l.norm2.bias): p.data = p.data[o]
    assert (net.encode(x[:,o][:,:,o])-z[:,o][:,:,o]).abs().max() < 1e-12

def test_heads_must_share_the_regions():
    said = refused(lambda: TF(450, 2, TFConfig.base()), '450 regions', '4 heads', 'regions=19', 'heads=3')
    assert len(range(0, 450, 19)) % 4 == 0 and 450 % 3 == 0, said
    refused(lambda: TF(3, 2, TFConfig.smoke()), 'heads=3'); refused(lambda: TF(16, 2, TFConfig.base()), '100 clusters', '16 regions')
    o = enter(toy_people(40, regions=18), dict(it=BrainNetTF.at), Protocol(splits=1)); assert '18 regions' in o.failed['it']
    people = toy_people(40, regions=18); thin = fitted(lambda: BrainNetTF(TFConfig.smoke(clusters=4), Recipe.smoke(epochs=1), regions=5), people)[0]; assert thin.trained.mix[1].in_features == 16

# the trainer

def heart(n, g, shift=.1): y = torch.arange(n) % 2; return [torch.randn(n, 30, generator=g) + shift*(2*y[:,None]-1)], F.one_hot(y, 2).float()

def small(seed=0): torch.manual_seed(seed); return nn.Sequential(nn.Linear(30, 32), nn.ReLU(), nn.Linear(32, 2))

def test_best_validation_epoch_is_kept_not_the_last_and_not_the_best_of_the_test():
    g = torch.Generator().manual_seed(1); train, val, test = heart(40, g), heart(60, g), heart(60, g); recipe = Recipe(epochs=30, patience=30, lr=1e-2); seen = []
    def watch(out, t): seen.append([p.detach().clone() for p in net.parameters()]); return val_score(out, t)
    net = small(); log = train_net(net, train, val, recipe, 3, score=watch); best = log.attrs['best']
    keys = list(zip(log.val_score, -log.val_loss)); assert best == keys.index(max(keys)) and 0 < best < len(log)-1
    assert all(torch.equal(a, b) for a,b in zip(net.parameters(), seen[best])) and not all(torch.equal(a, b) for a,b in zip(net.parameters(), seen[-1]))
    def at(params): other = small(); [p.data.copy_(q) for p,q in zip(other.parameters(), params)]; return val_score(outputs(other, test[0], 16), test[1])
    on_test = [at(p) for p in seen]; assert on_test[best] < max(on_test)             # the test people would have chosen another one
    assert val_score(outputs(net, val[0], 16), val[1]) == log.val_score[best] and not net.training

def test_patience_and_ties():
    g = torch.Generator().manual_seed(0); train, val = heart(40, g), heart(60, g)
    log = train_net(small(), train, val, Recipe(epochs=200, patience=4, lr=1e-2)); assert len(log) == log.attrs['best']+5 < 200
    same = train_net(small(), train, val, Recipe(epochs=20, patience=20, lr=1e-2), score=lambda out, t: .5); assert same.attrs['best'] == same.val_loss.argmin()  # ties go to the lower loss

def test_val_score():
    t = F.one_hot(torch.tensor([0, 1, 2, 0, 1, 2]), 3).float(); assert val_score(t*5, t) == 1 and abs(val_score(torch.zeros(6, 3), t)-.5) < 1e-9
    assert val_score(torch.randn(4, 2), F.one_hot(torch.zeros(4, dtype=int), 2).float()) == 0
    y = torch.tensor([1., -1., 0.]); assert val_score(y[:,None]+.5, y) == -.5 and torch.isclose(task_loss(y[:,None]+.5, y), torch.tensor(.25))

def test_mixup_mixes_inputs_and_targets_alike():
    torch.manual_seed(0); t = torch.eye(6); (a, b), m = mixed([t.clone(), 2*t], t, 1.)
    assert torch.allclose(a, m) and torch.allclose(b, 2*m) and torch.allclose(m.sum(1), torch.ones(6)) and (m > 0).sum() > 6
    (a,), m = mixed([t], t, 0.); assert a is t and m is t

def test_grid_is_chosen_on_validation_and_regression_is_in_raw_units(toys):
    s, test = fitted(lambda: quick('BrainNetTF', lrs=(1e-4, 1.), wds=(0., 1.), epochs=15), toys['regression'])
    keys = [(d['val_score'], -d['val_loss']) for d in s.tried]; assert len(keys) == 4 and s.log.attrs['key'] == max(keys) and s.log.attrs['key'] > keys[0]
    far = People('far', toys['regression'].table, 1000+50*toys['regression'].y, 'regression', toys['regression'].scans, data='simulated'); same, view = fitted(lambda: quick('BrainNetTF', lrs=(1e-4, 1.), wds=(0., 1.), epochs=15), far)
    assert np.allclose(same.predict(view), 1000+50*s.predict(test), atol=.1)

def test_a_learning_rate_that_explodes_is_passed_over(toys):
    s, _ = fitted(lambda: quick('VanillaTF', lrs=(1., 1e38)), toys['binary']); assert len(s.tried) == 2 and 'val_score' not in s.tried[1] and s.trained is not None
    refused(lambda: train_net(small(), ([torch.full((8, 30), torch.nan)], torch.eye(2).repeat(4, 1)), heart(8, torch.Generator())), 'no number', 'lr')

def test_class_weights(toys):
    p = toys['binary']; few = p.only(np.concatenate([np.flatnonzero(p.y == 0), np.flatnonzero(p.y == 1)[:6]])); s = quick('BrainNetCNN'); t = s.target(few.view(range(36)), weighted=True)
    assert torch.allclose(t.sum(0), torch.tensor([18., 18.])) and torch.equal(s.target(few.view(range(36))).sum(0), torch.tensor([30., 6.]))
    z = torch.randn(36, 2); want = F.cross_entropy(z, t.argmax(1), weight=torch.tensor([36/60, 36/12]), reduction='none').mean(); assert torch.isclose(task_loss(z, t), want)

def test_thinning_and_fisher(toys):
    v = toys['binary'].view(range(4)); fc = torch.from_numpy(v.matrix('fc')).view(4, 16, 16)
    of = lambda k, fisher: BrainNetCNN(CNNConfig.smoke(fisher=fisher), Recipe.smoke(), regions=k).inputs(v)[0]
    assert torch.equal(of(1, True), fc) and torch.equal(of(3, True), fc[:,::3,::3]) and torch.allclose(of(3, False), fc[:,::3,::3].tanh()) and (of(1, False).diagonal(dim1=1, dim2=2) == 0).all()

def test_learning_rate_schedules():
    c, h = Recipe(epochs=50, decay='cosine', floor=.1), Recipe(decay='halve', every=20)
    assert c.factor(0, 4) == 1 and np.isclose(c.factor(200, 4), .1) and np.isclose(c.factor(100, 4), .55) and [h.factor(4*e, 4) for e in (0, 19, 20, 40)] == [1, 1, .5, .25] and Recipe().factor(999, 4) == 1
    g = torch.Generator().manual_seed(0); net = small(); still = [p.clone() for p in net[0].parameters()]
    train_net(net, heart(20, g), heart(20, g), Recipe(epochs=3, lr=1e-2), groups=[dict(params=net[0].parameters(), lr=0., weight_decay=0.), dict(params=net[2].parameters())])
    assert all(torch.equal(a, b) for a,b in zip(still, net[0].parameters()))

def test_refusals():
    refused(lambda: Recipe(batch=1), 'batch=1'); refused(lambda: Recipe(decay='linear'), 'cosine'); refused(lambda: BrainNetCNN.at('huge'), 'huge'); refused(lambda: BrainNetCNN.at(regions=0), 'regions=1')
    refused(lambda: network_systems('binary', scale='huge'), 'smoke'); refused(lambda: network_systems('ranking'), 'ranking'); refused(lambda: GNNConfig(variant='PyG'), 'release'); refused(lambda: TFConfig(readout='mean'), 'repo')
    if not torch.cuda.is_available(): refused(lambda: BrainNetCNN(CNNConfig.smoke(), device='cuda'), "'cuda'")

# every system

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', ['BrainNetCNN', 'BrainGNN', 'BrainNetTF'])
def test_learns_what_is_there_and_nothing_from_shuffled_labels(name, kind):
    got = learns(SYSTEMS[name], kind, 60)
    assert got['signal'] > dict(binary=.85, multiclass=.75, regression=.45)[kind] and got['shuffled'] < dict(binary=.75, multiclass=.6, regression=.2)[kind], got

@pytest.mark.parametrize('name', ['bnt_repo', 'release', 'paper', 'VanillaTF'])
def test_variants_learn(name, toys):
    s, test = fitted(SYSTEMS[name], toys['binary']); rows = [int(i) for i in test.rows]; assert (s.predict(test).argmax(1) == toys['binary'].y[rows]).mean() > .8

@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('name', list(SYSTEMS))
def test_neither_test_labels_nor_other_test_rows_move_a_prediction(name, kind, toys):
    assert guarded(lambda: quick(name, batch=48), toys[kind]) == dict(labels=0., others=0.)

@pytest.mark.parametrize('name', list(SYSTEMS))
def test_same_seed_same_predictions_and_asking_twice_is_asking_once(name, toys):
    torch.manual_seed(7); before = torch.get_rng_state()
    (s, test), (again, _), (other, _) = (fitted(lambda: quick(name, batch=48), toys['multiclass'], seed) for seed in (0, 0, 1))
    p = s.predict(test); assert (p == s.predict(test)).all() and (p == again.predict(test)).all() and (p != other.predict(test)).any() and torch.equal(before, torch.get_rng_state())
    s.trained.train(); assert (p == s.predict(test)).all()                                                 # no dropout and no batch statistics, in whatever mode it was left
    assert p.shape == (len(test), 3) and np.allclose(p.sum(1), 1) and s.size() == sum(q.numel() for q in s.trained.parameters())

def test_all_of_them_enter():
    rows = network_systems('regression', 2, vanilla=True); assert list(rows) == ['BrainNetCNN', 'BrainGNN', 'BrainNetTF', 'VanillaTF']
    made = {n:f() for n,f in rows.items()}; assert all(s.regions == 2 and isinstance(s, Net) for s in made.values()) and made['VanillaTF'].net.readout == 'concat' and len({str(s.config) for s in made.values()}) == 4
    base = {n:f().recipe for n,f in network_systems('binary', scale='base').items()}
    assert all(r.lrs == (.3, 1., 3.) and r.wds == (0., 1.) and r.patience == 30 and r.epochs <= 200 for r in base.values())  # the grid is the same for all
    assert base['BrainNetTF'].mixup == 1 and base['BrainNetTF'].decay == 'cosine' and base['BrainGNN'].decay == 'halve' and (base['BrainGNN'].lr, base['BrainGNN'].wd) == (1e-3, 5e-3)
    released = BrainGNN.at('base', variant='release'); assert (released.recipe.lr, released.recipe.batch, released.net.unit, released.net.share) == (1e-2, 100, 0., None)
