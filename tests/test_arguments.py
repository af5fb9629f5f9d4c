"""One check for each kind of argument: every public function that takes a schedule, a dtype or a device
says which one it cannot use.
"""
from functools import partial
import inspect

import pytest
import torch
from torch import nn

from rbmdiff import RBM
from rbmdiff.diffusion import weights
from rbmdiff.diffusion.conditional import Measurement
from rbmdiff.diffusion.elbo import AdaptiveLevels
from rbmdiff.diffusion.oracle import gaussian
from rbmdiff.diffusion.schedule import LinearBeta, time_grid
from rooms import ROOMS, parameters, public


class Plain(nn.Module):
    """A network, checked or not."""
    kind, nfe = "eps", 0

    def forward(self, x, t):
        return x

    def settle(self):
        """As of a network whose answers are checked."""


X = torch.linspace(-1, 1, 6).reshape(3, 2)
BELL = gaussian(X[0], torch.eye(2))
GRID = time_grid(LinearBeta(), 5)
VALUES = {
    "schedule": LinearBeta(), "mixture": BELL, "predict": lambda x, t: x, "network": Plain(),
    "rbm": RBM(2, 3), "x": X, "x0": X, "noise": X, "v": torch.ones(3, 2), "k": (X > 0).long(), "b": X[0],
    "u": torch.rand(3), "t": 0.5, "s": 0.1, "t_min": 1e-3, "grid": GRID, "times": GRID.flip(0),
    "patterns": X, "steps": 30, "order": 2, "kind": "x0", "weight": weights.flat, "shape": (3, 2),
    "step": lambda x, i: x, "n_visible": 2, "n_hidden": 3, "n": 2, "low": 0.0, "high": 1.0,
    "rows": 3, "columns": 3, "dim": 2, "channels": 1, "sizes": [2, 3, 2], "hidden": 3,
    "A": torch.eye(2)[:1], "y": torch.ones(1), "sigma_y": 0.5, "known": X, "labels": 0,
    "mask": torch.tensor([True, False]), "classifier": lambda x, t: x,
    "measurement": Measurement(torch.eye(2)[:1], torch.ones(1), 0.5),
    "right": X[:, :1], "down": X[:2], "field": X, "shown": [torch.ones(2, 3)],
    "score": lambda x, sigma: -x,
}
"""A good value for every argument that these functions need."""
OWNERS = {"Mixture": BELL, "AdaptiveLevels": AdaptiveLevels(LinearBeta())}


def takers(argument):
    """Public functions and classes of all rooms with a parameter of this name."""
    every = public("foundations", "diffusion", "practice", *ROOMS, special=("__call__",))
    return {label: function for label, function in every.items() if argument in parameters(function)}


def call(function, argument, value):
    """`function` with `value` for `argument` and good values for all that it needs besides."""
    owner = function.__qualname__.rpartition(".")[0]
    if owner and "self" in parameters(function): function = partial(function, OWNERS[owner])
    needed = [name for name, p in parameters(function).items()
              if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    given = {name: VALUES[name] for name in needed if name != argument}
    result = function(**given, **{argument: value})
    return list(result) if inspect.isgenerator(result) else result


def with_default(argument, *but):
    """Takers of an argument that need not be given."""
    return {name: f for name, f in takers(argument).items()
            if name not in but and parameters(f)[argument].default is not inspect.Parameter.empty}


SCHEDULES = {name: f for name, f in takers("schedule").items() if name != "train.TrainState"}
DTYPES = with_default("dtype", "data.Scale.apply")
DEVICES = with_default("device", "runs.evaluate")


@pytest.mark.parametrize("name", SCHEDULES)
def test_what_is_no_schedule_is_named(name):
    function = SCHEDULES[name]
    wanted = parameters(function)["schedule"].annotation
    for bad in (LinearBeta, 3.0, "cosine", *[None] * ("None" not in str(wanted))):
        with pytest.raises(TypeError, match="schedule must be a schedule, such as LinearBeta"):
            call(function, "schedule", bad)
    if name != "schedule.check_schedule": call(function, "schedule", LinearBeta())


@pytest.mark.parametrize("name", DTYPES)
def test_what_is_no_dtype_is_named(name):
    for bad in ("float32", torch.int64, torch.float16):
        with pytest.raises(TypeError, match="dtype must be torch.float32 or torch.float64"):
            call(DTYPES[name], "dtype", bad)
    call(DTYPES[name], "dtype", torch.float64)


@pytest.mark.parametrize("name", DEVICES)
def test_what_is_no_device_is_named(name):
    with pytest.raises(ValueError, match="device gpu cannot be used"):
        call(DEVICES[name], "device", "gpu")
    call(DEVICES[name], "device", "cpu")
