from . import diagnostics as diagnostics, gibbs as gibbs, means as means
