from . import cli as cli, estimator as estimator, runs as runs
