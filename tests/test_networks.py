"""Networks: shapes, units, the frame around them, files, training that resumes, and input that must be
refused.
"""
import math
from pathlib import Path
import pickle
from types import SimpleNamespace
from typing import get_args

from hypothesis import given, settings, strategies as st
import pytest
import torch

from rbmdiff.diffusion.ddpm import linear_chain
from rbmdiff.diffusion.deis import deis
from rbmdiff.diffusion.networks import (
    MLP,
    Fourier,
    Labelled,
    Preconditioned,
    UNet,
    as_eps,
    bounded_time,
)
from rbmdiff.diffusion.objective import denoising_loss, denoising_step, native
from rbmdiff.diffusion.oracle import Mixture, gaussian
from rbmdiff.diffusion.schedule import (
    Betas,
    Cosine,
    FlowMatching,
    Geometric,
    LinearBeta,
    LinearLogSNR,
    LogSNR,
    Prediction,
    SinusoidalBeta,
    SubVP,
    convert,
    diffuse,
    time_grid,
)
from rbmdiff.foundations.core import write_tensors
from rbmdiff.foundations.data import swiss_roll
from rbmdiff.foundations.train import TrainState, linear_decay, train

PREDICTIONS = get_args(Prediction)
DIGITS = Path(__file__).parents[1] / "benchmarks/results/digits_unet.safetensors"
SCHEDULES = [LinearBeta(), SinusoidalBeta(), Cosine(), LinearLogSNR(), Geometric(), SubVP()]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, CUDA])]


def gen(seed=0): return torch.Generator().manual_seed(seed)


def awake(net, seed=1):
    """`net` with a last layer that is not zero."""
    with torch.no_grad(): net.last.weight.copy_(torch.randn(net.last.weight.shape, generator=gen(seed)))
    return net.requires_grad_(False)


def mlp(dtype=torch.float32,
        **settings): return awake(MLP(3, 16, 2, dtype=dtype, generator=gen(), **settings))


def unet(dtype=torch.float32, widths=(8, 16),
         channels=1): return awake(UNet(channels, widths, dtype=dtype, generator=gen()))


@given(n=st.integers(1, 64), bandwidth=st.floats(0.1, 20), t=st.floats(0, 1))
@settings(deadline=None, max_examples=40)
def test_features_have_length_one(n, bandwidth, t):
    f = Fourier(n, bandwidth, torch.float64)(torch.tensor([t, 0.0], dtype=torch.float64))
    assert f.shape == (2, 2 * n)
    assert torch.allclose(f.square().sum(-1), torch.ones(2, dtype=torch.float64), atol=1e-12)


@pytest.mark.parametrize("bandwidth", [0.5, 1, 4])
def test_kernel_is_gaussian_and_stationary(bandwidth):
    t, fourier = torch.linspace(0, 1, 51, dtype=torch.float64), Fourier(4096, bandwidth, torch.float64)
    K = fourier(t) @ fourier(t).T
    d = t[:, None] - t
    assert (K - torch.exp(-2 * (math.pi * bandwidth * d) ** 2)).abs().max() < 1e-3
    shifted = fourier(t + 0.3) @ fourier(t + 0.3).T
    assert torch.allclose(K, shifted, atol=1e-10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("channels, widths, size",
                         [(1, (8,), (5, 7)), (1, (8, 16), (8, 8)), (3, (8, 8, 16), (28, 28)),
                          (2, (8, 16), (6, 10))])
def test_unet_shapes(device, dtype, channels, widths, size):
    net = unet(dtype, widths, channels).to(device)
    x = torch.randn(4, channels, *size, dtype=dtype, generator=gen(2)).to(device)
    for t in (0.3, torch.tensor(0.3), torch.full((4,), 0.3, dtype=dtype, device=device)):
        y = net(x, t)
        assert y.shape == x.shape and y.dtype == dtype and y.device == x.device
        assert bool(y.isfinite().all())
        assert torch.allclose(y, net(x, 0.3), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mlp_shapes(device, dtype):
    net, x = mlp(dtype).to(device), torch.randn(5, 3, dtype=dtype, generator=gen(2)).to(device)
    t = torch.linspace(0, 1, 5, dtype=dtype, device=device)
    y = net(x, t)
    assert y.shape == x.shape and y.dtype == dtype and y.device == x.device
    assert torch.allclose(y[2:3], net(x[2:3], 0.5), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make, shape", [(mlp, (9, 3)), (unet, (9, 1, 8, 8))])
def test_result_does_not_depend_on_the_batch(make, shape):
    net, x, t = (
        make(torch.float64),
        torch.randn(shape, dtype=torch.float64, generator=gen(2)),
        torch.linspace(0, 1, 9, dtype=torch.float64),
    )
    alone = torch.cat([net(x[i:i + 1], t[i:i + 1]) for i in range(9)])
    assert torch.allclose(alone, net(x, t), rtol=1e-12, atol=1e-12)
    order = torch.randperm(9, generator=gen(3))
    assert torch.allclose(net(x[order], t[order]), net(x, t)[order], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make, shape", [(mlp, (1, 3)), (unet, (1, 1, 8, 8))])
def test_time_matters_and_gradients_are_right(make, shape):
    net, x = make(torch.float64), torch.randn(shape, dtype=torch.float64,
                                              generator=gen(2)).requires_grad_()
    assert (net(x, 0.2) - net(x, 0.8)).abs().max() > 1e-3
    t = torch.tensor([0.4], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, t: net(x, t).sum(), (x, t))


def test_zero_at_the_start_and_every_weight_learns():
    for net, x in ((MLP(3, 16, 2, generator=gen()), torch.randn(8, 3, generator=gen())),
                   (UNet(2, (16, 32), generator=gen()), torch.randn(8, 2, 8, 8, generator=gen()))):
        assert not net(x, 0.5).any()
        optimizer = torch.optim.Adam(net.parameters(), 0.01)
        for _ in range(3):
            optimizer.zero_grad()
            (net(x, torch.linspace(0, 1, 8)) - x).square().mean().backward()
            assert all(p.grad is not None for p in net.parameters())
            optimizer.step()
        assert all(p.grad.abs().sum() > 0 for p in net.parameters())


def test_seed_names_a_network_and_the_global_stream_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b, c = (
        MLP(2, 8, 1, generator=gen(3)),
        MLP(2, 8, 1, generator=gen(3)),
        MLP(2, 8, 1, generator=gen(4)),
    )
    u = UNet(1, (8,), generator=gen(3))
    assert torch.equal(torch.random.get_rng_state(), before)
    pairs = list(zip(a.parameters(), b.parameters(), c.parameters()))
    assert all(torch.equal(p, q) for p, q, _ in pairs) and not all(
        torch.equal(p, r) for p, _, r in pairs
    )
    assert all(not p.any() for name, p in u.named_parameters() if name.endswith("bias"))


def test_gaussian_before_training():
    for schedule in SCHEDULES:
        model = Preconditioned(MLP(3, 8, 1, dtype=torch.float64), schedule, 0.6)
        exact = gaussian(torch.zeros(3, dtype=torch.float64),
                         0.36 * torch.eye(3, dtype=torch.float64)).predictor(schedule)
        x, t = torch.randn(7, 3, dtype=torch.float64,
                           generator=gen()), torch.linspace(0.01, 1, 7, dtype=torch.float64)
        assert torch.allclose(model(x, t), exact(x, t), atol=1e-10)


@given(log_snr=st.floats(-8, 7), seed=st.integers(0, 5), scale=st.floats(0.1, 10))
@settings(deadline=None, max_examples=30)
def test_one_network_serves_every_schedule(log_snr, seed, scale):
    net = mlp(torch.float64)
    x = torch.randn(4, 3, dtype=torch.float64, generator=gen(seed))
    answers = []
    for schedule in SCHEDULES:
        t = (
            schedule.t_of_log_snr(log_snr)
            if not isinstance(schedule, Geometric)
            else Geometric(1e-3, 1e3).t_of_log_snr(log_snr)
        )
        schedule = schedule if not isinstance(schedule, Geometric) else Geometric(1e-3, 1e3)
        answers.append(Preconditioned(net, schedule, scale)(schedule.alpha(t) * x, t))
    assert all(torch.allclose(a, answers[0], rtol=1e-6, atol=1e-8) for a in answers)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_finite_up_to_the_ends(schedule, dtype):
    model, x = Preconditioned(mlp(dtype), schedule), torch.randn(2, 3, dtype=dtype, generator=gen())
    for t in (0.0, 1.0, 1e-6, torch.tensor([0.0, 1.0], dtype=dtype)):
        assert bool(model(x, t).isfinite().all())


def test_as_eps_of_every_kind():
    target = Mixture(torch.ones(2).double(), torch.tensor([[-1.0, 0.0], [1.0, 0.5]]).double(),
                     0.1 * torch.eye(2).double().expand(2, 2, 2))
    x, t = (
        torch.randn(5, 2, dtype=torch.float64, generator=gen()),
        torch.linspace(0.2, 0.9, 5, dtype=torch.float64),
    )
    for schedule in SCHEDULES:
        truth = target.predictor(schedule)(x, t)
        for kind in PREDICTIONS:
            assert torch.allclose(as_eps(target.predictor(schedule, kind), schedule, kind)(x, t), truth,
                                  atol=1e-9)


def test_as_eps_is_pickled_and_casts():
    again = pickle.loads(pickle.dumps(as_eps(mlp(), LinearBeta(), "x0")))
    x = torch.randn(4, 3)
    assert torch.equal(again(x, 0.5), as_eps(mlp(), LinearBeta(), "x0")(x, 0.5))
    half = as_eps(lambda x, t: (0.5 * x).bfloat16(), LinearBeta(), "x0")
    assert half(x, 0.5).dtype == torch.float32
    single = as_eps(lambda x, t: 0.5 * x, LinearBeta(), "x0")
    assert torch.allclose(half(x, 0.5), single(x, 0.5), atol=0.01)


@pytest.mark.parametrize("schedule", [LinearBeta(), Geometric(), SubVP(), FlowMatching()])
def test_the_velocity_of_a_preconditioned_network(schedule):
    x, t = torch.randn(5, 3, dtype=torch.float64), torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    model = Preconditioned(lambda x, t: x.sin(), schedule, 0.6)
    levels = schedule.alpha(t), schedule.sigma(t)
    v = convert(model(x, t), x, *levels, "eps", "v")
    torch.testing.assert_close(model.native(x, t), v, rtol=1e-10, atol=1e-10)
    if schedule == FlowMatching(): assert model.native(x, 1.0).isfinite().all()


def test_models_compile_as_one_graph():
    x = torch.randn(4, 3)
    for schedule in (LinearBeta(), LogSNR(lambda t: 10 - 20 * t)):
        torch.compiler.reset()
        model = Preconditioned(mlp(), schedule).requires_grad_(False)
        compiled = torch.compile(model, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled(x, torch.tensor(0.5)), model(x, torch.tensor(0.5)))
        one = torch.func.vmap(lambda z: model(z[None], torch.tensor(0.5))[0])
        torch.testing.assert_close(one(x), model(x, torch.tensor(0.5)))


def test_gradients_flow_through_as_eps():
    x = torch.randn(2, 3, dtype=torch.float64, generator=gen()).requires_grad_()
    predict = as_eps(Preconditioned(mlp(torch.float64), LinearBeta(), 0.5), LinearBeta())
    assert torch.autograd.gradcheck(lambda x: predict(x, torch.tensor(0.3, dtype=torch.float64)), (x,))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make, shape", [(mlp, (2, 3)), (unet, (2, 1, 8, 8))])
def test_save_and_load(tmp_path, dtype, make, shape):
    net, path = make(dtype), tmp_path / "net.safetensors"
    net.save(path)
    again, x = type(net).load(path), torch.randn(shape, dtype=dtype, generator=gen(2))
    assert again.settings == net.settings and torch.equal(net(x, 0.4), again(x, 0.4))


def test_files_that_are_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(FileNotFoundError): MLP.load(path)
    mlp().save(path)
    with pytest.raises(ValueError, match="must hold a UNet"): UNet.load(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="damaged"): MLP.load(path)
    write_tensors(path, "MLP", {"first.weight": torch.zeros(2, 2)}, {"settings": {"dim": 2}})
    with pytest.raises(ValueError, match="complete MLP"): MLP.load(path)
    write_tensors(path, "MLP", {"first.weight": torch.zeros(2, 2)}, {"settings": {"dims": 2}})
    with pytest.raises(ValueError, match="complete MLP"): MLP.load(path)


def run(updates=60):
    model = Preconditioned(MLP(2, 32, 2, generator=gen()), LinearLogSNR(), 0.5)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    return TrainState(model, optimizer, gen(1), linear_decay(optimizer, updates), 0.9)


def go(state, epochs):
    for _ in train(state, lambda g: swiss_roll(1000, generator=g), denoising_step(LinearLogSNR()),
                   epochs, 50): pass
    return state


def test_resumed_run_has_the_same_bits(tmp_path):
    path = tmp_path / "run.safetensors"
    whole, half, resumed = go(run(), 3), go(run(), 1), run()
    half.save(path), resumed.load(path)
    go(resumed, 3)
    for a, b in ((whole.model, resumed.model), (whole.averaged_model(), resumed.averaged_model())):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def test_training_beats_the_gaussian():
    schedule, state = LinearLogSNR(), go(run(400), 20)
    x, t = swiss_roll(2000, generator=gen(5)), torch.full((2000,), 0.35)
    with torch.no_grad():
        loss, start = (denoising_loss(m, schedule, x, t,
                                      generator=gen(6)).mean()
                       for m in (state.averaged_model(), run().model))
    assert loss < 0.97 * start


def test_seed_of_a_network_is_one():
    a, b = MLP(2, 8, 1, generator=3), MLP(2, 8, 1, generator=gen(3))
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    with pytest.raises(TypeError, match="generator must be one generator or seed"):
        UNet(1, (8,), generator=[1, 2])


def test_time_of_a_network_is_the_squashed_log_snr():
    for schedule in SCHEDULES:
        t = torch.linspace(0.01, 1, 20, dtype=torch.float64)
        u = bounded_time(schedule.alpha(t), schedule.sigma(t))
        torch.testing.assert_close(u, torch.sigmoid(-schedule.log_snr(t) / 4))


@pytest.mark.skipif(not DIGITS.is_file(), reason="needs the stored network")
def test_stored_network_loads():
    net = UNet.load(DIGITS)
    assert net.settings["channels"] == 1 and net(torch.zeros(2, 1, 8, 8), 0.5).abs().max() > 1e-3


@pytest.mark.parametrize("what, error, match", [
    (lambda: MLP(0), ValueError, "dim"), (lambda: MLP(2, 0), ValueError, "width"),
    (lambda: MLP(2, 8, 0), ValueError, "depth"),
    (lambda: MLP(2.0), TypeError, "dim"), (lambda: MLP(2, bandwidth=0), ValueError, "bandwidth"),
    (lambda: MLP(2, dtype=torch.half), TypeError, "dtype"),
    (lambda: UNet(0), ValueError, "channels"), (lambda: UNet(1, ()), ValueError, "widths"),
    (lambda: UNet(1, (8, 12)), ValueError, "widths"),
    (lambda: UNet(1, (8.0,)), TypeError, "widths"), (lambda: Fourier(0), ValueError, "n must"),
    (lambda: Fourier(4, math.nan), ValueError, "bandwidth"),
    (lambda: mlp()(torch.zeros(2, 4), 0.5), ValueError, "x must have shape"),
    (lambda: mlp()(torch.zeros(3), 0.5), ValueError, "x must have shape"),
    (lambda: mlp()(torch.zeros(2, 3).double(), 0.5), TypeError, "x must be torch.float32"),
    (lambda: mlp()(torch.zeros(2, 3).int(), 0.5), TypeError, "x must"),
    (lambda: mlp()(torch.full((2, 3), math.nan), 0.5), ValueError, "x must be finite"),
    (lambda: mlp()(torch.zeros(2, 3), torch.rand(3)), ValueError, "t must be a scalar"),
    (lambda: mlp()(torch.zeros(2, 3), 1.5), ValueError, "t must lie"),
    (lambda: mlp()(torch.zeros(2, 3), math.nan), ValueError, "t must lie"),
    (lambda: unet()(torch.zeros(2, 1, 7, 8), 0.5), ValueError, "x must have H and W"),
    (lambda: unet()(torch.zeros(2, 2, 8, 8), 0.5), ValueError, "x must have shape"),
    (lambda: unet()(torch.zeros(2, 64), 0.5), ValueError, "x must have shape"),
    (lambda: Preconditioned(mlp(), LinearBeta(), 0.0), ValueError, "scale"),
    (lambda: Preconditioned(mlp(), LinearBeta())(torch.zeros(2, 3), 2.0), ValueError, "t must lie"),
    (lambda: Preconditioned(mlp(), LinearBeta())(torch.zeros(2, 3), torch.rand(3)), ValueError,
     "t must"),
    (lambda: as_eps(mlp(), LinearBeta(), "noise"), ValueError, "kind"),
    (lambda: as_eps(3, LinearBeta()), TypeError, "network"),
    (lambda: as_eps(lambda x, t: x[:1], LinearBeta(), "v")(torch.zeros(2, 3), torch.tensor(0.5)),
     ValueError, "network must return shape"),
    (lambda: Preconditioned(LinearBeta(), mlp()), TypeError, "network must be a function"),
    (lambda: Preconditioned(mlp(), LinearBeta), TypeError, "schedule must be a schedule"),
    (lambda: Preconditioned(lambda x, t: (x, x), LinearBeta())(torch.zeros(2, 3), 0.5), TypeError,
     "network must return a torch.Tensor, got tuple")])
def test_bad_input_is_refused(what, error, match):
    with pytest.raises(error, match=match): what()


def test_input_stays_as_it_is():
    x, x0 = torch.randn(4, 3, generator=gen()), torch.ones(4, 3)
    copy = x.clone()
    Preconditioned(mlp(), SubVP())(x, 0.5), diffuse(SubVP(), x0, 0.5)
    assert torch.equal(x, copy) and bool((x0 == 1).all())


# --- Foreign networks, files, compilation

class Foreign(torch.nn.Module):
    """As networks of diffusers: dropout, an answer with a tensor `sample`, one dtype only."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.drop = torch.nn.Dropout(0.5)

    def forward(self, x, t):
        assert x.dtype == t.dtype == torch.float32
        return SimpleNamespace(sample=self.drop(self.layer(x)) * t.reshape(-1, 1))


@pytest.mark.parametrize("t", [0.5, torch.tensor(0.5), torch.tensor(0.5, dtype=torch.float64),
                               torch.full((4,), 0.5, dtype=torch.float64)], ids=str)
def test_foreign_network_in_the_frame(t):
    x, network = torch.randn(4, 3, generator=gen()), Foreign().eval()
    got = Preconditioned(network, LinearBeta())(x, t)
    assert got.dtype == torch.float32 and got.shape == x.shape
    assert torch.equal(got, Preconditioned(lambda x, t: network(x, t).sample, LinearBeta())(x, t))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("network", [lambda: MLP(3, 8, 2, bandwidth=3, dtype=torch.float64),
                                     lambda: UNet(2, (8, 16), generator=1)])
def test_model_in_one_file(network, schedule, tmp_path):
    model = Preconditioned(network(), schedule, 0.6)
    torch.nn.init.normal_(model.network.last.weight, generator=gen())
    model.save(tmp_path / "model")
    again = Preconditioned.load(tmp_path / "model")
    shape = (2, 3) if isinstance(model.network, MLP) else (2, 2, 8, 8)
    x = torch.randn(shape, generator=gen(), dtype=model.network.last.weight.dtype)
    assert torch.equal(again(x, 0.3), model(x, 0.3)) and type(again.schedule) is type(schedule)
    other = Preconditioned.load(tmp_path / "model", schedule=Geometric(0.1, 3))
    assert torch.equal(other(x, 0.3), Preconditioned(model.network, Geometric(0.1, 3), 0.6)(x, 0.3))
    assert torch.equal(pickle.loads(pickle.dumps(model))(x, 0.3), model(x, 0.3))


@pytest.mark.parametrize("schedule", [
    Betas(torch.linspace(1e-4, 0.02, 1000)), Betas(linear_chain(50)),
    Betas(alphas_cumprod=[0.9, 0.5, 0.1], times=[0.0, 0.2, 0.5, 1.0])], ids=str)
def test_a_schedule_of_betas_is_kept_to_the_bit(tmp_path, schedule):
    Preconditioned(mlp(), schedule).save(tmp_path / "model")
    again = Preconditioned.load(tmp_path / "model").schedule
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert again == schedule and torch.equal(again.log_snr(t[1:]), schedule.log_snr(t[1:]))


def test_own_parts_of_a_model_must_be_given_again(tmp_path):
    own = LogSNR(lambda t: 8 - 16 * t)
    network = torch.nn.Linear(3, 3)
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x, t): return self.inner(x)
    Preconditioned(Wrapped(), own).save(tmp_path / "own")
    with pytest.raises(ValueError, match="network must be given: .* of class Wrapped"):
        Preconditioned.load(tmp_path / "own")
    with pytest.raises(ValueError, match="schedule must be given: .* of class LogSNR"):
        Preconditioned.load(tmp_path / "own", Wrapped())
    with pytest.raises(ValueError, match="does not fit this network"):
        Preconditioned.load(tmp_path / "own", mlp(), own)
    again = Preconditioned.load(tmp_path / "own", Wrapped(), own)
    x = torch.randn(2, 3, generator=gen())
    assert torch.equal(again(x, 0.5), Preconditioned(Wrapped(), own)(x, 0.5))


@pytest.mark.parametrize("network, shape", [(lambda: MLP(3, 8, 2), (4, 3)),
                                            (lambda: UNet(1, (8, 16)), (4, 1, 8, 8))])
def test_networks_are_traced_without_a_break(network, shape):
    net, x, t = network(), torch.randn(shape, generator=gen()), torch.tensor(0.5)
    torch.nn.init.normal_(net.last.weight, generator=gen())
    wanted = net(x, t)
    torch.testing.assert_close(torch.compile(net, fullgraph=True, backend="eager")(x, t), wanted)
    torch.testing.assert_close(torch.export.export(net, (x, t)).module()(x, t), wanted)
    one_by_one = torch.func.vmap(lambda z: net(z[None], t)[0])(x)
    torch.testing.assert_close(one_by_one, wanted)


LABELLED = [(lambda **o: MLP(2, 16, 2, labels=3, generator=0, **o), (4, 2)),
            (lambda **o: UNet(1, (8, 16), labels=3, generator=0, **o), (4, 1, 8, 8))]


def shaken(network):
    """The network with weights that have moved, the last layer's too."""
    for p in network.requires_grad_(False).parameters():
        p.add_(0.2 * torch.randn(p.shape, dtype=p.dtype, generator=gen(p.numel())))
    return network


@pytest.mark.parametrize("make,shape", LABELLED)
def test_a_label_a_row_and_none(make, shape):
    net, x, t = shaken(make(dtype=torch.float64)), torch.randn(shape, dtype=torch.float64), 0.3
    y = torch.tensor([2, -1, 0, 2])
    rows = torch.cat([net(x[i:i + 1], t, int(k)) for i, k in enumerate(y)])
    close = dict(rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(net(x, t, y), rows, **close)
    small = y.clamp(min=0)
    assert torch.equal(net(x, t, small.to(torch.uint8)), net(x, t, small))
    torch.testing.assert_close(net(x, t, -1), net(x, t), **close)
    assert all((net(x, t, k) - net(x, t)).abs().max() > 1e-3 for k in range(3))


@pytest.mark.parametrize("make,shape", LABELLED)
@pytest.mark.parametrize("y,error,match", [
    (3, ValueError, "y must hold labels below 3"), (-2, ValueError, "y must hold labels below 3"),
    (0.0, TypeError, "y must be whole numbers"), (torch.ones(4).bool(), TypeError, "y must be whole"),
    (torch.tensor([0, 1]), ValueError, "y must be a scalar or have shape"),
    (torch.zeros(4, 1, dtype=torch.long), ValueError, "y must be a scalar or have shape")])
def test_labels_that_are_refused(make, shape, y, error, match):
    with pytest.raises(error, match=match): make()(torch.zeros(shape), 0.5, y)


def test_a_network_without_labels_takes_none():
    net, x = MLP(2, 16), torch.zeros(4, 2)
    assert torch.equal(net(x, 0.5, -1), net(x, 0.5))
    with pytest.raises(ValueError, match="y must hold labels below 0"): net(x, 0.5, 0)
    with pytest.raises(ValueError, match="labels must be at least 0"): MLP(2, labels=-1)
    with pytest.raises(TypeError, match="labels must be an int"): UNet(1, labels=2.5)
    with pytest.raises(TypeError, match="network must be a function of x, t and y"): Labelled(3, 0)
    assert MLP(2, 16, generator=4).state_dict().keys() == MLP(2, 16, labels=0).state_dict().keys()


@pytest.mark.parametrize("make,shape", LABELLED)
def test_a_labelled_model_in_one_file_and_in_a_solver(make, shape, tmp_path):
    """What solvers see natively is the velocity, with the label; a file keeps the number of labels."""
    model = Preconditioned(shaken(make(dtype=torch.float64)), FlowMatching(), 0.7)
    model.save(tmp_path / "m.safetensors")
    again = Preconditioned.load(tmp_path / "m.safetensors")
    x = torch.randn(shape, dtype=torch.float64, generator=gen())
    grid = time_grid(model.schedule, 6, 0.02)
    ends = [deis(Labelled(m, y), m.schedule, x, grid) for m in (model, again) for y in (1, 2)]
    assert torch.equal(ends[0], ends[2]) and torch.equal(ends[1], ends[3])
    assert not torch.allclose(ends[0], ends[1])
    told = Labelled(model, torch.tensor([1, 2, 1, 2]))
    mixed = deis(told, model.schedule, x, grid)
    torch.testing.assert_close(mixed[::2], ends[0][::2], rtol=1e-10, atol=1e-10)
    assert torch.equal(told.native(x, 0.5), model.native(x, 0.5, told.y))
    assert native(told, model.schedule) == (told.native, "v")


def test_a_step_with_labels_leaves_some_out():
    """Chances 0, 1 and 0.3: what the model is told, counted; control in the counts themselves."""
    seen = []

    class Told(torch.nn.Linear):
        def forward(self, x, t, y=None):
            seen.append(y)
            return super().forward(x)
    y = torch.arange(1000) % 3
    for chance in (0.0, 1.0, 0.3):
        model = Told(2, 2)
        state = TrainState(model, torch.optim.SGD(model.parameters(), 0.1), 0)
        labels = y.to(torch.uint8)                  # bytes, which have no -1
        denoising_step(LinearBeta(), unlabelled=chance)(state, (torch.zeros(1000, 2), labels))
        left = (seen[-1] == -1).double().mean().item()
        assert abs(left - chance) <= 4 * (chance * (1 - chance) / 1000) ** 0.5
        assert torch.equal(seen[-1][seen[-1] >= 0], y[seen[-1] >= 0])
    denoising_step(LinearBeta())(state, torch.zeros(10, 2))
    assert seen[-1] is None
    with pytest.raises(ValueError, match="data must be x0 or a pair"):
        denoising_step(LinearBeta())(state, (y, y, y))
    with pytest.raises(ValueError, match="unlabelled must be"):
        denoising_step(LinearBeta(), unlabelled=2)


def test_a_foreign_network_is_told_its_labels():
    """Times in thousandths, an object with `.sample`, labels under another name."""
    def foreign(x, t, class_labels):
        return SimpleNamespace(sample=x * t / 1000 + class_labels[:, None])
    told = Labelled(lambda x, t, y: foreign(x, 1000 * t, class_labels=y).sample, torch.tensor([1, 2]))
    x = torch.ones(2, 3)
    assert told(x, 0.5)[:, 0].tolist() == [1.5, 2.5]
