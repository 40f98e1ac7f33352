"""A trained model with more items than it was trained with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..config import ConfigError
from ..data import Split
from .base import SequenceModel
from .embedded import EmbeddingModel
from .featured import FeaturedItems
from .memory import Memory


def take_over(model: SequenceModel, trained: SequenceModel) -> None:
    """Give a freshly built model the weights of a trained one that knows fewer items, or as many.

    What has a row for each item (dimension 0 is V+1; of items with features, K for those trained
    and C for values of categories) keeps the old rows bit for bit, behind which the fresh model's
    own, as its initialiser drew them, stay. All else is copied.

    Raises:
        ConfigError: as :func:`check_growth`.
    """
    check_growth(model, trained)
    old, state = trained.state_dict(), model.state_dict()
    for name, fresh in state.items():
        found = old[name].to(fresh.device)
        longer = fresh.shape != found.shape
        state[name] = torch.cat([found, fresh[found.shape[0] :]]) if longer else found
    model.load_state_dict(state)


def check_growth(model: SequenceModel, trained: SequenceModel) -> None:
    """Whether a model, which may be of shapes alone, can take over a trained one's weights.

    Raises:
        ConfigError: they are of different kinds, or a tensor is of another shape than the number
            of items explains.
    """
    if type(model) is not type(trained):
        raise ConfigError(
            f"a {type(model).__name__} cannot go on from a {type(trained).__name__}"
        )
    old, state = trained.state_dict(), model.state_dict()
    growing = list(zip(_rows(trained), _rows(model), strict=True))
    for name in dict.fromkeys((*state, *old)):
        here, there = (list(tensors[name].shape) if name in tensors else None
                       for tensors in (state, old))  # fmt: skip
        grown = here and there and (there[0], here[0]) in growing and there[1:] == here[1:]
        if here != there and not grown:
            raise ConfigError(
                f"{type(model).__name__}: {name} is {here or 'not there'} and was "
                f"{there or 'not there'} in the run to go on from; keep the sizes as they are"
            )


def _rows(model: SequenceModel) -> list[int]:
    """How many rows a tensor may have that has one for each of something."""
    features = model.item_features
    of_features = [0, 0] if features is None else [features.trained, len(features.rows.labels)]
    return [model.config.num_items + 1, *of_features]


@torch.no_grad()
def begin_new_items(model: SequenceModel, known: int, split: Split) -> None:
    """Give items behind the first ``known`` the mean of the items that they come with.

    Of the training part's counts (:mod:`.transitions`), by their weights. An item that comes with
    none of the known ones keeps what the initialiser drew, and so do models without item vectors.
    Where items have features, a new one begins where these put it.

    Args:
        model: freshly built, with the weights of a trained one.
        known: how many items that one had; of items with features, that it had trained.
        split: of all interactions.
    """
    if not isinstance(model, EmbeddingModel) or not isinstance(model.item_embedding, nn.Embedding):
        return
    if isinstance(model.item_embedding, FeaturedItems):
        items = model.item_embedding
        items.ids[known:] = items.expected(known)[known : items.trained]
        return
    table = model.item_embedding.weight
    if table.shape[0] == known + 1:
        return
    memory = Memory.of(
        *split.inputs("train"), model.config.num_items, max_length=model.config.max_length
    )
    vectors, found = by_neighbours(table[: known + 1], memory)
    table[known + 1 :][found] = vectors[found]


def by_neighbours(table: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
    """A vector for each item behind the table's last one: the mean of those it comes with.

    Args:
        table: ``[K+1, D]`` of the known items.
        memory: of all V items.

    Returns:
        ``[V-K, D]``, of items that come with no known one the mean of all; and bool ``[V-K]``,
        which do.
    """
    known = table.shape[0]
    starts = memory.rows[known:] - memory.rows[known]
    others, weights = memory.neighbours[memory.rows[known] :], memory.weights[memory.rows[known] :]
    there = others < known
    # Of the entries that lie there, where each new item's begin.
    counted = torch.cat([there.new_zeros(1, dtype=torch.int64), there.cumsum(0)])[starts]
    others, weights = others[there].long(), weights[there].to(table.dtype)
    new = counted.shape[0] - 1
    owner = torch.repeat_interleave(torch.arange(new), counted.diff())
    sums = weights.new_zeros(new).index_add_(0, owner, weights)
    found = sums > 0
    vectors = F.embedding_bag(
        others, table, counted, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    vectors /= sums[:, None]
    vectors[~found] = table[1:].mean(0)
    return vectors, found
