"""Train a diffusion view for a Qwen3 base: `train(TrainOptions(...))`."""

from .options import TrainOptions
from .trainer import Result, train

__all__ = ["Result", "TrainOptions", "train"]
