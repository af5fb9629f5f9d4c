"""Denoising objectives of a Boltzmann machine against enumeration, on every kind of unit."""
import math

import pytest
import torch

import machines
from machines import seeded
from rbmdiff.bridge.recovery import (
    denoising_loss,
    flip,
    flip_recovery_loss,
    path_loss,
    readout_loss,
    recovery_gradient,
    recovery_loss,
)
from rbmdiff.bridge.tilted import flip_posterior, posterior
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.units import Discrete, states
from rbmdiff.learning.contrastive import cd_gradient, exact_gradient
from rbmdiff.learning.score_matching import probability_flow_loss, score_entropy_loss
from rbmdiff.models.rbm import RBM

DISCRETE = [(v, h) for v in ("bernoulli", "spin") for h in ("bernoulli", "spin")]
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def machine(D=3, H=2, visible="bernoulli", hidden="bernoulli", **options):
    """A small machine whose parameters ask for gradients."""
    return machines.machine(D, H, visible, hidden, scale=1.0, **options).requires_grad_()


def zs(columns, truth): return [Estimate.of(c).z(t) for c, t in zip(columns.T, truth.tolist())]


def noised(v, alpha, sigma, seed):
    return alpha * v + sigma * torch.randn(v.shape, dtype=v.dtype, generator=seeded(seed))


def flip_table(m, p):
    """All states, and the exact mean over flips of -log p(v | flipped) for each, by Bayes' rule."""
    V = states(len(m.W), m.visible)
    flips = (V[:, None] != V).double().sum(-1)
    log_q = flips * math.log(p) + (V.shape[1] - flips) * math.log(1 - p)
    joint = m.log_prob(V)[:, None] + log_q
    return V, (log_q.exp() * (torch.logsumexp(joint, 0) - joint)).sum(1)


# The path

@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_the_path_is_minus_the_log_likelihood_and_a_mutant_is_not(visible, hidden):
    m, V = machine(3, 2, visible, hidden), states(3, visible)
    with torch.no_grad():
        draws = torch.stack([path_loss(m, V.repeat(500, 1), seeded(i)).reshape(500, 8).mean(0)
                             for i in range(60)])
        truth = -m.log_prob(V)
    assert max(map(abs, zs(draws, truth))) < 4 and draws.std(0).max() / math.sqrt(60) < 0.08
    assert max(map(abs, zs(2 * draws, truth))) > 10


def test_the_path_has_the_gradient_of_the_likelihood():
    m, V = machine(), states(3)
    draws = []
    for i in range(60):
        m.zero_grad()
        (-path_loss(m, V.repeat(250, 1), seeded(i)).mean()).backward()
        draws.append(torch.cat([p.grad.reshape(-1) for p in m.parameters()]))
    exact = exact_gradient(m, V)
    truth = torch.cat([exact[name].reshape(-1) for name, _ in m.named_parameters()])
    draws = torch.stack(draws)
    assert max(map(abs, zs(draws, truth))) < 4 and draws.std(0).max() / math.sqrt(60) < 0.02
    assert max(map(abs, zs(draws, 2 * truth))) > 8


@pytest.mark.parametrize("keep, share", [("high", 1), ("low", -1)])
def test_weights_keep_a_part_of_the_path(keep, share):
    m, V = machine(), states(3)
    weight = (lambda g: (g > 2).double()) if keep == "high" else (lambda g: (g <= 2).double())
    with torch.no_grad():
        part = torch.stack([path_loss(m, V.repeat(250, 1), seeded(i), weight).reshape(250, 8).mean(0)
                            for i in range(100)])
        recovery = torch.stack([recovery_loss(m, V.repeat(250, 1), math.sqrt(2), 1.0,
                                              seeded(900 + i)).reshape(250, 8).mean(0)
                                for i in range(100)])
        truth = torch.zeros(8) if keep == "high" else -m.log_prob(V)
    assert max(map(abs, zs(part - share * recovery, truth))) < 4
    assert max(map(abs, zs(part + share * recovery, truth))) > 10


# Recovery

@pytest.mark.parametrize("visible", ["bernoulli", "spin", "gaussian"])
def test_recovery_is_the_posterior_at_the_state(visible):
    m = machine(3, 2, visible)
    v = states(3, visible if visible != "gaussian" else "spin")
    loss = recovery_loss(m, v, 0.8, 0.6, seeded(3))
    wanted = -posterior(m, noised(v, 0.8, 0.6, 3), 0.8, 0.6).log_prob(v)
    assert loss.shape == (8,) and torch.equal(loss, wanted)
    assert (loss + posterior(m, noised(v, 0.8, 0.6, 3), 0.8, 0.5).log_prob(v)).abs().max() > 0.01
    far = recovery_loss(m, v, 1.0, 1e8, seeded(3)) + m.log_prob(v)
    assert far.abs().max() < 1e-6


@pytest.mark.parametrize("visible, hidden", DISCRETE)
@pytest.mark.parametrize("p", [0.1, 0.4])
def test_flip_recovery_has_the_mean_over_all_flips(visible, hidden, p):
    m = machine(3, 2, visible, hidden)
    with torch.no_grad():
        V, truth = flip_table(m, p)
        draws = flip_recovery_loss(m, V.repeat(4000, 1), p, seeded(1)).reshape(-1, 8)
        assert max(map(abs, zs(draws, truth))) < 4
        assert max(map(abs, zs(draws, flip_table(m, p + 0.05)[1]))) > 6
        assert (flip_recovery_loss(m, V, 0.5, seeded()) + m.log_prob(V)).abs().max() < 1e-12


@pytest.mark.parametrize("unit", ["bernoulli", "spin"])
def test_flips_have_their_probability_and_stay_states(unit):
    v = states(4, unit).repeat(1000, 1)
    x = flip(v, 0.3, unit, seeded())
    share = Estimate.of((x != v).double().reshape(-1))
    assert (
        abs(share.z(0.3)) < 4
        and abs(share.z(0.29)) > 4
        and set(x.unique().tolist()) == set(v.unique().tolist())
    )


def test_levels_may_differ_by_row():
    m, v = machine(), states(3)
    alpha, sigma = torch.linspace(0.2, 1, 8), torch.linspace(0.3, 2, 8)
    for loss in (recovery_loss, denoising_loss, readout_loss):
        rows = loss(m, v, alpha, sigma, generator=seeded(2))
        x = torch.randn(v.shape, dtype=v.dtype, generator=seeded(2))
        x = alpha.double()[:, None] * v + sigma.double()[:, None] * x
        if loss is recovery_loss:
            single = [-posterior(m, x[i:i + 1], float(alpha[i]), float(sigma[i])).log_prob(v[i:i + 1])
                      for i in range(8)]
            assert (rows - torch.cat(single)).abs().max() < 1e-6
        assert rows.shape == (8,) and bool(rows.isfinite().all())


# Gradients

@pytest.mark.parametrize("visible, hidden", [*DISCRETE, ("gaussian", "bernoulli")])
def test_long_chains_give_the_gradient_of_the_loss(visible, hidden):
    m = machine(3, 2, visible, hidden)
    for name in "Wbc":
        # else up to 0.97 for the second eigenvalue, spins with spins
        getattr(m, name).data *= 0.5
    v = states(3, visible if visible != "gaussian" else "spin")[[1, 4, 6]].repeat(400, 1)
    draws, slopes = [], []
    for i in range(60):
        m.zero_grad()
        x = noised(v, 1.0, 1.5, i)
        (posterior(m, x, 1.0, 1.5).log_prob(v).mean()).backward()
        slopes.append(torch.cat([p.grad.reshape(-1) for p in m.parameters()]))
        grads = recovery_gradient(m, v, posterior(m, x, 1.0, 1.5), 20, seeded(100 + i))
        draws.append(torch.cat([grads[name].reshape(-1) for name, _ in m.named_parameters()]))
    gap = torch.stack(draws) - torch.stack(slopes)
    assert max(abs(Estimate.of(c).z(0.0)) for c in gap.T) < 4 and gap.std(0).max() / math.sqrt(60) < 0.02
    assert max(abs(Estimate.of(c).z(0.0)) for c in (torch.stack(draws) + torch.stack(slopes)).T) > 10


def test_without_a_tilt_it_is_contrastive_divergence():
    m, v = machine(6, 4, dtype=torch.float32), states(6, dtype=torch.float32)
    ours = recovery_gradient(m, v, m.tilt(torch.zeros_like(v)), 2, seeded(4))
    one = [recovery_gradient(m, v.repeat(100, 1), flip_posterior(m, v.repeat(100, 1), 0.5), 1, seeded(i))
           for i in range(25)]
    cd = [cd_gradient(m, v.repeat(100, 1), 1, generator=seeded(50 + i))[0] for i in range(25)]
    gap = torch.stack([a["W"].reshape(-1) - b["W"].reshape(-1) for a, b in zip(one, cd)]).double()
    assert ours["W"].dtype == torch.float32 and ours.keys() == {"W", "b", "c"}
    assert max(abs(Estimate.of(c).z(0.0)) for c in gap.T) < 4.5


def test_squared_error_turns_by_a_covariance():
    m, V = machine(4, 3), states(4)
    v = V[[3, 9]]
    slope = torch.autograd.grad(-denoising_loss(m, v, 1.0, 0.7, generator=seeded(5)).sum() / 2,
                                (m.b,))[0]
    with torch.no_grad():
        p = torch.softmax(-posterior(m, noised(v, 1.0, 0.7, 5), 1.0, 0.7).free_energy(V[:, None]), 0)
        mean = p.T @ V
        along = V @ (v - mean).T
        wanted = ((p * (along - (p * along).sum(0))).sum(1)) @ V
    assert (slope - wanted).abs().max() < 1e-12 and (slope + wanted).abs().max() > 0.1


@pytest.mark.parametrize("method", ["mean_field", "tap"])
def test_approximate_denoisers_are_exact_without_couplings(method):
    m, v = machine(4, 3), states(4)
    m.W.data *= 0
    a, b = (denoising_loss(m, v, 1.0, 0.8, name, generator=seeded(1)) for name in ("exact", method))
    assert (a - b).abs().max() < 1e-6
    assert torch.autograd.grad(b.mean(), m.b)[0].abs().max() > 1e-3


def test_readout_of_independent_pixels_is_recovery():
    m, v = machine(4, 3), states(4)
    read, joint = (f(m, v, 1.0, 0.9, generator=seeded(1)) for f in (readout_loss, recovery_loss))
    assert (read - joint).abs().max() > 1e-3
    m.W.data *= 0
    read, joint = (f(m, v, 1.0, 0.9, generator=seeded(1)) for f in (readout_loss, recovery_loss))
    assert (read - joint).abs().max() < 1e-12


# The ends

@pytest.mark.parametrize("visible, hidden", DISCRETE)
def test_ends_are_sums_over_neighbours(visible, hidden):
    m, V = machine(4, 3, visible, hidden), states(4, visible)
    with torch.no_grad():
        log_p, apart = m.log_prob(V), (V[:, None] != V).sum(-1) == 1
        r = torch.exp(log_p - log_p[:, None])
        flow, entropy = ((f * apart).sum(1) for f in (r.sqrt(), r + r.log()))
        assert (probability_flow_loss(m, V) - flow).abs().max() < 1e-10 * flow.max()
        assert (score_entropy_loss(m, V) - entropy).abs().max() < 1e-10 * entropy.abs().max()
        assert (probability_flow_loss(m, V) - (r * apart).sum(1)).abs().max() > 0.1
        rare = flip_table(m, 1e-6)[1] / 1e-6 - 4 * math.log((1 - 1e-6) / 1e-6)
        assert ((rare - entropy).abs() < 1e-3 * (1 + r.max() ** 2 * 1e-2)).all()


def test_leading_batch_shapes_of_the_ends():
    m, V = machine(4, 3), states(4)
    for f in (probability_flow_loss, score_entropy_loss):
        assert torch.equal(f(m, V.reshape(2, 8, 4)), f(m, V).reshape(2, 8)) and f(m, V[3]).shape == ()


# Types, devices, bad input

LOSSES = {"recovery": lambda m, v, g: recovery_loss(m, v, 1.0, 0.8, g),
          "flips": lambda m, v, g: flip_recovery_loss(m, v, 0.2, g),
          "path": lambda m, v, g: path_loss(m, v, g),
          "error": lambda m, v, g: denoising_loss(m, v, 1.0, 0.8, generator=g),
          "readout": lambda m, v, g: readout_loss(m, v, 1.0, 0.8, g),
          "flow": lambda m, v, g: probability_flow_loss(m, v),
          "entropy": lambda m, v, g: score_entropy_loss(m, v)}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_keep_dtype_shape_and_gradient(name, dtype):
    m, v = machine(4, 3, dtype=dtype), states(4, dtype=dtype)
    loss = LOSSES[name](m, v, seeded(7))
    loss.mean().backward()
    assert loss.dtype == dtype and loss.shape == (16,) and all(bool(p.grad.isfinite().all())
                                                               for p in m.parameters())
    assert torch.equal(LOSSES[name](m, v, seeded(7)), loss)


@cuda
@pytest.mark.parametrize("name", LOSSES)
def test_losses_on_cuda(name):
    m, v = machine(4, 3).to("cuda"), states(4, device="cuda")
    g = seeded(0, "cuda")
    with torch.no_grad():
        gpu = torch.stack([LOSSES[name](m, v.repeat(500, 1), g).reshape(500, 16).mean(0)
                           for _ in range(20)]).cpu()
        cpu = torch.stack([LOSSES[name](m.cpu(), v.cpu().repeat(500, 1),
                                        seeded(i)).reshape(500, 16).mean(0) for i in range(20)])
    error = ((gpu.var(0) + cpu.var(0)) / 20).sqrt()
    assert ((gpu.mean(0) - cpu.mean(0)).abs() <= 4.5 * error + 1e-9).all()


@cuda
def test_gradient_on_cuda():
    m, v = machine(4, 3).to("cuda"), states(4, device="cuda")
    g = seeded(0, "cuda")
    grads = recovery_gradient(m, v, flip_posterior(m, flip(v, 0.2, generator=g), 0.2), 3, g)
    assert all(x.is_cuda and bool(x.isfinite().all()) for x in grads.values())


# Any two levels, and a stream a row

OTHERS = {
    "path": lambda m, v, g: path_loss(m, v, g),
    "weighted path": lambda m, v, g: path_loss(m, v, g, lambda t: t.clamp(max=1)),
    "recovery": lambda m, v, g: recovery_loss(m, v, 0.7, 0.6, g),
    "flips": lambda m, v, g: flip_recovery_loss(m, v, 0.2, g),
    "read-out": lambda m, v, g: readout_loss(m, v, 0.7, 0.6, g),
    "denoising": lambda m, v, g: denoising_loss(m, v, 0.7, 0.6, "tap", 20, g),
    "flow": lambda m, v, g: probability_flow_loss(m, v),
    "entropy": lambda m, v, g: score_entropy_loss(m, v),
    "flipped": lambda m, v, g: flip(v, 0.3, m.visible, g).sum(-1)}


SAME = "path", "recovery", "flips", "read-out", "denoising", "flow", "entropy"


@pytest.mark.parametrize("name", SAME)
def test_levels_of_twice_the_size_change_nothing_but_the_unit_of_length(name):
    """v' = 2 v with W' = W / 2, b' = b / 2 is the same machine; half the signal gives the same x."""
    m, V = machine(4, 3).requires_grad_(False), states(4)
    twice = machine(4, 3, Discrete((0, 2))).requires_grad_(False)
    twice.W.copy_(m.W / 2)
    twice.b.copy_(m.b / 2)
    twice.c.copy_(m.c)
    signal = {"recovery": recovery_loss, "read-out": readout_loss, "denoising": denoising_loss}
    ours = OTHERS[name](m, V, seeded())
    if name in signal:
        other = signal[name](twice, 2 * V, 0.35, 0.6, generator=seeded())
        ours = signal[name](m, V, 0.7, 0.6, generator=seeded())
        wrong = signal[name](twice, 2 * V, 0.7, 0.6, generator=seeded())
    else:
        other, wrong = OTHERS[name](twice, 2 * V, seeded()), OTHERS[name](m, 1 - V, seeded())
    scale = 4 if name == "denoising" else 1
    assert (scale * ours - other).abs().max() < 1e-11 and (scale * ours - wrong).abs().max() > 0.01


@pytest.mark.parametrize("visible", ["bernoulli", "spin", "binary((-1.0, 3.0))"])
@pytest.mark.parametrize("name", OTHERS)
def test_a_stream_a_row_makes_rows_independent_of_their_batch(name, visible):
    m = machine(4, 3, visible).requires_grad_(False)
    v = states(4, m.visible)[:5]
    together = OTHERS[name](m, v, [seeded(i) for i in range(5)])
    alone = torch.cat([OTHERS[name](m, v[i:i + 1], [seeded(i)]) for i in range(5)])
    assert (together - alone).abs().max() < 1e-12
    assert torch.equal(OTHERS[name](m, v, 3), OTHERS[name](m, v, seeded(3)))
    if name in ("flow", "entropy"): return
    assert not torch.equal(OTHERS[name](m, v, [seeded(i + 9) for i in range(5)]), together)
    with pytest.raises(ValueError, match="generator"): OTHERS[name](m, v, [seeded(), seeded(1)])


def test_the_path_of_independent_streams_is_minus_the_log_likelihood_too():
    m, V = machine(3, 2).requires_grad_(False), states(3)
    rows = V.repeat(1200, 1)
    draws = path_loss(m, rows, [seeded(i) for i in range(len(rows))]).reshape(1200, 8)
    assert max(map(abs, zs(draws, -m.log_prob(V)))) < 4 and draws.std(0).max() / 1200**0.5 < 0.3
    assert max(map(abs, zs(2 * draws, -m.log_prob(V)))) > 10


def test_a_stream_a_row_in_the_gradient():
    m = machine(4, 3)
    v = states(4)[[1, 6, 9]]
    held = flip_posterior(m, flip(v, 0.2, generator=0), 0.2)
    together = recovery_gradient(m, v, held, 2, [seeded(i) for i in range(3)])
    one = [recovery_gradient(m, v[i:i + 1], flip_posterior(m, flip(v, 0.2, generator=0)[i:i + 1], 0.2),
                             2,
                             [seeded(i)]) for i in range(3)]
    for name, x in together.items():
        assert (x - sum(g[name] for g in one) / 3).abs().max() < 1e-12
    other = recovery_gradient(m, v, held, 2, [seeded(i + 5) for i in range(3)])
    assert any((x - other[name]).abs().max() > 0.01 for name, x in together.items())


m32, v32, gaussian = RBM(4, 3), states(4, dtype=torch.float32), RBM(4, 3, "gaussian")
BAD = {
    "path of Gaussian units": (lambda: path_loss(gaussian, v32), ValueError,
                               "rbm must have visible units of two levels"),
    "sigma zero": (lambda: recovery_loss(m32, v32, 1.0, 0.0), ValueError, "sigma"),
    "alpha negative": (lambda: recovery_loss(m32, v32, -1.0, 1.0), ValueError, "alpha"),
    "no states": (lambda: recovery_loss(m32, v32 / 2, 1.0, 1.0), ValueError, "v must hold only"),
    "one state": (lambda: recovery_loss(m32, v32[0], 1.0, 1.0), ValueError, "v must have shape"),
    "width": (lambda: denoising_loss(m32, v32[:, :3], 1.0, 1.0), ValueError, "v must have shape"),
    "dtype": (lambda: denoising_loss(m32, v32.double(), 1.0, 1.0), TypeError, "v must be torch.float32"),
    "levels": (lambda: denoising_loss(m32, v32, torch.ones(3), 1.0), ValueError, "alpha"),
    "method": (lambda: denoising_loss(m32, v32, 1.0, 1.0, "gibbs"), ValueError, "method"),
    "steps": (lambda: denoising_loss(m32, v32, 1.0, 1.0, "tap", 0), ValueError, "steps"),
    "tilted": (lambda: recovery_loss(m32.tilt(v32), v32, 1.0, 1.0), ValueError, "tilted"),
    "no machine": (lambda: recovery_loss(None, v32, 1.0, 1.0), TypeError, "rbm must be an RBM"),
    "read-out of reals": (lambda: readout_loss(gaussian, v32, 1.0, 1.0), ValueError,
                          "rbm must have visible units of two levels"),
    "p zero": (lambda: flip_recovery_loss(m32, v32, 0.0), ValueError,
               "p must be finite and above 0 and below 1"),
    "p one": (lambda: flip(v32, 1.0), ValueError, "p must be finite and above 0 and below 1"),
    "unit": (lambda: flip(v32, 0.1, "gaussian"), ValueError, "unit"),
    "colours": (lambda: flip(v32, 0.1, "potts(2)"), ValueError, "unit must be one of two levels"),
    "spins for bits": (lambda: flip(2 * v32 - 1, 0.1), ValueError, "v must hold only"),
    "flips of Gaussian units": (lambda: flip_recovery_loss(gaussian, v32, 0.1), ValueError,
                                "rbm must have visible units of two levels"),
    "one machine": (lambda: recovery_gradient(m32, v32, m32), ValueError, "noised"),
    "noised": (lambda: recovery_gradient(m32, v32, v32), TypeError, "noised"),
    "k": (lambda: recovery_gradient(m32, v32, flip_posterior(m32, v32, 0.1), 0), ValueError,
          "k must be"),
    "flow of Gaussian units": (lambda: probability_flow_loss(gaussian, v32), ValueError,
                               "rbm.visible|rbm must"),
    "too large": (lambda: recovery_loss(RBM(30, 30), torch.zeros(2, 30), 1.0, 1.0), ValueError,
                  "25 units")}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message): call()


def test_a_mean_that_rounds_to_the_wrong_bit_is_infinite_in_float32_only():
    m = RBM(2, 1, generator=0)
    m.b.data = torch.tensor([20.0, 0.0])
    v = torch.tensor([[0.0, 1.0]])
    single, double = (readout_loss(m.to(t), v.to(t), 1.0, 5.0, seeded()).item()
                      for t in (torch.float32, torch.float64))
    assert math.isinf(single) and 10 < double < 30
