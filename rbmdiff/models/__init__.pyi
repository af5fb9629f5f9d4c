from . import energy as energy
from . import rbm as rbm
