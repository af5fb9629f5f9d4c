"""The recipe and the folder of a run: start, step, loop, options, resuming, evaluation."""
import json
import math
import os
from pathlib import Path
import socket

import numpy as np
import pytest
import torch

from machines import machine, seeded, some_states
from rbmdiff.foundations.core import Estimate, read_tensors
from rbmdiff.foundations.data import (
    Scale,
    bars_and_stripes,
    base_rate,
    digits,
    independent_log_prob,
)
from rbmdiff.foundations.train import TrainState, sgd, train
from rbmdiff.foundations.units import Discrete, Spin, as_unit
from rbmdiff.learning.partition import ais
from rbmdiff.models.rbm import RBM
from rbmdiff.practice import runs
from rbmdiff.practice.runs import (
    OPTIONS,
    _steadied,
    as_states,
    contrastive_step,
    evaluate,
    fit,
    in_own_units,
    independent,
    load_run,
    locked,
    log_partitions,
    new_machine,
    prepare,
    read_run,
    report,
    resolve,
    resume,
    sample_run,
    save_states,
)

KINDS = ["bernoulli", "spin", "binary((-0.5, 2.0))", "discrete((-1.0, 0.0, 1.0))", "binomial(4)",
         "potts(3)", "poisson", "gaussian", "relu"]


def states_of(kind, n=300, d=6, seed=0, dtype=torch.float64):
    """States [n, d] of units of a kind with biases that differ."""
    unit, b = as_unit("unit", kind), torch.linspace(-1, 0.5, d, dtype=dtype)
    return unit.draw(torch.zeros(n, d, dtype=dtype), b, seeded(seed))


def new_state(rbm, lr=0.05, seed=0, **options):
    return TrainState(rbm, sgd(rbm, lr), seeded(seed), **options)


def parameters(rbm): return {name: p.detach().clone() for name, p in rbm.named_parameters()}


def equal(a,
          b): return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# --- the start

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_new_machine_is_independent_units_that_fit(kind, dtype):
    v = states_of(kind, dtype=dtype)
    rbm = new_machine(v, 4, kind, generator=3)
    assert rbm.W.dtype == dtype and rbm.W.shape == (6, 4) and str(rbm.visible) == kind
    assert 0 < rbm.W.abs().max() < 0.06 and not rbm.c.any()
    assert all(p.requires_grad for p in rbm.parameters())
    unit = rbm.visible
    if unit.wide: assert torch.allclose(rbm.sigma, v.std(0), rtol=1e-5)
    assert torch.allclose(unit.mean(rbm.b, rbm.sigma), unit.smoothed(v, 1.0), atol=1e-5)
    # control: zero biases
    assert (unit.mean(torch.zeros_like(rbm.b), rbm.sigma) - v.mean(0)).abs().max() > 0.1
    with torch.no_grad(): rbm.W.zero_()
    # width and mean of a cut law are not fitted together
    if unit.wide and unit.lowest == 0: return
    alone = independent_log_prob(v, rbm.b.detach(), unit, rbm.sigma).mean()
    assert rbm.log_prob(v).mean().item() == pytest.approx(alone.item(), rel=1e-5)


def test_a_new_machine_takes_means_of_states_units_and_streams():
    grey = digits(dtype=torch.float64)[0]
    assert torch.equal(new_machine(grey, 3, generator=0).b, base_rate(grey))
    three = Discrete((-1.0, 0.0, 1.0), 0.5)
    rbm = new_machine(some_states((50, 4), three), 2, three, Spin(), generator=0)
    assert rbm.visible is three and rbm.hidden == Spin()
    a, b, c = (new_machine(grey, 3, generator=g) for g in (4, seeded(4), 5))
    assert torch.equal(a.W, b.W) and not torch.equal(a.W, c.W)


@pytest.mark.parametrize("data, kind, error, words", [
    ([[0.0, 1.0]], "bernoulli", TypeError, "torch.Tensor"),
    (torch.zeros(4), "bernoulli", ValueError, "[N, D]"),
    (2 * torch.ones(4, 2), "bernoulli", ValueError, "[0, 1]"),
    (torch.full((4, 2), torch.nan), "gaussian", ValueError, "finite"),
    (torch.ones(9, 2), "gaussian", ValueError, "rows that differ"),
    (torch.zeros(4, 4), "potts(3)", ValueError, "multiple of 3"),
    (-torch.ones(4, 2), "poisson", ValueError, "whole numbers"),
    (torch.zeros(4, 2), "quark", ValueError, "quark")])
def test_bad_data_for_a_new_machine(data, kind, error, words):
    with pytest.raises(error) as caught: new_machine(data, 2, kind)
    assert words in str(caught.value)


# --- the step

@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["pcd", "cd", "exact"])
def test_a_step_climbs(kind, method):
    """Thirty epochs of it raise the exact likelihood of data whose units depend on each other."""
    v = states_of(kind)
    v[:, 3:] = v[:, :3]                                                       # two equal halves
    rbm = new_machine(v, 3, kind, generator=0)
    start = rbm.log_prob(v).mean().item()
    lr = {"bernoulli": 1.0, "potts(3)": 1.0, "spin": 0.3, "poisson": 0.5, "gaussian": 0.1,
          "relu": 0.1}.get(kind, 0.2)
    for _ in train(new_state(rbm, lr), v, contrastive_step(method=method), 30, 50, progress=False): pass
    assert rbm.log_prob(v).mean().item() > start + 0.1


def test_exact_step_without_centring_is_gradient_ascent():
    rbm, v = machine(5, 3).requires_grad_(), some_states((20, 5))
    state, before = new_state(rbm, 0.1), parameters(rbm)
    rates = torch.autograd.grad(rbm.log_prob(v).mean(), list(rbm.parameters()))
    for _ in train(state, v, contrastive_step(method="exact", centre=False), 1, 20, progress=False): pass
    for (name, p), g in zip(rbm.named_parameters(), rates):
        assert torch.allclose(p, before[name] + 0.1 * g, atol=1e-12)


def test_what_a_step_keeps_and_when_it_refreshes_it():
    v = some_states((60, 5))
    rbm = new_machine(v, 3, generator=0)
    state, step = new_state(rbm), contrastive_step(chains=7)
    seen = []
    for _ in train(state, v, lambda state, batch: seen.append(batch) or step(state, batch), 2, 30,
                   progress=False):
        assert torch.equal(state.carry["mean_v"], seen[-2].mean(0))
        assert state.carry["chains"].shape == (7, 5)
    assert state.carry.keys() == {"mean_v", "mean_h",
                                  "chains"} and not state.carry["chains"].requires_grad
    state, given = new_state(new_machine(v, 3, generator=0)), v[:11]
    for _ in train(state, v, contrastive_step(centre=given), 1, 30, progress=False): pass
    assert torch.equal(state.carry["mean_v"], given.mean(0))
    state = new_state(new_machine(v, 3, generator=0))
    for _ in train(state, v, contrastive_step(method="cd", centre=False), 1, 30, progress=False): pass
    assert not state.carry


def test_one_step_may_serve_two_states():
    v = some_states((40, 5))
    step = contrastive_step(chains=5)
    first, second = (new_state(new_machine(v, 3, generator=0)) for _ in range(2))
    for state in (first, second):
        for _ in train(state, v, step, 1, 20, progress=False): pass
    assert equal(first.model, second.model)


def test_no_step_changes_the_data():
    v = some_states((40, 5))
    kept = v.clone()
    for method in ("pcd", "cd", "exact"):
        for _ in train(new_state(new_machine(v, 3, generator=0)), v, contrastive_step(method=method), 1,
                       20, progress=False):
            pass
    assert torch.equal(v, kept)


@pytest.mark.parametrize("options, error, words", [
    ({"k": 0}, ValueError, "k must be at least 1"), ({"k": 1.5}, TypeError, "k must be an int"),
    ({"chains": 0}, ValueError, "chains"),
    ({"method": "magic"}, ValueError, "'pcd', 'cd', 'exact'")])
def test_bad_options_of_a_step(options, error, words):
    with pytest.raises(error, match=words): contrastive_step(**options)


# --- the loop

def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def bars(n=300):
    patterns, p = bars_and_stripes(3)
    return patterns[torch.multinomial(p, n, True, generator=seeded(0))]


def test_fit_in_a_script(tmp_path):
    v = bars()
    rbm = new_machine(v[:250], 6, generator=0)
    state = new_state(rbm, 0.3, average=0.9)
    folder = tmp_path / "deep" / "bars"
    assert list(fit(folder, state, v[:250], v[250:], epochs=3, progress=False)) == [1, 2, 3]
    assert {p.name for p in folder.iterdir()} == {"checkpoint.safetensors", "log.jsonl", "samples.png",
                                                  "model.safetensors"}
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    assert {"seconds", "updates", "reconstruction", "gap"} <= lines[0].keys()
    assert equal(RBM.load(folder / "model.safetensors"), state.averaged_model())
    assert not equal(state.averaged_model(), rbm)


@pytest.mark.parametrize("method", ["pcd", "cd", "exact"])
@pytest.mark.parametrize("fresh", [False, True])
def test_fit_goes_on_to_the_same_bits(tmp_path, method, fresh):
    v = bars()
    data = (lambda g: v[torch.randint(len(v), (200,), generator=g)]) if fresh else v
    whole, cut, resumed = (new_state(new_machine(v, 4, generator=0), 0.3, average=0.9) for _ in range(3))
    for _ in fit(tmp_path / "whole", whole, data, v, contrastive_step(method=method), 4, progress=False):
        pass
    for epoch in fit(tmp_path / "cut", cut, data, v, contrastive_step(method=method), 4, progress=False):
        if epoch == 2: break
    resumed.load(tmp_path / "cut/checkpoint.safetensors")
    assert list(fit(tmp_path / "cut", resumed, data, v, contrastive_step(method=method), 4,
                    progress=False)) == [3, 4]
    files = [read_tensors(tmp_path / name / "checkpoint.safetensors",
                          "training state")[0] for name in ("whole", "cut")]
    assert files[0].keys() == files[1].keys()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])
    logs = [read_log(tmp_path / name) for name in ("whole", "cut")]
    for log in logs:
        for line in log: del line["seconds"]
    assert logs[0] == logs[1]
    # control: training does something
    assert not equal(whole.model, new_machine(v, 4, generator=0))


def test_fit_does_not_begin_again_in_a_folder_that_is_further(tmp_path):
    v = bars()
    for _ in fit(tmp_path, new_state(new_machine(v, 4)), v, v, epochs=2, progress=False): pass
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="has 2 epochs, this state 0"):
        next(fit(tmp_path, new_state(new_machine(v, 4)), v, v, progress=False))
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_fit_cuts_a_log_that_is_ahead_of_its_checkpoint(tmp_path):
    v, state = bars(), new_state(new_machine(bars(), 4))
    for _ in fit(tmp_path, state, v, v, epochs=2, progress=False): pass
    with open(tmp_path / "log.jsonl", "a") as log: log.write('{"epoch": 3}\n{"epo')
    assert list(fit(tmp_path, state, v, v, epochs=3, progress=False)) == [3]
    assert [line["epoch"] for line in read_log(tmp_path)] == [1, 2, 3]


# --- options

def test_options_are_those_given_and_defaults_for_the_rest(tmp_path):
    options = resolve({"data": "digits", "lr": 0.1, "seed": None})
    assert options.keys() == OPTIONS.keys() | {"data"} and options["lr"] == 0.1 and options["seed"] == 0
    assert (options["hidden"], options["epochs"], options["threshold"]) == (16, 200, 7.5 / 16)
    for mnist in ("mnist", str(tmp_path)): assert resolve({"data": mnist})["binarize"] == "stochastic"
    assert resolve({"data": "x.npy", "visible": "potts( 3 )"})["visible"] == "potts(3)"
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert resolve({"data": tmp_path / "x.npy"})["data"] == str(tmp_path / "x.npy")
    assert json.loads(json.dumps(options)) == options


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_that_follow_from_the_unit(kind):
    options, unit = resolve({"data": "x.npy", "visible": kind}), as_unit("unit", kind)
    assert (options["binarize"] == "threshold") == (kind in ("bernoulli", "spin", "binary((-0.5, 2.0))"))
    rates = {"poisson": 0.01, "gaussian": 0.02, "relu": 0.02}
    assert options["lr"] == rates.get(kind, 0.3) and (kind in rates) == (unit.growth != "bounded")
    assert (options["method"] == "exact") == unit.wide


def test_real_units_learn_exactly_where_that_is_cheap():
    def chosen(**given):
        options = resolve({"data": "x.npy", "visible": "gaussian", **given})
        return options["method"], options["lr"]
    assert chosen() == chosen(hidden=10) == chosen(hidden=200, method="exact") == ("exact", 0.02)
    assert chosen(hidden=11) == chosen(k=2) == chosen(chains=9) == ("pcd", 0.005)
    assert chosen(method="cd") == ("cd", 0.005) and chosen(lr=0.1) == ("exact", 0.1)
    assert resolve({"data": "mnist", "visible": "gaussian"})["hidden"] == 500


def test_the_default_of_real_units_finds_clusters_far_apart(tmp_path):
    """Fifteen widths apart; the control is the rate of other units without bounds, by chains."""
    g = np.random.default_rng(0)
    k = g.integers(0, 2, (800, 1))
    np.save(tmp_path / "x.npy", 0.45 * k + 0.03 * g.normal(size=(800, 2)))
    def judged(**given):
        given = {"data": str(tmp_path / "x.npy"), "visible": "gaussian", "hidden": 2, **given}
        run = prepare(tmp_path / given["method"], given)
        for _ in run.fit(False): pass
        found = evaluate(run.folder)
        return found["log_likelihood"]["test"]["exact"]["value"], found["independent"]["test"]["value"]
    # what the truth itself has: two clusters, equally likely
    truth = -math.log(2) - math.log(2 * math.pi * math.e * 0.03**2)
    value, alone = judged(method="exact", epochs=100)
    control = judged(method="pcd", lr=0.01, epochs=40)[0]
    assert value > truth - 0.2 > alone + 2 and control < truth - 0.5


def rare(rows=4000, columns=40):
    """Measurements that hardly change, but for two rows a column, where they are forty widths off."""
    g = np.random.default_rng(0)
    x = 0.01 * g.random((rows, columns))
    for column in x.T:
        column[g.choice(rows, 2, replace=False)] = 1
    return x.astype(np.float32)


def rare_run(folder, method):
    """A run with them, trained; the control of bounded moves has none."""
    np.save(folder / "x.npy", rare())
    run = prepare(folder / "run", {"data": str(folder / "x.npy"), "visible": "gaussian", "hidden": 40,
                                   "method": method, "epochs": 5})
    for _ in run.fit(False): pass
    return run


@pytest.mark.parametrize("method", ["pcd", "cd"])
def test_a_rare_value_throws_no_machine_out_of_its_data(tmp_path, method):
    run = rare_run(tmp_path, method)
    assert run.state.model.sigma.max() < 3 and run.state.model.W.abs().max() < 3
    found = evaluate(run.folder, progress=False)
    value = found["log_likelihood"]["train"]["AIS"]["value"]
    assert value > found["independent"]["train"]["value"] - 10


def test_without_bounds_it_does(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_steadied", lambda gradients, sigma: gradients)
    with pytest.raises(FloatingPointError, match="lower the learning rate"): rare_run(tmp_path, "pcd")


def test_moves_are_bounded_and_usual_ones_are_not():
    g = torch.Generator().manual_seed(0)
    usual = {"W": torch.randn(6, 4, generator=g) / 4, "b": torch.randn(6, generator=g) / 4,
             "c": torch.randn(4, generator=g), "log_sigma": torch.randn(6, generator=g)}
    sigma = torch.rand(6, generator=g) + 1
    moved = _steadied(usual, sigma)
    assert all(torch.equal(moved[name], usual[name]) for name in "Wbc")
    torch.testing.assert_close(moved["log_sigma"], usual["log_sigma"] / 10, rtol=0.02, atol=0)
    far = _steadied({name: 1e4 * x for name, x in usual.items()}, sigma)
    move = torch.hypot(far["W"].norm(dim=1), far["b"]) / sigma
    torch.testing.assert_close(move, torch.full((6,), 3.0))
    torch.testing.assert_close(far["W"] / far["b"][:, None], usual["W"] / usual["b"][:, None])
    assert far["log_sigma"].abs().max() < 10 * math.log(1e3)


@pytest.mark.parametrize("given, words", [
    ({}, "data must be given"), ({"data": "digits", "speed": 3}, "got speed"),
    ({"data": "digits", "visible": "quark"}, "quark"),
    ({"data": "digits", "checkpoints": 1}, "checkpoints must be at least 2"),
    ({"data": "digits", "method": "cd", "chains": 3},
     "--chains has no effect with method cd")])
def test_bad_options(given, words):
    with pytest.raises(ValueError, match=words): resolve(given)


# --- data

def options_of(**changes): return resolve({"data": "x.npy"}) | changes


def test_states_of_two_levels():
    x = torch.rand(400, 5, generator=seeded(9))
    for kind in ("bernoulli", "spin", "binary((-0.5, 2.0))"):
        low, high = as_unit("unit", kind).levels
        v = as_states(x, options_of(visible=kind, threshold=0.3))
        assert torch.equal(v, torch.where(x > 0.3, high, low))
        o = options_of(visible=kind, binarize="stochastic")
        a, b = as_states(x, o), as_states(x, o)
        assert torch.equal(a, b) and set(a.unique().tolist()) == {low, high}   # always the same bits
        assert not torch.equal(a, as_states(x, o, 5))
        assert torch.equal(as_states(x, o, 5), as_states(x, o, seeded(5)))
        assert not torch.equal(a, as_states(x, o | {"seed": 1}))
        assert ((a - low) / (high - low)).mean() == pytest.approx(x.mean().item(), abs=0.05)


@pytest.mark.parametrize("x, unit, kind", [
    ([[0.0, 1.0]], "bernoulli", np.uint8), ([[1.0, 1.0]], "spin", np.int8),
    ([[3.0, 0.0]], "poisson", np.uint8),
    ([[300.0, 0.0]], "poisson", np.uint16), ([[70000.0, 0.0]], "poisson", np.uint32),
    ([[0.0, 1.0]], "potts(2)", np.uint8),
    ([[0.0, 0.0]], "binomial(300)", np.uint16), ([[1.0, 0.0]], "gaussian", np.float32),
    ([[1.5, 0.0]], "relu", np.float32),
    ([[0.5, -0.5]], "binary((-0.5, 0.5))", np.float32),
    ([[-2.0, 2.0]], "discrete((-200.0, -2.0, 2.0))", np.int16)])
def test_states_are_written_in_the_smallest_type(tmp_path, x, unit, kind):
    v = torch.tensor(x)
    save_states(tmp_path / "v.npy", v, as_unit("unit", unit))
    found = np.load(tmp_path / "v.npy")
    assert found.dtype == kind and found.tolist() == v.tolist() and not list(tmp_path.glob("*.tmp"))


# --- a run

@pytest.fixture
def place(tmp_path, monkeypatch):
    """A current folder with data files."""
    np.save(tmp_path / "bits.npy", np.random.default_rng(0).integers(0, 2, (60, 9)))
    np.save(tmp_path / "counts.npy", np.random.default_rng(0).poisson(3, (60, 4)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


SMALL = {"data": "bits.npy", "hidden": 3, "epochs": 2}


def trained(folder="run", **options):
    run = prepare(folder, SMALL | options)
    for _ in run.fit(progress=False): pass
    return run


def test_a_run_from_a_script(place):
    run = prepare("run", SMALL)
    assert run.folder == Path("run") and run.x.shape == (54, 9) and run.held_out.shape == (6, 9)
    assert run.note == ""
    assert read_run("run")["options"] == run.options and run.state.epoch == 0
    assert list(run.fit(progress=False)) == [1, 2]
    rbm, options = load_run("run")
    assert equal(rbm, run.state.averaged_model()) and options == run.options
    assert sample_run("run", 7, 3, 0).shape == (7, 9)
    assert torch.equal(sample_run("run", 7, 3, 0), sample_run("run", 7, 3, seeded()))
    found = evaluate("run")
    with torch.no_grad(): truth = rbm.double().log_prob(run.held_out.double()).mean().item()
    assert found["log_likelihood"]["test"]["exact"]["value"] == pytest.approx(truth, abs=1e-9)


def test_samples_with_a_stream_each(place):
    trained()
    together = sample_run("run", 3, 4, [1, 2, 3])
    assert torch.equal(together[:1], sample_run("run", 1, 4, [1]))
    assert not torch.equal(together[0], together[1])


def test_a_run_is_prepared_or_nothing_is_written(place):
    for bad in ({"device": "warp"}, {"visible": "potts(4)"},
                {"visible": "poisson", "binarize": "threshold"}, {"data": "gone.npy"}):
        with pytest.raises((ValueError, OSError)): prepare("run", SMALL | bad)
    assert not Path("run").exists()
    trained()
    with pytest.raises(FileExistsError, match="holds a run"): prepare("run", SMALL)


def test_resume_returns_the_run_at_its_checkpoint(place):
    run = trained()
    again = resume("run", {"hidden": 3})
    assert again.state.epoch == 2 and equal(again.state.model, run.state.model)
    assert again.options == run.options
    assert list(again.fit(progress=False)) == []
    with pytest.raises(ValueError, match="--hidden 4 is not what the run has, 3"):
        resume("run", {"hidden": 4})
    with pytest.raises(ValueError, match="got colour"): resume("run", {"colour": "red"})
    with pytest.raises(FileNotFoundError, match="not a run"): resume("elsewhere")


def test_a_kill_before_the_first_checkpoint_is_harmless(place):
    whole, cut = trained("whole"), prepare("cut", SMALL)
    Path("cut/checkpoint.safetensors").unlink()
    cut = resume("cut")
    for _ in cut.fit(progress=False): pass
    assert equal(whole.state.model, cut.state.model)


def test_a_run_of_another_format_is_refused_in_one_line(place):
    trained()
    content = json.loads(Path("run/run.json").read_text())
    assert content["format"] == runs.FORMAT
    for found in (1, 2, 4):
        if found == 1: del content["format"]
        else: content["format"] = found
        Path("run/run.json").write_text(json.dumps(content))
        for call in (lambda: resume("run"), lambda: evaluate("run"), lambda: load_run("run"),
                     lambda: sample_run("run")):
            words = f"run of format {found}, and this version of rbmdiff has format 3"
            with pytest.raises(ValueError, match=words) as caught:
                call()
            assert "\n" not in str(caught.value)


def test_random_bits_of_an_evaluation_are_those_of_the_run(place):
    np.save("grey.npy", np.random.default_rng(1).random((60, 9)))
    run = trained(data="grey.npy", binarize="stochastic")
    rbm, _ = load_run("run")
    with torch.no_grad(): truth = rbm.double().log_prob(run.held_out.double()).mean().item()
    assert evaluate("run")["log_likelihood"]["test"]["exact"]["value"] == pytest.approx(truth, abs=1e-9)


# --- likelihoods

def test_report_of_one_and_of_two_estimates():
    rbm, v = machine(6, 4), some_states((40, 6))
    exact = Estimate(rbm.log_partition().item(), 0.0, 1)
    one = report(rbm, {"exact": exact}, {"a": v, "b": v[:10]})
    assert one["interval"] == {}
    assert one["log_z"] == {"exact": {"value": exact.value, "stderr": 0.0, "n": 1}}
    truth = rbm.log_prob(v[:10]).mean().item()
    assert one["log_likelihood"]["b"]["exact"]["value"] == pytest.approx(truth, abs=1e-12)
    assert one["log_likelihood"]["a"]["exact"]["n"] == 40
    z = ais(rbm, 50, 30, seeded())
    two = report(rbm, {"exact": exact, "AIS": z}, {"a": v})
    assert two["log_z"]["AIS"]["ess"] == z.ess and json.loads(json.dumps(two)) == two
    assert two["interval"] == {}
    both = report(rbm, {"AIS": z, "reverse AIS": Estimate(z.value + 0.1, 0.01, 9)}, {"a": v}, 2.0)
    entries = both["log_likelihood"]["a"].values()
    assert both["interval"]["a"] == sorted(e["value"] for e in entries) and both["notes"] == []
    shifted = [e["value"] for e in two["log_likelihood"]["a"].values()][1] - 2.0
    assert both["log_likelihood"]["a"]["AIS"]["value"] == pytest.approx(shifted, abs=1e-12)


def test_bounds_that_cross_are_named():
    rbm, v = machine(6, 4), some_states((40, 6))
    exact = rbm.log_partition().item()
    crossed = {"AIS": Estimate(exact, 0.1, 9), "reverse AIS": Estimate(exact - 50, 0.1, 9)}
    found = report(rbm, crossed, {"a": v, "b": v[:1]})
    assert found["interval"] == {} and len(found["notes"]) == 1
    assert "no interval, AIS alone: backward must not lie below forward" in found["notes"][0]
    assert list(found["log_likelihood"]["a"]) == ["AIS"]
    low = report(rbm, {"AIS": Estimate(exact - 50, 0.1, 9)}, {"a": v})
    assert low["log_likelihood"]["a"] == {} and "a log-likelihood unknown, AIS" in low["notes"][0]
    for name in ("a", "b"): assert found["log_likelihood"][name]["AIS"]["value"] < 0


def test_a_lock_is_held_by_one_and_given_back(tmp_path):
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(BlockingIOError, match=f"in use by process {os.getpid()} on"):
            with locked(tmp_path): pass
    assert not list(tmp_path.iterdir())
    (tmp_path / "lock").write_text("process 1 on a machine that was switched off")        # stale
    with locked(tmp_path): assert str(os.getpid()) in (tmp_path / "lock").read_text()
    v, state = bars(), new_state(new_machine(bars(), 4))
    with locked(tmp_path), pytest.raises(BlockingIOError):
        next(fit(tmp_path, state, v, v, progress=False))
    for _ in fit(tmp_path, state, v, v, epochs=2, progress=False): break      # left: given back
    with locked(tmp_path): pass


def test_a_machine_of_measurements_in_their_own_unit_has_the_same_energies():
    for kind in ("gaussian", "relu"):
        rbm = machine(3, 4, kind)
        scale = Scale("measurements", (0.0, 0, 0) if kind == "relu" else (5.0, -2, 1e3), (0.1, 7.0, 3.0))
        own, z = in_own_units(rbm, scale), states_of(kind, 20, 3)
        v = scale.undo(z)
        assert torch.allclose(own.log_prob(v), rbm.log_prob(z) - scale.log_volume, atol=1e-9)
        assert own.log_partition().item() == pytest.approx(rbm.log_partition().item() + scale.log_volume)
        h = some_states((20, 4))
        assert torch.allclose(own.visible_mean(h), scale.undo(rbm.visible_mean(h)), atol=1e-9)
        assert torch.allclose(own.hidden_mean(v), rbm.hidden_mean(z), atol=1e-9)
        assert not torch.allclose(rbm.log_prob(v), rbm.log_prob(z), atol=1)
        assert in_own_units(rbm, Scale()) is rbm and in_own_units(rbm, None) is rbm


def test_the_rate_of_a_prolonged_run_is_that_of_all_its_epochs(place):
    run = trained(epochs=4)
    more = resume("run", {"epochs": 8})
    group = more.state.optimizer.param_groups[0]
    assert run.state.optimizer.param_groups[0]["lr"] == 0 and group["lr"] == pytest.approx(0.3 * 4 / 8)
    assert read_run("run")["options"]["epochs"] == 8
    assert list(more.fit(progress=False)) == [5, 6, 7, 8] and group["lr"] == 0
    again = resume("run", {"epochs": 8})
    assert equal(again.state.model, more.state.model)


def test_independent_units_are_those_of_the_training_data():
    for kind in ("bernoulli", "spin", "gaussian"):
        v, w = states_of(kind), states_of(kind, seed=1)
        found = independent(v, {"a": v, "b": w, "c": w[:1]}, as_unit("unit", kind))
        sigma = v.std(0) if kind == "gaussian" else None
        b = base_rate(v, unit=kind, sigma=sigma)
        truth = independent_log_prob(w, b, kind, sigma)
        assert found["b"] == {"value": pytest.approx(truth.mean().item()), "n": 300,
                              "stderr": pytest.approx(truth.std().item() / 300**0.5)}
        assert found["c"]["stderr"] is None and found["a"]["value"] > found["b"]["value"] - 1


@pytest.mark.parametrize("kind", ["bernoulli", "spin", "potts(3)", "poisson", "gaussian"])
def test_both_bounds_find_the_exact_value(kind, monkeypatch):
    v = states_of(kind)
    rbm = new_machine(v, 3, kind, generator=0)
    for _ in train(new_state(rbm, 0.02), v, contrastive_step(), 5, 50, progress=False): pass
    truth = log_partitions(rbm, v)["exact"]
    monkeypatch.setattr(runs, "EXACT", 1)
    found = log_partitions(rbm, v, 400, 100, 50, 0)
    assert list(found) == ["AIS", "reverse AIS"] and truth.stderr == 0
    for z in found.values(): assert abs(z.z(truth.value)) < 4 and z.stderr < 0.05
    assert found["AIS"].value == log_partitions(rbm, v, 400, 100, 50, seeded())["AIS"].value
