from . import (
    autoregressive as autoregressive,
    boltzmann as boltzmann,
    deep as deep,
    energy as energy,
    flow as flow,
    hopfield as hopfield,
    ising as ising,
    rbm as rbm,
)
