"""Products and draws: the quick ways against the plain ones, and everything that must fall back to them.
"""
from concurrent.futures import ThreadPoolExecutor
import math
import os
import subprocess
import sys

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
import torch
from torch.autograd import forward_ad

from rbmdiff.foundations import kernels
from rbmdiff.foundations.kernels import affine, draw_bits, threefry
from rbmdiff.foundations.units import Bernoulli, Spin
from rbmdiff.learning.contrastive import cd_gradient, expected_cd_gradient
from rbmdiff.models.rbm import RBM

compiled = kernels._fused(torch.float32) is not None
needs_numba = pytest.mark.skipif(not compiled, reason="numba is not installed")
needs_onednn = pytest.mark.skipif(kernels._ONEDNN is None, reason="PyTorch without oneDNN")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def calls(monkeypatch):
    """Counts how often the quick ways are taken."""
    count = {"product": 0, "draw": 0}
    product, fused = kernels._ONEDNN, kernels._fused

    def counted(*args):
        count["product"] += 1
        return product(*args)

    def counting(dtype):
        count["draw"] += 1
        return fused(dtype)

    if product is not None: monkeypatch.setattr(kernels, "_ONEDNN", counted)
    monkeypatch.setattr(kernels, "_fused", counting)
    return count


# affine

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), max_size=3), st.integers(1, 40), st.integers(1, 40), st.booleans(),
       st.sampled_from([torch.float32, torch.float64]), st.integers(0, 99))
def test_affine_has_the_contract_of_linear(batch, M, N, biased, dtype, seed):
    g = seeded(seed)
    x, w, b = (torch.randn(*shape, dtype=dtype, generator=g) for shape in ((*batch, M), (N, M), (N,)))
    y = affine(x, w, b if biased else None)
    assert y.shape == (*batch, N) and y.dtype == dtype
    torch.testing.assert_close(y, torch.nn.functional.linear(x, w, b if biased else None))


@needs_onednn
@pytest.mark.parametrize("layout", ["plain", "transposed", "sliced", "three axes"])
def test_quick_product_in_every_layout(calls, layout):
    g = seeded()
    x, w, b = (
        torch.randn(200, 300, generator=g),
        torch.randn(250, 300, generator=g),
        torch.randn(250, generator=g),
    )
    if layout == "transposed": x, w = x.T.contiguous().T, w.T.contiguous().T
    if layout == "sliced":
        x, w = (
            torch.randn(400, 600, generator=g)[::2, 100:400],
            torch.randn(250, 900, generator=g)[:, ::3],
        )
    if layout == "three axes": x = x.view(4, 50, 300)
    with torch.no_grad(): y = affine(x, w, b)
    assert calls["product"] == 1
    torch.testing.assert_close(y.double(), x.double() @ w.double().T + b.double(), rtol=1e-4, atol=1e-4)


def test_bias_of_a_batch_or_of_higher_precision_is_added_in_its_own_shape():
    x, w, b = torch.randn(3, 7), torch.randn(5, 7), torch.randn(3, 5)
    torch.testing.assert_close(affine(x, w, b), x @ w.T + b)
    half = affine(x.bfloat16(), w.bfloat16(), b[0])
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, (x.bfloat16() @ w.bfloat16().T).float() + b[0])


@needs_onednn
@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")
def test_derivatives_are_never_lost(calls):
    x, w = torch.randn(128, 256), torch.randn(256, 256)
    p = w.clone().requires_grad_()
    affine(x, p).sum().backward()
    torch.testing.assert_close(p.grad, x.sum(0).expand(256, -1), rtol=1e-4, atol=1e-4)
    # forward mode, even where reverse mode is off
    for context in (torch.enable_grad, torch.no_grad):
        with context(), forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(affine(forward_ad.make_dual(x, x), w)).tangent
        torch.testing.assert_close(tangent, x @ w.T, rtol=1e-3, atol=1e-3)
    assert calls["product"] == 0


@pytest.mark.parametrize("x, w",
                         [((3, 4), (5, 6)), ((4,), (5, 6)), ((512, 300), (301, 512)),
                          ((512, 512), (512, 511))])
def test_shapes_that_do_not_fit(x, w):
    with torch.no_grad(), pytest.raises(RuntimeError): affine(torch.zeros(x), torch.zeros(w))


# threefry

def test_threefry_is_a_bijection_in_the_counter():
    key = np.array([5], np.uint64), np.array([7], np.uint64)
    a, b = threefry(*key, np.arange(2**16, dtype=np.uint64), np.uint64(3))
    assert len(set(zip(a.tolist(), b.tolist()))) == 2**16
    x, y = threefry(*key, np.arange(4, dtype=np.uint64), np.uint64(3))
    assert x.tolist() == a[:4].tolist() and y.tolist() == b[:4].tolist()


# draw

@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("unit", [Bernoulli(), Spin()], ids=str)
@pytest.mark.parametrize("shape, bias",
                         [((300, 40), (40,)), ((7, 30, 41), (30, 41)), ((7, 30, 41), (41,)),
                          ((3, 5), (5,)), ((5,), (3, 5)), ((9000,), (9000,))])
def test_means_of_draws(dtype, unit, shape, bias):
    g, scale = seeded(1), 40000 // math.prod(torch.broadcast_shapes(shape, bias)) + 1
    x, b = (
        torch.randn(shape, generator=g).to(dtype),
        torch.randn(bias, generator=g).to(torch.float64 if dtype == torch.float64 else torch.float32),
    )
    with torch.no_grad():
        draws = torch.stack([draw_bits(x.clone(), b, int(unit.levels[0]), g) for _ in range(scale)])
    assert draws.dtype == dtype and set(draws.unique().tolist()) <= set(unit.levels)

    def z(mean):
        variance = unit.spread(mean)[0]
        return ((draws.double() - mean).sum() / (variance.expand(draws.shape).sum()).sqrt()).item(), (
            draws.double() * x.double()
        ).mean() - (mean * x.double()).mean()

    (right, slope), (wrong, _) = (
        z(unit.mean(x.double() + b.double())),
        z(unit.mean(x.double() + b.double() + 0.2)),
    )
    assert abs(right) < 4 and abs(wrong) > 10 and abs(slope) < 0.02


@needs_numba
def test_result_does_not_depend_on_threads_and_first_rows_not_on_later_ones(calls):
    x, b, threads = (
        torch.randn(512, 130, generator=seeded()),
        torch.randn(130, generator=seeded(1)),
        torch.get_num_threads(),
    )
    try:
        results = []
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            with torch.no_grad(): results.append(draw_bits(x.clone(), b, -1, seeded(2)))
    finally: torch.set_num_threads(threads)
    assert calls["draw"] == 4 and all(torch.equal(results[0], r) for r in results)
    with torch.no_grad():
        assert torch.equal(draw_bits(x[:70].clone(), b, -1, seeded(2)), results[0][:70])
    with torch.no_grad(): assert not torch.equal(draw_bits(x.clone(), b, -1, seeded(3)), results[0])


@needs_numba
def test_large_fields():
    x = torch.tensor([1e30, -1e30, 200.0, -200.0, 88.0, -88.0, 1e-38, 0.0]).repeat(2000, 1)
    with torch.no_grad(): mean = draw_bits(x, torch.zeros(8), 0, seeded()).mean(0)
    assert mean[:6].tolist() == [1, 0, 1, 0, 1, 0] and (mean[6:] - 0.5).abs().max() < 4 * 0.5 / 2000**0.5


def test_what_does_not_suit_the_kernel_takes_the_plain_way_and_is_not_overwritten(calls):
    b = torch.zeros(128)
    for x, bias in ((torch.zeros(8, 128), b), (torch.zeros(128, 128, dtype=torch.float64), b.double()),
                    (torch.zeros(128, 256)[:, ::2], b),
                    (torch.zeros(128, 128), torch.zeros(256)[::2]),
                    (torch.zeros(128, 128), torch.zeros(1))):
        with torch.no_grad(): draw_bits(x, bias, 0, seeded())
        assert not x.any()
    x = torch.zeros(128, 128)
    # gradients are on: somebody may need x
    draw_bits(x, b, 0, seeded())
    assert not x.any() and calls["draw"] == 0
    assert draw_bits(torch.zeros(0, 5), torch.zeros(5)).shape == (0, 5)


@needs_numba
@needs_numba
@pytest.mark.parametrize("change", [
    {"W": torch.zeros(3, 3)}, {"b": torch.zeros(5)}, {"c": torch.zeros(4)},
    {"c": torch.zeros(3).double()}, {"v": torch.zeros(0, 4)}, {"v": torch.zeros(2, 5)},
    {"v": torch.zeros(4)}, {"v": torch.ones(2, 4) / 2}, {"v": torch.zeros(2, 4, device="meta")},
    {"chains": torch.zeros(1025, 4)}, {"chains": -torch.ones(2, 4)},
    {"chains": torch.ones(2, 4).double()}, {"chains": torch.full((2, 4), math.nan)}])
def test_what_does_not_suit_gives_no_small_gradient(change):
    given = {"W": torch.zeros(4, 3), "b": torch.zeros(4), "c": torch.zeros(3), "v": torch.ones(2, 4),
             "chains": torch.zeros(2, 4)}
    with torch.no_grad():
        assert kernels.small_gradient(**given) is not None
        assert kernels.small_gradient(**given | change) is None
    assert kernels.small_gradient(**given) is None                       # a derivative may be taken


@needs_numba
def test_machine_code_is_read_from_disk_by_the_next_process(tmp_path):
    code = ("import numba, torch, rbmdiff.foundations.kernels as k\n"
            "hits, plain = [], numba.cfunc\n"
            "def counted(*a, **o):\n"
            "    def made(f):\n"
            "        code = plain(*a, **o)(f)\n"
            "        hits.append(code.cache_hits)\n"
            "        return code\n"
            "    return made\n"
            "numba.cfunc = counted\n"
            "torch.set_grad_enabled(False)\n"
            "k.draw_bits(torch.zeros(100, 100), torch.zeros(100))\n"
            "x = torch.zeros(2, 2)\n"
            "k.small_gradient(x, x[0], x[0], x, x)\n"
            "print(*hits)\n")
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    run = lambda: subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True,
                                 text=True, check=True).stdout.strip()
    first, files = run(), sorted(tmp_path.rglob("*.nbc"))
    assert (first, run()) == ("0 0", "1 1")
    assert len(files) == 2 and sorted(tmp_path.rglob("*.nbc")) == files


def test_without_a_place_to_keep_it_machine_code_is_made_all_the_same():
    def compiler(**options):
        if options: raise RuntimeError("cannot cache function: no locator available")
        return "code"
    assert kernels._kept(compiler) == "code"


def test_python_threads_draw_at_once():
    def one(seed):
        with torch.no_grad(): return draw_bits(torch.zeros(256, 256), torch.zeros(256), 0, seeded(seed))
    with ThreadPoolExecutor(4) as pool: results = list(pool.map(one, list(range(8)) * 3))
    assert all(torch.equal(results[i], results[i + 8]) and torch.equal(results[i], results[i + 16])
               for i in range(8))


CHILD = """
import sys, torch, rbmdiff.foundations.kernels as kernels
assert "numba" not in sys.modules, "imported too early"
{block}
torch.set_num_threads({threads})
with torch.no_grad():
    x = kernels.draw_bits(torch.zeros(400, 400), torch.zeros(400), -1, torch.Generator().manual_seed(1))
{after}
loaded = ("numba" in sys.modules) and sys.modules["numba"] is not None
print(loaded, int(x.sum()), abs(x.mean().item()) < 0.01)
"""


def child(block="", after="", threads=2, **environment):
    done = subprocess.run([sys.executable, "-W", "error", "-c",
                           CHILD.format(block=block, after=after, threads=threads)],
                          capture_output=True, text=True, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@needs_numba
def test_numba_is_loaded_at_the_first_draw_and_not_needed():
    assert child()[0] == "True"
    assert child(block="sys.modules['numba'] = None")[::2] == ["False", "True"]


@needs_numba
def test_without_an_openmp_symbol_the_kernel_runs_on_one_thread_with_the_same_result():
    block = """
import ctypes, types
def refuse(path): raise OSError(path)
kernels.ctypes = types.SimpleNamespace(**{**vars(ctypes), "CDLL": refuse})
"""
    assert child(block=block) == child()


@needs_numba
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_draws():
    fork = """
pid = __import__("os").fork()
if pid == 0:
    torch.set_num_threads(1)
    with torch.no_grad():
        y = kernels.draw_bits(torch.zeros(400, 400), torch.zeros(400), -1,
                              torch.Generator().manual_seed(1))
    __import__("os")._exit(0 if torch.equal(x, y) else 3)
assert __import__("os").waitpid(pid, 0)[1] == 0
"""
    assert child(after=fork)[2] == "True"


# a machine whose products are in bfloat16

@pytest.mark.parametrize("visible, hidden, persistent",
                         [("bernoulli", "bernoulli", False), ("spin", "bernoulli", True),
                          ("bernoulli", "spin", True)])
def test_bfloat16_products_have_the_expectation_of_the_machine_with_rounded_weights(
    visible, hidden, persistent
):
    g = seeded(3)
    m = RBM(4, 3, visible, hidden, generator=g)
    for p in m.parameters():
        p.data = 0.7 * torch.randn(p.shape, generator=g)
    low = -1.0 if visible == "spin" else 0.0
    v, chains = (torch.where(torch.rand(n, 4, generator=g) < 0.5, 1.0, low) for n in (5, 3))
    rounded = RBM(4, 3, visible, hidden, dtype=torch.float64)
    for name, p in rounded.named_parameters():
        p.data = getattr(m, name).data.double()
    rounded.W.data = m.W.data.bfloat16().double()
    chains = chains if persistent else None
    arguments = v.double(), 2, None if chains is None else chains.double()
    with torch.no_grad():
        expected = expected_cd_gradient(rounded, *arguments)
    rounded.W.data *= 1.25
    with torch.no_grad():
        control = expected_cd_gradient(rounded, *arguments)
    many = lambda x: None if x is None else x.repeat(500, 1)
    draws = [cd_gradient(m, many(v), 2, many(chains), g, torch.bfloat16)[0] for _ in range(200)]
    for name in "Wbc":
        x = torch.stack([d[name].double() for d in draws])
        assert x.dtype == torch.float64 and draws[0][name].dtype == torch.float32
        gap, wrong, se = (
            (x.mean(0) - expected[name]).abs(),
            (x.mean(0) - control[name]).abs(),
            x.std(0) / 200**0.5,
        )
        # 2^-9: a gradient is rounded to bfloat16 once
        assert (gap < 4 * se + 2**-9).all() and se.max() < 2e-3
        assert (wrong > 4 * se + 2**-9).any() or name == "b"


@pytest.mark.parametrize("products", [torch.float16, torch.float32, "bfloat16", True])
def test_other_formats_of_products(products):
    with pytest.raises(ValueError, match="products must be None or torch.bfloat16"):
        cd_gradient(RBM(4, 3), torch.zeros(2, 4), products=products)


def test_real_states_are_not_rounded():
    with pytest.raises(ValueError, match="products"):
        cd_gradient(RBM(4, 3, "gaussian"), torch.zeros(2, 4), products=torch.bfloat16)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_on_cuda(dtype):
    g = torch.Generator("cuda").manual_seed(0)
    x, w = (
        torch.randn(256, 300, device="cuda", generator=g).to(dtype),
        torch.randn(200, 300, device="cuda", generator=g).to(dtype),
    )
    b = torch.zeros(200, device="cuda", dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.no_grad(): s = draw_bits(affine(x, w), b, -1, g)
    assert s.is_cuda and s.dtype == dtype and set(s.unique().tolist()) == {-1.0, 1.0}
