"""Optimizers as pairs of pure functions on trees of parameters."""

from hpc_alpa.models.optimizers.adam import AdamW, adamw
from hpc_alpa.models.optimizers.descent import SGD, sgd
from hpc_alpa.models.optimizers.factored import Adafactor, adafactor
from hpc_alpa.models.optimizers.optimizer import Optimizer, num_parameters

__all__ = ["SGD", "Adafactor", "AdamW", "Optimizer", "adafactor", "adamw", "num_parameters", "sgd"]
