"""Manual methods as restrictions of the same search: what each leaves open, the search decides.

    dpN            the batch is split; parameters and their updates are whole on every device
    zero1|2|3      data parallelism that splits optimizer state, gradients, parameters as well
    tpN            Megatron: weights of forward products and heads are split, the batch is not
    tpN with sp    and the activations between the blocks are split along the sequence
    ppN            stages, each on its own devices
    shard_largest  each parameter is split along its largest dim that divides

`name` reads products of them, the other files say what each means.
"""

from hpc_alpa.plan.methods.method import Method, parse_method
from hpc_alpa.plan.methods.products import split_products
from hpc_alpa.plan.methods.table import restrictions

__all__ = ["Method", "parse_method", "restrictions", "split_products"]
