from . import (
    autoregressive as autoregressive,
    boltzmann as boltzmann,
    energy as energy,
    hopfield as hopfield,
    ising as ising,
    rbm as rbm,
)
