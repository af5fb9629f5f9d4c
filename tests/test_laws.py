"""Laws that every public function of the machines' rooms keeps: streams, gradients, mixed precision,
transforms, bad machines, and whatever belongs to the caller.
"""
import inspect
import math
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from machines import BAD_STREAMS, machine
from rbmdiff.bridge import gumbel, recovery, tilted
from rbmdiff.foundations import core, train
from rbmdiff.learning import contrastive, partition
from rbmdiff.sampling import diagnostics, gibbs
from rooms import CALLS, NO_CALL, B, public, subject

f32, f64 = torch.float32, torch.float64
DRAWS = [name for name, call in CALLS.items() if call.draws]
ONE_STREAM = ("rbm.RBM", "deep.DBN", "deep.DBM", "flow.Planar", "flow.Radial",     # weights are no batch
              "flow.Coupling", "flow.MaskedAutoregressive", "autoregressive.NADE",
              "autoregressive.MADE", "autoregressive.MaskedMLP", "autoregressive.MaskedLayers",
              "tempering.population_chain", "tempering.population_annealing",      # one crowd
              "tempering.thinned", "gradients.start_population", "gradients.population_gradient")


def test_every_public_function_is_called():
    found = public()
    assert found.keys() == CALLS.keys() | NO_CALL.keys()
    takes = {name for name, f in found.items() if "generator" in inspect.signature(f).parameters}
    by_options = {"tilted.score", "tilted.machine_predictor", "completion.predictor"}
    assert takes <= {*DRAWS} and {*DRAWS} - takes == by_options


# --- streams

@pytest.mark.parametrize("kind", BAD_STREAMS)
@pytest.mark.parametrize("name", DRAWS)
def test_bad_streams_are_refused(name, kind):
    call = CALLS[name]
    with pytest.raises((TypeError, ValueError), match="generator must"):
        call(*subject(call.of), BAD_STREAMS[kind])


@pytest.mark.parametrize("name", DRAWS)
def test_a_stream_twice_is_refused(name):
    call = CALLS[name]
    g = torch.Generator()
    with pytest.raises(ValueError, match="generator must hold different"):
        call(*subject(call.of), [g, 1, g])


@pytest.mark.parametrize("name", DRAWS)
def test_seeds_and_generators_mean_the_same(name):
    call = CALLS[name]
    m, v = subject(call.of)
    y = call(m, v, 7)
    assert torch.equal(y, call(m, v, torch.Generator().manual_seed(7)))
    assert torch.equal(y, call(m, v, np.int64(7))) and not torch.equal(y, call(m, v, 8))
    torch.manual_seed(7)
    assert torch.equal(call(m, v), y)                    # None: PyTorch's own stream


@pytest.mark.parametrize("name", [name for name in DRAWS if name not in ONE_STREAM])
def test_each_sample_has_its_own_stream(name):
    """Pairs of rows, since some functions take no single one."""
    call = CALLS[name]
    m, v = subject(call.of)
    if name == "diagnostics.gibbs_r_hat":                # six chains from three states
        call(m, v, range(6))
        return
    own = call(m, v, [4, 5, 6])
    assert torch.equal(own, call(m, v, (4, 5, 6))) and torch.equal(own, call(m, v, range(4, 7)))
    if name == "recovery.recovery_gradient": return      # a mean over rows
    pairs = [call(m, v[first:first + 2], [4 + first, 5 + first]) for first in range(B - 1)]
    if name == "tilted.path_log_z":                      # the mean of what every row says
        outer = call(m, v[[0, 2]], [4, 6])
        torch.testing.assert_close(sum([*pairs, outer]) / 3, own)
        return
    axis = next(i for i, n in enumerate(own.shape) if n == B)
    for first, both in enumerate(pairs):
        torch.testing.assert_close(both, own.narrow(axis, first, 2))


# --- gradients

NETWORKS = ("meanfield.TimedRBM.weights", "meanfield.TimedRBM.forward",  # copy the numbers of a machine
            "meanfield.TimedRBM.at")


CUTS = [name for name in CALLS if name.startswith("gumbel.") and name.endswith("_gradient")]


def lost(run) -> bool:
    """Whether `run()` refuses to lose a gradient."""
    try:
        run()
    except ValueError as error:
        if "wants a gradient, which would be lost" in str(error): return True
        raise
    return False


@pytest.mark.parametrize("name", CALLS)
def test_gradients_in_states_are_right_or_refused(name):
    call = CALLS[name]
    m, v = subject(call.of)
    y = call(m, v, 5)
    if not y.is_floating_point() or torch.equal(y, call(m, v.flip(0), 5)): return
    z = v.clone().requires_grad_()
    objective = lambda x: call(m, x, 5).double().sum()
    if lost(lambda: objective(z)) or name in CUTS: assert lost(lambda: torch.func.grad(objective)(v))
    else:
        wanted = torch.autograd.grad(objective(z), z)[0]
        torch.testing.assert_close(torch.func.grad(objective)(v), wanted)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_in_parameters_are_right_or_refused(name):
    """Parameters that require a gradient may be cut; those of torch.func are refused then."""
    call = CALLS[name]
    m, v = subject(call.of)
    key = "J" if call.of == "any" else "W"
    first = getattr(m, key)
    if torch.equal(call(m, v, 5), call(m.sharing(**{key: 0.9 * first}), v, 5)): return
    objective = lambda x: call(m.sharing(**{key: x}), v, 5).double().sum()
    x = first.clone().requires_grad_()
    y = objective(x)
    if not y.requires_grad or name in NETWORKS:
        assert lost(lambda: torch.func.grad(objective)(first))
    else:
        wanted = torch.autograd.grad(y, x)[0]
        torch.testing.assert_close(torch.func.grad(objective)(first), wanted)


# --- mixed precision

@pytest.mark.parametrize("name", [name for name in CALLS if name not in NETWORKS])
def test_autocast_changes_nothing(name):
    call = CALLS[name]
    m, v = subject(call.of, f32)
    wanted = call(m, v, 5)
    with torch.autocast("cpu", torch.bfloat16): found = call(m, v, 5)
    assert found.dtype == wanted.dtype and torch.equal(found, wanted)


# --- what belongs to the caller

def shares(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors use the same memory."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


VIEWS = {"rbm.RBM.precise": "the same machine in float64"}


@pytest.mark.parametrize("name", CALLS)
def test_what_the_caller_owns_is_his(name):
    call = CALLS[name]
    m, v = subject(call.of)
    m.requires_grad_()
    owned = [v, *m.parameters(), *m.buffers()]
    before = [(x.clone(), x._version, x.requires_grad, x.grad) for x in owned]
    torch.manual_seed(0)
    own, dtype = torch.get_rng_state(), torch.get_default_dtype()
    y = call(m, v, 5)
    for x, (copy, version, asked, grad) in zip(owned, before):
        assert torch.equal(x, copy) and x._version == version
        assert x.requires_grad == asked and x.grad is grad
        assert name in VIEWS or not shares(x, y)
    assert m.training and torch.get_default_dtype() == dtype
    assert torch.equal(torch.get_rng_state(), own)       # a given stream leaves the global one alone


# --- transforms

NOT_MAPPED = {
    **dict.fromkeys(("diagnostics.chain_estimate", "diagnostics.drift", "tempering.log_mass",
                     "tempering.check_mass", "tempering.bennett", "tempering.integrate",
                     "gradients.population_log_z",
                     "partition.log_likelihood", "partition.free_energy_gap",
                     "comparison.paired_difference", "clusters.binder"), "gives numbers of Python"),
    **dict.fromkeys(("boltzmann.Boltzmann.edge_rbm", "boltzmann.Boltzmann.gaussian_rbm",
                     "meanfield.TimedRBM.at", "meanfield.TimedRBM.weights",
                     "meanfield.TimedRBM.forward"), "makes a module"),
    "limit.langevin_cd_gradient": "as many nodes as the step asks for",
    **dict.fromkeys(("flow.DDIMFlow.forward", "flow.DDIMFlow.inverse", "flow.DDIMFlow.log_prob",
                     "flow.denoiser_jacobian"), "asks autograd for a gradient of its own"),
    "ising.kac_ward": "looks at the phase of a determinant",
    "hopfield.rest_states": "as many as there are", "hopfield.as_rbm": "makes a module",
    "clusters.components": "as much work as there are closed bonds",
    "contrastive.energy_gradient": "asks autograd for a gradient of its own",
}


@pytest.mark.parametrize("name", [name for name in CALLS if name not in {*DRAWS, *NOT_MAPPED}])
def test_vmap_gives_what_a_loop_gives(name):
    call = CALLS[name]
    m, v = subject(call.of)
    stack = torch.stack([v, v.flip(0), v.flip(1)])
    wanted = torch.stack([call(m, x) for x in stack])
    torch.testing.assert_close(torch.func.vmap(lambda x: call(m, x))(stack), wanted)


NO_GRAPH = {
    **NOT_MAPPED,
    **dict.fromkeys(("rbm.RBM.clamp", "boltzmann.Boltzmann.clamp", "boltzmann.Boltzmann.log_marginal",
                     "score.as_mixture", "limit.gaussian_cd_gradient"), "shapes depend on numbers"),
}
ROOMS_COMPILED = "rbm", "boltzmann", "energy", "means", "score", "tilted"     # a second a function
COMPILED = [name for name, call in CALLS.items() if not call.draws and name not in NO_GRAPH
            and name.partition(".")[0] in ROOMS_COMPILED]


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_in_one_graph(name):
    call = CALLS[name]
    m, v = subject(call.of)
    torch.compiler.reset()
    run = torch.compile(lambda x: call(m, x), fullgraph=True, backend="eager")
    torch.testing.assert_close(run(v), call(m, v))


class Asked(torch.nn.Module):
    """A method of a machine as a module, for torch.export."""

    def __init__(self, rbm, method):
        super().__init__()
        self.rbm = rbm
        self.method = method

    def forward(self, v):
        return getattr(self.rbm, self.method)(v)


@pytest.mark.parametrize("method", ["free_energy", "log_prob", "score", "hidden_mean"])
@pytest.mark.parametrize("visible", ["bernoulli", "spin", "gaussian", "potts(2)", "binomial(3)"])
def test_methods_of_machines_are_exported(visible, method):
    rbm = machine(4, 3, visible)
    v = rbm.sample(5, generator=0)
    program = torch.export.export(Asked(rbm, method), (v,))
    torch.testing.assert_close(program.module()(v), getattr(rbm, method)(v))


# --- machines that are none

NOT_ASKED = {
    **dict.fromkeys(("rbm.RBM", "rbm.RBM.precise", "rbm.RBM.sharing", "rbm.RBM.relabelled",
                     "rbm.RBM.tilt", "rbm.RBM.at", "rbm.RBM.clamp", "deep.transposed",
                     "deep.doubled", "deep.DBM.as_rbm", "deep.DBM.joined", "deep.DBM.clamped"),
                    "makes a machine"),
    **dict.fromkeys(("rbm.RBM.hidden_field", "rbm.RBM.visible_field",
                     "contrastive.weighted_statistics"), "unchecked, and says so"),
    "contrastive.cd_gradient": "a step of training: `train` names the parameter",
    "contrastive.centred": "knows no machine",
}


@pytest.mark.parametrize("name", [name for name, call in CALLS.items()
                                  if call.of in ("bits", "real") and name not in NOT_ASKED])
def test_a_parameter_that_is_no_number_is_named(name):
    call = CALLS[name]
    m, v = subject(call.of)
    y = call(m, v, 5)
    with torch.no_grad(): m.W[0, 0] += 1
    if torch.equal(y, call(m, v, 5)): return             # does not look at W
    with torch.no_grad(): m.W[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"rbm must have finite parameters, .* \['W'\]"): call(m, v, 5)


# --- what is left out by mistake

def place(name, f):
    """The module or the class in which a public function stands."""
    module = sys.modules[f.__module__]
    return getattr(module, name.split(".")[1]) if name.count(".") == 2 else module


class Stop(Exception):
    """The function has been asked."""


def without(f, argument):
    """`f` with None for one tensor; Stop after it, so that the callers of `f` do not go on."""
    def asked(*args, **kwargs):
        given = inspect.signature(f).bind(*args, **kwargs)
        if not isinstance(given.arguments.get(argument), Tensor): raise Stop
        given.arguments[argument] = None
        with pytest.raises((TypeError, ValueError), match=rf"\b{argument}\b"):
            y = f(*given.args, **given.kwargs)
            if inspect.isgenerator(y): next(y)
        raise Stop
    return asked


INNER = {
    "rbm.RBM.hidden_field": "one product, in every step of every chain",
    "rbm.RBM.visible_field": "one product, in every step of every chain",
    "contrastive.weighted_statistics": "says that it is unchecked",
    "autoregressive.NADE.fields": "`log_prob` and `sample` check",
    "autoregressive.MADE.fields": "`log_prob` and `sample` check",
    "autoregressive.MaskedLayers.forward": "whoever holds the layers checks",
} | {f"flow.{step}.{way}": "`Flow.forward` and `Flow.inverse` check" for way in ("push", "pull")
     for step in ("Step", "Planar", "Radial", "Coupling", "MaskedAutoregressive", "Inverse", "Residual",
                  "Flow")}
"""Steps inside of others that look at the states, with the reason."""
FUNCTIONS = {name: f for name, f in public().items()
             if name in CALLS.keys() - INNER and not inspect.isclass(f)}
NEEDED = [(name, argument) for name, f in FUNCTIONS.items()
          for argument, p in inspect.signature(f).parameters.items()
          if p.annotation in (Tensor, "Tensor")]


@pytest.mark.parametrize("name, argument", NEEDED)
def test_a_tensor_left_out_is_named(name, argument, monkeypatch):
    f = FUNCTIONS[name]
    monkeypatch.setattr(place(name, f), f.__name__, without(f, argument))
    with pytest.raises(Stop): CALLS[name](*subject(CALLS[name].of), 5)


# --- habits: each wrong argument is named

RBM64 = machine(6, 4)
V64 = RBM64.sample(5, generator=0)
WRONG = {
    "no path":
        (lambda: type(RBM64).load(None), TypeError, "^path must be the name of a file, got NoneType"),
    "a number as a path":
        (lambda: RBM64.save(3), TypeError, "^path must be the name of a file, got int"),
    "a folder":
        (lambda: type(RBM64).load("/"), FileNotFoundError, "^path: no such file: /, a folder: "),
    "no folder":
        (lambda: RBM64.save("/no/such/m"), FileNotFoundError, "^path: no such folder: /no/such$"),
    "draws in a list": (lambda: core.Estimate.of([1, 2]), ValueError, "^draws must have .* got list"),
    "text as alpha":
        (lambda: tilted.denoise(RBM64, V64, "a", 0.5), TypeError, "^alpha must be a number"),
    "text as sigma": (lambda: recovery.recovery_loss(RBM64, V64, 0.5, "a"), TypeError, "^sigma must be"),
    "a switch as alpha": (lambda: tilted.score(RBM64, V64, True, 0.5), TypeError, "^alpha must be"),
    "a number as energy": (lambda: gibbs.scan_gibbs(3, V64), TypeError, "^energy must be a function"),
    "a number as f": (lambda: gumbel.mean_field_gradient(3, V64), TypeError, "^f must be a function"),
    "a number as weight":
        (lambda: recovery.path_loss(RBM64, V64, weight=3), TypeError, "^weight must be"),
    "chains in a list":
        (lambda: diagnostics.effective_sample_size([1, 2]), TypeError, "^x must be a torch"),
    "no gradients": (lambda: contrastive.centred({}, V64[0], V64[0]), TypeError, "^gradients must be"),
    "a list of parameters": (lambda: contrastive.energy_gradient(RBM64.free_energy, [RBM64.W], V64, V64),
                             TypeError, "^parameters must be tensors by name"),
    "numbers as bounds":
        (lambda: partition.bracket(1.0, 2.0), TypeError, "^forward must be an Estimate"),
    "no model":
        (lambda: partition.free_energy_gap(3, V64, V64), TypeError, "^model must have a free_energy"),
    "an optimiser's class":
        (lambda: train.linear_decay(torch.optim.SGD, 3), TypeError, "^optimizer must be"),
    "a list of gradients": (lambda: train.ascend(RBM64, [1]), TypeError, "^gradients must be tensors"),
    "a rate in words": (lambda: train.sgd(RBM64, "0.1"), TypeError, "^lr must be a number, got str"),
    "colours as spins":
        (lambda: RBM64.relabelled("potts(2)"), ValueError, "^visible must be a kind of two"),
}


@pytest.mark.parametrize("call, kind, message", WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(call, kind, message):
    with pytest.raises(kind, match=message): call()


@pytest.mark.parametrize("count", [np.int64(2), np.uint8(2), torch.tensor(2)], ids=repr)
def test_whole_numbers_of_others_are_counts(count):
    assert gibbs.gibbs(RBM64, V64, count, 0).equal(gibbs.gibbs(RBM64, V64, 2, 0))
    assert contrastive.cd_gradient(RBM64, V64, k=count, generator=np.int64(0))[1].shape == V64.shape
    assert type(RBM64)(6, count).W.shape == (6, 2)
