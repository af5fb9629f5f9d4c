"""Boltzmann machines and denoising networks of one size on binary MNIST: log-likelihood in nats, and
squared error of denoising.

    python benchmarks/bridge_mnist.py --data DIR --run RUN [--part NAME …] [--epochs 40] [--out FILE]

DIR is the folder of the four MNIST files, RUN the finished run of `rbmdiff train mnist --out RUN --lr
0.2 --average 0.9995 --epochs 120`. A part is one row of the table, or `denoise`; each is added to the
JSON as soon as it is done, so that the parts can run one after the other or side by side, here or there;
every row names its device. Pixels are bits, drawn anew from the grey levels in every epoch; the 10 000
test images are drawn once and are those of `rbmdiff evaluate`.

Machines: 784x500, all with the recipe of RUN (centred gradient, rate 0.2 falling linearly, decay 1e-4,
averaged weights) for EPOCHS epochs, but for the gradient; log Z by 200 chains and 20000 temperatures of
AIS, and of reverse AIS from 1000 Gibbs steps after training images.
Network: `bridge.comparison.BinaryDenoiser` of an MLP, pixels of -1 and +1, all noise levels weighted as
in the likelihood bound; measured by that bound.
Denoising: x = v + rho eps for 500 test images; every method sees the same x. The squared error is summed
over pixels; that of the Gibbs mean is the product of the errors of two independent halves, and so free
of the chains' own variance.
"""
from contextlib import contextmanager
import fcntl
import json
from pathlib import Path
import platform
import time

import torch

from rbmdiff.bridge.comparison import BinaryDenoiser, binary_bound
from rbmdiff.bridge.meanfield import dsm_loss
from rbmdiff.bridge.recovery import recovery_gradient
from rbmdiff.bridge.tilted import denoise, posterior
from rbmdiff.diffusion.elbo import low_discrepancy
from rbmdiff.diffusion.networks import MLP
from rbmdiff.diffusion.objective import denoising_step
from rbmdiff.diffusion.schedule import LinearBeta, LinearLogSNR
from rbmdiff.foundations.core import Estimate, read_tensors, write_tensors
from rbmdiff.foundations.data import base_rate, binarize_stochastic, independent_log_prob, mnist
from rbmdiff.foundations.train import TrainState, ascend, linear_decay, sgd, train
from rbmdiff.learning.contrastive import cd_gradient, centred
from rbmdiff.learning.partition import ais, log_likelihood, reverse_ais
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.gibbs import gibbs
from record import RESULTS, arguments, versions, write

H, BATCH, TEMPERATURES, CHAINS = 500, 100, 20_000, 200
SCHEDULE = LinearLogSNR(-10.0, 5.0)
RHO = 0.1, 0.2, 0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0, 10.0


def estimate(e, **more):
    """An estimate as JSON."""
    return {"value": e.value, "stderr": e.stderr, **more}


def by_annealing(name, rbm, test, x, g, **more):
    """A row: the test log-likelihood of `rbm` between AIS and reverse AIS; errors of log Z and over
    images apart.
    """
    base, start = base_rate(x), binarize_stochastic(x[:CHAINS], g)
    up = ais(rbm, CHAINS, TEMPERATURES, g, base=base)
    down = reverse_ais(rbm, gibbs(rbm, start, 1000, g), TEMPERATURES, g, base=base)
    fits = {kind: log_likelihood(rbm, test, Estimate(z.value, 0.0, z.n))
            for kind, z in (("AIS", up), ("reverse AIS", down))}
    return {"name": name, "kind": "AIS", "value": fits["AIS"].value, "stderr": up.stderr,
            "stderr_images": fits["AIS"].stderr,
            "reverse": fits["reverse AIS"].value, "stderr_reverse": down.stderr,
            "ess": [up.ess, down.ess],
            "parameters": sum(p.numel() for p in rbm.parameters()), **more}


def gradient_of(name, train_means):
    """The gradient of a machine's row as a function of state and batch; a persistent one keeps its
    chains in the state.
    """
    def persistent(state, v):
        if "chains" not in state.carry:
            state.carry["chains"] = (torch.rand(BATCH, len(train_means), device=v.device,
                                                generator=state.generator) < train_means).to(v)
        gradients, state.carry["chains"] = cd_gradient(state.model, v, 1, state.carry["chains"],
                                                       state.generator)
        return gradients

    def recovery(rho):
        def gradient(state, v):
            x = v + rho * torch.randn(v.shape, device=v.device, generator=state.generator)
            return recovery_gradient(state.model, v, posterior(state.model, x, 1.0, rho), 1,
                                     state.generator)
        return gradient

    return {
        "PCD-1": persistent,
        "CD-1": lambda s, v: cd_gradient(s.model, v, 1, generator=s.generator)[0],
        "CD-10": lambda s, v: cd_gradient(s.model, v, 10, generator=s.generator)[0],
        "Gaussian recovery, k = 1, sigma = 1": recovery(1.0),
        "Gaussian recovery, k = 1, sigma = 3": recovery(3.0),
    }[name]


def machine(name, options, x, test):
    """Train one machine by its gradient; its row."""
    g = torch.Generator(x.device).manual_seed(0)
    rbm = RBM(x.shape[1], H, generator=g, device=x.device)
    rbm.b.data, mean_v, gradient = base_rate(x), x.mean(0), gradient_of(name, x.mean(0))
    optimizer = sgd(rbm, 0.2, weight_decay=1e-4)
    state = TrainState(rbm, optimizer, g, linear_decay(optimizer, options.epochs * len(x) // BATCH),
                       0.9995)

    def step(state, v):
        ascend(state.model, centred(gradient(state, v), mean_v, state.carry["mean_h"]))
        return {}

    with torch.no_grad(): state.carry["mean_h"] = rbm.hidden_mean(x[:1000]).mean(0)
    for _ in train(state, lambda g: binarize_stochastic(x, g), step, options.epochs, BATCH):
        with torch.no_grad():
            state.carry["mean_h"] = rbm.hidden_mean(binarize_stochastic(x[:1000], g)).mean(0)
    return by_annealing(name, state.averaged_model(), test, x, g, seconds=state.seconds,
                        epochs=options.epochs)


def proposal(options, x, test):
    """The proposal as it stands, on logits of batches of 16 images; its row."""
    g = torch.Generator(x.device).manual_seed(0)
    rbm, v, start = RBM(x.shape[1], H, generator=g,
                        device=x.device), binarize_stochastic(x, g), time.perf_counter()
    optimizer = torch.optim.Adam(rbm.parameters(), 0.01)
    decay = linear_decay(optimizer, options.updates)
    for _ in range(options.updates):
        optimizer.zero_grad()
        dsm_loss(rbm, v, LinearBeta(), n=500, generator=g).mean().backward()
        optimizer.step(), decay.step()
    rbm.requires_grad_(False)
    return by_annealing("the proposal", rbm, test, x, g, seconds=time.perf_counter() - start,
                        updates=options.updates)


def network(x):
    """A denoiser with about as many parameters as the machines, for pixels of -1 and +1."""
    mlp = MLP(784, 154, 2, generator=torch.Generator().manual_seed(0))
    return BinaryDenoiser(mlp, SCHEDULE, base_rate(x).cpu() / 2).to(x.device)


def denoiser(options, x, test):
    """Train the network and keep its averaged weights in RUN; its row."""
    model, g = network(x), torch.Generator(x.device).manual_seed(1)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.01)
    state = TrainState(model, optimizer, g, linear_decay(optimizer, options.epochs * len(x) // BATCH),
                       0.9995)
    step = denoising_step(SCHEDULE, times=low_discrepancy)
    for record in train(state, lambda g: 2 * binarize_stochastic(x, g) - 1, step, options.epochs, BATCH):
        print(record, flush=True)
    model = state.averaged_model()
    write_tensors(options.run / "denoiser.safetensors", "denoiser", model.state_dict(), {})
    bounds = [binary_bound(model, SCHEDULE, part, generator=g).each
              for part in (2 * test - 1).split(1000)]
    value, noise = (torch.cat([getattr(bound, key) for bound in bounds]) for key in ("value", "stderr"))
    return {"name": "diffusion, tilted MLP", "kind": "bound", **estimate(Estimate.of(value)),
            "stderr_noise": noise.square().sum().sqrt().item() / len(noise),
            "parameters": sum(p.numel() for p in model.parameters()), "seconds": state.seconds,
            "epochs": options.epochs}


@torch.no_grad()
def denoising(options, x, test):
    """Squared error of every denoiser at every level, with its error over images, and seconds per image.
    """
    v, g = test[:500], torch.Generator(x.device).manual_seed(2)
    rbm, model, table = (
        RBM.load(options.run / "model.safetensors").to(x.device).requires_grad_(False),
        network(x),
        [],
    )
    model.load_state_dict(read_tensors(options.run / "denoiser.safetensors", "denoiser")[0])
    for rho in RHO:
        y = v + rho * torch.randn(v.shape, device=v.device, generator=g)
        t = SCHEDULE.t_of_rho(2 * rho)                                      # of the pixels -1 and +1
        z = float(SCHEDULE.alpha(t)) * (2 * y - 1)
        def half():
            return denoise(rbm, y, 1.0, rho, "gibbs", steps=options.steps, burn_in=options.steps // 4,
                           generator=g)
        methods = {"independent pixels": lambda: torch.sigmoid(base_rate(x) + (y - 0.5) / rho**2),
                   "mean field": lambda: denoise(rbm, y, 1.0, rho, "mean_field"),
                   "TAP": lambda: denoise(rbm, y, 1.0, rho, "tap"),
                   "MLP": lambda: (1 + model.denoise(z, t)) / 2}
        start = time.perf_counter()
        one, two = half(), half()
        table.append({"rho": rho, "method": "Gibbs",
                      **estimate(Estimate.of(((v - one) * (v - two)).sum(1).double())),
                      "seconds_per_image": (time.perf_counter() - start) / len(v)})
        for name, method in methods.items():
            start = time.perf_counter()
            error = (v - method()).square().sum(1).double()
            table.append({"rho": rho, "method": name, **estimate(Estimate.of(error)),
                          "seconds_per_image": (time.perf_counter() - start) / len(v)})
        print(*table[-len(methods) - 1:], sep="\n", flush=True)
    return {"images": len(v), "gibbs": f"2 chains of {options.steps} steps after {options.steps // 4}",
            "table": table}


@contextmanager
def locked(path):
    """The JSON in `path`, to be changed by one process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        content = (
            json.loads(path.read_text()) if path.is_file() else {"unit": "nats per image", "rows": []}
        )
        yield content
        write(path, content)


def main():
    parts = ("independent", "full", "PCD-1", "CD-1", "CD-10", "Gaussian recovery, k = 1, sigma = 1",
             "Gaussian recovery, k = 1, sigma = 3", "proposal", "MLP", "denoise")
    parser = arguments(__doc__, RESULTS / "bridge_mnist.json", threads=1)
    parser.add_argument("--data", type=Path, required=True, help="folder of the four MNIST files")
    parser.add_argument("--run", type=Path, required=True, help="folder of the finished run")
    parser.add_argument("--part", choices=parts, nargs="*", default=parts,
                        help="what to do (default: all)")
    parser.add_argument("--epochs", type=int, default=40,
                        help="passes over the training set (default 40)")
    parser.add_argument("--updates", type=int, default=8000,
                        help="updates of the proposal (default 8000)")
    parser.add_argument("--steps", type=int, default=400,
                        help="Gibbs steps per denoised image and chain (default 400)")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    x, held_out = mnist(options.data)
    x, test = (
        part.to(options.device)
        for part in (x, binarize_stochastic(held_out, torch.Generator().manual_seed(0)))
    )
    device = (
        torch.cuda.get_device_name()
        if options.device.startswith("cuda")
        else f"{options.threads} thread of {platform.machine()}"
    )
    for part in options.part:
        start = time.perf_counter()
        if part == "denoise":
            result = denoising(options, x, test)
        elif part == "independent":
            result = {
                "name": "independent pixels",
                "kind": "exact",
                "parameters": 784,
                "seconds": 0.0,
                **estimate(Estimate.of(independent_log_prob(test, base_rate(x)).double())),
            }
        elif part == "full":
            last = json.loads((options.run / "log.jsonl").read_text().splitlines()[-1])
            result = by_annealing(
                "PCD-1, 120 epochs",
                RBM.load(options.run / "model.safetensors").to(x.device).requires_grad_(False),
                test,
                x,
                torch.Generator(x.device).manual_seed(0),
                seconds=last["seconds"],
                epochs=120,
            )
        elif part == "proposal": result = proposal(options, x, test)
        elif part == "MLP": result = denoiser(options, x, test)
        else: result = machine(part, options, x, test)
        result |= {"device": device, "torch": versions()["torch"],
                   "total_seconds": time.perf_counter() - start}
        print(part, {k: v for k, v in result.items() if k != "table"}, flush=True)
        with locked(options.out) as content:
            content |= {"command": "python benchmarks/bridge_mnist.py --data DIR --run RUN",
                        "rbmdiff": versions()["rbmdiff"]}
            if part == "denoise": content["denoising"] = result
            else:
                content["rows"] = [r for r in content["rows"] if r["name"] != result["name"]] + [result]
    options.out.with_suffix(".lock").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
