from . import energy as energy, rbm as rbm
