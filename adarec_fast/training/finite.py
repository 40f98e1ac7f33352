"""Whether what a run holds is finite."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from ..models.base import SequenceModel

if TYPE_CHECKING:
    from ..distributed import Workers


def not_finite(
    model: SequenceModel, stepper: Any, device: torch.device, workers: Workers | None
) -> str | None:
    """Which of the weights and Adam's state holds a value that is infinite or NaN, in words; None
    if neither does. Waits for the device.

    Each worker looks at what it holds, and all come to the same answer.
    """
    for part, tensors in (
        ("the weights", model.state_dict()),
        ("Adam's state", stepper.own_state_tensors()),
    ):
        infinite = [~t.isfinite().all() for t in tensors.values() if t.is_floating_point()]
        found = torch.zeros((), dtype=torch.int64, device=device)
        for flag in infinite:
            found += flag.to(device)
        if workers is not None:
            found = workers.sum(found)
            workers.meet()
        if bool(found):
            return part
    return None
