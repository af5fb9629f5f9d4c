from . import (
    clusters as clusters,
    diagnostics as diagnostics,
    gibbs as gibbs,
    means as means,
    metropolis as metropolis,
)
