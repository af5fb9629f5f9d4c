"""One door for networks and one for streams: every public function of diffusion that takes one gets the
same bad answers and bad streams, and none may pass; what is good passes everywhere with one result.
"""
from collections import namedtuple
from dataclasses import dataclass
from functools import partial
import inspect
import math
from types import SimpleNamespace

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
import torch
from torch import nn

from machines import BAD_STREAMS
from rbmdiff.diffusion import (
    conditional,
    ddpm,
    deis,
    elbo,
    likelihood,
    matrix,
    ncsn,
    networks,
    objective,
    schedule,
    sde,
    solvers,
    weights,
)
from rbmdiff.diffusion.oracle import gaussian
from rbmdiff.diffusion.schedule import (
    Cosine,
    Geometric,
    LinearBeta,
    LinearLogSNR,
    SubVP,
    diffuse,
    time_grid,
)
from rooms import parameters, public

B, D = 3, 2
VP = LinearBeta()
GRID = time_grid(VP, 5)
CHAIN = ddpm.linear_chain(4, 0.1, 0.5)
LINEAR = sde.scalar_sde(VP, D)
STAIRS = [2.0, 1.0, 0.5]
EYE = torch.eye(D, dtype=torch.float64)
TIMES = torch.tensor([0.0, 0.1, 0.2])
LEVELS = torch.tensor([[0, 3], [2, 1], [3, 3]], dtype=torch.uint8)
X = torch.linspace(-1, 1, B * D).reshape(B, D)
SEEN = torch.tensor([True, False])


def solver(run, **options):
    """Calls of a solver by network, and by stream if it draws."""
    def ask(network, x=X, generator=None):
        drawn = {"generator": generator} if draws else {}
        return run(network, VP, x, GRID, **drawn, **options)
    draws = "generator" in inspect.signature(run).parameters
    return ask


def look(x):
    """An observation of the first number, in the dtype of `x`."""
    return conditional.Measurement(EYE[:1].to(x), EYE[0, :1].to(x), 0.5)


# name: call(network, x, generator) -> [B, ...]; x and generator have defaults
ASKS = {
    **{run.__name__: solver(run) for run in (
        solvers.heun, solvers.runge_kutta, deis.deis, deis.rho_rk)},
    **{run.__name__: solver(run, eta=0.5) for run in (
        solvers.euler_maruyama, solvers.reverse_diffusion, solvers.ancestral, solvers.ddim,
        solvers.predictor_corrector)},
    "corrector": lambda f, x=X, g=None: solvers.corrector(f, VP, x, 0.5, 2, generator=g),
    "matrix_deis": lambda f, x=X, g=None: matrix.matrix_deis(f, LINEAR, x, GRID),
    "velocity": lambda f, x=X, g=None: likelihood.velocity(f, VP, x, 0.5),
    "transport": lambda f, x=X, g=None: likelihood.transport(f, VP, x, 1.0, 0.1, 3),
    "log_likelihood": lambda f, x=X, g=None: likelihood.log_likelihood(
        f, VP, x, nodes=2, trace="rademacher", generator=g).log_prob.to(x),
    "bits_per_dimension": lambda f, x=X, g=None: torch.tensor(likelihood.bits_per_dimension(
        f, VP, LEVELS, 4, nodes=2, generator=g).value, dtype=x.dtype),
    "elbo": lambda f, x=X, g=None: elbo.elbo(f, VP, x, n=2, sets=2, generator=g).log_prob.to(x),
    "variational_bound": lambda f, x=X, g=None: ddpm.variational_bound(f, CHAIN, x, g).log_prob,
    "sample_chain": lambda f, x=X, g=None: ddpm.sample_chain(f, CHAIN, x, generator=g),
    "denoising_loss": lambda f, x=X, g=None: objective.denoising_loss(f, VP, x, 0.5, generator=g),
    "simple_loss": lambda f, x=X, g=None: ddpm.simple_loss(f, CHAIN, x, g),
    "weighted_loss": lambda f, x=X, g=None: weights.weighted_loss(f, VP, x, generator=g),
    "ladder_loss": lambda f, x=X, g=None: ncsn.ladder_loss(f, x, STAIRS, g),
    "sample": lambda f, x=X, g=None: ncsn.sample(f, x, STAIRS, 2, g),
    "Preconditioned": lambda f, x=X, g=None: networks.Preconditioned(f, VP)(x, 0.5),
    "ScoreNetwork": lambda f, x=X, g=None: ncsn.ScoreNetwork(f)(x, 0.5),
    "eps_of_score": lambda f, x=X, g=None: ncsn.eps_of_score(f, VP)(x, 0.5),
    "score_of_eps": lambda f, x=X, g=None: ncsn.score_of_eps(f, VP)(x, 0.5),
    "guided": lambda f, x=X, g=None: conditional.guided(f, VP, look(x), "tmpd")(x, 0.5),
    "dps": lambda f, x=X, g=None: conditional.dps(f, VP, x, GRID, look(x), generator=g),
    "repaint": lambda f, x=X, g=None: conditional.repaint(f, VP, x, GRID, 0 * x, SEEN, 2, g),
    "twisted_smc": lambda f, x=X, g=None: conditional.twisted_smc(
        f, VP, x, GRID[2:], look(x), generator=g, threshold=0).states,
    "classifier_guided": lambda f, x=X, g=None: conditional.classifier_guided(
        f, VP, lambda x, t: x, 1)(x, 0.5),
    "classifier_free": lambda f, x=X, g=None: conditional.classifier_free(f, f, 0.5)(x, 0.5),
}
WRAPPERS = "Preconditioned", "ScoreNetwork", "eps_of_score", "score_of_eps"    # asked by who has them
LEARN = "denoising_loss", "simple_loss", "weighted_loss", "ladder_loss", *WRAPPERS   # keep the mode
NO_ASKING = {
    "irreducible_loss": "takes the numbers of a score", "path_kl": "takes fields of an equation",
    "reverse_sde": "takes a field of an equation",
    "modules_in": "looks at a network and asks it nothing", "prepare": "returns the door",
    "integrate": "takes the door", "CheckedNetwork": "the door", "as_eps": "what it returns is asked",
    "AsEps": "is asked when called", "Labelled": "asks when called, and is asked through the door",
    "native": "says whom to ask"}
DRAWS = {name: lambda g, x=X, ask=ask: ask(lambda x, t: x * t.reshape(-1, *[1] * (t.ndim and 1)), x, g)
         for name, ask in ASKS.items() if name != "twisted_smc"} | {
    "noised": lambda g, x=X: schedule.noised(x, 0.6, 0.8, g)[0],
    "diffuse": lambda g, x=X: diffuse(VP, x, 0.5, g)[0],
    "jump": lambda g, x=X: ddpm.jump(CHAIN, x, 2, g)[0],
    "simulate": lambda g, x=X: sde.simulate(lambda x, t: -x, lambda t: EYE, x, TIMES, g)[-1],
    "dequantize": lambda g, x=X: likelihood.dequantize(0 * x, 4, g),
    "uniform_times": lambda g, x=X: objective.uniform_times(len(x), g),
    "low_discrepancy": lambda g, x=X: elbo.low_discrepancy(2, g, (len(x),)),
    "prior_sample": lambda g, x=X: solvers.prior_sample(VP, x.shape, g, dtype=x.dtype),
    "Mixture.sample": lambda g, x=X: gaussian(X[0], torch.eye(D)).sample(len(x), g),
}
NO_BATCH = {"MLP": "weights are no batch", "UNet": "weights are no batch",
            "prepare": "returns the streams", "twisted_smc": "one population, one stream"}


def takers(*names):
    """Public callables of the room, and methods of its classes, with a parameter of these names."""
    return {label.partition(".")[2] for label, function in public("diffusion").items()
            if {*names} & parameters(function).keys()}


def test_every_taker_of_a_network_is_tried():
    found = takers("predict", "network", "score") - {"Preconditioned.load"}
    assert found == ASKS.keys() | NO_ASKING.keys()


def test_every_taker_of_a_stream_is_tried():
    drawn = {name for name in DRAWS if name in takers("generator")}
    assert takers("generator") == drawn | NO_BATCH.keys()
    assert DRAWS.keys() - drawn <= ASKS.keys() - takers("generator")


# --- what a network may not answer

Pair = namedtuple("Pair", "mean spread")
BAD = {
    "None": lambda x, t: None, "a number": lambda x, t: 1.0, "a tuple": lambda x, t: (x, x),
    "a list": lambda x, t: [x], "a dict": lambda x, t: {"sample": x}, "a pair": lambda x, t: Pair(x, x),
    "an array": lambda x, t: x.detach().numpy(),
    "a method sample": lambda x, t: torch.distributions.Normal(x, 1),
    "int64": lambda x, t: x.long(), "bool": lambda x, t: x > 0, "complex": lambda x, t: x + 0j,
    "sparse": lambda x, t: x.to_sparse(), "NaN": lambda x, t: x * math.nan,
    "infinity": lambda x, t: x + math.inf,
    "one NaN": lambda x, t: torch.where(x == x.max(), math.nan, x),
    "[B, 1]": lambda x, t: x[:, :1], "[1, D]": lambda x, t: x[:1], "[B - 1, D]": lambda x, t: x[1:],
    "[B]": lambda x, t: x.sum(1), "[]": lambda x, t: x.sum(), "[B, D, 1]": lambda x, t: x[..., None],
    "[D, B]": lambda x, t: x.mT, "another device": lambda x, t: x.to("meta"),
    "x in place": lambda x, t: x.mul_(2), "t in place": lambda x, t: x * t.mul_(1000).max(),
}


TRACES = "log_likelihood", "bits_per_dimension"
GRAPHS = *TRACES, "guided", "dps", "twisted_smc"
INNER = "NaN", "infinity", "one NaN", "x in place", "t in place"


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
@pytest.mark.parametrize("name", ASKS)
def test_bad_answers_are_refused(name, answer):
    if name in WRAPPERS and answer in map(BAD.get, INNER): pytest.skip("seen by who asks it")
    if name in TRACES and answer is BAD["x in place"]: pytest.skip("refused by autograd")
    if name == "Preconditioned" and answer in map(BAD.get, INNER): pytest.skip("seen by who asks it")
    if name in GRAPHS and answer is BAD["x in place"]: pytest.skip("refused by autograd")
    before = X.clone()
    message = "(predict|network|score) (must (not|return)|returned)"
    with pytest.raises((TypeError, ValueError), match=message):
        ASKS[name](answer)
    assert torch.equal(X, before)


@pytest.mark.parametrize("network", [None, 3, "net", X, nn.Linear, [nn.Linear(2, 2)]], ids=str)
@pytest.mark.parametrize("name", ASKS)
def test_what_is_no_network_is_refused(name, network):
    with pytest.raises(TypeError, match=r"(predict|network|score) must be"): ASKS[name](network)


# --- what it may answer

def plain(x, t):
    return 0.5 * x + 0.25


class Reused:
    """Answers in the same tensor at every call."""

    def __init__(self):
        self.answer = None

    def __call__(self, x, t):
        if self.answer is None or self.answer.shape != x.shape: self.answer = torch.empty_like(x)
        return self.answer.copy_(plain(x, t))


GOOD = {
    "float64": lambda x, t: plain(x, t).double(),
    "an object": lambda x, t: SimpleNamespace(sample=plain(x, t)),
    "not contiguous": lambda x, t: plain(x, t).mT.contiguous().mT,
    "a partial": partial(lambda scale, x, t: scale * x + 0.25, 0.5),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("answer", GOOD.values(), ids=GOOD)
@pytest.mark.parametrize("name", ASKS)
def test_good_answers_have_one_result(name, answer, dtype):
    x = X.to(dtype)
    wanted, got = (ASKS[name](f, x, 5) for f in (plain, answer))
    assert got.dtype == wanted.dtype == dtype
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("half", [torch.half, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ASKS)
def test_half_answers_are_cast(name, half):
    got = ASKS[name](lambda x, t: plain(x, t).to(half), X, 5)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, ASKS[name](plain, X, 5), rtol=0.05, atol=0.1)
    layer = nn.Linear(D, D)
    with torch.autocast("cpu", torch.bfloat16):
        assert ASKS[name](lambda x, t: layer(x), X, 5).dtype == torch.float32


@pytest.mark.parametrize("name", ASKS)
def test_a_reused_answer_changes_nothing(name):
    if name in TRACES: pytest.skip("needs the graph of each answer")
    assert torch.equal(ASKS[name](Reused(), X, 5), ASKS[name](plain, X, 5))


# --- modes

class Noisy(nn.Module):
    """Dropout and batch statistics around `plain`."""

    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(D)

    def forward(self, x, t):
        return plain(self.drop(self.norm(x)), t)


@dataclass
class Holder:
    inner: Noisy

    def __call__(self, x, t): return self.inner(x, t)

    def ask(self, x, t): return self.inner(x, t)


WRAPS = {"itself": lambda n: n, "a closure": lambda n: lambda x, t: n(x, t), "an object": Holder,
         "a method": lambda n: Holder(n).ask, "a partial": lambda n: partial(lambda n, x, t: n(x, t), n),
         "a list": lambda n: (lambda nets: lambda x, t: nets[0](x, t))([n]),
         "DataParallel": nn.DataParallel, "compiled": lambda n: torch.compile(n, backend="eager")}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
@pytest.mark.parametrize("name", [name for name in ASKS if name not in LEARN])
def test_a_network_is_asked_in_evaluation_mode_and_restored(name, wrap):
    network = Noisy()
    network.norm.eval()                       # a mixed mode
    modes = [m.training for m in network.modules()]
    kept = {key: value.clone() for key, value in network.state_dict().items()}
    got = ASKS[name](wrap(network), X, 5)
    assert [m.training for m in network.modules()] == modes == [True, True, False]
    assert all(torch.equal(value, kept[key]) for key, value in network.state_dict().items())
    assert torch.equal(got, ASKS[name](Noisy().eval(), X, 5))


@pytest.mark.parametrize("name", ASKS)
def test_a_network_that_fails_has_its_mode_back(name):
    class Failing(nn.Module):
        def forward(self, x, t): raise KeyError("own error")
    network = Failing()
    with pytest.raises(KeyError, match="own error"): ASKS[name](network)
    assert network.training


@pytest.mark.parametrize("name", LEARN)
def test_losses_keep_the_mode(name):
    seen = []
    class Seen(nn.Module):
        def forward(self, x, t):
            seen.append(self.training)
            return plain(x, t)
    ASKS[name](Seen(), X, 5)
    assert seen == [True]


def test_notes_of_a_device_are_settled_once():
    """Answers on a device that works by itself are looked at in the end, with their calls and times."""
    door = objective.CheckedNetwork(plain)
    yes, no = torch.tensor([True, False])
    door.unseen = [(1, torch.tensor(0.9), yes), (2, torch.tensor(0.4), no), (3, torch.tensor(0.1), no)]
    with pytest.raises(ValueError, match="predict returned NaN or infinity in call 2, at t = 0.4"):
        door.settle()
    door.settle()


# --- gradients

@pytest.mark.parametrize("name", [name for name in ASKS if name not in {
    *LEARN, "velocity", "bits_per_dimension", "classifier_free"}])
def test_a_lost_gradient_is_an_error(name):
    message = "wants a gradient, which would be lost|do not work inside grad"
    with pytest.raises(ValueError, match=message): ASKS[name](plain, X.clone().requires_grad_())
    with pytest.raises(ValueError, match=message):
        torch.func.grad(lambda z: ASKS[name](plain, z, 5).sum())(X)
    kind = RuntimeError if name == "matrix_deis" else ValueError     # its coefficients are NumPy's
    with pytest.raises(kind, match=None if kind is RuntimeError else message):
        torch.func.grad(lambda p: ASKS[name](lambda x, t: p * x, X, 5).sum())(torch.tensor(0.5))
    layer = nn.Linear(D, D)                   # parameters may ask: cut, as documented
    assert not ASKS[name](lambda x, t: layer(x), X, 5).requires_grad


# --- streams

@pytest.mark.parametrize("kind", BAD_STREAMS)
@pytest.mark.parametrize("name", [name for name in DRAWS if name in takers("generator")])
def test_bad_streams_are_refused(name, kind):
    with pytest.raises((TypeError, ValueError), match="generator must"): DRAWS[name](BAD_STREAMS[kind])


@pytest.mark.parametrize("name", [name for name in DRAWS if name in takers("generator")])
def test_a_stream_twice_is_refused(name):
    g = torch.Generator()
    with pytest.raises(ValueError, match="generator must hold different"): DRAWS[name]([g, 1, g])


@pytest.mark.parametrize("name", [name for name in DRAWS if name in takers("generator")])
def test_streams_mean_the_same_everywhere(name):
    draw = DRAWS[name]
    assert torch.equal(draw(7), draw(torch.Generator().manual_seed(7)))
    assert torch.equal(draw(7), draw(np.int64(7)))
    own = draw([4, 5, 6])
    assert torch.equal(own, draw((4, 5, 6))) and torch.equal(own, draw(range(4, 7)))
    if name == "bits_per_dimension": return
    for b in range(B):
        torch.testing.assert_close(draw([4 + b], X[b:b + 1]), own[b:b + 1])


# --- solvers: nothing of the batch, of the memory layout or of the caller matters

SCHEDULES = [LinearBeta(), Geometric(0.05, 10), SubVP(), LinearLogSNR(-8, 8), Cosine(-8, 8)]
SOLVERS = [solvers.euler_maruyama, solvers.reverse_diffusion, solvers.ancestral, solvers.ddim,
           solvers.heun, solvers.runge_kutta, solvers.predictor_corrector, deis.deis, deis.rho_rk]


class Bell(nn.Module):
    """The right answer of a `kind` for standard normal data of any shape; wrong in training mode."""

    def __init__(self, noise, kind):
        super().__init__()
        self.noise = noise
        self.kind = kind

    def forward(self, x, t):
        assert not self.training
        a = float(self.noise.alpha(t))
        s = float(self.noise.sigma(t))
        factor = {"eps": s, "x0": a, "score": -1.0, "v": 0.0}[self.kind]
        return x * (factor / (a**2 + s**2))


LAYOUTS = {"contiguous": lambda x: x, "transposed": lambda x: x.mT.contiguous().mT,
           "a view": lambda x: torch.stack([x, x], -1)[..., 0],
           "a cut": lambda x: torch.cat([x, x])[:len(x)]}
KINDS = "eps", "x0", "v", "score"
DTYPES = torch.float32, torch.float64


@given(run=st.sampled_from(SOLVERS), noise=st.sampled_from(SCHEDULES), kind=st.sampled_from(KINDS),
       dtype=st.sampled_from(DTYPES), layout=st.sampled_from(sorted(LAYOUTS)), batch=st.integers(1, 4),
       steps=st.integers(5, 9))
@settings(deadline=None, max_examples=200, derandomize=True)
def test_solvers_keep_their_promises(run, noise, kind, dtype, layout, batch, steps):
    x = torch.randn(batch, 3, 5, generator=torch.Generator().manual_seed(batch), dtype=dtype)
    x = LAYOUTS[layout](x)
    kept, strides = x.clone(), x.stride()
    network = Bell(noise, kind)
    predict, grid = networks.as_eps(network, noise, kind), time_grid(noise, steps)
    draws = "generator" in inspect.signature(run).parameters
    streams = lambda *seeds: {"generator": seeds} if draws else {}
    end = run(predict, noise, x, grid, **streams(*range(batch)))
    assert end.dtype == dtype and end.shape == x.shape and end.isfinite().all()
    assert torch.equal(x, kept) and x.stride() == strides and network.training
    close = partial(torch.testing.assert_close, rtol=1e-3 if dtype == torch.float32 else 1e-10,
                    atol=1e-3 if dtype == torch.float32 else 1e-10)
    close(run(predict, noise, kept.contiguous(), grid, **streams(*range(batch))), end)
    b = batch - 1
    close(run(predict, noise, x[b:], grid, **streams(b)), end[b:])
