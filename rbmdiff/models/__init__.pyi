from . import boltzmann as boltzmann, energy as energy, ising as ising, rbm as rbm
