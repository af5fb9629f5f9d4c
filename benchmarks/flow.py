"""Flows against laws that are known: planar flows and the ring, and three families on noised bits.

    python benchmarks/flow.py [--part NAME ...] [--out FILE] [--threads 1] [--seeds 5] [--steps 3000]
                              [--bits-steps 1200]

`planar`: flows of K planar steps, trained on draws of their own (Adam at 0.01, falling to 0; the
energy is scaled up from 0.01 to 1 over the first half), in the form of the library and with u and w
of length one. `kl` is KL(flow | ring) in nats, with the exact log Z, from fresh draws of each flow;
`stderr` is that over seeds. Both forms share starts and draws. `log_z` are the estimates by
importance weights.

`bits`: x = v + 0.35 noise, v from a machine of 6 x 4 bits; flows are trained on fresh draws (Adam
at 0.003, falling to 0) and `kl` is KL(exact | flow) over one set of draws that none of them saw.
All families see the same draws. Steps, rates and widths are those that were tried first. `small start`
are our families with hidden weights that are uniform in ± 1 / sqrt(inputs) at first, a sixth of the
variance of ours or less; theirs start so too. `seconds` are those of one training on one thread.

Parts are `planar` and the names of families, by default all; each replaces what FILE has of it.
"""
import json
import math
import time

import torch
from torch import Tensor
from torch.nn.functional import softplus
import zuko

from rbmdiff.bridge.tilted import log_prob
from rbmdiff.foundations.core import Estimate
from rbmdiff.models.flow import (
    Coupling,
    Flow,
    MaskedAutoregressive,
    Planar,
    _log_growth,
    ring_energy,
)
from rbmdiff.models.rbm import RBM
from record import RESULTS, arguments, header, write

LOG_Z = 1.8775016261097
LAYERS = 2, 4, 8, 16, 32
DIM, NOISE = 6, 0.35


def descend(loss, parameters, steps: int, rate: float) -> None:
    """Adam on loss(i) with a rate that falls to 0."""
    optimizer = torch.optim.Adam(parameters, rate)
    falling = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: 1 - i / steps)
    for i in range(steps):
        optimizer.zero_grad()
        loss(i).backward()
        optimizer.step()
        falling.step()


# --- planar flows and the ring

def directions(u: Tensor, w: Tensor, unit: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The u and w of steps [seeds, K, 2], of length one if `unit`, and w . u before any change."""
    if unit: u, w = (x / x.norm(dim=-1, keepdim=True) for x in (u, w))
    along = (u * w).sum(-1)
    if unit: return u, w, along
    size = w.square().sum(-1, keepdim=True)
    return u + (softplus(along) - 1 - along)[..., None] * w / size, w, along


def pushed(p: dict[str, Tensor], z: Tensor, unit: bool) -> tuple[Tensor, Tensor]:
    """x and log-determinants of z [seeds, n, 2]: `Flow.push` for all seeds at once."""
    u, w, along = directions(p["u"], p["w"], unit)
    places = []
    for k in range(u.shape[1]):
        places.append(torch.baddbmm(p["b"][:, None, k:k + 1], z, w[:, k, :, None]))
        z = torch.baddbmm(z, places[-1].tanh(), u[:, None, k])
    a, along = torch.cat(places, -1), along[:, None].expand(-1, z.shape[1], -1)
    if unit: return z, torch.log1p((1 - a.tanh().square()) * along).sum(-1)
    return z, _log_growth(a, along).sum(-1)


def planar(layers: int, seeds: int, steps: int, unit: bool) -> dict:
    """Flows of one depth and form, one a seed, all at once."""
    streams = [torch.Generator().manual_seed(1000 * seed + layers) for seed in range(seeds)]
    flows = [Flow([Planar(2, generator=g) for _ in range(layers)]) for g in streams]
    row = lambda flow, name: torch.stack([getattr(step, name).detach() for step in flow.steps])
    stacked = lambda name: torch.stack([row(flow, name) for flow in flows])
    p = {name: stacked(name).requires_grad_() for name in "uwb"}
    draw = lambda n: torch.stack([torch.randn(n, 2, generator=g) for g in streams])
    if not unit:
        z = draw(5)
        ours = zip(pushed(p, z, unit), zip(*(flow(x) for flow, x in zip(flows, z))))
        assert all(torch.allclose(x, torch.stack(y), atol=1e-4) for x, y in ours)

    def excess(z: Tensor, warmth: float) -> Tensor:
        """log q(x) + U(x) of each draw [seeds, n], with the energy times `warmth`."""
        x, log_det = pushed(p, z, unit)
        return -z.square().sum(-1) / 2 - math.log(2 * math.pi) - log_det + warmth * ring_energy(x)

    warmth = lambda i: min(1.0, 0.01 + 2 * i / steps)
    descend(lambda i: excess(draw(256), warmth(i)).mean(1).sum(), list(p.values()), steps, 0.01)
    with torch.no_grad(): found = torch.cat([excess(draw(10_000), 1.0) for _ in range(10)], 1).double()
    kl = found.mean(1) + LOG_Z
    result = Estimate.of(kl)
    log_z = torch.logsumexp(-found, 1) - math.log(found.shape[1])
    return {"layers": layers, "unit": unit, "kl": result.value, "stderr": result.stderr,
            "each": kl.tolist(), "median": kl.median().item(), "log_z": log_z.tolist()}


# --- noised bits

def machine() -> RBM:
    """Six visible and four hidden bits, strongly coupled."""
    rbm = RBM(DIM, 4, dtype=torch.float64, generator=0).requires_grad_(False)
    g = torch.Generator().manual_seed(0)
    for x in rbm.parameters(): x.copy_(1.5 * torch.randn(x.shape, generator=g, dtype=x.dtype))
    return rbm


def orders(k: int) -> list[int]:
    """As numbered and backwards, in turns."""
    return list(range(DIM))[::1 if k % 2 else -1]


def halves(k: int) -> Tensor:
    """Every second number, and the others, in turns."""
    return torch.arange(DIM) % 2 == k % 2


def small(steps: list, generator: torch.Generator) -> Flow:
    """The flow of `steps` with hidden weights uniform in ± 1 / sqrt(inputs)."""
    for step in steps:
        for w in step.network.weights[:-2]:
            w.data.uniform_(-1, 1, generator=generator).div_(len(w) ** 0.5)
    return Flow(steps)


def autoregressive(generator: torch.Generator) -> list[MaskedAutoregressive]:
    """Five steps."""
    return [MaskedAutoregressive(DIM, order=orders(k), generator=generator) for k in range(5)]


def coupling(generator: torch.Generator) -> list[Coupling]:
    """Six steps."""
    return [Coupling(DIM, kept=halves(k), generator=generator) for k in range(6)]


FAMILIES = {
    "autoregressive": lambda g: Flow(autoregressive(g)),
    "coupling": lambda g: Flow(coupling(g)),
    "autoregressive, small start": lambda g: small(autoregressive(g), g),
    "coupling, small start": lambda g: small(coupling(g), g),
    "zuko autoregressive": lambda g: zuko.flows.MAF(DIM, transforms=5, hidden_features=(64, 64)),
    "zuko coupling": lambda g: zuko.flows.RealNVP(DIM, transforms=6, hidden_features=(64, 64)),
    "zuko spline": lambda g: zuko.flows.NSF(DIM, transforms=3, hidden_features=(64, 64)),
}


def log_density(flow, x: Tensor) -> Tensor:
    """Of either library."""
    return flow.log_prob(x) if isinstance(flow, Flow) else flow().log_prob(x)


def noised(rbm: RBM, n: int, generator: torch.Generator) -> Tensor:
    """Draws [n, D] of bits under noise."""
    v = rbm.sample(n, generator=generator)
    return v + NOISE * torch.randn(v.shape, generator=generator, dtype=v.dtype)


def bits(name: str, seeds: int, steps: int, x: Tensor, exact: Tensor) -> dict:
    """One family on noised bits; `x` and their `exact` log densities are for the test."""
    kls, spread, seconds = [], [], 0.0
    for seed in range(seeds):
        g = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)                                    # zuko draws its weights from there
        flow = FAMILIES[name](torch.Generator().manual_seed(seed))
        start = time.process_time()
        descend(lambda i: -log_density(flow, noised(RBM46, 512, g).float()).mean(),
                list(flow.parameters()), steps, 0.003)
        seconds += time.process_time() - start
        with torch.no_grad(): gap = exact - log_density(flow, x.float()).double()
        kls.append(gap.mean().item())
        spread.append(Estimate.of(gap).stderr)
    result = Estimate.of(torch.tensor(kls, dtype=torch.float64))
    return {"family": name, "parameters": sum(p.numel() for p in flow.parameters()), "kl": result.value,
            "stderr": result.stderr, "each": kls, "draws_stderr": max(spread),
            "seconds": seconds / seeds}


RBM46 = machine()


def main():
    parser = arguments(__doc__, RESULTS / "flow.json", threads=1)
    parts = ["planar", *FAMILIES]
    parser.add_argument("--part", choices=parts, nargs="*", default=parts,
                        help="what to do (default: all)")
    parser.add_argument("--seeds", type=int, default=5, help="flows of each kind (default 5)")
    parser.add_argument("--steps", type=int, default=3000, help="of planar flows (default 3000)")
    parser.add_argument("--bits-steps", type=int, default=1200, help="on noised bits (default 1200)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    known = json.loads(options.out.read_text()) if options.out.is_file() else {}
    result = header("KL in nats", "zuko") | {"command": "python benchmarks/flow.py", "device": "cpu",
                                             "threads": options.threads, "seeds": options.seeds,
                                             "steps": options.steps}
    x = noised(RBM46, 20_000, torch.Generator().manual_seed(10_000))
    exact = log_prob(RBM46, x, 1.0, NOISE)
    mean = Estimate.of(exact)
    families = {row["family"]: row for row in known.get("bits", {}).get("families", [])}
    result |= {"planar": known.get("planar", []), "bits": {
        "steps": options.bits_steps, "sigma": NOISE, "draws": len(x), "exact": mean.value,
        "exact_stderr": mean.stderr, "families": []}}
    if "planar" in options.part: result["planar"] = []
    for layers in LAYERS if "planar" in options.part else ():
        for unit in (False, True):
            start = time.perf_counter()
            result["planar"].append(planar(layers, options.seeds, options.steps, unit))
            write(options.out, result)
            print(f"{time.perf_counter() - start:.0f} s", result["planar"][-1], flush=True)
    for name in FAMILIES:
        if name in options.part: families[name] = bits(name, options.seeds, options.bits_steps, x, exact)
        result["bits"]["families"] = [families[kind] for kind in FAMILIES if kind in families]
        write(options.out, result)
        if name in options.part: print(families[name], flush=True)


if __name__ == "__main__":
    main()
