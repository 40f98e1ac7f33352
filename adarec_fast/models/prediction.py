"""Eq. 13 with its targets softened as a model's configuration says, by one worker or by several."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor, nn

from .. import ops
from .soft_targets import SoftTargets

if TYPE_CHECKING:
    from ..distributed.items import ShardedItems
    from ..distributed.share import Share


class PredictionSettings(Protocol):
    """The fields of a model's configuration that are asked for."""

    @property
    def supervision(self) -> str: ...
    @property
    def backend(self) -> str: ...
    @property
    def label_smoothing(self) -> float: ...
    @property
    def transition_smoothing(self) -> float: ...


def prediction_loss(
    config: PredictionSettings,
    user: Tensor,
    items: nn.Embedding | ShardedItems,
    table: Tensor | None,
    targets: Tensor,
    soft: SoftTargets | None,
    share: Share | None,
) -> Tensor:
    """The mean cross entropy over the rows that have a target.

    Args:
        config: which smoothing, and who runs the op.
        user: ``[R, D]``.
        items: the item table ``[V+1, D]``, or a worker's part of it.
        table: what the products are taken with where that is not the parameter itself.
        targets: int64 ``[R]``; rows of target 0 are left out.
        soft: what ``transition_smoothing`` shares the targets' weight with.
        share: where these rows lie in a batch that several workers share.

    Raises:
        ValueError: ``transition_smoothing`` without its counts.
    """
    shared = config.transition_smoothing
    if shared and soft is None:
        raise ValueError(
            f"transition_smoothing={shared} needs the counts of the training histories; call "
            "begin_training(split) before the first loss, as train does"
        )
    if not isinstance(items, nn.Embedding):
        assert share is not None
        everywhere = config.supervision == "all"
        return share.cross_entropy(
            items, user, targets, config.label_smoothing, everywhere=everywhere
        )
    table = items.weight if table is None else table
    loss = ops.linear_cross_entropy(
        user, table, targets, label_smoothing=config.label_smoothing, backend=config.backend
    )
    if soft is None:
        return loss
    return loss + shared * soft.lead(user, table, targets)
