"""What must not change a number: the dtype, the neighbours in the batch, strides, the zero and the unit
of measurement of real data; and the gradient, which two roads must agree on.
"""
from hypothesis import given, settings, strategies as st
import pytest
import torch

from machines import machine, normal, seeded
from rbmdiff.bridge import tilted
from rbmdiff.foundations.units import as_unit
from rbmdiff.learning.contrastive import exact_gradient
from rbmdiff.models.rbm import RBM, flip_log_ratios

f32, f64 = torch.float32, torch.float64
VISIBLE = ["bernoulli", "spin", "discrete((-1.0, 0.0, 2.0))", "potts(3)", "binomial(3)", "gaussian",
           "relu", "poisson"]
HIDDEN = ["bernoulli", "spin", "discrete((-1.0, 0.0, 1.0), 0.5)", "potts(2)", "binomial(2)"]
EPS = 2**-23                                     # distance of 1 and the next number in single precision

pairs = st.tuples(st.sampled_from(VISIBLE), st.sampled_from(HIDDEN))
dtypes = st.sampled_from([f32, f64])
seeds = st.integers(0, 30)
many = settings(max_examples=25, deadline=None)


def drawn(visible, hidden, seed, dtype=f64, n=5):
    """A machine of 6 x 4 columns, float64 rounded to `dtype`, and states [n, 6] of its own."""
    rbm = machine(6, 4, visible, hidden, seed=seed, scale=0.4)
    v = rbm.sample(n, generator=seed).to(dtype)
    return rbm.to(dtype), v


def relative(a, b):
    """Largest difference of `a` from `b`, in units of 1 + |b|."""
    return ((a.double() - b.double()).abs() / (1 + b.double().abs())).max().item()


@given(pair=pairs, seed=seeds)
@many
def test_single_precision_gives_the_exact_log_probability_of_its_numbers(pair, seed):
    rbm, v = drawn(*pair, seed, f32)
    assert rbm.log_partition().dtype == rbm.log_prob(v).dtype == f32
    assert relative(rbm.log_partition(), rbm.precise().log_partition()) < EPS
    assert relative(rbm.log_prob(v), rbm.precise().log_prob(v.double())) < EPS


@given(pair=pairs, seed=seeds, dtype=dtypes)
@many
def test_neighbours_in_the_batch_change_nothing(pair, seed, dtype):
    rbm, v = drawn(*pair, seed, dtype)
    functions = [rbm.free_energy, rbm.score, rbm.hidden_mean, rbm.log_prob]
    if len(as_unit("visible", pair[0]).levels or ()) == 2:
        functions.append(lambda x: flip_log_ratios(rbm, x))
    if pair[0] != "poisson": functions.append(lambda x: tilted.denoise(rbm, x + 0.1, 0.7, 0.8))
    for function in functions:
        whole = function(v)
        alone = torch.cat([function(row) for row in v.split(1)])
        assert relative(alone, whole) < 8 * torch.finfo(dtype).eps


@given(pair=pairs, seed=seeds, dtype=dtypes)
@many
def test_strides_change_nothing(pair, seed, dtype):
    rbm, v = drawn(*pair, seed, dtype)
    turned = v.T.contiguous().T
    spaced = torch.stack([v, v], -1)[..., 1]
    for function in (rbm.free_energy, rbm.score, rbm.log_prob, lambda x: exact_gradient(rbm, x)["W"]):
        for strided in (turned, spaced, v.expand(2, *v.shape)[1]):
            assert relative(function(strided), function(v)) < 8 * torch.finfo(dtype).eps


LAYOUTS = {"contiguous": lambda x: x, "transposed": lambda x: x.mT.contiguous().mT,
           "every second number": lambda x: torch.stack([x, x], -1)[..., 1],
           "a cut": lambda x: torch.cat([x, x], -1)[..., x.shape[-1]:]}
SHAPES = (), (1,), (3,), (2, 3), (2, 1, 2)


def methods(rbm, v, h):
    """Methods of a machine by name: of one row of states, with the number of axes that they sum over."""
    return {"energy": (lambda x: rbm.energy(x, h), 1), "free_energy": (rbm.free_energy, 1),
            "log_prob": (rbm.log_prob, 1), "score": (rbm.score, 0)}


@given(pair=pairs, seed=seeds, dtype=dtypes, shape=st.sampled_from(SHAPES),
       layout=st.sampled_from(sorted(LAYOUTS)))
@settings(max_examples=60, deadline=None)
def test_shape_dtype_and_layout_of_what_a_machine_says(pair, seed, dtype, shape, layout):
    """Each number has the dtype of the states, and depends neither on strides nor on its neighbours, but
    for roundings of the terms that are added, which grow with the states."""
    count = 1
    for n in shape: count *= n
    rbm, v = drawn(*pair, seed, dtype, max(2, count))
    h = rbm.sample_hidden(v[0], generator=0)
    states = v[:count].reshape(*shape, 6)
    laid = LAYOUTS[layout](states) if shape else states
    for name, (method, summed) in methods(rbm, v, h).items():
        found = method(laid)
        assert found.dtype == dtype and found.shape == (shape if summed else (*shape, 6)), name
        rows = torch.stack([method(row) for row in states.reshape(-1, 6)]).reshape(found.shape)
        size = 1 + states.abs().sum(-1) if summed else 1 + states.abs().sum(-1, keepdim=True)
        assert relative(found / size, rows / size) < 8 * torch.finfo(dtype).eps, name


@given(pair=pairs, seed=seeds)
@settings(max_examples=60, deadline=None)
def test_single_precision_is_off_by_roundings_of_its_terms(pair, seed):
    """At most one for each of the ten terms that are added, of the size of all of them together."""
    rbm, v = drawn(*pair, seed, f32)
    m, x = rbm.precise(), v.double()
    h = rbm.sample_hidden(v, generator=0)
    c, W = m.c.abs(), m.W.abs()
    coupled = m.visible.coupled(x, m.sigma).abs()
    own = (m.visible.energy(x, m.b, m.sigma).abs() + (x * m.b).abs()).sum(-1)
    fields = c + coupled @ W
    size = 1 + own + fields.sum(-1) + m.hidden.log_norm(m.hidden_field(x)).abs().sum(-1)
    hidden = (h.double().abs() * fields).sum(-1) + m.hidden.energy(h.double(), m.c).abs().sum(-1)
    y = m.hidden_field(x)
    slack = (m.hidden.mean(y).abs() + m.hidden.variance(y) * fields) @ W.T
    width = 1 if m.sigma is None else m.sigma**2
    slopes = 1 + (slack + m.b.abs() + x.abs() + m.visible.slope(x, 0 * x, m.sigma).abs()) / width
    bounds = {"energy": (rbm.energy(v, h), m.energy(x, h.double()), 1 + own + hidden),
              "free_energy": (rbm.free_energy(v), m.free_energy(x), size),
              "score": (rbm.score(v), m.score(x), slopes + m.visible.slope(x, 0 * x, m.sigma).abs())}
    for name, (found, right, terms) in bounds.items():
        assert ((found.double() - right).abs() <= 10 * EPS * terms).all(), name


def moved(rbm, shift):
    """The machine of x + `shift`, x real numbers of the machine `rbm`; exact for dyadic numbers."""
    other = RBM(*rbm.W.shape, "gaussian", str(rbm.hidden), dtype=rbm.W.dtype).requires_grad_(False)
    other.W.copy_(rbm.W)
    other.log_sigma.copy_(rbm.log_sigma)
    other.b.copy_(rbm.b + shift)
    other.c.copy_(rbm.c - shift * rbm.W.sum(0))
    return other


@given(hidden=st.sampled_from(HIDDEN), seed=seeds, shift=st.integers(-12000, 12000))
@many
def test_log_p_of_real_numbers_does_not_depend_on_their_zero(hidden, seed, shift):
    """Widths 1 and eighths throughout, so that the shift itself is exact in single precision."""
    rbm = machine(6, 4, "gaussian", hidden, seed=seed, dtype=f32)
    with torch.no_grad():
        for p in rbm.parameters(): p.copy_((8 * p).round() / 8)
        rbm.log_sigma.zero_()
    v = (8 * normal(5, 6, seed=seed, dtype=f32)).round() / 8
    other = moved(rbm, shift)
    assert relative(other.log_prob(v + shift), rbm.log_prob(v)) < 4 * EPS
    assert relative(other.log_partition(), rbm.log_partition()) < 4 * EPS
    assert relative(other.free_energy(v + shift), rbm.free_energy(v)) < 4 * EPS
    assert relative(other.score(v + shift), rbm.score(v)) < 4 * EPS


@given(hidden=st.sampled_from(HIDDEN), seed=seeds, power=st.integers(-20, 20), dtype=dtypes)
@many
def test_log_p_of_scaled_numbers_differs_by_d_log_s(hidden, seed, power, dtype):
    rbm = machine(6, 4, "gaussian", hidden, seed=seed, dtype=dtype)
    s = 2.0**power
    v = normal(5, 6, seed=seed, dtype=dtype)
    other = RBM(6, 4, "gaussian", hidden, dtype=dtype).requires_grad_(False)
    other.W.copy_(s * rbm.W)
    other.b.copy_(s * rbm.b)
    other.c.copy_(rbm.c)
    other.log_sigma.copy_((rbm.log_sigma.double() + torch.tensor(s, dtype=f64).log()).to(dtype))
    expected = rbm.log_prob(v).double() - 6 * torch.tensor(s, dtype=f64).log()
    assert relative(other.log_prob(s * v), expected) < 400 * torch.finfo(dtype).eps


@given(pair=pairs, seed=seeds, dtype=dtypes)
@many
def test_the_exact_gradient_is_that_of_autograd(pair, seed, dtype):
    rbm, v = drawn(*pair, seed, dtype)
    rbm.requires_grad_()
    names, parameters = zip(*rbm.named_parameters())
    found = exact_gradient(rbm, v)
    wanted = torch.autograd.grad(rbm.log_prob(v).mean(), parameters)
    for name, gradient in zip(names, wanted):
        assert found[name].dtype == dtype
        assert relative(found[name], gradient) < 200 * torch.finfo(dtype).eps


@pytest.mark.parametrize("b, s, right", [(300, 0.1, -15.041), (1e4, 1.0, None), (1e5, 1.0, None)])
def test_log_z_of_real_units_far_from_zero(b, s, right):
    g = seeded()
    rbm = RBM(20, 10, "gaussian").requires_grad_(False)
    rbm.W.copy_(0.3 * s * torch.randn(20, 10, generator=g))
    rbm.b.fill_(b)
    rbm.sigma = s
    rbm.c.copy_(-(rbm.b / rbm.sigma**2) @ rbm.W)
    log_z = rbm.log_partition()
    assert relative(log_z, rbm.double().log_partition()) < EPS
    if right is not None: assert abs(log_z.item() - right) < 2e-3


def test_hidden_free_energies_of_real_units_far_from_zero():
    rbm = machine(20, 10, "gaussian", dtype=f32)
    rbm.b += 1e4
    rbm.c.copy_(-(rbm.b / rbm.sigma**2) @ rbm.W)
    h = (torch.rand(50, 10, generator=seeded()) < 0.5).float()
    assert relative(rbm.hidden_free_energy(h), rbm.precise().hidden_free_energy(h.double())) < EPS


@pytest.mark.parametrize("sigma", [1.0, 1e-2, 1e-3])
@pytest.mark.parametrize("visible", ["bernoulli", "spin", "gaussian"])
def test_log_p_of_noised_states_at_little_noise(visible, sigma):
    rbm = machine(6, 4, visible, dtype=f32)
    x = rbm.sample(5, generator=0) + sigma * normal(5, 6, dtype=f32)
    found = tilted.log_prob(rbm, x, 1.0, sigma)
    wanted = tilted.log_prob(rbm.precise(), x.double(), 1.0, sigma)
    assert found.dtype == f32 and relative(found, wanted) < EPS


def test_mixed_precision_does_not_reach_exact_sums():
    rbm = machine(6, 4, dtype=f32)
    v = rbm.sample(5, generator=0)
    functions = (rbm.log_partition, lambda: rbm.log_prob(v), lambda: tilted.denoise(rbm, v, 0.7, 0.8),
                 lambda: exact_gradient(rbm, v)["W"])
    for function in functions:
        with torch.autocast("cpu", torch.bfloat16): inside = function()
        assert inside.dtype == f32 and torch.equal(inside, function())
