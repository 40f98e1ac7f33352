"""BASRec: which items resemble which, copies, weights and mixtures by hand, and its two stages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_shares import check_shares
from helpers_training import DATA, config, outcome
from torch import Tensor

from adarec_fast import ragged, rng
from adarec_fast.config import ConfigError
from adarec_fast.data import Split, TrainingBatches
from adarec_fast.models.basrec.copies import copies, sample_weights
from adarec_fast.models.basrec.everyone import Everyone
from adarec_fast.models.basrec.losses import Mixing
from adarec_fast.models.basrec.model import BASRec
from adarec_fast.models.blocks.beta import drawn, quantiles
from adarec_fast.models.blocks.similarity import most_similar, similarities
from adarec_fast.models.blocks.weighted_cross_entropy import weighted_cross_entropy
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.training import load_run, train

SPLIT = Split(DATA)
SHAPE: dict[str, Any] = {
    "num_items": DATA.num_items, "hidden_size": 8, "num_layers": 1, "max_length": 10, "seed": 3,
    "backend": "packed", "plain_epochs": 0,
}  # fmt: skip
BATCHES = TrainingBatches(
    *SPLIT.inputs("train"), supervision="all", batch_size=24, max_length=10, seed=0
)
BATCH = next(iter(BATCHES.epoch(0)))
DOUBLE = torch.float64


def model(**options: Any) -> BASRec:
    made = BASRec(**{**SHAPE, **options}).double().train()
    made.begin_training(SPLIT)
    made.begin_epoch(0)
    return made


def mixing(made: BASRec) -> Mixing:
    assert isinstance(made.auxiliary, Mixing)
    return made.auxiliary


def test_similarities_by_hand() -> None:
    lists = torch.tensor([1, 2, 1, 2, 3, 2, 3, 3, 5]), torch.tensor([0, 2, 5, 8, 9])
    first, others, found = similarities(*lists, num_items=5)
    pairs = dict(zip(zip(first.tolist(), others.tolist(), strict=True), found, strict=True))
    assert set(pairs) == {(1, 2), (2, 1), (1, 3), (3, 1), (2, 3), (3, 2)}
    for pair, expected in (((1, 2), 0.666093), ((1, 3), 0.360674), ((3, 2), 0.666093)):
        assert float(pairs[pair]) == pytest.approx(expected, abs=1e-6)
    # 2 resembles 1 as it resembles 3; 4 and 5 stand beside nobody.
    assert most_similar(*lists, num_items=5).tolist() == [0, 2, 1, 2, 0, 0]


def test_similarities_in_runs_of_users(monkeypatch: pytest.MonkeyPatch) -> None:
    given = *SPLIT.inputs("train"), DATA.num_items
    expected = similarities(*given)
    monkeypatch.setattr("adarec_fast.models.blocks.similarity._PAIRS", 200)
    for found, whole in zip(similarities(*given), expected, strict=True):
        torch.testing.assert_close(found, whole)


@pytest.mark.parametrize("b", [0.1, 0.4, 1.0, 3.0])
def test_beta_variates(b: float) -> None:
    table = quantiles(b)
    assert bool((table.diff() >= 0).all())
    torch.testing.assert_close(table, 1 - table.flip(0))
    # Var of Beta(b, b) is 1 / (4 (2 b + 1)).
    assert float(table.var()) == pytest.approx(1 / (4 * (2 * b + 1)), rel=2e-3)
    if b == 1.0:
        torch.testing.assert_close(table, (torch.arange(4096, dtype=DOUBLE) + 0.5) / 4096)
    if b == 3.0:  # x^3 (10 - 15 x + 6 x^2)
        x = table
        wanted = (torch.arange(4096, dtype=DOUBLE) + 0.5) / 4096
        torch.testing.assert_close(
            x**3 * (10 - 15 * x + 6 * x * x), wanted, rtol=0.0, atol=1e-7
        )
    assert float(drawn(torch.tensor(2**32 - 1), table)) == float(table[-1])


def test_copies_keep_lengths_and_change_what_they_say() -> None:
    sizes = [1, 2, 3, 8, 20] * 40
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    owner = ragged.sequence_ids(offsets, int(offsets[-1]))
    values = ragged.positions(offsets, owner.shape[0]) + 1
    similar = torch.arange(22) + 100
    similar[3] = 0
    draws = rng.at_place(rng.spread_seed(1))
    made = copies(values, offsets, draws, similar, 2, (0.2, 0.71))
    assert made.items.shape == (values.shape[0], 2)
    assert bool(((made.ratio > 0.2) & (made.ratio < 0.71)).all())
    kinds = [0, 0]
    for history, n in enumerate(sizes):
        for copy in range(2):
            items = made.items[offsets[history] : offsets[history + 1], copy].tolist()
            m = int(n * float(made.ratio[history, copy]))
            whole = list(range(1, n + 1))
            if sorted(items) == whole:
                kinds[0] += 1
                moved = [i for i in range(n) if items[i] != whole[i]]
                assert not moved or moved[-1] - moved[0] < m
                assert items[-1] == n
                assert m > 1 or not moved
            else:
                kinds[1] += 1
                replaced = [i for i in range(n) if items[i] != whole[i]]
                at_three = n > 2 and 2 not in replaced  # by chance it may be its own stand-in
                assert len(replaced) in (max(m, 1), max(m, 1) - at_three)
                assert all(items[i] == 100 + whole[i] or whole[i] == 3 for i in replaced)
                assert all(1 <= item <= 121 for item in items)
    assert abs(kinds[0] - kinds[1]) < 4 * math.sqrt(400)
    # A share's copies are the batch's.
    place = torch.stack([offsets[3], torch.tensor(3)])
    share = copies(
        values[offsets[3] :], offsets[3:] - offsets[3],
        rng.at_place(rng.spread_seed(1), place), similar, 2, (0.2, 0.71),
    )  # fmt: skip
    assert torch.equal(share.items, made.items[offsets[3] :])


def test_weights_by_hand() -> None:
    alpha = torch.tensor([[0.5], [0.8], [0.2]], dtype=DOUBLE)
    ratio = torch.tensor([[0.4], [0.5], [0.5]], dtype=DOUBLE)
    found = sample_weights(alpha, ratio)[:, 0]
    assert found.tolist() == pytest.approx([1 / 3, 0.0, 1.0], abs=1e-6)
    assert sample_weights(alpha[:1], ratio[:1]).tolist() == [[1.0]]


def all_of_two(negatives: bool) -> Everyone:
    """Two histories of one item each; h = e+ = I, e- = -I."""
    eye = torch.eye(2, dtype=DOUBLE)
    table = torch.cat([torch.zeros(1, 2, dtype=DOUBLE), eye, -eye])
    ones, index = torch.ones(2, dtype=torch.int64), torch.arange(2)
    return Everyone(
        eye, table, index + 1, (index + 3)[:, None] if negatives else None, index, 0 * ones, index,
        ones, rng.at_place(rng.spread_seed(0)),
    )  # fmt: skip


def swapping(all_of: Everyone) -> int:
    """A level whose permutation exchanges the two."""
    for level in range(20):
        word = rng.words(all_of.seed, torch.arange(2), rng.STREAM_MIX_PERM, level)
        if word.argsort(stable=True).tolist() == [1, 0]:
            return level
    raise AssertionError


def test_mixtures_by_hand() -> None:
    given = all_of_two(negatives=True)
    level, half = swapping(given), torch.full((2, 1), 0.5, dtype=DOUBLE)
    assert float(Mixing._mixture(given, half, level, "packed")) == pytest.approx(.948154, abs=1e-6)
    alone = Mixing._mixture(given, 2 * half, level, "packed")
    assert float(alone) == pytest.approx(0.626523, abs=1e-6)
    shared = all_of_two(negatives=False)
    found = float(Mixing._mixture(shared, half, level, "packed"))
    logits = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=DOUBLE)
    assert found == pytest.approx(float(logits.logsumexp(0) - 0.5), abs=1e-6)
    third = torch.full((2, 1), 0.75, dtype=DOUBLE)
    found = float(Mixing._mixture(shared, third, level, "packed"))
    logits = torch.tensor([0.75, 0.25, -0.75, -0.25], dtype=DOUBLE)
    expected = logits.logsumexp(0) - 0.75 * 0.75 - 0.25 * 0.25
    assert found == pytest.approx(float(expected), abs=1e-6)


def test_a_shorter_partner_leaves_positions_as_they_are() -> None:
    lengths = torch.tensor([3, 1])
    owner, back = torch.tensor([0, 0, 0, 1]), torch.tensor([2, 1, 0, 0])
    given = all_of_two(negatives=True)._replace(
        owner=owner, back=back, starts=torch.tensor([0, 3]), lengths=lengths
    )
    assert given.token_index().tolist() == [0, 1, 2, 3]
    rows, there = given.partners(torch.tensor([1, 0]))
    assert rows.tolist() == [0, 1, 3, 2]
    assert there.tolist() == [False, False, True, True]


@pytest.mark.parametrize("loss", ["original", "full_ce"])
def test_copies_of_themselves_lose_what_histories_lose(loss: Any) -> None:
    """alpha = 1 in every copy: C times the plain loss, without dropout."""
    made = model(loss=loss, mixed_rounds=0, dropout=0.0, attention_dropout=0.0)
    mixing(made).beta = torch.ones_like(mixing(made).beta)
    mixing(made).by_sample = False  # the sum of weights, which may be taken out
    seen = {}
    weights = mixing(made)._weights

    def watched(*given: Any) -> Tensor:
        seen["sums"] = weights(*given)
        return seen["sums"]

    mixing(made)._weights = watched  # type: ignore[method-assign]
    parts = made.loss(BATCH).parts
    torch.testing.assert_close(parts["augmented"], seen["sums"][0].sum() * parts["rec"])


def test_a_weighted_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(5, 3, dtype=DOUBLE, generator=generator)
    table = torch.randn(7, 3, dtype=DOUBLE, generator=generator)
    targets = torch.tensor([1, 0, 6, 3, 3])
    weights = torch.tensor([1.0, 5.0, 0.5, 0.0, 2.0], dtype=DOUBLE)
    given = hidden.requires_grad_(), table.requires_grad_()
    each = F.cross_entropy(hidden @ table[1:].T, (targets - 1).clamp(min=0), reduction="none")
    expected = (each * weights * (targets > 0)).sum() / 4
    found = weighted_cross_entropy(*given, targets, weights)
    torch.testing.assert_close(found, expected)
    assert torch.autograd.gradcheck(
        lambda h, t: weighted_cross_entropy(h, t, targets, weights), given
    )


def test_in_its_first_stage_it_is_sasrec() -> None:
    mine = model(plain_epochs=2)
    fields = {k: v for k, v in SHAPE.items() if k != "plain_epochs"}
    theirs = SASRec(
        **fields, loss="original", supervision="all", layer_norm_eps=1e-12, dropout=0.1,
        attention_dropout=0.1,
    ).double().train()  # fmt: skip
    theirs.begin_training(SPLIT)
    found, expected = mine.loss(BATCH), theirs.loss(BATCH)
    assert torch.equal(found.total, expected.total)
    mine.begin_epoch(1)
    assert mine.loss(BATCH).parts["augmented"] == 0
    mine.begin_epoch(2)
    output = mine.loss(BATCH)
    assert min(float(part) for part in output.parts.values()) > 0
    torch.testing.assert_close(output.total.detach(), torch.stack([*output.parts.values()]).sum())


@pytest.mark.parametrize("options", [{}, {"weighting": "outer"}, {"loss": "full_ce"}])
def test_shares_lose_what_the_batch_loses(options: dict[str, Any]) -> None:
    check_shares(BATCHES, lambda: model(**options))


def test_it_trains_through_both_stages_resumes_and_ranks(tmp_path: Path) -> None:
    fields = {**SHAPE, "model": "basrec", "plain_epochs": 1}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    # Patience of one evaluation: it does not end the run before the second stage had its turn.
    options = {"batch_size": 16, "epochs": 3, "patience": 1, "learning_rate": 1e-9}
    train(fields, config(**options), DATA, whole)
    train(fields, config(**options), DATA, parts, stop_after_steps=5)
    train(fields, config(**options), DATA, parts, resume=True)
    assert outcome(whole) == outcome(parts)
    run = load_run(whole)
    assert len(run.history) >= 2
    assert run.history[0]["loss_augmented"] == 0
    assert run.history[1]["loss_augmented"] > 0
    assert isinstance(run.model, BASRec)
    assert evaluate(run.model, run.split).name == "BASRec"


def test_bad_settings_are_refused() -> None:
    for name, value in (("mix_beta", 0.0), ("augmented_pairs", -1), ("greatest_ratio", 1.0)):
        with pytest.raises(ConfigError, match=f"{name}="):
            BASRec(**{**SHAPE, name: value})
    with pytest.raises(ConfigError, match=r"least_ratio=0\.8 is above greatest_ratio=0\.71"):
        BASRec(**SHAPE, least_ratio=0.8)
    with pytest.raises(ConfigError, match="basrec mixes position by position; use 'all'"):
        BASRec(**SHAPE, supervision="prefix")
