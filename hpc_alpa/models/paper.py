"""The models of Alpa's evaluation by their names (OSDI 2022, Sec. 8.1, and its public artifact).

model = paper_model("gpt-39B")
state, batch = model.example()              # no parameter is made
graph = trace(model.train_step, (state, batch), ("state", "batch"))
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hpc_alpa.errors import DataError
from hpc_alpa.models import flops, gpt, moe, wide_resnet
from hpc_alpa.models.optimizers import SGD, Adafactor, AdamW, Optimizer, adafactor, adamw, sgd
from hpc_alpa.models.training import Metrics, State
from hpc_alpa.trace import trace

IMAGE = 224
# GPUs -> images of a microbatch in the artifact's plans, which are a batch to Wide-ResNet's norms.
NORM_ROWS = {1: 64, 2: 64, 4: 64, 8: 64, 16: 48, 32: 48, 64: 40}


@dataclass(frozen=True)
class Family:
    """What the sizes of one model have in common.

    Attributes:
        batch: rows of the whole batch; `largest` in the place of it at that many GPUs.
        precision: what forward and backward compute in; parameters are kept in float32.
        optimizer: its name, for people, and how it is made.
        devices: GPUs that each size was trained on.
    """

    module: Any
    batch: int
    precision: str
    optimizer: str
    make_optimizer: Callable[[], Optimizer]
    devices: dict[str, int]
    largest: dict[int, int]


FAMILIES: dict[str, Family] = {
    "gpt": Family(
        gpt, 1024, "float16", "adamw", lambda: adamw(AdamW()),
        {"350M": 1, "760M": 2, "1.3B": 4, "2.6B": 8, "6.7B": 16, "15B": 32, "39B": 64}, {},
    ),
    "moe": Family(
        moe, 1024, "float16", "adafactor", lambda: adafactor(Adafactor()),
        {"380M": 1, "690M": 2, "1.3B": 4, "2.4B": 8, "10B": 16, "27B": 32, "70B": 64}, {},
    ),
    "wide-resnet": Family(
        wide_resnet, 1536, "float32", "sgd with nesterov's momentum",
        lambda: sgd(SGD(learning_rate=0.1, momentum=0.9, nesterov=True)),
        {"250M": 1, "500M": 2, "1B": 4, "2B": 8, "4B": 16, "6.8B": 32, "13B": 64}, {64: 1520},
    ),
}  # fmt: skip


@dataclass(frozen=True)
class PaperModel:
    """One model of the evaluation, ready to be traced.

    Attributes:
        name: `gpt-39B`.
        config: `GPTConfig`, `MoEConfig` or `WideResNetConfig`.
        batch: rows of the whole batch.
        sequence: tokens of a row; None for images.
        precision: what forward and backward compute in; parameters are kept in `config.dtype`.
        optimizer: its name.
        devices: GPUs that the paper trained it on; None where it did not.
        init, train_step: `init(seed)` of the state, and `train_step(state, batch)`.
    """

    name: str
    config: Any
    batch: int
    sequence: int | None
    precision: str
    optimizer: str
    devices: int | None
    init: Callable[[Any], State]
    train_step: Callable[..., tuple[State, Metrics]]

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        return int(self.config.num_parameters)

    def example_batch(self) -> dict[str, np.ndarray]:
        """A batch of zeros, which takes no memory."""
        if self.sequence is None:
            images = (self.batch, IMAGE, IMAGE, self.config.channels)
            return {"images": _zeros(images, "float32"), "labels": _zeros((self.batch,), "int32")}
        tokens = _zeros((self.batch, self.sequence), "int32")
        return {"tokens": tokens, "targets": tokens}

    def example(self) -> tuple[State, dict[str, np.ndarray]]:
        """A state and a batch of zeros, which take no memory: examples for a trace."""
        traced = trace(self.init, (0,), ("seed",))
        leaves = [
            np.zeros((), o.type.dtype).item() if o.weak else _zeros(o.type.shape, o.type.dtype)
            for o in traced.outputs
        ]
        return traced.out_tree.unflatten(leaves), self.example_batch()

    def flops(self, recomputation: bool = False, dense_dispatch: bool = False) -> float:
        """Floating-point operations of a step, as the paper counts them (`models.flops`).

        Args:
            recomputation: what backward makes again counts; the published TFLOPS have it.
            dense_dispatch: a mixture of experts counts the published products with one-hot arrays.
        """
        if isinstance(self.config, moe.MoEConfig):
            return flops.moe(self.config, self.batch, recomputation, dense_dispatch)
        if isinstance(self.config, gpt.GPTConfig):
            return flops.transformer(self.config, self.batch, recomputation)
        return flops.wide_resnet(self.config, self.batch, IMAGE, recomputation)


def paper_names() -> tuple[str, ...]:
    """All names, by family and size."""
    return tuple(f"{f}-{size}" for f, row in FAMILIES.items() for size in row.module.SIZES)


def paper_model(
    name: str,
    batch: int | None = None,
    precision: str | None = None,
    norm_rows: int | None = None,
    **options: Any,
) -> PaperModel:
    """A model by its name: `gpt-39B`, `moe-27B`, `wide-resnet-13B`.

    Args:
        batch: rows of the whole batch; None takes the paper's.
        precision: of forward and backward; None takes the paper's, float16 but for Wide-ResNet.
        norm_rows: of a Wide-ResNet, `WideResNetConfig.norm_rows`; None takes the images of a
            microbatch of the paper, so a microbatch has as many, or a multiple.
        options: of the family's `train_step`: `clip=1.0`, `loss_scale=...`.

    Raises:
        DataError: there is no such model.
    """
    family, _, size = name.rpartition("-")
    if family not in FAMILIES or size not in FAMILIES[family].module.SIZES:
        raise DataError(f"there is no model {name!r}; the paper's are {', '.join(paper_names())}")
    row = FAMILIES[family]
    devices = row.devices.get(size)
    precision = precision or row.precision
    dtype = "float64" if precision == "float64" else "float32"
    config = row.module.paper_config(size, dtype=dtype, precision=precision)
    rows = batch or row.largest.get(devices or 0, row.batch)
    if isinstance(config, wide_resnet.WideResNetConfig):
        # A batch of one's own that these rows do not fill is normalised as a whole.
        asked = norm_rows or NORM_ROWS[devices or 1]
        config = replace(config, norm_rows=asked if rows % asked == 0 else norm_rows)
    optimizer = row.make_optimizer()
    return PaperModel(
        name,
        config,
        rows,
        getattr(config, "sequence", None),
        precision,
        row.optimizer,
        devices,
        row.module.init(config, optimizer, options.get("loss_scale")),
        row.module.train_step(config, optimizer, **options),
    )


def _zeros(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.broadcast_to(np.zeros((), dtype), shape)
