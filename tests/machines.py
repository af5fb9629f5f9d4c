"""Small machines, states and seeds for the tests: always the same numbers, in float64 and without
gradient by default.
"""
import math

import numpy as np
import torch
from torch import Tensor

from rbmdiff.models.rbm import RBM


def seeded(seed: int = 0, device: str = "cpu") -> torch.Generator:
    """A generator with this seed."""
    return torch.Generator(device).manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, the same up to rounding in every dtype."""
    return torch.randn(shape, dtype=torch.float64, generator=seeded(seed)).to(dtype)


def machine(D: int = 5, H: int = 3, visible="bernoulli", hidden="bernoulli", seed: int = 0,
            scale: float = 0.7,
            dtype: torch.dtype = torch.float64, *, widths: tuple[float, float] = (0.5, 1.5),
            device=None) -> RBM:
    """A machine with normal parameters of standard deviation `scale`, and widths uniform between the two
    `widths`.

    The parameters are drawn in float64, one after the other in their order, so that a machine in float32
    is the same machine, rounded. Its parameters ask for no gradient; `machine(…).requires_grad_()` does.
    """
    generator = seeded(seed)
    rbm = RBM(D, H, visible, hidden, dtype=dtype).requires_grad_(False)
    for parameter in rbm.parameters():
        parameter.copy_(scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator))
    if getattr(rbm, "sigma", None) is not None:
        low, high = widths
        widen(rbm, low + (high - low) * torch.rand(D, dtype=torch.float64, generator=generator))
    return rbm.to(device)


def widen(rbm: RBM, sigma: Tensor | float) -> RBM:
    """Give the visible units of the machine these widths."""
    sigma = torch.as_tensor(sigma, dtype=rbm.W.dtype, device=rbm.W.device).expand(rbm.b.shape)
    if hasattr(rbm, "log_sigma"): rbm.sigma = sigma
    else: rbm.sigma.data = sigma.clone()
    return rbm


def some_states(shape, visible="bernoulli", seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    """States of units that are 0 or 1, -1 or 1, real, or that have a tuple of `levels`, all levels about
    equally often.
    """
    x = normal(*((shape,) if isinstance(shape, int) else shape), seed=seed, dtype=dtype)
    if str(visible) == "gaussian": return x
    levels = {"bernoulli": (0.0, 1.0), "spin": (-1.0, 1.0)}.get(str(visible)) or tuple(visible.levels)
    quantile = torch.special.ndtr(x.double())
    return torch.tensor(levels, dtype=dtype)[(quantile * len(levels)).long().clamp(max=len(levels) - 1)]


# what no function takes for a generator
BAD_STREAMS = {
    "text": "seven", "bytes": b"abc", "a float": 3.5, "True": True, "NaN": math.nan, "none of them": [],
    "too few": [1, 2], "too many": [1, 2, 3, 4], "text inside": [1, 2, "a"], "None inside": [1, None, 3],
    "a float inside": [1, 2.0, 3], "lists inside": [[1], [2], [3]], "True inside": [1, True, 3],
    "numpy's": np.random.default_rng(0), "a tensor": torch.tensor([1, 2, 3]), "an array": np.arange(3),
    "a set": {1, 2, 3}, "a dict": {0: 1}, "too large": 2**70, "too small": -2**70,
    "a class": torch.Generator, "a function": lambda: 1,
}
