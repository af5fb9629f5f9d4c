from . import (
    boltzmann as boltzmann,
    deep as deep,
    energy as energy,
    hopfield as hopfield,
    ising as ising,
    rbm as rbm,
)
