"""Numbers, samplers, estimates, argument checks and files of foundations.core."""
import json
import math
import os
from types import SimpleNamespace

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest
import safetensors.torch
import torch

from rbmdiff.foundations import core
from rbmdiff.foundations.core import (
    Estimate,
    Stored,
    as_generator,
    bisected,
    check_answer,
    check_batch,
    check_choice,
    check_count,
    check_number,
    check_tensor,
    log_mean_exp,
    logit,
    normal,
    read_tensors,
    replace_file,
    uniform,
    write_tensors,
)

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
quick = settings(max_examples=50, deadline=None)


@quick
@given(m=st.floats(1e-300, 1 - 2**-53, exclude_min=True))
def test_logit_inverts_the_mean(m):
    m = torch.tensor(m, dtype=torch.float64)
    assert torch.sigmoid(logit(m)).item() == pytest.approx(m.item(), rel=1e-12)


@pytest.mark.parametrize("bad", (0.0, 1.0, -0.1, 1.1, math.nan))
def test_logit_refuses_what_has_no_field(bad):
    with pytest.raises(ValueError, match="m must (lie strictly between 0 and 1|be finite)"):
        logit(torch.tensor([0.5, bad]))


@pytest.mark.parametrize("shift", (-5000.0, 0.0, 5000.0))
def test_log_mean_exp_is_shift_equivariant_along_any_axis(shift):
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for dim in (0, 1, -1):
        assert torch.allclose(log_mean_exp(x + shift, dim), x.exp().mean(dim).log() + shift, atol=1e-11,
                              rtol=0)
    assert log_mean_exp(torch.full((9,), -math.inf)).item() == -math.inf


# Estimates

def test_estimate_is_the_textbook_formula():
    draws = torch.tensor([1.0, 2.0, 4.0, 7.0], dtype=torch.float64)
    e = Estimate.of(draws)
    assert (e.value, e.n) == (3.5, 4) and e.stderr == pytest.approx(math.sqrt(21 / 3 / 4))
    assert e.z(3.5 - e.stderr) == pytest.approx(1)


@pytest.mark.parametrize("shape", ((), (1,), (0,), (3, 2)))
def test_estimate_needs_several_draws(shape):
    with pytest.raises(ValueError, match=r"draws must (have shape \[n\] with n > 1|not be empty)"):
        Estimate.of(torch.zeros(shape))


@pytest.mark.parametrize("value, stderr, text",
                         ((-86.3412, 0.0271, "-86.341 ± 0.027"), (3.14159, 0.5, "3.14 ± 0.50"),
                          (1234.5, 12.0, "1234 ± 12"),
                          (2.0, 0.0, "2 ± 0"),
                          (0.0123456, 0.00012, "0.01235 ± 0.00012"), (1.0, math.inf, "1 ± inf")))
def test_estimate_shows_two_digits_of_its_error(value, stderr, text):
    assert str(Estimate(value, stderr, 10)) == repr(Estimate(value, stderr, 10)) == text


# Arguments

@pytest.mark.parametrize("x, kind, match", (
    (None, TypeError, "x must be a torch.Tensor, got NoneType"),
    ([0.0, 1.0], TypeError, "x must be a torch.Tensor, got list"),
    (torch.zeros(2, 4, dtype=torch.int64), TypeError, "float32 or float64, got torch.int64"),
    (torch.zeros(2, 4, dtype=torch.bool), TypeError, "got torch.bool"),
    (torch.zeros(2, 4, dtype=torch.float16), TypeError, "got torch.float16"),
    (torch.zeros(2, 4, dtype=torch.bfloat16), TypeError, "got torch.bfloat16"),
    (torch.zeros(2, 4, dtype=torch.complex64), TypeError, "complex64"),
    (torch.zeros(2, 3), ValueError, r"x must have shape \[..., 4\], got \[2, 3\]"),
    (torch.tensor(1.0), ValueError, r"shape \[..., 4\], got \[\]"),
    (torch.zeros(0, 4), ValueError, "must not be empty"),
    (torch.zeros(2, 0, 4), ValueError, "must not be empty"),
    (torch.tensor([[0.0, 1, math.nan, 0]]), ValueError, "x must be finite"),
    (torch.tensor([[0.0, 1, math.inf, 0]]), ValueError, "finite"),
    (torch.tensor([[math.inf, -math.inf, 0, 0]]), ValueError, "finite")))
def test_check_tensor_refuses(x, kind, match):
    with pytest.raises(kind, match=match): check_tensor("x", x, 4)


def test_check_tensor_compares_device_and_dtype():
    with pytest.raises(ValueError, match="x must be on cpu, got meta"):
        check_tensor("x", torch.zeros(4, device="meta"), like=torch.zeros(1))
    with pytest.raises(TypeError,
                       match="x must be torch.float64 like the parameters, got torch.float32"):
        check_tensor("x", torch.zeros(4), like=torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("x",
                         (torch.zeros(4), torch.zeros(2, 3, 4), torch.full((3, 4), 3e38),
                          torch.zeros(4, requires_grad=True), torch.zeros(1, 4).double()))
def test_check_tensor_accepts(x): check_tensor("x", x, 4)


def test_check_batch():
    x = torch.zeros(4, 2)
    check_batch("x", x)
    check_batch("x", x, x.shape, like=x)
    for wrong, error, words in ((x[0], ValueError, r"x must have shape \[B, ...\], got \[2\]"),
                                (x.long(), TypeError, "x must be float32"),
                                (x[:3], ValueError, r"x must have shape \[4, 2\], got \[3, 2\]"),
                                (x.double(), TypeError, "like the parameters")):
        with pytest.raises(error, match=words): check_batch("x", wrong, x.shape, like=x)


@pytest.mark.parametrize("n, kind",
                         ((0, ValueError), (-3, ValueError), (1.0, TypeError), (True, TypeError),
                          ("3", TypeError), (None, TypeError)))
def test_check_count_refuses(n, kind):
    with pytest.raises(kind, match="^k must be"): check_count("k", n)


@pytest.mark.parametrize("n", (3, np.int64(3), np.uint8(3), torch.tensor(3)))
def test_check_count_takes_whatever_is_an_index(n):
    check_count("k", n)
    with pytest.raises(ValueError, match="^k must be at least 4, got"): check_count("k", n, 4)


@pytest.mark.parametrize("x", (0.5, 0, 1, np.float32(0.25), np.int64(1)))
def test_check_number_accepts(x):
    check_number("eta", x, least=0, most=1)


@pytest.mark.parametrize("x, bounds, kind, match", (
    (-0.1, {"least": 0}, ValueError, "eta must be finite and at least 0, got -0.1"),
    (0, {"above": 0}, ValueError, "above 0, got 0"),
    (1.1, {"most": 1}, ValueError, "at most 1, got 1.1"),
    (1, {"least": 0, "below": 1}, ValueError, "at least 0 and below 1, got 1"),
    (math.nan, {}, ValueError, "finite, got nan"), (math.inf, {"least": 0}, ValueError, "got inf"),
    (True, {}, TypeError, "a number, got bool"),
    ("1", {}, TypeError, "got str"), (None, {}, TypeError, "got NoneType"),
    (1j, {}, TypeError, "got complex")))
def test_check_number_refuses(x, bounds, kind, match):
    with pytest.raises(kind, match=f"^eta must be .*{match.split('must be ')[-1]}"):
        check_number("eta", x, **bounds)


# Random streams

X = torch.zeros(4, 3, dtype=torch.float64)


def test_a_seed_is_a_generator_and_a_generator_stays_one():
    g = torch.Generator().manual_seed(3)
    assert as_generator(g, X) is g and as_generator(None, X) is None
    several = as_generator([g, 4], X)
    assert several[0] is g and as_generator(several, X) == several
    for seed in (3, np.int64(3)):
        assert torch.equal(torch.rand(5, generator=as_generator(seed, X)),
                           torch.rand(5, generator=torch.Generator().manual_seed(3)))


@pytest.mark.parametrize("bad, kind",
                         (("7", TypeError), (1.0, TypeError), (True, TypeError), ([], ValueError),
                          ([1, "2"], TypeError),
                          ([torch.default_generator] * 2, ValueError),
                          (object(), TypeError)))
def test_bad_streams(bad, kind):
    with pytest.raises(kind, match="^generator must"): as_generator(bad, X)


def test_a_generator_of_another_device():
    with pytest.raises(ValueError, match="generator must be on meta, got cpu"):
        as_generator(torch.Generator(), X.to("meta"))


@pytest.mark.parametrize("draw", (normal, uniform))
@pytest.mark.parametrize("shape, dim", (((4, 3), 0), ((4, 2, 3), 0), ((2, 4, 3), -2), ((4, 3), -2)))
def test_every_sample_has_its_stream(draw, shape, dim):
    together = draw(shape, X, as_generator([10, 11, 12, 13], X), dim)
    alone = draw([1 if n == 4 else n for n in shape], X, as_generator([12], X), dim)
    assert together.shape == shape and torch.equal(together.select(dim, 2), alone.select(dim, 0))
    assert not torch.equal(together.select(dim, 1), alone.select(dim, 0))


def test_one_stream_is_that_of_torch():
    g = torch.Generator().manual_seed(1)
    assert torch.equal(normal((5,), X, as_generator(1, X)),
                       torch.randn(5, dtype=torch.float64, generator=g))


@pytest.mark.parametrize("shape, generator, kind",
                         (((3, 2), [1, 2], ValueError), ((2,), [1, 2, 3], ValueError),
                          ((), [1], ValueError), ((3,), 7, TypeError)))
def test_streams_that_do_not_fit(shape, generator, kind):
    stream = generator if isinstance(generator, int) else as_generator(generator, X)
    with pytest.raises(kind, match="^generator must"): normal(shape, X, stream)


# Stored modules

class Line(Stored):
    def __init__(self, n, slope=1.0, dtype=None):
        super().__init__()
        self.settings = {"n": n, "slope": slope}
        self.w = torch.nn.Parameter(torch.full((n,), slope, dtype=dtype))


def test_a_stored_module_comes_back(tmp_path):
    Line(3, 2.5, torch.float64).save(tmp_path / "line")
    again = Line.load(tmp_path / "line")
    assert type(again) is Line and again.settings == {"n": 3, "slope": 2.5}
    assert torch.equal(again.w, torch.full((3,), 2.5, dtype=torch.float64))
    with pytest.raises(ValueError, match="does not hold a complete Line"):
        Line.load(tmp_path / "line", n=4)


def test_check_answer():
    x = torch.zeros(3, 2)
    y = torch.zeros(3, 2, dtype=torch.bfloat16)
    assert check_answer("f", y, x) is y and check_answer("f", SimpleNamespace(sample=y), x) is y
    z = torch.zeros(3, dtype=torch.float64)
    assert check_answer("f", z, x, x.shape[:-1]) is z and check_answer("f", z.sum(), x, ()).ndim == 0
    for wrong, shape in ((z, None), (x, (3,)), (x.to("meta"), None)):
        with pytest.raises(ValueError, match="^f must return shape .* on cpu for x of"):
            check_answer("f", wrong, x, shape)
    for wrong in (None, 1.0, [x], x.numpy(), SimpleNamespace(mean=x), torch.distributions.Normal(x, 1)):
        with pytest.raises(TypeError, match="^f must return a torch.Tensor"): check_answer("f", wrong, x)
    for wrong in (x.long(), x > 0, x + 0j, x.to_sparse()):
        with pytest.raises(TypeError, match="^f must return dense"): check_answer("f", wrong, x)


def test_check_choice():
    check_choice("visible", "spin", ("bernoulli", "spin"))
    for bad in ("Spin", "", None, 3):
        with pytest.raises(ValueError, match="visible must be one of 'bernoulli', 'spin', got"):
            check_choice("visible", bad, ("bernoulli", "spin"))


# Files

@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, "example",
                  {"x": torch.arange(5.0), "y": torch.eye(2, dtype=torch.float64)[:, :1]},
                  {"note": "ü", "n": [1, 2]})
    return path


def test_round_trip_keeps_bits_and_description(file):
    tensors, meta = read_tensors(file, "example")
    assert torch.equal(tensors["x"], torch.arange(5.0)) and tensors["y"].dtype == torch.float64
    assert tensors["y"].shape == (2, 1)
    assert meta == {"kind": "example", "note": "ü",
                    "n": [1, 2]} and os.listdir(file.parent) == [file.name]


def test_file_cut_anywhere_is_refused(file):
    whole = file.read_bytes()
    for n in range(0, len(whole), 7):
        file.write_bytes(whole[:n])
        with pytest.raises(ValueError, match="^path: "): read_tensors(file, "example")


def test_damaged_header_never_raises_anything_else(file):
    whole = file.read_bytes()
    for k in range(0, len(whole) - 56, 3):
        file.write_bytes(whole[:k] + bytes([whole[k] ^ 0x5A]) + whole[k + 1:])
        try: read_tensors(file, "example")
        except ValueError as error: assert str(error).startswith("path: ")


@pytest.mark.parametrize("metadata",
                         (None, {"rbmdiff": "null"}, {"rbmdiff": "[1]"}, {"rbmdiff": "{"},
                          {"rbmdiff": '{"kind": "RBM"}'}, {"format": "pt"}))
def test_foreign_files_are_refused(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(ValueError, match="^path: "): read_tensors(path, "example")


@pytest.mark.parametrize("content",
                         (b"", b"\x80\x04pickle", json.dumps({"kind": "example"}).encode(),
                          b"\xff" * 100))
def test_other_formats_are_refused(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or no safetensors file"): read_tensors(path, "example")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"): read_tensors(path, "example")


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_files_have_ordinary_permissions(tmp_path, umask, mode):
    before = os.umask(umask)
    try: write_tensors(tmp_path / "a", "example", {"x": torch.ones(2)}, {})
    finally: os.umask(before)
    assert (tmp_path / "a").stat().st_mode & 0o777 == mode


def test_a_full_disk_is_an_error_of_the_file(tmp_path, monkeypatch):
    def full(*args, **kwargs): raise safetensors.SafetensorError("No space left on device")
    monkeypatch.setattr(core, "save_file", full)
    with pytest.raises(OSError, match="a cannot be written: No space"):
        write_tensors(tmp_path / "a", "example", {"x": torch.ones(2)}, {})
    assert not list(tmp_path.iterdir())


def test_interrupted_write_leaves_the_old_file(file):
    before = file.read_bytes()

    def write(temporary):
        with open(temporary, "wb") as f: f.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): replace_file(file, write)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]


def test_an_interval_is_halved_down_to_rounding():
    """One place an element, also at the ends; before a place that is not there lies the far end."""
    x = torch.tensor([0.0, 0.25, 2.0, 9.0], dtype=torch.float64)
    found = bisected(lambda y: y**2 < x, torch.zeros_like(x), torch.full_like(x, 2.0))
    wanted = torch.tensor([0.0, 0.5, math.sqrt(2), 2.0], dtype=torch.float64)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-15)
    assert (found - bisected(lambda y: y**2 >= x, torch.zeros_like(x), x)).abs().max() > 1
