from . import (
    ddpm as ddpm,
    deis as deis,
    elbo as elbo,
    likelihood as likelihood,
    matrix as matrix,
    networks as networks,
    objective as objective,
    oracle as oracle,
    schedule as schedule,
    sde as sde,
    solvers as solvers,
    weights as weights,
)
