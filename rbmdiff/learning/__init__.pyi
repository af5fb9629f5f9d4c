from . import contrastive as contrastive, partition as partition
