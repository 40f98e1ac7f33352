"""ADARec (AAAI 2026), fast and faithful.

Importing this package compiles nothing and needs no GPU, no triton and no compiler. Names and
submodules are loaded when they are first used, so ``adarec-fast --help`` does not wait for torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from .version import __version__ as __version__

if TYPE_CHECKING:
    from .config import ConfigError, TrainConfig
    from .data import DataError, InteractionData, Split, TrainingBatches, load, synthetic
    from .models.adarec.config import ADARecConfig
    from .models.adarec.model import ADARec
    from .models.adarec.outputs import ADARecOutput, Hierarchy
    from .models.answers import Recommendation, Recommendations
    from .models.base import LossOutput
    from .models.pretrained import CheckpointError
    from .ops import BackendError
    from .ranking.asking import Explanation
    from .ranking.recommender import Ranking, Recommender

__all__ = [
    "ADARec",
    "ADARecConfig",
    "ADARecOutput",
    "BackendError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "Explanation",
    "Hierarchy",
    "InteractionData",
    "LossOutput",
    "Ranking",
    "Recommendation",
    "Recommendations",
    "Recommender",
    "Split",
    "TrainConfig",
    "TrainingBatches",
    "load",
    "synthetic",
]

_HOME = {
    "ADARec": "models.adarec.model",
    "ADARecConfig": "models.adarec.config",
    "ADARecOutput": "models.adarec.outputs",
    "BackendError": "ops",
    "CheckpointError": "models.pretrained",
    "ConfigError": "config",
    "DataError": "data",
    "Explanation": "ranking.asking",
    "Hierarchy": "models.adarec.outputs",
    "InteractionData": "data",
    "LossOutput": "models.base",
    "Ranking": "ranking.recommender",
    "Recommendation": "models.answers",
    "Recommendations": "models.answers",
    "Recommender": "ranking.recommender",
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
