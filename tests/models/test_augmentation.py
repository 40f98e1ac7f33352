"""Views of histories: what each operator keeps, by whom it is chosen, and that shares agree."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from adarec_fast import ragged, rng
from adarec_fast.models.blocks.augmentation import (
    CROP,
    MASK,
    REORDER,
    Ratios,
    Views,
    _chosen,
    augmented,
    counts,
)

RATIOS = Ratios()
# n -> crop, mask, reorder, of SYSTEMS' published operators.
COUNTS = {
    1: (0, 0, 0), 2: (0, 1, 0), 3: (0, 2, 0), 4: (0, 2, 0), 5: (1, 3, 1), 9: (1, 6, 1),
    10: (2, 7, 2), 11: (2, 7, 2), 20: (4, 14, 4), 50: (10, 35, 10),
}  # fmt: skip


def histories(*sizes: int) -> tuple[Tensor, Tensor]:
    """Items that tell their history and place: 100 b + place + 1."""
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    owner = ragged.sequence_ids(offsets, int(offsets[-1]))
    return 100 * owner + ragged.positions(offsets, owner.shape[0]) + 1, offsets


def seed(value: int = 3) -> Tensor:
    return rng.at_place(rng.spread_seed(value))


def rows(views: Views) -> list[tuple[list[int], list[int]]]:
    """Items and positions from the end of each view."""
    bounds = views.offsets.tolist()
    return [
        (views.values[a:b].tolist(), views.places[a:b].tolist())
        for a, b in pairwise(bounds)
    ]


def test_counts_are_those_of_doubles() -> None:
    for n, expected in COUNTS.items():
        assert tuple(int(counts(torch.tensor(n), ratio)) for ratio in RATIOS) == expected


def test_operators_are_equally_likely() -> None:
    number = 15_000
    kinds, _, _ = _chosen(seed(), torch.arange(number), torch.full((number, 1), 5), (0, 1), RATIOS)
    share = torch.bincount(kinds.flatten(), minlength=3) / (2 * number)
    assert (share - 1 / 3).abs().max() < 3 * math.sqrt(2 / 9 / (2 * number))
    # The two views choose by themselves.
    assert float((kinds[:, 0] == kinds[:, 1]).float().mean()) == pytest.approx(1 / 3, abs=0.02)


def test_every_operator_does_what_it_says() -> None:
    sizes = [n for n in COUNTS for _ in range(60)]
    values, offsets = histories(*sizes)
    draws, levels = seed(), (0, 1)
    found = rows(augmented(values, offsets, draws, levels, RATIOS))
    kinds, windows, _ = _chosen(
        draws, torch.arange(len(sizes)), torch.tensor(sizes)[:, None], levels, RATIOS
    )
    shuffled = 0
    for number, (items, places) in enumerate(found):
        history, view = divmod(number, 2)
        n, kind = sizes[history], int(kinds[history, view])
        whole = list(range(100 * history + 1, 100 * history + n + 1))
        m = COUNTS[n][kind]
        if kind == CROP:
            begin = items[0] - whole[0]
            assert items == whole[begin : begin + max(m, 1)]
            assert m == 0 or items[-1] != whole[-1]
        elif kind == MASK:
            assert items == sorted(items)
            assert len(items) == n - m
            assert places == [whole[-1] - item for item in items]
        else:
            assert sorted(items) == whole
            moved = [i for i in range(n) if items[i] != whole[i]]
            assert not moved or moved[-1] - moved[0] < m
            assert items[-1] == whole[-1]
            shuffled += bool(moved)
        if kind != MASK:
            assert places == list(range(len(items)))[::-1]
        assert int(windows[history, view]) == (max(m, 1) if kind == CROP else m)
    assert shuffled > 20


def test_windows_are_shuffled_uniformly() -> None:
    values, offsets = histories(*[10] * 3_000)
    first = torch.zeros(10, dtype=torch.int64)
    swapped = total = 0
    found = rows(augmented(values, offsets, seed(), (0,), Ratios(0.0, 0.0, 0.2)))
    for items, _ in found:
        if len(items) == 10 and items != sorted(items):
            swapped += 1
            first[next(i for i in range(10) if items[i] != items[0] - items[0] % 100 + i + 1)] += 1
    kinds, _, _ = _chosen(
        seed(), torch.arange(3_000), torch.full((3_000, 1), 10), (0,), Ratios(0.0, 0.0, 0.2)
    )
    total = int((kinds == REORDER).sum())
    assert swapped == pytest.approx(total / 2, abs=4 * math.sqrt(total / 4))
    assert first[8] == 0  # no window reaches the last item
    assert bool((first[:8] > 0).all())


def test_views_go_by_the_draw_and_equal_levels_agree() -> None:
    values, offsets = histories(5, 9, 20, 1, 7)
    views = rows(augmented(values, offsets, seed(), (0, 1, 0, 1), RATIOS))
    assert views[0::4] == views[2::4]
    assert views[1::4] == views[3::4]
    two = rows(augmented(values, offsets, seed(), (0, 1), RATIOS))
    assert [v for i, v in enumerate(views) if i % 4 < 2] == two
    assert rows(augmented(values, offsets, seed(4), (0, 1), RATIOS)) != two


def test_a_share_and_capacity_change_nothing() -> None:
    values, offsets = histories(5, 9, 20, 1, 7)
    whole = rows(augmented(values, offsets, seed(), (0, 1), RATIOS))
    place = torch.stack([offsets[2], torch.tensor(2)])
    share = augmented(
        values[offsets[2] :], offsets[2:] - offsets[2],
        rng.at_place(rng.spread_seed(3), place), (0, 1), RATIOS,
    )  # fmt: skip
    assert rows(share) == whole[4:]
    spare = torch.cat([values, torch.zeros(6, dtype=torch.int64)])
    assert rows(augmented(spare, offsets, seed(), (0, 1), RATIOS)) == whole
    nothing = augmented(values[:0], offsets[:1], seed(), (0, 1), RATIOS)
    assert nothing.offsets.tolist() == [0]


def test_operators_with_a_mask_that_is_read() -> None:
    """IOCRec's: a masked item stays as a token, and windows may reach the last item."""
    sizes = [n for n in COUNTS for _ in range(60)]
    values, offsets = histories(*sizes)
    draws, levels, mask = seed(), (0, 1), 10**6
    found = rows(augmented(values, offsets, draws, levels, RATIOS, mask_id=mask))
    size = torch.tensor(sizes)[:, None]
    kinds, _, starts = _chosen(draws, torch.arange(len(sizes)), size, levels, RATIOS, True)
    reached = [0, 0, 0]
    for number, (items, places) in enumerate(found):
        history, view = divmod(number, 2)
        n, kind = sizes[history], int(kinds[history, view])
        whole = list(range(100 * history + 1, 100 * history + n + 1))
        m = COUNTS[n][kind]
        assert places == list(range(len(items)))[::-1]
        if kind == CROP:
            begin = items[0] - whole[0]
            assert begin == int(starts[history, view])
            assert items == whole[begin : begin + max(m, 1)]
            reached[kind] += items[-1] == whole[-1]
        elif kind == MASK:
            assert sum(item == mask for item in items) == m
            assert all(item in (mask, own) for item, own in zip(items, whole, strict=True))
            reached[kind] += items[-1] == mask
        else:
            assert sorted(items) == whole
            moved = [i for i in range(n) if items[i] != whole[i]]
            assert not moved or moved[-1] - moved[0] < m
            reached[kind] += items[-1] != whole[-1]
    assert min(reached) > 0
