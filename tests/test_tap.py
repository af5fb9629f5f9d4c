"""The TAP expansion: orders, stationarity, the released third order, gradients, streams of means, bad
input.
"""
import math

import pytest
import torch

from machines import machine, seeded
from rbmdiff.foundations.units import Binary, Potts, ReLU, states
from rbmdiff.learning.contrastive import exact_gradient
from rbmdiff.learning.tap import expansion, log_partition, tap_gradient
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.means import exact_mean, mean_field, tap

KINDS = "bernoulli", "spin", "gaussian", Binary((-0.5, 2.0))


def wave(scale):
    """The machine without random numbers."""
    i, j = torch.arange(6, dtype=torch.float64), torch.arange(3, dtype=torch.float64)
    m = RBM(6, 3, dtype=torch.float64).requires_grad_(False)
    m.W.copy_(scale * 1.5 * torch.sin(1 + i[:, None] + 2 * j))
    m.b.copy_(torch.cos(i) / 2)
    m.c.copy_(torch.sin(j) / 2)
    return m


def weak(visible, hidden, size=0.15, D=5, H=4, seed=1):
    m = machine(D, H, visible, hidden, seed=seed)
    with torch.no_grad():
        for p in m.parameters(): p.mul_(size)
    return m.requires_grad_()


def fields(m, found): return m.visible.field(found.v), m.hidden.field(found.h)


@pytest.mark.parametrize("scale, known", [(1.0, (-0.602509, -0.012869, -0.010937)),
                                          (0.5, (-0.151313, -0.001060, -0.001089))])
def test_known_errors(scale, known):
    m = wave(scale)
    errors = [(log_partition(m, order).log_Z - m.log_partition()).item() for order in (1, 2, 3)]
    assert errors == pytest.approx(known, abs=1e-6)


@pytest.mark.parametrize("order, log_Z, means, W", [(1, 2, 2, 1), (2, 3, 3, 2), (3, 4, 4, 3)])
def test_orders(order, log_Z, means, W):
    v, errors = states(6)[[3, 17, 42, 60]], []
    for scale in (0.0125, 0.00625):
        m = wave(scale)
        found = log_partition(m, order)
        ours = tap_gradient(m, v, order=order, steps=60)[0]["W"]
        errors.append((abs(found.log_Z - m.log_partition()), (found.v - exact_mean(m)).norm(),
                       (ours - exact_gradient(m, v)["W"]).norm()))
    measured = [math.log2(a / b) for a, b in zip(*errors)]
    assert measured == pytest.approx([log_Z, means, W], abs=0.1)


@pytest.mark.parametrize("visible", KINDS, ids=str)
@pytest.mark.parametrize("hidden", KINDS, ids=str)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_stationary_and_gradient(visible, hidden, order):
    m = weak(visible, hidden)
    found = log_partition(m, order)
    y, x = (z.clone().requires_grad_() for z in fields(m, found))
    total = expansion(m, y, x, order)
    assert max(g.abs().max() for g in torch.autograd.grad(total, (y, x), retain_graph=True)) < 1e-10
    v = m.sample(6, steps=3, generator=0)
    parameters = dict(m.named_parameters())
    truth = torch.autograd.grad(-m.free_energy(v).mean() - total, parameters.values())
    ours, _ = tap_gradient(m, v, (found.v[None], found.h[None]), order)
    assert ours.keys() == parameters.keys()
    for name, g in zip(parameters, truth):
        torch.testing.assert_close(ours[name], g, rtol=1e-9, atol=1e-10)


def released(m, sweeps=300):
    """Means by the third order of the program of Gabrié et al. (2015)."""
    v, h, W = torch.sigmoid(m.b), torch.sigmoid(m.c), m.W
    more = lambda m, n, W: ((0.5 - m) * ((n - n**2) @ W**2)
                            + (1 / 3 - 2 * (m - m**2)) * ((n**2 * (1 - n)) @ W**3))
    for _ in range(sweeps):
        v = (v + torch.sigmoid(m.visible_field(h) + more(v, h, W.T))) / 2
        h = (h + torch.sigmoid(m.hidden_field(v) + more(h, v, W))) / 2
    return v


def test_the_released_third_order_is_worse_than_the_second():
    errors = {}
    for scale in (0.4, 0.2, 0.1, 0.05):
        m = wave(scale)
        exact = exact_mean(m)
        second, third = ((log_partition(m, order).v - exact).norm().item() for order in (2, 3))
        errors[scale] = wrong = (released(m) - exact).norm().item()
        assert third < second < wrong / 4
    assert math.log2(errors[0.1] / errors[0.05]) == pytest.approx(3, abs=0.1)     # right: 4


def test_first_orders_are_those_of_the_means():
    m = wave(0.7)
    torch.testing.assert_close(log_partition(m, 1).v, mean_field(m, 500), rtol=0, atol=1e-10)
    torch.testing.assert_close(log_partition(m, 2).v, tap(m, 500), rtol=0, atol=1e-10)


@pytest.mark.parametrize("visible, hidden", [
    ("potts(3)", "bernoulli"), ("poisson", "bernoulli"), ("relu", "spin"), ("bernoulli", "binomial(3)")])
def test_mean_field_of_any_units_is_a_bound(visible, hidden):
    m = weak(visible, hidden, D=6, H=3)
    found = log_partition(m, 1)
    assert found.log_Z < m.log_partition() < found.log_Z + 0.5
    with pytest.raises(ValueError, match="for order 2, got .* units; use order 1"): log_partition(m, 2)


def test_a_machine_is_alone_in_its_batch():
    m = wave(0.8)
    batch = m.tilt(3 * torch.randn(5, 6, dtype=torch.float64, generator=seeded(0)))
    together = log_partition(batch, 3)
    for k in range(5):
        alone = log_partition(m.tilt(batch.b[k] - m.b), 3)
        for a, b in zip(alone, together): torch.testing.assert_close(a, b[k], rtol=0, atol=1e-11)


def test_means_go_on_where_they_ended():
    m, v = wave(0.5), states(6)[:8]
    long = tap_gradient(m, v, order=3, steps=5)
    _, kept = tap_gradient(m, v, order=3, steps=2)
    short = tap_gradient(m, v.view(2, 4, 6), kept, order=3, steps=3)
    for a, b in zip(long[1], short[1]): assert torch.equal(a, b)
    torch.testing.assert_close(long[0]["W"], short[0]["W"])
    assert kept[0].shape == (8, 6) and kept[1].shape == (8, 3)


def test_float32():
    m = wave(0.5)
    single = log_partition(wave(0.5).float(), 3)
    assert single.log_Z.dtype == torch.float32
    assert abs(single.log_Z - log_partition(m, 3).log_Z) < 1e-5


def test_what_does_not_converge_says_so():
    m = RBM(8, 8, "spin", "spin", dtype=torch.float64, generator=0).requires_grad_(False)
    m.W.mul_(100)
    with pytest.raises(ValueError, match="rbm must have means that converge, got equations of order 2"):
        log_partition(m.tilt(torch.full((8,), 0.1, dtype=torch.float64)), 2, steps=300)
    found = log_partition(m.tilt(torch.full((8,), 0.1, dtype=torch.float64)), 2, steps=300, strict=False)
    assert found.residual > 1e-3
    with pytest.raises(ValueError, match="converge"): log_partition(wave(1), steps=3)


M, V = wave(0.5), states(6)[:4]
PAIR = V, V[:, :3]


@pytest.mark.parametrize("call, error, words", [
    (lambda: log_partition(3), TypeError, "rbm must be an RBM"),
    (lambda: log_partition(M, 4), ValueError, "order must be 1, 2 or 3, got 4"),
    (lambda: log_partition(M, 1.5), TypeError, "order"),
    (lambda: log_partition(M, 0), ValueError, "order"),
    (lambda: log_partition(M, steps=0), ValueError, "steps"),
    (lambda: log_partition(M, damping=1.0), ValueError, "damping must be .*below 1"),
    (lambda: log_partition(M, damping=-0.1), ValueError, "damping"),
    (lambda: log_partition(M, start=V), TypeError, "start must be two tensors"),
    (lambda: log_partition(M, start=PAIR[::-1]), ValueError, "start of v must have shape"),
    (lambda: tap_gradient(M, V, V), TypeError, "chains must be two tensors"),
    (lambda: tap_gradient(M, V, (V, V)), ValueError, "chains of h must have shape"),
    (lambda: tap_gradient(M, V, (V.clone().requires_grad_(), V[:, :3])), ValueError, "wants a gradient"),
    (lambda: tap_gradient(M, V + 0.5), ValueError, "v must hold only"),
    (lambda: tap_gradient(M, V[:, :5]), ValueError, "v must have shape"),
    (lambda: tap_gradient(M, V, steps=0), ValueError, "steps"),
    (lambda: tap_gradient(M, V, order=4), ValueError, "order"),
    (lambda: tap_gradient(M.tilt(V[0]), V), ValueError, "parameters of its own"),
    (lambda: tap_gradient(machine(4, 3, ReLU()), states(4)[:2], order=1), ValueError,
     "for tap_gradient, got relu visible units; use cd_gradient"),
    (lambda: expansion(M, V, V), ValueError, "x must have shape"),
    (lambda: expansion(machine(6, 3, Potts(3)), V, V[:, :3], 3), ValueError, "order 3"),
])
def test_bad_input(call, error, words):
    with pytest.raises(error, match=words): call()
