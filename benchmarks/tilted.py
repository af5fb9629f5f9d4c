"""log Z from noise paths against annealed importance sampling at equal work, and the price of samples of
a machine that is stuck.

    python benchmarks/tilted.py [--out FILE] [--runs 20] [--samples 20000] [--threads 1]

log Z: a 64x12 machine of the binary 8x8 digits (CD-1, as in the chapter), whose log Z is known by
enumeration; both methods are run `runs` times at each amount of work, counted in products of one row
with the weight matrix. Both use 50 rows; the noise path starts from 50 test digits, annealing from
independent pixels. Mixing: ten visible and three hidden spins, two modes, known spectral gap; samples by
each method, their distance from the enumerated distribution, and effective draws per second of processor
time. For Gibbs sampling the latter follow from the exact autocorrelation time of the sum of spins, for
annealing from the weights; a method that draws from another distribution has none.
"""
import time

import torch
from tqdm import tqdm

from rbmdiff.bridge.tilted import WarmGibbs, machine_predictor, path_log_z
from rbmdiff.diffusion.schedule import LinearBeta, time_grid
from rbmdiff.diffusion.solvers import ancestral
from rbmdiff.foundations.data import base_rate, binarize, digits
from rbmdiff.foundations.train import ascend
from rbmdiff.foundations.units import states
from rbmdiff.learning.contrastive import cd_gradient
from rbmdiff.learning.partition import ais
from rbmdiff.models.rbm import RBM
from rbmdiff.sampling.diagnostics import drift
from rbmdiff.sampling.gibbs import gibbs, spectrum, transition_matrix
from record import RESULTS, arguments, header, write

WORK = ((16, 10), (32, 20), (64, 40), (128, 80))  # levels; steps, and as many of burn-in
ROWS = 50


def trained(train, epochs=40, seed=0):
    """The machine of the chapter."""
    g = torch.Generator().manual_seed(seed)
    m = RBM(64, 12, generator=g)
    m.b.data = base_rate(train)
    optimizer = torch.optim.Adam(m.parameters(), lr=0.03)
    decay = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (15 * epochs))
    for _ in range(epochs):
        for rows in torch.randperm(len(train), generator=g).split(100):
            ascend(m, cd_gradient(m, train[rows], generator=g)[0])
            optimizer.step(), decay.step()
    return m.double().requires_grad_(False)


def summary(values, truth):
    """Bias, root mean square error and standard deviation of repeated estimates."""
    x = torch.tensor(values, dtype=torch.float64) - truth
    return {"bias": x.mean().item(), "rms": x.square().mean().sqrt().item(), "spread": x.std().item()}


def log_z(runs):
    """Both estimators of log Z at four amounts of work."""
    train, test = (binarize(x, 7.5 / 16) for x in digits())
    m = trained(train)
    truth, base = m.log_partition().item(), base_rate(train).double()
    starts = test[torch.randperm(len(test), generator=torch.Generator().manual_seed(8))[:ROWS]].double()
    g, rows = torch.Generator().manual_seed(0), []
    for levels, steps in WORK:
        products = ROWS * levels * 2 * 2 * steps * 2
        path, annealed, seconds = [], [], [0.0, 0.0]
        for _ in tqdm(range(runs), f"{products} products", disable=None):
            clocks = [time.process_time()]
            path.append(path_log_z(m, starts, levels, steps=steps, burn_in=steps, generator=g).value)
            clocks.append(time.process_time())
            annealed.append(ais(m, ROWS, products // (2 * ROWS), g, base=base).value)
            clocks.append(time.process_time())
            seconds = [s + b - a for s, a, b in zip(seconds, clocks, clocks[1:])]
        rows.append({"products": products, "levels": levels, "steps": steps,
                     "path": {**summary(path, truth), "seconds": seconds[0] / runs},
                     "ais": {**summary(annealed, truth), "seconds": seconds[1] / runs}})
        print(products, rows[-1]["path"], rows[-1]["ais"])
    return {"exact": truth, "rows_each": ROWS, "runs": runs, "rows": rows}


def two_modes(w=1.8, c=0.7, D=10):
    """The stuck machine of the chapter."""
    m = RBM(D, 3, "spin", "spin", dtype=torch.float64).requires_grad_(False)
    m.W.data = 0.3 * torch.randn(D, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    m.W.data[:, 0], m.c.data[0] = w, c
    return m


def autocorrelation_time(m, V, p):
    """Exact autocorrelation time of the sum of spins under block Gibbs, in steps."""
    T, f = transition_matrix(m), V.sum(1) - p @ V.sum(1)
    # of all powers of the kernel, applied to f
    sums = torch.linalg.solve(torch.eye(len(p), dtype=f.dtype) - T + p, T @ f)
    return (1 + 2 * ((p * f) @ sums) / (p @ f**2)).item()


def mixing(n):
    """Every way to sample the stuck machine: share of the larger mode, distance, effective draws per
    second.
    """
    m, V, schedule = two_modes(), states(10, "spin"), LinearBeta()
    p, g = m.log_prob(V).exp(), torch.Generator().manual_seed(0)
    grid = time_grid(schedule, 50, kind="quadratic")
    tau = autocorrelation_time(m, V, p)
    random = torch.where(torch.rand(n, 10, generator=g) < 0.5, 1.0, -1.0).double()
    exact, methods = V[torch.multinomial(p, n, replacement=True, generator=g)], {}

    def judge(name, draw, effective):
        clock = time.process_time()
        v = draw()
        seconds = time.process_time() - clock
        e, count = drift(v, p, "spin"), effective(v) if callable(effective) else effective
        methods[name] = {"share": ((v.sum(-1) > 0).double() + (v.sum(-1) == 0) / 2).mean().item(),
                         "drift": {"value": e.value, "stderr": e.stderr},
                         "seconds": seconds, "effective_per_second": None if count is None
                         else count / seconds}
        print(name, methods[name])
        return v

    def from_noise(predict):
        x = ancestral(predict, schedule, torch.randn(n, 10, dtype=torch.float64, generator=g), grid,
                      generator=g)
        return torch.where(x > 0, 1.0, -1.0).double()

    def trip(v):
        chain = WarmGibbs(m, schedule, average=False, v=v[None], generator=g)
        x = schedule.alpha(grid[0]) * v + schedule.sigma(grid[0]) * torch.randn(
            v.shape, dtype=v.dtype, generator=g
        )
        ancestral(chain, schedule, x, grid, generator=g)
        return chain.v[0]

    def annealed():
        z = ais(m, n, 200, g)
        methods["ess"] = z.ess
        return z.states[torch.multinomial(z.log_weights.softmax(0), n, replacement=True, generator=g)]

    def handed_over(threshold):
        sharp, warm = machine_predictor(m, schedule), WarmGibbs(m, schedule, steps=4, generator=g)
        return from_noise(lambda x, t: (sharp if float(schedule.rho(t)) > threshold else warm)(x, t))

    after = judge("Gibbs sampling, 1000 steps", lambda: gibbs(m, random, 1000, g), n * 1000 / tau)
    judge("trip to noise and back, from exact draws", lambda: trip(exact), None)
    judge("trip to noise and back, from the Gibbs ones", lambda: trip(after), None)
    for chains, steps in ((1, 1), (1, 4), (4, 4)):
        judge(f"warm means, {chains} chains, {steps} steps a call",
              lambda: from_noise(WarmGibbs(m, schedule, chains, steps, generator=g)), None)
    judge("exact above sigma = alpha, warm below", lambda: handed_over(1.0), n)
    judge("exact denoiser, 50 calls", lambda: from_noise(machine_predictor(m, schedule)), n)
    judge("annealed in temperature, resampled", annealed, lambda v: methods.pop("ess"))
    return {"gap": 1 - spectrum(m)[1].item(), "autocorrelation_time": tau, "samples": n,
            "share": (p[V.sum(1) > 0].sum() + p[V.sum(1) == 0].sum() / 2).item(), "methods": methods}


def main():
    parser = arguments(__doc__, RESULTS / "tilted.json", threads=1)
    parser.add_argument("--runs", type=int, default=20,
                        help="repetitions of each estimate of log Z, at least 2 (default 20)")
    parser.add_argument("--samples", type=int, default=20000,
                        help="samples of the stuck machine by each method (default 20000)")
    options = parser.parse_args()
    if options.runs < 2 or options.samples < 100:
        parser.error("--runs must be at least 2 and --samples at least 100")
    torch.set_num_threads(options.threads)
    result = {**header("nats; seconds of processor time"),
              "settings": {"runs": options.runs, "samples": options.samples, "threads": options.threads},
              "mixing": mixing(options.samples), "log_z": log_z(options.runs)}
    write(options.out, result)


if __name__ == "__main__":
    main()
