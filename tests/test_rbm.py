"""The restricted Boltzmann machine against enumeration, integration, scikit-learn and bad input."""
import copy
import gc
import math
import pickle

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
import safetensors.torch
from sklearn.neural_network import BernoulliRBM
import torch

from machines import machine, some_states
from rbmdiff.foundations import core
from rbmdiff.foundations.core import read_tensors, write_tensors
from rbmdiff.foundations.units import Bernoulli, Discrete, Poisson, Potts, Spin, states
from rbmdiff.models.rbm import RBM, check_machine, flip_log_ratios

cumulant = Bernoulli().log_norm
F64 = {"dtype": torch.float64}

DISCRETE = [(v, h) for v in ("bernoulli", "spin") for h in ("bernoulli", "spin")]
PAIRS = [*DISCRETE, ("gaussian", "bernoulli"), ("gaussian", "spin")]
pairs = pytest.mark.parametrize("visible, hidden", PAIRS)
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
slow_machine = settings(max_examples=12, deadline=None)


def space(rbm):
    """All visible states, or a fine grid, with the log of the volume of a cell."""
    D = len(rbm.W)
    if not rbm.visible.wide: return states(D, rbm.visible, dtype=rbm.W.dtype), 0.0
    axis = torch.linspace(-20, 20, 801, dtype=rbm.W.dtype)
    return torch.cartesian_prod(*[axis] * D).reshape(-1, D), D * math.log(0.05)


# Exactness

@pairs
def test_everything_follows_from_the_table_of_the_joint_energy(visible, hidden):
    rbm = machine(2 if visible == "gaussian" else 5, 4, visible, hidden)
    (V, log_cell), H = space(rbm), states(4, hidden)
    joint = -rbm.energy(V[:, None], H) + log_cell
    log_Z = torch.logsumexp(joint, (0, 1))
    p = (joint - log_Z).exp()
    given_h, given_v = p / p.sum(0), p[::37] / p[::37].sum(1, keepdim=True)
    close = lambda a, b: torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    close(rbm.log_partition(), log_Z)
    close(rbm.free_energy(V), log_cell - torch.logsumexp(joint, 1))
    close(rbm.hidden_free_energy(H), -torch.logsumexp(joint, 0))
    close(rbm.log_prob(V).exp() * math.exp(log_cell), p.sum(1))
    close(rbm.hidden_mean(V[::37]), given_v @ H)
    close(rbm.visible_mean(H), given_h.T @ V)


@pairs
def test_score_is_the_gradient(visible, hidden):
    rbm, v = machine(6, 4, visible, hidden), some_states((5, 6), "gaussian").requires_grad_()
    slope, = torch.autograd.grad(-rbm.free_energy(v).sum(), v)
    step = 1e-5 * torch.eye(6, dtype=torch.float64)
    central = (rbm.free_energy(v[:, None] - step) - rbm.free_energy(v[:, None] + step)) / 2e-5
    torch.testing.assert_close(rbm.score(v), slope, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(rbm.score(v), central, rtol=1e-6, atol=1e-7)
    assert not torch.allclose(-rbm.score(v), central, rtol=1e-6, atol=1e-7)


@pairs
def test_log_partition_is_differentiable(visible, hidden):
    rbm = machine(4, 3, visible, hidden).requires_grad_()
    for name, p in rbm.named_parameters():
        slope, = torch.autograd.grad(rbm.log_partition(), p)
        k, e = (0,) * p.ndim, 1e-5
        with torch.no_grad():
            p[k] += e
            up = rbm.log_partition()
            p[k] -= 2 * e
            down = rbm.log_partition()
            p[k] += e
        assert slope[k].item() == pytest.approx((up - down).item() / (2 * e), rel=1e-6, abs=1e-9), name


def test_log_partition_in_chunks_is_the_same(monkeypatch):
    # 65536 states, several chunks of 2^22 / 18
    rbm = machine(18, 16, "spin", "bernoulli", scale=0.3)
    H = states(16)
    whole = torch.logsumexp(torch.stack([torch.logsumexp(-rbm.hidden_free_energy(h),
                                                         0) for h in H.split(999)]), 0)
    assert rbm.log_partition().item() == pytest.approx(whole.item(), rel=1e-14)
    # here the visible layer is the smaller one
    wide = machine(4, 9, "bernoulli", "spin")
    whole = torch.logsumexp(-wide.hidden_free_energy(states(9, "spin")), 0)
    assert wide.log_partition().item() == pytest.approx(whole.item(), rel=1e-14)


@pairs
def test_draws_against_exact_means_and_their_control(visible, hidden):
    rbm, n, g = machine(5, 4, visible, hidden), 2**16, torch.Generator().manual_seed(2)
    v, h = some_states((1, 5), visible)[0], some_states((1, 4), hidden)[0]
    cases = (rbm.sample_hidden(v.expand(n, -1), g), rbm.hidden_mean(v),
             rbm.hidden_mean(-v if visible != "bernoulli" else 1 - v)), \
            (rbm.sample_visible(h.expand(n, -1), g), rbm.visible_mean(h),
             rbm.visible_mean(-h if hidden != "bernoulli" else 1 - h))
    for draws, mean, mutant in cases:
        stderr = draws.std(0) / n**0.5
        assert stderr.max() < 0.007
        z, wrong = (((draws.mean(0) - m) / stderr).abs().max() for m in (mean, mutant))
        assert z < 4 < wrong
    if visible == "gaussian":
        spread = cases[1][0].std(0) / rbm.sigma
        # relative standard error 1 / sqrt(2n)
        assert ((spread - 1) * (2 * n) ** 0.5).abs().max() < 4


@pairs
def test_tilt_is_a_reweighted_distribution(visible, hidden):
    rbm = machine(2 if visible == "gaussian" else 5, 3, visible, hidden)
    D, (V, log_cell) = len(rbm.W), space(rbm)
    field = torch.randn(4, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    truth = torch.log_softmax(rbm.log_prob(V)[:, None] + V @ field.T, 0) - log_cell
    batch = rbm.tilt(field).log_prob(V[:, None])
    torch.testing.assert_close(batch, truth, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(rbm.tilt(-field).log_prob(V[:, None]), truth, rtol=1e-9, atol=1e-9)
    single = torch.stack([rbm.tilt(f).log_prob(V) for f in field], 1)
    torch.testing.assert_close(batch, single, rtol=1e-12, atol=1e-12)
    assert rbm.tilt(field).log_partition().shape == (4,)
    assert rbm.tilt(field[0]).log_partition().shape == ()


@pairs
def test_tilts_add_up_and_share_their_weights(visible, hidden):
    rbm = machine(4, 3, visible, hidden).requires_grad_()
    f, k = some_states((2, 4), "gaussian")
    twice = rbm.tilt(f).tilt(k)
    torch.testing.assert_close(twice.b, rbm.tilt(f + k).b, rtol=1e-14, atol=1e-14)
    assert twice.W is rbm.W and twice.c is rbm.c and type(twice) is RBM
    slope, = torch.autograd.grad(twice.free_energy(some_states((3, 4), visible)).sum(), rbm.b)
    assert slope.abs().sum() > 0


def test_limits():
    rbm = machine(6, 4)
    rbm.W.zero_()
    independent = cumulant(rbm.b).sum() + cumulant(rbm.c).sum()
    assert rbm.log_partition().item() == pytest.approx(independent.item(), rel=1e-14)
    for visible, hidden in PAIRS:
        for dtype in (torch.float32, torch.float64):
            big = machine(6, 4, visible, hidden, scale=1e4, dtype=dtype)
            v = some_states((8, 6), visible, dtype=dtype)
            h = big.hidden_mean(v)
            for x in (big.free_energy(v), big.log_partition(), big.log_prob(v), big.score(v), h,
                      big.visible_mean(h), big.sample_visible(h)):
                assert x.isfinite().all() and x.dtype == dtype


# Shapes and batches

@pairs
@slow_machine
@given(batch=st.lists(st.integers(1, 3), max_size=3), D=st.integers(1, 5), H=st.integers(1, 5),
       double=st.booleans())
def test_shapes(visible, hidden, batch, D, H, double):
    dtype = torch.float64 if double else torch.float32
    rbm = machine(D, H, visible, hidden, dtype=dtype)
    v = some_states((math.prod(batch), D), visible, dtype=dtype).reshape(*batch, D)
    h = some_states((math.prod(batch), H), hidden, dtype=dtype).reshape(*batch, H)
    for x in (rbm.energy(v, h), rbm.free_energy(v), rbm.hidden_free_energy(h), rbm.log_prob(v)):
        assert x.shape == tuple(batch) and x.dtype == dtype
    for x in (rbm.visible_mean(h), rbm.sample_visible(h), rbm.score(v)):
        assert x.shape == v.shape and x.dtype == dtype
    for x in (rbm.hidden_mean(v), rbm.sample_hidden(v)): assert x.shape == h.shape and x.dtype == dtype


@pairs
@slow_machine
@given(n=st.integers(2, 70), row=st.integers(0, 1000), double=st.booleans(), seed=st.integers(0, 99))
def test_a_result_does_not_depend_on_the_rest_of_the_batch(visible, hidden, n, row, double, seed):
    """Matrix products of different heights may sum in another order: equal to rounding of 16 terms."""
    dtype, row = torch.float64 if double else torch.float32, row % n
    rbm = machine(16, 8, visible, hidden, seed, dtype=dtype)
    v = some_states((n, 16), visible, seed, dtype=dtype)
    h = some_states((n, 8), hidden, seed, dtype=dtype)
    tol = dict(rtol=0, atol=2e-13 if double else 1e-4)
    for f, x in ((rbm.free_energy, v), (rbm.log_prob, v), (rbm.score, v), (rbm.hidden_mean, v),
                 (rbm.visible_mean, h), (rbm.hidden_free_energy, h)):
        torch.testing.assert_close(f(x)[row], f(x[row]), **tol)
    torch.testing.assert_close(rbm.energy(v, h)[row], rbm.energy(v[row], h[row]), **tol)
    field = 0.1 * torch.ones(n, 16, dtype=dtype) * torch.arange(n, dtype=dtype)[:, None] / n
    torch.testing.assert_close(rbm.tilt(field).log_prob(v)[row], rbm.tilt(field[row]).log_prob(v[row]),
                               **tol)


def test_float32_agrees_with_float64():
    for visible, hidden in PAIRS:
        rbm, v = machine(16, 8, visible, hidden), some_states((20, 16), visible)
        exact = rbm.log_prob(v)
        torch.testing.assert_close(rbm.float().log_prob(v.float()).double(), exact, rtol=1e-5, atol=1e-4)


def test_a_new_machine_is_nearly_blank_and_follows_its_generator():
    a, b = (RBM(50, 40, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(a.W, b.W) and abs(a.W.std().item() / 0.01 - 1) < 0.1 and not a.b.any()
    assert not a.c.any()
    assert [name for name, _ in a.named_parameters()] == ["W", "b", "c"]
    assert (RBM(3, 2, "gaussian").sigma == 1).all()


@pytest.mark.cuda
@cuda
@pairs
def test_cuda_agrees_with_the_cpu(visible, hidden):
    rbm, v = machine(8, 6, visible, hidden), some_states((10, 8), visible)
    on_cpu = rbm.log_prob(v), rbm.score(v), rbm.tilt(v).log_partition()
    rbm = rbm.cuda()
    for a, b in zip(on_cpu,
                    (rbm.log_prob(v.cuda()), rbm.score(v.cuda()), rbm.tilt(v.cuda()).log_partition())):
        torch.testing.assert_close(a, b.cpu(), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="v must be on cuda:0, got cpu"): rbm.free_energy(v)
    h = rbm.sample_hidden(v.cuda(), torch.Generator("cuda").manual_seed(0))
    assert rbm.sample_visible(h).is_cuda


# scikit-learn

@pytest.fixture(scope="module")
def both():
    """One machine, as ours and as scikit-learn's."""
    ours = machine(6, 4, scale=0.8)
    theirs = BernoulliRBM(n_components=4, learning_rate=1.0, random_state=0)
    theirs.components_ = ours.W.T.numpy().copy()
    theirs.intercept_hidden_, theirs.intercept_visible_ = ours.c.numpy().copy(), ours.b.numpy().copy()
    theirs._n_features_out, theirs.n_features_in_ = 4, 6
    return ours, theirs


def test_sklearn_free_energy_and_conditionals(both):
    ours, theirs = both
    V = states(6)
    np.testing.assert_allclose(theirs._free_energy(V.numpy()), ours.free_energy(V), rtol=1e-13,
                               atol=1e-13)
    np.testing.assert_allclose(theirs._mean_hiddens(V.numpy()), ours.hidden_mean(V), rtol=1e-13,
                               atol=1e-15)
    np.testing.assert_allclose(theirs.transform(V.numpy()), ours.hidden_mean(V), rtol=1e-13, atol=1e-15)


def test_sklearn_pseudo_likelihood(both):
    """score_samples flips a random bit a row: over all flips, its mean follows from our free energy."""
    ours, theirs = both
    v = states(6)[21]
    flips = torch.cat([v[None], (v - torch.eye(6, dtype=torch.float64)).abs()])
    F = ours.free_energy(flips)
    # D log sigmoid(F(flipped) - F(v)), one for each bit
    values = 6 * -cumulant(-(F[1:] - F[0]))
    draws = torch.tensor(theirs.score_samples(v.expand(20000, -1).numpy()))
    assert (draws[:, None] - values).abs().min(1).values.max() < 1e-9
    stderr = draws.std() / 20000**0.5
    z, wrong = (abs((draws.mean() - truth) / stderr) for truth in (values.mean(), -values.mean()))
    assert z < 4 < wrong


def exact_step(ours, v):
    """E[v', 1] outer [E[h|v'], 1] after one Gibbs step from `v`, by enumeration."""
    V, H = states(6), states(4)
    p_h = torch.exp(H @ (ours.c + v @ ours.W) - cumulant(ours.c + v @ ours.W).sum())
    y = ours.b + H @ ours.W.T
    p_v = p_h @ torch.exp(y @ V.T - cumulant(y).sum(1, keepdim=True))
    return p_v, V


def test_sklearn_gibbs_step(both):
    ours, theirs = both
    v, n = states(6)[21], 40000
    p, _ = exact_step(ours, v)
    theirs.random_state_ = np.random.RandomState(0)
    batch = v.expand(n, -1)
    from_theirs = torch.tensor(theirs.gibbs(batch.numpy())).double()
    g = torch.Generator().manual_seed(0)
    from_ours = ours.sample_visible(ours.sample_hidden(batch, g), g)
    control = ours.sample_visible(ours.sample_hidden(1 - batch, g), g)
    index = lambda x: (x.long() @ 2 ** torch.arange(6)).bincount(minlength=64)
    # 63 degrees of freedom: 63 ± 11
    chi2 = lambda x: ((index(x) - n * p) ** 2 / (n * p)).sum().item()
    assert (n * p).min() > 1 and chi2(from_theirs) < 63 + 4 * 126**0.5
    assert chi2(from_ours) < 63 + 4 * 126**0.5 < chi2(control)


def test_sklearn_training_step_in_expectation(both):
    """One update from chains in p(h | v): statistics of the data minus those after a Gibbs step."""
    ours, theirs = both
    v, n = states(6)[21], 40000
    p, V = exact_step(ours, v)
    h = ours.hidden_mean(V)
    expected = torch.outer(v, ours.hidden_mean(v)) - V.T @ (p[:, None] * h)
    variance = (V**2).T @ (p[:, None] * h**2) - (V.T @ (p[:, None] * h)) ** 2
    stderr = (variance / n).sqrt()
    theirs.h_samples_ = theirs._sample_hiddens(v.expand(n, -1).numpy(), np.random.RandomState(1))
    before = theirs.components_.copy()
    theirs._fit(v.expand(n, -1).numpy(), np.random.RandomState(2))
    update = torch.tensor(theirs.components_ - before).T
    theirs.components_ = before
    assert stderr.max() < 0.003
    assert ((update - expected) / stderr).abs().max() < 4 < ((update + expected) / stderr).abs().max()


# Files

@pairs
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_save_and_load(tmp_path, visible, hidden, dtype):
    rbm = machine(5, 3, visible, hidden, dtype=dtype)
    rbm.save(tmp_path / "rbm.safetensors")
    again = RBM.load(tmp_path / "rbm.safetensors")
    assert (str(again.visible), str(again.hidden)) == (visible, hidden) and type(again) is RBM
    numbers = zip(rbm.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) and a.dtype == dtype for a, b in numbers)
    rbm.tilt(rbm.b).save(tmp_path / "tilted.safetensors")
    assert torch.equal(RBM.load(tmp_path / "tilted.safetensors").b, rbm.tilt(rbm.b).b)


def test_a_batch_of_machines_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="a batch of 3 tilted ones"):
        machine(4, 2).tilt(torch.zeros(3, 4, dtype=torch.float64)).save(tmp_path / "x")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("change", (
    lambda t, m: t.pop("b"), lambda t, m: t.pop("W"), lambda t, m: t.update(b=torch.zeros(9)),
    lambda t, m: t.update(extra=torch.zeros(1)),
    lambda t, m: t.update(W=torch.zeros(5)), lambda t, m: t.update(W=torch.zeros(2, 3, 4)),
    lambda t, m: t.update(W=torch.zeros(0, 3)),
    lambda t, m: m["settings"].pop("n_visible"), lambda t, m: m["settings"].update(visible="relo"),
    lambda t, m: m["settings"].update(hidden="potts(2)"),
    lambda t, m: m["settings"].update(visible=7), lambda t, m: m["settings"].update(visible="gaussian"),
    lambda t, m: m.pop("settings"), lambda t, m: t.update(W=torch.zeros(5, 3, dtype=torch.int64))))
def test_incomplete_files_are_refused(tmp_path, change):
    path = tmp_path / "rbm.safetensors"
    machine(5, 3).save(path)
    tensors, meta = read_tensors(path, "RBM")
    meta.pop("kind")
    change(tensors, meta)
    write_tensors(path, "RBM", tensors, meta)
    with pytest.raises(ValueError, match=r"path: .* does not hold a complete RBM"): RBM.load(path)


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "rbm.safetensors"
    machine(5, 3).save(path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[:40], b"", b"PK\x03\x04" + whole):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="damaged or no safetensors"): RBM.load(path)
    safetensors.torch.save_file({"W": torch.zeros(2, 2)}, path)
    with pytest.raises(ValueError, match="must hold a RBM of rbmdiff, it holds nothing of rbmdiff's"):
        RBM.load(path)
    with pytest.raises(FileNotFoundError): RBM.load(tmp_path / "absent")
    with pytest.raises((FileNotFoundError, OSError)):
        machine(5, 3).save(tmp_path / "no" / "folder" / "x")


# Bad input

@pytest.mark.parametrize("args, kwargs, kind, match", (
    ((0, 3), {}, ValueError, "n_visible must be at least 1, got 0"),
    ((4, 0), {}, ValueError, "n_hidden must be at least 1, got 0"),
    ((4, -1), {}, ValueError, "n_hidden"), ((4.0, 3), {}, TypeError, "n_visible must be an int"),
    ((4, True), {}, TypeError, "n_hidden must be an int"),
    ((4, "3"), {}, TypeError, "n_hidden must be an int"),
    ((4, 3, "relo"), {}, ValueError, "visible must be one of 'bernoulli', 'spin', .* got 'relo'"),
    ((4, 3, "spin", "Gaussian"), {}, ValueError, "hidden must be one of 'bernoulli', 'spin'"),
    ((4, 3, None), {}, TypeError, "visible must be"),
    ((4, 3, "potts(3)"), {}, ValueError, "n_visible must be a multiple of 3"),
    ((4, 3, "spin", Spin), {}, TypeError, "hidden must be a unit, got the class Spin"),
    ((4, 3), {"dtype": torch.int64}, TypeError, "dtype must be"),
    ((4, 3), {"dtype": torch.float16}, TypeError, "dtype must be"),
    ((4, 3), {"dtype": torch.complex64}, TypeError, "dtype must be")))
def test_bad_machines(args, kwargs, kind, match):
    with pytest.raises(kind, match=match): RBM(*args, **kwargs)


METHODS = {"free_energy": ("v", 4), "log_prob": ("v", 4), "score": ("v", 4), "hidden_mean": ("v", 4),
           "sample_hidden": ("v", 4), "tilt": ("field", 4),
           "visible_mean": ("h", 3), "sample_visible": ("h", 3), "hidden_free_energy": ("h", 3)}
BAD = {"wrong width": (lambda w: torch.zeros(2, w + 1), ValueError, "have shape"),
       "rank 0": (lambda w: torch.tensor(1.0), ValueError, "have shape"),
       "int": (lambda w: torch.zeros(2, w, dtype=torch.int64), TypeError, "float32 or float64"),
       "bool": (lambda w: torch.zeros(2, w) > 0, TypeError, "float32 or"),
       "half": (lambda w: torch.zeros(2, w).half(), TypeError, "float32 or"),
       "bfloat16": (lambda w: torch.zeros(2, w).bfloat16(), TypeError, "float32 or"),
       "complex": (lambda w: torch.zeros(2, w) * 1j, TypeError, "float32 or"),
       "double": (lambda w: torch.zeros(2, w).double(), TypeError, "like the parameters"),
       "nan": (lambda w: torch.full((2, w), math.nan), ValueError, "finite"),
       "inf": (lambda w: torch.full((2, w), math.inf), ValueError, "finite"),
       "empty batch": (lambda w: torch.zeros(0, w), ValueError, "empty"),
       "array": (lambda w: np.zeros((2, w), dtype=np.float32), TypeError, "torch.Tensor"),
       "device": (lambda w: torch.zeros(2, w, device="meta"), ValueError, "be on cpu, got meta")}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("method", METHODS)
def test_bad_tensors_are_named(method, bad):
    name, width = METHODS[method]
    make, kind, match = BAD[bad]
    with pytest.raises(kind, match=f"^{name} must .*{match}"): getattr(RBM(4, 3), method)(make(width))


@pytest.mark.parametrize("bad", BAD)
def test_bad_tensors_are_named_in_the_energy(bad):
    make, kind, _ = BAD[bad]
    with pytest.raises(kind, match=r"^v must"): RBM(4, 3).energy(make(4), torch.zeros(2, 3))
    with pytest.raises(kind, match=r"^h must"): RBM(4, 3).energy(torch.zeros(2, 4), make(3))


@pytest.mark.parametrize("visible, bad",
                         (("bernoulli", 0.3), ("bernoulli", -1.0), ("spin", 0.0), ("spin", 0.5)))
def test_log_prob_wants_states(visible, bad):
    v = torch.ones(3, 4)
    v[1, 2] = bad
    with pytest.raises(ValueError, match=f"v must hold only .* \\({visible} units\\)"):
        RBM(4, 3, visible).log_prob(v)


@pytest.mark.parametrize("shape", ((2, 3, 4), (4, 1), ()))
def test_tilt_wants_a_vector_or_a_batch(shape):
    with pytest.raises(ValueError, match=r"^field must have shape"): RBM(4, 3).tilt(torch.zeros(shape))


def test_enumeration_has_a_limit():
    for rbm in (RBM(30, 26), RBM(784, 500), RBM(3, 26, "gaussian")):
        with pytest.raises(ValueError, match=r"at most 25 units .* learning.partition.ais"):
            rbm.log_partition()
        with pytest.raises(ValueError, match="at most 25 units"):
            rbm.log_prob(torch.zeros(1, len(rbm.W)))


@pytest.mark.parametrize("method, name, width",
                         (("free_energy", "v", 4), ("log_prob", "v", 4), ("score", "v", 4),
                          ("visible_mean", "h", 3), ("sample_visible", "h", 3)))
def test_a_batch_of_machines_names_a_batch_that_does_not_fit(method, name, width):
    tilted = RBM(4, 3).tilt(torch.zeros(5, 4))
    with pytest.raises(ValueError, match=f"^{name} must"): getattr(tilted, method)(torch.zeros(2, width))


def test_energy_names_batches_that_do_not_fit():
    with pytest.raises(ValueError, match=r"^(v|h) must"):
        RBM(4, 3).energy(torch.zeros(5, 4), torch.zeros(2, 3))


@pytest.mark.parametrize("bad", (0.0, -1.0, math.nan, math.inf, [1.0, 1.0, 0.0, 1.0]))
def test_widths_that_are_not_positive(bad):
    rbm = RBM(4, 3, "gaussian")
    with pytest.raises(ValueError, match=r"^rbm.sigma must be positive and finite"): rbm.sigma = bad
    with pytest.raises(ValueError, match="spin units have no width"): RBM(4, 3, "spin").sigma = 1.0
    assert (rbm.sigma == 1).all()


def test_widths_are_assigned_and_no_step_makes_them_negative():
    rbm = RBM(4, 3, "gaussian", dtype=torch.float64)
    rbm.sigma = torch.tensor([0.1, 1.0, 2.0, 5.0])
    torch.testing.assert_close(rbm.sigma.detach(), torch.tensor([0.1, 1.0, 2.0, 5.0]).double(),
                               rtol=1e-7, atol=0)
    rbm.free_energy(torch.ones(2, 4, dtype=torch.float64)).sum().backward()
    assert rbm.log_sigma.grad.abs().min() > 0
    assert [n for n, _ in rbm.named_parameters()] == ["W", "b", "c", "log_sigma"]
    torch.optim.SGD(rbm.parameters(), lr=10.0).step()
    assert (rbm.sigma > 0).all()


# What a machine becomes

def test_a_subclass_keeps_its_type_and_its_methods(tmp_path):
    class Tagged(RBM):
        """A machine with a note and a method of its own."""

        def twice(self, v):
            return 2 * self.free_energy(v)

    rbm, v = Tagged(4, 3, dtype=torch.float64), some_states((2, 4))
    rbm.note = "mine"
    mask = torch.tensor([True, False, False, False])
    for other in (rbm.tilt(v[0]), rbm.at(0.5), rbm.clamp(v[0], mask),
                  copy.deepcopy(rbm.tilt(rbm.b * 2))):
        assert type(other) is Tagged and other.note == "mine"
    assert rbm.tilt(v[0]).twice(v).shape == (2,)
    rbm.save(tmp_path / "tagged")
    assert type(Tagged.load(tmp_path / "tagged")) is Tagged


def test_a_copy_of_a_tilted_machine_owns_its_numbers():
    rbm = machine(4, 3).requires_grad_()
    tilted = rbm.tilt(2 * rbm.b)
    again = copy.deepcopy(tilted)
    assert torch.equal(again.b, tilted.b) and again.W is not rbm.W and torch.equal(again.W, rbm.W)
    with torch.no_grad(): rbm.W.zero_()
    assert again.W.any() and not tilted.W.any()


def test_what_is_printed():
    assert repr(RBM(6, 4, Potts(3), "spin")) == "RBM(6 potts(3) x 4 spin)"
    assert "a batch of 5" in repr(RBM(4, 3).tilt(torch.zeros(5, 4)))


ANY = [("bernoulli", "spin"), (Discrete((-1.0, 0.0, 1.0), 0.5), "bernoulli"), (Potts(3), "spin"),
       ("spin", Discrete((0.0, 1.0, 2.0), 0.3))]


@pytest.mark.parametrize("visible, hidden", ANY, ids=str)
@pytest.mark.parametrize("beta", (0.3, 2.0, np.float64(1.0)))
def test_temperature_scales_all_energies(visible, hidden, beta):
    rbm = machine(6, 3, visible, hidden)
    V, S = states(6, rbm.visible), states(3, rbm.hidden)
    hot = rbm.at(beta)
    torch.testing.assert_close(hot.energy(V[:, None], S), beta * rbm.energy(V[:, None], S), rtol=1e-12,
                               atol=1e-12)


@pytest.mark.parametrize("hidden", ("bernoulli", "spin"))
def test_temperature_of_a_machine_of_reals(hidden):
    rbm, v = machine(3, 4, "gaussian", hidden), some_states((5, 3), "gaussian")
    S = states(4, rbm.hidden)
    torch.testing.assert_close(rbm.at(0.4).energy(v[:, None], S) - 0.4 * rbm.energy(v[:, None], S),
                               torch.zeros(5, 16).double(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta, kind",
                         ((0, ValueError), (-1.0, ValueError), (math.nan, ValueError), ("1", TypeError),
                          (None, TypeError)))
def test_bad_temperatures(beta, kind):
    with pytest.raises(kind, match=r"^beta must"): RBM(4, 3).at(beta)


def test_machines_without_a_temperature():
    for rbm, match in ((RBM(4, 3, "gaussian", "gaussian"), "hidden units without a width"),
                       (RBM(4, 3, "poisson"), "number of ways"),
                       (RBM(4, 3, "binomial(3)"), "number of ways")):
        with pytest.raises(ValueError, match=match): rbm.at(0.5)


@pytest.mark.parametrize("visible, hidden", (*ANY, ("gaussian", "bernoulli")), ids=str)
def test_a_clamped_machine_is_a_conditional(visible, hidden):
    rbm = machine(6, 3, visible, hidden)
    mask = torch.tensor([False] * 3 + [True] * 3)
    if rbm.visible.wide:
        v, free = some_states((4, 6), "gaussian"), some_states((7, 3), "gaussian", seed=5)
    else:
        v, free = states(6, rbm.visible)[[1, -1]], states(3, rbm.visible)
    joint = torch.stack([-rbm.free_energy(torch.cat([free, row[mask].expand(len(free), -1)],
                                                    1)) for row in v], 1)
    ours = rbm.clamp(v, mask).log_prob(free[:, None])
    gap = ours - joint
    # a constant a row: normalisation
    torch.testing.assert_close(gap, gap[:1].expand_as(gap), rtol=0, atol=1e-11)
    if not rbm.visible.wide: torch.testing.assert_close(ours.logsumexp(0), torch.zeros(len(v)).double(),
                                                        rtol=0, atol=1e-12)
    torch.testing.assert_close(rbm.clamp(v[1], mask).log_prob(free), ours[:, 1], rtol=1e-12, atol=1e-12)
    assert (rbm.clamp(v[0], mask).log_prob(free) - ours[:, 1]).abs().max() > 1e-3
    assert rbm.clamp(v, mask).score(free[:1].expand(len(v), -1)).shape == (len(v), 3)


@pytest.mark.parametrize("v, mask, match", (
    (torch.zeros(4), [True] * 4, "mask must clamp some"),
    (torch.zeros(4), [False] * 4, "mask must clamp some"),
    (torch.zeros(4), [True] * 3, "mask must be a bool"),
    (torch.zeros(4), [1, 0, 0, 0], "mask must be a bool"),
    (torch.zeros(2, 2, 4), [True, False, False, False], "v must have shape"),
    (torch.full((4,), 0.5), [True, False, False, False], "v must hold only 0 or 1"),
    (torch.zeros(3), [True, False, False, False], "v must have shape")))
def test_bad_clamps(v, mask, match):
    with pytest.raises(ValueError, match=match): RBM(4, 3).clamp(v, torch.tensor(mask))


def test_a_clamp_does_not_cut_a_unit():
    v = torch.tensor([1.0, 0, 0, 0, 1, 0])
    with pytest.raises(ValueError, match="mask must not cut a potts"):
        RBM(6, 3, Potts(3)).clamp(v, torch.tensor([True, True, False] + [False] * 3))


@pytest.mark.parametrize("D, H, visible, hidden",
                         ((4, 3, "bernoulli", "spin"), (3, 5, "spin", "bernoulli"),
                          (6, 4, Potts(3), "bernoulli"),
                                                   (3, 2, "bernoulli", "gaussian"),
                          (4, 3, Discrete((-1.0, 0.0, 1.0)), "relu")), ids=str)
def test_exact_samples_have_the_exact_distribution(D, H, visible, hidden):
    rbm, n = machine(D, H, visible, hidden), 2**15
    V = states(D, rbm.visible)
    p, draws = rbm.log_prob(V).exp(), rbm.sample(n, generator=3)
    counts = torch.cat([(draws[:, None] == part).all(-1).double().sum(0) for part in V.split(20)])
    z, wrong = ((counts - n * q) / (n * q * (1 - q)).sqrt() for q in (p, p.roll(1)))
    assert z.abs().max() < 4.5 < wrong.abs().max() and draws.shape == (n, D) and not draws.requires_grad


def test_samples_of_a_batch_of_machines_and_of_reals():
    rbm, field = machine(4, 3), torch.randn(2, 4, dtype=torch.float64,
                                            generator=torch.Generator().manual_seed(0))
    V, n = states(4), 2**14
    draws = rbm.tilt(field).sample(n, generator=1)
    p = rbm.tilt(field).log_prob(V[:, None]).exp()
    for b in range(2):
        counts = (draws[:, b, None] == V).all(-1).double().mean(0)
        z, wrong = ((counts - q) / (q * (1 - q) / n).sqrt() for q in (p[:, b], p[:, 1 - b]))
        assert z.abs().max() < 4 < wrong.abs().max()
    reals = machine(3, 4, "gaussian")
    v, S = reals.sample(n, generator=2), states(4)
    mean = torch.softmax(-reals.hidden_free_energy(S), 0) @ reals.visible_mean(S)
    assert (((v.mean(0) - mean) / v.std(0)) * n**0.5).abs().max() < 4


def test_samples_of_large_machines_walk_and_say_so():
    rbm = RBM(60, 50)
    with pytest.raises(ValueError,
                       match=r"^steps must be given: RBM\(60 bernoulli x 50 bernoulli\) is too large"):
        rbm.sample(3)
    assert rbm.sample(3, steps=2, generator=0).shape == (3, 60)
    assert torch.equal(rbm.sample(3, 2, 0), rbm.sample(3, 2, torch.Generator().manual_seed(0)))
    for n, steps, match in ((0, 1, "^n must"), (2, 0, "^steps must"), (2.0, 1, "^n must")):
        with pytest.raises((ValueError, TypeError), match=match): rbm.sample(n, steps)


@pytest.mark.parametrize("draw", ("sample_hidden", "sample_visible"))
def test_layers_of_every_sample_draw_from_its_stream(draw):
    rbm = machine(5, 4)
    x = some_states((3, 5 if draw == "sample_hidden" else 4))
    together, alone = getattr(rbm, draw)(x, [7, 8, 9]), getattr(rbm, draw)(x[1:2], [8])
    assert torch.equal(together[1:2], alone)
    assert torch.equal(getattr(rbm, draw)(x, 5), getattr(rbm, draw)(x, torch.Generator().manual_seed(5)))


# What cannot be normalised

@pytest.mark.parametrize("visible, hidden, w, refused", (
    ("gaussian", "gaussian", 0.99, False), ("gaussian", "gaussian", 1.0, True),
    ("gaussian", "relu", 0.9, False), ("gaussian", "relu", 1.1, True),
    ("relu", "relu", 1.1, True), ("relu", "relu", -3.0, False), ("gaussian", "relu", -1.1, True),
    ("poisson", "bernoulli", 9.0, False), ("poisson", "poisson", 0.1, True),
    ("poisson", "poisson", -0.1, False), ("poisson", "gaussian", -0.1, True),
    ("poisson", "relu", -0.1, False), ("gaussian", "poisson", -0.1, True),
    ("bernoulli", "poisson", 2.0, False), ("bernoulli", "gaussian", 9.0, False)))
def test_what_cannot_be_normalised_is_refused_with_the_number(visible, hidden, w, refused):
    rbm = RBM(1, 1, visible, hidden, dtype=torch.float64)
    rbm.W.data.fill_(w)
    if refused:
        shown = r"cannot be normalised: .* pull each other with (1|1\.21|inf), which must be below 1"
        with pytest.raises(ValueError, match=shown):
            rbm.check_normalisable()
        with pytest.raises(ValueError, match="cannot be normalised"): rbm.sample(2, steps=1)
        with pytest.raises(ValueError, match="cannot be normalised"): rbm.log_partition()
    else: rbm.check_normalisable()


def test_the_pull_of_rectified_units_looks_only_where_they_can_go():
    rbm = RBM(2, 2, "gaussian", "relu", dtype=torch.float64)
    # the pull is along h = (1, -1), which cannot be
    rbm.W.data = torch.tensor([[1.2, -1.2], [0.3, 0.3]], dtype=torch.float64)
    assert torch.linalg.svdvals(rbm.W)[0] ** 2 > 2 and rbm.pull() == pytest.approx(1.2**2 + 0.3**2)
    rbm.W.data = torch.tensor([[0.8, -0.8], [0.3, 0.3]], dtype=torch.float64)
    angle = torch.linspace(0, math.pi / 2, 10001, dtype=torch.float64)
    best = (torch.stack([angle.cos(), angle.sin()], 1) @ rbm.W.T).norm(dim=1).max().item() ** 2
    assert rbm.pull() == pytest.approx(best, rel=1e-6) and best < 1 < torch.linalg.svdvals(rbm.W)[0] ** 2
    rbm.check_normalisable()


def test_log_partition_of_two_real_layers():
    rbm = machine(3, 2, "gaussian", "gaussian", scale=0.3)
    precision = torch.cat([torch.cat([torch.diag(rbm.sigma**-2), -rbm.W / rbm.sigma[:, None] ** 2], 1),
                           torch.cat([-(rbm.W / rbm.sigma[:, None] ** 2).T, torch.eye(2).double()], 1)])
    g = torch.cat([rbm.b / rbm.sigma**2, rbm.c])
    square = g @ torch.linalg.solve(precision, g) - (rbm.b**2 / rbm.sigma**2).sum()
    truth = 2.5 * math.log(2 * math.pi) - torch.logdet(precision) / 2 + square / 2
    assert rbm.log_partition().item() == pytest.approx(truth.item(), rel=1e-13)
    field = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    single = torch.stack([rbm.tilt(f).log_partition() for f in field])
    torch.testing.assert_close(rbm.tilt(field).log_partition(), single, rtol=1e-13, atol=1e-13)
    one = RBM(1, 1, "gaussian", "relu", dtype=torch.float64)
    for name, value in (("W", 0.5), ("b", 0.3), ("c", 0.2)): getattr(one, name).data.fill_(value)
    assert one.log_partition().item() == pytest.approx(1.64323286857012, rel=1e-13)
    with pytest.raises(ValueError, match=r"learning.partition.ais"):
        RBM(3, 2, "gaussian", "relu").log_partition()


def test_check_numbers():
    i, k, j = torch.arange(2.0, **F64), torch.arange(3.0, **F64), torch.arange(2.0, **F64)
    potts = RBM(6, 2, Potts(3), dtype=torch.float64)
    potts.W.data = torch.sin(i[:, None, None] + 2 * k[None, :, None] + 3 * j).reshape(6, 2)
    potts.b.data = torch.cos(i[:, None] + k).reshape(6)
    potts.c.data = torch.tensor([0.1, -0.2], **F64)
    assert potts.log_partition().item() == pytest.approx(4.338482246616446, rel=1e-14)
    v = torch.tensor([1.0, 0, 0, 1, 0, 0], **F64)
    assert potts.log_prob(v).exp().item() == pytest.approx(0.3131410141419033, rel=1e-13)
    counts = RBM(2, 2, Poisson(), dtype=torch.float64)
    counts.W.data = torch.tensor([[0.3, -0.4], [0.2, 0.5]], **F64)
    counts.b.data, counts.c.data = torch.tensor([0.1, -0.3], **F64), torch.tensor([0.2, -0.1], **F64)
    assert counts.log_partition().item() == pytest.approx(3.677448646419506, rel=1e-14)
    S = states(2)
    means = torch.softmax(-counts.hidden_free_energy(S), 0) @ counts.visible_mean(S)
    torch.testing.assert_close(means,
                               torch.tensor([1.1415413765751368, 1.1283223217027314], **F64).detach(),
                               rtol=1e-13, atol=0)


# Machines that share numbers with others

def changed(rbm, how):
    """A machine made from `rbm`."""
    v = some_states((2, 4), rbm.visible)
    mask = torch.tensor([True, False, False, True])
    return {"tilt": lambda: rbm.tilt(0.3 * v), "clamp": lambda: rbm.clamp(v, mask),
            "at": lambda: rbm.at(0.5)}[how]()


made = pytest.mark.parametrize("how", ("tilt", "clamp", "at"))
two_kinds = pytest.mark.parametrize("visible", ("spin", "gaussian"))


@made
@two_kinds
@pytest.mark.parametrize("convert",
                         (lambda m: m.float(), lambda m: m.to(torch.float32),
                          lambda m: m.to(dtype=torch.float32)))
def test_a_conversion_leaves_the_owner_as_it_was(how, visible, convert):
    rbm = machine(4, 3, visible).requires_grad_()
    before = {name: x.clone() for name, x in rbm.state_dict().items()}
    other = changed(rbm, how)
    exact = other.hidden_free_energy(states(3)[:, None]).detach()
    H = states(3, dtype=torch.float32)[:, None]
    single = convert(other)
    assert single is other and all(x.dtype == torch.float32 for x in single.state_dict().values())
    torch.testing.assert_close(single.hidden_free_energy(H).double(), exact, rtol=1e-5, atol=1e-5)
    assert all(torch.equal(x, before[name]) for name, x in rbm.state_dict().items())
    slope, = torch.autograd.grad(single.hidden_free_energy(H).sum(), rbm.W)
    assert slope.abs().sum() > 0 and list(dict(rbm.named_parameters())) == list(before)
    single.double().log_partition()


def test_a_conversion_of_the_owner_itself_keeps_its_parameters():
    rbm = machine(4, 3, "gaussian").requires_grad_()
    W = rbm.W
    assert rbm.float() is rbm and rbm.W is W and W.dtype == torch.float32 and not rbm.shares
    assert list(dict(rbm.named_parameters())) == ["W", "b", "c", "log_sigma"]


@made
@two_kinds
@pytest.mark.parametrize("again", (lambda m: pickle.loads(pickle.dumps(m)), copy.copy, copy.deepcopy))
def test_copies_say_the_same(how, visible, again):
    rbm = machine(4, 3, visible).requires_grad_()
    for one in (rbm, changed(rbm, how)):
        other = again(one)
        assert type(other) is RBM and other.batch == one.batch
        assert list(other.state_dict()) == list(one.state_dict())
        assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(),
                                                     other.state_dict().values()))
        assert torch.equal(other.log_partition(), one.log_partition())
        assert (other.W is one.W) == (again is copy.copy)


def test_a_shallow_copy_may_be_converted_and_a_deep_one_trained():
    rbm = machine(4, 3, "gaussian").requires_grad_()
    copy.copy(rbm).float()
    assert rbm.W.dtype == torch.float64
    deep = copy.deepcopy(rbm.tilt(rbm.b.detach()))
    deep.float()
    deep.sigma = 3.0
    assert not deep.shares and isinstance(deep.W, torch.nn.Parameter)
    assert isinstance(deep.log_sigma, torch.nn.Parameter)
    assert (rbm.sigma != 3).all() and rbm.W.dtype == torch.float64


def test_a_state_dict_goes_round():
    for one in (machine(4, 3, "gaussian"), machine(4, 3, "gaussian").at(0.5),
                machine(4, 3, "gaussian").tilt(torch.ones(4, **F64))):
        other = RBM(4, 3, "gaussian", dtype=torch.float64)
        other.load_state_dict(one.state_dict())
        assert torch.equal(other.log_partition().detach(), one.log_partition())


# Widths

@pytest.mark.parametrize("value",
                         (torch.nn.Parameter(torch.tensor([1.0, 2, 3, 4])), [1, 2, 3, 4],
                          np.arange(1, 5), torch.arange(1, 5)))
def test_widths_may_be_assigned_in_any_form(value):
    rbm = RBM(4, 3, "gaussian", dtype=torch.float64)
    log_sigma = rbm.log_sigma
    rbm.sigma = value
    torch.testing.assert_close(rbm.sigma.detach(), torch.arange(1.0, 5, **F64))
    assert rbm.log_sigma is log_sigma
    assert [n for n, _ in rbm.named_parameters()] == ["W", "b", "c", "log_sigma"]


@pytest.mark.parametrize("bad",
                         (torch.ones(3), torch.ones(2, 4), "wide", None, [1.0, "2"],
                          [[1.0], [1.0, 2.0]]))
def test_widths_of_a_wrong_shape(bad):
    rbm = RBM(4, 3, "gaussian")
    with pytest.raises(TypeError, match=r"^rbm.sigma must be a number or 4 of them, got"):
        rbm.sigma = bad
    assert (rbm.sigma == 1).all()


@made
def test_a_width_that_is_assigned_to_a_made_machine_is_its_own(how):
    rbm = machine(4, 3, "gaussian")
    before, other = rbm.sigma.clone(), changed(rbm, how)
    other.sigma = 3.0
    assert torch.equal(rbm.sigma, before)
    assert torch.allclose(other.sigma, torch.full_like(other.sigma, 3.0))


def test_counts_from_numpy():
    rbm = RBM(np.int64(4), np.int32(3), generator=np.int64(0))
    assert repr(rbm) == "RBM(4 bernoulli x 3 bernoulli)" and rbm.settings["n_visible"] == 4
    assert torch.equal(rbm.W, RBM(4, 3, generator=0).W)


# Own kinds of unit in files

class Pair(Discrete):
    """Two spins that share a field: -2, 0, 2 in one, two and one ways."""

    def __init__(self):
        super().__init__((-2.0, 0.0, 2.0))

    def log_weights(self, v):
        return (v == 0).to(v.dtype) * math.log(2)


def test_a_file_of_an_own_kind_takes_it_as_an_object(tmp_path):
    rbm = machine(4, 3, Pair(), "spin")
    rbm.save(tmp_path / "pair")
    assert torch.equal(RBM.load(tmp_path / "pair", visible=Pair()).log_partition().detach(),
                       rbm.log_partition())
    for options in ({}, {"visible": Potts(3)}):
        with pytest.raises(ValueError, match="does not hold a complete RBM"):
            RBM.load(tmp_path / "pair", **options)
    # the same machine, with all spins shown
    twice = RBM(8, 3, "spin", "spin", dtype=torch.float64)
    twice.load_state_dict({"W": rbm.W.repeat(2, 1), "b": rbm.b.repeat(2), "c": rbm.c})
    assert twice.log_partition().item() == pytest.approx(rbm.log_partition().item(), rel=1e-14)


# Numbers that are none

BROKEN = [(v, h, name) for v, h in (("spin", "spin"), ("gaussian", "gaussian"), ("gaussian", "relu"),
                                    ("poisson", "spin"),
                                    ("spin", "gaussian")) for name in ("W", "b", "c", "log_sigma")]


@pytest.mark.parametrize("visible, hidden, name",
                         [case for case in BROKEN if case[2] != "log_sigma" or case[0] == "gaussian"])
@pytest.mark.parametrize("value", (math.nan, math.inf))
def test_parameters_that_are_no_numbers_are_named(visible, hidden, name, value):
    rbm = machine(4, 3, visible, hidden, scale=0.1)
    getattr(rbm, name).view(-1)[0] = value
    v = torch.ones(2, 4, **F64)
    for call in (rbm.log_partition, rbm.check_normalisable, lambda: rbm.log_prob(v),
                 lambda: rbm.sample(2), lambda: rbm.sample(2, 3)):
        with pytest.raises(ValueError,
                           match=rf"^rbm must have finite parameters, got .* in \['{name}'\]"):
            call()


def test_counts_that_run_away_stop_the_walk():
    rbm = machine(4, 3, "poisson")
    rbm.b.fill_(30.0)
    with pytest.raises(ValueError, match=r"fields of its poisson units below 21.5 to draw them"):
        rbm.sample(2, 3, 0)
    with pytest.raises(ValueError, match=r"fields of its poisson units below 21.5 to draw them"):
        rbm.sample(2, generator=0)


# Batches of machines, row by row

MIXED = [("bernoulli", "bernoulli"), ("spin", "gaussian"), (Discrete((-1.0, 0.0, 1.0), 0.3), "spin"),
         ("gaussian", "bernoulli"),
         ("gaussian", "gaussian"), ("poisson", "bernoulli"), ("relu", "spin"), ("bernoulli", "poisson"),
         (Potts(3), "relu")]


def batches(rbm, v):
    """Batches of machines with what makes one of them, and the columns that are left."""
    mask, field = torch.tensor([True] * 3 + [False] * 3), 0.1 * torch.arange(6.0, **F64).cos()
    some, every = ~mask, torch.ones(6, dtype=torch.bool)
    fields = field * torch.arange(1.0, 4, **F64)[:, None]
    return {"clamp": (rbm.clamp(v, mask), lambda b: rbm.clamp(v[b], mask), some),
            "tilt": (rbm.tilt(fields), lambda b: rbm.tilt(fields[b]), every),
            "clamp and tilt": (rbm.clamp(v, mask).tilt(fields[:, some]),
                               lambda b: rbm.clamp(v[b], mask).tilt(fields[b, some]), some),
            "tilt and clamp": (rbm.tilt(fields).clamp(v, mask),
                               lambda b: rbm.tilt(fields[b]).clamp(v[b], mask), some),
            "all held alike": (rbm.tilt(fields).clamp(v[0], mask),
                               lambda b: rbm.tilt(fields[b]).clamp(v[0], mask), some)}


@pytest.mark.parametrize("visible, hidden", MIXED, ids=str)
def test_a_batch_of_machines_is_its_machines(visible, hidden):
    rbm = machine(6, 3, visible, hidden, scale=0.15, seed=1)
    g = torch.Generator().manual_seed(0)
    v = rbm.visible.draw(torch.zeros(3, 6, **F64), rbm.b, g, rbm.sigma)
    h = rbm.hidden.draw(torch.zeros(3, 3, **F64), rbm.c, g)
    for name, (whole, one, kept) in batches(rbm, v).items():
        x = v[:, kept]
        methods = {"energy": lambda m, b: m.energy(x[b], h[b]),
                   "free_energy": lambda m, b: m.free_energy(x[b]),
                   "hidden_free_energy": lambda m, b: m.hidden_free_energy(h[b]),
                   "score": lambda m, b: m.score(x[b]),
                   "log_partition": lambda m, b: m.log_partition(),
                   "log_prob": lambda m, b: m.log_prob(x[b]),
                   "hidden_mean": lambda m, b: m.hidden_mean(x[b]),
                   "visible_mean": lambda m, b: m.visible_mean(h[b]),
                   "at": lambda m, b: m.at(0.5).free_energy(x[b])}
        if rbm.hidden.wide or "poisson" in (visible, hidden): del methods["at"]
        for method, call in methods.items():
            apart = torch.stack([call(one(b), b) for b in range(3)])
            torch.testing.assert_close(call(whole, slice(None)), apart, rtol=1e-12, atol=1e-12,
                                       msg=f"{name}: {method}")
        draws = whole.sample(5, 2, 0)
        assert draws.shape == (5, 3, len(whole.W))
        rbm.visible.check("draws", draws)


@pytest.mark.parametrize("visible, hidden",
                         (("bernoulli", "spin"), ("spin", "gaussian"), ("gaussian", "bernoulli")))
@pytest.mark.parametrize("steps", (None, 3))
def test_draws_of_a_batch_have_a_stream_for_every_machine(visible, hidden, steps):
    rbm = machine(4, 3, visible, hidden)
    fields = some_states((3, 4), "gaussian")
    together = rbm.tilt(fields).sample(6, steps, [5, 6, 7])
    assert torch.equal(together[:, 1:2], rbm.tilt(fields[1:2]).sample(6, steps, [6]))
    several = rbm.sample(3, steps, [5, 6, 7])
    assert torch.equal(several[2:], rbm.sample(1, steps, [7]))
    with pytest.raises(ValueError, match=r"^generator must hold one stream a sample"):
        rbm.tilt(fields).sample(6, steps, [5, 6])


def test_walks_of_a_clamped_batch_reach_its_machines():
    rbm, n = machine(4, 3, scale=1.0), 2**14
    v, mask = some_states((2, 4)), torch.tensor([False, False, True, True])
    clamped, V = rbm.clamp(v, mask), states(2)
    p = clamped.log_prob(V[:, None]).exp()
    for draws in (clamped.sample(n, 30, 1), clamped.sample(n, generator=2),
                  clamped.at(1.0).sample(n, generator=3)):
        counts = torch.stack([(draws == row).all(-1).double().mean(0) for row in V])
        z, wrong = ((counts - q) / (q * (1 - q) / n).sqrt() for q in (p, p.flip(1)))
        assert z.abs().max() < 4 < wrong.abs().max()


def test_exact_draws_through_many_states():
    rbm = machine(24, 16, scale=0.3, dtype=torch.float32)              # 65536 states in several pieces
    draws, n = rbm.sample(2**14, generator=4), 2**14
    H = states(16, dtype=torch.float32)
    p = torch.softmax(-rbm.hidden_free_energy(H).double(), 0)
    mean = p @ rbm.visible_mean(H).double()
    z = (draws.double().mean(0) - mean) / (mean * (1 - mean) / n).sqrt()
    wrong = (draws.double().mean(0) - mean.flip(0)) / (mean * (1 - mean) / n).sqrt()
    assert z.abs().max() < 4 < wrong.abs().max()


def test_the_pull_is_that_of_the_best_direction():
    rbm = machine(3, 2, "gaussian", "gaussian", scale=0.3)
    M = rbm.W / rbm.sigma[:, None]
    assert rbm.pull() == pytest.approx(torch.linalg.svdvals(M)[0].item() ** 2)
    rectified = machine(3, 2, "relu", "relu", scale=0.4, seed=2)
    M = rectified.W / rectified.sigma[:, None]
    angle = torch.linspace(0, math.pi / 2, 20001, **F64)
    h = torch.stack([angle.cos(), angle.sin()], 1)
    best = (h @ M.T).clamp(min=0).norm(dim=1).max().item() ** 2
    assert rectified.pull() == pytest.approx(best, rel=1e-6)
    assert machine(3, 2, "spin", "gaussian").pull() == 0


def test_the_pull_of_rectified_units_is_searched_to_its_end():
    rbm = RBM(3, 3, "relu", "relu", dtype=torch.float64)
    rbm.W.data = torch.tensor([[0.5, 0.4, 0.1], [0.4, 0.5, 0.4], [0.1, 0.4, 0.5]], **F64)
    best = torch.linalg.svdvals(rbm.W)[0].item() ** 2      # all weights are positive: nothing is cut
    assert rbm.pull() == pytest.approx(best, rel=1e-10)


def test_two_real_layers_that_have_no_closed_form():
    class Box(Spin):
        """A unit that cannot be listed, and has no well."""
        n_states = None
    for visible, hidden in (("gaussian", Box()), ("relu", "gaussian"), ("gaussian", "relu")):
        with pytest.raises(ValueError, match=r"learning.partition.ais"):
            RBM(3, 2, visible, hidden).log_partition()


# The one check of a machine

@pytest.mark.parametrize("rbm, options, kind, match", (
    (3, {}, TypeError, "rbm must be an RBM, got int"),
    (torch.nn.Linear(2, 2), {}, TypeError, "got Linear"),
    (RBM, {}, TypeError, "rbm must be an RBM, got type"),
    (RBM(4, 3).tilt(torch.zeros(2, 4)), {}, ValueError, "one machine, got a batch of 2"),
    (RBM(4, 3).tilt(torch.zeros(4)), {"own": True}, ValueError, "parameters of its own"),
    (RBM(4, 3, "gaussian"), {"kind": "binary"}, ValueError, "of two levels, got 'gaussian'"),
    (RBM(4, 3, "relu"), {"kind": "gaussian"}, ValueError, "that are 'gaussian', got 'relu'"),
    (RBM(4, 3, "poisson"), {"kind": "finite"}, ValueError, "with a list of states, got 'poisson'"),
    (RBM(4, 3), {"v": torch.full((4,), 0.5)}, ValueError, "v must hold only 0 or 1"),
    (RBM(4, 3), {"v": torch.zeros(5)}, ValueError, "v must have shape"),
    (RBM(4, 3), {"chains": torch.zeros(2, 4).double()}, TypeError, "chains must be torch.float32")))
def test_check_machine(rbm, options, kind, match):
    with pytest.raises(kind, match=match): check_machine(rbm, **options)


def test_check_machine_accepts_what_has_the_parts():
    class Stranger(RBM):
        pass
    Stranger.__module__ = "__main__"
    check_machine(Stranger(4, 3), "binary", own=True, v=torch.zeros(2, 4))
    check_machine(RBM(4, 3).tilt(torch.zeros(2, 4)), batch=True)
    check_machine(RBM(6, 3, Potts(3)), "finite")


# Memory

def held(m):
    """Numbers in tensors that are alive after log Z and before its gradient."""
    gc.collect()
    tensors = lambda: [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    before = {id(x) for x in tensors()}
    log_z = m.log_partition()
    gc.collect()
    made = [x for x in tensors() if id(x) not in before]
    log_z.backward()
    return sum(x.numel() for x in made)


def test_log_partition_keeps_no_table_for_its_gradient(monkeypatch):
    m, kept = machine(40, 16, dtype=torch.float32).requires_grad_(), []
    assert held(m) < 2**16 * 16 / 100

    def wasteful(part, first, last, **options):
        kept.append(states(16, m.hidden, first, last, dtype=torch.float32))
        return part(first, last)
    monkeypatch.setattr(core, "checkpoint", wasteful)
    assert held(m) >= 2**16 * 16                                             # control: tables kept


@pytest.mark.parametrize("log_sigma", [-80.0, 80.0])
def test_widths_without_a_square_are_refused_with_a_remedy(log_sigma):
    rbm = RBM(4, 3, "gaussian").requires_grad_(False)
    rbm.log_sigma[1] = log_sigma
    for call in (rbm.log_partition, lambda: rbm.log_prob(torch.zeros(2, 4)), lambda: rbm.sample(2)):
        with pytest.raises(ValueError, match="^rbm must have widths .* standardise the others"): call()


def test_no_step_makes_a_width_negative():
    rbm = RBM(4, 3, "gaussian", generator=0)
    optimizer = torch.optim.SGD(rbm.parameters(), lr=3.0)
    v = 0.03 * torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    for _ in range(20):
        optimizer.zero_grad()
        (-rbm.log_prob(v)).mean().backward()
        rbm.log_sigma.grad.clamp_(-0.3, 0.3)
        optimizer.step()
    assert bool((rbm.sigma > 0).all())


# Ratios of neighbours

def test_ratios_of_many_states_come_in_pieces():
    """As many numbers as a piece may hold, and some more: the same ratios, and the same gradient."""
    rbm = machine(24, 16, "bernoulli", "spin").requires_grad_()
    v = some_states((3, 4000, 24))
    few = torch.stack([flip_log_ratios(rbm, x) for x in v[:, :50]])
    assert v.numel() * 16 > 2**22 > v[0, :50].numel() * 16
    r = flip_log_ratios(rbm, v)
    torch.testing.assert_close(r[:, :50], few, rtol=0, atol=1e-12)
    weights = torch.zeros_like(r)
    weights[:, :50] = torch.linspace(-1, 1, 24, dtype=torch.float64)
    wanted = torch.autograd.grad((few * weights[:, :50]).sum(), rbm.W)[0]
    found = torch.autograd.grad((r * weights).sum(), rbm.W)[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)
    assert (found + wanted).abs().max() > 1
