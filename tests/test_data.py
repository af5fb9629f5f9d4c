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
    bars_and_stripes,
    base_rate,
    binarize,
    binarize_stochastic,
    digits,
    gaussian_mixture,
    independent_log_prob,
    intensities,
    load,
    mixture_log_prob,
    mnist,
    noise_entropy,
    read_idx,
    ring_means,
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


# Own arrays

@pytest.mark.parametrize("x, kind, message", [
    pytest.param([[0.0, math.nan]], ValueError, "finite", id="nan"),
    pytest.param([[0.0, math.inf]], ValueError, "finite", id="infinity"),
    pytest.param([[0.0, 1.2]], ValueError, r"\[0, 1\]", id="above one"),
    pytest.param([[-0.1, 1.0]], ValueError, r"\[0, 1\]", id="negative"),
    pytest.param([[0, 256]], ValueError, "0 to 255", id="above 255"),
    pytest.param([[-1, 1]], ValueError, "0 to 255", id="integer spins"),
    pytest.param([0.0, 1.0], ValueError, r"\[N, D\]", id="rank 1"),
    pytest.param(np.zeros((2, 2, 2, 2)), ValueError, r"\[N, D\]", id="rank 4"),
    pytest.param(np.zeros((0, 4)), ValueError, "empty", id="no images"),
    pytest.param([[1j]], TypeError, "complex", id="complex"),
    pytest.param([["a"]], TypeError, "real numbers", id="text"),
    pytest.param([[None]], TypeError, "object", id="object")])
def test_bad_array(x, kind, message):
    with pytest.raises(kind, match=message): intensities(x)


def test_array_kinds():
    grey = np.array([[0, 51], [255, 102]], dtype=np.uint8)
    assert torch.equal(intensities(grey), torch.tensor([[0, 0.2], [1, 0.4]]))
    assert torch.equal(intensities(grey > 60), torch.tensor([[0.0, 0], [1, 1]]))
    assert torch.equal(intensities(np.array([[0, 1], [1, 1]])), torch.tensor([[0.0, 1], [1, 1]]))
    assert intensities([[-3.0, 7.0]], limits=None).tolist() == [[-3, 7]]
    assert intensities([[-1.0, 1.0]], limits=(-1, 1), dtype=torch.float64).dtype == torch.float64
    assert intensities(np.zeros((5, 2, 3))).shape == (5, 6)


@pytest.mark.parametrize("kind", ["u1", "i1", "i8", "?", "f4"])
def test_without_limits_numbers_stay_what_they_are(kind, tmp_path):
    x = np.array([[0, 3], [7, 100]]).astype(kind)
    assert intensities(x, limits=None).tolist() == x.astype(float).tolist()
    np.save(tmp_path / "counts.npy", x)
    assert load(tmp_path / "counts.npy", limits=None)[0].tolist() == x.astype(float).tolist()
    assert intensities(np.array([[-3, 300]]), limits=None).tolist() == [[-3, 300]]


# The door

@pytest.mark.parametrize("name, write, message", [
    pytest.param("a.npy", lambda p: p.write_bytes(b"garbage"), "not a readable .npy", id="garbage npy"),
    pytest.param("a.npy", lambda p: p.write_bytes(b""), "not a readable .npy", id="empty npy"),
    pytest.param("a.npz", lambda p: p.write_bytes(b"garbage"), "not a readable .npz", id="garbage npz"),
    pytest.param("a.npy", lambda p: np.save(p, np.array([{}], dtype=object)), "not a readable .npy",
                 id="pickled npy"),
    pytest.param("a.npz", lambda p: np.savez(p, a=np.array([{}], dtype=object)), "not a readable .npz",
                 id="pickled npz"),
    pytest.param("a.npz", lambda p: np.savez(p, a=np.zeros((2, 2)), b=np.zeros(2)), "train and test",
                 id="two arrays"),
    pytest.param("a.npz", lambda p: np.savez(p, train=np.zeros((2, 2)), test=np.zeros((2, 3))),
                 "one width", id="widths"),
    pytest.param("a.npy", lambda p: np.save(p, np.full((2, 2), np.nan)), "finite", id="nan in npy"),
    pytest.param("a.csv", lambda p: p.write_text("1,2\n"), "not an IDX file", id="csv")])
def test_bad_data_file(tmp_path, name, write, message):
    write(tmp_path / name)
    with pytest.raises(ValueError, match=message): load(tmp_path / name)


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


def test_unknown_name():
    with pytest.raises(FileNotFoundError, match="'digits', 'mnist'"): load("digit")


def test_load_by_name_and_file(tmp_path):
    assert [len(part) for part in load("digits")] == [1500, 297]
    x = np.random.default_rng(0).random((6, 3, 3))
    np.save(tmp_path / "a.npy", x)
    np.savez(tmp_path / "one.npz", whatever=x)
    np.savez_compressed(tmp_path / "two.npz", train=x, test=x[:2])
    write_idx(tmp_path / "a.gz", (255 * x).astype(np.uint8))
    for name in ("a.npy", "one.npz", "a.gz"):
        train, test = load(tmp_path / name)
        assert train.shape == (6, 9) and test is None and train.dtype == torch.float32
        assert np.allclose(train.numpy(), x.reshape(6, 9), atol=1 / 255)
    assert [len(part) for part in load(str(tmp_path / "two.npz"))] == [6, 2]


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
    assert torch.equal(by_name[1], by_folder[1])


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
