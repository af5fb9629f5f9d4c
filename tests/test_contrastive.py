"""Gradients against autograd, enumeration, scikit-learn; the estimator against its exact expectation;
bad input."""
import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
from sklearn.neural_network import BernoulliRBM
import torch

from machines import machine as any_machine, some_states
from rbmdiff.foundations.train import ascend
from rbmdiff.foundations.units import Bernoulli, Binary, Discrete, states
from rbmdiff.learning import contrastive
from rbmdiff.learning.contrastive import (
    cd_gradient,
    centred,
    energy_gradient,
    exact_gradient,
    expected_cd_gradient,
    weighted_statistics,
)
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.gibbs import gibbs

KINDS = [(v, h) for v in ("bernoulli", "spin", "gaussian") for h in ("bernoulli", "spin")]
BINARY = [(v, h) for v, h in KINDS if v != "gaussian"]


def machine(D, H, visible="bernoulli", hidden="bernoulli", seed=0, scale=1.0, dtype=torch.float64):
    return any_machine(D, H, visible, hidden, seed, scale, dtype).requires_grad_()


def data(m, *shape, seed=1):
    """Visible states, about equally often or drawn without fields."""
    if m.visible.levels or str(m.visible) == "gaussian":
        return some_states((*shape, len(m.W)), m.visible, seed, m.W.dtype)
    x = torch.zeros(*shape, len(m.W), dtype=m.W.dtype)
    width = torch.ones(1, dtype=m.W.dtype) if m.visible.wide else None
    return m.visible.draw(x, torch.zeros(1, dtype=m.W.dtype), torch.Generator().manual_seed(seed), width)


def by_autograd(m, v):
    return dict(zip(dict(m.named_parameters()),
                    torch.autograd.grad(m.log_prob(v).mean(), tuple(m.parameters()))))


def close(x, y, tol=1e-11):
    assert list(x) == list(y)
    for name in x: torch.testing.assert_close(x[name], y[name], rtol=tol, atol=tol)


def distance(x, y):
    return math.sqrt(sum((x[name] - y[name]).square().sum().item() for name in x))


def z_scores(draws, truth, draws_of_truth=None):
    """Largest |z| of the mean of `draws` against `truth` (or the mean of independent draws of it), and
    the largest standard error."""
    z, error = 0.0, 0.0
    for name in draws[0]:
        x = torch.stack([d[name] for d in draws])
        t = torch.stack([d[name] for d in draws_of_truth]) if draws_of_truth else None
        mean, variance = (t.mean(0), t.var(0) / len(t)) if draws_of_truth else (truth[name], 0.0)
        se = (x.var(0) / len(x) + variance).sqrt()
        z, error = max(z, ((x.mean(0) - mean) / se).abs().max().item()), max(error, se.max().item())
    return z, error


# the exact gradient

@pytest.mark.parametrize("visible,hidden", KINDS)
@pytest.mark.parametrize("D,H", [(6, 3), (3, 6), (4, 4), (1, 1)])
def test_exact_gradient_is_autograd_of_the_log_likelihood(visible, hidden, D, H):
    m = machine(D, H, visible, hidden)
    v = data(m, 5)
    close(exact_gradient(m, v), by_autograd(m, v), 1e-9)
    with torch.no_grad():
        no_model = weighted_statistics(m, v, m.hidden_mean(v), torch.full((5,), 0.2, dtype=v.dtype))
    assert distance(exact_gradient(m, v), no_model) > 0.1


@pytest.mark.parametrize("visible", ["bernoulli", "gaussian"])
def test_chunks_do_not_show(visible, monkeypatch):
    """2^17 hidden states are more than one chunk of a machine of this width."""
    m = machine(40, 17, visible, scale=0.1, dtype=torch.float32)
    assert 2**17 > 2**22 // 40
    v = data(m, 3)
    close(exact_gradient(m, v), by_autograd(m, v), 2e-4)


@pytest.mark.parametrize("visible,hidden", KINDS)
def test_exact_gradient_in_float32(visible, hidden):
    m = machine(5, 4, visible, hidden)
    v = data(m, 6)
    truth = exact_gradient(m, v)
    single = exact_gradient(m.float(), v.float())
    assert all(x.dtype == torch.float32 and not x.requires_grad for x in single.values())
    assert distance({n: x.double() for n, x in single.items()},
                    truth) < 1e-5 * (1 + distance(truth, {n: 0 * x for n, x in truth.items()}))


def test_any_leading_shape_and_order_of_rows():
    m = machine(5, 4)
    v = data(m, 2, 3)
    close(exact_gradient(m, v), exact_gradient(m, v.reshape(6, 5).flip(0)))
    close(exact_gradient(m, v[0, 0]), exact_gradient(m, v[0, :1]))


def test_steps_uphill_reach_a_resting_point():
    m = machine(4, 3, scale=0.1)
    v = states(4)[[0, 3, 3, 5, 12, 15]]
    slope = lambda: {
        n: g - 0.05 * p.detach() for (n, g), p in zip(exact_gradient(m, v).items(), m.parameters())
    }
    length = lambda x: distance(x, {n: 0 * t for n, t in x.items()})
    before, steepest = m.log_prob(v).mean().item(), length(slope())
    optimizer = torch.optim.SGD(m.parameters(), lr=0.5, weight_decay=0.05)
    for _ in range(500):
        ascend(m, exact_gradient(m, v))
        optimizer.step()
    assert m.log_prob(v).mean().item() > before and length(slope()) < 0.01 * steepest


# any energy

@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_energy_gradient_with_all_states(visible):
    m = machine(5, 3, visible)
    v, V = data(m, 4), states(5, visible)
    p = m.log_prob(V).exp().detach()
    close(energy_gradient(m.free_energy, dict(m.named_parameters()), v, V, p), exact_gradient(m, v))


def test_energy_gradient_without_weights_is_equal_weights():
    m = machine(5, 3)
    v, samples, parameters = data(m, 4), data(m, 6, seed=3), dict(m.named_parameters())
    equal = torch.full((6,), 1 / 6, dtype=torch.float64)
    close(energy_gradient(m.free_energy, parameters, v, samples),
          energy_gradient(m.free_energy, parameters, v, samples, equal))


@pytest.mark.parametrize("weights,error",
                         [(torch.ones(6).double(), ValueError),
                          (torch.full((5,), 0.2).double(), ValueError),
                          (torch.full((6,), 1 / 6), TypeError),
                          (torch.full((6,), math.nan).double(), ValueError)])
def test_energy_gradient_refuses_weights(weights, error):
    m = machine(5, 3)
    with pytest.raises(error, match="weights"):
        energy_gradient(m.free_energy, dict(m.named_parameters()), data(m, 4), data(m, 6), weights)


# the expectation of contrastive divergence

def kernel(m):
    """Tables p(h|v), p(v|h) from the joint energy."""
    E = m.energy(states(len(m.b), m.visible)[:, None], states(len(m.c), m.hidden)).detach()
    return torch.softmax(-E, 1), torch.softmax(-E, 0).T


@pytest.mark.parametrize("visible,hidden", BINARY)
@pytest.mark.parametrize("k", [1, 3])
def test_expectation_by_path_enumeration(visible, hidden, k):
    """The k-step distribution of every data point by matrix powers, the statistics by autograd of the
    free energy."""
    m = machine(4, 3, visible, hidden)
    v, chains, V = data(m, 5), data(m, 2, seed=7), states(4, visible)
    up, down = kernel(m)
    for start in (None, chains):
        mu = torch.stack([(V == x).all(1).double() for x in (v if start is None else start)]).mean(0)
        q = mu @ torch.linalg.matrix_power(up @ down, k)
        truth = energy_gradient(m.free_energy, dict(m.named_parameters()), v, V, q)
        ours = expected_cd_gradient(m, v, k, start)
        close(ours, truth, 1e-10)
        assert distance(expected_cd_gradient(m, v, k + 1, start), truth) > 1e-6


def test_many_steps_reach_the_exact_gradient():
    m = machine(5, 4, scale=0.7)
    v = data(m, 6)
    with torch.no_grad():
        bias = [distance(expected_cd_gradient(m, v, k), exact_gradient(m, v)) for k in (1, 2, 4, 100)]
    assert bias[0] > bias[1] > bias[2] > 1e-6 and bias[3] < 1e-12


def test_equilibrium_has_no_bias():
    """All states as chains, each as often as its probability says: a machine whose probabilities are
    multiples of 1/16."""
    m = machine(4, 3)
    for p in m.parameters(): p.data.zero_()
    v = data(m, 5)
    for k in (1, 2): close(expected_cd_gradient(m, v, k, states(4)), exact_gradient(m, v))


def test_expectation_is_differentiable():
    m = machine(3, 2)
    v = data(m, 4)
    p = next(iter(m.parameters()))
    slope, = torch.autograd.grad(expected_cd_gradient(m, v, 2)["b"].sum(), p)
    eps = 1e-6
    p.data[0, 0] += eps
    high = expected_cd_gradient(m, v, 2)["b"].sum().item()
    p.data[0, 0] -= 2 * eps
    low = expected_cd_gradient(m, v, 2)["b"].sum().item()
    assert abs((high - low) / (2 * eps) - slope[0, 0].item()) < 1e-8


# the estimator

@pytest.mark.parametrize("visible,hidden", BINARY)
@pytest.mark.parametrize("k,persistent", [(2, False), (1, True)])
def test_estimator_has_its_expectation(visible, hidden, k, persistent):
    m, g = machine(4, 3, visible, hidden), torch.Generator().manual_seed(5)
    v, chains = data(m, 5), data(m, 3, seed=9) if persistent else None
    start = None if chains is None else chains.repeat(100, 1)
    draws = [cd_gradient(m, v.repeat(100, 1), k, start, g)[0] for _ in range(200)]
    with torch.no_grad():
        z, error = z_scores(draws, expected_cd_gradient(m, v, k, chains))
        control, _ = z_scores(draws, expected_cd_gradient(m, v, k + 1, chains))
    assert z < 4 and error < 0.01 and control > 8


@pytest.mark.parametrize("hidden", ["bernoulli", "spin"])
@pytest.mark.parametrize("k", [1, 2])
def test_estimator_with_gaussian_visibles(hidden, k):
    """Two samples: the estimator, and autograd of the free energy at the states of an independent Gibbs
    sampler."""
    m, g = machine(3, 2, "gaussian", hidden, scale=0.5), torch.Generator().manual_seed(6)
    v = data(m, 4).repeat(100, 1)
    parameters = dict(m.named_parameters())
    ours = [cd_gradient(m, v, k, generator=g)[0] for _ in range(200)]
    truth, more = ([energy_gradient(m.free_energy, parameters, v,
                                    gibbs(m, v, n, g)) for _ in range(200)] for n in (k, k + 1))
    z, error = z_scores(ours, None, truth)
    control, _ = z_scores(ours, None, more)
    assert z < 4 and error < 0.05 and control > 8


@pytest.mark.parametrize("hidden", ["bernoulli", "spin"])
@pytest.mark.parametrize("k", [1, 3])
def test_gaussian_chains_at_equilibrium(hidden, k):
    m, g = machine(3, 3, "gaussian", hidden, scale=0.7), torch.Generator().manual_seed(8)
    S, v = states(3, hidden), data(m, 4)
    with torch.no_grad(): p = torch.softmax(-m.hidden_free_energy(S), 0)
    chains = lambda: m.sample_visible(S[torch.multinomial(p, 500, replacement=True, generator=g)],
                                      g).detach()
    exact = exact_gradient(m, v)
    z, error = z_scores([cd_gradient(m, v, k, chains(), g)[0] for _ in range(200)], exact)
    control, _ = z_scores([cd_gradient(m, v.repeat(100, 1), k, generator=g)[0] for _ in range(200)],
                          exact)
    assert z < 4 and error < 0.05 and control > 8


def test_from_the_data_equals_chains_at_the_data():
    """Same generator, same draws: CD is PCD whose chains are the batch."""
    m = machine(6, 4)
    v = data(m, 5)
    (x, a), (y, b) = (cd_gradient(m, v, 3, chains, torch.Generator().manual_seed(2))
                      for chains in (None, v))
    close(x, y, 1e-14)
    assert torch.equal(a, b)


def test_chains_are_those_of_the_gibbs_sampler():
    for visible, hidden in KINDS:
        m = machine(6, 4, visible, hidden)
        v = data(m, 5)
        for k in (1, 4):
            _, chains = cd_gradient(m, v, k, generator=torch.Generator().manual_seed(2))
            torch.testing.assert_close(chains, gibbs(m, v, k, torch.Generator().manual_seed(2)),
                                       rtol=1e-14, atol=1e-14)


def test_sklearn_step_in_expectation():
    """BernoulliRBM's PCD update, given the same weights and hidden chains, against ours from visible
    chains that lead to them."""
    m, batch = machine(5, 4), 400
    g, rng = torch.Generator().manual_seed(4), np.random.RandomState(0)
    v, chains = data(m, 4).repeat(100, 1), data(m, 4, seed=11).repeat(100, 1)
    theirs = []
    for _ in range(150):
        peer = BernoulliRBM(4, learning_rate=1.0, batch_size=batch, random_state=rng)
        peer.components_ = m.W.detach().T.numpy().copy()
        peer.intercept_visible_, peer.intercept_hidden_ = (
            m.b.detach().numpy().copy(),
            m.c.detach().numpy().copy(),
        )
        peer.h_samples_, peer.random_state_ = m.sample_hidden(chains, g).detach().numpy(), rng
        before = peer.components_.copy(), peer.intercept_visible_.copy(), peer.intercept_hidden_.copy()
        peer._fit(v.numpy(), rng)
        after = peer.components_, peer.intercept_visible_, peer.intercept_hidden_
        W, b, c = (torch.from_numpy(x - y) for x, y in zip(after, before))
        theirs.append({"W": W.T, "b": b, "c": c})
    with torch.no_grad(): expected = [expected_cd_gradient(m, v[:4], k, chains[:4]) for k in (1, 2)]
    z, error = z_scores(theirs, expected[0])
    assert z < 4 and error < 0.01 and z_scores(theirs, expected[1])[0] > 8
    ours = [cd_gradient(m, v, 1, chains, g)[0] for _ in range(150)]
    z, error = z_scores(theirs, None, ours)
    assert z < 4 and error < 0.01


@pytest.mark.parametrize("visible",
                         ["bernoulli", "spin", "gaussian", "relu", "poisson", "potts(2)",
                          Discrete((0.0, 1.0, 3.0))])
@pytest.mark.parametrize("persistent", [False, True])
def test_every_chain_has_its_own_stream(visible, persistent):
    m = machine(4, 3, visible, scale=0.3)
    v = data(m, 5)
    chains = data(m, 5, seed=3) if persistent else None
    _, whole = cd_gradient(m, v, 3, chains, [7, 8, 9, 10, 11])
    for b in range(5):
        _, alone = cd_gradient(m, v[b:b + 1], 3, None if chains is None else chains[b:b + 1], [7 + b])
        torch.testing.assert_close(alone[0], whole[b], rtol=1e-13, atol=1e-13)
    (x, a), (y, b) = (
        cd_gradient(m, v, 1, chains, 5),
        cd_gradient(m, v, 1, chains, torch.Generator().manual_seed(5)),
    )
    close(x, y, 0)
    assert torch.equal(a, b)


@pytest.mark.parametrize("hidden", ["bernoulli", "spin", Binary((0.0, 1.0), 0.5)])
@pytest.mark.parametrize("visible", ["bernoulli", "spin"])
def test_products_in_bfloat16_round_the_weights_and_nothing_else(visible, hidden, monkeypatch):
    monkeypatch.setattr(contrastive, "small_gradient", lambda *a: None)      # the same random numbers
    m = machine(40, 30, visible, hidden, scale=0.3, dtype=torch.float32)
    v, weights = data(m, 200), {name: p.detach().clone() for name, p in m.named_parameters()}
    plain, _ = cd_gradient(m, v, generator=torch.Generator().manual_seed(1))
    rounded, chains = cd_gradient(m, v, generator=torch.Generator().manual_seed(1),
                                  products=torch.bfloat16)
    assert chains.dtype == torch.float32
    assert all(torch.equal(p, weights[name]) for name, p in m.named_parameters())
    m.visible.check("chains", chains)
    assert all(x.dtype == torch.float32 for x in rounded.values())
    assert distance(plain, rounded) < 0.3 * distance(plain,
                                                     {name: 0 * x for name, x in plain.items()}) + 0.3


# shapes, dtypes, determinism

@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(KINDS), D=st.integers(1, 5), H=st.integers(1, 5),
       shape=st.lists(st.integers(1, 3), max_size=2),
       chain_shape=st.none() | st.lists(st.integers(1, 3), max_size=2), k=st.integers(1, 3),
       dtype=st.sampled_from([torch.float32, torch.float64]))
def test_shapes_and_dtypes(kind, D, H, shape, chain_shape, k, dtype):
    m = machine(D, H, *kind, dtype=dtype)
    v = data(m, *shape)
    chains = None if chain_shape is None else data(m, *chain_shape)
    gradients, after = cd_gradient(m, v, k, chains, torch.Generator().manual_seed(0))
    again, after_again = cd_gradient(m, v, k, chains, torch.Generator().manual_seed(0))
    assert after.shape == (v if chains is None else chains).shape and after.dtype == dtype
    assert torch.equal(after, after_again)
    for name, p in m.named_parameters():
        assert gradients[name].shape == p.shape and gradients[name].dtype == dtype
        assert not gradients[name].requires_grad
        assert torch.equal(gradients[name], again[name]) and p.grad is None
    m.log_prob(after)                                       # the chains are states


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(KINDS), n=st.integers(1, 6), split=st.integers(0, 5),
       seed=st.integers(0, 10**6))
def test_the_gradient_is_a_mean(kind, n, split, seed):
    """The gradient of a batch is the weighted mean of those of its parts."""
    m = machine(4, 3, *kind, seed=seed, scale=0.5)
    v = data(m, n + split + 1, seed=seed + 1)
    parts = exact_gradient(m, v[:n]), exact_gradient(m, v[n:])
    w = n / len(v)
    close(exact_gradient(m, v),
          {name: w * parts[0][name] + (1 - w) * parts[1][name] for name in parts[0]}, 1e-9)


def test_inputs_are_left_alone():
    m = machine(5, 4)
    v, chains = data(m, 3), data(m, 3, seed=4)
    copies = v.clone(), chains.clone(), [p.detach().clone() for p in m.parameters()]
    cd_gradient(m, v, 2, chains), exact_gradient(m, v), centred(exact_gradient(m, v), v[0],
                                                                torch.zeros(4).double())
    assert torch.equal(v, copies[0]) and torch.equal(chains, copies[1])
    assert all(torch.equal(p, q) for p, q in zip(m.parameters(), copies[2]))


# centring

def test_centred_with_zero_offsets_changes_nothing():
    m = machine(4, 3, "gaussian")
    x = exact_gradient(m, data(m, 3))
    close(centred(x, torch.zeros(4).double(), torch.zeros(3).double()), x, 0)


def test_centred_statistics_are_covariances_about_the_offsets():
    """The centred gradient of W is the plain one of (v - mu)(h - lambda)."""
    m = machine(4, 3)
    v, V = data(m, 5), states(4)
    mu, lam = torch.rand(4, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    with torch.no_grad():
        moment = lambda x, w: ((x - mu).T * w) @ (m.hidden_mean(x) - lam)
        truth = moment(v, torch.full((5,), 0.2)) - moment(V, m.log_prob(V).exp())
    ours = centred(exact_gradient(m, v), mu, lam)
    torch.testing.assert_close(ours["W"], truth, rtol=1e-7, atol=1e-7)
    assert (centred(exact_gradient(m, v), -mu, lam)["W"] - truth).abs().max() > 0.01


@pytest.mark.parametrize("offsets,error",
                         [((torch.zeros(4), torch.zeros(3)), TypeError),
                          ((torch.zeros(5).double(), torch.zeros(3).double()), ValueError),
                          ((torch.zeros(4).double(), torch.zeros(2, 3).double()),
                           ValueError),
                          ((torch.full((4,), math.nan).double(),
                            torch.zeros(3).double()), ValueError)])
def test_centred_refuses(offsets, error):
    m = machine(4, 3)
    with pytest.raises(error, match="offset"): centred(exact_gradient(m, data(m, 3)), *offsets)


# bad input

m0 = machine(4, 3)
V0 = states(4)
WILD = machine(4, 3, "relu", "gaussian", scale=3.0)
BAD = {
    "zero steps": (lambda: cd_gradient(m0, V0, 0), ValueError, "k must be at least 1"),
    "fractional steps": (lambda: cd_gradient(m0, V0, 1.0), TypeError, "k must be an int"),
    "steps of truth": (lambda: cd_gradient(m0, V0, True), TypeError, "k must be an int"),
    "wrong width": (lambda: cd_gradient(m0, V0[:, :3]), ValueError, r"v must have shape \[\.\.\., 4\]"),
    "scalar": (lambda: cd_gradient(m0, torch.tensor(1.0).double()), ValueError, "v must have shape"),
    "spins": (lambda: cd_gradient(m0, 2 * V0 - 1), ValueError, "v must hold only 0 or 1"),
    "intensities": (lambda: exact_gradient(m0, V0 / 2), ValueError, "v must hold only 0 or 1"),
    "errors that cancel": (lambda: cd_gradient(m0, torch.cat([V0[:2] * 0 + 0.5, -V0[1:2]])), ValueError,
                           "v must hold only 0 or 1"),
    "infinity": (lambda: exact_gradient(m0, V0 * math.inf), ValueError, "v must be finite"),
    "NaN": (lambda: exact_gradient(m0, V0 * math.nan), ValueError, "v must be finite"),
    "empty": (lambda: cd_gradient(m0, V0[:0]), ValueError, "v must not be empty"),
    "integers": (lambda: cd_gradient(m0, V0.long()), TypeError, "v must be float32 or float64"),
    "half": (lambda: cd_gradient(m0, V0.half()), TypeError, "v must be float32 or float64"),
    "complex": (lambda: exact_gradient(m0, V0.to(torch.complex128)), TypeError,
                "v must be float32 or float64"),
    "float32 for float64": (lambda: cd_gradient(m0, V0.float()), TypeError, "v must be torch.float64"),
    "array": (lambda: cd_gradient(m0, V0.numpy()), TypeError, "v must be a torch.Tensor"),
    "chains of another width": (lambda: cd_gradient(m0, V0, chains=V0[:, :3]), ValueError,
                                "chains must have shape"),
    "chains of another dtype": (lambda: cd_gradient(m0, V0, chains=V0.float()), TypeError,
                                "chains must be torch.float64"),
    "chains not states": (lambda: cd_gradient(m0, V0, chains=V0 / 2), ValueError,
                          "chains must hold only 0 or 1"),
    "no chains": (lambda: cd_gradient(m0, V0, chains=V0[:0]), ValueError, "chains must not be empty"),
    "tilted": (lambda: cd_gradient(m0.tilt(V0[3]), V0), ValueError, "tilted"),
    "tilted, exactly": (lambda: exact_gradient(m0.tilt(V0[3]), V0), ValueError, "tilted"),
    "no machine": (lambda: exact_gradient(torch.nn.Linear(4, 3), V0), TypeError, "rbm must be an RBM"),
    "too large": (lambda: exact_gradient(RBM(30, 26), torch.zeros(1, 30)), ValueError, "25"),
    "too large for a table": (lambda: expected_cd_gradient(RBM(12, 9), torch.zeros(1, 12)), ValueError,
                              "at most 20"),
    "no table of Gaussians": (lambda: expected_cd_gradient(RBM(2, 2, "gaussian"), torch.zeros(1, 2)),
                              ValueError,
                              "rbm must have visible units with a list of states"),
    "no table of real hidden units": (lambda: expected_cd_gradient(RBM(2, 2, "spin", "gaussian"),
                                                                   torch.ones(1, 2)),
                                      ValueError, "at most 20 bits for a table, got inf"),
    "no list of states": (lambda: exact_gradient(RBM(2, 2, "gaussian", "gaussian"), torch.ones(1, 2)),
                          ValueError,
                          "a layer with a list of states"),
    "no sum over states": (lambda: exact_gradient(WILD, torch.ones(1, 4).double()), ValueError,
                           "pull each other with"),
    "seed": (lambda: cd_gradient(m0, V0, 1, None, "seed"), TypeError, "generator must be"),
    "a stream too few": (lambda: cd_gradient(m0, V0, 1, None, [1, 2]), ValueError,
                         "generator must hold one stream"),
    "products": (lambda: cd_gradient(m0, V0, products=torch.float16), ValueError,
                 "products must be None or"),
    "products of others": (lambda: cd_gradient(machine(4, 3, "spin", "binomial(2)"), 2 * V0 - 1,
                                               products=torch.bfloat16),
                           ValueError, r"products must be None for 'binomial\(2\)'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message): call()


def test_no_step_makes_a_width_negative():
    """The logarithm of the width is what is learned: a huge step downhill leaves the widths positive."""
    m = machine(4, 3, "gaussian")
    v = torch.zeros(20, 4, dtype=torch.float64)
    before, step = m.sigma.detach(), 5 * exact_gradient(m, v)["log_sigma"].clamp(-10, 10)
    m.log_sigma.data += step
    # control: a step of the width
    assert bool((m.sigma > 0).all()) and bool((before + step / before < 0).any())
    with pytest.raises(ValueError, match="rbm.sigma must be positive"):
        m.sigma = torch.tensor([1.0, -1.0, 1.0, 1.0])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("visible,hidden", KINDS)
def test_cuda(visible, hidden):
    m = machine(5, 4, visible, hidden)
    v = data(m, 6)
    truth = exact_gradient(m, v)
    m.to("cuda")
    on_device = exact_gradient(m, v.cuda())
    assert all(x.is_cuda for x in on_device.values())
    close({n: x.cpu() for n, x in on_device.items()}, truth, 1e-9)
    gradients, chains = cd_gradient(m, v.cuda(), 2, generator=torch.Generator("cuda").manual_seed(0))
    assert chains.is_cuda and all(x.is_cuda for x in gradients.values())
    with pytest.raises(ValueError, match="v must be on cuda"): cd_gradient(m, v)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("persistent", [False, True])
@pytest.mark.parametrize("visible,hidden", BINARY)
def test_a_gradient_in_one_call_has_the_expectation_of_cd(visible, hidden, persistent, k):
    """z-scores over 200 estimates; control: one step more."""
    m = machine(4, 3, visible, hidden, dtype=torch.float32)
    v = data(m, 5)
    chains = data(m, 3, seed=4) if persistent else None
    many = [None if x is None else x.repeat(200, 1) for x in (v, chains)]
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        calls = [contrastive._in_one_call(m, many[0], k, many[1], g) for _ in range(200)]
    if calls[0] is None: pytest.skip("needs numba")
    flat = lambda found: torch.cat([x.detach().flatten() for x in found.values()]).double()
    draws = torch.stack([flat(found) for found, _ in calls])
    exact, more = (flat(expected_cd_gradient(m, v, steps, chains)) for steps in (k, k + 1))
    z = lambda goal: ((draws.mean(0) - goal) / (draws.std(0) / len(draws) ** 0.5 + 1e-6)).abs().max()
    assert z(exact) < 4.5
    assert k > 1 or z(more) > 6
    m.visible.check("chains", calls[0][1])


def test_in_one_call_only_for_what_it_knows():
    """A derived machine or unit, float64, real units, streams one a chain and large machines are not
    its own; values that are no states are refused as ever."""
    class Loud(RBM):
        """A machine with a law of its own."""

    class Loaded(Bernoulli):
        """A bit with a law of its own."""

    v = torch.ones(3, 4)
    call = lambda m, x=v, g=0: contrastive._in_one_call(m, x, 1, None, g)
    with torch.no_grad():
        if call(RBM(4, 2)) is None: pytest.skip("needs numba")
        for m in (Loud(4, 2), RBM(4, 2, Loaded()), RBM(4, 2, "bernoulli", Loaded()),
                  RBM(4, 2, "gaussian"), RBM(4, 2, "potts(2)"), RBM(4, 2, Binary((0.0, 1.0), 0.5))):
            assert call(m) is None
        assert call(RBM(4, 2, dtype=torch.float64), v.double()) is None
        assert call(RBM(4, 2), g=[1, 2, 3]) is None
        assert call(RBM(4, 5000)) is None
        assert call(RBM(4, 2), torch.ones(1025, 4)) is None
    for wrong in (torch.full((3, 4), 0.5), torch.full((3, 4), math.nan), -v):
        with pytest.raises(ValueError, match="v must"): cd_gradient(RBM(4, 2), wrong)
        with pytest.raises(ValueError, match="chains must"): cd_gradient(RBM(4, 2), v, 1, wrong)
    with pytest.raises(TypeError, match="generator"): cd_gradient(RBM(4, 2), v, generator="x")


def test_in_one_call_keeps_what_it_is_given():
    m = machine(5, 4, dtype=torch.float32)
    v, chains = data(m, 6), data(m, 7, seed=4)
    before = [x.clone() for x in (v, chains, *m.parameters())]
    turned = v.T.contiguous().T, chains.T.contiguous().T
    (x, a), (y, b) = (cd_gradient(m, u, 2, w, 3) for u, w in ((v, chains), turned))
    close(x, y, 0)
    assert torch.equal(a, b)
    assert all(torch.equal(p, q) for p, q in zip(before, (v, chains, *m.parameters())))
    assert x.keys() == dict(m.named_parameters()).keys()
    assert not torch.equal(a, cd_gradient(m, v, 2, chains, 4)[1])
