from . import gibbs as gibbs
from . import means as means
