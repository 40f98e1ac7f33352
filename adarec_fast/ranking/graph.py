"""Ranking as a module of tensors alone, for ``torch.export`` and ``torch.compile``."""

from __future__ import annotations

from torch import Tensor, nn

from .. import ops, ragged
from ..histories import check_k
from ..models.base import SequenceModel
from ..models.evaluating import evaluating


class _Ranker(nn.Module):
    """What :func:`exportable` returns."""

    def __init__(self, model: SequenceModel, k: int) -> None:
        super().__init__()
        self.model, self.k = model, k

    def forward(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        model, config = self.model, self.model.config
        read = ragged.keep_last_in_place(values, offsets, config.max_length)
        user, items = model.represent(*read), model.table()
        if model.memory is None:
            scores, best = ops.score_topk(
                user, items, values, offsets, self.k, backend=config.backend
            )
        else:
            scores, best = ops.memory_topk(
                user, items, *read, values, offsets, model.memory.reads(), self.k,
                max_length=config.max_length, backend=config.backend,
            )  # fmt: skip
        return best, scores


def exportable(model: SequenceModel, *, k: int = 20) -> nn.Module:
    """The inference graph alone, for ``torch.export`` and ``torch.compile(fullgraph=True)``.

    Args:
        model: in whatever mode, which stays as it is.
        k: items a user, 1..num_items.

    Returns:
        A module from values ``[N]`` and offsets ``[B+1]``, int64, to unseen items ``[B, k]`` and
        their scores; of longer histories the last ``max_length`` items are read, and all of them
        count as seen. It checks nothing that would have to be read from the tensors. N and B may
        be dynamic, though torch exports B = 1 apart from greater ones. An exported program needs
        ``adarec_fast.ops`` imported, since its ops are those.
    """
    if not isinstance(model, SequenceModel):
        raise ValueError(f"model is a {type(model).__name__}; it must be a SequenceModel")
    return _Ranker(evaluating(model), check_k(k, model.config.num_items)).eval()
