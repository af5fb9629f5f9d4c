"""Every way to sample given an observation, against the exact posterior: on a mixture of three Gaussians
in the plane and on 8x8 digits, with exact and with trained predictions.

    python benchmarks/conditional.py [--out FILE] [--threads 1] [--only PART]

Plane: the mixture of the chapter, its first coordinate seen as 0.3 with noise 0.05 or 0.3; 2000 samples
a seed, four seeds; total variation of the weights of the modes, sliced Wasserstein distance (64
directions) to as many exact draws, and the standard deviation of the residual. Digits: the prior is a
mixture, a Gaussian of one width around each of the 1500 training digits scaled to [-1, 1], the width of
the largest likelihood of the test digits; so posterior, class probabilities, means and variances are
known. The network is an MLP of two residual layers of 192, trained ten times on 40,000 draws of that
mixture. Four test digits are seen by their upper half, blurred by 0.7 pixels, or as means of 2x2
squares, with noise 0.1; 48 samples each, 50 steps. Total variation is that of the ten classes; errors of
means and variances are over the pixels, the first in standard deviations of the posterior. The peers are
azula and, for RePaint, diffusers: on our grid of 50 steps, without clipping, with steps back of one, as
here, and of ten, as in the paper, and with the ancestral noise or its default of none. `--only peers`
is their methods on the digits.
"""
import json
import math
import time

import azula.guidance
import torch

import peers
from rbmdiff.diffusion.conditional import (
    Measurement,
    blur_rows,
    dps,
    guided,
    log_evidence,
    mean_rows,
    pixel_rows,
    posterior,
    repaint,
    twisted_smc,
)
from rbmdiff.diffusion.networks import MLP, Preconditioned
from rbmdiff.diffusion.objective import denoising_loss, denoising_step, empirical_score
from rbmdiff.diffusion.oracle import Mixture
from rbmdiff.diffusion.schedule import LinearBeta, expand, time_grid
from rbmdiff.diffusion.solvers import ancestral, prior_sample
from rbmdiff.foundations.core import Estimate, systematic
from rbmdiff.foundations.data import digits
from rbmdiff.foundations.train import TrainState, linear_decay, train
from record import RESULTS, arguments, header, write

f64 = torch.float64
VP = LinearBeta()
SEEDS, N = range(4), 2000


def mean(values):
    """Mean and standard error of a few numbers, as a dictionary."""
    e = Estimate.of(torch.tensor(values, dtype=f64))
    return {"value": e.value, "stderr": e.stderr}


def plane():
    """The mixture of the chapter."""
    rows = lambda *a: torch.tensor(a, dtype=f64)
    return Mixture(rows(0.5, 0.3, 0.2), rows([-1, -1.5], [0.6, 1.5], [1, -0.5]),
                   rows([[0.5, 0.2], [0.2, 0.3]], [[0.4, -0.2], [-0.2, 0.3]], [[0.3, 0], [0, 0.2]]))


def grid_of(steps, t_min=1e-3):
    """Equal steps of the log-SNR."""
    return time_grid(VP, steps, t_min, "log_snr")


def sliced(x, y):
    """Sliced Wasserstein distance of order one between samples of one size, 64 directions."""
    angle = (torch.arange(64, dtype=f64) + 0.5) * math.pi / 64
    u = torch.stack([angle.cos(), angle.sin()])
    return ((x @ u).sort(0).values - (y @ u).sort(0).values).abs().mean().item()


def judged(mixture, truth, x, seed, log_w=None):
    """Errors of samples `x` against the exact posterior `truth` in the plane."""
    if log_w is not None: x = x[systematic(log_w, N, seed)]
    if not bool(x.isfinite().all()) or x.abs().max() > 1e3: return {"diverged": True}
    share = mixture.posterior_weights(x).mean(0)
    exact = truth.sample(len(x), generator=seed + 100)
    return {"tv": (share - truth.log_weights.exp()).abs().sum().item() / 2, "w1": sliced(x, exact),
            "residual": (x[:, 0] - 0.3).std().item()}


class Judge(Mixture):
    """A mixture that says how likely its components are behind clean points."""

    def posterior_weights(self, x):
        return self._split(x, 1.0, 0.0)[-1].softmax(-1)


def gathered(rows):
    """Means over seeds of what was measured; the number of seeds that diverged."""
    fine = [row for row in rows if "diverged" not in row]
    found = {"diverged": len(rows) - len(fine)}
    if len(fine) < 2: return found
    return found | {key: mean([row[key] for row in fine]) for key in fine[0]}


def ways(predict, m, mask, known, extra=True):
    """name: (calls a step, run(x, grid, seed)) of every method without weights."""
    def by(method): return guided(predict, VP, m, method)

    def solved(p): return lambda x, grid, seed: ancestral(p, VP, x, grid, generator=seed)

    def painted(r): return lambda x, grid, seed: repaint(predict, VP, x, grid, known, mask, r, seed)

    def stepped(z): return lambda x, grid, seed: dps(predict, VP, x, grid, m, z, seed)
    found = {}
    if mask is not None:
        found |= {"replacement": (1, painted(1)), "RePaint, 5": (5, painted(5))}
        if extra: found["RePaint, 20"] = (20, painted(20))
    found |= {f"DPS, step {z:g}": (1, stepped(z)) for z in (0.1, 0.3, 1.0)}
    return found | {"Gaussian, no doubt": (1, solved(by("dps"))), "ΠGDM": (1, solved(by("pigdm"))),
                    "moments": (1, solved(by("tmpd")))}


def in_plane(put):
    """All methods in the plane."""
    prior = plane()
    judge = Judge(prior.log_weights.exp(), prior.means, plane_covariances(prior))
    predict = prior.predictor(VP)
    A, y = torch.tensor([[1.0, 0.0]], dtype=f64), torch.tensor([0.3], dtype=f64)
    mask, known = torch.tensor([True, False]), torch.tensor([0.3, 0.0], dtype=f64)
    found, blind = {}, {}
    for sigma_y in (0.05, 0.3):
        truth = posterior(prior, A, y, sigma_y)
        m = Measurement(A, y, sigma_y)
        exact = truth.predictor(VP)
        runs = {"exact score": (1, lambda x, g, s, p=exact: ancestral(p, VP, x, g, generator=s))}
        runs |= ways(predict, m, mask, known)
        rows = {"exact draws": {"0": gathered([judged(judge, truth, truth.sample(N, s), s)
                                              for s in SEEDS])}}
        for name, (calls, run) in runs.items():
            rows[name] = {}
            for steps in (50, 200):
                if calls > 1 and steps > 50: continue
                blindly = name.startswith(("replacement", "RePaint", "DPS"))
                drawn = blind.setdefault((name, steps), []) if blindly else []
                rows[name][str(steps)] = measured(judge, truth, run, steps, drawn) | {
                    "calls": calls * steps}
        for n in (16, 64, 256, 1024):
            rows[f"twisted, {n}"] = {"100": populations(judge, truth, prior, m, n)}
        found[str(sigma_y)] = rows
        put("plane", found)


def plane_covariances(mixture):
    """Covariances [K, 2, 2]."""
    return mixture.axes @ torch.diag_embed(mixture.variances) @ mixture.axes.mT


def measured(judge, truth, run, steps, drawn):
    """One method at one number of steps, over the seeds; what was `drawn` before is not drawn again."""
    if not drawn:
        clock = time.process_time()
        drawn += [attempt(run, grid_of(steps), seed) for seed in SEEDS]
        drawn.append((time.process_time() - clock) / len(SEEDS))
    rows = [judged(judge, truth, x, seed) for x, seed in zip(drawn, SEEDS)]
    return gathered(rows) | {"seconds": drawn[-1]}


def attempt(run, grid, seed):
    """Samples, or NaN where the door of a solver has met one."""
    x = prior_sample(VP, (N, 2), 1000 + seed, dtype=f64)
    try:
        return run(x, grid, seed)
    except ValueError as error:
        if "returned NaN" not in str(error) and "must be finite" not in str(error): raise
        return x * math.nan


def populations(judge, truth, prior, m, n):
    """Twisted populations of `n`: errors of each, and of their estimate of the evidence."""
    runs, log_z = 24 if n < 256 else 12, log_evidence(prior, m.A, m.y, m.sigma_y).item()
    rows, ratios, clock = [], [], time.process_time()
    predict = prior.predictor(VP)
    for seed in range(runs):
        x = prior_sample(VP, (n, 2), 1000 + seed, dtype=f64)
        crowd = twisted_smc(predict, VP, x, grid_of(100), m, generator=seed)
        rows.append(judged(judge, truth, crowd.states, seed, crowd.log_weights))
        ratios.append(math.exp(crowd.value - log_z))
    found = gathered(rows) | {"evidence": mean(ratios), "runs": runs, "calls": 101}
    return found | {"seconds": (time.process_time() - clock) / runs}


def azula_rows(put):
    """azula on the same problem: its DPS in batches of three sizes, ΠGDM, and TDS beside ours."""
    prior = plane()
    judge = Judge(prior.log_weights.exp(), prior.means, plane_covariances(prior))
    A, y = torch.tensor([[1.0, 0.0]], dtype=f64), torch.tensor([0.3], dtype=f64)
    predict = prior.predictor(VP)
    found = {"dps": {}, "ours": {}}
    truth = posterior(prior, A, y, 0.05)
    m = Measurement(A, y, 0.05)

    def theirs(sampler, x, **options):
        denoiser = peers.Clothed(predict, VP, grid_of(100))
        return peers.sampled(getattr(azula.guidance, sampler), denoiser, x, **options)
    look = {"y": 0.3, "A": lambda x: x[..., :1]}
    for batch in (2000, 5, 1):
        n = {2000: 2000, 5: 150, 1: 40}[batch]
        for name in ("dps", "ours"):
            rows = []
            for seed in range(2):
                torch.manual_seed(seed)
                x = prior_sample(VP, (n, 2), 1000 + seed, dtype=f64)
                ends = [theirs("DPSSampler", part, zeta=1.0, **look) if name == "dps" else
                        dps(predict, VP, part, grid_of(100), m, 1.0, torch.Generator().manual_seed(
                            1000 * seed + k)) for k, part in enumerate(x.split(batch))]
                rows.append(judged(judge, truth, torch.cat(ends), seed))
            found[name][str(batch)] = gathered(rows)
    truth, rows = posterior(prior, A, y, 0.3), []
    back = lambda y: torch.cat([y, torch.zeros_like(y)], -1)
    for seed in range(3):
        torch.manual_seed(seed)
        x = prior_sample(VP, (N, 2), 1000 + seed, dtype=f64)
        end = theirs("PGDMSampler", x, eta=1.0, y=y, A=look["A"], A_inv=back)
        rows.append(judged(judge, truth, end, seed))
    found["pgdm"] = gathered(rows)
    put("azula", found)
    put("azula", found | {"particles": particles(judge, prior, theirs)})


def particles(judge, prior, theirs, n=1000, runs=10):
    """Standard deviation over runs of the weight of the second mode, by azula's TDS and by ours."""
    A, y = torch.tensor([[1.0, 0.0]], dtype=f64), torch.tensor([0.3], dtype=f64)
    truth = posterior(prior, A, y, 0.3).log_weights.exp()[1].item()
    m, shares = Measurement(A, y, 0.3), {"azula": [], "ours": []}

    def twist(x0, rho):
        variance = 0.3**2 + rho**2 / (1 + rho**2)
        return -(0.3 - x0[:, :1]) ** 2 / (2 * variance) - variance.log() / 2
    for seed in range(runs):
        torch.manual_seed(seed)
        x = prior_sample(VP, (n, 2), 1000 + seed, dtype=f64)
        end = theirs("TDSSampler", x, twist=twist)
        crowd = twisted_smc(prior.predictor(VP), VP, x, grid_of(100), m, generator=seed)
        shares["azula"].append(judge.posterior_weights(end)[:, 1].mean().item())
        w = crowd.log_weights.softmax(0)
        shares["ours"].append((w @ judge.posterior_weights(crowd.states)[:, 1]).item())
    return {"truth": truth, "n": n, "runs": runs} | {
        name: mean(x) | {"sd": torch.tensor(x).std().item()} for name, x in shares.items()}


def diffusers_rows(put, steps=50):
    """RePaint of diffusers on the same problem; its last step, to clean data, is one call more."""
    prior = plane()
    judge = Judge(prior.log_weights.exp(), prior.means, plane_covariances(prior))
    A, y = torch.tensor([[1.0, 0.0]], dtype=f64), torch.tensor([0.3], dtype=f64)
    truth, predict, found = posterior(prior, A, y, 0.05), prior.predictor(VP), {}
    mask, known = torch.tensor([True, False]), torch.tensor([0.3, 0.0], dtype=f64)
    for repeats in (5, 20):
        for jump in (1, 10):
            for eta in (1.0, 0.0):
                rows = []
                for seed in SEEDS:
                    x = prior_sample(VP, (N, 2), 1000 + seed, dtype=f64)
                    x, calls = peers.repainted(predict, VP, x, grid_of(steps), known, mask, jump,
                                               repeats, eta, seed)
                    rows.append(judged(judge, truth, x, seed))
                found.setdefault(str(repeats), {})[f"jump {jump}, eta {eta:g}"] = gathered(rows) | {
                    "calls": calls}
    put("diffusers", found)


# --- digits

class Images:
    """A Gaussian of one width around each training digit."""

    def __init__(self):
        data, test, self.labels, self.kinds = digits(labels=True, dtype=f64)
        self.data, self.test = 2 * data - 1, 2 * test - 1
        widths = torch.linspace(0.1, 0.5, 41, dtype=f64)
        self.width = max(widths.tolist(), key=lambda h: self.log_prob(self.test, h).mean().item())
        h = self.width**2 * torch.eye(64, dtype=f64)
        self.mixture = Mixture(torch.ones(len(data), dtype=f64), self.data, h.expand(len(data), 64, 64))

    def logits(self, x, width):
        """Log joint densities [B, N] of points and components, up to what all share."""
        return -torch.cdist(x, self.data).square() / (2 * width**2)

    def log_prob(self, x, width):
        return self.logits(x, width).logsumexp(1) - 32 * math.log(2 * math.pi * width**2) - math.log(
            len(self.data))

    def predict(self, x, t):
        """The perfect network, by matrix products."""
        alpha, sigma = VP.alpha(t).double(), VP.sigma(t).double()
        wide = torch.hypot(alpha * self.width, sigma)
        return -expand(sigma, x) * empirical_score(x, self.data.to(x), alpha, wide)

    def classes(self, x):
        """Probabilities of the ten classes behind clean points [B, 10]."""
        share = self.logits(x, self.width).softmax(1)
        return torch.zeros(len(x), 10, dtype=f64).index_add(1, self.labels, share)


def trained(images):
    """The network, float32, and its loss beside the least possible at three log-SNRs."""
    model = Preconditioned(MLP(64, 192, 2, generator=0), VP, 0.7)
    data = images.mixture.sample(40_000, generator=1).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    epochs, batch = 10, 125
    state = TrainState(model, optimizer, torch.Generator().manual_seed(2),
                       linear_decay(optimizer, epochs * len(data) // batch), 0.995)
    for _ in train(state, data, denoising_step(VP), epochs, batch, progress=False): pass
    best = state.averaged_model().eval().requires_grad_(False)
    x = images.mixture.sample(4000, generator=3).float()
    losses = {}
    for log_snr in (-2.0, 0.0, 2.0):
        t = VP.t_of_log_snr(log_snr)
        losses[str(log_snr)] = {
            name: denoising_loss(p, VP, x, t, generator=4).mean().item()
            for name, p in {"network": best, "exact": images.predict}.items()}
    return best, losses


def problems():
    """name: A and the mask that goes with it, if any."""
    upper = torch.arange(64) < 32
    return {"upper half": (pixel_rows(upper), upper), "blurred": (blur_rows(8, 8, 0.7), None),
            "means of 2x2": (mean_rows(8, 8, 2), None)}


class Truth:
    """The exact posterior of one observation."""

    def __init__(self, images, A, y, sigma_y):
        self.images, self.A, self.y = images, A, y
        self.law = posterior(images.mixture, A, y, sigma_y)
        self.classes = torch.zeros(10, dtype=f64).index_add(0, images.labels, self._weights(sigma_y))
        p = self.law.log_weights.exp()
        self.mean = p @ self.law.means
        C = torch.diag(self.law.variances[0])
        if self.law.axes is not None: C = self.law.axes[0] @ C @ self.law.axes[0].mT
        apart = self.law.means - self.mean
        self.covariance = C + (p[:, None] * apart).mT @ apart
        spread = torch.trace(A @ self.covariance @ A.mT)
        self.residual = math.sqrt(((y - A @ self.mean).square().sum() + spread) / len(A))

    def _weights(self, sigma_y):
        """Weights of all components given the observation."""
        S = self.images.width**2 * self.A @ self.A.mT + sigma_y**2 * torch.eye(len(self.A), dtype=f64)
        r = self.y - self.images.data @ self.A.mT
        return (-(r * torch.linalg.solve(S, r.mT).mT).sum(1) / 2).softmax(0)

    def judged(self, x, log_w=None):
        x = x.double()
        if not bool(x.isfinite().all()) or x.abs().max() > 100: return {"diverged": True}
        w = torch.full((len(x),), 1 / len(x), dtype=f64) if log_w is None else log_w.softmax(0)
        center, variance = w @ x, self.covariance.diagonal()
        spread = (w @ (x - center).square()).sum() / variance.sum()
        left = w @ (self.y - x @ self.A.mT).square().mean(1)
        return {"tv": (w @ self.images.classes(x) - self.classes).abs().sum().item() / 2,
                "mean": ((center - self.mean).square().sum() / variance.sum()).sqrt().item(),
                "variance": spread.item(), "residual": left.sqrt().item() / self.residual}


def one_observation(truth, predict, m, mask, known, dtype, steps, n, exact, others):
    """name: errors of every method for one observation, or of those of `others`."""
    grid, rows = grid_of(steps), {}
    x = prior_sample(VP, (n, 64), 7, dtype=dtype)
    if exact and not others: rows["exact draws"] = (truth.judged(truth.law.sample(n, 8)), 0.0)
    m = Measurement(m.A.to(dtype), m.y.to(dtype), m.sigma_y)
    known = known.to(dtype)
    runs = {name: lambda run=run: run(x, grid, 9)
            for name, (_, run) in ways(predict, m, mask, known, False).items()}
    if others: runs = peers.ways(predict, VP, x, grid, m, known, mask, 9)
    for name, run in runs.items():
        clock = time.process_time()
        try:
            rows[name] = truth.judged(run()), time.process_time() - clock
        except ValueError as error:
            if "returned NaN" not in str(error) and "must be finite" not in str(error): raise
            rows[name] = {"diverged": True}, time.process_time() - clock
    if others: return rows
    clock = time.process_time()
    crowd = twisted_smc(predict, VP, x, grid, m, generator=9)
    rows[f"twisted, {n}"] = truth.judged(crowd.states, crowd.log_weights), time.process_time() - clock
    return rows


def averaged(rows):
    """Means over observations, and seconds."""
    return gathered([row for row, _ in rows]) | {"seconds": sum(s for _, s in rows) / len(rows)}


def on_digits(put, count=4, n=48, steps=50, sigma_y=0.1, others=False):
    """All methods on the digits, or those of the peers, with the exact prior and with the network."""
    images = Images()
    clock = time.process_time()
    network, losses = trained(images)
    seconds = time.process_time() - clock
    if not others: put("network", {"width": images.width, "losses": losses, "seconds": seconds})
    kinds = {"exact": (images.predict, f64), "network": (network, torch.float32)}
    found = {name: {kind: {} for kind in kinds} for name in problems()}
    for name, (A, mask) in problems().items():
        raw = {kind: {} for kind in kinds}
        for k in range(count):
            noise = torch.randn(len(A), dtype=f64, generator=torch.Generator().manual_seed(k))
            y = A @ images.test[k] + sigma_y * noise
            truth = Truth(images, A, y, sigma_y)
            known = torch.zeros(64, dtype=f64)
            if mask is not None: known[mask] = y
            for kind, (predict, dtype) in kinds.items():
                rows = one_observation(truth, predict, Measurement(A, y, sigma_y), mask, known, dtype,
                                       steps, n, kind == "exact", others)
                for method, row in rows.items(): raw[kind].setdefault(method, []).append(row)
            for kind in kinds:
                found[name][kind] = {method: averaged(rows) for method, rows in raw[kind].items()}
            put("peers" if others else "digits", found)


def main():
    parser = arguments(__doc__, RESULTS / "conditional.json", threads=1)
    parts = {"plane": in_plane, "digits": on_digits, "azula": azula_rows,
             "diffusers": diffusers_rows, "peers": lambda put: on_digits(put, others=True)}
    parser.add_argument("--only", choices=parts, help="run one part, and keep the others of the file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    clock = time.process_time()
    result = header("total variation; processor seconds", "azula", "diffusers")
    result["command"] = "python benchmarks/conditional.py"
    if options.only and options.out.exists():
        result = json.loads(options.out.read_text()) | result

    def put(name, value):
        result[name] = value
        write(options.out, result)
        print(f"{time.process_time() - clock:.0f} s: {name}", flush=True)
    for name, part in parts.items():
        if options.only in (None, name): part(put)


if __name__ == "__main__": main()
