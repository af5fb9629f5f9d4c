from . import (
    comparison as comparison,
    flow as flow,
    gumbel as gumbel,
    limit as limit,
    meanfield as meanfield,
    memory as memory,
    recovery as recovery,
    score as score,
    tilted as tilted,
)
