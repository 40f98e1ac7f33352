"""ADARec (AAAI 2026), fast and faithful.

Importing this package compiles nothing and needs no GPU, no triton and no compiler. Names and
submodules are loaded when they are first used, so ``adarec-fast --help`` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_HOME = {
    "ADARec": "model",
    "ADARecConfig": "config",
    "ADARecOutput": "outputs",
    "BackendError": "ops",
    "CheckpointError": "pretrained",
    "ConfigError": "config",
    "DataError": "data",
    "Hierarchy": "outputs",
    "InteractionData": "data",
    "LossOutput": "outputs",
    "Ranking": "recommender",
    "Recommender": "recommender",
    "Split": "data",
    "TrainConfig": "config",
    "TrainingBatches": "data",
    "load": "data",
    "synthetic": "data",
}


# A type checker that saw __getattr__ would let every misspelt name pass.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        """A public name from its module, or a submodule, loaded now (PEP 562)."""
        if name in _HOME:
            value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
            globals()[name] = value
            return value
        if not name.startswith("_"):
            full = f"{__name__}.{name}"
            try:
                return importlib.import_module(full)
            except ModuleNotFoundError as error:
                if error.name != full:
                    raise
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
