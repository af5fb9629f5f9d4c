"""A small U-Net on the 8x8 digits, saved for the chapters that need a trained network, and its held-out
loss.

    python benchmarks/diffusion_digits.py [--out FILE] [--seed 0] [--epochs 200] [--threads 1]

Beside the JSON stand the averaged weights, `digits_unet.safetensors` (read them with `UNet.load`). Data:
the 1500 training images of `foundations.data.digits`, their 17 grey levels spread over [-1, 1] by
`dequantize(k, 17)` anew in every epoch. Network: U-Net of 32 and 64 channels in `Preconditioned(network,
LinearLogSNR(-10, 10), scale=0.7)`, so that it predicts the noise; 0.7 is the standard deviation of the
pixels. Loss: squared error of the noise, uniform in the log-SNR, times spread evenly over each batch.
AdamW, batches of 50, rate falling linearly from 3e-3 to zero, running average 0.995. Two sizes, (32, 64)
and (32, 64, 64), were compared on 300 images held out of the training set; the larger was no better
after equal epochs. Losses are sums over 64 pixels: 64 is what a prediction of zero pays.
"""
import torch

from rbmdiff.diffusion.likelihood import dequantize
from rbmdiff.diffusion.networks import Preconditioned, UNet, as_eps
from rbmdiff.diffusion.objective import denoising_loss, denoising_step, empirical_score
from rbmdiff.diffusion.oracle import gaussian
from rbmdiff.diffusion.schedule import LinearLogSNR
from rbmdiff.foundations.core import Estimate
from rbmdiff.foundations.data import digits
from rbmdiff.foundations.train import TrainState, linear_decay, train
from record import RESULTS, arguments, header, write

WIDTHS, SCHEDULE, SCALE, LEVELS = (32, 64), LinearLogSNR(-10, 10), 0.7, 17
BATCH, RATE, DECAY, AVERAGE, BANDWIDTH = 50, 3e-3, 0.01, 0.995, 1.0
LOOKS = tuple(range(-9, 10))


def even_times(n, generator):
    """Times [n] with equal distances and one common random offset: every one is uniform on [0, 1)."""
    return (torch.arange(n, dtype=torch.float64)
            + torch.rand((), generator=generator, dtype=torch.float64)) / n


def images(k, generator):
    """Grey levels `k` [N, 64] as images [N, 1, 8, 8] in [-1, 1]."""
    return dequantize(k, LEVELS, generator).reshape(-1, 1, 8, 8)


@torch.no_grad()
def held_out(predict, k, seed, draws=4):
    """Loss at each log-SNR: one value an image, averaged over `draws` noises; error over images. The
    same noise for all who call.
    """
    result = {}
    for log_snr in LOOKS:
        g = torch.Generator().manual_seed(seed)
        t = SCHEDULE.t_of_log_snr(float(log_snr))
        loss = torch.stack([denoising_loss(predict, SCHEDULE, images(k, g), t, generator=g)
                            for _ in range(draws)]).mean(0)
        estimate = Estimate.of(loss.double())
        result[str(log_snr)] = {"value": estimate.value, "stderr": estimate.stderr}
    return result


def flat(mixture):
    """A mixture over 64 pixels as a predictor for images."""
    predict = mixture.predictor(SCHEDULE)
    return lambda x, t: predict(x.flatten(1), t).reshape(x.shape)


def main():
    parser = arguments(__doc__, RESULTS / "digits_unet.json", threads=1)
    parser.add_argument("--seed", type=int, default=0,
                        help="seed of weights, order and noise (default 0)")
    parser.add_argument("--epochs", type=int, default=200,
                        help="passes over the training set (default 200)")
    options = parser.parse_args()
    if options.epochs < 1: parser.error("--epochs must be at least 1")
    torch.set_num_threads(options.threads)
    train_k, test_k = ((16 * x).round() for x in digits())
    network = UNet(1, WIDTHS, bandwidth=BANDWIDTH, generator=torch.Generator().manual_seed(options.seed))
    model = Preconditioned(network, SCHEDULE, SCALE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY, betas=(0.9, 0.99))
    decay = linear_decay(optimizer, options.epochs * -(-len(train_k) // BATCH))
    state = TrainState(model, optimizer, torch.Generator().manual_seed(1000 + options.seed), decay,
                       AVERAGE)
    curve = [(record.epoch, record.scalars["loss"]) for record in
             train(state, lambda g: images(train_k, g), denoising_step(SCHEDULE, times=even_times),
                   options.epochs, BATCH)]
    best = state.averaged_model()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    best.network.save(options.out.with_suffix(".safetensors"))
    x = images(train_k, torch.Generator().manual_seed(7)).flatten(1)
    memory = lambda z, t: empirical_score(z, x.reshape(-1, 1, 8, 8), SCHEDULE.alpha(t),
                                          SCHEDULE.sigma(t))
    predictors = {"U-Net": as_eps(best, SCHEDULE), "U-Net, not averaged": as_eps(state.model, SCHEDULE),
                  "Gaussian fit": flat(gaussian(x.mean(0), x.T.cov())),
                  "ideal denoiser of the training set": as_eps(memory, SCHEDULE, "score")}
    result = {**header("squared error of the noise, summed over 64 pixels; stderr over images"),
              "settings": {"widths": WIDTHS, "schedule": repr(SCHEDULE), "scale": SCALE,
                           "levels": LEVELS, "batch": BATCH, "rate": RATE,
                           "weight_decay": DECAY, "average": AVERAGE, "bandwidth": BANDWIDTH,
                           "epochs": options.epochs, "seed": options.seed,
                           "threads": options.threads,
                           "parameters": sum(p.numel() for p in network.parameters()),
                           "train_images": len(train_k), "test_images": len(test_k)},
              "updates": state.updates, "seconds": round(state.seconds, 1),
              "train_loss": [round(loss, 4) for _, loss in curve],
              "test": {}, "train": {}}
    for name, predict in predictors.items():
        for part, k in (("test", test_k), ("train", train_k[:297])):
            result[part][name] = held_out(predict, k, seed=11)
        means = [sum(e["value"] for e in result[part][name].values()) / len(LOOKS)
                 for part in ("test", "train")]
        print(f"{name:34} mean over log-SNR -9 to 9: test {means[0]:.3f}, train {means[1]:.3f}")
    write(options.out, result)


if __name__ == "__main__":
    main()
