from . import contrastive as contrastive
from . import partition as partition
