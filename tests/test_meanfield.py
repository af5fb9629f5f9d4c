"""Mean-field logits: free energy, score, loss, reverse process and repairs against formulas, autograd
and enumeration.
"""
import importlib.util
import math
import sys

import pytest
import torch

import machines
from machines import seeded
from rbmdiff.bridge.meanfield import (
    TimedRBM,
    asked_field,
    batch_logits,
    batch_moments,
    coupling_growth,
    dsm_loss,
    free_energy,
    read_out,
    sample_logits,
    score,
    smoothed_logit,
    with_prior,
)
from rbmdiff.diffusion.schedule import Geometric, LinearBeta, SubVP
from rbmdiff.foundations.core import Estimate, logit
from rbmdiff.foundations.units import Binary, Discrete, states
from rbmdiff.models.rbm import RBM

f64 = torch.float64
SCHEDULE = LinearBeta()
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def machine(D=4, H=3, **options):
    """A machine of bits with parameters of size one."""
    return machines.machine(D, H, scale=1.0, **options)


def normal(*shape, seed=9, dtype=f64):
    return machines.normal(*shape, seed=seed, dtype=dtype)


def bits(n, D, seed=3,
         dtype=f64): return (torch.rand(n, D, dtype=dtype, generator=seeded(seed)) < 0.4).to(dtype)


# Free energy and score

@pytest.mark.parametrize("hidden", ("bernoulli", "spin"))
@pytest.mark.parametrize("jacobian", (False, True))
@pytest.mark.parametrize("shape", ((4,), (5, 4), (2, 3, 4)))
def test_score_is_the_gradient(hidden, jacobian, shape):
    rbm, a = machine(hidden=hidden), 2 * normal(*shape)
    z = a.clone().requires_grad_()
    log_p = -free_energy(rbm,
                         z) + (torch.nn.functional.logsigmoid(z)
                               + torch.nn.functional.logsigmoid(-z)).sum(-1) * jacobian
    truth = torch.autograd.grad(log_p.sum(), z)[0]
    assert free_energy(rbm, a).shape == shape[:-1]
    torch.testing.assert_close(score(rbm, a, jacobian), truth, rtol=1e-12, atol=1e-14)
    assert (score(rbm, a, not jacobian) - truth).abs().max() > 0.01
    assert (score(rbm, a, jacobian) + truth).abs().max() > 0.01


def test_free_energy_at_far_logits_is_that_of_the_bits():
    rbm, v = machine(), states(4)
    torch.testing.assert_close(free_energy(rbm, 200 * (2 * v - 1)), rbm.free_energy(v), rtol=1e-13,
                               atol=1e-13)


def test_tilted_machines_and_rows_do_not_mix():
    rbm, a, fields = machine(), normal(6, 4), normal(6, 4, seed=4)
    both = rbm.tilt(fields)
    for k in range(6):
        alone = rbm.tilt(fields[k])
        torch.testing.assert_close(score(both, a)[k], score(alone, a[k]), rtol=1e-13, atol=1e-15)
        torch.testing.assert_close(free_energy(both, a)[k], free_energy(alone, a[k]), rtol=1e-13,
                                   atol=1e-13)


def test_float32_follows_float64():
    rbm, small, a = machine(), machine().float(), normal(50, 4)
    for jacobian in (False, True):
        torch.testing.assert_close(score(small, a.float(), jacobian).double(), score(rbm, a, jacobian),
                                   rtol=1e-4, atol=1e-5)
    far = torch.tensor([[30.0] * 4, [-30.0] * 4])
    assert bool((score(small, far) != 0).all()) and score(small, far).abs().max() < 1e-11


def test_score_is_bounded_as_the_chapter_says():
    rbm, a = machine(6, 5), 5 * normal(2000, 6)
    bound = (rbm.b.abs() + rbm.W.abs().sum(1)) / 4
    assert bool((score(rbm, a).abs() <= bound).all())
    assert bool((score(rbm, a, True).abs() <= bound + 1).all())
    # control
    assert not bool((score(rbm, a).abs() <= bound / 4).all())


def test_the_integral_converges_with_the_jacobian_only():
    rbm, totals = machine(1, 2), {}
    for half in (20, 200):
        a = torch.linspace(-half, half, 400 * half + 1, dtype=f64)[:, None]
        slope = torch.sigmoid(a[:, 0]) * torch.sigmoid(-a[:, 0])
        totals[half] = [torch.trapezoid(w * torch.exp(-free_energy(rbm, a)),
                                        dx=0.005).item() for w in (1, slope)]
    assert totals[200][0] / totals[20][0] > 9 and abs(totals[200][1] / totals[20][1] - 1) < 1e-6


class Weighted(Binary):
    """A bit whose states weigh 1 and e."""

    def log_weights(self, v):
        return v

    def weight_slope(self, v):
        return torch.ones_like(v)


BITS = Discrete((0.0, 1.0)), Discrete((0.0, 1.0), 0.8), Weighted((0.0, 1.0))


@pytest.mark.parametrize("visible", BITS, ids=("levels", "curved", "weighted"))
@pytest.mark.parametrize("hidden", ("spin", "discrete((-1, 0, 2))", "potts(3)", "gaussian", "relu"))
def test_bits_of_every_kind_over_hidden_units_of_every_kind(visible, hidden):
    rbm, a = machine(visible=visible, hidden=hidden), normal(6, 4)
    z = a.clone().requires_grad_()
    truth, = torch.autograd.grad(-free_energy(rbm, z).sum(), z)
    torch.testing.assert_close(score(rbm, a), truth, rtol=1e-11, atol=1e-12)
    timed = TimedRBM(rbm, SCHEDULE, 3)
    torch.testing.assert_close(timed(a, 0.2), truth, rtol=1e-11, atol=1e-12)
    at = timed.at(0.2)
    assert (at.visible, at.hidden) == (rbm.visible, rbm.hidden)
    # control: units of equal weights
    plain = TimedRBM(machine(hidden=hidden), SCHEDULE, 3)
    assert (visible is BITS[0]) == bool((plain(a, 0.2) - truth).abs().max() < 1e-11)


def test_a_machine_of_another_class_is_a_machine():
    """What a notebook defines has the name and the methods, and is no instance of the class of the
    package.
    """
    spec = importlib.util.spec_from_file_location("rbmdiff.models.again",
                                                  sys.modules[RBM.__module__].__file__)
    again = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(again)
    rbm, a = machine(), normal(3, 4)
    other = again.RBM(4, 3, dtype=f64).requires_grad_(False)
    other.load_state_dict(rbm.state_dict())
    assert not isinstance(other, RBM)
    assert torch.equal(score(other, a), score(rbm, a))
    assert torch.equal(free_energy(other, a), free_energy(rbm, a))
    assert torch.equal(TimedRBM(other, SCHEDULE)(a, 0.3), TimedRBM(rbm, SCHEDULE)(a, 0.3))
    losses = [dsm_loss(m, bits(9, 4), SCHEDULE, 5, generator=1) for m in (other, rbm)]
    assert torch.equal(*losses)


# Logits of batches

@pytest.mark.parametrize("dtype", (torch.float32, f64))
def test_single_images_have_two_logits(dtype):
    v = bits(5, 6, dtype=dtype)
    a = smoothed_logit(v, 1, 1 / 3)
    assert a.dtype == dtype
    torch.testing.assert_close(a, (2 * v - 1) * math.log(4), rtol=1e-5, atol=1e-5)


def test_batches_are_drawn_with_replacement_and_by_the_generator():
    v = bits(3, 40)
    a = batch_logits(v, 8, 500, 0.5, seeded(1))
    assert a.shape == (500, 40) and torch.equal(a, batch_logits(v, 8, 500, 0.5, seeded(1)))
    assert not torch.equal(a, batch_logits(v, 8, 500, 0.5, seeded(2)))
    # 8 draws of 3 images: many counts
    assert len(torch.unique(a[:, v.sum(0) == 1][:, 0])) > 4


@pytest.mark.parametrize("smoothing", (0.5, 1.5))
def test_moments_of_batches(smoothing):
    v = bits(400, 3)
    m, n = v.mean(0), 200
    a = batch_logits(v, n, 20000, smoothing, seeded(0))
    bias, variance = batch_moments(m, n, smoothing)
    for i in range(3):
        mean = Estimate.of(a[:, i])
        assert abs(mean.z((logit(m) + bias)[i].item())) < 4 and mean.stderr < 0.002
        assert abs(a[:, i].var() / variance[i] - 1) < 0.05
    wrong = batch_moments(m, n, smoothing + 2)[0] - bias
    # control: such a bias would be seen
    assert wrong.abs().max() > 4 * 0.002


# Loss, reverse process, read-out

@pytest.mark.parametrize("schedule", (LinearBeta(), SubVP(), Geometric()))
@pytest.mark.parametrize("dtype", (torch.float32, f64))
def test_loss_is_the_printed_one(schedule, dtype):
    rbm, v, again = machine(dtype=dtype), bits(9, 4, dtype=dtype), seeded(5)
    ours = dsm_loss(rbm, v, schedule, 6, 4, 1.0, (0.1, 0.7), seeded(5))
    a0 = batch_logits(v, 4, 6, 1.0, again)
    t = 0.1 + (0.7 - 0.1) * torch.rand(6, dtype=f64, generator=again)
    alpha, sigma = (x.to(dtype)[:, None] for x in (schedule.alpha(t), schedule.sigma(t)))
    a = alpha * a0 + sigma * torch.randn(6, 4, dtype=dtype, generator=again)
    m = torch.sigmoid(a)
    s = (rbm.b + torch.sigmoid(rbm.c + m @ rbm.W) @ rbm.W.T) * m * (1 - m)
    wanted = sigma[:, 0]**2 * (s + (a - alpha * a0) / sigma**2).square().sum(1)
    assert ours.dtype == dtype and ours.shape == (6,)
    torch.testing.assert_close(ours, wanted, rtol=1e-3 if dtype == torch.float32 else 1e-10, atol=1e-9)
    assert (ours - sigma[:, 0]**2 * (s - (a - alpha * a0) / sigma**2).square().sum(1)).abs().max() > 0.1


def test_loss_takes_networks_and_has_gradients():
    rbm, v = machine().requires_grad_(True), bits(9, 4)
    plain = dsm_loss(rbm, v, SCHEDULE, 5, 4, generator=seeded(1))
    assert torch.equal(plain,
                       dsm_loss(lambda a, t: score(rbm, a), v, SCHEDULE, 5, 4, generator=seeded(1)))
    assert not torch.equal(plain,
                           dsm_loss(lambda a, t: score(rbm, a, True), v, SCHEDULE, 5, 4,
                                    generator=seeded(1)))
    plain.mean().backward()
    assert all(bool((p.grad != 0).all()) for p in rbm.parameters())


def test_reverse_process_returns_a_prior():
    """With a machine that says nothing, the prior of width 1 is the law of the noise, at all times."""
    nothing = with_prior(lambda a, t: torch.zeros_like(a), SCHEDULE)
    a = sample_logits(nothing, SCHEDULE, normal(4000, 4), 400, generator=seeded(2))
    mean, square = Estimate.of(a.mean(1)), Estimate.of(a.square().mean(1))
    assert abs(mean.value) < 4 * mean.stderr and abs(square.value - 1) < 0.03
    away = sample_logits(lambda a, t: torch.zeros_like(a), SCHEDULE, normal(40, 4), generator=seeded(2))
    # without it the logits run away
    assert away.std() > 50


def test_read_out():
    a = torch.tensor([-1.0, 0.0, 2.0], dtype=f64)
    v = read_out(a.expand(20000, 3), seeded(0))
    for i, p in enumerate(torch.sigmoid(a).tolist()):
        e = Estimate.of(v[:, i])
        assert abs(e.z(p)) < 4 and e.stderr < 0.004
    assert set(v.unique().tolist()) == {0.0, 1.0} and read_out(a.float()[None, None]).shape == (1, 1, 3)


# One stream a sample

DRAWS = {"batches": lambda rows, g: batch_logits(bits(7, 4), 3, len(rows), generator=g),
         "loss": lambda rows, g: dsm_loss(machine(), bits(7, 4), SCHEDULE, len(rows), 3, generator=g),
         "reverse process": lambda rows, g: sample_logits(machine(), SCHEDULE, normal(5, 4)[rows], 20,
                                                          generator=g),
         "read-out": lambda rows, g: read_out(normal(5, 4)[rows], g)}


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_every_sample_has_its_own_stream(draw):
    seeds = [11, 12, 13, 14, 15]
    together = draw(list(range(5)), seeds)
    alone = torch.cat([draw([b], [seeds[b]]) for b in range(5)])
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    # control: other streams
    assert not torch.allclose(together, draw(list(range(5)), seeds[::-1]))
    with pytest.raises(ValueError, match="^generator must hold"):
        draw(list(range(5)), seeds[:4])


@pytest.mark.parametrize("draw", DRAWS.values(), ids=DRAWS)
def test_a_seed_is_a_generator(draw):
    rows = list(range(5))
    assert torch.equal(draw(rows, 7), draw(rows, seeded(7)))
    assert not torch.equal(draw(rows, 7), draw(rows, 8))


# What is asked, and when couplings grow

@pytest.mark.parametrize("jacobian, kappa",
                         ((False, 1 - math.sqrt(0.5)), (True, (3 - math.sqrt(5)) / 2)))
def test_the_balanced_floors(jacobian, kappa):
    a = logit(torch.tensor([kappa, 1 - kappa], dtype=f64))
    torch.testing.assert_close(asked_field(a, jacobian), torch.tensor([-2.0, 2.0], dtype=f64),
                               rtol=1e-12, atol=0)
    assert (asked_field(a, not jacobian).abs() - 2).abs().min() > 0.9


def test_a_prior_asks_for_more():
    a = normal(7)
    m = torch.sigmoid(a)
    torch.testing.assert_close(asked_field(a, width=2.0) - asked_field(a), a / 4 / (m * (1 - m)),
                               rtol=1e-10, atol=1e-12)


def test_couplings_of_copies_grow_and_those_of_large_batches_do_not():
    coin = (torch.rand(4000, 1, generator=seeded(0)) < 0.5).double()
    v = coin.expand(4000, 6)
    rates = {n: coupling_growth(batch_logits(v, n, 4000, n / 3, seeded(1)))[0] for n in (1, 16, 512)}
    assert abs(rates[1][-1] - (6 * 3.75 * 0.3 - 1)) < 0.01 and -1 < rates[512][-1] < rates[16][-1] < -0.7
    copies = coupling_growth(batch_logits(v, 1, 4000, 1 / 3, seeded(1)))[1][:, -1]
    assert copies.abs().std() < 1e-6                                                # all pixels together
    alone = (torch.rand(40000, 6, generator=seeded(2)) < 0.5).double()
    kappa, loose = 0.2, coupling_growth(smoothed_logit(alone, 1, 1 / 3))[0]
    # independent coins: only a pixel's own share is left, f* (2v - 1) times m - 1/2 = (1/2 - kappa) (2v
    # - 1)
    own = asked_field(logit(torch.tensor(1 - kappa, dtype=f64))) * (0.5 - kappa) - 1
    assert (loose - own).abs().max() < 0.05


def test_training_follows_the_rates():
    """Two copied pixels: weights grow from single images, and not from batches of 32."""
    v, norms = (torch.rand(200, 1, generator=seeded(4)) < 0.5).float().expand(200, 4), {}
    for n in (1, 32):
        rbm, g = RBM(4, 2, generator=seeded(0)), seeded(1)
        optimizer = torch.optim.Adam(rbm.parameters(), lr=0.05)
        for _ in range(150):
            optimizer.zero_grad()
            dsm_loss(rbm, v, SCHEDULE, 500, n, n / 3, (1e-3, 0.1), g).mean().backward()
            optimizer.step()
        norms[n] = rbm.W.norm().item()
    assert norms[1] > 3 * norms[32]


# Repairs

@pytest.mark.parametrize("hidden", ("bernoulli", "spin"))
@pytest.mark.parametrize("dtype", (torch.float32, f64))
def test_equal_knots_are_one_machine(hidden, dtype):
    rbm, a, t = (
        machine(hidden=hidden, dtype=dtype),
        normal(6, 4, dtype=dtype),
        torch.linspace(0.01, 1, 6, dtype=f64),
    )
    for jacobian in (False, True):
        timed = TimedRBM(rbm, SCHEDULE, 5, jacobian=jacobian)
        torch.testing.assert_close(timed(a, t), score(rbm, a, jacobian), rtol=1e-5, atol=1e-6)
        assert timed(a, t).dtype == dtype and timed.at(0.3).W.dtype == dtype
        assert str(timed.at(0.3).hidden) == hidden


def test_knots_lie_at_their_log_snrs():
    timed = TimedRBM(machine(), SCHEDULE, 3, 0.1, 0.9)
    middle = SCHEDULE.t_of_log_snr((SCHEDULE.log_snr(0.1) + SCHEDULE.log_snr(0.9)) / 2)
    w = timed.weights(torch.stack([torch.tensor(x, dtype=f64)
                                   for x in (0.9, float(middle), 0.1, 0.01, 1.0)]))
    torch.testing.assert_close(w, torch.eye(3, dtype=f64)[[0, 1, 2, 2, 0]], rtol=0, atol=1e-12)
    assert torch.allclose(timed.weights(torch.linspace(0, 1, 50, dtype=f64)[1:]).sum(-1),
                          torch.ones(49, dtype=f64))


def test_timed_machine_differs_by_time_and_learns():
    timed = TimedRBM(machine(), SCHEDULE)
    timed.b.data[-1] += 1
    a = normal(3, 4)
    torch.testing.assert_close(timed(a, 0.05), score(timed.at(0.05), a), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(timed(a, torch.tensor([1.0, 0.05, 0.2], dtype=f64))[1],
                               timed(a, 0.05)[1], rtol=1e-12, atol=1e-14)
    assert (timed(a, 0.05) - timed(a, 1.0)).abs().max() > 0.1
    dsm_loss(timed, bits(9, 4), SCHEDULE, 50, 1, times=(0.05, 1.0),
             generator=seeded(0)).mean().backward()
    assert all(p.grad is not None and bool((p.grad != 0).any()) for p in timed.parameters())


@pytest.mark.parametrize("schedule", (LinearBeta(), Geometric()))
def test_prior_adds_its_noised_score(schedule):
    a, t, zero = normal(5, 3), torch.tensor([0.1, 0.2, 0.5, 0.8, 1.0],
                                            dtype=f64), lambda a, t: torch.zeros_like(a)
    z = a.clone().requires_grad_()
    scale = torch.sqrt(4 * schedule.alpha(t)**2 + schedule.sigma(t)**2)[:, None]
    truth = torch.autograd.grad(torch.distributions.Normal(0.0, scale).log_prob(z).sum(), z)[0]
    torch.testing.assert_close(with_prior(zero, schedule, 2.0)(a, t), truth, rtol=1e-12, atol=0)
    torch.testing.assert_close(with_prior(lambda a, t: a, schedule, 2.0)(a, t), truth + a, rtol=1e-12,
                               atol=1e-12)
    assert (with_prior(zero, schedule, 1.0)(a, t) - truth).abs().max() > 1e-3


@pytest.mark.cuda
@cuda
def test_cuda():
    rbm, v, g = (
        machine(dtype=torch.float32).to("cuda"),
        bits(9, 4, dtype=torch.float32).cuda(),
        torch.Generator("cuda").manual_seed(0),
    )
    timed = with_prior(TimedRBM(rbm, SCHEDULE), SCHEDULE)
    for network in (rbm, timed):
        assert dsm_loss(network, v, SCHEDULE, 7, 4, generator=g).is_cuda
        a = sample_logits(network, SCHEDULE, torch.randn(5, 4, device="cuda", generator=g), 5, 0.05, g)
        assert a.is_cuda and read_out(a, g).is_cuda
    assert coupling_growth(batch_logits(v, 2, 30, generator=g))[0].is_cuda
    torch.testing.assert_close(score(rbm, a).cpu(), score(machine(dtype=torch.float32), a.cpu()),
                               rtol=1e-5, atol=1e-6)


# Bad input

RBM43, A, V = machine(), normal(2, 4), bits(5, 4)


@pytest.mark.parametrize("call, kind, match", (
    (lambda: free_energy(RBM(4, 3, "spin", dtype=f64), A), ValueError,
     "^rbm must have 'bernoulli' visible units"),
    (lambda: score(RBM(4, 3, "gaussian", dtype=f64), A), ValueError, "^rbm must have 'bernoulli'"),
    (lambda: free_energy("rbm", A), TypeError, "^rbm must be an RBM"),
    (lambda: score(RBM43, A[:, :3]), ValueError, r"^a must have shape \[..., 4\]"),
    (lambda: score(RBM43, A.float()), TypeError, "^a must be torch.float64"),
    (lambda: score(RBM43, A * math.inf), ValueError, "^a must be finite"),
    (lambda: free_energy(RBM43, A * math.nan), ValueError, "^a must be finite"),
    (lambda: free_energy(RBM43, A.long()), TypeError, "^a must be float32"),
    (lambda: score(RBM43, A.tolist()), TypeError, "^a must be a torch.Tensor"),
    (lambda: smoothed_logit(V, 1, 0.0), ValueError, "^smoothing must be finite and above 0"),
    (lambda: smoothed_logit(V, 1, math.nan), ValueError, "^smoothing must be"),
    (lambda: smoothed_logit(2 * V, 1, 0.5), ValueError, r"^k must lie in \[0, 1\]"),
    (lambda: smoothed_logit(V, 0, 0.5), ValueError, "^n must be at least 1"),
    (lambda: batch_logits(V / 2, 2, 3), ValueError, "^v must hold only 0 or 1"),
    (lambda: batch_logits(V[0], 2, 3), ValueError, r"^v must have shape \[N, D\]"),
    (lambda: batch_logits(V, 0, 3), ValueError, "^batch must"),
    (lambda: batch_logits(V, 2, 1.5), TypeError, "^n must be an int"),
    (lambda: batch_logits(V, 2, 3, -1.0), ValueError, "^smoothing must"),
    (lambda: batch_moments(V[0], 3), ValueError, "^mean must lie strictly"),
    (lambda: batch_moments(A, 0), ValueError, "^batch must"),
    (lambda: dsm_loss(RBM43, V, SCHEDULE, times=(0.0, 1.0)), ValueError, "^times must"),
    (lambda: dsm_loss(RBM43, V, SCHEDULE, times=(0.5, 0.2)), ValueError, "^times must"),
    (lambda: dsm_loss(RBM43, V - 0.5, SCHEDULE), ValueError, "^v must hold"),
    (lambda: dsm_loss(RBM43, V.float(), SCHEDULE), TypeError, "^a must be torch.float64"),
    (lambda: dsm_loss(RBM43, "v", SCHEDULE, generator=1), TypeError, "^v must be a torch.Tensor"),
    (lambda: score(RBM(4, 3, Binary((0.0, 2.0)), dtype=f64), A), ValueError,
     "^rbm must have 'bernoulli'"),
    (lambda: dsm_loss(3, V, SCHEDULE), TypeError, "^rbm must be an RBM or a network"),
    (lambda: dsm_loss(RBM(4, 3, "spin", dtype=f64), V, SCHEDULE), ValueError, "^rbm must have"),
    (lambda: sample_logits(RBM43, SCHEDULE, A[0]), ValueError, "^x must have shape"),
    (lambda: sample_logits(RBM43, SCHEDULE, A, 0), ValueError, "^steps must"),
    (lambda: sample_logits(RBM43, SCHEDULE, A, t_min=0.0), ValueError, "t_min"),
    (lambda: sample_logits(None, SCHEDULE, A), TypeError, "^rbm must be"),
    (lambda: read_out(A * math.inf), ValueError, "^a must be finite"),
    (lambda: read_out(A.int()), TypeError, "^a must be float32"),
    (lambda: asked_field(A * math.nan), ValueError, "^a must be finite"),
    (lambda: asked_field(A.float() + 200), ValueError, "^a must be nearer to 0"),
    (lambda: asked_field(A, width=-1.0), ValueError, "^width must"),
    (lambda: coupling_growth(A[:1]), ValueError, r"^a must have shape \[N, D\]"),
    (lambda: coupling_growth(A[None]), ValueError, r"^a must have shape"),
    (lambda: coupling_growth(A, width=0.0), ValueError, "^width must"),
    (lambda: with_prior(lambda a, t: a, SCHEDULE, math.inf), ValueError, "^width must"),
    (lambda: with_prior(RBM43.W, SCHEDULE), TypeError, "^network must"),
    (lambda: TimedRBM(RBM43, SCHEDULE, 1), ValueError, "^knots must"),
    (lambda: TimedRBM(RBM43, SCHEDULE, t_min=0.5, t_max=0.2), ValueError, "^t_min, t_max"),
    (lambda: TimedRBM(RBM(4, 3, "spin"), SCHEDULE), ValueError, "^rbm must have"),
    (lambda: TimedRBM(RBM43, SCHEDULE)(A[:, :2], 0.5), ValueError, "^a must have shape"),
    (lambda: TimedRBM(RBM43, SCHEDULE)(A, 1.5), ValueError, "^t must lie"),
    (lambda: TimedRBM(RBM43.tilt(A), SCHEDULE), ValueError, "^rbm must be one machine")))
def test_bad_input(call, kind, match):
    with pytest.raises(kind, match=match): call()
