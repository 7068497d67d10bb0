"""Moving values between meshes."""

from hpc_alpa.reshard.task import STRATEGIES, Piece, ReshardTask, local, overlap, reshard, tiles

__all__ = ["STRATEGIES", "Piece", "ReshardTask", "local", "overlap", "reshard", "tiles"]
