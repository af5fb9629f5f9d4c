"""Log-likelihood of the held-out 8x8 digits under the U-Net of the book, by the probability-flow ODE, in
nats and bits per dimension.

    python benchmarks/diffusion_likelihood.py [--out FILE] [--images 297] [--threads 1]

Grey levels k in 0..16 become x = 2 (k + u) / 17 - 1 with u uniform; log P(k) >= E log p(x) + 64 log(2 /
17). The trace is exact, 32 nodes, two steps of order four between neighbours, float32, t_min = 1e-3 of
the linear log-SNR schedule from 10 to -10. Beside it, on the same x: Rademacher probes, the evidence
lower bound, and for the first 32 images more nodes, float64, and 16 dequantisations an image. Errors are
standard errors over images; those of the probes, of the bound and of u are given apart.
"""
import json
import math

import torch
from tqdm import tqdm

from rbmdiff.diffusion.elbo import elbo
from rbmdiff.diffusion.likelihood import cell_log_prob, dequantize, log_likelihood, nats_to_bits
from rbmdiff.diffusion.networks import Preconditioned, UNet, as_eps
from rbmdiff.diffusion.schedule import LinearLogSNR
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import digits
from record import RESULTS, arguments, command, versions, write

D, LEVELS, T_MIN, DRAWS, FEW = 64, 17, 1e-3, 16, 32


def likelihood(predict, schedule, x, title="", **options):
    """Fields of `log_likelihood` of all `x`, in batches with a bar."""
    parts = [log_likelihood(predict, schedule, rows, T_MIN, **options)
             for rows in tqdm(x.split(33), desc=title, disable=None)]
    return {name: torch.cat([getattr(part, name) for part in parts])
            for name in ("log_prob", "stderr", "prior", "truncation", "nfe")}


def row(nats):
    """Mean over images [B] of log densities, in nats of densities and in bits per dimension of grey
    levels.
    """
    bits = nats_to_bits(cell_log_prob(nats[None], D, LEVELS), D)
    return {name: {"value": e.value, "stderr": e.stderr}
            for name, e in (("nats", Estimate.of(nats)), ("bits_per_dimension", Estimate.of(bits)))}


def model(schedule, dtype):
    """The network of the book as predict(x, t) -> eps."""
    network = UNet.load(RESULTS / "digits_unet.safetensors").requires_grad_(False).to(dtype)
    return as_eps(Preconditioned(network, schedule, scale=0.7), schedule)


def accuracy(predict, schedule, x, reference):
    """Largest deviation in nats of cheaper settings, and of float64, from 64 nodes with four steps each
    in float32.
    """
    kinds = {"16 nodes, 2 steps": (16, 2), "32 nodes, 1 step": (32, 1), "32 nodes, 2 steps": (32, 2)}
    runs = {name: likelihood(predict, schedule, x, name, nodes=n, steps=s)
            for name, (n, s) in kinds.items()}
    runs["32 nodes, 2 steps, float64"] = likelihood(model(schedule, torch.float64), schedule,
                                                    x[:8].double(), "float64", steps=2)
    return {
        name: {
            "largest_deviation_in_nats": (run["log_prob"] - reference[: len(run["log_prob"])])
            .abs()
            .max()
            .item(),
            "nfe": run["nfe"][0].item(),
        }
        for name, run in runs.items()
    }


def main():
    parser = arguments(__doc__, RESULTS / "diffusion_likelihood.json", threads=1)
    parser.add_argument("--images", type=int, default=297,
                        help="held-out images, from the first (default all 297)")
    options = parser.parse_args()
    if not FEW <= options.images <= 297: parser.error(f"--images must lie between {FEW} and 297")
    torch.set_num_threads(options.threads)
    schedule, g = LinearLogSNR(-10, 10), torch.Generator().manual_seed(0)
    k = (16 * digits()[1][:options.images]).round()
    x, again, predict = *(dequantize(k, LEVELS, g).reshape(-1, 1, 8, 8)
                          for _ in range(2)), model(schedule, torch.float32)

    exact = likelihood(predict, schedule, x, "exact", steps=2)
    cheap = {"nodes": 16, "steps": 2}
    probed = likelihood(predict, schedule, x, "Rademacher", steps=2, trace="rademacher", generator=g)
    bound = elbo(predict, schedule, x, T_MIN, n=64, sets=6, generator=g)
    shaken = likelihood(predict, schedule, x + schedule.rho(T_MIN).float()
                        * torch.randn(x.shape, generator=g), "x + rho eps", **cheap)["log_prob"]
    other = likelihood(predict, schedule, again, "other u", **cheap)["log_prob"]
    same = likelihood(predict, schedule, x, "same u", **cheap)["log_prob"]
    reference = likelihood(predict, schedule, x[:FEW], "reference", nodes=64, steps=4)["log_prob"]
    many = torch.stack(
        [
            likelihood(
                predict, schedule, dequantize(k[:FEW], LEVELS, g).reshape(-1, 1, 8, 8), f"u {m}", **cheap
            )["log_prob"]
            for m in range(DRAWS)
        ]
    )
    cell, gap = cell_log_prob(many, D, LEVELS), exact["log_prob"] - bound.log_prob
    noise = (probed["stderr"].square().sum().sqrt() / len(x)).item()
    result = {
        "command": command(),
        "versions": versions(),
        "settings": {
            "schedule": repr(schedule),
            "t_min": T_MIN,
            "rho_min": float(schedule.rho(T_MIN)),
            "images": len(x),
            "levels": LEVELS,
            "nodes": 32,
            "steps": 2,
            "trace": "exact",
            "dtype": "float32",
            "threads": options.threads,
        },
        **row(exact["log_prob"]),
        "ode": {
            "nfe": exact["nfe"][0].item(),
            "truncation_in_nats": Estimate.of(exact["truncation"]).value,
            "prior_in_nats": Estimate.of(exact["prior"]).value,
        },
        "another_dequantisation": {
            "change_of_the_mean_in_nats": (other - same).mean().item(),
            "stderr": Estimate.of(other - same).stderr,
        },
        "rademacher": {
            **row(probed["log_prob"]),
            "probes": 16,
            "stderr_of_the_mean_in_nats": noise,
            "difference_in_nats": (probed["log_prob"] - exact["log_prob"]).mean().item(),
            "median_stderr_of_an_image": probed["stderr"].median().item(),
        },
        "elbo": {
            **row(bound.log_prob),
            "stderr_of_the_mean_in_nats": (bound.stderr.square().sum().sqrt() / len(x)).item(),
            "ode_minus_elbo_in_nats": {
                "value": Estimate.of(gap).value,
                "stderr": Estimate.of(gap).stderr,
            },
            "of_which_noise_at_t_min_in_nats": {
                "value": Estimate.of(same - shaken).value,
                "stderr": Estimate.of(same - shaken).stderr,
            },
        },
        "importance_weighted": {
            "images": FEW,
            "draws": DRAWS,
            "one_draw_bits": Estimate.of(
                nats_to_bits(cell_log_prob(many.reshape(1, -1), D, LEVELS), D)
            ).value,
            "all_draws_bits": Estimate.of(nats_to_bits(cell, D)).value,
            "gain_in_nats": (cell - many.mean(0) - D * math.log(2 / LEVELS)).mean().item(),
            "spread_over_u_in_nats": many.std(0).mean().item(),
        },
        "accuracy": accuracy(predict, schedule, x[:FEW], reference),
    }
    write(options.out, result)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
