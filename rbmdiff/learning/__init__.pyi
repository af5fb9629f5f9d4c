from . import (
    contrastive as contrastive,
    gradients as gradients,
    partition as partition,
    score_matching as score_matching,
    tap as tap,
)
