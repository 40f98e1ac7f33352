"""What may come, by lists and by masks: held to all scores of the catalogue."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from helpers import gpu_device
from helpers_questions import EVERY, FEW, ITEMS, MANY, SMALL, Given, all_scores, best_by_hand, rule

from adarec_fast import ADARec, ConfigError, InteractionData, Recommender
from adarec_fast.models.base import SequenceModel
from adarec_fast.ops._library import collecting
from adarec_fast.ragged import Jagged


def _case(name: str, histories: list[list[int]]) -> tuple[dict[str, Any], list[set[int]]]:
    """Arguments, and what they allow."""
    users = len(histories)
    by_rule = {item for item in EVERY if item % 3}
    own = [{(user * 7 + step * 5) % ITEMS + 1 for step in range(12)} for user in range(users)]
    masks = torch.zeros(users, ITEMS, dtype=torch.bool)
    for user, may in enumerate(own):
        masks[user, [item - 1 for item in may]] = True
    return {
        "few": ({"allow": FEW}, [set(FEW)] * users),
        "many": ({"allow": np.array(MANY)}, [set(MANY)] * users),
        "a set": ({"allow": set(MANY)}, [set(MANY)] * users),
        "own": ({"allow": [sorted(may) for may in own]}, own),
        "none": ({"allow": []}, [set()] * users),
        "rule": ({"mask": rule(ITEMS)}, [by_rule] * users),
        "rule by index": ({"mask": torch.cat([torch.tensor([True]), rule(ITEMS)]).numpy()},
                          [by_rule] * users),
        "own rules": ({"mask": masks}, own),
        "all together": ({"mask": masks, "allow": MANY, "exclude": FEW},
                         [(may & set(MANY)) - set(FEW) for may in own]),
        "exclude for all": ({"exclude": FEW}, [EVERY - set(FEW)] * users),
    }[name]  # fmt: skip


CASES = ["few", "many", "a set", "own", "none", "rule", "rule by index", "own rules",
         "all together", "exclude for all"]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_comes_is_the_best_of_what_may(given: Given, case: str) -> None:
    model, recommender, histories, scores = given
    options, allowed = _case(case, histories)
    for exclude_seen in (True, False):
        left_out = [set(history) if exclude_seen else set() for history in histories]
        wanted = best_by_hand(scores, 6, allowed, left_out)
        rankings = [recommender.recommend(histories, 6, exclude_seen=exclude_seen, **options)]
        found = model.recommend(histories, k=6, exclude_seen=exclude_seen, **options)
        rankings.append(rankings[0]._replace(items=found[0], scores=found[1]))
        for ranking in rankings:
            for row, expected in enumerate(wanted):
                left = torch.isfinite(ranking.scores[row])
                assert ranking.items[row][left].tolist() == expected
                torch.testing.assert_close(
                    ranking.scores[row][left], scores[row][expected], rtol=1e-4, atol=1e-4
                )


def _auto(device: torch.device) -> tuple[SequenceModel, Recommender]:
    size = 16 if collecting() or device.type == "cuda" else SMALL["hidden_size"]
    model = ADARec(**{**SMALL, "backend": "auto", "hidden_size": size}, max_depth=2, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape))
    return model.eval(), Recommender(model.to(device))


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("case", ["few", "own", "all together"])
def test_kernels_leave_out_what_may_not_come(device: str, case: str) -> None:
    """Histories hold items of the list and others, alone and together."""
    model, recommender = _auto(gpu_device() if device == "cuda" else torch.device(device))
    histories = [[3, 2, 17], [40, 5], [39]] * 3
    options, allowed = _case(case, histories)
    ranking = recommender.recommend(histories, 4, **options)
    scores = all_scores(model.cpu(), histories)
    wanted = best_by_hand(scores, 4, allowed, [set(history) for history in histories])
    for row, expected in enumerate(wanted):
        left = torch.isfinite(ranking.scores[row])
        assert ranking.items[row][left].tolist() == expected


def test_chunks_do_not_show(
    given: Given, data: InteractionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, recommender, histories, _ = given
    options, _ = _case("all together", histories)
    whole = recommender.recommend(histories, 6, **options)
    for module in ("ranking.recommender", "models.recommends"):
        monkeypatch.setattr(f"adarec_fast.{module}.CHUNK_ELEMENTS", 2 * (ITEMS + 1))
    assert torch.equal(recommender.recommend(histories, 6, **options).items, whole.items)
    assert torch.equal(model.recommend(histories, k=6, **options)[0], whole.items)


def test_masks_of_a_split_table_are_refused(data: InteractionData) -> None:
    from adarec_fast.distributed.items import ShardedItems

    class Part(ADARec):
        sharded = property(lambda self: object.__new__(ShardedItems))

    model = Part(**SMALL, max_depth=2)
    with pytest.raises(ConfigError, match="allow and mask need the whole item table"):
        model.recommend([[1]], k=3, allow=[2])


def test_packed_histories_and_a_mask(given: Given) -> None:
    _, recommender, histories, _ = given
    values = torch.tensor([item for history in histories for item in history])
    packed = Jagged(values, torch.tensor([0, *map(len, histories)]).cumsum(0))
    found = recommender.recommend(tuple(packed), 4, mask=rule(ITEMS))
    assert torch.equal(found.items, recommender.recommend(histories, 4, mask=rule(ITEMS)).items)
