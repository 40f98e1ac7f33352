"""What an epoch reaches on the validation part."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ..config import TrainConfig, read_cutoffs
from ..data import Split
from ..models.base import SequenceModel
from ..ranking.evaluation import evaluate

if TYPE_CHECKING:
    from ..distributed import Workers

# The best epoch is that of the best NDCG at this cut-off.
_SELECTION = 20
SELECTED_BY = f"NDCG@{_SELECTION}"


def validated(
    model: SequenceModel, split: Split, config: TrainConfig, workers: Workers | None
) -> dict[str, Any]:
    """A log line's part: ``valid``, with :data:`SELECTED_BY` in it, ``valid_sparse`` where there
    are such users, what the model tells, and ``valid_seconds``."""
    begun = time.perf_counter()
    result = evaluate(
        model,
        split,
        "valid",
        ks=sorted({*read_cutoffs(config.ks), _SELECTION}),
        seen_mask=config.seen_mask,
        batch_size=config.evaluation_batch_size,
        intents=False,
        workers=workers,
    )
    metrics: dict[str, Any] = {"valid": result.overall}
    if result.sparse is not None:
        metrics["valid_sparse"] = result.sparse
    metrics |= {f"valid_{name}": value for name, value in result.diagnostics.items()}
    metrics["valid_seconds"] = time.perf_counter() - begun
    return metrics
