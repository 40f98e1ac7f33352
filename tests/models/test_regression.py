"""Item-to-item weights by ridge regression, beside the definition in float64."""

from __future__ import annotations

import pytest
import torch

from adarec_fast import synthetic
from adarec_fast.data import Split
from adarec_fast.models import regression as module
from adarec_fast.models.memory import Memory
from adarec_fast.models.regression import Ridge, regression

ITEMS = 9
HISTORIES = (
    torch.tensor([1, 2, 3, 2, 1, 4, 5, 5, 6, 1, 2, 7, 8, 3, 3, 3, 6]),
    torch.tensor([0, 5, 5, 9, 10, 17]),
)


def steps(ridge: Ridge) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t, the items that come next, and how much each of the steps counts."""
    xs, targets, counts = [], [], []
    values, offsets = HISTORIES
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        for history, count in (
            (values[begin:end].tolist(), 1.0), (values[begin:end].tolist()[::-1], ridge.backward)
        ):  # fmt: skip
            for t in range(1, len(history)):
                x = torch.zeros(ITEMS + 1, dtype=torch.float64)
                for back in range(1, min(t, ridge.window) + 1):
                    x[history[t - back]] += ridge.decay ** (back - 1)
                xs.append(x)
                targets.append(history[t])
                counts.append(count)
    return torch.stack(xs), torch.tensor(targets), torch.tensor(counts, dtype=torch.float64)


def defined(ridge: Ridge) -> torch.Tensor:
    """The weights ``[V+1, V+1]``, row: of the history, column: foretold."""
    x, targets, counts = steps(ridge)
    gram = x.T @ (counts[:, None] * x)
    found = torch.zeros(ITEMS + 1, ITEMS + 1, dtype=torch.float64)
    for j in range(1, ITEMS + 1):
        cross = x.T @ (counts * (targets == j))
        cross[j] = 0.0
        score = cross / gram.diagonal().clamp(min=1e-300).sqrt()
        best = score.argsort(descending=True, stable=True)[: ridge.inputs]
        best = best[cross[best] > 0]
        eye = torch.eye(best.numel(), dtype=torch.float64)
        system = gram[best][:, best] + ridge.penalty * eye
        found[best, j] = torch.linalg.solve(system, cross[best])
    return found.clamp(min=0)


def dense(ridge: Ridge, neighbours: int = 100) -> torch.Tensor:
    found = regression(*HISTORIES, ITEMS, ridge, neighbours)
    rows = torch.repeat_interleave(torch.arange(ITEMS + 1), found.rows.diff())
    matrix = torch.zeros(ITEMS + 1, ITEMS + 1, dtype=torch.float64)
    matrix[rows, found.items.long()] = found.weights.double()
    assert (found.weights > 0).all()
    assert found.rows[:2].tolist() == [0, 0]
    return matrix


@pytest.mark.parametrize("backward", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(
    "ridge",
    [
        Ridge(penalty=0.5, decay=0.9),
        Ridge(penalty=2.0, decay=1.0, window=2),
        Ridge(penalty=0.1, decay=0.5, window=1),
        Ridge(penalty=1.0, inputs=2),
    ],
    ids=["whole", "no-decay", "one-step", "two-inputs"],
)
def test_weights_are_those_of_the_definition(ridge: Ridge, backward: float) -> None:
    ridge = ridge._replace(backward=backward)
    wanted = defined(ridge)
    assert (wanted > 0).sum() > 8
    torch.testing.assert_close(dense(ridge), wanted, rtol=1e-6, atol=1e-9)


def test_a_row_keeps_its_largest() -> None:
    ridge = Ridge(penalty=0.5)
    wanted, found = defined(ridge), dense(ridge, 2)
    assert ((found > 0).sum(1) <= 2).all()
    for row, kept in zip(wanted, found, strict=True):
        torch.testing.assert_close(
            kept.sort(descending=True).values[:2], row.topk(2).values, rtol=1e-6, atol=1e-9
        )
    assert (wanted[found > 0] > 0).all()


def test_what_lies_in_memory_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    data = synthetic(num_users=60, num_items=40, seed=5)
    histories = Split(data).inputs("train")
    whole = regression(*histories, 40, Ridge(penalty=5.0), 16)
    for name in ("_PAIRS", "_ENTRIES", "_CELLS", "_SOLVED"):
        monkeypatch.setattr(module, name, 50)
    small = regression(*histories, 40, Ridge(penalty=5.0), 16)
    assert torch.equal(whole.rows, small.rows)
    assert torch.equal(whole.items, small.items)
    torch.testing.assert_close(whole.weights, small.weights)


@pytest.mark.parametrize(
    "histories",
    [
        (torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)),
        (torch.zeros(0, dtype=torch.int64), torch.tensor([0, 0, 0])),
        (torch.tensor([1, 2]), torch.tensor([0, 1, 2])),
        (torch.tensor([4, 4, 4]), torch.tensor([0, 3])),
    ],
    ids=["nobody", "empty-histories", "one-item-each", "one-item-again"],
)
def test_nothing_follows_another(histories: tuple[torch.Tensor, torch.Tensor]) -> None:
    memory = Memory.of(*histories, 5, max_length=4, kind="regression")
    assert memory.weights.numel() == 0
    assert memory.rows.tolist() == [0] * 7
    assert memory.sums(torch.tensor([1, 4]), torch.tensor([0, 2])).sum() == 0


def test_an_item_explained_by_another_gets_less() -> None:
    # 2 comes right before 3, and 1 before 2: 3 follows both, and one of them says it all.
    values = torch.tensor([1, 2, 3] * 20 + [2, 3] * 20)
    offsets = torch.cat([torch.arange(0, 60, 3), torch.arange(60, 101, 2)])
    ridge = Ridge(decay=1.0, penalty=0.01, backward=0.0)
    rows, items, weights = regression(values, offsets, 3, ridge, 8)
    matrix = torch.zeros(4, 4)
    matrix[torch.repeat_interleave(torch.arange(4), rows.diff()), items.long()] = weights
    assert matrix[2, 3] == pytest.approx(1.0, abs=1e-2)
    assert matrix[1, 3] < 1e-2
