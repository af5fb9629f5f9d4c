"""Numbers, samplers, estimates, argument checks and files of foundations.core."""
import json
import math
import os

from hypothesis import given, settings, strategies as st
import mpmath
import pytest
import safetensors.torch
import torch

from rbmdiff.foundations.core import (
    Estimate, check_batch, check_choice, check_count, check_states, check_tensor, cumulant, log_mean_exp, logit, read_tensors,
    replace_file, sample_unit, unit_mean, write_tensors)

UNITS = ("bernoulli", "spin")
cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
fields = st.floats(-1e4, 1e4, allow_subnormal=False)
quick = settings(max_examples=50, deadline=None)


def exact_cumulant(x, unit):
    with mpmath.workdps(50):
        return float(mpmath.log1p(mpmath.exp(x)) if unit == "bernoulli" else mpmath.log(2 * mpmath.cosh(x)))


@pytest.mark.parametrize("unit", UNITS)
@quick
@given(x=fields)
def test_cumulant_is_the_log_of_the_sum_of_weights(unit, x):
    got = cumulant(torch.tensor(x, dtype=torch.float64), unit).item()
    assert got == pytest.approx(exact_cumulant(x, unit), rel=1e-15, abs=5e-324)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_cumulant_and_mean_at_the_ends(unit, dtype):
    x = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], dtype=dtype)
    low = 0.0 if unit == "bernoulli" else -1.0
    assert cumulant(x, unit).dtype == unit_mean(x, unit).dtype == dtype
    assert torch.isfinite(cumulant(x, unit)).all()
    assert cumulant(x, unit)[-1] == 1e4 and cumulant(x, unit)[0] == (0.0 if unit == "bernoulli" else 1e4)
    assert unit_mean(x, unit)[[0, -1]].tolist() == [low, 1.0]


def test_a_spin_is_a_bit_with_twice_the_field():
    x = torch.linspace(-20, 20, 401, dtype=torch.float64)
    assert torch.allclose(unit_mean(x, "spin"), 2 * unit_mean(2 * x) - 1, atol=1e-15, rtol=0)
    assert torch.allclose(cumulant(x, "spin"), cumulant(2 * x) - x, atol=1e-13, rtol=0)


@pytest.mark.parametrize("unit", UNITS)
def test_mean_is_the_gradient_of_the_cumulant(unit):
    x = torch.linspace(-5, 5, 11, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y: cumulant(y, unit), x)
    slope, = torch.autograd.grad(cumulant(x, unit).sum(), x)
    assert torch.allclose(slope, unit_mean(x, unit), atol=1e-15, rtol=0)


@quick
@given(m=st.floats(1e-300, 1 - 2**-53, exclude_min=True))
def test_logit_inverts_the_mean(m):
    m = torch.tensor(m, dtype=torch.float64)
    assert unit_mean(logit(m)).item() == pytest.approx(m.item(), rel=1e-12)


@pytest.mark.parametrize("bad", (0.0, 1.0, -0.1, 1.1, math.nan))
def test_logit_refuses_what_has_no_field(bad):
    with pytest.raises(ValueError, match="m must lie strictly between 0 and 1"): logit(torch.tensor([0.5, bad]))


@pytest.mark.parametrize("shift", (-5000.0, 0.0, 5000.0))
def test_log_mean_exp_is_shift_equivariant_along_any_axis(shift):
    x = torch.randn(7, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for dim in (0, 1, -1): assert torch.allclose(log_mean_exp(x + shift, dim), x.exp().mean(dim).log() + shift, atol=1e-11, rtol=0)
    assert log_mean_exp(torch.full((9,), -math.inf)).item() == -math.inf


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_draws_have_the_right_mean(unit, dtype):
    n, x = 2**17, torch.linspace(-4, 4, 9, dtype=dtype)
    draws = sample_unit(x.expand(n, -1), unit, torch.Generator().manual_seed(3))
    mean = unit_mean(x.double(), unit)
    stderr = ((mean * (1 - mean) if unit == "bernoulli" else 1 - mean**2) / n).sqrt()
    assert draws.dtype == dtype and set(draws.unique().tolist()) == ({0.0, 1.0} if unit == "bernoulli" else {-1.0, 1.0})
    assert stderr.max() < 0.003 and ((draws.double().mean(0) - mean) / stderr).abs().max() < 4
    mutant = unit_mean(0.9 * x.double(), unit)                      # control: a field ten per cent too small
    assert ((draws.double().mean(0) - mutant) / stderr).abs().max() > 4


@pytest.mark.parametrize("unit", UNITS)
def test_pinned_units_never_flip_and_the_generator_decides(unit):
    low = 0.0 if unit == "bernoulli" else -1.0
    x = torch.tensor([-1e4, 1e4]).expand(10000, 2)
    assert torch.equal(sample_unit(x, unit).unique(dim=0), torch.tensor([[low, 1.0]]))
    x = torch.randn(50, 20)
    a, b = (sample_unit(x, unit, torch.Generator().manual_seed(7)) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, sample_unit(x, unit, torch.Generator().manual_seed(8)))


@pytest.mark.parametrize("function", (cumulant, unit_mean, sample_unit))
@pytest.mark.parametrize("unit", ("relu", "gaussian", "", None))
def test_unknown_unit(function, unit):
    with pytest.raises(ValueError, match="unit must be 'bernoulli' or 'spin'"): function(torch.zeros(3), unit)


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("unit", UNITS)
def test_cuda_draws_and_values(unit):
    x = torch.linspace(-3, 3, 7, dtype=torch.float64, device="cuda")
    for f in (cumulant, unit_mean): assert torch.allclose(f(x, unit).cpu(), f(x.cpu(), unit), atol=1e-14)
    g = torch.Generator("cuda").manual_seed(0)
    draws, mean = sample_unit(x.expand(2**16, -1), unit, g), unit_mean(x, unit)
    stderr = ((mean * (1 - mean) if unit == "bernoulli" else 1 - mean**2) / 2**16).sqrt()
    assert ((draws.mean(0) - mean) / stderr).abs().max() < 4


# Estimates

def test_estimate_is_the_textbook_formula():
    draws = torch.tensor([1.0, 2.0, 4.0, 7.0], dtype=torch.float64)
    e = Estimate.of(draws)
    assert (e.value, e.n) == (3.5, 4) and e.stderr == pytest.approx(math.sqrt(21 / 3 / 4)) and e.z(3.5 - e.stderr) == pytest.approx(1)


@pytest.mark.parametrize("shape", ((), (1,), (0,), (3, 2)))
def test_estimate_needs_several_draws(shape):
    with pytest.raises(ValueError, match=r"draws must have shape \[n\] with n > 1"): Estimate.of(torch.zeros(shape))


@pytest.mark.parametrize("value, stderr, text", ((-86.3412, 0.0271, "-86.341 ± 0.027"), (3.14159, 0.5, "3.14 ± 0.50"), (1234.5, 12.0, "1234 ± 12"),
                                                 (2.0, 0.0, "2 ± 0"), (0.0123456, 0.00012, "0.01235 ± 0.00012"), (1.0, math.inf, "1 ± inf")))
def test_estimate_prints_two_digits_of_its_error(value, stderr, text):
    assert str(Estimate(value, stderr, 10)) == text


# Arguments

@pytest.mark.parametrize("x, kind, match", (
    (None, TypeError, "x must be a torch.Tensor, got NoneType"), ([0.0, 1.0], TypeError, "x must be a torch.Tensor, got list"),
    (torch.zeros(2, 4, dtype=torch.int64), TypeError, "float32 or float64, got torch.int64"),
    (torch.zeros(2, 4, dtype=torch.bool), TypeError, "got torch.bool"), (torch.zeros(2, 4, dtype=torch.float16), TypeError, "got torch.float16"),
    (torch.zeros(2, 4, dtype=torch.bfloat16), TypeError, "got torch.bfloat16"), (torch.zeros(2, 4, dtype=torch.complex64), TypeError, "complex64"),
    (torch.zeros(2, 3), ValueError, r"x must have shape \[..., 4\], got \[2, 3\]"), (torch.tensor(1.0), ValueError, r"shape \[..., 4\], got \[\]"),
    (torch.zeros(0, 4), ValueError, "must not be empty"), (torch.zeros(2, 0, 4), ValueError, "must not be empty"),
    (torch.tensor([[0.0, 1, math.nan, 0]]), ValueError, "x must be finite"), (torch.tensor([[0.0, 1, math.inf, 0]]), ValueError, "finite"),
    (torch.tensor([[math.inf, -math.inf, 0, 0]]), ValueError, "finite")))
def test_check_tensor_refuses(x, kind, match):
    with pytest.raises(kind, match=match): check_tensor("x", x, 4)


def test_check_tensor_compares_device_and_dtype():
    with pytest.raises(ValueError, match="x must be on cpu, got meta"): check_tensor("x", torch.zeros(4, device="meta"), like=torch.zeros(1))
    with pytest.raises(TypeError, match="x must be torch.float64 like the parameters, got torch.float32"):
        check_tensor("x", torch.zeros(4), like=torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("x", (torch.zeros(4), torch.zeros(2, 3, 4), torch.full((3, 4), 3e38), torch.zeros(4, requires_grad=True), torch.zeros(1, 4).double()))
def test_check_tensor_accepts(x): check_tensor("x", x, 4)


def test_check_batch():
    x = torch.zeros(4, 2)
    check_batch("x", x), check_batch("x", x, x.shape, like=x)
    for wrong, error, words in ((x[0], ValueError, r"x must have shape \[B, ...\], got \[2\]"), (x.long(), TypeError, "x must be float32"),
                                (x[:3], ValueError, r"x must have shape \[4, 2\], got \[3, 2\]"), (x.double(), TypeError, "like the parameters")):
        with pytest.raises(error, match=words): check_batch("x", wrong, x.shape, like=x)


@pytest.mark.parametrize("unit, good, bad", (("bernoulli", (0.0, 1.0), (-1.0, 0.5, 2.0, math.nan)), ("spin", (-1.0, 1.0), (0.0, 0.5, math.nan))))
def test_check_states(unit, good, bad):
    check_states("v", torch.tensor(good), unit)
    for value in bad:
        with pytest.raises(ValueError, match=f"v must hold only .* \\({unit} units\\)"): check_states("v", torch.tensor([*good, value]), unit)
    check_states("v", torch.tensor([-3.7]), "gaussian")


def test_check_states_sees_errors_that_cancel():
    with pytest.raises(ValueError, match="v must hold only 0 or 1"): check_states("v", torch.tensor([0.5, 0.5, 0.5, 0.5, -0.618034, 1.618034]), "bernoulli")
    with pytest.raises(ValueError, match="v must hold only -1 or"): check_states("v", torch.tensor([0.0, 2**0.5]), "spin")


@pytest.mark.parametrize("n, kind", ((0, ValueError), (-3, ValueError), (1.0, TypeError), (True, TypeError), ("3", TypeError), (None, TypeError)))
def test_check_count_refuses(n, kind):
    with pytest.raises(kind, match="^k must be"): check_count("k", n)


def test_check_choice():
    check_choice("visible", "spin", UNITS)
    for bad in ("Spin", "", None, 3):
        with pytest.raises(ValueError, match="visible must be one of 'bernoulli', 'spin', got"): check_choice("visible", bad, UNITS)


# Files

@pytest.fixture
def file(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, "example", {"x": torch.arange(5.0), "y": torch.eye(2, dtype=torch.float64)[:, :1]}, {"note": "ü", "n": [1, 2]})
    return path


def test_round_trip_keeps_bits_and_description(file):
    tensors, meta = read_tensors(file, "example")
    assert torch.equal(tensors["x"], torch.arange(5.0)) and tensors["y"].dtype == torch.float64 and tensors["y"].shape == (2, 1)
    assert meta == {"kind": "example", "note": "ü", "n": [1, 2]} and os.listdir(file.parent) == [file.name]


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


@pytest.mark.parametrize("metadata", (None, {"rbmdiff": "null"}, {"rbmdiff": "[1]"}, {"rbmdiff": "{"}, {"rbmdiff": '{"kind": "RBM"}'}, {"format": "pt"}))
def test_foreign_files_are_refused(tmp_path, metadata):
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(2)}, path, metadata=metadata)
    with pytest.raises(ValueError, match="^path: "): read_tensors(path, "example")


@pytest.mark.parametrize("content", (b"", b"\x80\x04pickle", json.dumps({"kind": "example"}).encode(), b"\xff" * 100))
def test_other_formats_are_refused(tmp_path, content):
    path = tmp_path / "other"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged or no safetensors file"): read_tensors(path, "example")


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"): read_tensors(path, "example")


def test_interrupted_write_leaves_the_old_file(file):
    before = file.read_bytes()

    def write(temporary):
        with open(temporary, "wb") as f: f.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt): replace_file(file, write)
    assert file.read_bytes() == before and os.listdir(file.parent) == [file.name]
