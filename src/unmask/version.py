"""The version, alone in its module so that packaging and `--version` read it without importing anything else."""

__version__ = "0.1.0"
