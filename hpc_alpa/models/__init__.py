"""Models in plain NumPy: a config, `init`, `loss`, and the paper's sizes as a table.

    model = GPTConfig(layers=2, hidden=48, heads=6, sequence=32, vocabulary=256)
    optimizer = adamw(AdamW(learning_rate=1e-3))
    state = gpt.init(model, optimizer)(seed=0)
    state, metrics = gpt.train_step(model, optimizer)(state, batch)

A state is `{"params": ..., "optimizer": ..., "step": 0}`; that of a model with batch norm has the
moving averages of its norms too, as `"statistics"`, and that of a float16 model its `"loss_scale"`.
The steps run as they stand on plain arrays, and through `hpc_alpa.parallelize` on all ranks.
"""

from hpc_alpa.models import bert, flops, gpt, layers, mlp, moe, wide_resnet
from hpc_alpa.models.bert import BERTConfig
from hpc_alpa.models.gpt import GPTConfig
from hpc_alpa.models.mlp import MLPConfig
from hpc_alpa.models.moe import MoEConfig
from hpc_alpa.models.optimizers import SGD, Adafactor, AdamW, Optimizer, adafactor, adamw, sgd
from hpc_alpa.models.paper import PaperModel, paper_model, paper_names
from hpc_alpa.models.precision import LossScale
from hpc_alpa.models.training import Training, initial_state, make_train_step
from hpc_alpa.models.wide_resnet import WideResNetConfig

__all__ = [
    "SGD", "Adafactor", "AdamW", "BERTConfig", "GPTConfig", "LossScale", "MLPConfig", "MoEConfig",
    "Optimizer", "PaperModel", "Training", "WideResNetConfig", "adafactor", "adamw", "bert",
    "flops", "gpt", "initial_state", "layers", "make_train_step", "mlp", "moe", "paper_model",
    "paper_names", "sgd", "wide_resnet",
]  # fmt: skip
