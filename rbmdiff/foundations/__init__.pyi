from . import core as core
from . import data as data
from . import kernels as kernels
from . import plot as plot
from . import train as train
from . import units as units
