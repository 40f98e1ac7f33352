"""What preferences say of a user's targets, of items that may be soft targets, and of negatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import ragged
from ...packed.score_topk import ordered
from .diffusion import Histories, PreferenceDiffusion
from .told import Told


class Tables(NamedTuple):
    """Of U users, computed once.

    Attributes:
        weights: float ``[U, L]``, of each of the last L training targets, counted from the end.
        candidates: int32 ``[U, C]``, items that may be soft targets.
        pool: int32 ``[U, P]``, items that may be negatives, behind the last of which there is 0.
        sizes: int64 ``[U]``, how many negatives there are of each.
    """

    weights: Tensor
    candidates: Tensor
    pool: Tensor
    sizes: Tensor


def tables(
    model: PreferenceDiffusion, histories: Histories, spared: ragged.Jagged | None, config: Any
) -> Tables:
    """For all users, some at a time; the preferences of all are never kept.

    Args:
        model: trained.
        histories: of training.
        spared: packed, items of each user that are no negatives; None: there are no negatives.
        config: a PDRec's.
    """
    device = model.read.device
    histories = histories.to(device).in_dtype(model.read.dtype)
    parts = []
    users = torch.arange(histories.number, device=device)
    told = Told(f"what they prefer, of {histories.number:,} users")
    for some in users.split(config.preference_batch):
        x0 = histories.x0(some, config.num_items)
        preferences = model.preferences(x0)
        weights = target_weights(*targets_of(preferences, histories, some, config), config)
        may = preferences.masked_fill(x0 > 0, float("-inf")) if config.exclude_observed else (
            preferences
        )
        _, candidates = ordered(may[:, 1:], config.candidates)
        pool, sizes = some.new_zeros(some.shape[0], 1), torch.zeros_like(some)
        if spared is not None:
            values, offsets = ragged.rows(spared, int(some[0]), int(some[-1]) + 1)
            met = torch.zeros_like(x0, dtype=torch.bool)
            owner = ragged.sequence_ids(offsets, values.shape[0])
            met[owner.to(device), values.to(device)] = True
            pool, sizes = band(preferences[:, 1:], met[:, 1:], config.band_begin, config.band_end)
        parts.append(Tables(weights, (candidates + 1).int(), pool.int(), sizes))
        if told.due:
            told.tell(f"{int(some[-1]) + 1:,} of {histories.number:,} users")
    width = max(part.pool.shape[1] for part in parts)
    pools = [torch.nn.functional.pad(p.pool, (0, width - p.pool.shape[1])) for p in parts]
    return Tables(
        torch.cat([part.weights for part in parts]), torch.cat([p.candidates for p in parts]),
        torch.cat(pools), torch.cat([part.sizes for part in parts]),
    )  # fmt: skip


def targets_of(
    preferences: Tensor, histories: Histories, users: Tensor, config: Any
) -> tuple[Tensor, Tensor]:
    """Preferences ``[R, L]`` for the last L training targets, from the last one back, and bool
    ``[R, L]``, which of them there are; a history's first item is no target."""
    back = torch.arange(config.max_length, device=users.device)
    ends = histories.offsets[1:][users][:, None]
    there = back < ragged.lengths(histories.offsets)[users][:, None] - 1
    at = (ends - 1 - back).clamp(min=0, max=max(0, histories.values.shape[0] - 1))
    items = torch.where(there, histories.values[at], 0)
    return preferences.gather(1, items), there


def target_weights(preferences: Tensor, there: Tensor, config: Any) -> Tensor:
    """What the loss of each target counts, ``[R, L]``, 0 where there is none.

    Of a user's n targets with preferences s, from a floor below the least of them to the greatest
    brought to 0..1 as u, and with ranks 1 (lowest) .. n:

        w = scale min(limit, (1 - omega) u n / sum u + omega rank / n)

    Args:
        preferences: s ``[R, L]``.
        there: bool ``[R, L]``.
        config: rank_share (omega), weight_limit, weight_scale.
    """
    number = there.sum(1, keepdim=True).clamp(min=1)
    least = preferences.masked_fill(~there, float("inf")).amin(1, keepdim=True)
    greatest = preferences.masked_fill(~there, float("-inf")).amax(1, keepdim=True)
    floor = torch.where(least > 0, 0.5 * least, 1.5 * least)
    spread = greatest - floor
    # Targets that are all of preference 0 are equally preferred.
    level = torch.where(spread > 0, (preferences - floor) / spread.clamp(min=1e-30), 1.0)
    level = torch.where(there, level, 0.0)
    order = preferences.masked_fill(~there, float("inf")).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(1, order.shape[1] + 1, device=order.device).expand_as(order)
    )
    own = level * number / level.sum(1, keepdim=True).clamp(min=1e-30)
    omega = config.rank_share
    weight = ((1 - omega) * own + omega * rank / number).clamp(0, config.weight_limit)
    return torch.where(there, config.weight_scale * weight, 0.0)


def band(preferences: Tensor, met: Tensor, begin: float, end: float) -> tuple[Tensor, Tensor]:
    """Items that were not met from the share ``begin`` to the share ``end`` of their order, most
    preferred first: int64 ``[R, P]``, ids from 1, 0 behind the last; and int64 ``[R]``, how many.

    Args:
        preferences: ``[R, V]``.
        met: bool ``[R, V]``.
        begin, end: 0 <= begin < end <= 1; at least one item lies between.
    """
    lacking = (~met).sum(1)
    first = (lacking.double() * begin).floor().long()
    sizes = (lacking.double() * end).ceil().long() - first
    order = preferences.masked_fill(met, float("-inf")).argsort(
        dim=1, descending=True, stable=True
    )
    place = torch.arange(max(1, int(sizes.max())), device=order.device)
    at = (first[:, None] + place).clamp(max=order.shape[1] - 1)
    return torch.where(place < sizes[:, None], order.gather(1, at) + 1, 0), sizes
