"""Machines in scikit-learn: its checks of estimators, its own tests of `BernoulliRBM`, and what those do
not ask: spins, reals, holes, weights, classes, errors.
"""
from collections import Counter
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network.tests import test_rbm as theirs
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator
import torch

from machines import machine, seeded
import rbmdiff
from rbmdiff import RBMClassifier, RBMTransformer
from rbmdiff.foundations.units import states
from rbmdiff.practice import estimator
from rbmdiff.practice.estimator import clamped_gibbs, class_log_probs, copies
from rbmdiff.sampling.gibbs import gibbs


def bits(n=60, d=6, seed=0, dtype=np.float64):
    """Random bits [n, d] with means that differ."""
    r = np.random.default_rng(seed)
    return (r.random((n, d)) < np.linspace(0.2, 0.8, d)).astype(dtype)


def reals(n=80, seed=0):
    """Reals [n, 4] with correlations, in units of their own."""
    r = np.random.default_rng(seed)
    return r.normal(size=(n, 2)) @ r.normal(size=(2, 4)) + 0.3 * r.normal(size=(n, 4)) + [0, 5, -90, 2]


def small(**options):
    return RBMTransformer(**{"n_components": 4, "n_iter": 3, "random_state": 0, **options})


# scikit-learn's own checks

@pytest.mark.parametrize("one", [RBMTransformer(), RBMClassifier(), RBMClassifier(16, generative=0.1)],
                         ids=["transformer", "classifier", "generative"])
def test_check_estimator_finds_nothing(one):
    found = check_estimator(one, on_fail=None, on_skip=None)
    assert [entry["check_name"] for entry in found if entry["status"] == "failed"] == []
    told = Counter(entry["status"] for entry in found)
    assert told.keys() <= {"passed", "skipped"} and told["passed"] >= 50
    skipped = [str(entry["exception"]) for entry in found if entry["status"] == "skipped"]
    assert all(re.match("pandas is not installed|SCIPY_ARRAY_API is not set", why) for why in skipped)


class BernoulliRBM(RBMTransformer):
    """Ours under their name, with two private methods of theirs that their tests call."""

    def _mean_hiddens(self, v):
        return self.transform(v.reshape(-1, v.shape[-1])).reshape(*v.shape[:-1], -1)

    def _sample_hiddens(self, v, rng):
        p = self._mean_hiddens(v)
        return rng.uniform(size=p.shape) < p


OTHER = {
    "test_fit_gibbs": "compares weights with numbers of four digits that NumPy's stream leads to; that "
                      "sparse and dense tables give equal weights is asked below",
    "test_convergence_dtype_consistency": "wants the biases of single precision to six digits after a "
                                          "hundred updates; ours begin far from zero, at the means of "
                                          "the data, and keep four: see below",
}
"""Tests of scikit-learn that ask for its random numbers, or its rounding, and not for what it does."""

def their_tests():
    """Every test of scikit-learn for `BernoulliRBM` with one set of its parameters."""
    for name in sorted(vars(theirs)):
        if not name.startswith("test_") or name in OTHER: continue
        function = getattr(theirs, name)
        marks = [m for m in getattr(function, "pytestmark", []) if m.name == "parametrize"]
        cases = marks[0].args[1] if marks else [None]
        for k, case in enumerate(cases):
            names = [x.strip() for x in marks[0].args[0].split(",")] if marks else []
            values = case if len(names) > 1 else [case]
            yield pytest.param(name, dict(zip(names, values)), id=f"{name}-{k}")


@pytest.mark.parametrize("name, given", [*their_tests()])
def test_passes_what_scikit_learn_asks_of_its_own(name, given, monkeypatch, request):
    monkeypatch.setattr(theirs, "BernoulliRBM", BernoulliRBM)
    function = getattr(theirs, name)
    if "capsys" in function.__code__.co_varnames[:function.__code__.co_argcount]:
        given = given | {"capsys": request.getfixturevalue("capsys")}
    function(**given)


def test_nothing_of_theirs_is_forgotten():
    names = {name for name in vars(theirs) if name.startswith("test_")}
    assert names == {case.values[0] for case in their_tests()} | OTHER.keys() and len(names) >= 13


# what is learnt

def test_one_update_is_the_centred_step():
    from rbmdiff.learning.contrastive import centred, weighted_statistics
    x, one = torch.from_numpy(bits(8)), small(batch_size=3, learning_rate=0.2)
    one.fit(x.numpy())
    before, h = one.machine_, one._carry["h"].clone()
    again = torch.Generator()
    again.set_state(one._generator.get_state())
    one.partial_fit(x.numpy())
    last = (torch.rand(1, 3, 6, generator=again)[0] < torch.sigmoid(before.visible_field(h))).double()
    share = torch.tensor([1 / 8] * 8 + [-1 / 3] * 3, dtype=torch.float64)
    rows = torch.cat([x, last])
    step = weighted_statistics(before, rows, before.hidden_mean(rows), share)
    step = centred(step, x.mean(0), before.hidden_mean(x).mean(0))
    for name, slope in step.items():
        torch.testing.assert_close(getattr(one.machine_, name), getattr(before, name) + 0.2 * slope)


def test_both_precisions_take_the_same_course():
    x = load_digits(return_X_y=True)[0][:100] / 16
    a, b = (RBMTransformer(16, batch_size=5, n_iter=5, random_state=42).fit(x.astype(dtype))
            for dtype in (np.float64, np.float32))
    assert b.components_.dtype == np.float32 and np.array_equal(a.h_samples_, b.h_samples_)
    for name in ("components_", "intercept_hidden_", "intercept_visible_"):
        np.testing.assert_allclose(getattr(b, name), getattr(a, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n, batch", [(60, 7), (61, 10), (5, 10), (10, 10), (1, 3)])
def test_batches_of_all_sizes(n, batch):
    one = small(batch_size=batch).fit(bits(n))
    assert one.h_samples_.shape == (batch, 4) and set(np.unique(one.h_samples_)) <= {0, 1}
    assert np.isfinite(one.components_).all() and one.components_.shape == (4, 6)


def test_long_epochs_are_swept_in_parts():
    x = bits(3000, 300, dtype=np.float32)
    one = RBMTransformer(100, batch_size=10, n_iter=1, random_state=0).fit(x)
    assert abs(one.gibbs(x).mean() - x.mean()) < 0.05


def test_it_learns_more_than_independent_units():
    x = np.repeat(bits(300, 3), 2, 1)                                        # pairs of equal bits
    one = small(n_iter=60).fit(x)
    alone = sum((p * np.log(p) + (1 - p) * np.log(1 - p)) for p in x.mean(0))
    assert alone + 0.5 < one.log_likelihood(x).mean() < alone / 2 + 0.05


def test_likelihood_is_normalised_for_bits_and_spins():
    v = states(6).numpy()
    for one, x in ((small().fit(bits()), v), (small(visible="spin").fit(2 * bits() - 1), 2 * v - 1)):
        assert abs(np.exp(one.log_likelihood(x)).sum() - 1) < 1e-12 and one.log_z_.stderr == 0
        torch.testing.assert_close(one.machine_.log_prob(torch.from_numpy(x)),
                                   torch.from_numpy(one.log_likelihood(x)))


def test_large_machines_are_annealed():
    one = RBMTransformer(30, n_iter=2, random_state=0).fit(bits(50, 22))
    z, x = one.log_z_, bits(5, 22)
    assert 0 < z.stderr < 0.1 and one.log_z_ is z
    assert one.partial_fit(bits(9, 22)).log_z_ is not z
    F = one.machine_.free_energy(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(one.log_likelihood(x), -F - one.log_z_.value)


def test_spins_are_bits_by_other_names():
    x = bits()
    a, b = small().fit(x), small(visible="spin").fit(2 * x - 1)
    np.testing.assert_allclose(a.transform(x), b.transform(2 * x - 1), atol=1e-12)
    np.testing.assert_allclose(a.score_samples(x), b.score_samples(2 * x - 1), atol=1e-12)
    assert str(b.machine_.visible) == "spin" and set(np.unique(b.gibbs(2 * x - 1))) == {-1, 1}


def test_reals_have_the_unit_of_their_table():
    x = reals()
    a, b = small(n_iter=10).fit(x), small(n_iter=10).fit(1000 * x + 7)
    np.testing.assert_allclose(a.transform(x), b.transform(1000 * x + 7), rtol=1e-9)
    np.testing.assert_allclose(a.log_likelihood(x), b.log_likelihood(1000 * x + 7) + 4 * np.log(1000))
    torch.testing.assert_close(a.machine_.log_prob(torch.from_numpy(x)),
                               torch.from_numpy(a.score_samples(x)))
    assert abs(a.gibbs(np.repeat(x, 50, 0))[:, 2].mean() - x[:, 2].mean()) < 1.5
    alone = -0.5 * np.log(2 * np.pi * np.e * x.var(0)).sum()
    assert small(n_iter=0).fit(x).score(x) < alone + 0.1 < small(n_iter=100).fit(x).score(x)


TABLES = [(bits(), {}), (2 * bits() - 1, {"visible": "spin"}), (reals(), {})]


@pytest.mark.parametrize("x, options", TABLES, ids=["bits", "spins", "reals"])
def test_features_are_what_the_attributes_say(x, options):
    one = small(**options).fit(x)
    field = x @ one.components_.T + one.intercept_hidden_
    np.testing.assert_allclose(one.transform(x), 1 / (1 + np.exp(-field)), atol=1e-10)
    assert one.transform(x.astype(np.float32)).dtype == np.float32


def test_auto_looks_once():
    assert small().fit(bits()).visible_ == small().fit(bits() / 2).visible_ == "bernoulli"
    assert small().fit(reals()).visible_ == small().fit(bits() + 1e-9).visible_ == "gaussian"
    one = small().partial_fit(bits(5))
    assert one.visible_ == "bernoulli"
    with pytest.raises(ValueError, match=r"X must lie in \[0, 1\] for bernoulli units"):
        one.partial_fit(reals(5)[:, [0, 1, 2, 3, 0, 1]])
    assert one.partial_fit(bits(3)) is one
    late = small().partial_fit(reals(20))
    assert late.visible_ == "gaussian" and late.partial_fit(bits(5, 4)).visible_ == "gaussian"


def test_seeds_and_order():
    x = bits()
    same = lambda a, b: np.array_equal(a.components_, b.components_)
    assert same(small().fit(x), small().fit(x)) and same(small().fit(x), small().fit(x[::-1]))
    assert not same(small().fit(x), small(random_state=1).fit(x))
    r = np.random.RandomState(3)
    assert not same(small(random_state=r).fit(x), small(random_state=r).fit(x))
    one = small().fit(x)
    assert not np.array_equal(one.gibbs(x), one.gibbs(x))
    assert np.array_equal(small().fit(x).gibbs(x), small().fit(x).gibbs(x))
    again = pickle.loads(pickle.dumps(one))
    assert np.array_equal(again.gibbs(x), one.gibbs(x))


def test_gibbs_is_a_step_of_the_machine():
    x = bits(4000)
    one = small(n_iter=20).fit(x)
    v = gibbs(one.machine_, torch.from_numpy(x), 1, 5).numpy()
    gap = one.gibbs(x).mean(0) - v.mean(0)
    error = (2 * v.var(0) / len(v)) ** 0.5
    assert (np.abs(gap) < 4 * error).all() and error.max() < 0.02
    assert (np.abs(1 - v.mean(0) - one.gibbs(x).mean(0)) > 4 * error).any()                 # control


def test_sparse_tables_are_tables():
    x = bits()
    for form in (sparse.csr_matrix, sparse.csc_array, sparse.coo_matrix):
        one = small().fit(form(x))
        assert np.array_equal(one.components_, small().fit(x).components_)
        for method in ("transform", "score_samples", "log_likelihood", "gibbs"):
            assert getattr(one, method)(form(x)).shape[0] == len(x)
    y = np.arange(60) % 3
    assert np.array_equal(RBMClassifier(8, random_state=0).fit(sparse.csr_array(x), y).predict(x),
                          RBMClassifier(8, random_state=0).fit(x, y).predict(sparse.csr_array(x)))


def test_pandas_in_and_out():
    pd = pytest.importorskip("pandas")
    table = pd.DataFrame(bits(), columns=list("abcdef")).astype({"a": "boolean"})
    table.loc[3, "a"] = pd.NA
    out = small().set_output(transform="pandas").fit(table).transform(table)
    assert list(out.columns) == [f"rbmtransformer{k}" for k in range(4)]
    part = table[list("bcdef")]
    one = RBMClassifier(8, random_state=0).fit(part, pd.Series(["x", "y"] * 30))
    assert list(one.feature_names_in_) == list("bcdef") and set(one.predict(part)) <= {*"xy"}


def test_pipelines_grids_and_processes():
    x, y = load_digits(return_X_y=True)
    x, y = x[:300] / 16, y[:300]
    pipe = make_pipeline(small(n_components=30), LogisticRegression(max_iter=200))
    grid = GridSearchCV(pipe, {"rbmtransformer__learning_rate": [0.05, 0.2],
                               "rbmtransformer__n_components": np.array([4, 40])}, cv=2)
    assert grid.fit(x, y).best_params_["rbmtransformer__n_components"] == 40
    one = cross_val_score(RBMClassifier(20, random_state=0), x, y, cv=2)
    assert np.array_equal(one, cross_val_score(RBMClassifier(20, random_state=0), x, y, cv=2, n_jobs=2))
    assert clone(pipe).get_params()["rbmtransformer__visible"] == "auto"


def test_what_is_said_of_an_epoch(capsys):
    small(verbose=1).fit(bits())
    assert re.fullmatch(r"(\[RBMTransformer\] Iteration \d, pseudo-likelihood = -\d+\.\d\d, "
                        r"time = \d\.\d\ds\n){3}", capsys.readouterr().out)
    small(verbose=1, n_iter=1).fit(reals())
    assert "reconstruction error = " in capsys.readouterr().out
    RBMClassifier(4, n_iter=2, verbose=1).fit(bits(), np.arange(60) % 2)
    assert capsys.readouterr().out.count("log p(y|v) = -") == 2


# holes

def test_held_units_stay_and_the_others_have_their_law():
    m, v = machine(4, 3), states(4)
    seen = torch.tensor([True, False, True, False]).expand(16, -1)
    drawn = clamped_gibbs(m, v, seen, 3, 0)
    assert torch.equal(drawn[seen], v[seen]) and not torch.equal(drawn, v)
    row = torch.tensor([1.0, 0, 0, 0], dtype=v.dtype).expand(6000, -1)
    drawn = clamped_gibbs(m, row, seen[:1].expand(6000, -1), 60, 1)[:, [1, 3]]
    held = m.clamp(row[0], seen[0])
    exact = (states(2) * held.log_prob(states(2)).exp()[:, None]).sum(0)
    error = drawn.std(0) / 6000**0.5
    assert ((drawn.mean(0) - exact) / error).abs().max() < 4 and error.max() < 0.01
    free = m.sample(6000, generator=2)[:, [1, 3]].mean(0)
    assert ((free - exact) / error).abs().max() > 4                               # control: not held


def test_a_stream_a_row():
    m, v = machine(4, 3), states(4)[:3]
    seen = torch.tensor([[True, False, True, False], [False] * 4, [True, True, True, False]])
    whole = clamped_gibbs(m, v, seen, 4, [seeded(k) for k in range(3)])
    alone = [clamped_gibbs(m, v[k:k + 1], seen[k:k + 1], 4, [seeded(k)]) for k in range(3)]
    assert torch.equal(whole, torch.cat(alone))


def test_holes_in_training_and_features():
    r = np.random.default_rng(0)
    full = ((r.random((1000, 1)) < 0.5) ^ (r.random((1000, 6)) < 0.1)) * 1.0    # six copies of one bit
    x, coins = np.where(r.random(full.shape) < 0.4, np.nan, full), (r.random(full.shape) < 0.5) * 1.0
    coins = np.where(np.isnan(x), coins, x)
    run = lambda table, k: RBMTransformer(3, batch_size=20, n_iter=40, random_state=k).fit(table)
    gains = np.array([run(x, k).log_likelihood(full).mean() - run(coins, k).log_likelihood(full).mean()
                      for k in range(4)])
    assert gains.mean() > 4 * gains.std(ddof=1) / 2 and gains.mean() > 0.2
    one = run(x, 0)
    known = ~np.isnan(x).any(1)
    h = one.transform(x)
    np.testing.assert_allclose(h[known], one.transform(full[known]), atol=1e-12)
    v, row = torch.from_numpy(full[:1]).repeat(2, 1), full[:1].copy()
    v[0, 1], v[1, 1], row[0, 1] = 0, 1, np.nan                                # one hole: two completions
    p = one.machine_.log_prob(v).softmax(0)
    exact = p @ one.machine_.hidden_mean(v)
    rows = one.transform(np.repeat(row, 400, 0))
    z = (rows.mean(0) - exact.numpy()) / np.maximum(rows.std(0) / 20, 1e-9)
    assert np.abs(z).max() < 4 and (rows.std(0) / 20).max() < 0.01
    assert small().partial_fit(x[:9]).visible_ == "bernoulli"
    holes = np.where(r.random((80, 4)) < 0.2, np.nan, reals())
    real = small(n_iter=50).fit(holes)
    assert np.isfinite(real.transform(holes)).all() and real.score(reals()) > small(n_iter=1).fit(
        reals()).score(reals())


# weights

def test_weights_are_copies():
    x, w = bits(20), np.arange(20) % 4
    for kind, table in (({}, x), ({"visible": "gaussian"}, x), ({"visible": "spin"}, 2 * x - 1)):
        a = small(**kind).fit(table, sample_weight=w)
        b = small(**kind).fit(table.repeat(w, 0))
        np.testing.assert_allclose(a.components_, b.components_, rtol=1e-12)
    assert not np.allclose(small().fit(x).components_, small().fit(x, sample_weight=w).components_)
    y = np.array(list("abcd") * 5)                                            # no "a" weighs anything
    a = RBMClassifier(5, random_state=0).fit(x, y, sample_weight=w)
    b = RBMClassifier(5, random_state=0).fit(x.repeat(w, 0), y.repeat(w))
    np.testing.assert_allclose(a.predict_proba(x), b.predict_proba(x), rtol=1e-12)


def test_relative_weights_are_shares_of_the_rows():
    w = torch.tensor([0.5, 0.25, 0.0, 1.25, 1.0], dtype=torch.float64)
    found = [torch.bincount(copies(w, seeded(k)), minlength=5) for k in range(2000)]
    found = torch.stack(found).double()
    exact = 4 * w / w.sum()
    error = found.std(0) / 2000**0.5
    assert ((found.mean(0) - exact).abs() <= 4 * error + 1e-12).all() and error.max() < 0.02
    assert ((found - exact).abs() < 1).all() and (found.sum(1) == 4).all()
    assert torch.equal(copies(torch.tensor([2.0, 0, 1])), torch.tensor([0, 0, 2]))
    one = small().fit(bits(20), sample_weight=np.linspace(0.1, 2, 20))
    assert np.isfinite(one.components_).all()


# classes

@pytest.mark.parametrize("kind", ["bernoulli", "gaussian"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_class_probabilities_are_softmax_of_free_energies(kind, dtype):
    m, Y = machine(7, 3, kind, scale=0.5, dtype=dtype), torch.eye(3, dtype=dtype)
    if kind == "gaussian": m.sigma = 1.0
    v = states(4, dtype=dtype).reshape(4, 4, 4)
    rows = torch.cat([v[:, :, None].expand(-1, -1, 3, -1), Y.expand(4, 4, -1, -1)], -1)
    torch.testing.assert_close(class_log_probs(m, v, 3), (-m.free_energy(rows)).log_softmax(-1),
                               rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-12)
    assert class_log_probs(m, v[0, 0], 3).shape == (3,)
    assert torch.autograd.gradcheck(lambda v: class_log_probs(m, v, 3), v[0].double().requires_grad_()) \
        if dtype == torch.float64 else True


def test_the_classifier_learns_and_names_its_classes():
    x, y = load_wine(return_X_y=True)
    names = np.array(["red", "rosé", "white"])[y]
    one = RBMClassifier(16, random_state=0).fit(x[::2], names[::2])
    assert one.score(x[1::2], names[1::2]) > 0.93 and one.visible_ == "gaussian"
    assert list(one.classes_) == ["red", "rosé", "white"]
    np.testing.assert_allclose(one.predict_proba(x).sum(1), 1)
    assert np.array_equal(one.predict(x), one.classes_[one.predict_proba(x).argmax(1)])
    assert RBMClassifier(5, generative=1.0).fit(x, np.ones(len(x))).predict(x).tolist() == [1.0] * len(x)


def test_the_generative_part_makes_it_dream():
    x = np.concatenate([np.eye(8)[:4], 1 - np.eye(8)[:4]]).repeat(10, 0)
    y = np.arange(80) // 40

    def likelihood(share):
        m = RBMClassifier(10, n_iter=40, generative=share, random_state=0).fit(x, y).machine_
        classes = torch.eye(2).double().expand(256, 2, 2)
        rows = torch.cat([states(8)[:, None].expand(-1, 2, -1), classes], 2)
        F = m.free_energy(rows.flatten(0, 1))
        data = torch.cat([torch.from_numpy(x), torch.eye(2).double()[y]], 1)
        return (-m.free_energy(data).mean() - (-F).logsumexp(0)).item()
    assert likelihood(1.0) > likelihood(0.0) + 1 and likelihood(1.0) > -5


# errors

BAD = [
    ({"n_components": 0}, ValueError, "n_components must be at least 1"),
    ({"n_components": 2.5}, TypeError, "n_components must be an int"),
    ({"learning_rate": 0.0}, ValueError, "learning_rate must be finite and above 0"),
    ({"learning_rate": "fast"}, TypeError, "learning_rate must be a number"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"n_iter": -1}, ValueError, "n_iter must be at least 0"),
    ({"visible": "potts(3)"}, ValueError, "visible must be one of 'auto', 'bernoulli', 'spin', '"),
    ({"random_state": "x"}, ValueError, "cannot be used to seed"),
]


@pytest.mark.parametrize("given, error, words", BAD)
@pytest.mark.parametrize("method", ["fit", "partial_fit", "classify"])
def test_bad_arguments_are_named(given, error, words, method):
    with pytest.raises(error, match=re.escape(words)):
        if method == "classify": RBMClassifier(**given).fit(bits(), np.arange(60) % 2)
        else: getattr(RBMTransformer(**given), method)(bits())


def test_bad_tables_are_refused():
    hole = np.where(np.arange(6) == 2, np.nan, bits())
    endless, shown = np.where(bits() > 0.5, np.inf, 0), "Input X contains"
    cases = [(lambda: small().fit(hole), "X must hold a number in column 2"),
             (lambda: small().fit(endless), f"{shown} infinity"),
             (lambda: small().fit([[np.nan]]), "X must hold a number in column 0"),
             (lambda: small().fit(bits()).partial_fit(np.full((2, 6), np.nan)), None),
             (lambda: small(visible="bernoulli").fit(reals()), r"X must lie in \[0, 1\] for bernoulli"),
             (lambda: small(visible="spin").fit(bits()), "X must hold -1 and 1 for spin units"),
             (lambda: small().fit([[0.0, 1e308], [2.0, -1e308]]), "a spread that double precision"),
             (lambda: small().fit(bits()).score_samples(hole), f"{shown} NaN"),
             (lambda: small().fit(bits()).log_likelihood(hole), f"{shown} NaN"),
             (lambda: small().fit(bits()).gibbs(hole), f"{shown} NaN"),
             (lambda: small().fit(bits()).log_likelihood(bits() / 2), "X must"),
             (lambda: small().fit(bits()).transform(bits(5, 4)), "X has 4 features, but RBMTransformer"),
             (lambda: small().fit(np.zeros((0, 3))), "minimum of 1 is required"),
             (lambda: RBMClassifier().fit(hole, np.arange(60) % 2), f"{shown} NaN"),
             (lambda: RBMClassifier().fit(bits(), np.linspace(0, 1, 60)), "Unknown label type"),
             (lambda: RBMClassifier(generative=-1).fit(bits(), np.arange(60) % 2), "generative must be")]
    for run, words in cases:
        if words is None: run()
        else:
            with pytest.raises(ValueError, match=words): run()
    with pytest.raises(TypeError, match="generative must be a number"):
        RBMClassifier(generative="a").fit(bits(), np.arange(60) % 2)


def test_bad_weights_are_named():
    for w, words in ((np.zeros(60), "must not be zero everywhere"),
                     (-np.ones(60), "must be finite and nowhere negative"),
                     (np.full(60, np.nan), "must be finite"), (np.ones(3), r"must have shape \[60\]"),
                     (np.ones((60, 1)), r"must have shape \[60\], got \[60, 1\]")):
        for one in (small(), RBMClassifier()):
            with pytest.raises(ValueError, match=f"sample_weight {words}"):
                one.fit(bits(), np.arange(60) % 2, sample_weight=w)
    with pytest.raises(TypeError, match="weights must be a tensor"): copies([1.0])


def test_bad_tensors_are_named():
    m, v = machine(4, 3), states(4)
    for seen in (None, torch.ones(16, 4), torch.ones(4, dtype=torch.bool)):
        with pytest.raises(ValueError, match="seen must be a bool tensor of shape"):
            clamped_gibbs(m, v, seen, 1)
    with pytest.raises(ValueError, match="steps must be at least 1"):
        clamped_gibbs(m, v, v > 0, 0)
    with pytest.raises(ValueError, match=r"v must have shape \[..., 3\]"): class_log_probs(m, v, 1)
    with pytest.raises(TypeError, match="n_classes must be an int"): class_log_probs(m, v[:, :2], 2.0)


def test_numbers_that_run_away_are_told():
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        small(learning_rate=1e200).fit(reals())


def test_scikit_learn_is_loaded_late():
    code = ("import sys, rbmdiff.practice.runs, rbmdiff.practice.cli, rbmdiff.foundations.data; "
            "early = 'sklearn' in sys.modules; rbmdiff.RBMTransformer; "
            "print(early, 'sklearn' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"], done.stderr
    assert rbmdiff.RBMTransformer is estimator.RBMTransformer
