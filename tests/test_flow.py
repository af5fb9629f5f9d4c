"""Normalising flows: steps there and back, determinants, densities, edges, files, and zuko's flows."""
import copy
import math

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
import torch
from torch.func import jacrev, vmap
import zuko

from machines import normal, seeded
from rbmdiff.models.energy import grid
from rbmdiff.models.flow import (
    MOST,
    Coupling,
    Flow,
    Inverse,
    MaskedAutoregressive,
    Planar,
    Radial,
    Residual,
    Step,
    ring_energy,
)

f32, f64 = torch.float32, torch.float64
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=[cuda, pytest.mark.cuda])]
KINDS = {
    "planar": Planar, "radial": Radial,
    "coupling": lambda d, **kw: Coupling(d, (16,), **kw),
    "autoregressive": lambda d, **kw: MaskedAutoregressive(d, (16, 16), list(range(d))[::-1], **kw),
    "linear": lambda d, **kw: MaskedAutoregressive(d, (), **kw),
    "inverse": lambda d, **kw: Inverse(MaskedAutoregressive(d, (16,), **kw)),
    "flow": lambda d, **kw: Flow([Planar(d, **kw), Radial(d, **kw), Flow([Planar(d, **kw)])]),
}


def shaken(step, size=0.3, seed=0):
    """The step with noise on all its parameters, which then ask for no gradient."""
    g = seeded(seed)
    step.requires_grad_(False)
    for p in step.parameters():
        p.add_(size * torch.randn(p.shape, generator=g, dtype=f64).to(p))
    return step


def made(kind, d=3, seed=0, size=0.3, dtype=f64):
    """A shaken step of a kind."""
    return shaken(KINDS[kind](d, generator=seeded(seed), dtype=dtype), size, seed)


def log_dets(step, z):
    """Signs and log-determinants of the whole Jacobian at z [n, d]."""
    return torch.linalg.slogdet(vmap(jacrev(lambda z: step.push(z)[0]))(z))


# --- steps

@pytest.mark.parametrize("d", (1, 2, 5))
@pytest.mark.parametrize("kind", KINDS)
def test_there_and_back(kind, d):
    if kind == "coupling" and d == 1: return
    z = 1.5 * normal(40, d)
    for seed in range(3):
        step = made(kind, d, seed)
        x, log_det = step(z)
        signs, truth = log_dets(step, z)
        assert (signs == 1).all()
        torch.testing.assert_close(log_det, truth, rtol=0, atol=1e-11)
        back, log_back = step.inverse(x)
        torch.testing.assert_close(back, z, rtol=0, atol=1e-9)
        torch.testing.assert_close(log_back, -log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_first_it_is_the_identity(kind):
    z = normal(20, 4)
    x, log_det = KINDS[kind](4, generator=1, dtype=f64)(z)
    torch.testing.assert_close(x, z, rtol=0, atol=1e-14)
    assert log_det.abs().max() < 1e-14


@pytest.mark.parametrize("shape", ((), (1,), (2, 3)))
@pytest.mark.parametrize("kind", KINDS)
def test_batch_shapes(kind, shape):
    step, z = made(kind), normal(*shape, 3)
    for move in (step, step.inverse):
        y, log_det = move(z)
        assert y.shape == z.shape and log_det.shape == shape
        rows = [move(row) for row in z.reshape(-1, 3)]
        torch.testing.assert_close(y.reshape(-1, 3), torch.stack([row[0] for row in rows]))
        torch.testing.assert_close(log_det.reshape(-1), torch.stack([row[1] for row in rows]))


@pytest.mark.parametrize("kind", KINDS)
def test_single_precision(kind):
    z = normal(50, 3)
    step = made(kind)
    low = copy.deepcopy(step).float()
    for move, short in ((step, low), (step.inverse, low.inverse)):
        y, found = move(z), short(z.float())
        assert found[0].dtype == found[1].dtype == f32
        for a, b in zip(y, found): torch.testing.assert_close(a.float(), b, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("kind", KINDS)
def test_devices(kind, device):
    step = KINDS[kind](3, generator=0, device=device)
    x = step(normal(5, 3, dtype=f32).to(device))[0]
    assert x.device.type == step.inverse(x)[1].device.type == device


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    """In the point and in all parameters, of both directions, first and second."""
    step, z = made(kind, 2), normal(3, 2, seed=3)
    values = tuple(p.clone().requires_grad_() for p in step.parameters())
    names = [name for name, _ in step.named_parameters()]
    assert all(z.abs().flatten() > 0.01)
    for method in ("push", "pull"):
        def run(z, *values, method=method):
            numbers = dict(zip(names, values))
            return torch.func.functional_call(Called(step, method),
                                              {f"step.{n}": x for n, x in numbers.items()}, (z,))
        assert torch.autograd.gradcheck(run, (z.clone().requires_grad_(), *values))
        if kind == "planar":
            assert torch.autograd.gradgradcheck(run, (z.clone().requires_grad_(), *values))


class Called(torch.nn.Module):
    """A method of a step as a module."""

    def __init__(self, step, method):
        super().__init__()
        self.step = step
        self.method = method

    def forward(self, y):
        return getattr(self.step, self.method)(y)


@pytest.mark.parametrize("kind", KINDS)
def test_compiled_and_mapped(kind):
    step, z = made(kind), normal(4, 3)
    torch.compiler.reset()
    for move in (step.forward, step.inverse):
        wanted = move(z)
        compiled = torch.compile(move, fullgraph=True, backend="eager")(z)
        mapped = vmap(move)(z)
        for a, b, c in zip(wanted, compiled, mapped):
            torch.testing.assert_close(a, b)
            torch.testing.assert_close(a, c)
    program = torch.export.export(Called(step, "inverse"), (z,))
    torch.testing.assert_close(program.module()(z), step.inverse(z))


# --- planar steps

def planar(u, w, b=0.0, dtype=f64):
    """A step with these raw parameters."""
    step = Planar(len(u), dtype=dtype).requires_grad_(False)
    step.u.copy_(torch.tensor(u))
    step.w.copy_(torch.tensor(w))
    step.b.fill_(b)
    return step


@pytest.mark.parametrize("dtype", (f32, f64))
@pytest.mark.parametrize("along", (-1e4, -200.0, -40.0, -1.0, 0.0, 40.0, 1e4))
def test_determinants_at_the_edges(along, dtype):
    step = planar((along, 3.0), (1.0, 0.0), dtype=dtype)
    z = torch.tensor([[0.0, 0.0], [1e-3, 1.0], [1.0, 2.0], [60.0, 0.0], [-1e4, 0.0]], dtype=dtype)
    z.requires_grad_()
    step.requires_grad_()
    log_det = step(z)[1]
    wanted = along if along <= -40 else math.log(max(along, math.log1p(math.exp(min(along, 50)))))
    torch.testing.assert_close(log_det[0].item(), wanted, rtol=1e-5, atol=1e-5)
    assert log_det[-1] == 0                               # far away it is a shift
    slopes = torch.autograd.grad(log_det.sum(), (z, *step.parameters()))
    assert all(slope.isfinite().all() for slope in slopes)
    slope, = torch.autograd.grad(step(z[:1])[1].sum(), step.u)
    assert slope[0] > 0 or (along > 1e3 and slope[0] >= 0)


def test_the_naive_determinant_is_zero_in_single_precision():
    step = planar((-40.0, 0.0), (1.0, 0.0), dtype=f32)
    bent = torch.nn.functional.softplus(step.w @ step.u) - 1
    assert 1 + bent == 0 and step(torch.zeros(2))[1].exp() > 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from((0.1, 1.0, 10.0, 1e3)))
def test_planar_steps_are_undone_for_all_parameters(seed, size):
    step = planar(*(size * normal(2, 3, seed=seed)).tolist(), 0.0)
    step.b.copy_(size * normal(seed=seed + 1))
    x = 3 * normal(20, 3, seed=seed + 2)
    z, log_det = step.inverse(x)
    assert z.isfinite().all() and not log_det.isnan().any()
    u, bent, _ = step._bent()
    scale = (1 + z.norm(dim=1).max()) * (1 + u.norm() * step.w.norm())   # how the step enlarges rounding
    assert (step(z)[0] - x).abs().max() < 1e-14 * scale
    assert bent >= -1


def test_given_directions():
    for u, w, b in (((0.3, -0.2), (1.0, 2.0), 0.7), ((-0.999, 5.0), (1.0, 0.0), 0.0),
                    ((900.0, 1.0), (1.0, 0.0), -1.0)):
        u, w = torch.tensor(u, dtype=f64), torch.tensor(w, dtype=f64)
        step, z = Planar.of(u, w, b), normal(9, 2)
        wanted = z + u * (z @ w + b).tanh()[:, None]
        torch.testing.assert_close(step(z)[0], wanted, rtol=0, atol=1e-10)
        assert step.u.requires_grad
    near = torch.tensor([-1 + 1e-9, 0.0], dtype=f64)
    log_det = Planar.of(near, torch.tensor([1.0, 0.0], dtype=f64))(torch.zeros(2, dtype=f64))[1]
    torch.testing.assert_close(log_det, (1 + near[0]).log(), rtol=0, atol=1e-12)
    for bent in (-1.0, -3.0):
        with pytest.raises(ValueError, match=r"^u must have w \. u > -1 to be undone, got -"):
            Planar.of(torch.tensor([bent, 0.0]), torch.tensor([1.0, 5.0]))
    with pytest.raises(ValueError, match="^Planar must have w other than 0"):
        Planar.of(torch.ones(2), torch.zeros(2))
    with pytest.raises(ValueError, match="wants a gradient"):
        Planar.of(torch.ones(2, requires_grad=True), torch.ones(2))


@pytest.mark.parametrize("size", (1e-25, 1e25))
def test_no_square_of_w_overflows(size):
    step, deep = (planar((-1.0, 2.0), (size, size), dtype=dtype) for dtype in (f32, f64))
    for found, wanted in zip(step._bent(), deep._bent()):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    assert step._bent()[0].isfinite().all()


def test_admissible_directions_are_moved_too():
    _, bent, along = planar((0.0, 1.0), (1.0, 0.0))._bent()
    assert along == 0 and abs(bent + 0.3069) < 1e-4


# --- radial steps

def test_radial_edges():
    step = made("radial", 3)
    z = torch.stack([step.centre, step.centre + 1e-12, 1e8 * torch.ones(3, dtype=f64)]).requires_grad_()
    x, log_det = step(z)
    back, _ = step.inverse(x)
    torch.testing.assert_close(back, z, rtol=1e-12, atol=1e-12)
    assert torch.equal(x[0], step.centre)
    assert torch.autograd.grad(log_det.sum() + x.sum() + back.sum(), z)[0].isfinite().all()
    strong = made("radial", 2)
    for log_alpha, log_k in ((-12, 12), (12, -12), (-12, -12)):
        strong.log_alpha.fill_(log_alpha)
        strong.log_k.fill_(log_k)
        z = normal(20, 2)
        torch.testing.assert_close(strong.inverse(strong(z)[0])[0], z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("log_alpha, log_k", (
    (80, 80), (-80, -80), (80, 0), (0, 80), (-80, 0), (0, -80), (60, 80)))
def test_no_square_of_a_strength_overflows(log_alpha, log_k):
    step, z = made("radial", dtype=f32), normal(20, 3, dtype=f32)
    step.log_alpha.fill_(log_alpha)
    step.log_k.fill_(log_k)
    deep = copy.deepcopy(step).double()
    for move, wanted in ((step, deep), (step.inverse, deep.inverse)):
        for found, truth in zip(move(z), wanted(z.double())):
            assert found.isfinite().all()
            torch.testing.assert_close(found.double(), truth, rtol=1e-4, atol=1e-4)


def test_radial_is_the_step_of_the_paper():
    step, z = made("radial", 3), normal(20, 3)
    alpha, beta = step.log_alpha.exp(), step.log_k.exp() - step.log_alpha.exp()
    away = z - step.centre
    h = 1 / (alpha + away.norm(dim=1))
    torch.testing.assert_close(step(z)[0], z + beta * h[:, None] * away)
    r = away.norm(dim=1)
    wanted = 2 * torch.log1p(beta * h) + torch.log(1 + beta * h - beta * r * h**2)
    torch.testing.assert_close(step(z)[1], wanted)


# --- coupling and autoregressive steps, against zuko

def copied(ours, theirs):
    """Weights of a network of ours, without its straight ones, in the linear layers of one of zuko's."""
    ours.weights[-1].data.zero_()
    layers = [layer for layer in theirs if hasattr(layer, "weight")]
    assert len(layers) == len(ours.biases)
    for layer, weight, bias in zip(layers, ours.masked(), ours.biases):
        layer.weight.data.copy_(weight.T)
        layer.bias.data.copy_(bias)
        if hasattr(layer, "mask"): layer.mask.fill_(True)


def undone(shift, scale):
    """Zuko's affine map, the other way."""
    return zuko.transforms.MonotonicAffineTransform(shift, scale).inv


@pytest.mark.parametrize("order", ([0, 1, 2, 3], [2, 0, 3, 1]))
def test_autoregressive_steps_are_those_of_zuko(order):
    step = shaken(MaskedAutoregressive(4, (16, 16), order, generator=3, dtype=f64))
    theirs = zuko.flows.MaskedAutoregressiveTransform(
        4, order=torch.argsort(torch.tensor(order)), univariate=undone, hidden_features=(16, 16),
        activation=torch.nn.SiLU).double()
    copied(step.network, theirs.hyper)
    x = normal(30, 4)
    z, log_det = theirs().call_and_ladj(x)
    for a, b in zip(step.inverse(x), (z, log_det)): torch.testing.assert_close(a, b)
    torch.testing.assert_close(step(z)[0], theirs().inv(z))


def test_coupling_steps_are_those_of_zuko():
    kept = torch.tensor([True, False, False, True, False])
    step = shaken(Coupling(5, (16, 16), kept, generator=3, dtype=f64))
    theirs = zuko.flows.GeneralCouplingTransform(
        5, mask=kept, hidden_features=(16, 16), activation=torch.nn.SiLU).double()
    copied(step.network, theirs.hyper)
    z = normal(30, 5)
    for a, b in zip(step(z), theirs().call_and_ladj(z)): torch.testing.assert_close(a, b)
    torch.testing.assert_close(step.inverse(z)[0], theirs().inv(z))


@pytest.mark.parametrize("order", ([2, 0, 3, 1], [0, 1, 2, 3]))
@pytest.mark.parametrize("hidden", ((), (5,), (1, 7), (16, 16), 16))
def test_shifts_and_scales_hear_earlier_numbers_alone(hidden, order):
    step = shaken(MaskedAutoregressive(4, hidden, order, dtype=f64), 1.0)
    J = jacrev(step.network)(normal(4))[order][..., order]                # [4, 2, 4]
    before = torch.ones(4, 4).tril(-1)[:, None].expand(4, 2, 4).bool()
    assert J[~before].abs().max() == 0 and (J[before] != 0).all()


@pytest.mark.parametrize("kind", ("coupling", "autoregressive", "inverse"))
def test_wild_weights_stay_finite(kind):
    step, x = made(kind, 4, size=1e4, dtype=f32), normal(20, 4, dtype=f32)
    _, log_det = step.inverse(x)
    assert log_det.isfinite().all() and log_det.abs().max() <= 4 * MOST


def test_what_is_not_settled_cannot_spoil_what_is():
    step = MaskedAutoregressive(3, (), dtype=f32).requires_grad_(False)
    step.network.weights[0][:, ::2] = 3e38
    x, log_det = step(torch.tensor([1.0, -3e38, 0.0]))     # the third would be infinite for a while
    assert torch.equal(x, torch.tensor([1.0, 0.0, 3e38])) and log_det == 0


def test_the_settings_of_coupling():
    step = Coupling(4, kept=[False, True, True, False])
    assert step.settings == {"dim": 4, "hidden": [64, 64], "kept": [False, True, True, False]}
    for kept in (None, (True, False, True), np.array([True, False, True])):
        assert Coupling(3, kept=kept).settings["kept"] == [True, False, True]
    assert MaskedAutoregressive(2, order=np.array([1, 0])).settings["order"] == [1, 0]


@pytest.mark.parametrize("kind", (Coupling, MaskedAutoregressive))
def test_first_weights_keep_the_size_of_what_they_read(kind):
    step = kind(16, (400,), generator=0, dtype=f64).requires_grad_(False)
    weights, mask = step.network.weights, step.network.mask0
    spread = (weights[0] * mask).square().sum(0)
    assert abs(spread[mask.any(0)].mean() - 2) < 0.1
    assert not weights[1].any() and not weights[2].any()


# --- residual steps

def test_residual_steps():
    A = torch.tensor([[0.3, -0.8], [0.5, 0.2]], dtype=f64)
    step, z = Residual(2, lambda z: (z @ A.T).tanh(), 0.5), normal(2, 5, 2)
    x, log_det = step(z)
    torch.testing.assert_close(log_det.flatten(), log_dets(step, z.reshape(-1, 2))[1])
    back, log_back = step.inverse(x)
    torch.testing.assert_close(back, z, rtol=0, atol=1e-12)
    torch.testing.assert_close(log_back, -log_det)
    with pytest.raises(ValueError, match="^Residual could not undo its step: .* below 5$"):
        Residual(2, lambda z: -2 * z, 5.0).inverse(z)
    with pytest.raises(ValueError, match="wants a gradient"): step.inverse(z.clone().requires_grad_())
    assert not list(step.parameters())
    learned = Residual(2, torch.nn.Linear(2, 2))
    assert len(list(learned.parameters())) == 2


def test_a_field_is_asked_once():
    calls = []
    field = lambda z: (calls.append(1), z.sin())[1]
    Residual(2, field, 0.5)(normal(4, 2))
    assert len(calls) == 1


# --- flows

def test_densities_have_mass_one_and_draws_have_their_density():
    sizes = {"planar": 0.3, "radial": 0.3, "coupling": 0.05, "inverse": 0.05}
    whole = Flow([made(kind, 2, seed, size) for seed, (kind, size) in enumerate(sizes.items())])
    x, cell = grid(-14, 14, 700, 2)
    p = whole.log_prob(x).exp() * cell
    assert abs(p.sum() - 1) < 1e-5
    draws, log_q = whole.rsample(20_000, 3)
    torch.testing.assert_close(whole.log_prob(draws), log_q)
    torch.testing.assert_close(whole.sample(20_000, 3), draws)
    for f in (lambda x: x, lambda x: x.square(), lambda x: x.sin()):
        values = f(draws)
        gap = values.mean(0) - (p[:, None] * f(x)).sum(0)
        z = gap / (values.std(0) / math.sqrt(len(values)))
        assert (z.abs() < 4).all() and (gap.abs() < 0.1).all()


def test_every_draw_has_its_own_stream():
    whole = Flow([made("autoregressive"), made("planar")])
    rows = whole.sample(3, [5, 6, 7])
    torch.testing.assert_close(rows[1:], whole.sample(2, [6, 7]))
    assert torch.equal(whole.sample(4, 1), whole.sample(4, seeded(1)))


def test_a_flow_learns_both_ways():
    """By draws of its own and an energy, and by data."""
    g = seeded(0)
    whole = Flow([Planar(2, generator=g, dtype=f64), Coupling(2, (8,), generator=g, dtype=f64)])
    data = 0.5 * torch.randn(200, 2, generator=g, dtype=f64) + 1
    for loss in (lambda: -whole.log_prob(data).mean(),
                 lambda: (lambda x, log_q: (log_q + ring_energy(x)).mean())(*whole.rsample(200, 1))):
        optimizer, first = torch.optim.Adam(whole.parameters(), 0.05), loss().item()
        for _ in range(30):
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
        assert loss().item() < first - 0.2


class Doubled(Step):
    """A step of one's own."""

    def push(self, z): return 2 * z, torch.full_like(z[..., 0], self.dim * math.log(2))

    def pull(self, x): return x / 2, torch.full_like(x[..., 0], -self.dim * math.log(2))


def test_a_step_of_ones_own():
    whole = Flow([Doubled(3), Planar(3, generator=0), Inverse(Doubled(3))])
    x = normal(5, 3, dtype=f32)
    torch.testing.assert_close(whole.log_prob(x), -(x.square() + math.log(2 * math.pi)).sum(1) / 2)
    assert Flow([Doubled(1)]).sample(4, 0).shape == (4, 1)
    for method in ("push", "pull"):
        with pytest.raises(NotImplementedError): getattr(Step(2), method)(x)


def test_files(tmp_path):
    kinds = "planar", "radial", "coupling", "autoregressive"
    whole = Flow([made(kind, 3, size=0.5) for kind in kinds])
    whole.save(tmp_path / "flow")
    again, x = Flow.load(tmp_path / "flow"), normal(6, 3)
    assert torch.equal(again.log_prob(x), whole.log_prob(x)) and again.log_prob(x).dtype == f64
    for step in whole.steps:
        step.save(tmp_path / "step")
        assert torch.equal(type(step).load(tmp_path / "step")(x)[0], step(x)[0])
    nested = Flow([Inverse(made("autoregressive")), Flow([made("planar"), Inverse(made("flow"))])])
    nested.save(tmp_path / "nested")
    assert torch.equal(Flow.load(tmp_path / "nested").log_prob(x), nested.log_prob(x))
    Flow([Doubled(3), Planar(3)]).save(tmp_path / "own")
    with pytest.raises(ValueError, match="holds no Flow of known steps"):
        Flow.load(tmp_path / "own")
    with pytest.raises(ValueError, match="must hold a Flow"): Flow.load(tmp_path / "step")
    with pytest.raises(FileNotFoundError): Flow.load(tmp_path / "none")
    inverse = Inverse(made("autoregressive"))
    inverse.save(tmp_path / "inverse")
    assert torch.equal(Inverse.load(tmp_path / "inverse")(x)[0], inverse(x)[0])
    Inverse(Doubled(3)).save(tmp_path / "own")
    with pytest.raises(ValueError, match="holds no Inverse of known steps"):
        Inverse.load(tmp_path / "own")
    with pytest.raises(TypeError, match="^Residual cannot be saved, since its field is a function"):
        Residual(2, torch.tanh).save(tmp_path / "residual")
    assert not (tmp_path / "residual").exists()
    masks = {name for name, _ in whole.named_buffers()}
    assert masks and not masks & whole.state_dict().keys()


# --- the ring

def test_ring():
    x = normal(4, 5, 2)
    ring = 0.5 * ((x.norm(dim=-1) - 2) / 0.4) ** 2
    wells = sum(torch.exp(-0.5 * ((x[..., 0] - at) / 0.6) ** 2) for at in (2, -2))
    torch.testing.assert_close(ring_energy(x), ring - wells.log())
    assert ring_energy(torch.tensor([1e4, 0.0])).isfinite()
    at_zero = torch.zeros(2, requires_grad=True)
    assert torch.autograd.grad(ring_energy(at_zero), at_zero)[0].isfinite().all()


# --- bad input

BAD = {
    "no dim": (lambda: Planar(0), ValueError, "^dim must be at least 1"),
    "a broken dim": (lambda: Radial(1.5), TypeError, "^dim must be an int"),
    "half precision": (lambda: Coupling(2, dtype=torch.float16), TypeError, "^dtype must be"),
    "no device": (lambda: MaskedAutoregressive(2, device="cuda:99"), ValueError, "^device cuda:99"),
    "many streams": (lambda: Planar(2, generator=[1, 2]), TypeError, "^generator must be one stream"),
    "one number": (lambda: Coupling(1), ValueError, r"^kept must be bool of shape \[1\]"),
    "all kept": (lambda: Coupling(2, kept=[True, True]), ValueError, "^kept must be bool"),
    "none kept": (lambda: Coupling(2, kept=torch.zeros(2).bool()), ValueError, "^kept must be bool"),
    "too many flags": (lambda: Coupling(2, kept=[True, False, True]), ValueError, "^kept must be bool"),
    "flags as numbers": (lambda: Coupling(2, kept=[1, 0]), ValueError, "^kept must be bool"),
    "a flag as text": (lambda: Coupling(2, kept="ab"), ValueError, "^kept must be bool"),
    "text as width": (lambda: Coupling(2, "64"), TypeError, "^hidden must be an int or a sequence"),
    "no width": (lambda: MaskedAutoregressive(2, (8, 0)), ValueError, r"^hidden\[1\] must be at"),
    "an order twice": (lambda: MaskedAutoregressive(3, order=[0, 1, 1]), ValueError,
                       "^order must hold each of 0 to 2 once, got"),
    "a short order": (lambda: MaskedAutoregressive(3, order=[0, 1]), ValueError, "^order must hold"),
    "an order from one": (lambda: MaskedAutoregressive(2, order=[1, 2]), ValueError, "^order must hold"),
    "real orders": (lambda: MaskedAutoregressive(2, order=[0.0, 1.0]), TypeError, "^order must hold in"),
    "an order as number": (lambda: MaskedAutoregressive(2, order=3), TypeError, "^order must be a s"),
    "no steps": (lambda: Flow([]), ValueError, "^steps must be one or more"),
    "one step": (lambda: Flow(Planar(2)), TypeError, "^steps must be a list of steps, got Planar"),
    "a layer": (lambda: Flow([torch.nn.Linear(2, 2)]), TypeError, "^steps must have push and pull"),
    "two dims": (lambda: Flow([Planar(2), Planar(3)]), ValueError, r"^steps must .* dims \[2, 3\]"),
    "two dtypes": (lambda: Flow([Planar(2), Planar(2, dtype=f64)]), ValueError, "one dtype"),
    "no step": (lambda: Inverse(3), TypeError, "^step must have push and pull, got int"),
    "a number as field": (lambda: Residual(2, 3), TypeError, "^field must be a function"),
    "text as step": (lambda: Residual(2, torch.tanh, "a"), TypeError, "^step must be a number"),
    "a class of steps": (lambda: Flow([Planar]), TypeError, "^steps must have push and pull"),
    "two devices": (lambda: Flow([Planar(2), Planar(2, device="meta")]), ValueError, "cpu.*on meta"),
    "a class": (lambda: Inverse(Planar), TypeError, "^step must have push and pull, got type"),
    "a scalar as order":
        (lambda: MaskedAutoregressive(2, order=torch.tensor(1)), TypeError, "^order must be a seq"),
    "a matrix as order":
        (lambda: MaskedAutoregressive(2, order=torch.eye(2).long()), TypeError, "^order must"),
    "a list from a field": (lambda: Residual(2, lambda z: [0, 0])(torch.ones(2)), TypeError,
                            "^field must return a tensor, got list"),
    "another shape, back": (lambda: Residual(2, lambda z: z.sum(-1)).inverse(torch.ones(2)), ValueError,
                            r"^field must return shape \[2\]"),
    "another dtype of a field": (lambda: Residual(2, lambda z: z.double())(torch.ones(2)), ValueError,
                                 "^field must .* and torch.float64$"),
    "NaN from a field": (lambda: Residual(2, lambda z: z * math.nan)(torch.ones(2)), ValueError,
                         "^z must be where Residual has a value, got NaN for numbers up to 1$"),
    "points too far": (lambda: Radial(2)(torch.full((2,), 1e38)), ValueError, "^z must be where Radial"),
    "another shape": (lambda: Residual(2, lambda z: z.sum(-1))(torch.ones(3, 2)), ValueError,
                      r"^field must return shape \[2\]"),
    "a list": (lambda: Planar(2)([0.0, 0.0]), TypeError, "^z must be a torch.Tensor, got list"),
    "another width": (lambda: Planar(2).inverse(torch.ones(3)), ValueError, "^x must have shape"),
    "another dtype": (lambda: Planar(2)(torch.ones(2, dtype=f64)), TypeError, "^z must be torch"),
    "whole numbers": (lambda: Planar(2)(torch.ones(2).long()), TypeError, "^z must be float32"),
    "NaN": (lambda: Flow([Planar(2)]).log_prob(torch.full((2,), math.nan)), ValueError, "^x must be"),
    "nothing": (lambda: Radial(2)(torch.ones(0, 2)), ValueError, "^z must not be empty"),
    "no draws": (lambda: Flow([Planar(2)]).sample(0), ValueError, "^n must be at least 1"),
    "streams": (lambda: Flow([Planar(2)]).sample(2, [1]), ValueError, "^generator must hold 2 streams"),
    "a point in space": (lambda: ring_energy(torch.ones(3)), ValueError, "^x must have shape"),
    "directions of unlike size":
        (lambda: Planar.of(torch.ones(2), torch.ones(3)), ValueError, "^u and w must have one shape"),
    "a matrix": (lambda: Planar.of(torch.ones(2, 2), torch.ones(2, 2)), ValueError, "^u and w must"),
    "b as text": (lambda: Planar.of(torch.ones(2), torch.ones(2), "0"), TypeError, "^b must be a"),
}


@pytest.mark.parametrize("call, kind, message", BAD.values(), ids=BAD)
def test_bad_input(call, kind, message):
    with pytest.raises(kind, match=message): call()


@pytest.mark.parametrize("kind", KINDS)
def test_a_parameter_that_is_no_number_is_named(kind):
    step = made(kind)
    p = list(step.parameters())[-1]
    p.data.fill_(math.nan)
    z = normal(5, 3)
    for call in (lambda: step(z), lambda: step.inverse(z), step.check_parameters):
        with pytest.raises(ValueError, match="must have finite parameters, got NaN"): call()
    with pytest.raises(ValueError, match="must have finite parameters"): Flow([step]).sample(2, 0)


@pytest.mark.parametrize("size", (-800.0, 800.0))
@pytest.mark.parametrize("name", ("log_alpha", "log_k"))
def test_strengths_that_are_no_numbers_are_named(name, size):
    step = made("radial")
    getattr(step, name).fill_(size)
    with pytest.raises(ValueError, match="^Radial must have 0 < alpha, k < inf, got"):
        Flow([step]).sample(2, 0)
    assert isinstance(Flow([made("radial")]).sample(2, 0), torch.Tensor)


def test_no_direction():
    step = planar((1.0, 2.0), (0.0, 0.0))
    for call in (lambda: step(torch.ones(2, dtype=f64)), lambda: Flow([step]).sample(2, 0),
                 lambda: Flow([step]).log_prob(torch.ones(2, dtype=f64))):
        with pytest.raises(ValueError, match="^Planar must have w other than 0"): call()
