"""Requests of few users as one call into the C++ extension: against the reference in float64, and
against the ops one by one, whose bits they have."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers_accuracy import assert_close_to_float64

from adarec_fast import ADARec, Recommender
from adarec_fast.models import registry
from adarec_fast.models.base import SequenceModel
from adarec_fast.models.memory import Memory
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.ops._library import unavailable
from adarec_fast.ops.serving import MOST_USERS

ITEMS, LONGEST = 90, 6
SMALL: dict[str, Any] = {"num_items": ITEMS, "hidden_size": 16, "max_length": LONGEST}
ADAREC: dict[str, Any] = {"max_depth": 4}
VARIANTS: dict[str, tuple[type[SequenceModel], dict[str, Any]]] = {
    "adarec": (ADARec, ADAREC),
    "no padding of vectors": (ADARec, {**ADAREC, "hidden_size": 24}),
    "transformers": (ADARec, {**ADAREC, "coarse_expert": "transformer"}),
    "by level": (ADARec, {**ADAREC, "router": "level"}),
    "residual": (ADARec, {**ADAREC, "residual": True, "hidden_size": 24}),
    "bounded": (ADARec, {**ADAREC, "start": "backbone", "denoiser": "bounded"}),
    "local paths": (ADARec, {**ADAREC, "local_path": 3}),
    "no layers": (ADARec, {**ADAREC, "num_layers": 0}),
    "sasrec": (SASRec, {}),
    "sasrec, three layers": (SASRec, {"num_layers": 3, "num_heads": 4}),
    "sasrec, local paths": (SASRec, {"local_path": 2}),
    "sasrec, no layers": (SASRec, {"num_layers": 0}),
}


@pytest.fixture(autouse=True)
def _built() -> Iterator[None]:
    why = unavailable("score_topk", "cpp", "cpu")
    if why is not None:
        pytest.skip(f"cpp cannot answer requests: {why}")
    yield
    torch.set_num_threads(1)


def _histories(longest: int, seed: int = 0) -> list[list[int]]:
    """One of every length."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(1, ITEMS + 1, (n,), generator=generator).tolist()
        for n in range(1, longest + 1)
    ]


def _model(variant: str, memory: bool = False, **options: Any) -> SequenceModel:
    kind, chosen = VARIANTS[variant]
    model = kind(**{**SMALL, **chosen, **options})
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        # Depths that differ between users, and biases and taps that are not zero.
        for name, parameter in model.named_parameters():
            if "depth_controller" in name or "taps" in name or parameter.dim() == 1:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    if memory:
        values = torch.randint(1, ITEMS + 1, (600,), generator=generator)
        model.memory = Memory.of(values, torch.arange(0, 601, 10), ITEMS, max_length=LONGEST)
    return model


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("memory", [False, True], ids=["", "memory"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_length_as_the_reference_has_it(variant: str, memory: bool) -> None:
    recommender = Recommender(_model(variant, memory))
    assert recommender._whole is not None
    plain = _model(variant, memory, backend="reference").eval()
    exact = _model(variant, memory, backend="reference").double().eval()
    histories = _histories(LONGEST + 3)
    for k in (1, 20):
        items, scores = plain.recommend(histories, k=k)
        _, gold = exact.recommend(histories, k=k)
        for name, found in (
            ("alone", [recommender.recommend([history], k=k) for history in histories]),
            ("together", [recommender.recommend(histories, k=k)]),
        ):
            assert_close_to_float64(torch.cat([f.scores for f in found]), scores, gold, name)
            assert torch.equal(torch.cat([f.items for f in found]), items), name


# A system that is a SASRec or an ADARec, and computes otherwise, must not be answered so.
@pytest.mark.parametrize("name", registry.names())
def test_every_system_answers_alike(name: str) -> None:
    sizes = {key: SMALL[key] for key in SMALL if key in registry.config_type(name).model_fields}
    model = registry.build(registry.create_config({"model": name, **sizes}))
    if not model.by_products:
        pytest.skip("its scores are no products")
    recommender, apart = Recommender(model), Recommender(model)
    apart._whole = None
    for history in _histories(LONGEST + 1):
        ours, wanted = recommender.recommend([history], 7), apart.recommend([history], 7)
        assert torch.equal(ours.items, wanted.items)
        assert torch.equal(ours.scores, wanted.scores)


@pytest.mark.parametrize("memory", [False, True], ids=["", "memory"])
# The residual's LayerNorm is torch's own where the ops run one by one.
@pytest.mark.parametrize("variant", [name for name in VARIANTS if name != "residual"])
def test_the_bits_are_those_of_the_ops_one_by_one(variant: str, memory: bool) -> None:
    model = _model(variant, memory)
    recommender, apart = Recommender(model), Recommender(model)
    apart._whole = None
    histories = _histories(LONGEST + 3)
    exclude = [[*history[:1], ITEMS - len(history)] for history in histories]
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for k in (1, 20, ITEMS):
            for options in ({}, {"exclude_seen": False}, {"exclude": exclude}):
                asked: dict[str, Any] = options
                ours = recommender.recommend(histories, k, **asked)
                wanted = apart.recommend(histories, k, **asked)
                assert torch.equal(ours.items, wanted.items)
                assert torch.equal(ours.scores, wanted.scores)
                assert ours.diagnostics.keys() == wanted.diagnostics.keys()
                for name, told in ours.diagnostics.items():
                    assert torch.equal(told, wanted.diagnostics[name])


def test_every_form_and_filter_of_one_history() -> None:
    recommender = Recommender(_model("adarec"))
    history = [5, 7, 5, 30, 2, 9, 11, 12]
    wanted = recommender.recommend([history], 12)
    values, offsets = torch.tensor(history), torch.tensor([0, len(history)])
    padded = torch.tensor([[0, 0, *history]])
    forms: list[Any] = [
        (values, offsets), padded, (tuple(history),), [np.array(history)], np.array([history]),
        [[np.int64(item) for item in history]], (torch.stack([values, values], 1)[:, 0], offsets),
    ]
    for form in forms:
        found = recommender.recommend(form, 12)
        assert torch.equal(found.items, wanted.items), form
        assert torch.equal(found.scores, wanted.scores), form
        assert torch.equal(found.depth, wanted.depth), form
    switch: Any = "no"  # of any type, by what Python takes it for
    found = recommender.recommend([history], 12, exclude_seen=switch)
    assert torch.equal(found.items, wanted.items)
    unseen = recommender.recommend([history], ITEMS, exclude_seen=False).items[0].tolist()
    kept = [item for item in unseen if item not in history]
    assert wanted.items[0].tolist() == kept[:12]
    assert recommender.recommend([history], np.int64(12)).items.tolist() == wanted.items.tolist()
    fewer = recommender.recommend([history], 8, exclude=kept[:3]).items[0].tolist()
    assert fewer == kept[3:11]
    some = recommender.recommend([history], 4, allow=kept[5:20]).items[0].tolist()
    assert some == kept[5:9]


@pytest.mark.parametrize(
    ("history", "message"),
    [([1, 91], "item id 91 is outside the catalogue"), ([0], "item id 0 is outside"),
     ([], "sequence 0 has length 0"), ([1, True], "is True"), ([2**70], "outside the catalogue"),
     ([1, "a"], "is 'a'"), ([1.5], r"is 1\.5")],
)  # fmt: skip
def test_what_is_refused_is_named_as_ever(history: Any, message: str) -> None:
    recommender = Recommender(_model("sasrec"))
    with pytest.raises(ValueError, match=message):
        recommender.recommend([history], 5)
    with pytest.raises(ValueError, match=r"k=91 must lie in 1\.\.90"):
        recommender.recommend([[1]], 91)


def test_a_bad_switch_is_named() -> None:
    with pytest.raises(ValueError, match="screened=1 must be True or False"):
        Recommender(_model("sasrec"), screened=1)  # type: ignore[arg-type]


def test_many_users_and_other_precisions_take_the_ops() -> None:
    recommender = Recommender(_model("adarec"), screened=False)
    assert recommender._whole is not None
    assert recommender._whole.screen_bytes == 0
    histories = _histories(LONGEST) * 20
    assert len(histories) > MOST_USERS
    together = recommender.recommend(histories, 7)
    alone = torch.cat([recommender.recommend([h], 7).items for h in histories[:LONGEST]])
    assert torch.equal(together.items[:LONGEST], alone)
    for options in ({"precision": "bf16"}, {"backend": "packed"}, {"backend": "reference"}):
        chosen: dict[str, Any] = options
        assert Recommender(_model("sasrec", **chosen))._whole is None
        assert Recommender(_model("adarec", **chosen))._whole is None
