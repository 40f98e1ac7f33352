"""Every public name that the page of names lists has an example, and the examples are true."""

from __future__ import annotations

import doctest
import inspect
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_api_page import _methods

import adarec_fast as af
from adarec_fast.data import Vocabulary

_FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
_ITEMS = 12


def listed() -> Iterator[tuple[str, Any]]:
    """What docs/api.md lists."""
    for name in af.__all__:
        thing = getattr(af, name)
        yield name, thing
        if inspect.isclass(thing):
            for method, function in _methods(thing):
                yield f"{name}.{method}", function


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What examples speak of: data, a model of it, and what is made of them."""
    torch.manual_seed(0)
    histories = {
        f"u{user}": [f"sku-{(user * step) % _ITEMS + 1}" for step in range(1, 7)]
        for user in range(1, _ITEMS)
    }
    data = af.load(histories)
    split = af.Split(data)
    model = af.ADARec(
        num_items=data.num_items, hidden_size=8, num_layers=1, max_depth=2, max_length=10,
        backend="packed",
    )  # fmt: skip
    model.item_vocabulary = data.items
    return {
        "af": af, "np": np, "torch": torch, "Vocabulary": Vocabulary, "data": data,
        "split": split, "model": model.eval(), "recommender": af.Recommender(model),
        "batches": af.TrainingBatches(
            *split.inputs("train"), batch_size=4, max_length=10, seed=0
        ),
        "folder": tmp_path_factory.mktemp("examples"),
    }  # fmt: skip


@pytest.mark.parametrize("thing", [thing for _, thing in listed()], ids=[n for n, _ in listed()])
def test_the_example_is_true(
    names: dict[str, Any], thing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(names["folder"])
    assert not complaints(inspect.getdoc(thing) or "", names)


def complaints(text: str, names: dict[str, Any]) -> str:
    """What is wrong with the examples of a docstring."""
    example = doctest.DocTestParser().get_doctest(text, dict(names), "docstring", None, 0)
    if not example.examples:
        return f"it has no example: {text}"
    told: list[str] = []
    doctest.DocTestRunner(optionflags=_FLAGS).run(example, out=told.append)
    return "".join(told)


def test_properties_have_examples_too(names: dict[str, Any]) -> None:
    for name in ("items", "scores"):
        assert not complaints(inspect.getdoc(getattr(af.Recommendations, name)) or "", names)


def test_what_is_not_true_is_told(names: dict[str, Any]) -> None:
    assert "Expected:" in complaints(">>> len(data)\n0", names)
    assert "NameError" in complaints(">>> datum", names)
    assert "it has no example" in complaints("Words alone.", names)


def test_help_lists_the_options() -> None:
    text = inspect.getdoc(af.ADARec) or ""
    for option in af.ADARecConfig.model_fields:
        assert f"\n    {option}" in text, option
    assert "max_depth=4: T_max, greatest diffusion depth." in text
