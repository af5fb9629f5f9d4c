"""Deep belief networks and deep Boltzmann machines: laws, bounds, edges, bad input."""
import copy
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch

from machines import machine, seeded
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.units import states
from rbmdiff.learning.contrastive import deep_gradient, exact_gradient
from rbmdiff.learning.partition import ais
import rbmdiff.models.deep as module
from rbmdiff.models.deep import DBM, DBN, ceilings, doubled, transposed, with_prior
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.gibbs import conditionals

f32, f64 = torch.float32, torch.float64
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]


def shaken(net, scale=1.0, seed=0):
    """`net` with normal parameters, the same in every dtype, without gradient."""
    g = seeded(seed)
    for p in net.requires_grad_(False).parameters():
        p.copy_(scale * torch.randn(p.shape, dtype=f64, generator=g))
    return net


def deep(sizes=(4, 3, 2), unit="bernoulli", scale=1.0, seed=0, dtype=f64):
    return shaken(DBM(sizes, unit, dtype=dtype), scale, seed)


def belief(sizes=(4, 3, 2), visible="bernoulli", hidden="bernoulli", scale=1.0, seed=0, dtype=f64):
    return shaken(DBN(sizes, visible, hidden, dtype=dtype), scale, seed)


def table(dbm):
    """log p(v) of all visible states, by all states of all layers."""
    layers = states(sum(dbm.sizes), dbm.unit).split(dbm.sizes, -1)
    E = -sum(x @ b for x, b in zip(layers, dbm.b))
    E = E - sum(((x @ W) * y).sum(-1) for x, W, y in zip(layers, dbm.W, layers[1:]))
    return (-E).view(-1, 2 ** dbm.sizes[0]).logsumexp(0).log_softmax(0)


# --- numbers worked out by another program

def known():
    i, j, k = (torch.arange(n, dtype=f64) for n in (3, 2, 2))
    W1, W2 = torch.sin(i[:, None] + 2 * j + 1), torch.cos(j[:, None] + 3 * k)
    return W1, W2, (i - 1) / 2, j / 3 - 0.5, 0.2 - 0.3 * k


def test_known_machine():
    dbm = DBM([3, 2, 2], dtype=f64).requires_grad_(False)
    for p, x in zip(dbm.parameters(), known()): p.copy_(x)
    V = states(3)
    assert abs(dbm.log_partition().item() - 5.172665233674465) < 1e-13
    wanted = torch.tensor([-2.4235726859885656, -2.1743893348504137, -1.652220003655259], dtype=f64)
    torch.testing.assert_close(dbm.log_prob(V[[0, 5, 7]]), wanted, rtol=0, atol=1e-13)
    assert abs(dbm.bound(V[5], 300).item() + 2.230925272534942) < 1e-13
    rows = dbm.mean_field(V[5], 300)
    means = torch.cat([dbm.as_rbm().hidden_mean(rows), rows[3:]])
    wanted = torch.tensor([0.7254576678, 0.3204945927, 0.7500017525, 0.2635327937], dtype=f64)
    torch.testing.assert_close(means, wanted, rtol=0, atol=1e-10)


def test_known_network():
    W1, W2, b, c1, c2 = known()
    net = DBN([3, 2, 2], dtype=f64).requires_grad_(False)
    for rbm, numbers in zip(net.layers, ((W1, b, c1), (W2, c1, c2))):
        for p, x in zip(rbm.parameters(), numbers): p.copy_(x)
    wanted = torch.tensor([-2.055824531179443, -2.169018425048977, -1.9537656743783862], dtype=f64)
    torch.testing.assert_close(net.log_prob(states(3)[[0, 5, 7]]), wanted, rtol=0, atol=1e-13)
    assert abs(net.bound(states(3)[5]).item() + 2.3347683658067373) < 1e-13


# --- laws

@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=3, max_size=5), st.sampled_from(("bernoulli", "spin")),
       st.integers(0, 99))
def test_likelihood_and_bound_of_any_depth(sizes, unit, seed):
    dbm = deep(sizes, unit, 0.8, seed)
    V, truth = states(sizes[0], unit), table(dbm)
    torch.testing.assert_close(dbm.log_prob(V), truth, rtol=0, atol=1e-11)
    path = torch.stack([dbm.bound(V, steps) for steps in (1, 2, 5, 50)])
    assert (path.diff(dim=0) > -1e-11).all() and (path[-1] < truth + 1e-11).all()


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(0, 99))
def test_network_of_any_depth_adds_up_and_lies_above_its_bound(sizes, seed):
    net = belief(sizes, seed=seed)
    V = states(sizes[0])
    assert abs(net.log_prob(V).exp().sum().item() - 1) < 1e-12
    assert (net.bound(V) < net.log_prob(V) + 1e-12).all()
    taller = net.grown()
    torch.testing.assert_close(taller.log_prob(V), net.log_prob(V), rtol=0, atol=1e-11)
    torch.testing.assert_close(taller.bound(V), net.bound(V), rtol=0, atol=1e-11)


@pytest.mark.parametrize("visible,hidden", [("gaussian", "bernoulli"), ("binomial(2)", "spin"),
                                            ("bernoulli", "potts(3)"), ("bernoulli", "binomial(2)")])
def test_network_of_other_units(visible, hidden):
    net = belief([3, 6, 3], visible, hidden, 0.4)
    first, top = net.layers
    v = first.sample(7, 20, generator=0)
    S = states(6, hidden)
    down = -first.energy(v[:, None], S) + first.hidden_free_energy(S)
    wanted = torch.logsumexp(down + top.log_prob(S), 1)
    torch.testing.assert_close(net.log_prob(v), wanted, rtol=0, atol=1e-11)
    assert (net.bound(v) < net.log_prob(v)).all()


def test_slopes_of_a_network_are_differences_of_means():
    net, v = belief().requires_grad_(True), states(4)[[3, 9, 9, 14]]
    slopes = dict(zip(dict(net.named_parameters()),
                      torch.autograd.grad(net.log_prob(v).sum(), tuple(net.parameters()))))
    first, top = net.requires_grad_(False).layers
    H, K = states(3), states(2)
    post = (-first.energy(v[:, None], H) + first.hidden_free_energy(H) + top.log_prob(H)).softmax(1)
    W1 = torch.einsum("nh,nhi,hj->ij", post, v[:, None] - first.visible_mean(H), H)
    torch.testing.assert_close(slopes["layers.0.W"], W1)
    joint = (-top.energy(H[:, None], K)).flatten().softmax(0).view(8, 4)
    W2 = H.T @ (post.sum(0)[:, None] * top.hidden_mean(H)) - len(v) * H.T @ joint @ K
    torch.testing.assert_close(slopes["layers.1.W"], W2)


def test_slopes_of_a_machine_are_differences_of_means():
    dbm, v = deep().requires_grad_(True), states(4)[[3, 9]]
    slopes = torch.autograd.grad(dbm.log_prob(v).sum(), tuple(dbm.parameters()))
    dbm.requires_grad_(False)
    layers = states(9).split(dbm.sizes, -1)
    rbm = dbm.as_rbm()
    log_p = -rbm.energy(torch.cat(layers[::2], -1), layers[1])
    p = log_p.softmax(0)
    q = sum(torch.where((layers[0] == x).all(-1), log_p, -math.inf).softmax(0) for x in v)
    for l in (0, 1):
        wanted = torch.einsum("n,ni,nj->ij", q - 2 * p, layers[l], layers[l + 1])
        torch.testing.assert_close(slopes[l], wanted)


def test_samples_have_the_law():
    for net in (deep([3, 2, 2]), belief([3, 2, 2])):
        v = net.sample(40_000, generator=0)
        counts = torch.bincount((v @ 2.0 ** torch.arange(3, dtype=f64)).long(), minlength=8) / len(v)
        p = net.log_prob(states(3)).exp()
        assert ((counts - p) / (p * (1 - p) / len(v)).sqrt()).abs().max() < 4
    assert deep([30, 30, 30], scale=0.1).sample(5, 3, 0).shape == (5, 30)


def test_annealing_of_either_side_and_of_a_clamped_machine():
    dbm = deep([8, 6, 5], scale=0.6)
    log_z = dbm.log_partition().item()
    for side in (dbm.as_rbm(), transposed(dbm.as_rbm())):
        found = ais(side, 200, 300, 1)
        assert abs(found.z(log_z)) < 4 and found.stderr < 0.1
    v = dbm.sample(1, generator=0)[0]
    inner = ais(dbm.clamped(v), 200, 200, 2)
    truth = (dbm.log_prob(v) + log_z - v @ dbm.b[0]).item()
    assert abs(inner.z(truth)) < 4 and inner.stderr < 0.1


def test_ceilings_lie_above_a_trained_network():
    first = belief([5, 3])
    v = states(5)[torch.randint(32, (60,), generator=seeded())]
    bound, likelihood = ceilings(first.layers[0], v, 500)
    assert abs(bound.exp().sum().item() - 1) < 1e-12 and abs(likelihood.exp().sum().item() - 1) < 1e-12
    value = lambda prior, which: with_prior(first.layers[0], v, prior)[which].mean()
    for seed in range(5):
        other = belief([3, 4], seed=seed).log_prob(states(3))
        assert value(other, 1) < value(bound, 1) and value(other, 0) < value(likelihood, 0)


def test_a_deep_gradient_without_a_second_layer_is_that_of_the_first():
    dbm, v = deep(), states(4)[[1, 2, 7]]
    dbm.W[1].zero_()
    rbm = RBM(4, 3, dtype=f64).requires_grad_(False)
    for p, x in zip(rbm.parameters(), (dbm.W[0], dbm.b[0], dbm.b[1])): p.copy_(x)
    found, last = deep_gradient(dbm, v, 1, states(6)[:20], 3)
    assert found.keys() == dict(dbm.named_parameters()).keys() and last.shape == (20, 6)
    mean = lambda rows: torch.einsum("ni,nj->ij", rows, rbm.hidden_mean(rows)) / len(rows)
    torch.testing.assert_close(found["W.0"], mean(v) - mean(last[:, :4]))
    torch.testing.assert_close(found["b.0"], v.mean(0) - last[:, :4].mean(0))
    torch.testing.assert_close(found["b.2"], torch.sigmoid(dbm.b[2]) - last[:, 4:].mean(0))


def test_a_deep_gradient_of_several_shapes():
    dbm, v = deep(dtype=f32), states(4, dtype=f32).view(4, 4, 4)
    found, chains = deep_gradient(dbm, v, 2, generator=0)
    flat, other = deep_gradient(dbm, v.view(16, 4), 2, generator=0)
    assert torch.equal(chains, other) and chains.shape == (16, 6) and chains.dtype == f32
    for name in found: assert found[name].dtype == f32 and torch.equal(found[name], flat[name])


def test_offsets_of_zero_change_nothing_and_others_keep_the_blocks():
    dbm, v = deep([3, 2, 2, 2]), states(3)[[1, 6]]
    zero = torch.zeros(5, dtype=f64), torch.zeros(4, dtype=f64)
    one, two = (deep_gradient(dbm, v, generator=1, offsets=o)[0] for o in (None, zero))
    for name in one: torch.testing.assert_close(one[name], two[name])
    mu, lam = torch.rand(5, dtype=f64, generator=seeded()), torch.rand(4, dtype=f64, generator=seeded(1))
    moved, _ = deep_gradient(dbm, v, generator=1, offsets=(mu, lam))
    W1 = one["W.0"] - torch.outer(mu[:3], one["b.1"]) - torch.outer(one["b.0"], lam[:2])
    W2 = one["W.1"] - torch.outer(lam[:2], one["b.2"]) - torch.outer(one["b.1"], mu[3:])
    torch.testing.assert_close(moved["W.0"], W1)
    torch.testing.assert_close(moved["W.1"], W2)
    torch.testing.assert_close(moved["b.1"], one["b.1"] - W1.T @ mu[:3] - W2 @ mu[3:])


def test_the_way_up_draws_from_q():
    net, v = belief([3, 2, 2]), states(3)[5].expand(20_000, 3)
    h = net.up(v, 0)
    q = conditionals(net.layers[0])[0][5].exp()
    counts = torch.bincount((h @ 2.0 ** torch.arange(2, dtype=f64)).long(), minlength=4) / len(h)
    assert ((counts - q) / (q * (1 - q) / len(h)).sqrt()).abs().max() < 4
    assert torch.equal(belief([3, 2]).up(v[:2], 0), v[:2])


def test_sampled_bound_of_three_layers():
    net, v = belief([4, 3, 3, 2]), states(4)[6]
    log_z = net.layers[2].log_partition().item()
    found = Estimate.of(torch.stack([net.sampled_bound(v, log_z, 20, s) for s in range(300)]))
    assert abs(found.z(net.bound(v).item())) < 4 and found.stderr < 0.1


def test_layers_below_are_drawn_from_the_top_down():
    net = belief([3, 4, 2, 2])
    v = net.sample(20_000, generator=0)
    p = net.log_prob(states(3)).exp()
    share = torch.bincount((v @ 2.0 ** torch.arange(3, dtype=f64)).long(), minlength=8) / len(v)
    assert ((share - p) / (p * (1 - p) / len(v)).sqrt()).abs().max() < 4
    many = net.sampled_bound(states(3)[5], net.layers[2].log_partition().item(), 20_000, 0)
    assert abs((many - net.bound(states(3)[5])).item()) < 0.05


def test_layers_start_from_one_stream():
    one, two = DBN([3, 3, 3], generator=1), DBN([3, 3, 3], generator=2)
    assert not torch.equal(one.layers[0].W, one.layers[1].W)
    assert not torch.equal(one.layers[1].W, two.layers[1].W)


def test_mean_field_by_hand():
    dbm, v = deep(), states(4)
    (W1, W2), (_, c1, c2) = dbm.W, dbm.b
    m2 = torch.sigmoid(torch.sigmoid(2 * v @ W1 + c1) @ W2 + c2)
    for _ in range(2): m2 = torch.sigmoid(torch.sigmoid(v @ W1 + m2 @ W2.T + c1) @ W2 + c2)
    torch.testing.assert_close(dbm.mean_field(v, 2)[:, 4:], m2)
    dbm.W[1].fill_(math.nan)
    with pytest.raises(ValueError, match="finite parameters"): dbm.mean_field(v)


def test_chains_of_any_shape():
    dbm, v, chains = deep(), states(4)[:3], states(6)[:20]
    flat, last = deep_gradient(dbm, v, 1, chains, 0)
    found, same = deep_gradient(dbm, v, 1, chains.view(2, 10, 6), 0)
    assert torch.equal(last, same)
    for name in flat: assert torch.equal(found[name], flat[name])


def test_sums_and_slopes_of_single_precision_are_those_of_double():
    net, v = deep(dtype=f32, scale=30.0).requires_grad_(True), states(4, dtype=f32)
    wide = copy.deepcopy(net).double()
    for name in ("log_prob", "bound"):
        found, wanted = getattr(net, name)(v), getattr(wide, name)(v.double())
        assert torch.equal(found, wanted.float())
        slopes = torch.autograd.grad(found.sum(), tuple(net.parameters()))
        for x, y in zip(slopes, torch.autograd.grad(wanted.sum(), tuple(wide.parameters()))):
            torch.testing.assert_close(x, y.float())


def test_transposed_exchanges_the_units():
    rbm = RBM(3, 2, "spin", "bernoulli", generator=0)
    v, h = states(3, "spin", dtype=f32), states(2, dtype=f32)
    other = transposed(rbm)
    assert (str(other.visible), str(other.hidden)) == ("bernoulli", "spin")
    torch.testing.assert_close(other.energy(h, v[:, None]), rbm.energy(v[:, None], h))


def test_twenty_bits_are_listed(monkeypatch):
    monkeypatch.setattr(module, "states", lambda *a, **k: "all")
    assert module._listed(machine(3, 20), "") == "all"


def test_two_steps_are_one_after_the_other():
    dbm, v, chains, stream = deep(), states(4)[:3], states(6)[:20], seeded()
    found, last = deep_gradient(dbm, v, 2, chains, seeded())
    one = deep_gradient(dbm, v, 1, chains, stream)[1]
    wanted, other = deep_gradient(dbm, v, 1, one, stream)
    assert torch.equal(last, other)
    for name in found: assert torch.equal(found[name], wanted[name])


def test_the_pass_down_draws_from_the_stream():
    net = belief([8, 2, 2], scale=0)
    net.layers[1].b.fill_(100.0)                      # the layer between is one in every draw
    assert not torch.equal(net.sample(9, generator=1), net.sample(9, generator=2))
    v = states(3)
    assert belief([3, 2]).up(v, 0) is not v


# --- files, dtypes, devices, shapes

@pytest.mark.parametrize("net", [deep([3, 2, 2], "spin"), belief([3, 2, 2], "gaussian", "spin", 0.3)])
def test_saved_and_loaded(net, tmp_path):
    net.save(tmp_path / "x.safetensors")
    again = type(net).load(tmp_path / "x.safetensors")
    assert again.settings == net.settings
    for p, q in zip(again.parameters(), net.parameters(), strict=True): assert torch.equal(p, q)
    with pytest.raises(ValueError, match="path"): RBM.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("make", [deep, belief])
def test_single_precision_and_shapes(make, device):
    net, wide = make(dtype=f32).to(device), make()
    V = states(4, dtype=f32, device=device)
    for name in ("log_prob", "bound"):
        found = getattr(net, name)(V.view(2, 2, 4, 4))
        assert found.dtype == f32 and found.shape == (2, 2, 4)
        wanted = getattr(wide, name)(states(4))
        torch.testing.assert_close(found.flatten().cpu().double(), wanted, rtol=0, atol=2e-5)
        assert getattr(net, name)(V[3]).shape == ()
        with pytest.raises(ValueError, match="v must not be empty"): getattr(net, name)(V[:0])
    assert net.sample(3, generator=0).device.type == device
    other = copy.deepcopy(net)
    assert torch.equal(other.log_prob(V), net.log_prob(V))


@pytest.mark.parametrize("size", [40.0, 1e4])
def test_large_numbers(size):
    for net in (deep(scale=size), belief(scale=size)):
        V = states(4)
        assert net.log_prob(V).isfinite().all() and net.bound(V).isfinite().all()
        assert (net.bound(V) <= net.log_prob(V) + 1e-9 * size).all()


def test_zero_weights_are_independent_units():
    for net in (deep(scale=0), belief(scale=0), deep([1, 1, 1], scale=0)):
        D = net.sizes[0]
        even = torch.full((2**D,), -D * math.log(2), dtype=f64)
        torch.testing.assert_close(net.log_prob(states(D)), even)
        torch.testing.assert_close(net.bound(states(D)), net.log_prob(states(D)))


def test_a_gradient_of_a_row_depends_on_no_other_row():
    dbm = deep()
    rows = dbm.mean_field(states(4), 20)
    torch.testing.assert_close(dbm.mean_field(states(4)[7], 20), rows[7], rtol=0, atol=1e-14)


# --- bad input

NO_STATES = [torch.zeros(2, 3, dtype=f64), torch.zeros(2, 4), [0, 1, 0, 1], None,
             torch.tensor(1.0, dtype=f64), torch.zeros(0, 4, dtype=f64),
             torch.full((2, 4), math.nan, dtype=f64)]


@pytest.mark.parametrize("kind", [DBN, DBM])
@pytest.mark.parametrize("sizes,error,words", [
    ([4], ValueError, "at least . layers"), ([4, 0, 2], ValueError, r"sizes\[1\]"),
    ([4, 2.5, 2], TypeError, r"sizes\[1\]"), ("432", TypeError, "sequence"), (7, TypeError, "sequence")])
def test_bad_sizes(kind, sizes, error, words):
    with pytest.raises(error, match=words): kind(sizes)


def test_what_fits_no_machine():
    with pytest.raises(ValueError, match="at least 3 layers"): DBM([3, 2])
    with pytest.raises(ValueError, match="unit must be 'bernoulli' or 'spin', got 'gaussian'"):
        DBM([3, 2, 2], "gaussian")
    with pytest.raises(ValueError, match="no widths"): transposed(machine(3, 2, "gaussian"))
    with pytest.raises(ValueError, match="layer"): doubled(machine(3, 2), "middle")
    real = belief([3, 2], "gaussian", scale=0.1)
    with pytest.raises(ValueError, match="units of one kind"): real.grown()
    assert belief([3, 2, 2], "gaussian", scale=0.1).grown().sizes == [3, 2, 2, 2]
    with pytest.raises(ValueError, match="v must have shape"): deep().clamped(states(4)[None])


def test_what_is_too_large_says_what_to_use_instead():
    v = torch.zeros(2, 40, dtype=f64)
    with pytest.raises(ValueError, match="at most 20 bits .* use DBN.sampled_bound instead"):
        belief([40, 30, 5], scale=0.1).log_prob(v)
    with pytest.raises(ValueError, match="use learning.partition.ais instead"):
        deep([40, 30, 5], scale=0.1).log_prob(v)
    with pytest.raises(ValueError, match="use learning.partition.ais instead"):
        deep([40, 30, 5], scale=0.1).bound(v)
    assert deep([40, 30, 5], scale=0.1).bound(v, log_z=20.0).shape == (2,)
    with pytest.raises(ValueError, match="steps must be given"): deep([40, 30, 5]).sample(2)
    with pytest.raises(ValueError, match="at most 20 bits"): ceilings(machine(3, 21), v[:, :3])


@pytest.mark.parametrize("make", [deep, belief])
@pytest.mark.parametrize("method", ["log_prob", "bound"])
@pytest.mark.parametrize("v", [torch.full((2, 4), 0.5, dtype=f64), *NO_STATES])
def test_bad_states(make, method, v):
    with pytest.raises((TypeError, ValueError), match="v must"): getattr(make(), method)(v)


@pytest.mark.parametrize("v", NO_STATES)
def test_what_no_function_takes_for_states(v):
    dbm, net = deep(), belief()
    prior = torch.full((8,), -math.log(8), dtype=f64)
    for f in (dbm.mean_field, dbm.clamped, net.up, lambda v: net.sampled_bound(v, 1.0),
              lambda v: with_prior(net.layers[0], v, prior), lambda v: ceilings(net.layers[0], v),
              lambda v: deep_gradient(dbm, v)):
        with pytest.raises((TypeError, ValueError), match="v must"): f(v)


def test_bad_parts_of_a_deep_gradient():
    dbm, v = deep(), states(4)[:3]
    for other in (belief(), dbm.as_rbm(), None):
        with pytest.raises(TypeError, match="dbm must be a DBM"): deep_gradient(other, v)
    mu, lam = torch.zeros(6, dtype=f64), torch.zeros(3, dtype=f64)
    for bad in (5, (mu,), mu):
        with pytest.raises(TypeError, match="offsets must"): deep_gradient(dbm, v, offsets=bad)
    with pytest.raises(ValueError, match="offset must"): deep_gradient(dbm, v, offsets=(lam, mu))
    for W in ([dbm.W[0]], list(dbm.W)[::-1]):
        with pytest.raises(ValueError, match="W must hold"): dbm.joined(W)
    dbm.W[1][0, 0] = math.nan
    with pytest.raises(ValueError, match="finite parameters"): dbm.bound(v, log_z=1.0)


def test_bad_numbers():
    dbm, net, v = deep(), belief(), states(4)[:3]
    for steps in (0, 1.5):
        with pytest.raises((TypeError, ValueError), match="steps"): dbm.bound(v, steps)
        with pytest.raises((TypeError, ValueError), match="steps"): ceilings(net.layers[0], v, steps)
    with pytest.raises((TypeError, ValueError), match="log_z"): dbm.bound(v, log_z=math.nan)
    with pytest.raises((TypeError, ValueError), match="log_z"): net.sampled_bound(v, math.inf)
    with pytest.raises((TypeError, ValueError), match="draws"): net.sampled_bound(v, 1.0, 0)
    with pytest.raises(ValueError, match="prior must have shape"):
        with_prior(net.layers[0], v, torch.zeros(2, 8, dtype=f64))
    few, half = torch.zeros(5, 3, dtype=f64), torch.full((5, 6), 0.5, dtype=f64)
    with pytest.raises((TypeError, ValueError), match="prior"): with_prior(net.layers[0], v, few[0])
    with pytest.raises(ValueError, match="chains"): deep_gradient(dbm, v, 1, few)
    with pytest.raises(ValueError, match="chains"): deep_gradient(dbm, v, 1, half)
    with pytest.raises((TypeError, ValueError), match="k"): deep_gradient(dbm, v, 0)
    with pytest.raises(ValueError, match="v must"): deep_gradient(dbm, 0.5 + 0 * v)
    dbm.W[0][0, 0] = math.nan
    with pytest.raises(ValueError, match=r"rbm must have finite parameters.*\['W'\]"): dbm.log_prob(v)


def test_exact_gradients_of_a_top_machine_raise_the_bound():
    net, v = belief([4, 3]).grown().requires_grad_(False), states(4)[[1, 1, 6, 12]]
    S = states(3)
    q = conditionals(net.layers[0])[0].exp()[[1, 1, 6, 12]]
    before = net.bound(v).mean()
    h = S[torch.multinomial(q.mean(0), 20_000, True, generator=seeded())]
    for name, slope in exact_gradient(net.layers[1], h).items():
        getattr(net.layers[1], name).add_(slope, alpha=0.1)
    assert net.bound(v).mean() > before
