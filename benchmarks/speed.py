"""Milliseconds per parameter update: rbmdiff, its peers, and the floor of its matrix products alone, interleaved in one run.

    python benchmarks/speed.py [--out benchmarks/results/speed.json] [--threads 2] [--rounds 15] [--no-likelihood]

One update is one step of persistent contrastive divergence with k Gibbs steps (PCD-k) on one batch of 0/1 images, with as many chains
as images, and one step of plain gradient ascent. All contenders start from the same weights and data. A round runs every contender
for at least 30 ms, after a call that is not timed; numbers are medians over the rounds, with the 10th and 90th percentile.

The textbook estimate of PCD-k needs 2k + 4 products of a batch with the weights: 2k for the chains, one each for the hidden means of
data and chains, two for the gradient. Averaging the visible layer instead (rbmdiff's average='visible', rbms, "hidden chain") saves one.
What is not installed is skipped with a line. The last part trains a machine on the 8x8 digits with products in float32 and in bfloat16
and compares test log-likelihoods by annealed importance sampling.
"""
import argparse
import importlib.metadata
import json
import math
import os
from pathlib import Path
import platform
import statistics
import sys
import time

SIZES = ((784, 500, 100), (784, 1024, 512), (64, 128, 128))                             # visible, hidden, batch
RATE = 1e-3
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", default="benchmarks/results/speed.json")
parser.add_argument("--threads", type=int, default=os.cpu_count())
parser.add_argument("--rounds", type=int, default=15)
parser.add_argument("--block", type=float, default=0.03, help="least seconds of a timed block")
parser.add_argument("--no-likelihood", action="store_true")
options = parser.parse_args()
if options.threads == 1: os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import torch
from torch import Tensor

from rbmdiff.foundations import kernels
from rbmdiff.foundations.core import Estimate, replace_file
from rbmdiff.foundations.data import base_rate, binarize, digits
from rbmdiff.learning.contrastive import assign, cd_gradient
from rbmdiff.learning.partition import ais
from rbmdiff.models.rbm import RBM


def start(D, H, B):
    """Weights, data and chains, the same for every contender."""
    g = torch.Generator().manual_seed(0)
    return 0.01 * torch.randn(D, H, generator=g), *((torch.rand(B, D, generator=g) < p).float() for p in (0.2, 0.5))


def ours(D, H, B, k, average="hidden", products=None, numba=True, **sgd):
    """rbmdiff as its user calls it: gradient, assignment, optimiser."""
    W, v, chains = start(D, H, B)
    m, g, fused, none = RBM(D, H), torch.Generator().manual_seed(1), kernels._fused, lambda dtype: None
    m.W.data = W
    optimizer = torch.optim.SGD(m.parameters(), lr=RATE, maximize=True, **{"fused": True, **sgd})

    def update():
        nonlocal chains
        kernels._fused = fused if numba else none
        gradients, chains = cd_gradient(m, v, k, chains, g, average=average, products=products)
        assign(m, gradients)
        optimizer.step()
        kernels._fused = fused

    return update


def plain(D, H, B, k):
    """The step as one would write it in PyTorch on a good day: stacked gradient, uniform numbers compared, no torch.bernoulli."""
    W, v, x = start(D, H, B)
    b, c = torch.zeros(D), torch.zeros(H)
    up = lambda field: (torch.rand_like(field) < torch.sigmoid(field)).float()

    @torch.no_grad()
    def update():
        nonlocal x
        for _ in range(k): x = up(torch.addmm(b, up(torch.addmm(c, x, W)), W.T))
        s = torch.cat([v, x])
        q = torch.sigmoid(torch.addmm(c, s, W)) / B
        q[B:].neg_()
        W.addmm_(s.T, q, alpha=RATE), b.add_((v.mean(0) - x.mean(0)), alpha=RATE), c.add_(q.sum(0), alpha=RATE)

    return update


def floor(D, H, B, k, kind, shared=False):
    """The matrix products of an update, nothing else: 2k + 4 of them, or 2k + 3 if data and chains share the first."""
    W, v, _ = start(D, H, B)
    q, h, dtype = torch.rand(2 * B, H), (torch.rand(B, H) < 0.3).float(), torch.bfloat16 if kind == "bfloat16" else torch.float32
    W, v, s, q, h = (x.to(dtype) for x in (W, v, torch.cat([v, v]), q, h))
    sT, onednn = s.T.contiguous(), getattr(torch.ops.mkldnn, "_linear_pointwise", None) if kind == "oneDNN" else None
    if kind == "oneDNN" and onednn is None: raise ImportError("oneDNN's float32 product")
    product = torch.nn.functional.linear if kind == "bfloat16" else (lambda x, w: onednn(x, w, None, "none", [], "")) if onednn else lambda x, w: torch.mm(x, w.T)

    @torch.no_grad()
    def update():
        for _ in range(k - shared): product(v, W.T), product(h, W)
        if shared: product(h, W)
        product(s, W.T), product(sT, q.T)

    return update
