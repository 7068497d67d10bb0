"""From a plan to one instruction list per rank."""

from hpc_alpa.lower.lower import Lowering, lower, lowering
from hpc_alpa.lower.program import Body, Instruction, Kernel, Placed, Program

__all__ = ["Body", "Instruction", "Kernel", "Lowering", "Placed", "Program", "lower", "lowering"]
