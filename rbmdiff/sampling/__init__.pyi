from . import gibbs as gibbs
