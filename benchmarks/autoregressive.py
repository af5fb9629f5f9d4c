"""NADE and MADE on bits: exact log-likelihood, in nats per test image.

    python benchmarks/autoregressive.py --data DIR [--part NAME …] [--runs runs] [--out FILE]

Parts `digits NADE` and so on: data and split of benchmarks/digits.py (pixels > 7, 1500 images to train
on, 297 to test). The last 150 training images are held out: a run ends when they have not become more
likely for 20 epochs, and keeps the weights of the best. Sizes and rates were chosen by them, mean of 3
seeds (`search`); then 16 other seeds are measured. AdamW, batches of 50. `logistic` is a MADE without
hidden units; with random orders every seed has a permutation of the pixels of its own; a NADE of six
hidden units has about as many parameters as the machines of that comparison.
Parts `mnist MADE 500` and so on: MNIST in the folder DIR of its four files. Bits are drawn anew from the
grey levels in every epoch; the 10 000 test images are drawn once and are those of
benchmarks/bridge_mnist.py. The last 5000 training images, drawn once, are held out and decide which
epoch's averaged weights are kept. AdamW, batches of 100, rate falling linearly to zero. A run that was
stopped goes on where its last epoch ended.
The gradient of NADE is that of the recursion walked backwards, which is compared with the package's
before it is used on MNIST. One row a model, added to FILE as soon as it is done: value, mean over seeds
and test images; stderr over images of the mean over seeds; spread over seeds; parameters that the masks
leave; seconds of one training on one thread of a shared machine, of processor time on the digits.
"""
import itertools
import math
from pathlib import Path
import platform
import statistics
import time

import torch

from bridge_mnist import locked
from rbmdiff.foundations.core import Estimate, write_tensors
from rbmdiff.foundations.data import base_rate, binarize, binarize_stochastic, digits, mnist
from rbmdiff.foundations.train import TrainState, linear_decay, train
from rbmdiff.models.autoregressive import MADE, NADE
from record import RESULTS, arguments, versions

HELD_OUT, PATIENCE, SEEDS, LOOKS = 150, 20, range(16), range(100, 103)
# of the digits: kind, sizes of the hidden layers, learning rates
SEARCH = {"MADE": (((100,), (200,), (500,), (200, 200)), (1e-3, 3e-3)),
          "NADE": ((50, 100), (1e-2,)), "NADE, 838 parameters": ((6,), (1e-2,)),
          "logistic": (((),), (1e-2,)), "MADE, random orders": (((500,),), (1e-3,))}
# of MNIST: kind, hidden units, epochs, learning rate
MNIST = {"MADE 500": (MADE, 500, 20, 1e-3), "MADE 2000": (MADE, 2000, 30, 1e-3),
         "NADE 500": (NADE, 500, 20, 2e-3)}


def made(kind, hidden, seed, x):
    """A network at its start, with the base rate of the images `x` as its last bias."""
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(x.shape[1], generator=g) if kind.endswith("random orders") else None
    model = (NADE if kind.startswith("NADE") else MADE)(x.shape[1], hidden, order=order, generator=g)
    bias = model.b if isinstance(model, NADE) else model.network.biases[-1]
    bias.data.copy_(base_rate(x))
    return model, g


def size_of(model):
    """Parameters that the masks leave."""
    if isinstance(model, NADE): return sum(p.numel() for p in model.parameters())
    return sum(int((b != 0).sum()) for b in model.network.buffers()) + sum(
        b.numel() for b in model.network.biases)


@torch.no_grad()
def each(model, x):
    """The exact log-likelihood [N] of every image, in float64."""
    return torch.cat([model.log_prob(part) for part in x.split(500)]).double()


def stopped_early(kind, hidden, rate, seed, x, held):
    """A network trained on `x` until the images `held` no longer gain; how good, epochs, seconds."""
    model, g = made(kind, hidden, seed, x)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    state = TrainState(model, optimizer, g)
    best = -math.inf, 0, None

    def step(state, v):
        loss_of(state.model, v).backward()
        return {}

    clock = time.process_time()
    for record in train(state, x, step, 1000, 50, progress=False):
        value = each(model, held).mean().item()
        if value > best[0]:
            best = value, record.epoch, {k: t.clone() for k, t in model.state_dict().items()}
        if record.epoch - best[1] >= PATIENCE: break
    model.load_state_dict(best[2])
    return model, best[0], best[1], time.process_time() - clock


def on_digits(kind):
    """The row of a kind of network: search by held-out images, then 16 seeds."""
    train_images, test = (binarize(x, 7.5 / 16) for x in digits())
    x, held = train_images[:-HELD_OUT], train_images[-HELD_OUT:]
    search = []
    for hidden, rate in itertools.product(*SEARCH[kind]):
        runs = [stopped_early(kind, hidden, rate, seed, x, held)[1] for seed in LOOKS]
        search.append({"hidden": hidden, "rate": rate, "held_out": statistics.mean(runs),
                       "spread": statistics.stdev(runs)})
        print(kind, search[-1], flush=True)
    best = max(search, key=lambda row: row["held_out"])
    models, held_out, epochs, seconds = zip(*(
        stopped_early(kind, best["hidden"], best["rate"], seed, x, held) for seed in SEEDS))
    images = torch.stack([each(model, test) for model in models])
    means = images.mean(1).tolist()
    estimate = Estimate.of(images.mean(0))
    known = torch.stack([each(model, x) for model in models]).mean().item()
    return {"value": estimate.value, "stderr": estimate.stderr, "spread": statistics.stdev(means),
            "seeds": len(SEEDS), "each": means, "train": known, "held_out": statistics.mean(held_out),
            "parameters": size_of(models[0]), "seconds": statistics.median(seconds),
            "epochs": statistics.median(epochs), "hidden": best["hidden"], "rate": best["rate"],
            "search": search, "images": [round(value, 4) for value in images.mean(0).tolist()]}


class Recursion(torch.autograd.Function):
    """Fields [B, D] of a NADE without their bias, whose memory is one hidden layer: the backward walk
    takes the steps of the forward one back.
    """

    @staticmethod
    def forward(ctx, v, W, V, c):
        columns, a, x = v.T.contiguous(), c.repeat(len(v), 1), torch.empty_like(v.T)
        for d in range(len(W)):
            torch.mv(torch.sigmoid(a), V[d], out=x[d])
            a.addr_(columns[d], W[d])
        ctx.save_for_backward(columns, W, V, a)
        return x.T

    @staticmethod
    def backward(ctx, *gradients):
        columns, W, V, a = ctx.saved_tensors
        slopes, a = gradients[0].T.contiguous(), a.clone()
        grad_a, grad_W, grad_V = torch.zeros_like(a), torch.empty_like(W), torch.empty_like(V)
        for d in reversed(range(len(W))):
            torch.mv(grad_a.T, columns[d], out=grad_W[d])
            a.addr_(columns[d], W[d], alpha=-1)
            h = torch.sigmoid(a)
            torch.mv(h.T, slopes[d], out=grad_V[d])
            grad_a.addcmul_((h - h * h).mul_(V[d]), slopes[d][:, None])
        return None, grad_W, grad_V, grad_a.sum(0)


def loss_of(model, v):
    """Minus the mean log-likelihood; of a NADE by `Recursion`."""
    if isinstance(model, MADE): return -model.log_prob(v).mean()
    x = Recursion.apply(v, model.W, model.V, model.c) + model.b
    return (model.unit.log_norm(x) - v * x).sum(-1).mean()


def compare(model, v):
    """Stop unless `loss_of` has the value and the gradient of the package."""
    losses = loss_of(model, v), -model.log_prob(v).mean()
    slopes = [[loss, *torch.autograd.grad(loss, list(model.parameters()))] for loss in losses]
    for one, other in zip(*slopes):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def on_mnist(name, options):
    """The row of a network: trained for its epochs, resumable; test images of the best epoch."""
    kind, hidden, epochs, rate = MNIST[name]
    x, test = mnist(options.data)
    test = binarize_stochastic(test, torch.Generator().manual_seed(0))
    held = binarize_stochastic(x[-5000:], torch.Generator().manual_seed(1))
    x = x[:-5000]
    model, g = made(kind.__name__, hidden, 0, x)
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    state = TrainState(model, optimizer, g, linear_decay(optimizer, epochs * len(x) // 100), 0.999)
    compare(model, held[:20])
    folder = options.runs / name.lower().replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "state.safetensors").is_file(): state.load(folder / "state.safetensors")
    curve = state.carry.get("curve", torch.zeros(0, 3, dtype=torch.float64))

    def step(state, v):
        loss = loss_of(state.model, v)
        loss.backward()
        return {"train": -loss.item()}

    for record in train(state, lambda g: binarize_stochastic(x, g), step, epochs, 100, progress=False):
        average = state.averaged_model()
        value = each(average, held).mean().item()
        if not len(curve) or value > curve[:, 2].max(): average.save(folder / "model.safetensors")
        row = torch.tensor([[record.seconds, record.scalars["train"], value]], dtype=torch.float64)
        state.carry["curve"] = curve = torch.cat([curve, row])
        state.save(folder / "state.safetensors")
        print(name, record.epoch, [round(number, 3) for number in row[0].tolist()], flush=True)
    best = kind.load(folder / "model.safetensors").requires_grad_(False)
    log_p = each(best, test)
    write_tensors(folder / "test.safetensors", "log-likelihood", {"test": log_p}, {})
    estimate = Estimate.of(log_p)
    return {"value": estimate.value, "stderr": estimate.stderr, "held_out": curve[:, 2].max().item(),
            "parameters": size_of(best), "seconds": state.seconds, "epochs": epochs, "hidden": hidden,
            "best_epoch": int(curve[:, 2].argmax()) + 1, "rate": rate,
            "curve": [[round(number, 3) for number in row] for row in curve.tolist()]}


def main():
    parser = arguments(__doc__, RESULTS / "autoregressive.json", threads=1)
    parts = [f"digits {kind}" for kind in SEARCH] + [f"mnist {name}" for name in MNIST]
    parser.add_argument("--part", choices=parts, nargs="*", default=parts,
                        help="what to do (default: all)")
    parser.add_argument("--data", type=Path, help="folder of the four MNIST files")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where runs on MNIST are kept")
    options = parser.parse_args()
    if options.data is None and any(part.startswith("mnist") for part in options.part):
        parser.error("--data must be given")
    torch.set_num_threads(options.threads)
    for part in options.part:
        data, _, name = part.partition(" ")
        found = on_digits(name) if data == "digits" else on_mnist(name, options)
        row = {"name": name, "data": data, "kind": "exact", **found, "torch": versions()["torch"],
               "device": f"{options.threads} thread of {platform.machine()}"}
        print({k: v for k, v in row.items() if k not in ("images", "search", "curve")}, flush=True)
        with locked(options.out) as content:
            content |= {"command": "python benchmarks/autoregressive.py --data DIR",
                        "rbmdiff": versions()["rbmdiff"]}
            content["rows"] = [r for r in content["rows"] if (r["name"], r["data"]) != (name, data)]
            content["rows"].append(row)
    options.out.with_suffix(".lock").unlink(missing_ok=True)


if __name__ == "__main__":
    main()
