"""The plain notebooks outside the repository, each continued by lines that hand its objects to the
functions of the package.

A notebook defines its classes anew, in `__main__`. A machine, a schedule, a solver of the notebook must
be one for the package all the same: the package checks what an object has, not whose class it is. Here
the exported cells are run, which define the classes, and then the lines below. With RBMDIFF_PLAIN=full
in the environment every cell of every chapter is run first.
"""
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
import json
import os
from pathlib import Path
import subprocess
import sys

import pytest

from bookmaker import ROOT
from forms import exported, for_jupyter, source, split

FULL = os.environ.get("RBMDIFF_PLAIN") == "full"
START = """
assert not {"seeded", "numbers", "own", "same", "filled", "twin"} & globals().keys()
import torch
from torch import Tensor
f64 = torch.float64
def seeded(k=0): return torch.Generator().manual_seed(k)
def numbers(*shape): return torch.randn(shape, dtype=f64, generator=seeded(1))
def own(*things):
    for x in things: assert (x if isinstance(x, type) else type(x)).__module__ == "__main__", x
def same(a, b): torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
"""
MACHINES = """
from rbmdiff.models import rbm as package_rbm
def twin(m):
    \"\"\"The machine of the package with the same parameters.\"\"\"
    other = package_rbm.RBM(*m.W.shape, str(m.visible), str(m.hidden), dtype=m.W.dtype)
    other.requires_grad_(False)
    other.load_state_dict(m.state_dict())
    return other
def filled(m):
    for p in m.requires_grad_(False).parameters():
        p.copy_(torch.randn(p.shape, dtype=p.dtype, generator=seeded(p.numel())) / 2)
    return m
"""
CLOUD = """
from rbmdiff.diffusion.oracle import Mixture as PackageMixture
from rbmdiff.diffusion.schedule import LinearBeta as PackageLinearBeta, time_grid as package_grid
schedule = PackageLinearBeta()
weights, means = torch.tensor([0.4, 0.6], dtype=f64), torch.tensor([[1.0, 0.5], [-1.0, 0.0]], dtype=f64)
cloud = PackageMixture(weights, means, torch.eye(2, dtype=f64).expand(2, 2, 2) / 9)
predict, grid, x = cloud.predictor(schedule), package_grid(schedule, 8), numbers(6, 2)
"""
CONTINUED = {
    "foundations/core": MACHINES + """
from rbmdiff.foundations.core import read_tensors as package_read
from rbmdiff.learning.partition import log_likelihood
m = filled(package_rbm.RBM(5, 3, dtype=f64))
exact = float(m.log_partition())
v = m.sample_visible(torch.ones(20, 3, dtype=f64), seeded())
for z in (Estimate(exact, 0.01, 10), LogZ(exact, 0.01, 10, torch.zeros(10, dtype=f64), v)):
    own(z)
    fit = log_likelihood(m, v, z)
    same(torch.tensor(fit.value), m.log_prob(v).mean().float())
write_tensors("x.safetensors", "Own", {"a": v}, {"k": 1})
tensors, meta = package_read("x.safetensors", "Own")
same(tensors["a"], v)
""",
    "foundations/units": MACHINES + """
from rbmdiff.foundations import units as package
from rbmdiff.learning.contrastive import cd_gradient, exact_gradient
from rbmdiff.learning.partition import ais
from rbmdiff.sampling.gibbs import gibbs
def given(unit):
    if type(unit) is Discrete: return (unit.levels,)
    return (unit.q,) if type(unit) is Potts else ()
def theirs(unit): return getattr(package, type(unit).__name__)(*given(unit))
pairs = [(Bernoulli(), Spin()), (Gaussian(), Bernoulli()), (Discrete((-1.0, 0.0, 1.0)), Spin()),
         (Potts(3), Bernoulli())]
for visible, hidden in pairs:
    own(visible, hidden)
    m = filled(package_rbm.RBM(6, 3, visible, hidden, dtype=f64))
    v = gibbs(m, m.sample(16, generator=seeded()), 2, seeded())
    other = package_rbm.RBM(6, 3, theirs(visible), theirs(hidden), dtype=f64).requires_grad_(False)
    other.load_state_dict(m.state_dict())
    same(m.log_prob(v), other.log_prob(v))
    for name, gradient in exact_gradient(m, v).items(): same(gradient, exact_gradient(other, v)[name])
    for name, gradient in cd_gradient(m, v, generator=seeded())[0].items():
        same(gradient, cd_gradient(other, v, generator=seeded())[0][name])
    assert ais(m, 10, 10, seeded()).value == ais(other, 10, 10, seeded()).value
""",
    "models/rbm": MACHINES + """
from rbmdiff.bridge import tilted
from rbmdiff.learning.contrastive import cd_gradient, exact_gradient
from rbmdiff.learning.partition import ais, log_likelihood, reverse_ais
from rbmdiff.sampling.gibbs import gibbs
assert ais(RBM(8, 4), 10, 10).n == 10
for visible, hidden in (("bernoulli", "bernoulli"), ("spin", "spin"), ("gaussian", "bernoulli")):
    m = filled(RBM(8, 4, visible, hidden, dtype=f64))
    own(m)
    other = twin(m)
    v = gibbs(m, other.sample(16, generator=seeded()), 5, seeded())
    same(v, gibbs(other, other.sample(16, generator=seeded()), 5, seeded()))
    for run in (lambda m: ais(m, 10, 10, seeded()), lambda m: reverse_ais(m, v, 10, seeded()),
                lambda m: log_likelihood(m, v, ais(m, 10, 10, seeded()))):
        assert run(m).value == run(other).value
    for run in (lambda m: exact_gradient(m, v), lambda m: cd_gradient(m, v, 1, generator=seeded())[0]):
        for name, gradient in run(m).items(): same(gradient, run(other)[name])
    same(tilted.denoise(m, numbers(3, 8), 0.7, 0.7), tilted.denoise(other, numbers(3, 8), 0.7, 0.7))
    own(tilted.posterior(m, numbers(3, 8), 0.7, 0.7))
""",
    "models/boltzmann": MACHINES + """
from rbmdiff.models import boltzmann as package
from rbmdiff.sampling.gibbs import sweep as package_sweep
from rbmdiff.sampling.means import approximate as package_approximate
m = Boltzmann(couplings(numbers(10)), numbers(5))
own(m)
other = package.Boltzmann(m.J, m.b)
x = m.sample(20, seeded())
same(x, other.sample(20, seeded()))
same(package_sweep(m, x, 3, seeded()), package_sweep(other, x, 3, seeded()))
same(package_approximate(m)[0], package_approximate(other)[0])
same(package_approximate(m.clamp(x, torch.arange(5) < 2), "tap")[1],
     package_approximate(other.clamp(x, torch.arange(5) < 2), "tap")[1])
same(m.edge_rbm().log_prob(x), m.log_prob(x))
""",
    "learning/partition": MACHINES + """
from rbmdiff.learning.partition import log_likelihood as package_likelihood
m = filled(package_rbm.RBM(6, 3, dtype=f64))
z = ais(m, 10, 20, seeded())
v = m.sample(20, generator=seeded())
assert package_likelihood(m, v, z).value == log_likelihood(m, v, z).value
""",
    "bridge/tilted": MACHINES + CLOUD + """
from rbmdiff.diffusion.solvers import ancestral
m = filled(package_rbm.RBM(6, 3, "spin", "spin", dtype=f64))
warm = WarmGibbs(m, schedule, chains=2, generator=seeded())
own(warm)
assert ancestral(warm, schedule, numbers(4, 6), grid, generator=seeded()).shape == (4, 6)
""",
    "bridge/meanfield": MACHINES + """
from rbmdiff.bridge import meanfield as package
from rbmdiff.diffusion.schedule import LinearBeta as PackageLinearBeta
schedule, v = PackageLinearBeta(), (numbers(40, 5) > 0).double()
timed = TimedRBM(filled(package_rbm.RBM(5, 3, dtype=f64)), schedule)
own(timed)
same(package.dsm_loss(timed, v, schedule, n=20, generator=seeded()),
     dsm_loss(timed, v, schedule, n=20, generator=seeded()))
""",
    "bridge/comparison": """
from rbmdiff.bridge.comparison import binary_bound as package_bound
from rbmdiff.diffusion.networks import MLP
from rbmdiff.diffusion.schedule import LinearLogSNR
schedule = LinearLogSNR(-10.0, 5.0)
model = BinaryDenoiser(MLP(5, 4, 1, generator=seeded()), schedule, torch.zeros(5))
own(model)
v = torch.where(numbers(6, 5) > 0, 1.0, -1.0).float()
with torch.no_grad(): assert package_bound(model, schedule, v, n=4, sets=2, generator=seeded()).n == 6
""",
    "diffusion/schedule": CLOUD + """
from rbmdiff.diffusion.deis import deis
from rbmdiff.diffusion.elbo import elbo
from rbmdiff.diffusion.objective import denoising_loss
from rbmdiff.diffusion.solvers import ancestral
mine = LinearBeta()
own(mine)
for run in (lambda s: deis(cloud.predictor(s), s, x, grid),
            lambda s: ancestral(cloud.predictor(s), s, x, grid, generator=seeded()),
            lambda s: elbo(cloud.predictor(s), s, x, n=4, sets=2, generator=seeded()).log_prob,
            lambda s: denoising_loss(predict, s, x, 0.5, generator=seeded()),
            lambda s: package_grid(s, 5)):
    same(run(mine), run(schedule))
""",
    "diffusion/sde": CLOUD + """
from rbmdiff.diffusion import sde as package
from rbmdiff.diffusion.matrix import matrix_deis
mine, theirs = scalar_sde(schedule, 2), package.scalar_sde(schedule, 2)
own(mine)
kl = [package.path_kl(s, lambda x, t: -x, lambda x, t: 0 * x, lambda t: x) for s in (mine, theirs)]
assert kl[0].value == kl[1].value > 0
zero = lambda x, t: 0 * x
same(matrix_deis(zero, mine, x, grid, order=0), matrix_deis(zero, theirs, x, grid, order=0))
""",
    "diffusion/oracle": CLOUD + """
from rbmdiff.diffusion.deis import deis
from rbmdiff.diffusion.elbo import elbo
from rbmdiff.diffusion.likelihood import log_likelihood
from rbmdiff.diffusion.objective import denoising_loss
mine = Mixture(weights, means, torch.eye(2, dtype=f64).expand(2, 2, 2) / 9)
own(mine)
for run in (lambda m: deis(m.predictor(schedule), schedule, x, grid),
            lambda m: elbo(m.predictor(schedule), schedule, x, n=4, sets=2, generator=seeded()).log_prob,
            lambda m: log_likelihood(m.predictor(schedule), schedule, x, nodes=8).log_prob,
            lambda m: denoising_loss(m.predictor(schedule), schedule, x, 0.5, generator=seeded())):
    same(run(mine), run(cloud))
""",
    "diffusion/objective": CLOUD + """
from rbmdiff.diffusion.deis import deis
checked = CheckedNetwork(predict)
own(checked)
same(deis(checked, schedule, x, grid), deis(predict, schedule, x, grid))
""",
    "diffusion/conditional": CLOUD + """
from rbmdiff.diffusion import conditional as package
mine = Measurement(torch.eye(2, dtype=f64)[:1], numbers(1), 0.3)
own(mine)
same(package.guided(predict, schedule, mine)(x, 0.5), guided(predict, schedule, mine)(x, 0.5))
a, b = (run(predict, schedule, x, grid, mine, generator=1) for run in (package.twisted_smc, twisted_smc))
same(a.states, b.states)
""",
    "diffusion/networks": CLOUD + """
from rbmdiff.diffusion import networks as package
from rbmdiff.diffusion.deis import deis
from rbmdiff.diffusion.objective import denoising_step
from rbmdiff.foundations.train import TrainState, train
for network, data in ((MLP(2, 8, 1, generator=seeded()), x.float()),
                      (UNet(1, (8, 8), generator=seeded()), torch.zeros(8, 1, 8, 8))):
    model = Preconditioned(network, schedule)
    own(network, model)
    state = TrainState(model, torch.optim.Adam(model.parameters()), seeded())
    records = list(train(state, data, denoising_step(schedule), 1, 4, progress=False))
    network.save("network.safetensors")
    kind = getattr(package, type(network).__name__)
    again = package.Preconditioned(kind.load("network.safetensors"), schedule)
    with torch.no_grad(): same(deis(model, schedule, data, grid), deis(again, schedule, data, grid))
""",
    "diffusion/solvers": CLOUD + """
from rbmdiff.diffusion import solvers as package
from rbmdiff.diffusion.deis import deis as package_deis
for name in ("ddim", "ancestral", "euler_maruyama", "reverse_diffusion"):
    mine, theirs = globals()[name], getattr(package, name)
    own(mine)
    same(package.predictor_corrector(predict, schedule, x, grid, predictor=mine, generator=seeded()),
         package.predictor_corrector(predict, schedule, x, grid, predictor=theirs, generator=seeded()))
last = list(ddim.states(predict, schedule, x, grid))[-1]
own(last)
assert float(last.t) == float(grid[-1])
""",
    "diffusion/deis": CLOUD + """
from rbmdiff.diffusion import deis as package
whole = package.deis(predict, schedule, x, grid, order=2)
half = list(deis.states(predict, schedule, x, grid[:5], order=2))[-1]
own(half.history)
same(package.deis(predict, schedule, half.x, grid[4:], order=2, history=half.history), whole)
""",
    "diffusion/elbo": CLOUD + """
from rbmdiff.diffusion.weights import weighted_loss as package_loss
levels = AdaptiveLevels(schedule, 1e-3)
own(levels)
for _ in range(2): loss = package_loss(predict, schedule, x, levels=levels, generator=seeded())
assert loss.shape == (6,) and float(levels.total.sum()) > 0
""",
    "diffusion/ddpm": CLOUD + """
from rbmdiff.diffusion import ddpm as package
mine, theirs = linear_chain(20), package.linear_chain(20)
own(mine)
zero = lambda x, t: 0 * x
same(package.sample_chain(zero, mine, x, generator=seeded()),
     package.sample_chain(zero, theirs, x, generator=seeded()))
same(package.simple_loss(zero, mine, x, seeded()), package.simple_loss(zero, theirs, x, seeded()))
same(package.variational_bound(zero, mine, x, seeded()).log_prob,
     package.variational_bound(zero, theirs, x, seeded()).log_prob)
""",
    "diffusion/ncsn": CLOUD + """
from rbmdiff.diffusion import ncsn as package
mine, stairs = ScoreNetwork(lambda x, t: -x), ladder(3.0, 0.5, 6)
own(mine)
same(package.sample(mine, x, stairs, 2, seeded()), sample(mine, x, stairs, 2, seeded()))
same(package.ladder_loss(mine, x, stairs, seeded()), ladder_loss(mine, x, stairs, seeded()))
same(package.eps_of_score(mine, schedule)(x, 0.5), eps_of_score(mine, schedule)(x, 0.5))
same(package.score_of_eps(predict, schedule)(x, 0.5), score_of_eps(predict, schedule)(x, 0.5))
""",
    "foundations/train": """
from rbmdiff.diffusion.networks import MLP
from rbmdiff.diffusion.objective import denoising_step
from rbmdiff.diffusion.schedule import LinearBeta
from rbmdiff.foundations import train as package
def fresh(kind):
    model = MLP(2, 4, 1, generator=seeded())
    return kind(model, torch.optim.Adam(model.parameters()), seeded(), average=0.9)
def run(state, epochs):
    records = package.train(state, numbers(8, 2).float(), step, epochs, 4, progress=False)
    return [record.scalars["loss"] for record in records]
step, mine, theirs = denoising_step(LinearBeta()), fresh(TrainState), fresh(package.TrainState)
own(mine)
assert run(mine, 2) == run(theirs, 2)
mine.save("state.safetensors")
again = fresh(package.TrainState)
again.load("state.safetensors")
assert run(again, 4) == run(mine, 4)
""",
}


def chapters() -> list[str]:
    """All chapters of the book."""
    return sorted(str(p.relative_to(ROOT / "nbs").with_suffix(""))
                  for p in (ROOT / "nbs").rglob("*.ipynb")
                  if ".ipynb_checkpoints" not in p.parts)


def script(chapter: str, full: bool) -> str:
    """The code of the plain notebook: all cells, or those that are exported and the import of `patch`.
    """
    nb = json.loads((ROOT / f"nbs/{chapter}.ipynb").read_text("utf8"))
    wanted = {c["id"] for c in nb["cells"] if c["cell_type"] == "code" and (
        full or exported(split(source(c))[0]) or "import patch" in source(c))}
    plain = for_jupyter(nb, "", defaultdict(lambda: "Hinton 2002"))["cells"]
    cells = [c for c in plain if c["cell_type"] == "code" and c["id"] in wanted]
    display = "from IPython.display import display\n" if full else ""
    return display + "\n\n".join(source(c) for c in cells)


def written(folder: Path, chapter: str, full: bool) -> Path:
    """A program, in a folder outside the repository: the chapter and what continues it."""
    path = folder / "notebook.py"
    path.write_text("\n\n".join([script(chapter, full), START, CONTINUED.get(chapter, "")]), "utf8")
    return path


def run(path: Path) -> subprocess.CompletedProcess:
    """Run a program in a process of its own, in its folder."""
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, path], cwd=path.parent, env=environment, capture_output=True,
                          text=True)


@pytest.fixture(scope="module")
def finished(request, tmp_path_factory):
    """The runs of the chapters whose tests are selected, two at a time."""
    items = [item for item in request.session.items if item.path == Path(__file__)
             and hasattr(item, "callspec")]
    wanted = [item.callspec.params["chapter"] for item in items]
    folders = [tmp_path_factory.mktemp("plain") for _ in wanted]
    assert not any(folder.is_relative_to(ROOT) for folder in folders)
    # written before the threads start: Python 3.11 counts the depth of a syntax tree for all threads at
    # once, so that two that read code at the same time can fail
    programs = [written(folder, chapter, FULL) for folder, chapter in zip(folders, wanted)]
    with ThreadPoolExecutor(2) as pool: runs = list(pool.map(run, programs))
    return dict(zip(wanted, runs))


@pytest.mark.parametrize("chapter", chapters() if FULL else sorted(CONTINUED))
def test_objects_of_the_notebook_are_objects_for_the_package(chapter, finished):
    assert finished[chapter].returncode == 0, finished[chapter].stderr[-3000:]


def test_the_process_is_one_in_which_the_classes_are_those_of_the_notebook(tmp_path, monkeypatch):
    """The control: lines that fail, fail the run, and the lines see the notebook's names."""
    monkeypatch.setitem(CONTINUED, "foundations/core",
                        "import rbmdiff\nassert Estimate is rbmdiff.Estimate")
    done = run(written(tmp_path, "foundations/core", False))
    assert done.returncode == 1 and "AssertionError" in done.stderr
