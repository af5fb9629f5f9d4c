"""bridge.score: mixtures, ratios, tangents and channels against enumeration, and the doors."""
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch

from machines import machine, seeded, some_states
from rbmdiff.bridge.score import (
    as_mixture,
    channel_information,
    channel_kernel,
    taylor_log_ratios,
)
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.units import Binomial, Discrete, Potts, states
from rbmdiff.models.rbm import RBM, flip_log_ratios
from rbmdiff.sampling.gibbs import spectrum, transition_matrix, unit_field

DISCRETE = [(v, h) for v in ("bernoulli", "spin") for h in ("bernoulli", "spin")]
UNITS = ("bernoulli", "spin")
DTYPES = (torch.float32, torch.float64)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
quick = settings(max_examples=15, deadline=None)


def one_flipped(v, visible):
    """All neighbours [..., D, D] of `v` [..., D], unit i flipped in row i."""
    eye = torch.eye(v.shape[-1], dtype=v.dtype)
    v = v.unsqueeze(-2)
    return v + eye * ((1 - 2 * v) if visible == "bernoulli" else -2 * v)


def channels(rbm):
    """log p(v), log p(h | v)."""
    V, S = states(len(rbm.b), rbm.visible), states(len(rbm.c), rbm.hidden)
    return rbm.log_prob(V), torch.log_softmax(-rbm.energy(V[:, None], S), 1)


# Mixtures

@pytest.mark.parametrize("hidden", UNITS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_gaussian_machine_is_its_mixture(hidden, dtype):
    rbm = machine(3, 4, "gaussian", hidden, dtype=dtype)
    mixture, x = as_mixture(rbm), 2 * torch.randn(5, 7, 3, dtype=dtype, generator=seeded(2))
    tolerance = dict(rtol=1e-11, atol=1e-11) if dtype == torch.float64 else dict(rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(mixture.log_prob(x), rbm.log_prob(x), **tolerance)
    torch.testing.assert_close(mixture.score(x), rbm.score(x), **tolerance)
    assert mixture.means.dtype == dtype and mixture.axes is None and len(mixture.means) == 16
    rbm.sigma = 1.1 * rbm.sigma
    assert (mixture.log_prob(x) - rbm.log_prob(x)).abs().max() > 0.01


@pytest.mark.parametrize("hidden", [Discrete((-1, 0, 1), 0.3), Potts(3), Binomial(2)], ids=str)
def test_hidden_units_of_every_list_give_a_mixture(hidden):
    rbm = machine(3, 3, "gaussian", hidden, scale=0.5)
    mixture, x = as_mixture(rbm), 2 * torch.randn(5, 3, dtype=torch.float64, generator=seeded(2))
    torch.testing.assert_close(mixture.log_prob(x), rbm.log_prob(x), rtol=1e-12, atol=1e-12)
    assert len(mixture.means) == (3 if hidden == Potts(3) else 27)
    assert (mixture.log_prob(x) - machine(3, 3, "gaussian", scale=0.5).log_prob(x)).abs().max() > 0.01


@pytest.mark.parametrize("curvature", [0.0, 0.5])
@pytest.mark.parametrize("levels", [(0, 2), (-1, 3)])
def test_ratios_of_any_two_levels_are_those_of_the_table(levels, curvature):
    unit = Discrete(levels, curvature)
    rbm, index = machine(4, 3, unit, Potts(3)), torch.arange(16)
    log_p = rbm.log_prob(states(4, unit))
    truth = torch.stack([log_p[index ^ (1 << i)] - log_p for i in range(4)], 1)
    assert (flip_log_ratios(rbm, states(4, unit)) - truth).abs().max() < 1e-12
    assert (flip_log_ratios(rbm, states(4, unit)) + truth).abs().max() > 0.1
    gap = truth - taylor_log_ratios(rbm, states(4, unit))
    assert (gap.min() > -1e-12) == (curvature == 0)                      # a tangent of a convex function


def test_the_noised_mixture_is_the_density_of_noised_draws():
    rbm = machine(1, 3, "gaussian")
    x, mixture = torch.linspace(-40, 40, 8001, dtype=torch.float64)[:, None], as_mixture(rbm)
    at, alpha, sigma = torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64), 0.7, 0.6
    kernel = torch.exp(-((at - alpha * x.T) / sigma) ** 2 / 2) / (sigma * math.sqrt(2 * math.pi))
    direct = (kernel * rbm.log_prob(x).exp()).sum(1) * 0.01
    torch.testing.assert_close(mixture.log_prob(at, alpha, sigma).exp(), direct, rtol=1e-9, atol=0)
    assert (mixture.log_prob(at, alpha, 1.05 * sigma).exp() - direct).abs().max() > 1e-3


def test_draws_of_mixture_and_machine_have_the_same_moments():
    rbm, n = machine(2, 3, "gaussian", "spin"), 2**15
    v = as_mixture(rbm).sample(n, seeded(3))
    S = states(3, "spin")
    p, mu = torch.softmax(-rbm.hidden_free_energy(S), 0), rbm.visible_mean(S)
    truth = torch.cat([p @ mu, p @ mu**2 + rbm.sigma**2]).tolist()
    moments = [Estimate.of(y) for y in torch.cat([v, v**2], 1).T]
    assert max(abs(e.z(t)) for e, t in zip(moments, truth)) < 4 and max(e.stderr for e in moments) < 0.1
    assert max(abs(e.z(t + 0.1)) for e, t in zip(moments, truth)) > 4


def test_weights_that_underflow_are_left_out():
    rbm = RBM(2, 2, "gaussian").requires_grad_(False)
    # one component of weight e^400 times the others
    rbm.W.fill_(20.0), rbm.c.fill_(-400.0)
    mixture = as_mixture(rbm)
    assert len(mixture.means) == 1 and bool(mixture.log_prob(torch.zeros(3, 2)).isfinite().all())
    torch.testing.assert_close(mixture.means, torch.full((1, 2), 40.0))


def test_the_mixture_carries_no_gradient():
    rbm = machine(2, 2, "gaussian").requires_grad_(True)
    assert not any(b.requires_grad for b in as_mixture(rbm).buffers()) and torch.is_grad_enabled()


# Ratios

@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_ratios_are_those_of_enumerated_probabilities(visible, hidden):
    rbm, V = machine(6, 4, visible, hidden), states(6, visible)
    truth = rbm.log_prob(one_flipped(V, visible)) - rbm.log_prob(V)[:, None]
    torch.testing.assert_close(flip_log_ratios(rbm, V), truth, rtol=0, atol=1e-12)
    assert (flip_log_ratios(rbm.tilt(torch.full_like(rbm.b, 0.01)), V) - truth).abs().max() > 0.005
    sign = 2 * (V > 0) - 1
    conditional = torch.stack([unit_field(rbm.free_energy, V, i, visible) for i in range(6)], 1)
    stay = torch.sigmoid(sign * conditional * (1 if visible == "bernoulli" else 2))
    torch.testing.assert_close(torch.sigmoid(-truth), stay, rtol=0, atol=1e-12)


@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_there_and_back_is_no_change_and_every_path_gives_the_same(visible, hidden):
    rbm, v = machine(7, 3, visible, hidden), some_states((20, 7), visible)
    r, near = flip_log_ratios(rbm, v), one_flipped(v, visible)
    back = flip_log_ratios(rbm, near).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(r, -back, rtol=0, atol=1e-12)
    two = r[:, :, None] + flip_log_ratios(rbm, near)                # first i, then j
    torch.testing.assert_close(two, two.mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_the_tangent_is_below_and_within_its_bound(visible, hidden):
    rbm, V = machine(6, 5, visible, hidden, scale=1.5), states(6, visible)
    gap = flip_log_ratios(rbm, V) - taylor_log_ratios(rbm, V)
    edge, curvature = 1 if visible == "bernoulli" else 2, 0.25 if hidden == "bernoulli" else 1.0
    bound = edge**2 * curvature / 2 * rbm.W.square().sum(1)
    assert bool((gap > -1e-12).all()) and bool((gap <= bound).all()) and bool((gap > bound / 2).any())
    v = V.clone().requires_grad_()
    slope, = torch.autograd.grad(-rbm.free_energy(v).sum(), v)
    delta = one_flipped(V, visible).diagonal(dim1=1, dim2=2) - V
    torch.testing.assert_close(taylor_log_ratios(rbm, V), delta * slope, rtol=0, atol=1e-12)


@pytest.mark.parametrize("visible, hidden", DISCRETE)
@quick
@given(batch=st.lists(st.integers(1, 3), max_size=3), D=st.integers(1, 5), H=st.integers(1, 5),
       double=st.booleans())
def test_any_batch_shape_and_both_dtypes(visible, hidden, batch, D, H, double):
    dtype = torch.float64 if double else torch.float32
    rbm, v = machine(D, H, visible, hidden, dtype=dtype), some_states((*batch, D), visible, dtype=dtype)
    before = v.clone()
    for f in (flip_log_ratios, taylor_log_ratios):
        y = f(rbm, v)
        assert y.shape == v.shape and y.dtype == dtype and torch.equal(v, before)
        rows = torch.stack([f(rbm, row) for row in v.reshape(-1, D)]).view_as(y)
        torch.testing.assert_close(y, rows, rtol=1e-5, atol=1e-5)


def test_a_batch_of_tilted_machines():
    rbm, v = machine(5, 4), some_states((6, 3, 5), "bernoulli")
    fields = torch.randn(3, 5, dtype=torch.float64, generator=seeded(5))
    both = flip_log_ratios(rbm.tilt(fields), v)
    for k in range(3):
        torch.testing.assert_close(both[:, k], flip_log_ratios(rbm.tilt(fields[k]), v[:, k]), rtol=0,
                                   atol=1e-13)


def test_ratios_are_differentiable_in_the_parameters():
    rbm, v = machine(4, 3), some_states((4,), "bernoulli")
    def ratios(W, b, c): return flip_log_ratios(rbm.sharing(W=W, b=b, c=c), v)
    assert torch.autograd.gradcheck(ratios, [p.clone().requires_grad_() for p in (rbm.W, rbm.b, rbm.c)])


@pytest.mark.parametrize("hidden", UNITS)
def test_large_fields_stay_finite(hidden):
    rbm = machine(4, 3, "spin", hidden, dtype=torch.float32)
    rbm.W.mul_(1e4)
    r = flip_log_ratios(rbm, states(4, "spin", dtype=torch.float32))
    assert bool(r.isfinite().all()) and r.abs().max() > 1e3


# Channels

@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_the_hidden_channel_is_block_gibbs(visible, hidden):
    rbm = machine(5, 4, visible, hidden)
    log_p, log_q = channels(rbm)
    T, p = channel_kernel(log_p, log_q), log_p.exp()
    assert (T - transition_matrix(rbm)).abs().max() < 1e-14
    root = p.sqrt()[:, None]
    values = torch.linalg.eigvalsh(root * T / root.T).flip(0)[:16]
    torch.testing.assert_close(values, spectrum(rbm), rtol=0, atol=1e-12)


@quick
@given(N=st.integers(1, 6), M=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_every_channel_keeps_p_is_reversible_and_positive(N, M, seed):
    g = seeded(seed)
    log_p = torch.log_softmax(2 * torch.randn(N, dtype=torch.float64, generator=g), 0)
    log_q = torch.log_softmax(3 * torch.randn(N, M, dtype=torch.float64, generator=g), 1)
    T, p, I = channel_kernel(log_p, log_q), log_p.exp(), channel_information(log_p, log_q).item()
    flow = p[:, None] * T
    assert max((T.sum(1) - 1).abs().max(), (p @ T - p).abs().max(), (flow - flow.T).abs().max()) < 1e-13
    assert torch.linalg.eigvalsh(flow).min() > -1e-13
    entropy = -(p * log_p).sum().item()
    assert -1e-12 < I < min(entropy, math.log(M)) + 1e-12
    if M == 1: return
    # merging outputs loses
    coarser = torch.cat([torch.logaddexp(log_q[:, :1], log_q[:, 1:2]), log_q[:, 2:]], 1)
    assert channel_information(log_p, coarser).item() <= I + 1e-12


def test_information_of_a_symmetric_channel():
    log_p, e = torch.full((2,), math.log(0.5), dtype=torch.float64), 0.1
    log_q = torch.tensor([[1 - e, e], [e, 1 - e]], dtype=torch.float64).log()
    truth = math.log(2) + e * math.log(e) + (1 - e) * math.log(1 - e)
    assert channel_information(log_p, log_q).item() == pytest.approx(truth, abs=1e-14)
    T = channel_kernel(log_p, log_q)
    assert T[0, 1].item() == pytest.approx(2 * e * (1 - e), abs=1e-15)
    assert torch.linalg.eigvalsh(T)[0].item() == pytest.approx((1 - 2 * e) ** 2, abs=1e-14)


def test_channels_in_float32():
    log_p, log_q = (x.float() for x in channels(machine(4, 3)))
    T = channel_kernel(log_p, log_q)
    assert T.dtype == torch.float32 and (T.sum(1) - 1).abs().max() < 1e-5


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_cuda(visible, hidden):
    rbm, V = machine(5, 4, visible, hidden), states(5, visible)
    log_p, log_q = channels(rbm)
    moved = machine(5, 4, visible, hidden).cuda()
    for f in (flip_log_ratios, taylor_log_ratios):
        y = f(moved, V.cuda())
        assert y.is_cuda
        torch.testing.assert_close(y.cpu(), f(rbm, V), rtol=0, atol=1e-12)
    for f in (channel_kernel, channel_information):
        torch.testing.assert_close(f(log_p.cuda(), log_q.cuda()).cpu(), f(log_p, log_q), rtol=0,
                                   atol=1e-12)
    real, x = machine(3, 4, "gaussian", hidden), torch.randn(9, 3, dtype=torch.float64,
                                                             generator=seeded(0))
    score = as_mixture(machine(3, 4, "gaussian", hidden).cuda()).score(x.cuda())
    torch.testing.assert_close(score.cpu(), real.score(x), rtol=0, atol=1e-11)


# Bad input

BITS, REAL, GOOD = RBM(4, 3), RBM(4, 3, "gaussian"), torch.zeros(2, 4)
P, Q = torch.full((2,), 0.5).log(), torch.full((2, 4), 0.25).log()


@pytest.mark.parametrize("call, kind, match", (
    (lambda: flip_log_ratios(REAL, GOOD), ValueError,
     "^rbm must have visible units of two levels, got 'gaussian'"),
    (lambda: taylor_log_ratios(REAL, GOOD), ValueError,
     "^rbm must have visible units of two levels, got 'gaussian'"),
    (lambda: flip_log_ratios(GOOD, GOOD), TypeError, "^rbm must be an RBM, got Tensor"),
    (lambda: taylor_log_ratios(None, GOOD), TypeError, "^rbm must be an RBM, got NoneType"),
    (lambda: flip_log_ratios(BITS, GOOD[:, :3]), ValueError,
     r"^v must have shape \[..., 4\], got \[2, 3\]"),
    (lambda: flip_log_ratios(BITS, torch.tensor(0.0)), ValueError, "^v must have shape"),
    (lambda: flip_log_ratios(BITS, GOOD + 0.3), ValueError, "^v must hold only 0 or 1"),
    (lambda: flip_log_ratios(RBM(4, 3, "spin"), GOOD), ValueError, "^v must hold only -1 or"),
    (lambda: flip_log_ratios(BITS, GOOD + math.nan), ValueError, "^v must be finite"),
    (lambda: flip_log_ratios(BITS, GOOD.double()), TypeError, "^v must be torch.float32 like"),
    (lambda: flip_log_ratios(BITS, GOOD.long()), TypeError, "^v must be float32"),
    (lambda: flip_log_ratios(BITS, GOOD[:0]), ValueError, "^v must not be empty"),
    (lambda: flip_log_ratios(BITS, GOOD.to("meta")), ValueError, "^v must be on cpu"),
    (lambda: flip_log_ratios(BITS.tilt(torch.zeros(3, 4)), GOOD), ValueError,
     "^v must have a batch shape that fits"),
    (lambda: taylor_log_ratios(BITS, GOOD + 0.3), ValueError, "^v must hold only 0 or 1"),
    (lambda: as_mixture(BITS), ValueError,
     "^rbm must have visible units that are 'gaussian', got 'bernoulli'"),
    (lambda: as_mixture(RBM(4, 3, "spin")), ValueError,
     "^rbm must have visible units that are 'gaussian'"),
    (lambda: as_mixture(RBM(4, 3, "gaussian", "relu")), ValueError,
     r"^rbm must have at most 2\^25 means"),
    (lambda: flip_log_ratios(RBM(4, 3, "potts(2)"), GOOD), ValueError,
     "^rbm must have visible units of two"),
    (lambda: as_mixture("rbm"), TypeError, "^rbm must be an RBM, got str"),
    (lambda: as_mixture(REAL.tilt(GOOD)), ValueError, "^rbm must be one machine, got a batch of 2"),
    (lambda: as_mixture(RBM(784, 16, "gaussian")), ValueError,
     r"^rbm must have at most 2\^25 means .* 784 x 2\^16"),
    (lambda: channel_kernel(P, Q[:1]), ValueError,
     r"^log_p, log_q must have shapes \[N\], \[N, M\], got \[2\], \[1, 4\]"),
    (lambda: channel_kernel(Q, Q), ValueError, "^log_p, log_q must have shapes"),
    (lambda: channel_kernel(P, P), ValueError, "^log_p, log_q must have shapes"),
    (lambda: channel_kernel(P.exp(), Q), ValueError, "^log_p must hold logarithms of probabilities"),
    (lambda: channel_information(P, Q + 0.1), ValueError,
     "^log_q must hold logarithms of probabilities"),
    (lambda: channel_information(P, Q - math.inf), ValueError, "^log_q must be finite"),
    (lambda: channel_kernel(P, Q.double()), TypeError, "^log_q must be torch.float32"),
    (lambda: channel_kernel([0.0], Q), TypeError, "^log_p must be a torch.Tensor"),
    (lambda: channel_kernel(P.long(), Q), TypeError, "^log_p must be float32")))
def test_bad_input(call, kind, match):
    with pytest.raises(kind, match=match): call()
