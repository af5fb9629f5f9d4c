"""Every solver under every schedule, with every kind of network, dtype, layout and batch: properties
that hold whatever the numbers are.
"""
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch

from rbmdiff.diffusion.deis import deis, rho_rk
from rbmdiff.diffusion.networks import as_eps
from rbmdiff.diffusion.oracle import Mixture
from rbmdiff.diffusion.schedule import (
    Betas,
    Cosine,
    FlowMatching,
    Geometric,
    LinearBeta,
    LinearLogSNR,
    LogSNR,
    SinusoidalBeta,
    SubVP,
    time_grid,
)
from rbmdiff.diffusion.solvers import (
    ancestral,
    ddim,
    euler_maruyama,
    heun,
    predictor_corrector,
    reverse_diffusion,
    runge_kutta,
)

SCHEDULES = {"linear": LinearBeta(), "sinusoidal": SinusoidalBeta(), "sub-vp": SubVP(),
             "cosine": Cosine(), "line": FlowMatching(), "geometric": Geometric(),
             "log-SNR": LinearLogSNR(),
             "own": LogSNR(lambda t: 8 - 14 * t + 2 * torch.cos(5 * t), "sub-vp"),
             "betas": Betas(torch.linspace(1e-3, 0.2, 60))}
SOLVERS = {"euler_maruyama": euler_maruyama, "reverse_diffusion": reverse_diffusion,
           "ancestral": ancestral, "ddim": ddim, "heun": heun, "runge_kutta": runge_kutta,
           "rho_rk": rho_rk, "predictor_corrector": predictor_corrector, "deis": deis}
RANDOM = {"euler_maruyama", "reverse_diffusion", "ancestral", "predictor_corrector"}
KINDS = "eps", "x0", "v", "score"
LAYOUTS = "contiguous", "transposed", "expanded", "strided", "channels last"
cases = st.fixed_dictionaries({
    "solver": st.sampled_from(list(SOLVERS)), "schedule": st.sampled_from(list(SCHEDULES)),
    "kind": st.sampled_from(KINDS), "dtype": st.sampled_from([torch.float32, torch.float64]),
    "layout": st.sampled_from(LAYOUTS), "batch": st.integers(1, 5), "steps": st.integers(1, 9),
    "seed": st.integers(0, 99), "denoise": st.booleans()})
many = settings(max_examples=120, deadline=None)


def law(dtype):
    """Two broad Gaussians in four dimensions."""
    f = {"dtype": dtype}
    means = torch.tensor([[1.0, -0.5, 0.3, 0.2], [-0.8, 0.6, -0.1, 0.4]], **f)
    return Mixture(torch.tensor([0.4, 0.6], **f), means, torch.eye(4, **f).expand(2, 4, 4) * 0.3)


def images(predict):
    """A network of points as one of images [B, 1, 2, 2]."""
    return lambda x, t: predict(x.reshape(len(x), 4), t).reshape(x.shape)


def laid_out(x, layout):
    """The numbers of `x` [B, 1, 2, 2] in another layout of memory."""
    if layout == "transposed": return x.transpose(2, 3).contiguous().transpose(2, 3)
    if layout == "expanded": return x[:1].expand_as(x)
    if layout == "strided": return torch.stack([x, x + 1], -1)[..., 0]
    if layout == "channels last": return x.contiguous(memory_format=torch.channels_last)
    return x


def prepared(case):
    """Network, schedule, starts and grid of a case, and a call of its solver."""
    schedule = SCHEDULES[case["schedule"]]
    top = 0.98 if case["schedule"] == "line" else 1.0
    net = as_eps(images(law(case["dtype"]).predictor(schedule, case["kind"])), schedule, case["kind"])
    x = torch.randn(case["batch"], 1, 2, 2, dtype=case["dtype"],
                    generator=torch.Generator().manual_seed(case["seed"]))
    x = laid_out(x * torch.hypot(schedule.alpha(top), schedule.sigma(top)).to(x), case["layout"])
    grid = time_grid(schedule, case["steps"], 1e-2, t_max=top)

    def run(x, net=net, seeds=None):
        options = {"denoise": case["denoise"]}
        if case["solver"] in RANDOM:
            options["generator"] = seeds or [case["seed"] + 100 * b for b in range(len(x))]
        return SOLVERS[case["solver"]](net, schedule, x, grid, **options)
    return schedule, x, run


@many
@given(cases)
def test_shape_dtype_and_finite(case):
    _, x, run = prepared(case)
    kept = x.clone()
    y = run(x)
    assert y.shape == x.shape and y.dtype == case["dtype"] and bool(y.isfinite().all())
    assert torch.equal(x, kept)


@many
@given(cases)
def test_no_sample_looks_at_another(case):
    _, x, run = prepared(case)
    whole = run(x)
    b = case["seed"] % case["batch"]
    alone = run(x[b:b + 1], seeds=[case["seed"] + 100 * b])
    tolerance = 1e-10 if case["dtype"] == torch.float64 else 1e-3
    torch.testing.assert_close(alone, whole[b:b + 1], rtol=tolerance, atol=tolerance)


@many
@given(cases)
def test_layout_does_not_matter(case):
    _, x, run = prepared(case)
    tolerance = 1e-10 if case["dtype"] == torch.float64 else 1e-3
    torch.testing.assert_close(run(x), run(x.contiguous().clone()), rtol=tolerance, atol=tolerance)


@many
@given(cases, st.sampled_from(KINDS))
def test_kinds_of_prediction_agree(case, other):
    case["dtype"] = torch.float64
    schedule, x, run = prepared(case)
    net = as_eps(images(law(torch.float64).predictor(schedule, other)), schedule, other)
    torch.testing.assert_close(run(x), run(x, net), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("solver", ["ddim", "heun", "deis", "rho_rk"])
@pytest.mark.parametrize("name", SCHEDULES)
def test_solvers_of_the_flow_meet(name, solver):
    """The finer the grid, the closer all end to where the default of DEIS ends on a fine one."""
    schedule, top = SCHEDULES[name], 0.98 if name == "line" else 1.0
    net = law(torch.float64).predictor(schedule)
    x = torch.randn(30, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = x * torch.hypot(schedule.alpha(top), schedule.sigma(top))
    fine = deis(net, schedule, x, time_grid(schedule, 200, 1e-2, t_max=top))
    coarse, half = ((SOLVERS[solver](net, schedule, x, time_grid(schedule, n, 1e-2, t_max=top)) - fine)
                    .abs().max().item() for n in (60, 120))
    assert half < (0.1 if solver == "ddim" else 0.02) and half < 0.6 * coarse + 1e-5


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("kind", ["x0", "v"])
def test_single_precision_follows_double(name, kind):
    schedule = SCHEDULES[name]
    ends = {}
    for dtype in (torch.float32, torch.float64):
        x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
        x = x * torch.hypot(schedule.alpha(1.0), schedule.sigma(1.0)).to(dtype)
        net = as_eps(law(dtype).predictor(schedule, kind), schedule, kind)
        ends[dtype] = deis(net, schedule, x, time_grid(schedule, 12, 1e-2)).double()
    assert (ends[torch.float32] - ends[torch.float64]).abs().max() < 1e-3 * math.sqrt(12)
