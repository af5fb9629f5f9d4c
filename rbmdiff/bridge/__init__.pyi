from . import (
    comparison as comparison,
    completion as completion,
    discrete as discrete,
    flow as flow,
    gumbel as gumbel,
    limit as limit,
    masked as masked,
    meanfield as meanfield,
    memory as memory,
    recovery as recovery,
    score as score,
    tilted as tilted,
)
