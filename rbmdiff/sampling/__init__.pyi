from . import diagnostics as diagnostics
from . import gibbs as gibbs
from . import means as means
