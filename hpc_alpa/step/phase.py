"""When an equation of a step runs: once before the loop over microbatches, in it, or once after."""

PREPARE, FORWARD, BACKWARD, APPLY = "prepare", "forward", "backward", "apply"
LOOP = (FORWARD, BACKWARD)
WEIGHT = "weight"  # the half of backward that may run later (`step.halves`)
# Operators in the loop whose output is whole only when the loop has ended (`ops.boundary`).
FINISHED = ("accumulate", "accumulate_max", "stack")
