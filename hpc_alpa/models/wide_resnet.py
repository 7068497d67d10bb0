"""Wide-ResNet: residual blocks of three convolutions, the middle one wider.

He et al. 2016 with the width of Zagoruyko and Komodakis 2016, as in Alpa (OSDI 2022, Sec. 8.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hpc_alpa import nn
from hpc_alpa.errors import DataError
from hpc_alpa.models import layers as part
from hpc_alpa.models.optimizers import Optimizer
from hpc_alpa.models.precision import LossScale, cast, require_precision
from hpc_alpa.models.training import Metrics, State, Training, initial_state, make_train_step
from hpc_alpa.pytree import tree_map
from hpc_alpa.trace import layer as mark_layer

Params = dict[str, Any]
STEM = 7  # window of the first convolution
MOMENTUM = 0.9  # of the moving averages of a norm's statistics
EXPANSION = 4  # channels of a block's output, in multiples of those of its first convolution


@dataclass(frozen=True)
class Block:
    """The channels that a block reads and those of its three convolutions, and its stride."""

    inputs: int
    narrow: int
    wide: int
    outputs: int
    stride: int

    @property
    def windows(self) -> dict[str, tuple[int, int, int, int]]:
        """Shapes of the weights; `shortcut` where the residual changes its shape."""
        found = {
            "conv1": (1, 1, self.inputs, self.narrow),
            "conv2": (3, 3, self.narrow, self.wide),
            "conv3": (1, 1, self.wide, self.outputs),
        }
        if self.inputs != self.outputs or self.stride != 1:
            found["shortcut"] = (1, 1, self.inputs, self.outputs)
        return found


@dataclass(frozen=True)
class WideResNetConfig:
    """Sizes of a Wide-ResNet.

    Attributes:
        blocks: number of blocks of each stage. A stage halves the image and doubles the channels
            of the one before.
        base_channels: of the first convolution, and of the first stage.
        width_factor: channels of a block's 3x3 convolution, in multiples of its narrow ones.
        channels: of the images.
        norm_rows: images whose statistics a norm takes together, a run of the batch; None: all of
            the batch. A step has as many microbatches as hold whole runs.
        dtype, precision: as of `TransformerConfig`.

    Raises:
        DataError: a size below 1, no stage, or a precision wider than the parameters.
    """

    blocks: tuple[int, ...]
    base_channels: int
    width_factor: int
    classes: int
    channels: int = 3
    dtype: str = "float32"
    precision: str | None = field(default=None, kw_only=True)
    norm_rows: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not self.blocks or min(self.blocks) < 1:
            raise DataError(f"WideResNetConfig: blocks is {self.blocks}; a stage has at least 1")
        for name in ("base_channels", "width_factor", "classes", "channels"):
            if getattr(self, name) < 1:
                raise DataError(
                    f"WideResNetConfig: {name} is {getattr(self, name)}; it is at least 1"
                )
        if self.norm_rows is not None and self.norm_rows < 1:
            raise DataError(f"WideResNetConfig: norm_rows is {self.norm_rows}; it is at least 1")
        require_precision("WideResNetConfig", self.precision, self.dtype)

    @property
    def layout(self) -> tuple[Block, ...]:
        """All blocks in order."""
        return tuple(self._layout())

    def _layout(self) -> Iterator[Block]:
        inputs = self.base_channels
        for stage, count in enumerate(self.blocks):
            narrow = self.base_channels * 2**stage
            for k in range(count):
                stride = 2 if stage and not k else 1
                block = Block(
                    inputs, narrow, narrow * self.width_factor, narrow * EXPANSION, stride
                )
                yield block
                inputs = block.outputs

    @property
    def num_parameters(self) -> int:
        """Elements of all parameters."""
        shapes = [(STEM, STEM, self.channels, self.base_channels)]
        shapes += [s for b in self.layout for s in b.windows.values()]
        convolutions = sum(int(np.prod(s)) + 2 * s[-1] for s in shapes)
        return convolutions + (self.layout[-1].outputs + 1) * self.classes


# He et al. 2016, Table 1: number of layers -> blocks of each stage.
DEPTHS: dict[int, tuple[int, ...]] = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
# As Alpa evaluates it (OSDI 2022, Sec. 8.1): name -> layers, base channels, width factor; images of
# 224 x 224, 1024 classes.
SIZES: dict[str, tuple[int, int, int]] = {
    "250M": (50, 160, 2),
    "500M": (50, 224, 2),
    "1B": (50, 320, 2),
    "2B": (50, 448, 2),
    "4B": (50, 640, 2),
    "6.8B": (50, 320, 16),
    "13B": (101, 320, 16),
}


def paper_config(
    name: str,
    dtype: str = "float32",
    precision: str | None = None,
    norm_rows: int | None = None,
) -> WideResNetConfig:
    """The config of a row of `SIZES`."""
    if name not in SIZES:
        raise DataError(f"there is no Wide-ResNet {name!r}; the paper's are {', '.join(SIZES)}")
    layers, base_channels, width_factor = SIZES[name]
    blocks = DEPTHS[layers]
    return WideResNetConfig(
        blocks,
        base_channels,
        width_factor,
        1024,
        dtype=dtype,
        precision=precision,
        norm_rows=norm_rows,
    )


# ----------------------------------------------------------------------------------------- layers
def init_convolution(seed: Any, name: str, shape: tuple[int, int, int, int], dtype: str) -> Params:
    """A convolution without bias and the batch norm behind it.

    Deviation sqrt(2 / inputs of a window), which keeps the size of relu's outputs (He et al. 2015).
    """
    deviation = (2.0 / np.prod(shape[:3])) ** 0.5
    return {
        "weight": part.init_weight(seed, f"{name}/weight", shape, dtype, float(deviation)),
        "norm": part.init_norm(shape[-1], dtype),
    }


def convolution(
    params: Params,
    x: Any,
    stride: int = 1,
    statistics: Params | None = None,
    norm_rows: int | None = None,
) -> tuple[Any, Params]:
    """A convolution and its batch norm, (batch, height, width, channels) -> the same with others.

    Args:
        stride: every stride-th row and column is kept.
        statistics: mean and variance of each channel; those of the batch if None.
        norm_rows: images that are a batch to the norm; None: all.

    Returns:
        The result, and the statistics that it was normalised by, or their means.
    """
    made = nn.conv2d(x, params["weight"], stride, padding=np.shape(params["weight"])[0] // 2)
    scale, bias = params["norm"]["scale"], params["norm"]["bias"]
    if statistics is None:
        mean, variance = nn.batch_statistics(made, norm_rows)
        normal = nn.batch_norm(made, scale, bias, rows=norm_rows)
        return normal, {"mean": mean, "variance": variance}
    given = statistics["mean"], statistics["variance"]
    return nn.batch_norm_inference(made, scale, bias, *given), statistics


def block(
    params: Params,
    x: Any,
    stride: int,
    statistics: Params | None = None,
    norm_rows: int | None = None,
) -> tuple[Any, Params]:
    """Three convolutions beside the residual, with the stride in the second.

    Statistics and `norm_rows` as of `convolution`, for each of them by its name.
    """
    used: Params = {}

    def normed(name: str, x: Any, stride: int = 1) -> Any:
        given = None if statistics is None else statistics[name]
        made, used[name] = convolution(params[name], x, stride, given, norm_rows)
        return made

    y = nn.relu(normed("conv1", x))
    y = nn.relu(normed("conv2", y, stride))
    y = normed("conv3", y)
    return nn.relu((normed("shortcut", x, stride) if "shortcut" in params else x) + y), used


# ------------------------------------------------------------------------------------------ model
def init_params(config: WideResNetConfig, seed: Any) -> Params:
    """The scale of the last norm of a block is 0: each block starts as its residual alone.

    Goyal et al. 2017, Sec. 5.1.
    """
    c = config

    def init_block(name: str, of: Block) -> Params:
        made = {
            k: init_convolution(seed, f"{name}/{k}", shape, c.dtype)
            for k, shape in of.windows.items()
        }
        made["conv3"]["norm"]["scale"] = np.zeros(of.outputs, c.dtype)
        return made

    last = c.layout[-1].outputs
    stem = (STEM, STEM, c.channels, c.base_channels)
    return {
        "stem": init_convolution(seed, "stem", stem, c.dtype),
        "blocks": [init_block(f"blocks/{k}", of) for k, of in enumerate(c.layout)],
        "head": part.init_dense(seed, "head", last, c.classes, c.dtype, last**-0.5),
    }


def init_statistics(config: WideResNetConfig) -> Params:
    """Moving averages of means and variances, from 0 and 1."""
    dtype = "float64" if config.dtype == "float64" else "float32"

    def of(channels: int) -> Params:
        return {"mean": np.zeros(channels, dtype), "variance": np.ones(channels, dtype)}

    return {
        "stem": of(config.base_channels),
        "blocks": [{k: of(s[-1]) for k, s in b.windows.items()} for b in config.layout],
    }


def logits(
    params: Params, images: Any, config: WideResNetConfig, statistics: Params | None = None
) -> tuple[Any, Params]:
    """(batch, height, width, channels) -> (batch, classes), and the statistics of all norms.

    Images are read in the dtype of the parameters.

    Args:
        statistics: as the step's state keeps them; those of the batch if None.
    """
    given = statistics or {"stem": None, "blocks": [None] * len(config.layout)}
    images = cast(images, np.dtype(params["stem"]["weight"].dtype).name)
    x, stem = convolution(params["stem"], images, 2, given["stem"], config.norm_rows)
    x = nn.max_pool(nn.relu(x), 3, stride=2, padding="same")
    used = []
    for k, (p, of, s) in enumerate(
        zip(params["blocks"], config.layout, given["blocks"], strict=True)
    ):
        with mark_layer(k):
            x, found = block(p, x, of.stride, s, config.norm_rows)
        used.append(found)
    return part.dense(params["head"], np.mean(x, axis=(1, 2))), {"stem": stem, "blocks": used}


def loss(
    params: Params,
    batch: dict[str, Any],
    config: WideResNetConfig,
    statistics: Params | None = None,
) -> tuple[Any, Params]:
    """Mean cross entropy of `batch["labels"]` (batch,) given `batch["images"]`, and statistics."""
    found, used = logits(params, batch["images"], config, statistics)
    return np.mean(nn.cross_entropy(found, batch["labels"])), used


def init(
    config: WideResNetConfig, optimizer: Optimizer, loss_scale: LossScale | None = None
) -> Callable[[Any], State]:
    """`init(seed)` of the whole state, with the moving averages as `statistics`.

    Args:
        loss_scale: as `train_step` gets it.
    """
    training = Training(config.precision, loss_scale=loss_scale)
    of_params = initial_state(lambda seed: init_params(config, seed), optimizer, training)
    return lambda seed: {**of_params(seed), "statistics": init_statistics(config)}


def train_step(
    config: WideResNetConfig, optimizer: Optimizer, **options: Any
) -> Callable[..., tuple[State, Metrics]]:
    """`train_step(state, batch, learning_rate=None)`; a batch is `{"images": ..., "labels": ...}`.

    Without `config.norm_rows` norms take the statistics of the step's whole batch, so a step has
    one microbatch.

    Args:
        options: `clip`, `gradients` and `loss_scale`, as `Training` has them.
    """

    def averages(state: State, found: Params) -> State:
        def moved(old: Any, new: Any) -> Any:
            return MOMENTUM * old + (1 - MOMENTUM) * new

        return {"statistics": tree_map(moved, state["statistics"], found)}

    training = Training(config.precision, **options)
    whole = lambda params, batch, step: loss(params, batch, config)  # noqa: E731
    return make_train_step(whole, optimizer, training, averages)


def eval_step(config: WideResNetConfig) -> Callable[[State, dict[str, Any]], Metrics]:
    """`eval_step(state, batch)`: the loss by the moving averages."""

    def evaluate(state: State, batch: dict[str, Any]) -> Metrics:
        params = cast(state["params"], config.precision)
        return {"loss": loss(params, batch, config, state["statistics"])[0]}

    return evaluate
