"""Energy-based models against closed forms, enumeration and bad input."""
import math
import subprocess
import sys

from hypothesis import given, settings, strategies as st
import pytest
import torch

from rbmdiff.models.energy import (
    entropy,
    gaussian_product,
    grid,
    log_partition,
    log_probs,
    log_ratio,
    product,
    score,
    tempered,
)

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
quick = settings(max_examples=30, deadline=None)
number = st.floats(-3, 3)


def bits(n): return ((torch.arange(2**n)[:, None] >> torch.arange(n)) & 1).double()


def ring(x, J=0.7): return -J * ((2 * x - 1) * (2 * x - 1).roll(1, -1)).sum(-1)


def gaussian(mu, sigma): return lambda x: ((x - mu) ** 2 / (2 * sigma**2)).sum(-1)


@pytest.mark.parametrize("n", (3, 8, 13))
@pytest.mark.parametrize("J", (0.1, -0.8, 2.0))
def test_ising_ring(n, J):
    log_Z = log_partition(lambda x: ring(x, J), bits(n)).item()
    assert log_Z == pytest.approx(math.log((2 * math.cosh(J)) ** n + (2 * math.sinh(J)) ** n), rel=1e-13)
    assert log_probs(lambda x: ring(x, J), bits(n)).exp().sum().item() == pytest.approx(1, abs=1e-12)
    off = log_partition(lambda x: 1.001 * ring(x, J), bits(n)).item()  # control
    assert off != pytest.approx(log_Z, rel=1e-7)


@quick
@given(mu=number, log_sigma=st.floats(-1.5, 1), T=st.floats(0.2, 3), constant=st.floats(-800, 800))
def test_gaussian_at_every_temperature_and_zero(mu, log_sigma, T, constant):
    sigma, (x, cell) = math.exp(log_sigma), grid(-60, 60, 4000)
    energy = gaussian(mu, sigma)
    shifted = lambda x: energy(x) + constant
    hot, log_Z = tempered(energy, T), math.log(math.sqrt(2 * math.pi) * sigma)
    assert log_partition(hot, x, cell).item() == pytest.approx(log_Z + math.log(T) / 2, abs=1e-11)
    assert log_partition(shifted, x, cell).item() == pytest.approx(log_Z - constant, abs=1e-11)
    torch.testing.assert_close(log_probs(shifted, x, cell), log_probs(energy, x, cell), rtol=0,
                               atol=1e-9)
    assert entropy(hot, x, cell).item() == pytest.approx(log_Z + (1 + math.log(T)) / 2, abs=1e-11)


@quick
@given(T=st.floats(0.05, 50))
def test_boltzmann_has_the_largest_entropy_at_its_mean_energy(T):
    E = ring(bits(6))
    log_p = log_probs(tempered(ring, T), bits(6))
    p, ones = log_p.exp(), torch.ones_like(E)
    basis = torch.stack([ones, E], 1)
    r = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    r = r - basis @ torch.linalg.lstsq(basis * p.sqrt()[:, None],
                                       r[:, None] * p.sqrt()[:, None]).solution[:, 0]
    q = p * (1 + 0.5 * r / r.abs().max())
    S, S_q = (-torch.xlogy(x, x).sum().item() for x in (p, q))
    assert (q @ E).item() == pytest.approx((p @ E).item(), abs=1e-9) and S >= S_q - 1e-12
    assert S - S_q == pytest.approx(torch.special.xlogy(q, q / p).sum().item(), abs=1e-9)
    assert entropy(tempered(ring, T), bits(6)).item() == pytest.approx(S, abs=1e-9)


def test_ratio_is_a_difference_of_log_probabilities():
    log_p, X = log_probs(ring, bits(5)), bits(5)
    torch.testing.assert_close(log_ratio(ring, X[:, None], X), log_p[:, None] - log_p, rtol=0,
                               atol=1e-13)
    there, back = log_ratio(ring, X[3], X[9]), log_ratio(ring, X[9], X[3])
    assert (there + back).item() == 0 and there.shape == ()


@quick
@given(data=st.lists(st.tuples(number, st.floats(0.3, 3)), min_size=1, max_size=4))
def test_product_of_gaussians(data):
    mu, sigma = torch.tensor(data, dtype=torch.float64).T.contiguous()
    experts, (x, cell) = [gaussian(m, s) for m, s in zip(mu, sigma)], grid(-40, 40, 8000)
    p = log_probs(product(*experts), x, cell).exp() * cell
    mean = p @ x[:, 0]
    overlap = log_partition(product(*experts), x, cell) - sum(log_partition(e, x, cell) for e in experts)
    numeric = mean, (p @ (x[:, 0] - mean) ** 2).sqrt(), overlap
    for a, b in zip(gaussian_product(mu, sigma), numeric):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_gaussian_product_in_a_batch():
    mu, sigma = torch.randn(3, 4, 2, dtype=torch.float64), 0.5 + torch.rand(3, 4, 2, dtype=torch.float64)
    together = gaussian_product(mu, sigma)
    for i in range(4):
        for a, b in zip(together, gaussian_product(mu[:, i], sigma[:, i])):
            torch.testing.assert_close(a[i], b, rtol=1e-14, atol=1e-14)


def test_a_product_of_gaussians_does_not_depend_on_the_zero():
    mu, sigma = torch.tensor([[0.25], [-0.5], [1.0]]), torch.tensor([[0.5], [1.0], [0.25]])
    near, far = gaussian_product(mu, sigma), gaussian_product(mu + 8192, sigma)
    torch.testing.assert_close(far[0], near[0] + 8192, rtol=1e-7, atol=0)
    torch.testing.assert_close(far[1:], near[1:], rtol=1e-6, atol=0)


def test_entropy_does_not_depend_on_the_zero_of_the_energy():
    x = bits(4).float()
    plain, raised = entropy(ring, x), entropy(lambda x: ring(x) + 65536, x)
    torch.testing.assert_close(raised, plain, rtol=0, atol=0.02)


def test_scores_add_and_match_central_differences():
    a, b = lambda x: (x**4).sum(-1), lambda x: torch.cos(x).prod(-1)
    both = product(a, b, tempered(a, 2.0))
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    h = 1e-5 * torch.eye(3, dtype=torch.float64)
    central = -(both(x[:, None] + h) - both(x[:, None] - h)) / 2e-5
    torch.testing.assert_close(score(both, x), central, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(score(both, x), 1.5 * score(a, x) + score(b, x), rtol=1e-12, atol=1e-12)
    assert not torch.allclose(-score(both, x), central, rtol=1e-6, atol=1e-6)


def test_score_leaves_no_trace_and_can_be_differentiated_again():
    w, x = (
        torch.tensor(2.0, dtype=torch.float64, requires_grad=True),
        torch.randn(4, 3, dtype=torch.float64),
    )
    energy = lambda x: w * (x**3).sum(-1)
    s = score(energy, x)
    assert not s.requires_grad and not x.requires_grad and w.grad is None
    with torch.no_grad(): torch.testing.assert_close(score(energy, x), s)
    y = x.clone().requires_grad_()
    slope = score(energy, y, create_graph=True)
    wrt_w, wrt_x = torch.autograd.grad(slope.sum(), (w, y))
    torch.testing.assert_close(wrt_w, -3 * (x**2).sum())
    torch.testing.assert_close(wrt_x, -12 * x)


@quick
@given(batch=st.lists(st.integers(1, 3), max_size=3), D=st.integers(1, 4), double=st.booleans())
def test_shapes_and_batch_invariance(batch, D, double):
    dtype = torch.float64 if double else torch.float32
    x = torch.randn(*batch, D, dtype=dtype)
    energy = lambda x: (x**4).sum(-1) + x.sum(-1)
    assert score(energy, x).shape == x.shape and score(energy, x).dtype == dtype
    assert (
        log_ratio(energy, x, x + 1).shape == tuple(batch) and log_ratio(energy, x, x + 1).dtype == dtype
    )
    if batch: torch.testing.assert_close(score(energy, x)[-1], score(energy, x[-1]), rtol=0, atol=0)


def test_log_partition_is_differentiable():
    beta = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    slope, = torch.autograd.grad(log_partition(lambda x: beta * ring(x), bits(6)), beta)
    p = log_probs(lambda x: 0.7 * ring(x), bits(6)).exp()
    assert slope.item() == pytest.approx(-(p @ ring(bits(6))).item(), rel=1e-12)


def test_huge_energies_do_not_overflow():
    for dtype in (torch.float32, torch.float64):
        X = bits(4).to(dtype)
        energy = lambda x: 1e5 * ring(x)
        log_Z = log_partition(energy, X)
        assert log_Z.isfinite() and log_probs(energy, X).isfinite().all() and log_Z.dtype == dtype


def test_grid_covers_the_box_with_midpoints():
    x, cell = grid(-1, 3, 4, dims=2, dtype=torch.float32)
    assert x.shape == (16, 2) and x.dtype == torch.float32 and cell == 1
    assert x[0].tolist() == [-0.5, -0.5] and x[-1].tolist() == [2.5, 2.5]
    assert grid(0, 1, 5)[0].shape == (5, 1) and len(grid(0, 1, 7, dims=3)[0].unique(dim=0)) == 343


def test_module_does_not_know_the_rbm():
    program = "import rbmdiff.models.energy, sys; assert 'rbmdiff.models.rbm' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.cuda
@cuda
def test_cuda_agrees_with_the_cpu():
    X = bits(6)
    for f in (log_partition, log_probs, entropy):
        torch.testing.assert_close(f(ring, X.cuda()).cpu(), f(ring, X), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="y must be on cuda:0"): log_ratio(ring, X.cuda(), X)
    assert score(lambda x: (x**2).sum(-1), X.cuda()).is_cuda


X4 = torch.zeros(3, 4)


@pytest.mark.parametrize("call, kind, match", (
    (lambda: log_partition(ring, X4.long()), TypeError, "^x must be float32"),
    (lambda: log_partition(ring, X4.half()), TypeError, "^x must be float32"),
    (lambda: log_partition(ring, X4 * 1j), TypeError, "^x must be"),
    (lambda: log_partition(ring, X4 + math.nan), ValueError, "^x must be finite"),
    (lambda: log_partition(ring, X4[:0]), ValueError, "^x must not be empty"),
    (lambda: log_partition(ring, X4[0]), ValueError, r"^x must have shape \[N, D\]"),
    (lambda: log_partition(ring, X4[None]), ValueError, r"^x must have shape \[N, D\]"),
    (lambda: log_partition(lambda x: x, X4), ValueError, r"^energy must map shape \[3, 4\] to \[3\]"),
    (lambda: log_partition(lambda x: x.sum(), X4), ValueError, "^energy must map"),
    (lambda: log_partition(lambda x: 1.0, X4), ValueError, "^energy must map .* it gave float"),
    (lambda: log_partition(ring, X4, 0.0), ValueError, "^cell must be finite and above 0"),
    (lambda: log_probs(ring, X4, -1.0), ValueError, "^cell must be finite and above 0"),
    (lambda: log_partition(ring, [[0.0]]), TypeError, "^x must be a torch.Tensor"),
    (lambda: log_ratio(ring, X4, X4[:, :3]), ValueError, r"^y must have shape \[..., 4\]"),
    (lambda: log_ratio(ring, X4, X4.double()), TypeError, "^y must be torch.float32"),
    (lambda: log_ratio(ring, X4, X4.to("meta")), ValueError, "^y must be on cpu"),
    (lambda: log_ratio(ring, torch.tensor(1.0), torch.tensor(1.0)), ValueError, "must have shape"),
    (lambda: score(lambda x: x, X4), ValueError, "^energy must map"),
    (lambda: score(lambda x: x.detach().sum(-1), X4), ValueError, "^energy must depend on x"),
    (lambda: score(ring, X4.long()), TypeError, "^x must be float32"),
    (lambda: score(ring, None), TypeError, "^x must be a torch.Tensor"),
    (lambda: score(ring, [1.0]), TypeError, "^x must be a torch.Tensor"),
    (lambda: score(lambda x: torch.ones(3, requires_grad=True) * 1, X4), ValueError,
     "^energy must depend"),
    (lambda: product(), ValueError, "^energies must be at least one"),
    (lambda: product(ring, 3), TypeError, "^each of energies must be a function, got int"),
    (lambda: log_partition(3, X4), TypeError, "^energy must be a function, got int"),
    (lambda: tempered(ring, "2"), TypeError, "^T must be a number, got str"),
    (lambda: grid("0", 1, 3), TypeError, "^low must be a number, got str"),
    (lambda: tempered(ring, 0.0), ValueError, "^T must be finite and above 0"),
    (lambda: tempered(ring, -1.0), ValueError, "^T must be"),
    (lambda: tempered(ring, math.nan), ValueError, "^T must"),
    (lambda: tempered(ring, math.inf), ValueError, "^T must be finite and above 0"),
    (lambda: gaussian_product(X4, X4), ValueError, "^sigma must be positive"),
    (lambda: gaussian_product(X4, torch.ones(2, 4)), ValueError, "^mu and sigma must"),
    (lambda: gaussian_product(X4.long(), torch.ones(3, 4)), TypeError, "^mu must"),
    (lambda: grid(1, 0, 5), ValueError, "^high must be finite and above 1"),
    (lambda: grid(0, 1, 0), ValueError, "^n must be at least 1"),
    (lambda: grid(0, 1, 5, dims=0), ValueError, "^dims"),
    (lambda: grid(0, 1, 6000, dims=2), ValueError, r"at most 2\^25 cells"),
    (lambda: grid(0, math.inf, 5), ValueError, "^high must be finite"),
    (lambda: log_partition(ring, X4, math.inf), ValueError, "^cell must be finite"),
    (lambda: log_ratio(ring, X4, X4[:2]), ValueError,
     r"^y must broadcast with x \[3, 4\], got \[2, 4\]")))
def test_bad_input(call, kind, match):
    with pytest.raises(kind, match=match): call()
