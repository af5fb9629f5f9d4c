from . import (
    bridge as bridge,
    diffusion as diffusion,
    foundations as foundations,
    learning as learning,
    models as models,
    practice as practice,
    sampling as sampling,
)
from .diffusion.deis import deis as deis
from .diffusion.elbo import elbo as elbo
from .diffusion.networks import MLP as MLP, Preconditioned as Preconditioned, UNet as UNet
from .diffusion.oracle import Mixture as Mixture
from .diffusion.schedule import (
    Betas as Betas,
    Cosine as Cosine,
    FlowMatching as FlowMatching,
    Geometric as Geometric,
    LinearBeta as LinearBeta,
    LinearLogSNR as LinearLogSNR,
    LogSNR as LogSNR,
    SinusoidalBeta as SinusoidalBeta,
    SubVP as SubVP,
    time_grid as time_grid,
)
from .diffusion.solvers import (
    ancestral as ancestral,
    ddim as ddim,
    euler_maruyama as euler_maruyama,
    heun as heun,
)
from .foundations.core import Estimate as Estimate
from .foundations.train import sgd as sgd, train as train
from .foundations.units import (
    Bernoulli as Bernoulli,
    Binomial as Binomial,
    Discrete as Discrete,
    Gaussian as Gaussian,
    Poisson as Poisson,
    Potts as Potts,
    ReLU as ReLU,
    Spin as Spin,
)
from .learning.contrastive import cd_gradient as cd_gradient, exact_gradient as exact_gradient
from .learning.partition import ais as ais, reverse_ais as reverse_ais
from .models.deep import DBM as DBM, DBN as DBN
from .models.rbm import RBM as RBM
from .practice.estimator import RBMClassifier as RBMClassifier, RBMTransformer as RBMTransformer
from .sampling.gibbs import gibbs as gibbs

__version__: str
