"""Score matching for real numbers and bits against closed forms, enumeration, quadrature and draws."""
import math

import pytest
import torch
from torch.nn.functional import softplus

from machines import BAD_STREAMS, machine, normal, seeded, some_states
from rbmdiff.bridge.limit import score_matching_loss
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.units import Discrete, states
from rbmdiff.learning.score_matching import (
    LAWS,
    concrete_score_loss,
    explicit_loss,
    flip_loss,
    noise_contrastive_loss,
    probability_flow_loss,
    probe_variance,
    pseudo_likelihood,
    ratio_matching,
    sandwich,
    score_entropy_loss,
    sliced_loss,
)
from rbmdiff.models.boltzmann import Boltzmann, couplings
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.metropolis import RULES

f32, f64 = torch.float32, torch.float64
POTENTIALS = {
    pseudo_likelihood: softplus,
    ratio_matching: lambda y: y.sigmoid() ** 2,
    probability_flow_loss: lambda y: (y / 2).exp(),
    score_entropy_loss: lambda y: y.exp() + y,
    concrete_score_loss: lambda y: (2 * y).exp() - 2 * (-y).exp(),
}
PAIRS = [(v, h) for v in ("bernoulli", "spin") for h in ("bernoulli", "spin")]


def boltzmann(n=5, unit="bernoulli", scale=0.7, seed=0):
    """A machine without layers, with normal couplings."""
    t = scale * normal(n * (n + 1) // 2, seed=seed)
    return Boltzmann(couplings(t[:-n]), t[-n:], unit)


def near(log_p, D):
    """log p of all neighbours less log p, for a table of all states in order."""
    index = torch.arange(2**D)
    return torch.stack([log_p[index ^ (1 << i)] for i in range(D)], 1) - log_p[:, None]


def network(seed=0, D=4, dtype=f64):
    """A small network as a score, that asks for gradients."""
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(D, 7, dtype=dtype), torch.nn.Softplus(),
                               torch.nn.Linear(7, D, dtype=dtype))


# Real numbers

@pytest.mark.parametrize("hidden", ["bernoulli", "spin"])
def test_explicit_loss_is_the_closed_form_of_a_machine(hidden):
    m, v = machine(4, 3, "gaussian", hidden), normal(6, 4)
    assert (explicit_loss(m.score, v) - score_matching_loss(m, v)).abs().max() < 1e-12
    assert (explicit_loss(lambda x: -m.score(x), v) - score_matching_loss(m, v)).abs().max() > 0.1


def test_explicit_loss_of_a_network_and_its_gradient():
    net, x = network(), normal(5, 4)
    slopes = torch.autograd.functional.jacobian
    jacobian = torch.stack([slopes(net, row, create_graph=True) for row in x])
    truth = jacobian.diagonal(dim1=1, dim2=2).sum(1) + net(x).square().sum(1) / 2
    loss = explicit_loss(net, x)
    assert (loss - truth).abs().max() < 1e-12
    ours, theirs = (torch.autograd.grad(y.mean(), tuple(net.parameters()), allow_unused=True,
                                        retain_graph=True) for y in (loss, truth))
    assert max((a - b).abs().max() for a, b in zip(ours, theirs)) < 1e-12
    wide = explicit_loss(net, x.reshape(5, 1, 4).expand(5, 2, 4))
    assert (wide - loss[:, None]).abs().max() < 1e-12 and explicit_loss(net, x[0]).shape == ()


def test_a_frozen_score_gives_no_graph_and_is_left_alone():
    net, x = network().requires_grad_(False), normal(5, 4)
    before = x.clone()
    assert not explicit_loss(net, x).requires_grad and not sliced_loss(net, x).requires_grad
    assert torch.equal(x, before) and not x.requires_grad
    with torch.no_grad(): same = explicit_loss(network(), x)
    assert (same - explicit_loss(net, x)).abs().max() < 1e-14
    z = x.clone().requires_grad_()
    slope, = torch.autograd.grad(explicit_loss(net, z).sum(), z)
    h = 1e-5 * torch.eye(4, dtype=f64)[0]
    difference = (explicit_loss(net, x + h) - explicit_loss(net, x - h)) / 2e-5
    assert (slope[:, 0] - difference).abs().max() < 1e-8


@pytest.mark.parametrize("box", [(0, 1), (-2.0, 3.0)])
def test_walls_against_quadrature(box):
    low, high = box
    x = low + (high - low) * (torch.arange(20000, dtype=f64)[:, None] + 0.5) / 20000
    p, own = (0.7 * x).exp(), 0.7
    p = p / p.sum()
    w = (x - low) * (high - x)
    f = lambda x: x.cos() - x
    truth = (p * w * ((f(x) - own) ** 2 - own**2)).sum() / 2
    assert abs((p[:, 0] @ explicit_loss(f, x, box)) - truth) < 1e-7
    assert abs((p[:, 0] @ explicit_loss(f, x)) - truth) > 0.1
    pair = torch.stack([x[:, 0], x[:, 0].flip(0)], 1)
    both = explicit_loss(f, pair, box)
    assert (both - explicit_loss(f, x, box) - explicit_loss(f, x.flip(0), box)).abs().max() < 1e-12


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("projected", [False, True])
def test_slices_are_right_on_average(law, projected):
    net, x = network().requires_grad_(False), normal(1, 4)
    draws = sliced_loss(net, x.expand(40000, 4), 1, seeded(3), law=law, projected=projected)
    found = Estimate.of(draws)
    assert abs(found.z(explicit_loss(net, x).item())) < 4 and found.stderr < 0.02
    many = sliced_loss(net, x.expand(4000, 4), 10, seeded(4), law=law, projected=projected)
    assert 0.08 < many.var() / draws.var() < 0.125


def test_signs_are_exact_for_independent_units_and_normal_probes_are_not():
    x, scale = normal(5, 4), torch.tensor([0.5, 1.0, 2.0, 3.0], dtype=f64)
    f = lambda x: torch.tanh(-x * scale)
    assert (sliced_loss(f, x, 1, 0) - explicit_loss(f, x)).abs().max() < 1e-12
    assert (sliced_loss(f, x, 1, 0, law="normal") - explicit_loss(f, x)).abs().max() > 0.1
    f = lambda x: -2 * x
    assert (sliced_loss(f, x, 1, 0, law="sphere") - explicit_loss(f, x)).abs().max() < 1e-12


@pytest.mark.parametrize("law", LAWS)
def test_variance_of_probes(law):
    K = normal(2, 5, 5)
    u = sliced_loss(lambda x: x @ K[1], torch.zeros(200000, 5, dtype=f64), 1, seeded(1), law=law)
    found = Estimate.of((u - K[1].trace()).square())
    both = probe_variance(K, law)
    assert both.shape == (2,) and abs(found.z(both[1].item())) < 4
    assert (probe_variance(K.mT, law) - both).abs().max() < 1e-12
    assert all(abs(found.z(probe_variance(K[1], other).item())) > 5 for other in LAWS if other != law)
    assert probe_variance(torch.eye(3, dtype=f64), "rademacher") == 0
    assert probe_variance(torch.eye(3, dtype=f64), "sphere") == 0


def test_each_row_has_its_own_stream():
    net, x = network().requires_grad_(False), normal(3, 4)
    for law in LAWS:
        whole = sliced_loss(net, x, 2, [5, 6, 7], law=law)
        alone = torch.cat([sliced_loss(net, x[i:i + 1], 2, [5 + i], law=law) for i in range(3)])
        torch.testing.assert_close(whole, alone)
    for bad in BAD_STREAMS.values():
        with pytest.raises((TypeError, ValueError), match="generator must"): sliced_loss(net, x, 1, bad)


# The price

def test_sandwich_of_a_mean_and_of_a_median_like_loss():
    x = torch.linspace(-8, 8, 16001, dtype=f64)
    p, zero = (-x * x / 2).softmax(0), torch.zeros(1, dtype=f64)
    mean = sandwich(lambda t: (x - t).square() / 2, zero, p)
    bent = lambda y: 0.005 * (softplus(y / 0.005) + softplus(-y / 0.005))           # nearly |y|
    smooth = sandwich(lambda t: bent(x - t), zero, p)
    assert abs(mean - 1) < 1e-10 and abs(smooth - math.pi / 2) < 0.02
    assert abs(sandwich(lambda t: 7 * (x - t).square(), zero, p) - 1) < 1e-10   # its scale is no matter


def test_sandwich_of_independent_parts():
    """Two draws of one law for each datum: the sum of all three."""
    x = torch.tensor([-1.0, 0.0, 1.0], dtype=f64)
    p, q = torch.tensor([0.25, 0.5, 0.25], dtype=f64), torch.tensor([0.5, 0.0, 0.5], dtype=f64)
    losses = lambda t: torch.stack([(x - t).square() / 2, (x - t).square() / 2])
    found = sandwich(losses, torch.zeros(1, dtype=f64), torch.stack([p, 2 * q]))
    assert abs(found - (0.5 + 2 * 1.0) / 9) < 1e-14


def test_estimates_of_a_share_spread_as_the_sandwich_says():
    """Newton for the share of hills at +-1.5 by score matching, 400 runs of 2000 data."""
    m, share = 1.5, 0.3
    s = lambda b: lambda x: m * torch.tanh(m * x + b) - x                # b = -logit(share) / 2
    b0 = torch.tensor([-0.5 * math.log(share / (1 - share))], dtype=f64)
    grid = torch.linspace(-10, 10, 4001, dtype=f64)
    log_p = torch.logaddexp(math.log(share) - (grid + m) ** 2 / 2,
                            math.log(1 - share) - (grid - m) ** 2 / 2)
    wanted = sandwich(lambda b: explicit_loss(s(b), grid[:, None]), b0, log_p.softmax(0)).item()
    g = seeded(8)
    side = torch.where(torch.rand(400, 2000, dtype=f64, generator=g) < share, -m, m)
    x = side + torch.randn(400, 2000, dtype=f64, generator=g)
    b = b0.expand(400, 1)
    loss = lambda b, x: explicit_loss(s(b), x[:, None]).mean()
    for _ in range(6):
        slope = torch.func.vmap(torch.func.grad(loss))(b, x)
        bend = torch.func.vmap(torch.func.jacrev(torch.func.grad(loss)))(b, x)[..., 0]
        b = b - slope / bend
    found = Estimate.of(2000 * (b[:, 0] - b0).square())
    assert abs(found.z(wanted)) < 4 and found.stderr < 0.1 * wanted


# Bits

@pytest.mark.parametrize("visible, hidden", PAIRS)
@pytest.mark.parametrize("loss", POTENTIALS, ids=lambda f: f.__name__)
def test_flip_losses_are_sums_over_neighbours(loss, visible, hidden):
    m, V = machine(5, 3, visible, hidden), states(5, visible)
    rho = near(m.log_prob(V), 5)
    truth = POTENTIALS[loss](rho).sum(1)
    size = truth.abs().max()
    assert (loss(m, V) - truth).abs().max() < 1e-11 * size
    assert (flip_loss(m, V, POTENTIALS[loss]) - truth).abs().max() < 1e-11 * size
    assert (loss(m, V) - POTENTIALS[loss](-rho).sum(1)).abs().max() > 0.1
    assert torch.equal(loss(m, V.reshape(4, 8, 5)), loss(m, V).reshape(4, 8))
    assert loss(m, V[3]).shape == ()


@pytest.mark.parametrize("unit", ["bernoulli", "spin", Discrete((-1, 3), 0.3)], ids=str)
@pytest.mark.parametrize("loss", POTENTIALS, ids=lambda f: f.__name__)
def test_flip_losses_of_machines_without_layers(loss, unit):
    m = boltzmann(5, unit, 0.3)
    V = states(5, unit)
    truth = POTENTIALS[loss](near(m.log_prob(V), 5)).sum(1)
    assert (loss(m, V) - truth).abs().max() < 1e-10 * truth.abs().max()
    assert (pseudo_likelihood(m, V) + m.log_pseudo(V)).abs().max() < 1e-12


@pytest.mark.parametrize("loss", POTENTIALS, ids=lambda f: f.__name__)
def test_flip_losses_are_least_at_the_truth(loss):
    """Along a line through the parameters, for a law that the machine has, and not for another."""
    m, V = machine(4, 3), states(4)
    p = m.log_prob(V).exp()
    at = lambda k: (p @ loss(m.sharing(W=m.W + k * normal(4, 3, seed=5), b=m.b - k), V)).item()
    heights = [at(k) for k in (-0.2, -0.1, -0.01, 0.0, 0.01, 0.1, 0.2)]
    assert heights == sorted(heights[:4], reverse=True) + sorted(heights[4:])
    other = machine(4, 3, seed=9).log_prob(V).exp()
    slope = lambda w: torch.func.grad(lambda b: w @ loss(m.sharing(b=b), V))(m.b).abs().max()
    assert slope(p) < 1e-13 and slope(other) > 0.01


def test_pseudo_likelihood_of_extreme_ratios_is_precise():
    m = RBM(1, 1, dtype=f64).requires_grad_(False)
    m.W.zero_()
    m.b.fill_(30.0)
    v = torch.ones(1, 1, dtype=f64)
    assert abs(pseudo_likelihood(m, 0 * v).item() - 30 - math.exp(-30)) < 1e-14
    assert abs(pseudo_likelihood(m, v).item() / math.exp(-30) - 1) < 1e-12


def test_a_batch_of_tilted_machines():
    m, V = machine(4, 3), states(4)[:3]
    fields = normal(3, 4)
    for loss in POTENTIALS:
        alone = torch.stack([loss(m.tilt(f), v) for f, v in zip(fields, V)])
        torch.testing.assert_close(loss(m.tilt(fields), V), alone)


def test_the_rules_of_metropolis_are_slopes():
    m, V = machine(4, 3), states(4)
    for rule, potential in (("metropolis", lambda y: y.clamp(max=0).exp() + y.clamp(min=0)),
                            ("barker", softplus), ("sqrt", lambda y: 2 * (y / 2).exp())):
        rho = torch.linspace(-6, 6, 12, dtype=f64)
        g = torch.func.vmap(torch.func.grad(potential))(rho)
        assert (g - RULES[rule](rho).exp()).abs().max() < 1e-12 * g.max()
        assert flip_loss(m, V, potential).shape == (16,)


@pytest.mark.parametrize("loss", POTENTIALS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [f32, f64])
def test_losses_keep_dtype_and_give_gradients(loss, dtype):
    m, v = machine(4, 3, dtype=dtype).requires_grad_(), states(4, dtype=dtype)
    y = loss(m, v)
    y.mean().backward()
    assert y.dtype == dtype and all(bool(p.grad.isfinite().all()) for p in m.parameters())
    torch.testing.assert_close(y.double(), loss(machine(4, 3), states(4)), rtol=1e-4, atol=1e-4)


# Noise

def fair(x): return -math.log(2) * torch.ones_like(x[..., 0]) * x.shape[-1]


def test_noise_contrastive_loss_by_hand_and_in_the_mean():
    m = machine(4, 3)
    v, y = some_states((2, 4), seed=3), some_states((3, 2, 4), seed=4)
    log_odds = lambda x: m.log_prob(x) - fair(x) - math.log(3)
    log_Z = m.log_partition()
    truth = softplus(-log_odds(v)) + softplus(log_odds(y)).sum(0)
    assert (noise_contrastive_loss(m, v, y, fair, log_Z) - truth).abs().max() < 1e-7
    assert (noise_contrastive_loss(m, v, y, fair, log_Z + 1) - truth).abs().max() > 0.1
    b = boltzmann(4)
    own = noise_contrastive_loss(b, v, y, fair, b.log_partition())
    odds = lambda x: b.log_prob(x) - fair(x) - math.log(3)
    assert (own - softplus(-odds(v)) - softplus(odds(y)).sum(0)).abs().max() < 1e-12


def test_noise_learns_the_norm_from_draws():
    m = machine(4, 3).requires_grad_(False)
    v = m.sample(4000, generator=0)
    y = (torch.rand(5, 4000, 4, dtype=f64, generator=seeded(1)) < 0.5).double()
    z = torch.zeros((), dtype=f64)
    loss = lambda z: noise_contrastive_loss(m, v, y, fair, z).mean()
    bend = torch.func.grad(torch.func.grad(loss))
    for _ in range(40): z = z - torch.func.grad(loss)(z) / bend(z).clamp(0.3)
    up, down = (noise_contrastive_loss(m, v, y, fair, z + h) for h in (1e-5, -1e-5))
    error = ((up - down).std() / 2e-5 / 4000**0.5 / bend(z)).item()
    assert error < 0.05 and abs(z - m.log_partition()).item() < 4 * error


# Bad input

X, NET = torch.zeros(3, 4), network(dtype=f32)
BITS, REAL = RBM(4, 3), RBM(4, 3, "gaussian")
Y = torch.zeros(2, 3, 4)
ONE = torch.ones(1)
NONE_LAW = lambda x: torch.where(x.sum(-1) > 0, -1.0, -math.inf)
BAD = {
    "no score": (lambda: explicit_loss(None, X), TypeError, "^score must be a function"),
    "a class": (lambda: explicit_loss(torch.nn.Linear, X), TypeError, "^score must be a function"),
    "another shape": (lambda: explicit_loss(lambda x: x[..., :3], X), ValueError,
                      "^score must return shape"),
    "a number": (lambda: sliced_loss(lambda x: x.sum(), X), ValueError, "^score must return shape"),
    "no tensor": (lambda: explicit_loss(lambda x: 3.0, X), TypeError, "^score must return a torch"),
    "without derivative": (lambda: explicit_loss(lambda x: NET(x.detach()), X), ValueError,
                           "^score must depend on x through differentiable"),
    "constant": (lambda: sliced_loss(torch.zeros_like, X), ValueError, "^score must depend on x"),
    "score of NaN": (lambda: explicit_loss(lambda x: x / 0, X), ValueError, "^score must be finite"),
    "x of NaN": (lambda: explicit_loss(NET, X * math.nan), ValueError, "^x must be finite"),
    "x of integers": (lambda: explicit_loss(NET, X.long()), TypeError, "^x must be float32"),
    "x a number": (lambda: explicit_loss(NET, X[0, 0]), ValueError, "^x must have shape"),
    "no x": (lambda: sliced_loss(NET, None), TypeError, "^x must be a torch.Tensor"),
    "at the boundary": (lambda: explicit_loss(NET, X, (0, 1)), ValueError,
                        r"^x must lie inside of the box \(0, 1\), its boundary excluded, got .* 0 to 0"),
    "box of one": (lambda: explicit_loss(NET, X, 1.0), TypeError, "^box must be two numbers"),
    "box of none": (lambda: explicit_loss(NET, X, (1, 1)), ValueError, r"^box\[1\] must be .* above 1"),
    "box without end": (lambda: explicit_loss(NET, X, (0, math.inf)), ValueError, r"^box\[1\] must be"),
    "no probes": (lambda: sliced_loss(NET, X, 0), ValueError, "^probes must be at least 1, got 0"),
    "half a probe": (lambda: sliced_loss(NET, X, 1.5), TypeError, "^probes must be an int"),
    "law": (lambda: sliced_loss(NET, X, law="uniform"), ValueError, "^law must be one of 'rademacher'"),
    "law of variance": (lambda: probe_variance(X, "uniform"), ValueError, "^law must be one of"),
    "K not square": (lambda: probe_variance(X), ValueError, r"^K must have shape \[..., D, D\]"),
    "streams": (lambda: sliced_loss(NET, X, 1, [1, 2]), ValueError, "generator must hold"),
    "no losses": (lambda: sandwich(3, ONE, ONE), TypeError, "^losses must be a function"),
    "theta": (lambda: sandwich(lambda t: t, X, ONE), ValueError, r"^theta must have shape \[P\]"),
    "no minimum": (lambda: sandwich(lambda t: (t - 2).square(), ONE, ONE), ValueError,
                   "^theta must be a minimum of the mean loss, its slope is 2"),
    "flat": (lambda: sandwich(lambda t: 0 * t, ONE, ONE), ValueError, "^theta must be a strict minimum"),
    "maximum": (lambda: sandwich(lambda t: -(t - 1).square(), ONE, ONE), ValueError, "strict minimum"),
    "losses of another shape": (lambda: sandwich(lambda t: t.sum(), ONE, ONE), ValueError,
                                "^losses must return shape"),
    "negative weights": (lambda: sandwich(lambda t: (t - 1).square(), ONE, -ONE), ValueError,
                         "^weights must not be negative"),
    "theta that wants a gradient": (
        lambda: sandwich(lambda t: (t - 1).square(), ONE.clone().requires_grad_(), ONE), ValueError,
        "sandwich builds no graph"),
    "potential": (lambda: flip_loss(BITS, X, 3), TypeError, "^potential must be a function"),
    "unbalanced": (lambda: flip_loss(BITS, X, torch.exp), ValueError, "^potential must have a slope g"),
    "falling": (lambda: flip_loss(BITS, X, lambda y: -softplus(y)), ValueError, "^potential must have"),
    "potential that sums": (lambda: flip_loss(BITS, X, torch.sum), ValueError,
                            "^potential must return shape"),
    "no states": (lambda: pseudo_likelihood(BITS, X + 0.3), ValueError, "^v must hold only 0 or 1"),
    "real units": (lambda: ratio_matching(REAL, X), ValueError, "^rbm must have visible units of two"),
    "no machine": (lambda: pseudo_likelihood(None, X), TypeError, "^rbm must be an RBM"),
    "three levels": (lambda: pseudo_likelihood(RBM(4, 3, "discrete((-1, 0, 1))"), X), ValueError,
                     "of two levels"),
    "spins": (lambda: score_entropy_loss(boltzmann(4, "spin"), X.double()), ValueError,
              "^v must hold only -1 or"),
    "dtype": (lambda: concrete_score_loss(boltzmann(4), X), TypeError, "^v must be torch.float64"),
    "width": (lambda: probability_flow_loss(boltzmann(5), X.double()), ValueError, "^v must have shape"),
    "colours": (lambda: pseudo_likelihood(Boltzmann(torch.zeros(4, 4), torch.zeros(4), "potts(2)"), X),
                ValueError, "^rbm must have visible units of two levels"),
    "no mass": (lambda: noise_contrastive_loss(BITS, X, Y, NONE_LAW, 0.0), ValueError,
                "^log_noise must give mass to all data"),
    "noise of another shape": (lambda: noise_contrastive_loss(BITS, X, X, fair, 0.0), ValueError,
                               r"^noise must have shape \[nu, 3, 4\], got \[3, 4\]"),
    "noise that is no state": (lambda: noise_contrastive_loss(BITS, X, Y - 1, fair, 0.0), ValueError,
                               "^noise must hold only"),
    "no law": (lambda: noise_contrastive_loss(BITS, X, Y, 1.0, 0.0), TypeError, "^log_noise must be"),
    "log_Z": (lambda: noise_contrastive_loss(BITS, X, Y, fair, math.inf), ValueError, "^log_Z must be"),
    "many log_Z": (lambda: noise_contrastive_loss(BITS, X, Y, fair, X[0]), ValueError,
                   "^log_Z must be one"),
    "many machines": (lambda: noise_contrastive_loss(BITS.tilt(X), X, Y, fair, 0.0), ValueError,
                      "^rbm must be one machine"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message): call()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_losses_on_cuda():
    net, x = network().requires_grad_(False), normal(5, 4)
    truth = explicit_loss(net, x)
    net, x = net.to("cuda"), x.to("cuda")
    assert (explicit_loss(net, x).cpu() - truth).abs().max() < 1e-12
    assert sliced_loss(net, x, 2, seeded(0, "cuda")).is_cuda
    m, V = machine(4, 3), states(4)
    for loss in POTENTIALS:
        torch.testing.assert_close(loss(machine(4, 3, device="cuda"), V.to("cuda")).cpu(), loss(m, V))
    assert flip_loss(machine(4, 3, device="cuda"), V.to("cuda"), softplus).is_cuda
