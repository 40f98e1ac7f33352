"""A trainer of Lightning, which comes under two names, that does a step and nothing beside it."""

from __future__ import annotations

import logging
import warnings
from types import ModuleType
from typing import Any

from .settings import Clock, Settings


def trainer(
    package: ModuleType, clock: Clock, settings: Settings, steps: int | None, epochs: int
) -> Any:
    """Of ``lightning`` or ``pytorch_lightning``; ticks before the first step and after each."""
    logging.getLogger(package.__name__).setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")

    class Ticks(package.Callback):  # type: ignore[misc, name-defined]
        def on_train_start(self, trainer: Any, module: Any) -> None:
            clock.tick()

        def on_train_batch_end(self, *given: Any) -> None:
            clock.tick()

        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            return self  # RecTools copies the trainer, and the clock is one

    return package.Trainer(
        accelerator="cpu", max_steps=-1 if steps is None else steps,
        max_epochs=epochs if steps is None else None, gradient_clip_val=settings.clip,
        callbacks=[Ticks()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
