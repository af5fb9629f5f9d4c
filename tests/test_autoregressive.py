"""NADE and MADE: sums over all states, slopes, fields by hand, draws, orders, edges, files, bad input.
"""
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch
from torch.func import functional_call, jacrev, vmap

from machines import machine, seeded
from rbmdiff.foundations.core import check_order
from rbmdiff.foundations.units import Potts, states
from rbmdiff.models.autoregressive import (
    MADE,
    NADE,
    Autoregressive,
    MaskedLayers,
    MaskedMLP,
    masks,
)

f32, f64 = torch.float32, torch.float64
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]
KINDS = {"NADE": lambda D, *a, **k: NADE(D, 6, *a, **k), "MADE": lambda D, *a, **k: MADE(D, 7, *a, **k),
         "deep": lambda D, *a, **k: MADE(D, (8, 5), *a, **k),
         "logistic": lambda D, *a, **k: MADE(D, (), *a, **k)}
ORDER = [3, 0, 2, 4, 1]
BOTH = pytest.mark.parametrize("kind", KINDS)


def net(kind, D=5, unit="bernoulli", order=None, scale=1.0, seed=0, dtype=f64):
    """A network with normal parameters, the same numbers in every dtype."""
    m, g = KINDS[kind](D, unit, order, dtype=dtype, generator=0), seeded(seed)
    for p in m.requires_grad_(False).parameters():
        p.copy_(scale * torch.randn(p.shape, dtype=f64, generator=g))
    return m


# --- the law

@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(KINDS)), st.sampled_from(("bernoulli", "spin", "discrete((-1, 0, 2))")),
       st.permutations(range(5)), st.floats(0, 100), st.integers(0, 10**6))
def test_probabilities_sum_to_one_for_any_parameters(kind, unit, order, scale, seed):
    m = net(kind, 5, unit, order, scale, seed)
    assert abs(m.log_prob(states(5, unit)).logsumexp(0).item()) < 1e-12


@BOTH
@pytest.mark.parametrize("order", (None, ORDER))
def test_slopes_are_strictly_triangular(kind, order):
    m = net(kind, 5, order=order)
    J = jacrev(m.fields)(torch.rand(5, dtype=f64, generator=seeded()))
    own = J[m.order][:, m.order]
    assert torch.equal(own.triu(), torch.zeros(5, 5, dtype=f64))
    assert (own[torch.tril_indices(5, 5, -1).unbind()] != 0).sum() >= 9


@BOTH
@pytest.mark.parametrize("unit", ("bernoulli", "spin"))
def test_conditionals_are_those_of_the_listed_law(kind, unit):
    m, S = net(kind, 5, unit, ORDER), states(5, unit)
    p, means = m.log_prob(S).exp(), m.means(S)
    for k, d in enumerate(ORDER):
        before = ORDER[:k]
        for row, v in enumerate(S):
            same = (S[:, before] == v[before]).all(1)
            wanted = (p[same] * S[same, d]).sum() / p[same].sum()
            assert abs(means[row, d] - wanted) < 1e-13


@BOTH
def test_a_gradient_in_every_parameter(kind):
    m, v = net(kind, 6).requires_grad_(), states(6)[11:14]
    parameters = {name: p.detach() for name, p in m.named_parameters()}
    loss = lambda parameters: functional_call(m, parameters, v).sum()
    m.forward = m.log_prob
    found = torch.autograd.grad(m.log_prob(v).sum(), list(m.parameters()))
    for (name, p), slope in zip(parameters.items(), found):
        for i in {0, p.numel() // 2, p.numel() - 1}:
            step = torch.zeros(p.numel(), dtype=f64)
            step[i] = 1e-6
            up, down = (loss(parameters | {name: p + s * step.view_as(p)}) for s in (1, -1))
            assert abs((up - down) / 2e-6 - slope.flatten()[i]) < 1e-7, name


@BOTH
@pytest.mark.parametrize("shape", ((), (1,), (2, 3)))
def test_batch_shapes_and_dtypes(kind, shape):
    m = net(kind)
    v = torch.randint(2, (*shape, 5), generator=seeded()).to(f64)
    flat = v.reshape(-1, 5)
    for f in (m.log_prob, m.means, m.fields):
        rows = torch.stack([f(row) for row in flat])
        torch.testing.assert_close(f(v), rows.reshape(f(v).shape), rtol=0, atol=1e-14)
    short = net(kind, dtype=f32).log_prob(v.float())
    assert short.dtype == f32 and short.shape == shape
    torch.testing.assert_close(short.double(), m.log_prob(v), rtol=1e-5, atol=1e-5)


@BOTH
def test_mapped_rows_and_autocast(kind):
    m, S = net(kind), states(5)
    torch.testing.assert_close(vmap(m.log_prob)(S), m.log_prob(S))
    short, v = net(kind, dtype=f32), S.float()
    wanted, drawn = short.log_prob(v), short.sample(4, 3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(short.log_prob(v), wanted) and torch.equal(short.sample(4, 3), drawn)


@pytest.mark.parametrize("dtype", (f32, f64))
@pytest.mark.parametrize("size", (0.0, 40.0, 1e4))
@BOTH
def test_large_parameters_give_numbers(kind, size, dtype):
    m = net(kind, 6, scale=size, dtype=dtype).requires_grad_()
    log_p = m.log_prob(states(6, dtype=dtype))
    assert log_p.isfinite().all() and (log_p <= 0).all()
    if size == 0: assert (log_p + 6 * math.log(2)).abs().max() < 1e-6
    assert all(x.isfinite().all() for x in torch.autograd.grad(log_p.sum(), list(m.parameters())))


@BOTH
def test_one_unit(kind):
    m = net(kind, 1)
    p = m.log_prob(states(1)).exp()
    assert abs(p.sum() - 1) < 1e-15 and m.sample(3, 0).shape == (3, 1)


@pytest.mark.parametrize("D", (15, 16, 17, 33))
def test_pieces_of_the_recursion_fit_together(D):
    m = net("NADE", D, order=torch.randperm(D, generator=seeded()))
    v = torch.randint(2, (4, D), generator=seeded(1)).to(f64)
    for k, d in enumerate(m.order.tolist()):
        before = m.order[:k]
        x = m.b[d] + torch.sigmoid(m.c + v[:, before] @ m.W[before]) @ m.V[d]
        assert (m.fields(v)[:, d] - x).abs().max() < 1e-13


# --- the machine behind it

@pytest.mark.parametrize("visible", ("bernoulli", "spin"))
@pytest.mark.parametrize("order", (None, ORDER))
def test_unrolled_is_the_first_round_of_mean_field(visible, order):
    rbm = machine(5, 3, visible)
    m, S = NADE.unrolled(rbm, order), states(5, visible)
    for k, d in enumerate(m.order.tolist()):
        mask = torch.isin(torch.arange(5), m.order[:k])
        rest = rbm.clamp(S, mask) if k else rbm
        one = rest.visible_mean(rest.hidden_mean(torch.zeros(len(S), 5 - k, dtype=f64)))
        own = (~mask).nonzero()[:, 0].tolist().index(d)
        assert (m.means(S)[:, d] - one[:, own]).abs().max() < 1e-14
    assert m.order.tolist() == (order or [0, 1, 2, 3, 4])
    assert m.W.requires_grad and not m.W.data_ptr() == rbm.W.data_ptr()


def test_unrolled_of_one_hidden_unit_without_weights_is_independent():
    rbm = machine(4, 1)
    rbm.W.zero_()
    assert (NADE.unrolled(rbm).log_prob(states(4)) - rbm.log_prob(states(4))).abs().max() < 1e-14


# --- masks

@pytest.mark.parametrize("hidden", ((), 1, 9, (9, 8), (2, 30, 5)))
@pytest.mark.parametrize("order", (None, ORDER))
@pytest.mark.parametrize("outputs", (1, 3))
def test_masks_cut_every_path_backwards(hidden, order, outputs):
    found, place = masks(5, hidden, order, outputs), check_order(5, order).argsort()
    before = (place[:, None] < place).repeat_interleave(outputs, 1)
    assert torch.equal(found[-1], before) and all(m.dtype == torch.bool for m in found)
    assert all(m.any(1).all() for m in found[1:-1])                       # no hidden unit is unheard
    reach = torch.eye(5)
    for mask in found[:-1]: reach = reach @ mask.float()
    if len(found) > 1: assert not bool(((reach > 0) & ~before).any())
    if hidden == (9, 8): assert torch.equal(reach > 0, before)


@pytest.mark.parametrize("outputs", (1, 2))
def test_a_masked_network_is_an_autoregressive_one_for_real_numbers(outputs):
    network = MaskedMLP(4, (10, 9), outputs, [2, 0, 3, 1], activation=torch.tanh, dtype=f64, generator=0)
    for p in network.parameters(): p.data.normal_(generator=seeded())
    x = torch.randn(3, 4, dtype=f64, generator=seeded(1))
    y = network(x)
    assert y.shape == (3, 4, outputs) and network(x[0]).shape == (4, outputs)
    J = jacrev(network)(x[0])
    place = torch.tensor([2, 0, 3, 1]).argsort()
    later = (place[None, :] >= place[:, None])[:, None].expand(J.shape)
    assert J[later].abs().max() == 0 and (J[~later] != 0).all()
    assert not any(name.startswith("mask") for name in network.state_dict())


def test_a_new_network_says_nearly_nothing():
    network = MaskedMLP(6, 20, 2, generator=0)
    assert network(torch.randn(50, 6, generator=seeded())).abs().max() < 0.5
    assert MADE(6, 20, generator=0).log_prob(states(6, dtype=f32)).std() < 0.5


# --- draws

@BOTH
@pytest.mark.parametrize("unit", ("bernoulli", "spin", "discrete((-1, 0, 2))"))
def test_draws_have_the_frequencies_of_the_law(kind, unit):
    m, S = net(kind, 4, unit, [2, 0, 3, 1]), states(4, unit)
    p, v = m.log_prob(S).exp(), m.sample(20_000, 1)
    share = (v[:, None] == S).all(-1).double().mean(0)
    z = ((share - p) / (p * (1 - p) / 20_000).sqrt())[p > 1e-3]
    assert z.abs().max() < 4.5 and abs(share.sum() - 1) < 1e-12
    assert torch.equal(m.sample(7, 2), Autoregressive.sample(m, 7, 2))


@BOTH
def test_a_draw_has_its_own_stream(kind):
    m = net(kind)
    all_ = m.sample(3, [4, 5, 6])
    assert torch.equal(all_[1:], m.sample(2, [5, 6])) and not torch.equal(all_, m.sample(3, [4, 6, 5]))
    with pytest.raises(ValueError, match="generator must hold 3 streams"): m.sample(3, [1, 2])


# --- files, devices

@BOTH
@pytest.mark.parametrize("unit, order", (("bernoulli", None), ("spin", ORDER)))
def test_saved_and_read_back(kind, unit, order, tmp_path):
    m, S = net(kind, 5, unit, order), states(5, unit)
    m.save(tmp_path / "net")
    other = type(m).load(tmp_path / "net")
    assert torch.equal(other.log_prob(S), m.log_prob(S)) and str(other.unit) == str(m.unit)
    with pytest.raises(ValueError, match="must hold a"):
        (MADE if type(m) is NADE else NADE).load(tmp_path / "net")


@BOTH
@pytest.mark.parametrize("device", DEVICES)
def test_devices(kind, device):
    m = KINDS[kind](5, order=ORDER, device=device, generator=0)
    v = m.sample(4, 1)
    assert v.device.type == torch.device(device).type and m.log_prob(v).isfinite().all()
    moved = KINDS[kind](5, order=ORDER, generator=0).to(device)
    assert moved.log_prob(v).isfinite().all()


# --- bad input

WRONG = {
    "grey pixels": (lambda: net("MADE").log_prob(torch.full((5,), 0.5, dtype=f64)), ValueError,
                    "^v must hold only 0 or 1"),
    "bits for spins": (lambda: net("NADE", 5, "spin").means(torch.zeros(5, dtype=f64)), ValueError,
                       "^v must hold only -1 or"),
    "a wrong width": (lambda: net("NADE").log_prob(states(4)), ValueError, r"^v must have shape"),
    "another dtype": (lambda: net("MADE").log_prob(states(5).float()), TypeError, "^v must be torch"),
    "whole numbers": (lambda: net("MADE").log_prob(states(5).long()), TypeError, "^v must be float"),
    "a unit twice": (lambda: MADE(3, 4, order=[0, 1, 1]), ValueError, "^order must hold each of 0 to"),
    "a unit too few": (lambda: NADE(3, 4, order=[0, 1]), ValueError, "^order must hold each of 0 to"),
    "halves": (lambda: NADE(2, 4, order=[0.0, 1.0]), TypeError, "^order must hold ints"),
    "text as order": (lambda: NADE(2, 4, order="01"), TypeError, "^order must be a sequence of ints"),
    "a number as order": (lambda: masks(2, 4, 1), TypeError, "^order must be a sequence of ints"),
    "no units": (lambda: NADE(0, 4), ValueError, "^dim must be at least 1"),
    "no hidden units": (lambda: NADE(3, 0), ValueError, "^hidden must be at least 1"),
    "two layers": (lambda: NADE(3, (4, 5)), TypeError, "^hidden must be an int"),
    "an empty layer": (lambda: MADE(3, (4, 0)), ValueError, r"^hidden\[1\] must be at least"),
    "text as layer": (lambda: MADE(3, "4"), TypeError, "^hidden must be an int or a sequence"),
    "half a layer": (lambda: MADE(3, 4.5), TypeError, "^hidden must be an int or a sequence"),
    "no outputs": (lambda: MaskedMLP(3, 4, 0), ValueError, "^outputs must be at least 1"),
    "no activation": (lambda: MaskedMLP(3, 4, activation=3), TypeError, "^activation must be"),
    "no masks": (lambda: MaskedLayers([]), TypeError, "^shown must be tensors"),
    "a mask as list": (lambda: MaskedLayers([[1.0]]), TypeError, "^shown must be tensors"),
    "masks that do not meet":
        (lambda: MaskedLayers([torch.ones(2, 3), torch.ones(4, 2), torch.ones(2, 2)]), ValueError,
         r"^shown must fit .* \[\(2, 3\), \(4, 2\), \(2, 2\)\]"),
    "other ends": (lambda: MaskedLayers([torch.ones(2, 3), torch.ones(2, 2)]), ValueError, "^shown"),
    "outputs in halves": (lambda: MaskedLayers([torch.ones(2, 3)], 2), ValueError, "and 2 outputs"),
    "a negative deviation": (lambda: MaskedLayers([torch.ones(2, 3)], last=-1), ValueError, "^last"),
    "real units": (lambda: MADE(3, 4, "gaussian"), ValueError, "^unit must be a number"),
    "colours": (lambda: NADE(3, 4, Potts(3)), ValueError, "^unit must be a number"),
    "no unit": (lambda: NADE(3, 4, "bit"), ValueError, "^unit must be one of"),
    "half precision": (lambda: NADE(3, 4, dtype=torch.float16), TypeError, "^dtype must be"),
    "two streams": (lambda: MADE(3, 4, generator=[1, 2]), TypeError, "^generator must be one stream"),
    "no draws": (lambda: net("NADE").sample(0), ValueError, "^n must be at least 1"),
    "no machine": (lambda: NADE.unrolled(3), TypeError, "^rbm must be"),
    "hidden spins": (lambda: NADE.unrolled(machine(3, 2, hidden="spin")), ValueError,
                     "^rbm must have bernoulli hidden units"),
    "a batch": (lambda: NADE.unrolled(machine(3, 2).tilt(torch.zeros(2, 3, dtype=f64))), ValueError,
                "^rbm"),
}


@pytest.mark.parametrize("call, kind, message", WRONG.values(), ids=WRONG)
def test_wrong_arguments_are_named(call, kind, message):
    with pytest.raises(kind, match=message): call()


@BOTH
def test_parameters_that_are_no_numbers_are_named(kind):
    m = net(kind)
    next(iter(m.parameters())).fill_(math.nan)
    for call in (lambda: m.log_prob(states(5)), lambda: m.means(states(5)), lambda: m.sample(2)):
        with pytest.raises(ValueError, match="finite parameters, got NaN or infinity in"): call()
