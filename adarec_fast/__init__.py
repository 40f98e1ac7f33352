"""ADARec (AAAI 2026), fast and faithful.

Importing this package compiles nothing and needs no GPU, no triton and no compiler.
"""

from .config import ADARecConfig, ConfigError, TrainConfig
from .data import DataError, InteractionData, Split, TrainingBatches, load, synthetic
from .model import ADARec
from .ops import BackendError
from .outputs import ADARecOutput, Hierarchy, LossOutput
from .pretrained import CheckpointError
from .recommender import Ranking, Recommender

__version__ = "0.1.0"

__all__ = [
    "ADARec",
    "ADARecConfig",
    "ADARecOutput",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Hierarchy",
    "InteractionData",
    "LossOutput",
    "Ranking",
    "Recommender",
    "Split",
    "TrainConfig",
    "TrainingBatches",
    "load",
    "synthetic",
]
