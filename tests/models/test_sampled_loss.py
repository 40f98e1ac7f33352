"""Negatives without rejection, the sampled binary cross entropy, and SASRec trained by it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_shares import check_shares
from helpers_training import DATA, config, outcome
from torch import Tensor

from adarec_fast import rng
from adarec_fast.config import ConfigError
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.models.blocks.negatives import NegativeSampler
from adarec_fast.models.blocks.sampled_bce import sampled_bce
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.training import load_run, train

SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 8, "num_layers": 1, "max_length": 10, "seed": 3,
    "backend": "packed", "loss": "original",
}  # fmt: skip
SPLIT = Split(DATA)


def sampler(*histories: list[int], num_items: int) -> NegativeSampler:
    lengths = torch.tensor([0, *(len(items) for items in histories)])
    values = torch.tensor([item for items in histories for item in items])
    return NegativeSampler(values, lengths.cumsum(0), num_items)


def batches(supervision: Any, size: int = 32) -> TrainingBatches:
    return TrainingBatches(
        *SPLIT.inputs("train"), supervision=supervision, batch_size=size, max_length=10, seed=0
    )


def model(**options: Any) -> SASRec:
    made = SASRec(**{**SHAPE, **options}).double().train()
    made.begin_training(SPLIT)
    return made


def test_the_nth_item_that_a_user_lacks() -> None:
    drawn = sampler([3, 2, 5, 3], [6], num_items=6)
    users, r = torch.tensor([0, 0, 0, 1, 1]), torch.tensor([0, 1, 2, 0, 4])
    assert drawn.nth(users, r).tolist() == [1, 4, 6, 1, 5]


def test_negatives_are_uniform_over_what_a_user_lacks() -> None:
    drawn, seed = sampler([1, 2, 7], [4], num_items=8), rng.at_place(rng.spread_seed(5))
    users = torch.tensor([0, 1]).repeat(7_000)
    found = drawn(seed, users, 0, 2)
    assert found.shape == (14_000, 2)
    for user, lacking in ((0, [3, 4, 5, 6, 8]), (1, [1, 2, 3, 5, 6, 7, 8])):
        counts = torch.bincount(found[users == user].flatten(), minlength=9)
        assert counts.nonzero().flatten().tolist() == lacking
        expected = 14_000 / len(lacking)
        assert (counts[lacking] - expected).abs().max() < 4 * math.sqrt(expected)
    # A share of the rows draws what the whole batch does there, and another step something else.
    assert torch.equal(drawn(seed, users[300:400], 300, 2), found[300:400])
    assert not torch.equal(drawn(seed + 1, users, 0, 2), found)


def test_held_out_items_are_negatives_or_not() -> None:
    user, held_out = torch.arange(DATA.num_users)[:, None], SPLIT.targets("test")[:, None]
    for excluded, expected in (("train", True), ("all", False)):
        drawn = NegativeSampler.of(SPLIT, excluded)  # type: ignore[arg-type]
        every = drawn.nth(user, torch.arange(int(drawn.counts.min())))
        assert bool((every == held_out).any()) is expected


def test_a_user_with_every_item_is_named() -> None:
    with pytest.raises(ConfigError, match="user number 1 has met all 3; use loss='full_ce'"):
        sampler([1], [3, 1, 2], num_items=3)


def loss_of(up: float, down: float) -> float:
    table = torch.tensor([[9.0], [up], [down]], dtype=torch.float64)
    hidden = torch.ones(1, 1, dtype=torch.float64)
    return float(sampled_bce(hidden, table, torch.tensor([1]), torch.tensor([[2]])))


def test_sampled_bce_by_hand() -> None:
    assert loss_of(0.0, 0.0) == pytest.approx(2 * math.log(2), abs=1e-12)
    assert loss_of(2.0, -1.0) == pytest.approx(0.440190, abs=1e-6)
    # Two means: with three negatives at 0 they weigh as one.
    table, hidden = torch.zeros(3, 2), torch.zeros(4, 2)
    targets, negatives = torch.tensor([1, 0, 2, 1]), torch.full((4, 3), 2)
    of_pairs = sampled_bce(hidden, table, targets, negatives)
    of_means = sampled_bce(hidden, table, targets, negatives, reduction="sum_of_means")
    assert float(of_pairs) == pytest.approx(4 * math.log(2))
    assert float(of_means) == pytest.approx(2 * math.log(2))
    assert float(sampled_bce(hidden, table, targets * 0, negatives)) == 0.0


def drawn_case() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(5, 3, dtype=torch.float64, generator=generator)
    table = torch.randn(7, 3, dtype=torch.float64, generator=generator)
    negatives = torch.randint(1, 7, (5, 2), generator=generator)
    return hidden, table, torch.tensor([1, 0, 3, 6, 1]), negatives


def test_gradients_and_the_order_of_rows() -> None:
    hidden, table, targets, negatives = drawn_case()
    weights = torch.tensor([0.5, 1.0, 2.0, 0.0, 1.0], dtype=torch.float64)

    def loss(hidden: Tensor, table: Tensor) -> Tensor:
        return sampled_bce(hidden, table, targets, negatives, weights)

    # Row 0 is padding and is left out of the table's gradient by name.
    rest = table[1:].clone().requires_grad_()
    hidden.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda h, t: loss(h, torch.cat([table[:1], t])), (hidden, rest)
    )
    order = torch.tensor([3, 1, 4, 0, 2])
    moved = sampled_bce(hidden[order], table, targets[order], negatives[order], weights[order])
    torch.testing.assert_close(moved, loss(hidden, table))


def test_rows_without_a_target_may_hold_anything() -> None:
    hidden, table, targets, negatives = drawn_case()
    hidden[1] = float("nan")
    hidden.requires_grad_()
    table.requires_grad_()
    sampled_bce(hidden, table, targets, negatives).backward()
    assert hidden.grad is not None
    assert table.grad is not None
    assert not hidden.grad[1].any()
    assert not table.grad[0].any()
    assert bool(table.grad.isfinite().all())


@pytest.mark.parametrize("supervision", ["prefix", "all"])
def test_sasrec_of_zero_items_loses_two_bits(supervision: str) -> None:
    one = model(supervision=supervision)
    with torch.no_grad():
        one.item_embedding.weight.zero_()
    batch = next(iter(batches(supervision).epoch(0)))
    output = one.loss(batch)
    assert float(output.total.detach()) == pytest.approx(2 * math.log(2), abs=1e-12)
    output.total.backward()
    assert one.item_embedding.weight.grad is not None
    assert not one.item_embedding.weight.grad[0].any()


def test_published_sizes_have_the_published_parameters() -> None:
    with torch.device("meta"):
        for items, layers, expected in ((12_101, 2, 877_824), (11_924, 3, 916_480)):
            made = SASRec(num_items=items, num_layers=layers)
            assert sum(p.numel() for p in made.parameters()) == expected


@pytest.mark.parametrize("supervision", ["prefix", "all"])
def test_shares_lose_what_the_batch_loses(supervision: str) -> None:
    check_shares(batches(supervision), lambda: model(supervision=supervision, dropout=0.3))


def test_sasrec_original_trains_and_resumes(tmp_path: Path) -> None:
    fields = {**SHAPE, "model": "sasrec", "supervision": "all"}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(fields, config(batch_size=16), DATA, whole)
    train(fields, config(batch_size=16), DATA, parts, stop_after_steps=4)
    train(fields, config(batch_size=16), DATA, parts, resume=True)
    assert outcome(whole) == outcome(parts)
    assert load_run(whole).history[-1]["loss_rec"] < 2 * math.log(2)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"label_smoothing=0\.1 softens the targets of the full"):
        SASRec(**SHAPE, label_smoothing=0.1)
    with pytest.raises(ConfigError, match="loss="):
        SASRec(**{**SHAPE, "loss": "bpr"})
    batch = next(iter(batches("prefix").epoch(0)))
    with pytest.raises(ValueError, match=r"call begin_training\(split\) before the first loss"):
        SASRec(**SHAPE).train().loss(batch)
    workers: Any = None
    with pytest.raises(ConfigError, match="shard_items=True: loss='original' needs the vectors"):
        SASRec(**SHAPE).split_items(workers)
