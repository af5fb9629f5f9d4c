from . import boltzmann as boltzmann, energy as energy, rbm as rbm
