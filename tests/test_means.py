"""Means of machines: four methods against enumeration, for every kind of unit; streams, shapes and bad
input."""
import math

import pytest
import torch

from machines import machine, seeded, some_states
from rbmdiff.foundations.units import (
    Bernoulli,
    Binomial,
    Discrete,
    Gaussian,
    Poisson,
    Potts,
    ReLU,
    Spin,
    states,
)
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.means import (
    check_listable,
    exact_mean,
    gibbs_mean,
    mean,
    mean_field,
    start_chains,
    tap,
)

FINITE = [Bernoulli(), Spin(), Discrete((-1.0, 0.0, 1.0), 0.3), Potts(3), Binomial(2)]
REAL = [Gaussian(), ReLU(), Poisson()]
TAP = [(v, h) for v in (Bernoulli(), Spin(), Gaussian()) for h in (Bernoulli(), Spin())]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]


def normal(*shape, seed=1): return torch.randn(*shape, dtype=torch.float64, generator=seeded(seed))


def size(unit, n): return n * unit.columns


def joint_mean(m):
    V, S = states(len(m.b), m.visible), states(len(m.c), m.hidden)
    return torch.softmax(-m.energy(V[:, None], S).flatten(), 0).view(len(V), -1).sum(1) @ V


@pytest.mark.parametrize("hidden", FINITE, ids=str)
@pytest.mark.parametrize("visible", FINITE, ids=str)
@pytest.mark.parametrize("D, H", [(3, 2), (2, 3)])
def test_exact_mean_of_finite_units(visible, hidden, D, H):
    m = machine(size(visible, D), size(hidden, H), visible, hidden)
    field = normal(4, len(m.b))
    truth = torch.stack([joint_mean(m.tilt(f)) for f in field])
    torch.testing.assert_close(exact_mean(m.tilt(field)), truth, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(exact_mean(m), joint_mean(m), rtol=1e-12, atol=1e-13)
    assert (exact_mean(m.tilt(-field)) - truth).abs().max() > 0.01  # control: the field turned round


@pytest.mark.parametrize("hidden", FINITE, ids=str)
@pytest.mark.parametrize("visible", REAL, ids=str)
def test_exact_mean_of_unbounded_units_is_the_slope_of_log_z(visible, hidden):
    m = machine(3, size(hidden, 2), visible, hidden, scale=0.4)
    at = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(m.tilt(at).log_partition(), at)
    if m.visible.wide: slope = slope + m.b       # a tilt drops the constant b² / 2 sigma²
    torch.testing.assert_close(exact_mean(m), slope, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("D, H", [(5, 3), (3, 5)])
def test_a_large_batch_is_enumerated_in_pieces(D, H):
    m, field = machine(D, H), normal(8, D)
    pieces = exact_mean(m.tilt(field.repeat(20000, 1)))[-8:]
    torch.testing.assert_close(pieces, exact_mean(m.tilt(field)), rtol=0, atol=1e-12)


def test_clamped_batches_have_the_conditional_mean():
    m, mask = machine(5, 3), torch.tensor([True, False, False, True, False])
    V = states(5)
    batch = m.clamp(V[[1, 9, 30]], mask)
    for method in ("exact", "mean_field", "tap"): assert mean(batch, method).shape == (3, 3)
    p = m.log_prob(V).exp()
    for v, found in zip(V[[1, 9, 30]], exact_mean(batch)):
        fits = (V[:, mask] == v[mask]).all(1) * p
        torch.testing.assert_close(found, (fits @ V / fits.sum())[~mask], rtol=1e-12, atol=1e-13)
    assert mean(batch, "gibbs", steps=2, generator=0).shape == (3, 3)


@pytest.mark.parametrize("visible, hidden", TAP, ids=str)
def test_gibbs_agrees_and_the_approximations_have_their_orders(visible, hidden):
    m = machine(5, 3, visible, hidden, scale=0.35).tilt(normal(1, 5))
    exact = mean(m)
    many = m.sharing(b=m.b.expand(3000, -1))
    draws = mean(many, "gibbs", steps=3, burn_in=60, generator=seeded(3))
    stderr = draws.std(0) / 3000**0.5
    assert ((draws.mean(0) - exact[0]) / stderr).abs().max() < 4 and stderr.max() < 0.02
    weak = {k: m.sharing(W=k * m.W) for k in (0.04, 0.02)}
    first = 3 if visible == Gaussian() else 2
    for method, order, tolerance in ((mean_field, first, 0.4), (tap, first + 1, 0.5)):
        large, small = ((method(w) - exact_mean(w)).norm().item() for w in weak.values())
        assert math.log2(large / small) > order - tolerance


@pytest.mark.parametrize("hidden", (Gaussian(), Spin()), ids=str)
@pytest.mark.parametrize("visible", (Gaussian(), Spin()), ids=str)
def test_tap_with_real_hidden_units(visible, hidden):
    m = machine(4, 3, visible, hidden, scale=0.2)
    if visible == hidden == Gaussian():
        coupling = m.W / m.sigma[:, None] ** 2
        exact = torch.linalg.solve(torch.eye(4, dtype=torch.float64) - m.W @ coupling.T, m.b + m.W @ m.c)
        torch.testing.assert_close(mean_field(m, 400), exact, rtol=1e-10, atol=1e-11)
    else: exact = exact_mean(m)
    assert (tap(m, 400) - exact).abs().max() < 0.01 < (-tap(m, 400) - exact).abs().max()


def test_means_of_means_vary_less_than_means_of_states():
    m, g = machine(6, 4), seeded(5)
    v = start_chains(m, 2000, generator=g)
    total, means = 0, 0
    for _ in range(10):
        part, v = gibbs_mean(m, v, 1, g)
        total, means = total + v, means + part
    assert total.var(0).sum() > 1.2 * means.var(0).sum()


@pytest.mark.parametrize("method", ["exact", "mean_field", "tap"])
def test_differentiable_in_parameters(method):
    m = machine(4, 3).requires_grad_()
    b = normal(2, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda W, b: mean(m.sharing(W=W, b=b), method, steps=30), (m.W, b))


@pytest.mark.parametrize("visible", [Bernoulli(), Spin(), *REAL, Binomial(3), Potts(3)], ids=str)
def test_every_machine_of_a_batch_has_its_own_stream(visible):
    m = machine(6, 3, visible, scale=0.3)
    batch = m.tilt(0.3 * normal(4, 6))
    together = mean(batch, "gibbs", steps=3, burn_in=2, chains=2, generator=[5, 6, 7, 8])
    for k in range(4):
        one = m.sharing(b=batch.b[k:k + 1])
        alone = mean(one, "gibbs", steps=3, burn_in=2, chains=2, generator=[5 + k])
        torch.testing.assert_close(alone[0], together[k], rtol=1e-12, atol=1e-12)
    assert torch.equal(mean(batch, "gibbs", generator=3), mean(batch, "gibbs", generator=seeded(3)))


def test_a_chain_goes_on():
    m, v = machine(5, 3), some_states((7, 5))
    whole, end = gibbs_mean(m, v, 6, seeded(1))
    g = seeded(1)
    first, middle = gibbs_mean(m, v, 2, g)
    second, last = gibbs_mean(m, middle, 4, g)
    torch.testing.assert_close(whole, (2 * first + 4 * second) / 6)
    assert torch.equal(last, end) and not whole.requires_grad


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("visible, hidden", TAP, ids=str)
def test_types_and_devices(visible, hidden, dtype, device):
    m = machine(5, 3, visible, hidden, dtype=dtype, device=device)
    for method in ("exact", "mean_field", "tap"):
        y = mean(m, method)
        assert y.dtype == dtype and y.device == m.W.device and y.shape == (5,)
        exact = mean(machine(5, 3, visible, hidden), method)
        torch.testing.assert_close(y.double().cpu(), exact, rtol=1e-3, atol=1e-4)
    assert mean(m, "gibbs", steps=2, generator=torch.Generator(device).manual_seed(0)).dtype == dtype


M = machine(4, 3)
BATCH = M.tilt(torch.zeros(3, 4).double())
REALS = machine(4, 3, "gaussian", "gaussian", scale=3.0)
LARGE = RBM(30, 30, dtype=torch.float64)


@pytest.mark.parametrize("call, kind, match", (
    (lambda: mean(M, "bethe"), ValueError, "^method must be one of"),
    (lambda: mean(M.W), TypeError, "^rbm must be an RBM"),
    (lambda: mean(M, steps=0), ValueError, "^steps"),
    (lambda: mean(M, "tap", steps=1.5), TypeError, "^steps"),
    (lambda: mean(M, "gibbs", burn_in=-1), ValueError, "^burn_in"),
    (lambda: mean(M, "gibbs", chains=0), ValueError, "^chains"),
    (lambda: mean(M, "gibbs", generator="now"), TypeError, "^generator"),
    (lambda: mean(BATCH, "gibbs", generator=[1, 2]), ValueError, "^generator"),
    (lambda: exact_mean(LARGE), ValueError, "at most 25 bits.* the method 'gibbs'"),
    (lambda: check_listable(LARGE, "use ais"), ValueError, "use ais"),
    (lambda: tap(machine(4, 3, "relu")), ValueError, "the method 'tap', got relu visible units"),
    (lambda: tap(machine(4, 3, "spin", "poisson")), ValueError, "got poisson hidden units"),
    (lambda: mean(machine(4, 6, "potts(2)", "binomial(3)"), "tap"), ValueError, "the method 'tap'"),
    (lambda: mean(REALS, "mean_field"), ValueError, "cannot be normalised"),
    (lambda: gibbs_mean(M, torch.full((1, 4), 0.5).double(), 1), ValueError, "^v must hold only 0 or 1"),
    (lambda: gibbs_mean(M, torch.zeros(2, 3).double(), 1), ValueError, r"^v must have shape \[..., 4\]"),
    (lambda: start_chains(M, 2, torch.zeros(3, 4).double()), ValueError, r"^v must have shape \[2, 4\]"),
))
def test_bad_input(call, kind, match):
    with pytest.raises(kind, match=match): call()


@pytest.mark.parametrize("method", ["exact", "gibbs", "mean_field", "tap"])
def test_parameters_that_are_no_numbers_are_named(method):
    rbm = machine(4, 3)
    rbm.c[1] = math.nan
    with pytest.raises(ValueError, match=r"^rbm must have finite parameters, .*\['c'\]"):
        mean(rbm, method)
