from . import (
    comparison as comparison,
    gumbel as gumbel,
    limit as limit,
    meanfield as meanfield,
    recovery as recovery,
    score as score,
    tilted as tilted,
)
