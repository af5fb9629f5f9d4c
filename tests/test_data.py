"""Data: reading files that lie, the facts of the digits and of MNIST, bits, baseline, toys."""
from functools import partial
import gzip
import hashlib
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
import math
import os
from pathlib import Path
import struct
import threading
import zipfile

from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest
import torch

from rbmdiff.foundations import data
from rbmdiff.foundations.data import (
    Examples,
    Scale,
    bars_and_stripes,
    base_rate,
    binarize,
    binarize_stochastic,
    digits,
    gaussian_mixture,
    independent_log_prob,
    load,
    mixture_log_prob,
    mnist,
    noise_entropy,
    read_arrays,
    read_idx,
    ring_means,
    some,
    swiss_roll,
    write_idx,
)
from rbmdiff.foundations.units import as_unit

MNIST = Path(__file__).parents[2] / "shared/data/mnist"
needs_mnist = pytest.mark.skipif(not MNIST.is_dir(), reason=f"MNIST is not in {MNIST}")
IDX_TYPES = [np.dtype(t) for t in ("u1", "i1", "i2", "i4", "f4", "f8")]


# IDX files

@settings(max_examples=60, deadline=None)
@given(hnp.arrays(st.sampled_from(IDX_TYPES), hnp.array_shapes(min_dims=1, max_dims=4, max_side=6)),
       st.booleans())
def test_idx_round_trip(tmp_path_factory, array, packed):
    path = tmp_path_factory.mktemp("idx") / ("a.idx" + packed * ".gz")
    write_idx(path, array)
    back = read_idx(path)
    assert back.dtype == array.dtype and back.dtype.isnative and back.shape == array.shape
    assert back.tobytes() == array.tobytes()                                     # NaN payloads included
    assert os.listdir(path.parent) == [path.name]                                # no temporary file left


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40), st.booleans(), st.booleans())
def test_random_bytes_never_crash_the_reader(tmp_path_factory, content, idx_like, packed):
    path = tmp_path_factory.mktemp("idx") / "a"
    content = b"\0\0\x08" * idx_like + content
    path.write_bytes(gzip.compress(content) if packed else content)
    try: array = read_idx(path)
    except ValueError as error: assert str(path) in str(error)
    else: assert len(content) == 4 + 4 * array.ndim + array.nbytes


def test_idx_is_big_endian(tmp_path):
    (tmp_path / "a").write_bytes(b"\0\0\x0c\1" + struct.pack(">Iii", 2, 1, -2))
    assert read_idx(tmp_path / "a").tolist() == [1, -2]


GOOD = b"\0\0\x08\2" + struct.pack(">II", 2, 3) + bytes(range(6))


@pytest.mark.parametrize("content, message", [
    pytest.param(b"", "not an IDX file", id="empty"),
    pytest.param(b"label,pixel\n", "not an IDX file", id="text"),
    pytest.param(b"\0\0\x07\1" + GOOD[4:], "unknown type code 0x07", id="type"),
    pytest.param(GOOD[:7], "ends inside its IDX header", id="header"),
    pytest.param(b"\0\0\x08\xff" + bytes(4 * 255), "255 axes", id="axes"),
    pytest.param(GOOD[:-1], r"promises \[2, 3\] in 6 bytes, the file holds only 5", id="short"),
    pytest.param(GOOD + b"\0", "promises .* the file holds more", id="long"),
    pytest.param(b"\0\0\x0e\3" + b"\xff" * 12 + bytes(9), "the file holds only 9", id="huge"),
    pytest.param(gzip.compress(b"\0\0\x0e\3" + b"\xff" * 12 + bytes(9)), "the file holds only 9",
                 id="huge gzip"),
    pytest.param(gzip.compress(GOOD)[:-9], "damaged or truncated gzip", id="truncated gzip"),
    pytest.param(gzip.compress(GOOD)[:-3], "damaged or truncated gzip", id="truncated trailer"),
    pytest.param(gzip.compress(GOOD)[:12] + b"\xff\xff\xff" + gzip.compress(GOOD)[15:],
                 "damaged or truncated gzip", id="damaged"),
    pytest.param(b"\0\0\x08\2" + struct.pack(">II", 0, 3), "must not be empty", id="no images")])
def test_bad_idx_file(tmp_path, content, message):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=message): read_idx(tmp_path / "a")


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="none at"): read_idx(tmp_path / "a")


def test_wrong_checksum(tmp_path):
    (tmp_path / "a").write_bytes(gzip.compress(GOOD))
    right = hashlib.sha256(GOOD).hexdigest()
    assert read_idx(tmp_path / "a", right).shape == (2, 3)
    with pytest.raises(ValueError, match="wrong checksum"): read_idx(tmp_path / "a", right[::-1])


def test_write_idx_refuses_other_types(tmp_path):
    with pytest.raises(TypeError, match="int64"): write_idx(tmp_path / "a", np.zeros(3, dtype=np.int64))
    assert not list(tmp_path.iterdir())


# What the numbers of a file are

ALL = np.arange(256).reshape(16, 16)
BITS, SPINS = np.array([[0, 1], [1, 1]]), np.array([[-1, 1], [1, 1]])
DECIDED = {  # name: (array, unit, kind, what the machine sees)
    "bits": (BITS, "bernoulli", "states", BITS),
    "spins": (SPINS, "spin", "states", SPINS),
    "bits for spins": (BITS, "spin", "intensities", BITS),
    "grey": (ALL, "bernoulli", "grey levels", ALL / 255),
    "black and white": (255 * BITS, "spin", "grey levels", BITS),
    "shades": (BITS / 2, "bernoulli", "intensities", BITS / 2),
    "own levels": (2.5 * BITS - 0.5, "binary((-0.5, 2.0))", "states", 2.5 * BITS - 0.5),
    "counts": (ALL, "poisson", "states", ALL),
    "levels": (SPINS, "discrete((-1.0, 0.0, 1.0))", "states", SPINS),
    "colours": (np.eye(3)[[0, 2, 1]], "potts(3)", "states", np.eye(3)[[0, 2, 1]])}


@pytest.mark.parametrize("kind", ["u1", "i8", "f4", "f8"])
@pytest.mark.parametrize("name", DECIDED)
def test_the_kind_of_numbers_is_decided_by_value_not_by_type(name, kind):
    x, unit, wanted, seen = DECIDED[name]
    y = x.astype(kind)
    if not np.array_equal(x, y): return                                # the type does not hold them
    scale = Scale.of(y, unit)
    assert scale.kind == wanted and scale.log_volume == 0
    for dtype in (torch.float32, torch.float64):
        assert torch.equal(scale.apply(y, unit, dtype=dtype), torch.from_numpy(seen).to(dtype))


@pytest.mark.parametrize("x, unit, words", [
    pytest.param([[0, 1], [2, 1]], "bernoulli", "whole numbers in [0, 2]", id="copies of a gene"),
    pytest.param([[0, 9], [16, 1]], "spin", "or take units for counts", id="ink 0 to 16"),
    pytest.param([[0, 99], [50, 1]], "bernoulli", "--visible", id="0 to 99"),
    pytest.param([[0, 256], [50, 1]], "bernoulli", "[0, 256]", id="above 255"),
    pytest.param(SPINS, "bernoulli", "spin units for -1 and 1", id="spins for bits"),
    pytest.param([[0.0, 1.2], [1, 1]], "bernoulli", "got numbers in [0, 1.2]", id="above one"),
    pytest.param([[-0.1, 1.0], [1, 1]], "spin", "[-0.1, 1]", id="negative"),
    pytest.param([[3, 4]] * 7, "gaussian", "all 7 are equal", id="equal examples"),
    pytest.param([[1, 0]] * 7, "bernoulli", "all 7 are equal", id="equal bits"),
    pytest.param([[1e300, 0], [-1e300, 1]], "gaussian", "double precision", id="overflow")])
def test_numbers_that_are_not_plain_are_refused(x, unit, words):
    for kind in (None, float):
        with pytest.raises(ValueError) as caught: Scale.of(np.array(x, kind), unit, "mine")
        assert words in str(caught.value) and str(caught.value).startswith("mine ")


def test_measurements_are_standardised_column_by_column_and_come_back():
    x = np.random.default_rng(0).normal(5, 2, (50, 3)) * [1, 1e-3, 1e6]
    x[:, 1] = 0.1                                                      # constants keep their unit
    scale = Scale.of(x, "gaussian")
    v = scale.apply(x, "gaussian", dtype=torch.float64)
    wanted = torch.tensor([1.0, 0, 1]).double()
    assert torch.allclose(v.mean(0), torch.zeros(3).double(), atol=1e-12)
    assert torch.allclose(v.std(0), wanted) and scale.spread[1] == 1
    assert np.allclose(scale.undo(v).numpy(), x, rtol=1e-12)
    assert scale.log_volume == pytest.approx(np.log(x[:, [0, 2]].std(0, ddof=1)).sum())
    cut = Scale.of(np.abs(x), "relu")
    assert cut.mean == (0, 0, 0) and cut.spread[2] == pytest.approx(np.abs(x)[:, 2].std(ddof=1))


@pytest.mark.parametrize("unit", ["gaussian", "relu"])
def test_whole_numbers_and_floats_of_measurements_are_one(unit):
    x = np.random.default_rng(1).integers(0, 100, (300, 6))
    a, b = (Scale.of(y, unit).apply(y, unit) for y in (x, x.astype(float)))
    assert torch.equal(a, b)


def test_later_data_go_through_the_scale_of_the_training_data():
    grey, measured = Scale.of(ALL), Scale.of(ALL, "gaussian")
    assert grey.apply(np.array([[0, 51]])).tolist() == torch.tensor([[0, 0.2]]).tolist()
    assert not torch.equal(measured.apply(ALL[:9], "gaussian"),
                           Scale.of(ALL[:9], "gaussian").apply(ALL[:9], "gaussian"))
    for later in ([[0, 1]], [[0.5, 0.2]]):                  # bits and shades are no grey levels
        with pytest.raises(ValueError, match="multiply intensities by 255"): grey.apply(np.array(later))
    with pytest.raises(ValueError, match=r"\[0, 1\]"): Scale.of(BITS / 2).apply(np.array([[0, 7]]))
    with pytest.raises(ValueError, match="0 or 1"): Scale.of(BITS).apply(BITS / 2)


def test_some_rows_are_a_random_choice_without_repetition():
    v = torch.arange(1000.0)[:, None]
    a = some(v, 300)
    assert len(a.unique()) == 300 and torch.equal(a, some(v, 300))
    assert not torch.equal(a, some(v, 300, 1))
    assert abs(a.mean().item() - 499.5) < 4 * 288.7 * math.sqrt(0.7 / 300)      # the first 300: 149.5
    assert some(v, 1000) is v
    with pytest.raises(ValueError, match="n must be"): some(v, 0)
    with pytest.raises(TypeError, match="one stream"): some(v, 3, [1, 2])


# The door

X = np.random.default_rng(0).integers(0, 256, (24, 6)).astype(np.uint8)


def text(content, name="a"): return lambda p: (p / name).write_bytes(content)
def saved(**arrays): return lambda p: np.savez(p / "a.npz", **arrays)


@pytest.mark.parametrize("write, message", [
    pytest.param(text(b"\x93NUMPYgarbage"), "not a readable .npy", id="garbage npy"),
    pytest.param(text(b""), "it is empty", id="empty file"),
    pytest.param(text(b"PK\3\4garbage"), "not a readable .npy or .npz", id="garbage npz"),
    pytest.param(lambda p: np.save(p / "a.npy", np.array([{}], dtype=object)), "not a readable .npy",
                 id="pickled npy"),
    pytest.param(saved(a=np.array([{}], dtype=object)), "not a readable .npy or .npz", id="pickled npz"),
    pytest.param(saved(a=X, b=X), r"by their names, got a \[24, 6\], b \[24, 6\]", id="two arrays"),
    pytest.param(saved(train=X, test=X[:, 1:]), "one width, got 6 and 5", id="widths"),
    pytest.param(lambda p: np.save(p / "a.npy", np.where(X == X[1, 2], np.nan, X)),
                 r"without missing values; \d+ of 144 are not, the first in row 1, column 2", id="nan"),
    pytest.param(lambda p: np.save(p / "a.npy", np.where(X == X[1, 2], np.inf, X)), "finite",
                 id="infinity"),
    pytest.param(text(b"1,2\n3,\n"), "numbers without missing values, got '' in row 1, column 1",
                 id="empty cell"),
    pytest.param(text(b"a,b\n1,NA\n"), "numbers without missing values, got 'NA' in row 0", id="NA"),
    pytest.param(text(b"1,2\n3,x\n"), "numbers alone, got 'x' in row 1", id="word"),
    pytest.param(text(b"1 2\n3\n"), "a table of numbers: .*columns", id="ragged"),
    pytest.param(text(b"1;2,5\n3;4,5\n"), "got '4,5'", id="decimal commas"),
    pytest.param(text(b",a,b\n0,1,2\n1,3,4\n"), "an index is no data", id="index"),
    pytest.param(text(b",0,1,2\n0,1,2,5\n"), "an index is no data", id="index of a matrix"),
    pytest.param(text(b"label\n"), "holds a line of titles", id="titles alone"),
    pytest.param(text(b"\xff\xfea\0,\0"), "data must be 'digits', 'mnist', a .npy", id="UTF-16"),
    pytest.param(text(b"\x89HDF\r\n\x1a\n00"), "it is an HDF5 file; data must be", id="HDF5"),
    pytest.param(text(b"\x80\x04\x95abc"), "it is a pickle", id="pickle"),
    pytest.param(text(b"\0\0\x07\1aaaa"), "not an IDX file", id="IDX type"),
    pytest.param(saved(indices=np.array([9]), indptr=np.array([0, 1]), format=np.array(b"csr"),
                       shape=np.array([1, 2]), data=np.ones(1)), "not a readable .npy or .npz",
                 id="index out"),
    pytest.param(saved(indices=np.zeros(0, int), indptr=np.zeros(2, int), format=np.array(b"csr"),
                       shape=np.array([2**40, 2**40]), data=np.ones(0)), "its shape is",
                 id="sparse giant")])
def test_bad_data_file(tmp_path, write, message):
    write(tmp_path)
    path, = tmp_path.iterdir()
    with pytest.raises(ValueError, match=message) as caught: load(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("x, kind, message", [
    pytest.param(X[0], ValueError, r"\[N, D\]", id="rank 1"),
    pytest.param(np.zeros((2, 2, 2, 2)), ValueError, r"\[N, D\]", id="rank 4"),
    pytest.param(X[:0], ValueError, "empty", id="no images"),
    pytest.param(X * 1j, TypeError, "complex", id="complex"),
    pytest.param(np.array([["a", "b"]]), TypeError, "real numbers", id="text")])
def test_bad_array(tmp_path, x, kind, message):
    np.save(tmp_path / "a.npy", x)
    with pytest.raises(kind, match=message): load(tmp_path / "a.npy")


def png(path, x, mode="L"):
    from PIL import Image
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).convert(mode).save(path)


def sparse_file(form):
    from scipy import sparse
    return lambda p: sparse.save_npz(p / "a", getattr(sparse, f"{form}_matrix")(X))


def lines(mark, head="", comment=""):
    rows = "\n".join(mark.join(map(str, row)) for row in X.tolist())
    return lambda p: (p / "a.any").write_text(comment + head + rows + "\n")


READ = {  # ways to write X, 24 x 6
    "npy": lambda p: np.save(p / "a.npy", X),
    "npy of another name": lambda p: (np.save(p / "a.npy", X), (p / "a.npy").rename(p / "a.csv")),
    "Fortran order, big endian": lambda p: np.save(p / "a.npy", np.asfortranarray(X.astype(">i4"))),
    "npz": saved(whatever=X), "npz with labels": saved(x=X, y=np.zeros(24)),
    "csr": sparse_file("csr"), "csc": sparse_file("csc"), "coo": sparse_file("coo"),
    "idx": lambda p: write_idx(p / "a", X), "idx.gz": lambda p: write_idx(p / "a.gz", X),
    "csv": lines(","), "csv with titles": lines(",", "a,b,c,d,e,f\n"), "amat": lines(" "),
    "counted titles": lines(",", "0,1,2,3,4,5\n"), "tabs": lines("\t"), "semicolons": lines(";"),
    "comment": lines(" ", comment="# numbers\n\n"), "spaces": lines("   "),
    "byte-order mark": lines(",", "\ufeffa,b,c,d,e,f\n"),
    "quotes": lines(",", '"a","b","c","d","e","f"\n'),
    "npy.gz": lambda p: (np.save(p / "b.npy", X), text(gzip.compress((p / "b.npy").read_bytes()))(p),
                         (p / "b.npy").unlink()),
    "csv.gz": lambda p: text(gzip.compress(b"\n".join(b",".join(b"%d" % v for v in r) for r in X)))(p),
    "pictures": lambda p: [png(p / "d" / f"{k:02}.png", row.reshape(2, 3)) for k, row in enumerate(X)],
    "pictures by class": lambda p: [png(p / "d" / "ab"[k > 9] / f"{k:02}.png", row.reshape(2, 3))
                                    for k, row in enumerate(X)]}


@pytest.mark.parametrize("kind", READ)
def test_what_people_have_is_read_by_content(tmp_path, kind):
    READ[kind](tmp_path)
    path, = tmp_path.iterdir()
    found = load(path)
    assert np.array_equal(found.train, X) and found.test is None and found.train.dtype.isnative
    assert found.shape == ((2, 3) if "pictures" in kind else None)


@pytest.mark.parametrize("arrays", [
    {"x_train": X, "y_train": X[:, 0], "x_test": X[:2], "y_test": X[:2, 0]},
    {"train": X, "test": X[:2]}, {"train": X, "valid": X[:3], "test": X[:2]},
    {"X": X, "y": X[:, :1], "X_test": X[:2]},
    {"train_images": X, "train_labels": X[:, :1], "test_images": X[:2]}])
def test_archives_name_their_parts(tmp_path, arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    found = load(tmp_path / "a.npz")
    assert np.array_equal(found.train, X) and np.array_equal(found.test, X[:2])


@pytest.mark.parametrize("form", ["{}-images-idx3-ubyte", "{}-images.idx3-ubyte.gz"])
def test_a_folder_of_idx_files_need_not_be_mnist(tmp_path, form):
    for part in ("train", "t10k"): write_idx(tmp_path / form.format(part), X.reshape(24, 2, 3))
    found = load(tmp_path)
    assert np.array_equal(found.train, X) and np.array_equal(found.test, X) and found.shape == (2, 3)


def test_pictures_for_training_and_for_test(tmp_path):
    for k, row in enumerate(X):
        png(tmp_path / ("train", "test")[k > 20] / f"{k:02}.png", row.reshape(2, 3))
    assert [len(x) for x in (load(tmp_path).train, load(tmp_path).test)] == [21, 3]
    png(tmp_path / "train" / "99.png", np.zeros((2, 3, 3), np.uint8), "RGB")
    with pytest.raises(ValueError, match=r"99.png must be grey .* got mode RGB"): load(tmp_path)
    png(tmp_path / "train" / "99.png", X)
    with pytest.raises(ValueError, match="99.png must be of the size of 00.png"): load(tmp_path)
    (tmp_path / "train" / "99.png").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match="99.png is not a readable picture"): load(tmp_path)


def test_names_come_before_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("digits", X)
    (tmp_path / "digits.npy").rename("digits")
    assert len(load("digits").train) == 1500
    for source in ("./digits", Path("digits")): assert np.array_equal(load(source).train, X)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no data that can be read"): load("empty")


def test_fingerprint_is_over_all_that_is_read():
    base = Examples(X, X[:3])
    others = [Examples(X.astype(np.int16), X[:3]), Examples(X, X[:4]), Examples(X, None),
              Examples(X.reshape(12, 12), X[:3]), Examples(X, X[:3], (2, 3)), Examples(X[::-1], X[:3])]
    for k in (0, 143):
        y = X.copy()
        y.ravel()[k] ^= 1
        others.append(Examples(y, X[:3]))
    y = X[:3].copy()
    y[2, 5] ^= 1
    found = {x.fingerprint for x in [base, Examples(X.copy(), X[:3].copy()), *others, Examples(X, y)]}
    assert len(found) == 1 + len(others) + 1


def test_a_tenth_is_held_out_always_the_same():
    a = Examples(X, None, (2, 3)).split()
    assert len(a.train) == 22 and len(a.test) == 2 and a.shape == (2, 3) and a.split() is a
    assert sorted(np.concatenate([a.train, a.test]).tolist()) == sorted(X.tolist())
    assert np.array_equal(a.test, Examples(X).split().test)
    with pytest.raises(ValueError, match="at least 20 examples"): Examples(X[:19]).split()


@pytest.mark.parametrize("shape", [(9999, 10), (2**31, 2**31)])
@pytest.mark.parametrize("packed", [False, True])
def test_npy_header_that_promises_too_much(tmp_path, shape, packed):
    """A false shape costs neither memory nor time, alone or inside an archive."""
    path = tmp_path / ("a.npz" if packed else "a.npy")
    with open(tmp_path / "part", "wb") as file:
        np.lib.format.write_array_header_1_0(file,
                                             {"shape": shape, "fortran_order": False, "descr": "<f8"})
        file.write(bytes(800))
    if packed:
        with zipfile.ZipFile(path, "w") as archive: archive.write(tmp_path / "part", "train.npy")
    else: (tmp_path / "part").rename(path)
    with pytest.raises(ValueError, match="not a readable"): load(path)


@settings(max_examples=100, deadline=None)
@given(st.binary(min_size=1, max_size=4), st.integers(0, 200))
def test_damaged_npy_never_crashes_the_reader(tmp_path_factory, noise, at):
    path = tmp_path_factory.mktemp("npy") / "a.npy"
    np.save(path, np.zeros((5, 5)))
    content = path.read_bytes()
    path.write_bytes(content[:at] + noise + content[at + len(noise):])
    try: load(path)
    except (ValueError, TypeError) as error: assert str(path) in str(error)


SEEDS = {kind: READ[kind]
         for kind in ("npy", "npz", "csr", "idx", "idx.gz", "csv with titles", "pictures")}


def mutated(content, rng):
    """`content` with some bytes changed, cut, doubled or put in."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(0, len(content) + 1))
        what = rng.integers(0, 4)
        if what == 0: content[at:at + 1] = bytes([rng.integers(0, 256)])
        elif what == 1: content[at:at + int(rng.integers(1, 9))] = b""
        elif what == 2: content[at:at] = rng.bytes(int(rng.integers(1, 9)))
        else: content[at:at] = content[at:at + 20]
    return bytes(content)


def fuzz(folder, kind, cases, seed):
    """How many of `cases` mutations of a file were read and refused; all else is an error."""
    SEEDS[kind](folder)
    path, = [p for p in sorted(folder.rglob("*")) if p.is_file()][:1]
    content, counts, rng = path.read_bytes(), [0, 0], np.random.default_rng(seed)
    for case in range(cases):
        bad = rng.bytes(int(rng.integers(0, 200))) if case % 10 == 0 else mutated(content, rng)
        path.write_bytes(bad)
        try:
            found = load(path.parent if kind == "pictures" else path)
        except (ValueError, TypeError) as error:
            assert str(path.parent) in str(error) and "\n" not in str(error), (bad, error)
            counts[1] += 1
        else:
            assert found.train.ndim == 2 and np.isfinite(found.train).all(), bad
            counts[0] += 1
    return counts


@pytest.mark.parametrize("kind", SEEDS)
def test_mutated_files_are_read_or_refused_in_one_line(tmp_path, kind):
    """A hundred here; `python tests/test_data.py N` takes N of each."""
    assert sum(fuzz(tmp_path, kind, 100, 1)) == 100


def test_unknown_name():
    with pytest.raises(FileNotFoundError, match="'digits', 'mnist'"): load("digit")


def test_load_by_name_and_file(tmp_path):
    found = load("digits")
    assert [len(part) for part in (found.train, found.test)] == [1500, 297] and found.shape == (8, 8)
    assert np.array_equal(found.train, digits()[0].numpy())
    x = np.random.default_rng(0).random((6, 3, 3))
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "one.npz", whatever=x)
    np.savez_compressed(tmp_path / "two.npz", train=x, test=x[:2])
    write_idx(tmp_path / "a.gz", (255 * x).astype(np.uint8))
    for name in ("a.npy", "one.npz", "a.gz"):
        found = load(tmp_path / name)
        assert found.train.shape == (6, 9) and found.test is None and found.shape == (3, 3)
        whole = 255 if name == "a.gz" else 1
        assert np.allclose(found.train / whole, x.reshape(6, 9), atol=1 / 255)
    assert list(read_arrays(tmp_path / "two.npz")) == ["train", "test"]


# Digits

def test_digits_facts():
    from sklearn.datasets import load_digits
    source = load_digits()
    train, test, train_labels, test_labels = digits(labels=True)
    assert train.shape == (1500, 64) and test.shape == (297, 64) and train.dtype == torch.float32
    order = np.random.RandomState(0).permutation(1797)
    assert np.array_equal(16 * torch.cat([train, test]).numpy(), source.data[order])
    assert np.array_equal(torch.cat([train_labels, test_labels]).numpy(), source.target[order])
    assert torch.equal(digits()[1], test) and digits(dtype=torch.float64)[0].dtype == torch.float64
    assert torch.equal(binarize(train, 7.5 / 16),
                       (torch.from_numpy(source.data[order[:1500]]) > 7).float())
    assert torch.equal(binarize(train, 7.5 / 16), binarize(train, 7 / 16))


def test_independent_pixels_on_digits():
    train, test = (binarize(part.double(), 7.5 / 16) for part in digits())
    found = independent_log_prob(test, base_rate(train)).mean().item()
    assert found == pytest.approx(-25.2163, abs=1e-3)


# MNIST

@needs_mnist
def test_mnist_facts():
    train, test, train_labels, test_labels = mnist(MNIST, labels=True)
    assert train.shape == (60000, 784) and test.shape == (10000, 784) and train.dtype == torch.float32
    assert train.min() == 0 and train.max() == 1
    assert train.double().mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert train_labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert torch.bincount(test_labels).tolist()[:3] == [980, 1135, 1032]
    assert noise_entropy(test) == pytest.approx(45.53, abs=0.01)                  # quoted in the chapter


@needs_mnist
def test_mnist_by_environment_folder_and_name(monkeypatch):
    monkeypatch.setenv("RBMDIFF_DATA", str(MNIST.parent))
    by_name, by_folder = load("mnist"), load(MNIST)
    assert by_name.fingerprint == by_folder.fingerprint and by_name.shape == (28, 28)
    seen = Scale.of(by_name.train).apply(by_name.train)
    assert torch.equal(seen, mnist(MNIST)[0])


def test_absent_mnist_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("RBMDIFF_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"--data-folder.*download=True.*RBMDIFF_DATA"): mnist()
    assert not list(tmp_path.iterdir())


def four_files(folder):
    """Tiny files of the names and form of MNIST: 3 and 2 images of 2 x 2."""
    folder.mkdir()
    for part, n in (("train", 3), ("t10k", 2)):
        write_idx(folder / f"{part}-images-idx3-ubyte.gz",
                  np.arange(4 * n, dtype=np.uint8).reshape(n, 2, 2))
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(n, dtype=np.uint8))
    return folder


def test_foreign_files_of_the_same_names(tmp_path):
    folder = four_files(tmp_path / "a")
    with pytest.raises(ValueError, match="wrong checksum"): mnist(folder)
    parts = mnist(folder, labels=True, verify=False)
    assert [list(part.shape) for part in parts] == [[3, 4], [2, 4], [3], [2]]


def test_labels_of_another_count(tmp_path):
    folder = four_files(tmp_path / "a")
    write_idx(folder / "train-labels-idx1-ubyte.gz", np.zeros(5, dtype=np.uint8))
    with pytest.raises(ValueError, match="5 labels for 3 images"):
        mnist(folder, labels=True, verify=False)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args): pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The four tiny files behind a local server, with their checksums in place of the real ones."""
    folder = four_files(tmp_path / "served")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    sums = lambda path: (hashlib.sha256(gzip.decompress(path.read_bytes())).hexdigest(),
                         hashlib.sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(data, "_MNIST", {path.stem: sums(path) for path in folder.iterdir()})
    monkeypatch.setattr(data, "_MNIST_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    yield folder
    server.shutdown()
    thread.join()
    server.server_close()


def test_download(mirror, tmp_path, capfd):
    target = tmp_path / "cache"
    parts = mnist(target, download=True, labels=True)
    assert [list(part.shape) for part in parts] == [[3, 4], [2, 4], [3], [2]]
    assert sorted(os.listdir(target)) == sorted(os.listdir(mirror))
    assert "100%" in capfd.readouterr().err                                      # the progress bar
    for path in mirror.iterdir(): path.unlink()
    # nothing is fetched twice
    assert len(mnist(target, download=True)[0]) == 3


def test_download_with_wrong_checksum(mirror, tmp_path):
    write_idx(mirror / "train-images-idx3-ubyte.gz", np.ones((3, 2, 2), dtype=np.uint8))
    with pytest.raises(ValueError, match=r"(?i)hash"): mnist(tmp_path / "cache", download=True)
    # nothing half done remains
    assert not list((tmp_path / "cache").iterdir())


# Bits and baseline

@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=3, max_side=5),
                  elements=st.floats(0, 1)), st.floats(0, 0.99))
def test_bits(x, threshold):
    x = torch.from_numpy(x)
    assert torch.equal(binarize(x, threshold), torch.from_numpy((x.numpy() > threshold).astype(float)))
    v = binarize_stochastic(x, torch.Generator().manual_seed(0))
    assert v.shape == x.shape and v.dtype == x.dtype and torch.equal(v * v, v)
    assert (v[x == 0] == 0).all() and (v[x == 1] == 1).all()
    assert torch.equal(v, binarize_stochastic(x, torch.Generator().manual_seed(0)))


DRAWS = {"bits": lambda g: binarize_stochastic(torch.full((3, 50), 0.4), g),
         "mixture": lambda g: gaussian_mixture(3, ring_means(), generator=g),
         "mixture with weights": lambda g: gaussian_mixture(3, ring_means(3), 0.1,
                                                            torch.tensor([0.2, 0.3, 0.5]).double(), g),
         "swiss roll": lambda g: swiss_roll(3, generator=g)}
ALONE = {"bits": lambda g: binarize_stochastic(torch.full((1, 50), 0.4), g),
         "mixture": lambda g: gaussian_mixture(1, ring_means(), generator=g),
         "mixture with weights": lambda g: gaussian_mixture(1, ring_means(3), 0.1,
                                                            torch.tensor([0.2, 0.3, 0.5]).double(), g),
         "swiss roll": lambda g: swiss_roll(1, generator=g)}


@pytest.mark.parametrize("name", DRAWS)
def test_streams(name):
    """A seed is a generator; with a sequence every sample has what it has alone."""
    assert torch.equal(DRAWS[name](5), DRAWS[name](torch.Generator().manual_seed(5)))
    together = DRAWS[name]([4, torch.Generator().manual_seed(5), np.int64(6)])
    for row, seed in zip(together, (4, 5, 6)): assert torch.equal(row[None], ALONE[name]([seed]))
    assert torch.equal(together[:1], ALONE[name](4))
    assert not torch.equal(together[0], together[1])
    with pytest.raises(ValueError, match="it holds 2"): DRAWS[name]([4, 5])
    with pytest.raises(TypeError, match="generator"): DRAWS[name]("five")


def test_every_call_draws_anew():
    x, g = torch.full((1000,), 0.5), torch.Generator().manual_seed(0)
    assert not torch.equal(binarize_stochastic(x, g), binarize_stochastic(x, g))


@pytest.mark.parametrize("call, kind, message", [
    pytest.param(lambda: binarize(torch.tensor([0, 1])), TypeError, "float32 or float64", id="integers"),
    pytest.param(lambda: binarize(torch.tensor([0.5]).half()), TypeError, "float32 or float64",
                 id="half"),
    pytest.param(lambda: binarize(torch.tensor([0.0, 1.5])), ValueError, r"x must lie in \[0, 1\]",
                 id="range"),
    pytest.param(lambda: binarize(torch.tensor([0.5]), 1.0), ValueError, "threshold",
                 id="threshold one"),
    pytest.param(lambda: binarize(torch.tensor([0.5]), math.nan), ValueError, "threshold",
                 id="threshold nan"),
    pytest.param(lambda: binarize_stochastic(torch.tensor([-0.1])), ValueError,
                 r"x must lie in \[0, 1\]", id="negative"),
    pytest.param(lambda: binarize_stochastic(torch.tensor([math.nan])), ValueError, "finite", id="nan"),
    pytest.param(lambda: base_rate(torch.zeros(4)), ValueError, r"\[N, D\]", id="rank"),
    pytest.param(lambda: base_rate(torch.zeros(4, 2), smoothing=0), ValueError, "smoothing",
                 id="smoothing"),
    pytest.param(lambda: base_rate(torch.zeros(4, 2), smoothing=math.nan), ValueError, "smoothing",
                 id="smoothing nan"),
    pytest.param(lambda: base_rate(torch.zeros(4, 2), smoothing=math.inf), ValueError, "smoothing",
                 id="smoothing infinite"),
    pytest.param(lambda: base_rate(-torch.ones(4, 2)), ValueError, r"v must lie in \[0, 1\]",
                 id="spins for bits"),
    pytest.param(lambda: base_rate(-2 * torch.ones(4, 2), unit="spin"), ValueError,
                 r"v must lie in \[-1, 1\]", id="no spins"),
    pytest.param(lambda: base_rate(torch.tensor([[math.nan]]), unit="gaussian"), ValueError, "finite",
                 id="nan for base rates"),
    pytest.param(lambda: base_rate(torch.zeros(4, 2).long()), TypeError, "float32 or float64",
                 id="integers for base rates"),
    pytest.param(lambda: base_rate(torch.zeros(4, 2), unit="relu"), ValueError, "unit", id="unit"),
    pytest.param(lambda: independent_log_prob(torch.full((4, 2), 0.3), torch.zeros(2)), ValueError,
                 "0 or 1", id="not bits"),
    pytest.param(lambda: independent_log_prob(torch.zeros(4, 3), torch.zeros(2)), ValueError,
                 r"\[\.\.\., 2\]", id="width"),
    pytest.param(lambda: noise_entropy(torch.tensor([[2.0]])), ValueError, r"x must lie in \[0, 1\]",
                 id="entropy range"),
    pytest.param(lambda: bars_and_stripes(0), ValueError, "n must be at least 1", id="no pixels"),
    pytest.param(lambda: bars_and_stripes(17), ValueError, "at most 16", id="too many patterns"),
    pytest.param(lambda: gaussian_mixture(0, ring_means()), ValueError, "n must be at least 1",
                 id="no draws"),
    pytest.param(lambda: gaussian_mixture(5, ring_means(), sigma=0.0), ValueError, "sigma", id="sigma"),
    pytest.param(lambda: gaussian_mixture(5, torch.zeros(3)), ValueError, r"\[K, d\]", id="means"),
    pytest.param(lambda: gaussian_mixture(5, ring_means(2), weights=torch.tensor([0.5, 0.6]).double()),
                 ValueError, "sum 1", id="weights"),
    pytest.param(lambda: mixture_log_prob(torch.zeros(3), ring_means().float()), ValueError,
                 r"\[\.\.\., 2\]", id="point"),
    pytest.param(lambda: swiss_roll(5, noise=-1), ValueError, "noise", id="noise"),
    pytest.param(lambda: swiss_roll(1.5), TypeError, "n must be an int", id="count")])
def test_bad_argument(call, kind, message):
    with pytest.raises(kind, match=message): call()


@settings(max_examples=50, deadline=None)
@given(hnp.arrays(np.float64, st.tuples(st.integers(1, 8), st.integers(1, 5)),
                  elements=st.sampled_from([0.0, 1.0])),
       st.floats(1e-3, 10))
def test_base_rate_is_the_smoothed_mean(v, s):
    m = (v.sum(0) + s) / (len(v) + 2 * s)
    b = base_rate(torch.from_numpy(v), s)
    assert torch.allclose(torch.sigmoid(b), torch.from_numpy(m), rtol=1e-12)
    spins = base_rate(torch.from_numpy(2 * v - 1), s, "spin")
    assert torch.allclose(torch.tanh(spins), torch.from_numpy(2 * m - 1), atol=1e-12)
    w = torch.from_numpy(v)
    assert torch.allclose(independent_log_prob(w, b), independent_log_prob(2 * w - 1, spins, "spin"),
                          rtol=1e-12)


@pytest.mark.parametrize("unit", ["bernoulli", "spin", "gaussian"])
def test_base_rate_gives_the_means(unit):
    v = torch.randn(120, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if unit != "gaussian": v = (v > 0.4).double()
    if unit == "spin": v = 2 * v - 1
    bias, total = base_rate(v, unit=unit), v.sum(0)
    mean = {"bernoulli": torch.sigmoid, "spin": torch.tanh, "gaussian": lambda x: x}[unit](bias)
    wanted = {"bernoulli": (total + 1) / 122, "spin": total / 122, "gaussian": total / 120}[unit]
    assert torch.allclose(mean, wanted, atol=1e-14)
    # control: not smoothed
    assert unit == "gaussian" or (v.mean(0) - wanted).abs().max() > 1e-4
    # a unit that never changes
    assert base_rate(torch.ones(5, 3), unit=unit).isfinite().all()
    # smoothing has no part in it
    assert unit != "gaussian" or torch.equal(base_rate(v, 7.0, unit), bias)


@pytest.mark.parametrize("unit",
                         ["binary((-0.5, 2.0))", "discrete((-1.0, 0.0, 1.0))", "binomial(4)", "poisson",
                          "potts(3)", "relu", "gaussian"])
def test_base_rate_for_every_kind_of_unit(unit):
    """Independent units with the fitted biases have the means of the data, but for the smoothing."""
    unit = as_unit("unit", unit)
    b = torch.linspace(-1, 0.5, 6, dtype=torch.float64)
    v = unit.draw(torch.zeros(4000, 6, dtype=torch.float64), b, torch.Generator().manual_seed(0))
    fitted = base_rate(v, unit=unit)
    assert (unit.mean(fitted) - v.mean(0)).abs().max() < 2e-3 and not torch.equal(fitted, b)
    assert (unit.mean(fitted) - unit.mean(b)).abs().max() < 0.1
    slope = torch.autograd.functional.jacobian(lambda b: independent_log_prob(v, b, unit).mean(), fitted)
    # the most likely biases
    assert slope.abs().max() < 2e-3
    control = torch.autograd.functional.jacobian(lambda b: independent_log_prob(v, b, unit).mean(),
                                                 fitted + 0.1 * b)
    assert control.abs().max() > 1e-2


@pytest.mark.parametrize("unit", ["gaussian", "relu"])
def test_widths_of_independent_units(unit):
    """With widths the fitted units have the means of the data, and the density has integral one."""
    unit = as_unit("unit", unit)
    sigma, b = torch.tensor([0.3, 2.0]).double(), torch.tensor([0.4, -1.0]).double()
    v = unit.draw(torch.zeros(3000, 2, dtype=torch.float64), b, torch.Generator().manual_seed(0), sigma)
    fitted = base_rate(v, unit=unit, sigma=sigma)
    assert torch.allclose(unit.mean(fitted, sigma), v.mean(0), atol=1e-9)
    assert not torch.allclose(unit.mean(base_rate(v, unit=unit), sigma), v.mean(0),
                              atol=1e-2) or unit.lowest < 0
    grid = torch.linspace(max(unit.lowest, -20), 20, 40001, dtype=torch.float64)
    middle = ((grid[1:] + grid[:-1]) / 2)[:, None]
    for s, bias in zip(sigma, b):
        p = independent_log_prob(middle, bias[None], unit,
                                 s[None]).exp().sum().item() * (grid[1] - grid[0]).item()
        assert p == pytest.approx(1, abs=1e-6)


# Toys

@pytest.mark.parametrize("n", range(1, 7))
def test_bars_and_stripes(n):
    v, p = bars_and_stripes(n)
    pictures = v.reshape(-1, n, n)
    assert len({tuple(row) for row in v.tolist()}) == len(v) == 2 ** (n + 1) - 2
    equal_rows = (pictures == pictures[:, :1]).all((1, 2))
    assert (equal_rows | (pictures == pictures[:, :, :1]).all((1, 2))).all()
    assert p.sum().item() == pytest.approx(1, abs=1e-14)
    assert torch.special.entr(p).sum().item() == pytest.approx((n + 1 - 2 ** (1 - n)) * math.log(2))


def test_mixture_is_sampled_from_its_density():
    """Counts in cells of the line against the integral of the density, chi-squared; control: sigma."""
    means, weights = torch.tensor([[-1.0], [1.5]]).double(), torch.tensor([0.25, 0.75]).double()
    n, edges = 2**18, torch.linspace(-3, 4, 29, dtype=torch.float64)
    x = gaussian_mixture(n, means, 0.5, weights, torch.Generator().manual_seed(0))
    counts = torch.histc(x[:, 0], 28, -3, 4)

    def chi2(sigma):
        fine = torch.linspace(-3, 4, 28 * 200 + 1, dtype=torch.float64)
        middle = (fine[1:] + fine[:-1]) / 2
        p = mixture_log_prob(middle[:, None], means, sigma, weights).exp()
        cells = p.reshape(28, 200).mean(1) * 0.25
        keep = n * cells > 10
        return ((counts - n * cells)[keep] ** 2 / (n * cells)[keep]).sum().item(), int(keep.sum())

    value, cells = chi2(0.5)
    assert len(edges) == 29 and value < cells + 4 * math.sqrt(2 * cells) and chi2(0.52)[0] > 10 * cells


def test_toys_follow_their_generator():
    for draw in (lambda g: gaussian_mixture(9, ring_means(), generator=g),
                 lambda g: swiss_roll(9, generator=g)):
        a, b, c = (draw(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
        assert torch.equal(a, b) and not torch.equal(a, c)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_bits_and_baseline_on_cuda():
    x = digits()[0].cuda()
    v = binarize_stochastic(x, torch.Generator("cuda").manual_seed(0))
    assert v.is_cuda and abs(v.mean().item() - x.mean().item()) < 0.01
    assert independent_log_prob(v, base_rate(v)).is_cuda
    assert gaussian_mixture(5, ring_means().cuda()).is_cuda


if __name__ == "__main__":
    import sys
    import tempfile
    import warnings

    warnings.simplefilter("ignore")
    for kind in SEEDS:
        with tempfile.TemporaryDirectory() as folder:
            print(kind, fuzz(Path(folder), kind, int(sys.argv[1]), 2), flush=True)
