"""The identities of the bridge at the size of MNIST, 784 x 500: exact ones to rounding, the others over
independent draws with their errors.
"""
import pytest
import torch

from rbmdiff.bridge import limit, meanfield, recovery, tilted
from rbmdiff.foundations.core import Estimate
from rbmdiff.learning.partition import ais
from rbmdiff.models import energy
from rbmdiff.models.rbm import RBM, flip_log_ratios
from rbmdiff.sampling.gibbs import gibbs
from rbmdiff.sampling.means import start_chains

D, H = 784, 500


def machine(visible="bernoulli", scale=0.04, dtype=torch.float64, seed=0):
    """A machine with couplings and biases, which block Gibbs sampling forgets in a few steps."""
    g = torch.Generator().manual_seed(seed)
    rbm = RBM(D, H, visible, generator=g, dtype=dtype).requires_grad_(False)
    rbm.W.copy_(scale * torch.randn(D, H, generator=g, dtype=dtype))
    rbm.b.copy_(torch.randn(D, generator=g, dtype=dtype) - 0.5)
    return rbm


def samples(rbm, n, g):
    """Independent states of `rbm`, by 50 Gibbs steps from independent starts."""
    return gibbs(rbm, start_chains(rbm, n, None, g), 50, g)


def z(values, truth=0.0):
    return Estimate.of(values.double()).z(truth)


@pytest.mark.parametrize("jacobian", [False, True])
def test_score_of_logits_is_a_gradient(jacobian):
    rbm, a = machine(), torch.randn(3, D, dtype=torch.float64,
                                    generator=torch.Generator().manual_seed(1))
    log_slopes = lambda a: (torch.nn.functional.logsigmoid(a)
                            + torch.nn.functional.logsigmoid(-a)).sum(-1)
    target = energy.score(lambda a: meanfield.free_energy(rbm, a) - jacobian * log_slopes(a), a)
    assert (meanfield.score(rbm, a, jacobian) - target).abs().max() < 1e-9
    assert (meanfield.score(rbm, a, not jacobian) - target).abs().max() > 0.1


def test_flip_ratios_are_differences_of_free_energies():
    rbm, g = machine(), torch.Generator().manual_seed(1)
    v, units = samples(rbm, 2, g), torch.tensor([0, 1, 391, 783])
    flipped = v[:, None].repeat(1, len(units), 1)
    flipped[:, range(len(units)), units] = 1 - v[:, units]
    truth = rbm.free_energy(v)[:, None] - rbm.free_energy(flipped)
    assert (flip_log_ratios(rbm, v)[:, units] - truth).abs().max() < 1e-9
    assert (flip_log_ratios(rbm, v)[:, units] + truth).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["noise", "flips"])
@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_posterior_draws_are_as_good_as_the_data(visible, kind):
    """(v, x) and (v', x) have one law if v' is a draw of p(v | x): their energies and their overlaps
    with x agree on average.
    """
    rbm, g = machine(visible, dtype=torch.float32), torch.Generator().manual_seed(2)
    sigma, p = 1.0, 0.2
    v = samples(rbm, 400, g)
    if kind == "noise":
        x = v + sigma * torch.randn(v.shape, generator=g)
        right, wrong = tilted.posterior(rbm, x, 1.0, sigma), tilted.posterior(rbm, x, 1.0, 2 * sigma)
    else:
        x = torch.where(torch.rand(v.shape, generator=g) < p, sum(rbm.visible.levels) - v, v)
        right, wrong = tilted.flip_posterior(rbm, x, p), tilted.flip_posterior(rbm, x, p / 2)

    def difference(posterior):
        other = gibbs(posterior, start_chains(posterior, generator=g)[0], 50, g)
        return rbm.free_energy(other) - rbm.free_energy(v), ((other - v) * x).sum(-1)

    free, overlap = difference(right)
    assert abs(z(free)) < 4 and abs(z(overlap)) < 4
    assert Estimate.of(free.double()).stderr < 2 and Estimate.of(overlap.double()).stderr < 2
    assert max(abs(z(part)) for part in difference(wrong)) > 10


def test_squared_error_of_the_gibbs_mean_is_the_posterior_variance():
    rbm, g = machine(dtype=torch.float32), torch.Generator().manual_seed(3)
    v = samples(rbm, 100, g)
    x = v + torch.randn(v.shape, generator=g)
    options = dict(steps=100, burn_in=50, generator=g)
    one, two = (tilted.denoise(rbm, x, 1.0, 1.0, "gibbs", **options) for _ in range(2))
    draw = gibbs(tilted.posterior(rbm, x, 1.0, 1.0), v, 50, g)
    error, spread = ((v - one) * (v - two)).sum(-1), ((draw - one) * (draw - two)).sum(-1)
    assert abs(z(error - spread)) < 4 and Estimate.of((error - spread).double()).stderr < 1.5
    assert abs(z(error - 0.9 * spread)) > 4
    assert (one - two).square().mean() < 0.01
    assert (tilted.denoise(rbm, x, 1.0, 1.0, "tap") - one).square().mean() < 0.01


def test_log_z_from_the_noise_path():
    rbm, g = machine(scale=0.02, dtype=torch.float32), torch.Generator().manual_seed(4)
    v = samples(rbm, 40, g)
    path = tilted.path_log_z(rbm, v, levels=64, steps=10, burn_in=10, generator=g)
    annealed = ais(rbm, 40, 500, g, base=rbm.b)
    gap = Estimate(path.value - annealed.value, (path.stderr**2 + annealed.stderr**2) ** 0.5, 40)
    assert abs(gap.z(0)) < 4 and gap.stderr < 1.5 and annealed.stderr < 0.2
    assert (
        abs(Estimate(path.value, gap.stderr, 40).z(annealed.value + rbm.free_energy(v).mean().item()))
        > 10
    )


def test_noised_gaussian_machine_is_a_gaussian_machine():
    rbm, g, alpha, sigma = machine("gaussian", 0.05), torch.Generator().manual_seed(5), 0.8, 0.6
    rbm.sigma = 0.5 + torch.rand(D, dtype=torch.float64, generator=g)
    x = torch.randn(2, D, dtype=torch.float64, generator=g)
    h = (torch.rand(2, 4, H, generator=g) < 0.5).double()
    noised = tilted.noised_energy(rbm, x[:, None], h, alpha, sigma)
    # p(h | x) by Bayes' rule: sum out v at each h
    machines = tilted.posterior(rbm, x, alpha, sigma)
    log_joint = -machines.hidden_free_energy(h.transpose(0, 1)).T
    gap = (noised - noised[:, :1]) + (log_joint - log_joint[:, :1])
    assert gap.abs().max() < 1e-9 * noised.abs().max()
    assert ((noised - noised[:, :1]) - (log_joint - log_joint[:, :1])).abs().max() > 1


def test_contrastive_divergence_becomes_score_matching():
    rbm = machine("gaussian", 0.02).requires_grad_()
    v = torch.randn(20, D, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    names = list(dict(rbm.named_parameters()))
    loss = limit.score_matching_loss(rbm, v).mean()
    slope = dict(zip(names, torch.autograd.grad(loss, tuple(rbm.parameters()))))

    def deviation(e, sign=-1):
        g = limit.langevin_cd_gradient(rbm, v, e)
        apart = sum((g[n] - sign * e**2 / 2 * slope[n]).square().sum() for n in names)
        return (apart / sum((e**2 / 2 * slope[n]).square().sum() for n in names)).sqrt().item()

    coarse, fine = deviation(0.1), deviation(0.05)
    assert fine < 0.01 and 3.2 < coarse / fine < 4.8
    assert deviation(0.05, sign=1) > 1


def test_recovery_gradient_has_no_bias_at_the_model():
    """Where the data are the model's own, the exact gradient of every recovery objective is zero on
    average.
    """
    rbm, g = machine(dtype=torch.float32), torch.Generator().manual_seed(7)
    v = samples(rbm, 400, g)
    x = v + 2 * torch.randn(v.shape, generator=g)
    other = machine(dtype=torch.float32, seed=1)
    direction = rbm.W - other.W                             # from a wrong machine to the right one

    def slopes(rbm):
        parts = [recovery.recovery_gradient(rbm, part, tilted.posterior(rbm, noised, 1.0, 2.0), 30,
                                            g)["W"]
                 for part, noised in zip(v.split(10), x.split(10))]
        return torch.stack([(part * direction).sum() for part in parts])

    assert abs(z(slopes(rbm))) < 4 and z(slopes(other)) > 10
