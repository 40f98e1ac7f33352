"""Validated configurations: what all models' have, and the training run's.

All are frozen pydantic models. Unknown keys are errors that suggest the right key, values out of
range name the field and what would be right, and all go to JSON or YAML and back unchanged.
"""

from .base import BaseConfig, ConfigError, listed_fields, read_mapping, unknown_keys
from .data import DataConfig, absolute_paths, absolute_source, file_names
from .model import Backend, ModelConfig, Precision, Supervision, check_heads
from .train import LOGGERS, TrainConfig, loggers_of, read_cutoffs, training_precision

__all__ = [
    "LOGGERS",
    "Backend",
    "BaseConfig",
    "ConfigError",
    "DataConfig",
    "ModelConfig",
    "Precision",
    "Supervision",
    "TrainConfig",
    "absolute_paths",
    "absolute_source",
    "check_heads",
    "file_names",
    "listed_fields",
    "loggers_of",
    "read_cutoffs",
    "read_mapping",
    "training_precision",
    "unknown_keys",
]
