"""A model's graph for export: its users' vectors, or the k best items of them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConfigError
from ..models.base import SequenceModel, UserGraph
from ..models.evaluating import evaluating
from ..models.featured import plain_items
from ..models.memory import Memory
from .inputs import Guarded

# What a graph may consist of: it then loads wherever torch or a runtime for ONNX does.
_NAMESPACES = ("aten", "higher_order", "prim", "prims")


class RankingModel(nn.Module):
    """The k best items and their scores, of padded histories.

    Args:
        model: in whatever mode; its scores are products of vectors.
        k: 1..num_items.
        exclude_seen: take a second input, what must not come again.

    Raises:
        ConfigError: the model cannot be exported, or k is out of range.
    """

    def __init__(self, model: SequenceModel, *, k: int, exclude_seen: bool) -> None:
        super().__init__()
        if not 1 <= k <= model.config.num_items:
            raise ConfigError(f"k={k} must lie in 1..{model.config.num_items}, the number of items")
        self.model = plain_items(evaluating(model))
        if self.model.memory is not None and self.model.memory.widest == 0:
            self.model.memory = None  # of this view; torch.export cannot save tensors of nothing
        self.user_model = self.model.user_graph()
        self.k, self.exclude_seen = k, exclude_seen

    def forward(self, item_ids: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Items int64 ``[B, k]`` and scores ``[B, k]``, falling, -inf where none is left.

        ``item_ids`` as in :class:`UserGraph`; ``seen`` int64 ``[B, S]``, padded with 0.
        """
        user = self.user_model(item_ids)
        scores = F.linear(user, self.model.table())
        if self.model.memory is not None:
            scores = scores + remembered(self.model.memory, item_ids, scores)
        if self.exclude_seen:
            assert seen is not None
            scores = scores.scatter(1, seen, float("-inf"))
        best = torch.topk(scores[:, 1:], self.k, dim=-1)
        return best.indices + 1, best.values


def remembered(memory: Memory, item_ids: Tensor, scores: Tensor) -> Tensor:
    """What a memory adds to scores ``[B, V+1]``, by gather and scatter; ids as in
    :class:`UserGraph`."""
    if memory.widest == 0:
        return torch.zeros_like(scores)
    place = torch.arange(item_ids.shape[1], device=item_ids.device)
    back = ((item_ids != 0).sum(1, keepdim=True) - 1 - place).clamp(min=0)
    begin, end = memory.rows[item_ids], memory.rows[item_ids + 1]  # padding has no neighbours
    lane = torch.arange(memory.widest, device=item_ids.device)
    at = begin[..., None] + lane
    there = at < end[..., None]
    at = at.clamp(max=memory.neighbours.shape[0] - 1)
    decay = torch.tensor(memory.decay, dtype=scores.dtype, device=item_ids.device)
    fading = decay ** back.to(scores.dtype)
    added = torch.where(there, memory.weights[at] * fading[..., None], 0.0)
    places = memory.neighbours[at].long()
    sums = torch.zeros_like(scores).scatter_add(1, places.flatten(1), added.flatten(1))
    return memory.alpha * torch.log1p(memory.gamma * sums)


def capture(
    module: UserGraph | RankingModel, longest: int, *, max_batch: int, num_items: int
) -> torch.export.ExportedProgram:
    """``torch.export`` of one of the two, for 1..max_batch users of 1..longest items, ids
    1..num_items, behind a check of what it is given (:class:`.inputs.Guarded`).

    Raises:
        ConfigError: ``max_batch`` is under 2.
    """
    if max_batch < 2:
        raise ConfigError(f"max_batch={max_batch} must be at least 2")
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    inputs = [torch.ones(2, min(2, longest), dtype=torch.int64, device=_device(module))]
    # A length that cannot vary is not dynamic.
    free = {1: torch.export.Dim("length", min=1, max=longest)} if longest > 1 else {}
    dimensions = [{0: batch, **free}]
    if isinstance(module, RankingModel) and module.exclude_seen:
        inputs.append(torch.ones_like(inputs[0]).repeat(1, 3))
        dimensions.append({0: batch, 1: torch.export.Dim("seen", min=1)})
    with torch.no_grad():
        guarded = Guarded(module, num_items=num_items, longest=longest, max_batch=max_batch)
        shapes = dict(zip(("item_ids", "seen"), dimensions, strict=False))
        program = torch.export.export(guarded.eval(), tuple(inputs), dynamic_shapes=shapes)
    foreign = {
        str(node.target)
        for graph in program.graph_module.modules()
        if isinstance(graph, torch.fx.GraphModule)
        for node in graph.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and node.target.namespace not in _NAMESPACES
    }
    assert not foreign, f"the graph is not of ATen's ops alone: {sorted(foreign)}"
    return program


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
