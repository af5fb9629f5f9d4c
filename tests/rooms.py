"""One call of every public function of the machines' rooms, for laws that all of them keep.

A call takes a machine, states [B, D] of it and a stream, and returns a tensor. A new public function
needs a call here, or a place in `NO_CALL` with the reason.
"""
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from functools import cache
import importlib
import inspect
from itertools import islice
import pkgutil
from typing import Any

import torch
from torch import Tensor

from machines import machine
from rbmdiff.bridge import (
    comparison,
    completion,
    discrete,
    flow as ddim_flow,
    gumbel,
    limit,
    masked as masks_,
    meanfield,
    memory,
    recovery,
    score,
    tilted,
)
from rbmdiff.diffusion.schedule import LinearBeta
from rbmdiff.foundations import core
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.units import as_unit
from rbmdiff.learning import contrastive, gradients, partition, score_matching, tap
from rbmdiff.models import autoregressive, boltzmann, deep, energy, flow, hopfield, ising, rbm
from rbmdiff.sampling import clusters, diagnostics, gibbs, langevin, means, metropolis, tempering

B, D, H = 3, 4, 3
VP = LinearBeta()
HELD = torch.tensor([True, False, True, False])
ROOMS = "models", "sampling", "learning", "bridge"


@dataclass
class Call:
    """How a function is called: `of` is the kind of machine, or "numbers", where states are reals."""
    run: Callable[..., Any]
    of: str = "bits"
    draws: bool = False

    def __call__(self, m: Any, v: Tensor, g: Any = None) -> Any:
        """The result; a function that draws gets the stream."""
        return self.run(m, v, g) if self.draws else self.run(m, v)


def subject(of: str, dtype: torch.dtype = torch.float64) -> tuple[Any, Tensor]:
    """A machine of a kind and states [B, D] of it."""
    x = torch.linspace(-1, 1, B * D, dtype=torch.float64).sin().reshape(B, D).to(dtype)
    up = (torch.arange(B * D).reshape(B, D) * 7 % 5 > 2).to(dtype)
    if of in ("bits", "numbers"): return machine(D, H, dtype=dtype), up if of == "bits" else x
    if of == "real": return machine(D, H, "gaussian", scale=0.4, dtype=dtype), x
    J = boltzmann.couplings(torch.linspace(-0.5, 0.7, D * (D - 1) // 2, dtype=dtype))
    return boltzmann.Boltzmann(J, torch.linspace(-0.3, 0.4, D, dtype=dtype)), 2 * up - 1


def on(h: Tensor) -> Tensor:
    """Hidden states [B, H] made of visible ones."""
    return h[:, :H]


def strip(v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Couplings and fields of strips of 2 x 2 spins, from numbers [B, 4]."""
    no = 0 * v[:, :2]
    return no.reshape(-1, 2, 1) + 0.3, no.reshape(-1, 1, 2) - 0.2, v.reshape(-1, 2, 2)


def long(x: Tensor) -> Tensor:
    """Chains [B, 32] made of numbers [B, D]."""
    steps = torch.arange(32, dtype=x.dtype)
    return x.sum(-1, keepdim=True).sin() + (1.7 * steps).sin()


def value(e: Estimate) -> Tensor: return torch.tensor(e.value, dtype=torch.float64)


def each(y: dict[str, Tensor]) -> Tensor: return torch.cat([x.flatten() for x in y.values()])


def pair(y: tuple[Tensor, ...]) -> Tensor: return torch.cat([x.flatten() for x in y])


def walked(y: tuple[Tensor, Tensor]) -> Tensor: return y[0] + y[1][..., None]


def fair(x: Tensor) -> Tensor: return x.sum(-1) * 0 - D * 0.6931471805599453


def half_exp(y: Tensor) -> Tensor: return (y / 2).exp()


def minus(f: Callable) -> Callable: return lambda x: -f(x)


def squares(x: Tensor) -> Tensor: return x.square().sum(-1) + x[..., 0] * x[..., 1]


def energies(x: Tensor) -> Tensor: return squares(x) / 2 - x.sum(-1)


def known(x: Tensor) -> Tensor: return torch.full((2**D,), 2.0**-D, dtype=x.dtype)


def chances(x: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the probabilities of D states, and of B outputs of a channel."""
    return x.sum(0).log_softmax(0), x.T.log_softmax(1)


def stirred(x: Tensor) -> tuple[Tensor, Tensor]:
    """Transition matrix of a chain on D states, and what it keeps."""
    p = x.sum(0).softmax(0)
    return 0.5 * torch.eye(D, dtype=x.dtype) + 0.5 * p.expand(D, D), p


def asked(predict: Callable, v: Tensor) -> Tensor: return predict(v, 0.5)


SITES = ising.neighbours(2, 2)


def square(v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Pairs, couplings and fields of a square of four spins, and spins, from spins [B, 4]."""
    return SITES, 0.3 + 0 * v[0], 0.2 + 0 * v[0], v


def carried(v: Tensor) -> Any:
    """Two steps of DDIM that know the denoiser of three patterns, as a flow."""
    grid = torch.tensor([0.9, 0.6, 0.4])
    return ddim_flow.DDIMFlow(memory.memory_predictor(ROWS.to(v), VP), VP, grid)


def noised(v: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A strip of 2 x 2 spins, and noisy copies of it from numbers [B, 4]."""
    like = {"dtype": v.dtype}
    return torch.full((2, 1), 0.3, **like), torch.full((1, 2), -0.2, **like), torch.zeros(
        2, 2, **like), v.reshape(-1, 2, 2)


def attracted(m: Any) -> Any: return m.sharing(W=m.W.abs())


def counting(m: Any) -> Any: return m.sharing(visible=as_unit("visible", "poisson"))


@cache
def made(kind: type, dtype: torch.dtype) -> Any:
    """A step of a flow whose parameters are shaken; made once, outside of all transforms."""
    step = kind(D, generator=3, dtype=torch.float64).requires_grad_(False)
    for k, x in enumerate(step.parameters()):
        x += 0.3 * torch.arange(1, x.numel() + 1, dtype=x.dtype).add(k).sin().reshape(x.shape)
    return step.to(dtype)


def step(kind: type, v: Tensor) -> Any: return made(kind, v.dtype)


def planar_flow(v: Tensor) -> flow.Flow: return flow.Flow([step(flow.Planar, v), step(flow.Radial, v)])


def first(step: Any) -> Tensor: return step.network.weights[0].detach()


def small(v: Tensor) -> Any: return step(flow.MaskedAutoregressive, v)


def bent(v: Tensor) -> flow.Residual: return flow.Residual(D, lambda z: 0.3 * z.sin(), 0.5)


NETWORK, STACK = (kind([D, H, 2], generator=0) for kind in (deep.DBN, deep.DBM))


def network(m: Any) -> deep.DBN:
    """A belief network of D, H and two units, whose numbers are made of those of a machine."""
    net = copy(NETWORK)
    net._modules = {}
    net.layers = torch.nn.ModuleList([m, m.sharing(W=0.7 * m.W[:H, :2], b=m.c, c=m.b[:2])])
    return net


def stacked(m: Any) -> deep.DBM:
    """A deep Boltzmann machine of D, H and two units, whose numbers are those of a machine."""
    dbm = copy(STACK)
    dbm._modules = {}
    dbm.W, dbm.b = [m.W, 0.7 * m.W[:H, :2]], [m.b, m.c, m.b[:2]]
    return dbm


def warmer(m: Any) -> list[Any]:
    """A ladder of two machines: half of the couplings, and all."""
    return [m.sharing(W=0.5 * m.W), m]


def completer(m: Any) -> Callable: return lambda x, mask: masks_.completed_mean(m, x, mask)


def hidden(v: Tensor) -> Tensor: return HELD.expand(v.shape)


def each_W(machines: list[Any]) -> Tensor: return torch.stack([m.W for m in machines])


def table(m: Any) -> Tensor: return torch.linspace(-1, 1, 2**H, dtype=m.W.dtype).log_softmax(0)


def loud(net: Any) -> Any:
    """The network with weights of the size of one."""
    stream = torch.Generator().manual_seed(0)
    for p in net.requires_grad_(False).parameters():
        p.copy_(torch.randn(p.shape, dtype=torch.float64, generator=stream))
    return net


PRECISIONS = torch.float32, torch.float64
NADES = {dtype: loud(autoregressive.NADE(D, H, dtype=dtype, generator=0)) for dtype in PRECISIONS}
MADES = {dtype: loud(autoregressive.MADE(D, H, dtype=dtype, generator=0)) for dtype in PRECISIONS}


def nade(v: Tensor) -> Any: return NADES[v.dtype]


def masked(v: Tensor) -> Any: return MADES[v.dtype]


KEPT = Estimate(3.0, 0.1, 10)
FAMILY = torch.tensor([0, 0, 2])
c = Call
CALLS: dict[str, Call] = {
    "rbm.RBM": c(lambda m, v, g: rbm.RBM(D, H, generator=g, dtype=v.dtype).W, draws=True),
    "rbm.RBM.hidden_field": c(lambda m, v: m.hidden_field(v)),
    "rbm.RBM.visible_field": c(lambda m, v: m.visible_field(on(v))),
    "rbm.RBM.precise": c(lambda m, v: m.precise().W),
    "rbm.RBM.energy": c(lambda m, v: m.energy(v, on(v))),
    "rbm.RBM.hidden_mean": c(lambda m, v: m.hidden_mean(v)),
    "rbm.RBM.visible_mean": c(lambda m, v: m.visible_mean(on(v))),
    "rbm.RBM.sample_hidden": c(lambda m, v, g: m.sample_hidden(v, g), draws=True),
    "rbm.RBM.sample_visible": c(lambda m, v, g: m.sample_visible(on(v), g), draws=True),
    "rbm.RBM.free_energy": c(lambda m, v: m.free_energy(v)),
    "rbm.RBM.hidden_free_energy": c(lambda m, v: m.hidden_free_energy(on(v))),
    "rbm.RBM.score": c(lambda m, v: m.score(v)),
    "rbm.RBM.log_partition": c(lambda m, v: m.log_partition()),
    "rbm.RBM.log_prob": c(lambda m, v: m.log_prob(v)),
    "rbm.RBM.sharing": c(lambda m, v: m.sharing(b=2 * m.b).b),
    "rbm.RBM.relabelled": c(lambda m, v: m.relabelled("spin", "spin").b),
    "rbm.RBM.tilt": c(lambda m, v: m.tilt(v).b),
    "rbm.RBM.at": c(lambda m, v: m.at(0.5).W),
    "rbm.RBM.clamp": c(lambda m, v: m.clamp(v, HELD).c),
    "rbm.RBM.sample": c(lambda m, v, g: m.sample(len(v), generator=g), draws=True),
    "rbm.flip_log_ratios": c(lambda m, v: rbm.flip_log_ratios(m, v)),
    "boltzmann.Boltzmann.energy": c(lambda m, v: m.energy(v), "any"),
    "boltzmann.Boltzmann.field": c(lambda m, v: m.field(v), "any"),
    "boltzmann.Boltzmann.conditional_mean": c(lambda m, v: m.conditional_mean(v), "any"),
    "boltzmann.Boltzmann.sharing": c(lambda m, v: m.sharing(b=2 * m.b).b, "any"),
    "boltzmann.Boltzmann.tilt": c(lambda m, v: m.tilt(v).b, "any"),
    "boltzmann.Boltzmann.at": c(lambda m, v: m.at(0.5).J, "any"),
    "boltzmann.Boltzmann.log_partition": c(lambda m, v: m.log_partition(), "any"),
    "boltzmann.Boltzmann.log_prob": c(lambda m, v: m.log_prob(v), "any"),
    "boltzmann.Boltzmann.moments": c(lambda m, v: pair(m.moments()), "any"),
    "boltzmann.Boltzmann.sample": c(lambda m, v, g: m.sample(len(v), g), "any", True),
    "boltzmann.Boltzmann.clamp": c(lambda m, v: m.clamp(v, HELD).b, "any"),
    "boltzmann.Boltzmann.log_marginal": c(lambda m, v: m.log_marginal(v, HELD), "any"),
    "boltzmann.Boltzmann.gradient": c(lambda m, v: pair(m.gradient(v)), "any"),
    "boltzmann.Boltzmann.log_pseudo": c(lambda m, v: m.log_pseudo(v), "any"),
    "boltzmann.Boltzmann.edge_rbm": c(lambda m, v: m.edge_rbm().W, "any"),
    "boltzmann.Boltzmann.gaussian_rbm": c(lambda m, v: m.gaussian_rbm().W, "any"),
    "boltzmann.couplings": c(lambda m, v: boltzmann.couplings(v[0, :3]), "numbers"),
    "energy.log_partition": c(lambda m, v: energy.log_partition(energies, v), "numbers"),
    "energy.log_probs": c(lambda m, v: energy.log_probs(energies, v), "numbers"),
    "energy.entropy": c(lambda m, v: energy.entropy(energies, v), "numbers"),
    "energy.log_ratio": c(lambda m, v: energy.log_ratio(energies, v, v.flip(0)), "numbers"),
    "energy.product": c(lambda m, v: energy.product(energies, squares)(v), "numbers"),
    "energy.gaussian_product": c(lambda m, v: pair(energy.gaussian_product(v, v.exp())), "numbers"),
    "energy.tempered": c(lambda m, v: energy.tempered(energies, 2.0)(v), "numbers"),
    "energy.score": c(lambda m, v: energy.score(energies, v, True), "numbers"),
    "ising.observed": c(lambda m, v: ising.observed(strip(v)[2], 0 * strip(v)[2] + 1, 0.1), "numbers"),
    "ising.log_partition": c(lambda m, v: ising.log_partition(*strip(v)), "numbers"),
    "ising.exact_samples": c(lambda m, v, g: ising.exact_samples(*strip(v[:1] * 0 + 0.1), len(v), g),
                             "numbers", True),
    "ising.ground_state": c(lambda m, v: ising.ground_state(*strip(v)), "numbers"),
    "ising.means": c(lambda m, v: ising.means(*strip(v)), "numbers"),
    "ising.score": c(lambda m, v: ising.score(*strip(v), strip(v)[2], 0.6, 0.8), "numbers"),
    "ising.kaufman": c(lambda m, v: ising.kaufman(v.exp(), 4, 4), "numbers"),
    "ising.onsager": c(lambda m, v: pair(ising.onsager(v.exp())), "numbers"),
    "ising.kac_ward": c(lambda m, v: ising.kac_ward(*(x[0] for x in strip(v)[:2])), "numbers"),
    "deep.with_prior": c(lambda m, v: torch.stack(deep.with_prior(m, v, table(m)))),
    "deep.ceilings": c(lambda m, v: torch.stack(deep.ceilings(m, v, 3))),
    "deep.transposed": c(lambda m, v: 2 * deep.transposed(m).W),
    "deep.doubled": c(lambda m, v: deep.doubled(m, "hidden").W),
    "deep.DBN": c(lambda m, v, g: deep.DBN([D, H, 2], generator=g, dtype=v.dtype).layers[1].W,
                  draws=True),
    "deep.DBN.log_prob": c(lambda m, v: network(m).log_prob(v)),
    "deep.DBN.bound": c(lambda m, v: network(m).bound(v)),
    "deep.DBN.sampled_bound": c(lambda m, v, g: network(m).sampled_bound(v, 1.5, 2, g), draws=True),
    "deep.DBN.sample": c(lambda m, v, g: network(m).sample(len(v), generator=g), draws=True),
    "deep.DBN.up": c(lambda m, v, g: network(m).up(v, g), draws=True),
    "deep.DBM": c(lambda m, v, g: deep.DBM([D, H, 2], generator=g, dtype=v.dtype).W[1], draws=True),
    "deep.DBM.as_rbm": c(lambda m, v: stacked(m).as_rbm().W),
    "deep.DBM.joined": c(lambda m, v: stacked(m).joined([m.W, m.W[:H, :2]])),
    "deep.DBM.log_partition": c(lambda m, v: stacked(m).log_partition()),
    "deep.DBM.sample": c(lambda m, v, g: stacked(m).sample(len(v), generator=g), draws=True),
    "deep.DBM.clamped": c(lambda m, v: stacked(m).clamped(v).c),
    "deep.DBM.log_prob": c(lambda m, v: stacked(m).log_prob(v)),
    "deep.DBM.mean_field": c(lambda m, v: stacked(m).mean_field(v, 3)),
    "deep.DBM.bound": c(lambda m, v: stacked(m).bound(v, 3)),
    "contrastive.deep_gradient": c(lambda m, v, g: contrastive.deep_gradient(
        stacked(m), v, 2, generator=g, steps=3)[1], draws=True),
    "autoregressive.NADE": c(lambda m, v, g: autoregressive.NADE(D, H, generator=g, dtype=v.dtype).W,
                             draws=True),
    "autoregressive.NADE.fields": c(lambda m, v: nade(v).fields(v)),
    "autoregressive.NADE.sample": c(lambda m, v, g: nade(v).sample(len(v), g), draws=True),
    "autoregressive.MADE": c(lambda m, v, g: autoregressive.MADE(
        D, H, generator=g, dtype=v.dtype).network.weights[0], draws=True),
    "autoregressive.MADE.fields": c(lambda m, v: masked(v).fields(v)),
    "autoregressive.Autoregressive.log_prob": c(
        lambda m, v: masked(v).log_prob(v) + nade(v).log_prob(v)),
    "autoregressive.Autoregressive.means": c(lambda m, v: masked(v).means(v) + nade(v).means(v)),
    "autoregressive.Autoregressive.sample": c(lambda m, v, g: masked(v).sample(len(v), g), draws=True),
    "autoregressive.MaskedMLP": c(lambda m, v, g: autoregressive.MaskedMLP(
        D, H, generator=g, dtype=v.dtype).weights[0], draws=True),
    "autoregressive.MaskedLayers": c(lambda m, v, g: autoregressive.MaskedLayers(
        [torch.ones(D, H), torch.ones(H, 2), torch.ones(D, 2)], 2, generator=g,
        dtype=v.dtype).weights[0], draws=True),
    "autoregressive.MaskedLayers.forward": c(
        lambda m, v: autoregressive.MaskedLayers.forward(masked(v).network, v), "numbers"),
    "autoregressive.MaskedLayers.masked": c(lambda m, v: masked(v).network.masked()[0], "numbers"),
    "autoregressive.MaskedMLP.forward": c(lambda m, v: masked(v).network(v), "numbers"),
    "hopfield.recall": c(lambda m, v: hopfield.recall(m.J, v, m.b), "any"),
    "hopfield.together": c(lambda m, v: hopfield.together(m.J, v, m.b), "any"),
    "hopfield.pair_energy": c(lambda m, v: hopfield.pair_energy(m.J, v, v.flip(-1), m.b), "any"),
    "hopfield.free_energy": c(lambda m, v: hopfield.free_energy(m.J, 0.5 * v, m.b), "any"),
    "hopfield.relax": c(lambda m, v: hopfield.relax(m.J, 0.5 * v, m.b, 2), "any"),
    "hopfield.hebb": c(lambda m, v: hopfield.hebb(v), "any"),
    "hopfield.storkey": c(lambda m, v: hopfield.storkey(v), "any"),
    "hopfield.pseudo_inverse": c(lambda m, v: hopfield.pseudo_inverse(v), "any"),
    "hopfield.learn": c(lambda m, v: hopfield.learn(v, 3), "any"),
    "hopfield.rest_states": c(lambda m, v: hopfield.rest_states(m.J, v.mean(0)), "any"),
    "hopfield.overlap": c(lambda m, v: hopfield.overlap(v.exp()), "numbers"),
    "hopfield.dense_update": c(lambda m, v: hopfield.dense_update(v, v.flip(0), 3), "any"),
    "hopfield.modern_energy": c(lambda m, v: hopfield.modern_energy(v, v.flip(0), 0.7), "numbers"),
    "hopfield.modern_update": c(lambda m, v: hopfield.modern_update(v, v.flip(0), 0.7), "numbers"),
    "hopfield.as_rbm": c(lambda m, v: hopfield.as_rbm(v, 0.3).W, "any"),
    "flow.Step.forward": c(lambda m, v: pair(step(flow.Planar, v)(v)), "numbers"),
    "flow.Step.inverse": c(lambda m, v: pair(step(flow.Planar, v).inverse(v)), "numbers"),
    "flow.Flow.push": c(lambda m, v: pair(planar_flow(v).push(v)), "numbers"),
    "flow.Flow.pull": c(lambda m, v: pair(planar_flow(v).pull(v)), "numbers"),
    "flow.Flow.log_prob": c(lambda m, v: planar_flow(v).log_prob(v), "numbers"),
    "flow.Flow.rsample": c(lambda m, v, g: planar_flow(v).rsample(len(v), g)[1], "numbers", True),
    "flow.Flow.sample": c(lambda m, v, g: planar_flow(v).sample(len(v), g), "numbers", True),
    "flow.Planar": c(
        lambda m, v, g: flow.Planar(D, generator=g, dtype=v.dtype).u.detach(), "numbers", True),
    "flow.Planar.push": c(lambda m, v: pair(step(flow.Planar, v).push(v)), "numbers"),
    "flow.Planar.pull": c(lambda m, v: pair(step(flow.Planar, v).pull(v)), "numbers"),
    "flow.Radial": c(
        lambda m, v, g: flow.Radial(D, generator=g, dtype=v.dtype).centre.detach(), "numbers", True),
    "flow.Radial.push": c(lambda m, v: pair(step(flow.Radial, v).push(v)), "numbers"),
    "flow.Radial.pull": c(lambda m, v: pair(step(flow.Radial, v).pull(v)), "numbers"),
    "flow.ring_energy": c(lambda m, v: flow.ring_energy(v[..., :2]), "numbers"),
    "flow.Coupling": c(
        lambda m, v, g: first(flow.Coupling(D, (5,), generator=g, dtype=v.dtype)), "numbers", True),
    "flow.Coupling.push": c(lambda m, v: pair(step(flow.Coupling, v).push(v)), "numbers"),
    "flow.Coupling.pull": c(lambda m, v: pair(step(flow.Coupling, v).pull(v)), "numbers"),
    "flow.MaskedAutoregressive": c(
        lambda m, v, g: first(flow.MaskedAutoregressive(D, (5,), generator=g, dtype=v.dtype)),
        "numbers", True),
    "flow.MaskedAutoregressive.push": c(lambda m, v: pair(small(v).push(v)), "numbers"),
    "flow.MaskedAutoregressive.pull": c(lambda m, v: pair(small(v).pull(v)), "numbers"),
    "flow.Inverse.push": c(lambda m, v: pair(flow.Inverse(small(v)).push(v)), "numbers"),
    "flow.Inverse.pull": c(lambda m, v: pair(flow.Inverse(small(v)).pull(v)), "numbers"),
    "flow.Residual.push": c(lambda m, v: pair(bent(v).push(v)), "numbers"),
    "flow.Residual.pull": c(lambda m, v: pair(bent(v).pull(v)), "numbers"),
    "clusters.edges": c(lambda m, v: pair(clusters.edges(m)[1:]), "any"),
    "clusters.components": c(lambda m, v: clusters.components(SITES, v > 0, D)),
    "clusters.cluster_chain": c(
        lambda m, v, g: next(clusters.cluster_chain(*square(v), g))[0], "any", True),
    "clusters.swendsen_wang": c(lambda m, v, g: clusters.swendsen_wang(m, v, 2, g), "any", True),
    "clusters.two_colours": c(lambda m, v: clusters.two_colours(SITES, D), "any"),
    "clusters.checkerboard": c(
        lambda m, v, g: clusters.checkerboard(*square(v), 2, g), "any", True),
    "clusters.cluster_moments": c(lambda m, v: pair(clusters.cluster_moments(v.long()))),
    "clusters.binder": c(lambda m, v: value(clusters.binder(long(v).square(), long(v).pow(4))),
                         "numbers"),
    "clusters.coupling_from_the_past": c(
        lambda m, v, g: clusters.coupling_from_the_past(attracted(m), len(v), g), draws=True),
    "diagnostics.autocorrelation": c(lambda m, v: diagnostics.autocorrelation(long(v)), "numbers"),
    "diagnostics.integrated_time": c(lambda m, v: diagnostics.integrated_time(long(v)), "numbers"),
    "diagnostics.effective_sample_size": c(
        lambda m, v: diagnostics.effective_sample_size(long(v)), "numbers"),
    "diagnostics.exact_time": c(lambda m, v: diagnostics.exact_time(*stirred(v), v.sum(0)), "numbers"),
    "diagnostics.chain_estimate": c(lambda m, v: value(diagnostics.chain_estimate(long(v))), "numbers"),
    "diagnostics.r_hat": c(lambda m, v: diagnostics.r_hat(long(v)), "numbers"),
    "diagnostics.gibbs_r_hat": c(
        lambda m, v, g: torch.tensor(diagnostics.gibbs_r_hat(m, v, 32, g)), draws=True),
    "diagnostics.state_numbers": c(lambda m, v: diagnostics.state_numbers(v)),
    "diagnostics.drift": c(lambda m, v: value(diagnostics.drift(v, known(v)))),
    "gibbs.unit_field": c(lambda m, v: gibbs.unit_field(m.free_energy, v, 1)),
    "gibbs.scan_gibbs": c(
        lambda m, v, g: gibbs.scan_gibbs(m.free_energy, v, 2, generator=g), draws=True),
    "gibbs.gibbs": c(lambda m, v, g: gibbs.gibbs(m, v, 2, g), draws=True),
    "gibbs.gibbs_chain": c(
        lambda m, v, g: [*islice(gibbs.gibbs_chain(m, v, g), 2)][-1], draws=True),
    "gibbs.conditionals": c(lambda m, v: pair(gibbs.conditionals(m))),
    "gibbs.transition_matrix": c(lambda m, v: gibbs.transition_matrix(m)),
    "gibbs.spectrum": c(lambda m, v: gibbs.spectrum(m)),
    "gibbs.sweep": c(lambda m, v, g: gibbs.sweep(m, v, 2, g), "any", True),
    "langevin.ula": c(lambda m, v, g: langevin.ula(m.score, v, 0.1, 2, g), "real", True),
    "langevin.first_order_bias": c(lambda m, v: langevin.first_order_bias(m.score, v), "real"),
    "langevin.leimkuhler_matthews": c(
        lambda m, v, g: langevin.leimkuhler_matthews(m.score, v, 0.1, 2, g), "real", True),
    "langevin.mala": c(lambda m, v, g: langevin.mala(minus(m.free_energy), v, 0.1, 2, g), "real", True),
    "langevin.adjusted_chain": c(lambda m, v, g: walked(
        next(langevin.adjusted_chain(minus(m.free_energy), v, 0.1, g))), "real", True),
    "langevin.barker": c(lambda m, v, g: langevin.barker(
        minus(m.free_energy), v, 0.1, 2, g, score=m.score), "real", True),
    "langevin.annealed": c(lambda m, v, g: langevin.annealed(
        lambda x, sigma: m.score(x) / (1 + sigma), v, (2.0, 1.0), 2, 0.1, g), "real", True),
    "tempering.at_temperatures": c(lambda m, v: each_W(tempering.at_temperatures(m, [0.0, 0.5, 1.0]))),
    "tempering.ladder_chain": c(lambda m, v, g: [*islice(
        tempering.ladder_chain(warmer(m), v, g), 2)][-1][0][-1], draws=True),
    "tempering.parallel": c(lambda m, v, g: tempering.parallel(warmer(m), v, 2, g)[-1], draws=True),
    "tempering.swap_chance": c(lambda m, v: tempering.swap_chance(*warmer(m), v, v.flip(0))),
    "tempering.round_trip_rate": c(
        lambda m, v: tempering.round_trip_rate(v.flatten().sigmoid()), "numbers"),
    "tempering.precise_free_energy": c(lambda m, v: tempering.precise_free_energy(m, v)),
    "tempering.log_mass": c(lambda m, v: torch.tensor(tempering.log_mass(m, v))),
    "tempering.check_mass": c(lambda m, v: torch.tensor(tempering.check_mass(m, v, KEPT))),
    "tempering.bennett": c(
        lambda m, v: value(tempering.bennett(warmer(m), torch.stack([v.flip(0), v])))),
    "tempering.integrate": c(
        lambda m, v: value(tempering.integrate(warmer(m), torch.stack([v.flip(0), v])))),
    "tempering.population_chain": c(lambda m, v, g: [*tempering.population_chain(
        warmer(m), 4, 1, g)][-1].states, draws=True),
    "tempering.population_annealing": c(lambda m, v, g: tempering.population_annealing(
        warmer(m), 4, 1, g).states, draws=True),
    "tempering.thinned": c(lambda m, v, g: tempering.thinned(warmer(m), 4, 0.3, 1, g)[1], draws=True),
    "metropolis.net_flow": c(lambda m, v: metropolis.net_flow(*stirred(v)), "numbers"),
    "metropolis.acceptance": c(lambda m, v: metropolis.acceptance(v), "numbers"),
    "metropolis.hastings_matrix": c(
        lambda m, v: metropolis.hastings_matrix(v[0], stirred(v)[0]), "numbers"),
    "metropolis.hastings": c(lambda m, v, g: metropolis.hastings(
        lambda x: -energies(x), lambda x, g: (x + core.normal(x.shape, x, g, -2), 0.0), v, 2, g),
        "numbers", True),
    "metropolis.random_walk": c(
        lambda m, v, g: metropolis.random_walk(lambda x: -energies(x), v, 0.8, 2, g), "numbers", True),
    "metropolis.flip": c(lambda m, v, g: metropolis.flip(m, v, 5, g), draws=True),
    "metropolis.locally_balanced": c(
        lambda m, v, g: metropolis.locally_balanced(m, v, 3, g), draws=True),
    "metropolis.flip_the_state": c(
        lambda m, v, g: torch.cat(metropolis.flip_the_state(m, v, 2, g), -1), draws=True),
    "means.exact_mean": c(lambda m, v: means.exact_mean(m)),
    "means.start_chains": c(lambda m, v, g: means.start_chains(m, len(v), generator=g), draws=True),
    "means.gibbs_mean": c(lambda m, v, g: means.gibbs_mean(m, v, 2, g)[0], draws=True),
    "means.mean_field": c(lambda m, v: means.mean_field(m, 3)),
    "means.tap": c(lambda m, v: means.tap(m, 3)),
    "means.mean": c(lambda m, v, g: means.mean(m.tilt(0 * v.detach()), "gibbs", 3, 2, generator=g),
                    draws=True),
    "means.approximate": c(lambda m, v: pair(means.approximate(m, steps=3)), "any"),
    "score_matching.explicit_loss": c(
        lambda m, v: score_matching.explicit_loss(m.score, v, (-9, 9)), "real"),
    "score_matching.sliced_loss": c(
        lambda m, v, g: score_matching.sliced_loss(m.score, v, 2, g), "real", True),
    "score_matching.probe_variance": c(lambda m, v: score_matching.probe_variance(
        v[:, :, None] * v[:, None].sin(), "sphere"), "numbers"),
    "score_matching.sandwich": c(lambda m, v: score_matching.sandwich(
        lambda t: (v - t).square().sum(-1), v.mean(0), known(v)[:B] * 2**D / B), "numbers"),
    "score_matching.flip_loss": c(lambda m, v: score_matching.flip_loss(m, v, half_exp)),
    "score_matching.pseudo_likelihood": c(lambda m, v: score_matching.pseudo_likelihood(m, v)),
    "score_matching.ratio_matching": c(lambda m, v: score_matching.ratio_matching(m, v)),
    "score_matching.probability_flow_loss": c(
        lambda m, v: score_matching.probability_flow_loss(m, v)),
    "score_matching.score_entropy_loss": c(lambda m, v: score_matching.score_entropy_loss(m, v)),
    "score_matching.concrete_score_loss": c(lambda m, v: score_matching.concrete_score_loss(m, v)),
    "score_matching.noise_contrastive_loss": c(lambda m, v: score_matching.noise_contrastive_loss(
        m, v, torch.stack([1 - v, v.flip(0)]), fair, 1.5)),
    "contrastive.energy_gradient": c(lambda m, v: each(contrastive.energy_gradient(
        lambda x: m.free_energy(x) + m.sharing(b=B0).free_energy(x), {"b": B0}, v, v.flip(0)))),
    "contrastive.weighted_statistics": c(lambda m, v: each(contrastive.weighted_statistics(
        m, v, on(v), torch.full_like(v[:, 0], 1 / B)))),
    "contrastive.exact_gradient": c(lambda m, v: each(contrastive.exact_gradient(m, v))),
    "contrastive.expected_cd_gradient": c(lambda m, v: each(contrastive.expected_cd_gradient(m, v, 2))),
    "contrastive.cd_gradient": c(lambda m, v, g: contrastive.cd_gradient(m, v, 2, generator=g)[1],
                                 draws=True),
    "contrastive.centred": c(lambda m, v: each(contrastive.centred(
        {"W": m.W, "b": m.b, "c": m.c}, v[0], on(v)[1]))),
    "tap.expansion": c(lambda m, v: tap.expansion(m, v, m.hidden_field(v), 3)),
    "tap.log_partition": c(lambda m, v: tap.log_partition(m, 3, strict=False).log_Z),
    "tap.tap_gradient": c(lambda m, v: each(tap.tap_gradient(m, v, order=3)[0])),
    "gradients.two_sided_gradient": c(
        lambda m, v, g: gradients.two_sided_gradient(m, v, {"chains": v}, g)[1]["chains"], draws=True),
    "gradients.fast_gradient": c(lambda m, v, g: gradients.fast_gradient(
        m, v, {"chains": v, "fast.b": m.b.detach()}, g)[1]["chains"], draws=True),
    "gradients.tempered_gradient": c(
        lambda m, v, g: gradients.tempered_gradient(m, v, {"chains": v}, g)[1]["chains"], draws=True),
    "gradients.start_population": c(lambda m, v, g: gradients.start_population(m, len(v), g)["chains"],
                                    draws=True),
    "gradients.population_gradient": c(
        lambda m, v, g: gradients.population_gradient(m, v, {"chains": v}, g)[1]["chains"], draws=True),
    "gradients.population_log_z": c(lambda m, v: value(gradients.population_log_z(
        m, {"chains": v, "log_weights": v[:, 0].double(), "energies": v[:, 0], "family": FAMILY}))),
    "partition.default_base": c(lambda m, v: partition.default_base(m)),
    "partition.ais": c(lambda m, v, g: partition.ais(m, len(v), 5, g).log_weights, draws=True),
    "partition.reverse_ais": c(
        lambda m, v, g: partition.reverse_ais(m, v, 5, g).log_weights, draws=True),
    "partition.log_likelihood": c(lambda m, v: value(partition.log_likelihood(m, v, KEPT))),
    "partition.free_energy_gap": c(
        lambda m, v: torch.tensor(partition.free_energy_gap(m, v, v.flip(1)))),
    "comparison.binary_bound": c(lambda m, v, g: comparison.binary_bound(
        lambda x, t: x, VP, v, "bernoulli", n=2, sets=2, generator=g).each.log_prob, draws=True),
    "comparison.paired_difference": c(
        lambda m, v: value(comparison.paired_difference(v[0], v[1])), "numbers"),
    "gumbel.gumbel_max": c(lambda m, v, g: gumbel.gumbel_max(v, g), "numbers", True),
    "gumbel.concrete": c(lambda m, v, g: gumbel.concrete(v, 0.5, g), "numbers", True),
    "gumbel.expectation_gradient": c(lambda m, v: gumbel.expectation_gradient(squares, v), "numbers"),
    "gumbel.flip_gradient": c(
        lambda m, v, g: gumbel.flip_gradient(squares, v[0] * 0 + 0.3, len(v), g), "numbers", True),
    "gumbel.mean_field_gradient": c(lambda m, v: gumbel.mean_field_gradient(squares, v), "numbers"),
    "gumbel.straight_through_gradient": c(
        lambda m, v, g: gumbel.straight_through_gradient(squares, v[0] * 0 + 0.3, len(v), g),
        "numbers", True),
    "gumbel.concrete_gradient": c(
        lambda m, v, g: gumbel.concrete_gradient(squares, v[0] * 0 + 0.3, 0.5, len(v), g),
        "numbers", True),
    "gumbel.score_function_gradient": c(
        lambda m, v, g: gumbel.score_function_gradient(squares, v[0] * 0 + 0.3, len(v), g),
        "numbers", True),
    "limit.score_matching_loss": c(lambda m, v: limit.score_matching_loss(m, v), "real"),
    "limit.score_matching_gradient": c(lambda m, v: each(limit.score_matching_gradient(m, v)), "real"),
    "limit.langevin_cd_gradient": c(lambda m, v: each(limit.langevin_cd_gradient(m, v, 0.1)), "real"),
    "limit.gaussian_cd_gradient": c(lambda m, v: each(limit.gaussian_cd_gradient(m, v)), "real"),
    "limit.site_cd_gradient": c(lambda m, v: each(limit.site_cd_gradient(m, v))),
    "meanfield.smoothed_logit": c(lambda m, v: meanfield.smoothed_logit(v, 1, 0.5)),
    "meanfield.batch_logits": c(
        lambda m, v, g: meanfield.batch_logits(ROWS.to(v), 4, len(v), generator=g), draws=True),
    "meanfield.batch_moments": c(lambda m, v: pair(meanfield.batch_moments(v.sigmoid(), 4)), "numbers"),
    "meanfield.free_energy": c(lambda m, v: meanfield.free_energy(m, v), "numbers"),
    "meanfield.score": c(lambda m, v: meanfield.score(m, v), "numbers"),
    "meanfield.dsm_loss": c(
        lambda m, v, g: meanfield.dsm_loss(m, ROWS.to(v), VP, len(v), 4, generator=g), draws=True),
    "meanfield.sample_logits": c(
        lambda m, v, g: meanfield.sample_logits(m, VP, v, 3, generator=g), "numbers", True),
    "meanfield.read_out": c(lambda m, v, g: meanfield.read_out(v, g), "numbers", True),
    "meanfield.asked_field": c(lambda m, v: meanfield.asked_field(v), "numbers"),
    "meanfield.coupling_growth": c(lambda m, v: meanfield.coupling_growth(v)[0], "numbers"),
    "meanfield.TimedRBM.weights": c(
        lambda m, v: meanfield.TimedRBM(m, VP).to(v.dtype).weights(0.3), "numbers"),
    "meanfield.TimedRBM.forward": c(lambda m, v: meanfield.TimedRBM(m, VP)(v, 0.3), "numbers"),
    "meanfield.TimedRBM.at": c(lambda m, v: meanfield.TimedRBM(m, VP).at(0.3).W, "numbers"),
    "meanfield.with_prior": c(
        lambda m, v: asked(meanfield.with_prior(lambda a, t: a, VP), v), "numbers"),
    "memory.log_weights": c(lambda m, v: memory.log_weights(v, ROWS.to(v), 0.6, 0.8), "numbers"),
    "memory.denoise": c(lambda m, v: memory.denoise(v, ROWS.to(v), 0.6, 0.8), "numbers"),
    "memory.attention_prior": c(lambda m, v: memory.attention_prior(v, 0.6, 0.8), "numbers"),
    "memory.memory_predictor": c(
        lambda m, v: asked(memory.memory_predictor(ROWS.to(v), VP), v), "numbers"),
    "memory.retrieve": c(lambda m, v: memory.retrieve(v, ROWS.to(v), 1.0, 4.0, 3), "numbers"),
    "memory.own_log_weight": c(lambda m, v, g: memory.own_log_weight(
        ROWS.to(v), torch.zeros(len(v), dtype=torch.long), 0.6, 0.8, g), "numbers", True),
    "memory.gaussian_information": c(
        lambda m, v: memory.gaussian_information(v.exp(), 0.5), "numbers"),
    "memory.collapse_snr": c(lambda m, v: memory.collapse_snr(v.exp(), 50), "numbers"),
    "flow.DDIMFlow.forward": c(lambda m, v: pair(carried(v).forward(v)), "numbers"),
    "flow.DDIMFlow.inverse": c(lambda m, v: pair(carried(v).inverse(v)), "numbers"),
    "flow.DDIMFlow.prior_log_prob": c(lambda m, v: carried(v).prior_log_prob(v), "numbers"),
    "flow.DDIMFlow.log_prob": c(lambda m, v: carried(v).log_prob(v), "numbers"),
    "flow.denoiser_jacobian": c(lambda m, v: ddim_flow.denoiser_jacobian(
        memory.memory_predictor(ROWS.to(v), VP), VP, v, 0.5), "numbers"),
    "flow.symmetry": c(
        lambda m, v: pair(ddim_flow.symmetry(v[:, None] * v.cos()[..., None])), "numbers"),
    "flow.lattice_predictor": c(lambda m, v: asked(
        ddim_flow.lattice_predictor(*noised(v)[:3], VP), noised(v)[3]), "numbers"),
    "flow.lattice_log_prob": c(lambda m, v: ddim_flow.lattice_log_prob(*noised(v), 0.6, 0.8), "numbers"),
    "flow.thinned_posterior": c(lambda m, v: ddim_flow.thinned_posterior(counting(m), v, 0.3).c),
    "flow.thinned_log_prob": c(lambda m, v: ddim_flow.thinned_log_prob(counting(m), v, 0.3)),
    "discrete.flip_chance": c(lambda m, v: discrete.flip_chance(v.exp()), "numbers"),
    "discrete.log_prob": c(lambda m, v: discrete.log_prob(m, v, 0.4)),
    "discrete.denoise": c(
        lambda m, v, g: discrete.denoise(m, v, 0.4, "gibbs", 3, 2, generator=g), draws=True),
    "discrete.ratios": c(
        lambda m, v, g: discrete.ratios(m, v, 0.4, "gibbs", 3, 2, generator=g), draws=True),
    "discrete.mean_ratios": c(lambda m, v: discrete.mean_ratios(m.visible_mean(on(v)), v, 0.4)),
    "discrete.score_entropy": c(
        lambda m, v: discrete.score_entropy(m.visible_mean(on(v)), v, v.flip(0), 0.4)),
    "discrete.consistent_entropy": c(
        lambda m, v: discrete.consistent_entropy(m.visible_mean(on(v)), 0.4)),
    "discrete.path_loss": c(lambda m, v, g: discrete.path_loss(
        lambda x, t: discrete.denoise(m, x, t), v, 2, generator=g), draws=True),
    "discrete.leap_chance": c(lambda m, v: discrete.leap_chance(m.visible_mean(on(v)), v, 0.4, 0.1)),
    "discrete.sample": c(lambda m, v, g: discrete.sample(
        lambda x, t: discrete.denoise(m, x, t), v, LATE.to(v), "thinning", generator=g), draws=True),
    "masked.completed_mean": c(lambda m, v: masks_.completed_mean(m, v, HIDE)),
    "masked.order_log_prob": c(lambda m, v: masks_.order_log_prob(completer(m), v, [2, 0, 3, 1])),
    "masked.completion_loss": c(
        lambda m, v, g: masks_.completion_loss(completer(m), v, generator=g), draws=True),
    "masked.fill": c(lambda m, v, g: masks_.fill(completer(m), v, hidden(v), 2, generator=g),
                     draws=True),
    "masked.chain_bound": c(lambda m, v, g: masks_.chain_bound(warmer(m), v, 0.2, g), draws=True),
    "masked.chain_sample": c(
        lambda m, v, g: masks_.chain_sample(warmer(m), v, 0.2, 2, g), draws=True),
    "recovery.denoising_loss": c(
        lambda m, v, g: recovery.denoising_loss(m, v, 0.6, 0.8, generator=g), draws=True),
    "recovery.path_loss": c(lambda m, v, g: recovery.path_loss(m, v, g), draws=True),
    "recovery.recovery_loss": c(lambda m, v, g: recovery.recovery_loss(m, v, 0.6, 0.8, g), draws=True),
    "recovery.flip": c(lambda m, v, g: recovery.flip(v, 0.3, generator=g), draws=True),
    "recovery.flip_recovery_loss": c(
        lambda m, v, g: recovery.flip_recovery_loss(m, v, 0.3, g), draws=True),
    "recovery.recovery_gradient": c(lambda m, v, g: each(recovery.recovery_gradient(
        m, v, tilted.flip_posterior(m, v.detach(), 0.2), 2, g)), draws=True),
    "recovery.readout_loss": c(lambda m, v, g: recovery.readout_loss(m, v, 0.6, 0.8, g), draws=True),
    "completion.log_marginal": c(lambda m, v: completion.log_marginal(m, v, HELD)),
    "completion.complete": c(lambda m, v, g: completion.complete(m, v, HELD, generator=g), draws=True),
    "completion.denoise": c(lambda m, v, g: completion.denoise(
        m, v, HELD, v - 0.3, 0.6, 0.8, "gibbs", 3, 2, generator=g), draws=True),
    "completion.predictor": c(lambda m, v, g: asked(completion.predictor(
        m, ROWS[1].to(v), HELD, VP, "gibbs", steps=3, generator=g), v), "numbers", True),
    "completion.log_likelihood": c(
        lambda m, v: completion.log_likelihood(m, ROWS[1].to(v), HELD, v, 0.6, 0.8), "numbers"),
    "completion.product_log_likelihood": c(
        lambda m, v: completion.product_log_likelihood(m, ROWS[1].to(v), HELD, v, 0.6, 0.8), "numbers"),
    "score.taylor_log_ratios": c(lambda m, v: score.taylor_log_ratios(m, v)),
    "score.channel_kernel": c(lambda m, v: score.channel_kernel(*chances(v)), "numbers"),
    "score.channel_information": c(lambda m, v: score.channel_information(*chances(v)), "numbers"),
    "score.as_mixture": c(lambda m, v: score.as_mixture(m).means, "real"),
    "tilted.posterior": c(lambda m, v: tilted.posterior(m, v, 0.6, 0.8).b, "numbers"),
    "tilted.log_prob": c(lambda m, v: tilted.log_prob(m, v, 0.6, 0.8), "numbers"),
    "tilted.denoise": c(
        lambda m, v, g: tilted.denoise(m, v, 0.6, 0.8, "gibbs", 3, 2, generator=g), "numbers", True),
    "tilted.score": c(
        lambda m, v, g: tilted.score(m, v, 0.6, 0.8, "gibbs", steps=3, generator=g), "numbers", True),
    "tilted.flip_posterior": c(lambda m, v: tilted.flip_posterior(m, v, 0.2).b),
    "tilted.hidden_couplings": c(lambda m, v: pair(tilted.hidden_couplings(m, 0.6, 0.8)), "real"),
    "tilted.noised_energy": c(
        lambda m, v: tilted.noised_energy(m, v, on(v).sign(), 0.6, 0.8), "real"),
    "tilted.machine_predictor": c(lambda m, v, g: asked(tilted.machine_predictor(
        m, VP, "gibbs", steps=3, generator=g), v), "numbers", True),
    "tilted.path_log_z": c(
        lambda m, v, g: value(tilted.path_log_z(m, v, 4, steps=2, burn_in=1, generator=g)), draws=True),
    "tilted.WarmGibbs": c(
        lambda m, v, g: asked(tilted.WarmGibbs(m, VP, steps=2, generator=g), v), "numbers", True),
}
LATE = torch.tensor([3.0, 0.5])
HIDE = torch.tensor([[True, False, True, False], [False, True, True, False], [True, True, True, True]])
B0 = torch.zeros(D, dtype=torch.float64, requires_grad=True)
ROWS = torch.tensor([[0., 1, 0, 1], [1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.float64)
NO_CALL = {
    "rbm.RBM.pull": "says whether log Z exists", "rbm.largest_pull": "a search behind `pull`",
    "rbm.RBM.check_parameters": "a check", "rbm.RBM.check_normalisable": "a check",
    "rbm.RBM.extra_repr": "text", "rbm.check_kind": "a check", "rbm.check_machine": "a check",
    "gibbs.check_start": "a check", "diagnostics.check_kernel": "a check",
    "boltzmann.Boltzmann": "a container", "boltzmann.Boltzmann.extra_repr": "text",
    "boltzmann.check_boltzmann": "a check", "boltzmann.Boltzmann.check_states": "a check",
    "energy.grid": "takes numbers alone",
    "metropolis.normal_walk": "takes numbers alone", "ising.neighbours": "takes numbers alone",
    "ising.check_lattice": "a check",
    "autoregressive.Autoregressive": "what NADE and MADE share",
    "autoregressive.Autoregressive.fields": "a subclass gives them",
    "autoregressive.masks": "takes numbers alone",
    "ising.lattice": "takes numbers alone", "ising.halves": "takes numbers alone",
    "hopfield.error_rate": "takes numbers alone",
    "langevin.check_levels": "a check", "langevin.geometric_levels": "takes numbers alone",
    "langevin.level_variance": "takes numbers alone",
    "flow.Step": "a container", "flow.Step.push": "of a subclass", "flow.Step.pull": "of a subclass",
    "flow.Planar.check_parameters": "a check",
    "flow.Radial.check_parameters": "a check", "flow.Residual.save": "an error",
    "flow.Flow.check_parameters": "a check", "flow.Inverse.check_parameters": "a check",
    "flow.Flow": "a container", "flow.Inverse": "a container", "flow.Residual": "a container",
    "deep.DBN.grown": "a network with numbers of its own", "deep.DBM.precise": "a machine in float64",
    "deep.DBM.check_states": "a check",
    "ising.as_rbm": "a machine of couplings", "means.check_listable": "a check",
    "means.check_spread": "a check", "tap.Extremum": "a result",
    "tilted.check_levels": "a check", "masked.check_mask": "a check", "tilted.as_chances": "a check",
    "discrete.FlipDenoiser": "a network", "discrete.FlipDenoiser.forward": "a network",
    "discrete.check_means": "a check", "discrete.check_fields": "a check",
    "discrete.check_rows": "a check",
    "masked.MaskDenoiser": "a network", "masked.MaskDenoiser.forward": "a network",
    "flow.DDIMFlow": "takes a network",
    "memory.as_rbm": "a machine of patterns", "memory.flip_beta": "takes numbers alone",
    "partition.temperatures": "takes numbers alone",
    "tempering.even_ladder": "takes a function", "tempering.round_trips": "takes walkers",
    "partition.bracket": "takes estimates alone", "comparison.BinaryBound": "a result",
    "comparison.BinaryDenoiser": "a network", "comparison.BinaryDenoiser.denoise": "a network",
    "comparison.BinaryDenoiser.forward": "a network", "meanfield.TimedRBM": "a network",
}


def public(*rooms: str, special: tuple[str, ...] = ()) -> dict[str, Callable]:
    """Public functions of the rooms, and methods of their classes with some `special` ones, by module
    and name."""
    found = {}
    for room in rooms or ROOMS:
        home = importlib.import_module(f"rbmdiff.{room}")
        for part in pkgutil.iter_modules(home.__path__):
            module = importlib.import_module(f"rbmdiff.{room}.{part.name}")
            for name in module.__all__:
                thing = getattr(module, name)
                if getattr(thing, "__module__", None) != module.__name__ or not callable(thing): continue
                found[f"{part.name}.{name}"] = thing
                if not inspect.isclass(thing): continue
                found |= {f"{part.name}.{name}.{method}": f for method, f in vars(thing).items()
                          if inspect.isfunction(f) and (method[0] != "_" or method in special)}
    return found


def parameters(function: Callable) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function by name, none where they cannot be known."""
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}
