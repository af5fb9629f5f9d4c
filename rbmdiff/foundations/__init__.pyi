from . import (
    core as core,
    data as data,
    kernels as kernels,
    plot as plot,
    train as train,
    units as units,
)
