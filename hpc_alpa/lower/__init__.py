"""From a plan to one instruction list per rank."""

from hpc_alpa.lower.lower import lower
from hpc_alpa.lower.program import Body, Instruction, Kernel, Placed, Program

__all__ = ["Body", "Instruction", "Kernel", "Placed", "Program", "lower"]
