"""Conditional generation by azula and by diffusers, with our predictions on our grids; no script of its
own: `conditional.py` and `completion.py` run it.
"""
import azula.denoise
import azula.guidance
import azula.sample
import diffusers
import torch

f64 = torch.float64


class Clothed(azula.denoise.Denoiser):
    """Predictions of noise in azula's clothes, on a grid of decreasing times."""

    def __init__(self, predict, schedule, grid):
        super().__init__()
        self.predict = predict
        self.grid = grid.flip(0)
        self.schedule = lambda u: (schedule.alpha(self.time(u)), schedule.sigma(self.time(u)))

    def time(self, u):
        return self.grid[(u.double() * (len(self.grid) - 1)).round().long()]

    def forward(self, x, u, **kwargs):
        alpha, sigma = self.schedule(u)
        return azula.denoise.DiracPosterior((x - sigma * self.predict(x, self.time(u))) / alpha)


def sampled(kind, denoiser, x, **options):
    """The end of azula's sampler `kind` that starts at x, on the grid of the denoiser."""
    steps = len(denoiser.grid) - 1
    return kind(denoiser, start=1.0, stop=0.0, steps=steps, silent=True, dtype=f64, **options)(x)


def repainted(predict, schedule, x, grid, known, mask, jump, repeats, eta, seed):
    """Samples by the loop of diffusers' pipeline for RePaint, and the number of calls."""
    grid = grid.flip(0)
    square = schedule.alpha(grid) ** 2
    betas = 1 - square / torch.cat([torch.ones(1, dtype=f64), square[:-1]])
    scheduler = diffusers.RePaintScheduler(len(betas), trained_betas=betas.numpy(), eta=eta,
                                           clip_sample=False)
    scheduler.set_timesteps(len(betas), jump, repeats)
    mask = mask.to(x)
    generator, last, calls = torch.Generator().manual_seed(seed), len(betas), 0
    for k in scheduler.timesteps.tolist():
        if k < last:
            x = scheduler.step(predict(x, grid[k]), k, x, known, mask, generator).prev_sample
            calls += 1
        else:
            x = scheduler.undo_step(x, last, generator)
        last = k
    return x, calls


def ways(predict, schedule, x, grid, m, known, mask, seed):
    """name: run() of every method of the peers for a Measurement m, RePaint where there is a mask."""
    look = {"y": m.y, "A": lambda x: x @ m.A.mT}
    inverse = torch.linalg.pinv(m.A).mT
    back = look | {"A_inv": lambda y: y @ inverse}

    def run(kind, wrap=lambda denoiser: denoiser, **options):
        def by():
            torch.manual_seed(seed)
            clothed = Clothed(predict, schedule, grid)
            denoiser = wrap(clothed)
            denoiser.grid = clothed.grid
            return sampled(kind, denoiser, x, **options)
        return by

    def painted(jump, eta):
        return lambda: repainted(predict, schedule, x, grid, known, mask, jump, 5, eta, seed)[0]
    moments = lambda denoiser: azula.guidance.TMPDenoiser(denoiser, **look, var_y=m.sigma_y**2)
    found = {"azula, DPS": run(azula.guidance.DPSSampler, **look),
             "azula, DPS, step √n": run(azula.guidance.DPSSampler, **look, zeta=len(x) ** 0.5),
             "azula, ΠGDM": run(azula.guidance.PGDMSampler, **back),
             "azula, ΠGDM, eta 1": run(azula.guidance.PGDMSampler, **back, eta=1.0),
             "azula, TMPD": run(azula.sample.DDPMSampler, moments)}
    if mask is None: return found
    return found | {
        "azula, RePaint, 5": run(azula.guidance.RePaintSampler, y=known, mask=mask, iterations=5,
                                 eta=1.0),
        "diffusers, RePaint, 5": painted(1, 1.0),
        "diffusers, RePaint, 5, jump 10, eta 0": painted(10, 0.0)}
