"""The training loop: batches, averages, checkpoints that leave no trace, and files that must be
refused."""
from itertools import pairwise
import math

from hypothesis import given, settings, strategies as st
import pytest
import torch

from machines import seeded
from rbmdiff.foundations.core import check_tensor, write_tensors
from rbmdiff.foundations.train import (
    TrainState,
    ascend,
    batches,
    linear_decay,
    progress_bar,
    sgd,
    spaced,
    train,
)

OPTIMIZERS = {"sgd": lambda m: sgd(m, 0.1), "momentum": lambda m: sgd(m, 0.1, 0.9, 1e-3),
              "adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, amsgrad=True),
              "adamw": lambda m: torch.optim.AdamW(m.parameters(), lr=0.01, betas=(0.5, 0.9)),
              "rmsprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.5)}


def noisy(state, batch):
    """A step that uses the generator and what the last step carried."""
    memory = state.carry.get("memory", torch.zeros(3, dtype=batch.dtype, device=batch.device))
    noise = torch.randn(batch.shape, dtype=batch.dtype, device=batch.device, generator=state.generator)
    loss = (state.model(batch + 0.1 * noise) - memory).square().mean()
    loss.backward()
    state.carry["memory"] = 0.9 * memory + 0.1 * batch.mean(0)
    return {"loss": loss, "one": 1.0}


def new(optimizer="momentum", average=0.9, schedule=True, dtype=torch.float64, width=3, device="cpu"):
    g = torch.Generator(device).manual_seed(0)
    model = torch.nn.Linear(width, width, dtype=dtype, device=device)
    for p in model.parameters(): p.data = torch.randn(p.shape, dtype=dtype, device=device, generator=g)
    opt = OPTIMIZERS[optimizer](model)
    return TrainState(model, opt, g, linear_decay(opt, 60) if schedule else None, average)


def data(dtype=torch.float64, device="cpu"):
    return torch.randn(35, 3, dtype=dtype, generator=torch.Generator().manual_seed(5)).to(device)


def tensors(state):
    return [*state.model.state_dict().values(), *state.averages.values(), *state.carry.values(),
            state.generator.get_state()]


def same(a, b): return all(torch.equal(x, y) for x, y in zip(tensors(a), tensors(b), strict=True))


@given(n=st.integers(1, 200), size=st.integers(1, 250), seed=st.integers(0, 5))
@settings(deadline=None, max_examples=60)
def test_batches_partition_the_indices(n, size, seed):
    parts = batches(n, size, torch.Generator().manual_seed(seed))
    sizes = [len(p) for p in parts]
    assert sorted(torch.cat(parts).tolist()) == list(range(n))
    assert max(sizes) <= size and max(sizes) - min(sizes) <= 1 and len(parts) == math.ceil(n / size)


def test_batches_of_a_seed():
    ours = batches(10, 3, torch.Generator().manual_seed(5))
    assert all(map(torch.equal, batches(10, 3, 5), ours))
    assert not torch.equal(torch.cat(ours), torch.cat(batches(10, 3, 6)))
    for bad in ([1, 2], "5", 1.5):
        with pytest.raises(TypeError, match="^generator must be"): batches(10, 3, bad)


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("schedule", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_equals_uninterrupted(tmp_path, optimizer, schedule, average):
    whole, path = new(optimizer, average, schedule), tmp_path / "c.safetensors"
    for _ in train(whole, data(), noisy, 6, 8): pass
    killed = new(optimizer, average, schedule)
    for record in train(killed, data(), noisy, 6, 8):
        killed.save(path)
        if record.epoch == 4: break
    resumed = new(optimizer, average, schedule)
    for p in resumed.model.parameters(): p.data += 1  # nothing may come from the fresh objects
    resumed.load(path)
    assert resumed.epoch == 4 and resumed.updates == 20 and same(resumed, killed)
    for _ in train(resumed, data(), noisy, 6, 8): pass
    assert same(resumed, whole) and resumed.updates == whole.updates == 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_resume_in_both_precisions_with_data_drawn_every_epoch(tmp_path, dtype):
    drawn = lambda g: data(dtype) + torch.rand(35, 3, dtype=dtype, generator=g)
    runs = [new(dtype=dtype), new(dtype=dtype)]
    for _ in train(runs[0], drawn, noisy, 4, 8): pass
    for _ in train(runs[1], drawn, noisy, 2, 8): runs[1].save(tmp_path / "c")
    other = new(dtype=dtype)
    other.load(tmp_path / "c")
    for _ in train(other, drawn, noisy, 4, 8): pass
    assert same(other, runs[0])


def test_linear_decay_resumes_at_its_place(tmp_path):
    state = new()
    for _ in train(state, data(), noisy, 3, 8): state.save(tmp_path / "c")
    other = new()
    other.load(tmp_path / "c")
    assert other.optimizer.param_groups[0]["lr"] == pytest.approx(0.1 * (1 - 15 / 60), abs=1e-16)
    assert other.optimizer.state_dict()["param_groups"] == state.optimizer.state_dict()["param_groups"]


def test_records_count_and_average_the_scalars():
    seen = list(train(new(average=0.0), data(), noisy, 2, 10))
    assert [(r.epoch, r.updates) for r in seen] == [(1, 4), (2, 8)]
    assert seen[1].seconds > seen[0].seconds > 0
    assert seen[0].scalars["one"] == pytest.approx(1) and isinstance(seen[0].scalars["loss"], float)


def test_train_stops_at_the_total_and_can_be_extended():
    state = new()
    assert len(list(train(state, data(), noisy, 3))) == 3 and list(train(state, data(), noisy, 3)) == []
    assert [r.epoch for r in train(state, data(), noisy, 5)] == [4, 5]


def averaged(updates, average):
    """A state that went through random parameters [updates, 3, 3], and those."""
    state = new(average=average)
    history = torch.randn(updates, 3, 3, dtype=torch.float64, generator=seeded())
    for weight in history:
        state.model.weight.data.copy_(weight)
        state.updates += 1
        state.update_average()
    return state, history


def test_average_of_a_short_run_has_a_memory_of_an_eleventh_of_it():
    state, history = averaged(120, 0.999)
    r = torch.arange(1, 121, dtype=torch.float64)
    p = torch.exp(torch.lgamma(r + 9) - torch.lgamma(r))
    p /= p.sum()
    mean = torch.einsum("r,rij->ij", p, history)
    assert torch.allclose(state.averaged_model().weight, mean, atol=1e-13, rtol=0)
    assert math.isclose((p * (120 - r)).sum().item(), 119 / 11)


def test_average_of_a_long_run_forgets_with_its_decay():
    state, history = averaged(300, 0.8)
    p = 0.8 ** torch.arange(299, -1, -1, dtype=torch.float64)
    mean = torch.einsum("r,rij->ij", p / p.sum(), history)
    assert torch.allclose(state.averaged_model().weight, mean, atol=1e-13, rtol=0)
    assert not torch.allclose(state.averaged_model().weight, history[-1], atol=1e-3)


def test_averaged_model_is_a_copy():
    state = new(average=0.0)
    copy = state.averaged_model()
    copy.weight.data.zero_()
    assert state.model.weight.abs().sum() > 0 and state.model.weight.requires_grad
    assert not copy.weight.requires_grad


def test_ascend_climbs():
    model = torch.nn.Linear(2, 1, bias=False, dtype=torch.float64)
    before, gradient = model.weight.detach().clone(), torch.ones(1, 2, dtype=torch.float64)
    ascend(model, {"weight": gradient})
    sgd(model, 0.5).step()
    assert torch.allclose(model.weight, before + 0.5 * gradient)
    with pytest.raises(ValueError, match="'V'"): ascend(model, {"V": gradient})


def test_weight_decay_leaves_biases():
    model = torch.nn.Linear(2, 2, dtype=torch.float64)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    optimizer = sgd(model, 0.1, weight_decay=0.5)
    for p in model.parameters(): p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.allclose(model.weight, 0.95 * weight) and torch.equal(model.bias, bias)


def test_interruption_reaches_the_caller_and_closes_the_epoch_count():
    def step(state, batch):
        if state.updates == 7: raise KeyboardInterrupt
        return noisy(state, batch)
    state = new()
    with pytest.raises(KeyboardInterrupt):
        for _ in train(state, data(), step, 5, 8): pass
    assert state.epoch == 1


def test_progress_bar_shows_what_the_loop_adds(capsys):
    for record in train(new(), data(), noisy, 2, 8, progress=True): record.scalars["mine"] = 42.0
    shown = capsys.readouterr().err
    assert "epoch 2/2" in shown and "mine=42" in shown and "10/10" in shown
    for _ in train(new(), data(), noisy, 1): pass
    assert capsys.readouterr().err == ""                                       # no terminal, no bar


def test_a_seed_is_a_generator():
    runs = []
    for g in (3, torch.Generator().manual_seed(3)):
        model = torch.nn.Linear(3, 3, dtype=torch.float64)
        for p in model.parameters(): p.data.fill_(0.1)
        runs.append(TrainState(model, sgd(model, 0.1), g))
        for _ in train(runs[-1], data(), noisy, 2, 8): pass
    assert same(*runs)


def test_bars_are_shown_where_somebody_looks(capsys, monkeypatch):
    """In a terminal, in a notebook with widgets, or if asked; here there is neither."""
    from rbmdiff.foundations import train as module
    assert progress_bar(range(3)).disable and not progress_bar(range(3), True).disable
    assert progress_bar(range(3), False).disable

    class Widget(module.tqdm):
        __module__ = "tqdm.notebook"
    monkeypatch.setattr(module, "tqdm", Widget)
    assert not progress_bar(range(3)).disable and progress_bar(range(3), False).disable
    assert list(progress_bar([1, 2], desc="two")) == [1, 2] and "two" in capsys.readouterr().err


def test_divergence_is_an_error_before_the_epoch_is_yielded():
    state = new("sgd", schedule=False)
    state.optimizer.param_groups[0]["lr"] = 1e200
    with pytest.raises(FloatingPointError, match="learning rate"):
        list(train(state, data(), noisy, 50, 8))


def test_a_step_that_fails_after_divergence_fails_for_that_reason():
    """A step of the library refuses states that a machine has driven to infinity."""
    state = new("sgd", schedule=False)
    state.optimizer.param_groups[0]["lr"] = 1e200

    def strict(state, batch):
        check_tensor("chains", sum(p.sum() for p in state.model.parameters()))
        return noisy(state, batch)
    with pytest.raises(FloatingPointError, match="not finite, epoch 1: lower the learning rate"):
        list(train(state, data(), strict, 50, 8))


def seen_by(examples, batch_size=10, epochs=1):
    """The batches that a step is given."""
    found = []

    def step(state, batch):
        found.append(batch)
        return {}

    for _ in train(new(schedule=False), examples, step, epochs, batch_size): pass
    return found


def test_tensors_of_one_length_give_batches_of_the_same_rows():
    x, y = data(), torch.arange(35)
    for examples in ((x, y), [x, y], lambda generator: (x, y)):
        batches_seen = seen_by(examples)
        rows = torch.cat([labels for _, labels in batches_seen])
        assert sorted(rows.tolist()) == list(range(35)) and rows.dtype == torch.int64
        assert all(torch.equal(images, x[labels]) for images, labels in batches_seen)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_whole_numbers_keep_their_dtype_until_the_step(dtype):
    x = (10 * data()).abs().to(dtype)
    assert {batch.dtype for batch in seen_by(x)} == {dtype}


def test_a_loader_gives_its_batches_as_they_are():
    x, y = data(), torch.arange(35)
    dataset = torch.utils.data.TensorDataset(x, y)
    loader = torch.utils.data.DataLoader(dataset, batch_size=8, shuffle=True, generator=seeded())
    state = new(schedule=False)
    lengths = []

    def step(state, batch):
        images, labels = batch
        lengths.append(len(labels))
        assert torch.equal(images, x[labels])
        return {"loss": images.mean()}

    records = list(train(state, loader, step, 2))
    assert lengths == 2 * [8, 8, 8, 8, 3] and [r.updates for r in records] == [5, 10]
    assert math.isfinite(records[0].scalars["loss"])


BAD = {
    "zero epochs": (lambda s: next(train(s, data(), noisy, 0)), ValueError, "epochs"),
    "zero batch": (lambda s: next(train(s, data(), noisy, 1, 0)), ValueError, "batch_size"),
    "float batch": (lambda s: next(train(s, data(), noisy, 1, 2.0)), TypeError, "batch_size"),
    "array": (lambda s: next(train(s, data().numpy(), noisy, 1)), TypeError,
              "data must .*ndarray; convert arrays with torch.as_tensor"),
    "text": (lambda s: next(train(s, "digits", noisy, 1)), TypeError, "data"),
    "number": (lambda s: next(train(s, 3.0, noisy, 1)), TypeError, "data"),
    "no batches": (lambda s: next(train(s, iter([]), noisy, 1)), ValueError, "data .* got none"),
    "two lengths": (lambda s: next(train(s, (data(), data()[:9]), noisy, 1)), ValueError,
                    r"data must be tensors of one length, got \[35, 9\]"),
    "complex": (lambda s: next(train(s, data() + 0j, noisy, 1)), ValueError, "data"),
    "step without numbers": (lambda s: next(train(s, data(), lambda state, batch: None, 1)), TypeError,
                             "step must return a dict of numbers by name, got NoneType"),
    "step with a pair": (lambda s: next(train(s, data(), lambda state, batch: (1, 2), 1)), TypeError,
                         "step must return a dict of numbers by name, got tuple"),
    "class of an optimiser": (lambda s: TrainState(s.model, torch.optim.Adam, 0), TypeError,
                              "optimizer must be an object, got the class Adam"),
    "optimiser and model swapped": (lambda s: TrainState(s.optimizer, s.model, 0), TypeError,
                                    "model must have parameters, got SGD"),
    "rate as text": (lambda s: sgd(s.model, "0.1"), TypeError, "lr must be a number, got str"),
    "momentum as text": (lambda s: sgd(s.model, 0.1, "0.9"), TypeError, "momentum must be a number"),
    "model of numbers": (lambda s: sgd([1.0], 0.1), TypeError, "model must be a torch.nn.Module"),
    "no examples": (lambda s: next(train(s, data()[:0], noisy, 1)), ValueError, "data"),
    "nan": (lambda s: next(train(s, data() * math.nan, noisy, 1)), ValueError, "data"),
    "list": (lambda s: next(train(s, [[1.0]], noisy, 1)), TypeError, "data"),
    "average of one": (lambda s: TrainState(s.model, s.optimizer, s.generator, None, 1.0), ValueError,
                       "average"),
    "no generator": (lambda s: TrainState(s.model, s.optimizer, None), TypeError, "generator"),
    "zero updates": (lambda s: linear_decay(s.optimizer, 0), ValueError, "updates"),
    "negative rate": (lambda s: sgd(s.model, -1.0), ValueError, "lr must be .* at least 0, got -1")}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    call, kind, words = BAD[name]
    with pytest.raises(kind, match=words): call(new())


def half(path): path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
def foreign(path): write_tensors(path, "RBM", {"W": torch.zeros(2)}, {})
def empty(path): path.write_bytes(b"")
def junk(path): path.write_bytes(b"\x08\0\0\0\0\0\0\0not json")
def bare(path): write_tensors(path, "training state", {"model.weight": torch.zeros(3, 3)}, {})
def alien(path): write_tensors(path, "training state", {"soul": torch.zeros(3, 3)}, {})
def gone(path): path.unlink()


def headless(path):
    from rbmdiff.foundations.core import read_tensors
    content, meta = read_tensors(path, "training state")
    write_tensors(path, "training state", content, {"epoch": meta["epoch"]})


DAMAGE = {"truncated": (half, ValueError, "damaged"), "another kind": (foreign, ValueError, "RBM"),
          "empty": (empty, ValueError, "damaged"),
          "junk": (junk, ValueError, "damaged"), "tensors missing": (bare, ValueError, "model.bias"),
          "foreign tensor": (alien, ValueError, "soul"),
          "header incomplete": (headless, ValueError, "does not fit"),
          "absent": (gone, FileNotFoundError, "no such file")}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_checkpoint_is_refused_and_the_state_stays(tmp_path, name):
    damage, kind, words = DAMAGE[name]
    path, state = tmp_path / "c.safetensors", new()
    for _ in train(state, data(), noisy, 1, 8): state.save(path)
    damage(path)
    fresh, untouched = new(), new()
    with pytest.raises(kind, match=words): fresh.load(path)
    assert same(fresh, untouched) and fresh.epoch == 0


OTHERS = {"width": (dict(width=4), r"\[4\]"), "precision": (dict(dtype=torch.float32), "float32"),
          "optimizer": (dict(optimizer="adam"), "SGD"),
          "no schedule": (dict(schedule=False), "schedule"),
          "no average": (dict(average=0.0), "average")}


def test_checkpoint_without_an_average_is_refused_by_a_run_with_one(tmp_path):
    path = tmp_path / "c.safetensors"
    new(average=0.0).save(path)
    with pytest.raises(ValueError, match="average"): new().load(path)


@pytest.mark.parametrize("name", OTHERS)
def test_checkpoint_of_another_run_is_refused(tmp_path, name):
    arguments, words = OTHERS[name]
    state, path = new(), tmp_path / "c.safetensors"
    state.save(path)
    with pytest.raises(ValueError, match=words) as info: new(**arguments).load(path)
    assert "\n" not in str(info.value)


def test_optimizer_without_plain_memory_cannot_be_saved(tmp_path):
    model = torch.nn.Linear(2, 2)
    state = TrainState(model, torch.optim.LBFGS(model.parameters()), torch.Generator())

    def closure():
        state.optimizer.zero_grad()
        loss = model(torch.ones(1, 2)).square().sum()
        loss.backward()
        return loss
    state.optimizer.step(closure)
    with pytest.raises(ValueError, match="LBFGS"): state.save(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_resume_on_cuda(tmp_path, optimizer):
    make = lambda: new(optimizer, device="cuda", dtype=torch.float32)
    x, whole, killed, resumed = data(torch.float32, "cuda"), make(), make(), make()
    for _ in train(whole, x, noisy, 4, 8): pass
    for _ in train(killed, x, noisy, 2, 8): killed.save(tmp_path / "c")
    resumed.load(tmp_path / "c")
    for _ in train(resumed, x, noisy, 4, 8): pass
    assert same(resumed, whole) and resumed.carry["memory"].is_cuda
    with pytest.raises(ValueError, match="random.state"):
        new(optimizer, dtype=torch.float32).load(tmp_path / "c")
    with pytest.raises(ValueError, match="data"): next(train(whole, x.cpu(), noisy, 9, 8))


def test_spaced_counts_are_dense_at_first_and_end_at_the_last():
    for updates, n in ((1, 2), (5, 64), (2500, 64), (10**6, 33)):
        counts = spaced(updates, n)
        assert counts[0] == 0 and counts[-1] == updates and len(counts) <= min(n, updates + 1)
        assert counts == sorted(set(counts))
        gaps = [b - a for a, b in pairwise(counts)]
        ratio = (updates + 1) ** (1 / (n - 1))
        assert all(gap <= max(1, (ratio - 1) * (a + 1) + 1) for gap, a in zip(gaps, counts))
    assert spaced(3, 64) == [0, 1, 2, 3] and spaced(99, 3) == [0, 9, 99]


@pytest.mark.parametrize("updates, n, words", [(0, 4, "updates must"), (9, 1, "n must")])
def test_bad_spaces(updates, n, words):
    with pytest.raises(ValueError, match=words): spaced(updates, n)
