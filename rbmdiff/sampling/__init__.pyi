from . import (
    clusters as clusters,
    diagnostics as diagnostics,
    gibbs as gibbs,
    langevin as langevin,
    means as means,
    metropolis as metropolis,
    tempering as tempering,
)
