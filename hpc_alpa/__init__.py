"""hpc_alpa: plan and run a training step on a supercomputer."""

__version__ = "0.1.0"
