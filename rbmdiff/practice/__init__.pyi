from . import cli as cli, runs as runs
