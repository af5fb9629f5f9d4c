"""Deep machines: a deep Boltzmann machine of 784-500-1000 units on MNIST, and small ones on the digits whose
likelihood is exact.

    python benchmarks/deep.py --data DIR [--runs runs/deep] [--epochs 60] [--out FILE]

DIR is the folder of the four MNIST files. `--runs` keeps checkpoints, written after every epoch, from which a
stopped run goes on; `--only digits` or `--only mnist` makes one part and keeps the other as it is in FILE.
"""
import json
import math
from pathlib import Path
import time

import torch

from rbmdiff.foundations.data import base_rate, binarize_stochastic
from rbmdiff.foundations.train import TrainState, ascend, sgd, train
from rbmdiff.learning.contrastive import centred, cd_gradient, deep_gradient
from rbmdiff.models.deep import DBM
from rbmdiff.models.rbm import RBM
from rbmdiff.practice import runs

SIZES = 784, 500, 1000
PRETRAIN = dict(epochs=5, lr=0.1)
JOINT = dict(lr=0.04, share=0.25, k=2, steps=5, average=0.999)


def images(folder, scratch):
    """Grey training images, and test images binarised as in `mnist.py`."""
    run = runs.prepare(scratch, {"data": "mnist", "data_folder": str(folder)}, overwrite=True)
    return run.x, run.held_out


def doubled(rbm, axis):
    """`rbm` with two copies of a layer on the same weights, the visible one for axis 0."""
    layer = {0: "b", 1: "c"}[axis]
    big = RBM(*(n * (2 if i == axis else 1) for i, n in enumerate(rbm.W.shape)), generator=0)
    big.requires_grad_(False)
    for name in "Wbc":
        x = getattr(rbm, name)
        twice = name == layer or name == "W"
        getattr(big, name).copy_(torch.cat([x, x], axis if name == "W" else 0) if twice else x)
    return big


def folded(gradients, axis):
    """The gradients of the machine behind `doubled`: those of the copies added up."""
    layer = {0: "b", 1: "c"}[axis]
    add = lambda x, dim: sum(x.chunk(2, dim))
    return {name: add(x, axis if name == "W" else 0) if name in ("W", layer) else x
            for name, x in gradients.items()}


def doubled_step(axis, rows):
    """A centred PCD step of a machine with one layer doubled; `rows` makes its data of a batch."""
    seen = -1

    def step(state, v):
        nonlocal seen
        big, g, carry = doubled(state.model, axis), state.generator, state.carry
        v = rows(v, g)
        if axis == 0: v = torch.cat([v, v], 1)
        if seen != state.epoch:
            carry["mean_v"], carry["mean_h"] = v.mean(0), big.hidden_mean(v).mean(0)
            seen = state.epoch
        found, carry["chains"] = cd_gradient(big, v, 1, carry.get("chains", v[:100]), g)
        ascend(state.model, folded(centred(found, carry["mean_v"], carry["mean_h"]), axis))
        return {}
    return step


def falling(optimizer, updates, hold=0.0, low=0.01):
    """The full rate for a part `hold` of the updates, then a straight fall to `low` of it."""
    rate = lambda s: max(low, min(1.0, (1 - s / updates) / (1 - hold)))
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def pretrained(x, folder):
    """The two machines of the stack, each with its inner layer doubled, as one DBM."""
    path = folder / "pretrained.safetensors"
    if path.is_file(): return DBM.load(path)
    g = torch.Generator().manual_seed(0)
    D, H1, H2 = SIZES
    one, two = runs.new_machine(x, H1, generator=g), RBM(H1, H2, generator=g)
    epochs, lr = PRETRAIN["epochs"], PRETRAIN["lr"]

    def up(v, g):
        field = 2 * v @ one.W.detach() + one.c.detach()
        return torch.bernoulli(torch.sigmoid(field), generator=g)

    for machine, axis, rows in ((one, 0, lambda v, g: v), (two, 1, up)):
        if axis == 1: two.b.data.copy_(one.c.detach())
        optimizer = sgd(machine, lr)
        state = TrainState(machine, optimizer, g, falling(optimizer, epochs * 600, 0.5, 0.02))
        for record in train(state, lambda g: binarize_stochastic(x, g), doubled_step(axis, rows), epochs,
                            progress=False):
            print("pretraining", axis, record.epoch, f"{record.seconds:.0f} s", flush=True)
    dbm = DBM(SIZES, generator=0).requires_grad_(False)
    numbers = one.W, two.W, one.b, (one.c + two.b) / 2, two.c
    for p, value in zip((*dbm.W, *dbm.b), numbers):
        p.copy_(value.detach())
    dbm.save(path)
    return dbm


def joint_step(k, steps, share):
    """A centred PCD step of a DBM; offsets are the means over the first batch of an epoch. The weights
    between the hidden layers move at a `share` of the rate."""
    seen = -1

    def step(state, v):
        nonlocal seen
        dbm, g, carry = state.model, state.generator, state.carry
        if seen != state.epoch:
            rows = dbm.mean_field(v, 10).detach()
            carry["mean_v"], carry["mean_h"] = rows.mean(0), dbm.as_rbm().hidden_mean(rows).mean(0).detach()
            if "chains" not in carry: carry["chains"] = torch.bernoulli(rows, generator=g)
            seen = state.epoch
        offsets = carry["mean_v"], carry["mean_h"]
        found, carry["chains"] = deep_gradient(dbm, v, k, carry["chains"], g, steps, offsets)
        found["W.1"] *= share
        ascend(dbm, found)
        return {}
    return step


def trained(x, folder, epochs):
    """The averaged machine of `epochs` epochs; goes on from the checkpoint in `folder`."""
    dbm = pretrained(x, folder).requires_grad_(True)
    optimizer = sgd(dbm, JOINT["lr"])
    state = TrainState(dbm, optimizer, 1, falling(optimizer, epochs * 600), JOINT["average"])
    checkpoint = folder / "checkpoint.safetensors"
    if checkpoint.is_file(): state.load(checkpoint)
    step = joint_step(JOINT["k"], JOINT["steps"], JOINT["share"])
    for record in train(state, lambda g: binarize_stochastic(x, g), step, epochs, progress=False):
        state.save(checkpoint)
        state.averaged_model().save(folder / "model.safetensors")
        print("joint", record.epoch, f"{record.seconds:.0f} s", time.strftime("%H:%M:%S"), flush=True)
    return state.averaged_model(), state


if __name__ == "__main__":
    import sys
    torch.set_num_threads(1)
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    x, test = images(sys.argv[1], folder / "data")
    trained(x, folder, int(sys.argv[3]))
