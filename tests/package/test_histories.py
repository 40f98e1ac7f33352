"""The model's border: what is no history of item ids is refused, with row and value."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from adarec_fast import ADARec, Recommender

MODEL = ADARec(num_items=30, hidden_size=16, num_layers=1, max_depth=2, max_length=6).eval()
RECOMMENDER = Recommender(MODEL)
ASK: dict[str, Callable[..., Any]] = {
    "model": lambda given, **more: MODEL.recommend(given, k=3, **more),
    "recommender": lambda given, **more: RECOMMENDER.recommend(given, k=3, **more),
}
EXPECTED = MODEL.recommend([[1, 2, 3], [4]], k=3)[0]
nested = torch.nested.nested_tensor([torch.tensor([1, 2]), torch.tensor([3])], layout=torch.jagged)
sparse = torch.tensor([[1, 2]]).to_sparse()

REFUSED = {
    "floats": ([[1, 2], [1.9, 2.9]], r"histories\[1\]\[0\] is 1\.9, a float; it must be an int"),
    "whole floats": ([[3.0]], r"histories\[0\]\[0\] is 3\.0, a float"),
    "bools": ([[5], [True, 2]], r"histories\[1\]\[0\] is True, a bool"),
    "numpy bools": ([[np.True_]], r"histories\[0\]\[0\] is .*True.*, a bool"),
    "external ids": ([["i1", "i2"]], r"histories\[0\]\[0\] is 'i1', a str.*item_vocabulary"),
    "a string a user": (["i1"], r"histories\[0\] is 'i1', a str; it must be a list"),
    "a string": ("i1", "histories is a str"),
    "bytes": ([b"\1\2"], r"histories\[0\] is b.*, a bytes"),
    "a dict": ({"u": [1]}, "histories is a dict"),
    "a dict a user": ([{1: 2}], r"histories\[0\] is \{1: 2\}, a dict"),
    "a set": ([{1, 2}], r"histories\[0\] is \{1, 2\}, a set"),
    "no lists": ([1, 2, 3], r"histories\[0\] is 1, a int; it must be a list of item ids"),
    "one number": (7, "histories is a int"),
    "nothing": (None, "histories is a NoneType"),
    "a hole": ([[1, None]], r"histories\[0\]\[1\] is None"),
    "deeper lists": ([[[1, 2]]], r"histories\[0\]\[0\] is \[1, 2\], a list"),
    "beyond 64 bits": ([[1], [2, 2**70]], rf"histories\[1\]\[1\] is {2**70}: item id outside"),
    "arrays of floats": ([np.array([1.5])], r"histories\[0\]\[0\] is 1\.5, a float"),
    "wide arrays": ([np.ones((1, 2), int)], r"histories\[0\] has shape \[1, 2\]"),
    "complex": ([[1j]], r"histories\[0\]\[0\] is 1j, a complex"),
    "an unknown item": ([[1], [31]], r"item id 31 is outside the catalogue, 1\.\.30 \(row 1\)"),
    "padding in a list": ([[1, 0]], r"item id 0 is outside the catalogue, 1\.\.30 \(row 0\)"),
    "nobody's history": ([[1], []], "sequence 1 has length 0"),
    "float tensor": (torch.tensor([[1.5, 2.0]]), r"float32 \[1, 2\], row 0: 1\.5"),
    "int32 tensor": (torch.tensor([[4, 2]], dtype=torch.int32), r"int32 \[1, 2\], row 0: 4"),
    "bool tensor": (torch.tensor([[True]]), r"bool \[1, 1\], row 0: True"),
    "flat tensor": (torch.tensor([1, 2]), r"int64 \[2\], row 0: 1"),
    "nested tensor": (nested, "layout torch.jagged"),
    "sparse tensor": (sparse, "layout torch.sparse_coo"),
    "float pair": ((torch.tensor([1.5]), torch.tensor([0, 1])), r"float32 \[1\], row 0: 1\.5"),
    "float offsets": ((torch.tensor([1]), torch.tensor([0.0, 1.0])), r"float32 \[2\], row 0: 0"),
    "one tensor": ((torch.tensor([[1]]),), "item_ids is a tuple; it must be"),
}  # fmt: skip


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_history_is_refused(ask: str, kind: str) -> None:
    given, message = REFUSED[kind]
    with pytest.raises(ValueError, match=message):
        ASK[ask](given)


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize(
    "given",
    [
        ([1, 2, 3], [4]),
        [np.array([1, 2, 3], np.int32), np.array([4], np.uint8)],
        [torch.tensor([1, 2, 3], dtype=torch.int16), torch.tensor([4])],
        [[np.int64(1), 2, torch.tensor(3)], range(4, 5)],
        np.array([[1, 2, 3], [4]], dtype=object),
        torch.tensor([[1, 2, 3], [0, 0, 4]]),
        (torch.tensor([1, 2, 3, 4]), torch.tensor([0, 3, 4])),
    ],
    ids=str,
)  # fmt: skip
def test_ints_of_every_kind_are_taken(ask: str, given: Any) -> None:
    items = ASK[ask](given)[0]
    assert torch.equal(items, EXPECTED)
    assert torch.equal(ASK[ask](iter(given) if isinstance(given, list) else given)[0], EXPECTED)


def test_strides_do_not_matter() -> None:
    wide = torch.arange(1, 25).view(4, 6)
    for view in (wide[:, 3:], wide.T, wide[::2, ::2], wide.flip(1)):
        expected = MODEL.recommend(view.contiguous(), k=3)[0]
        assert torch.equal(MODEL.recommend(view, k=3)[0], expected)
        assert torch.equal(RECOMMENDER.recommend(view, k=3).items, expected)
    values, offsets = torch.arange(1, 13)[::2], torch.tensor([0, 9, 2, 9, 6])[::2]
    expected = MODEL.recommend((values.contiguous(), offsets.contiguous()), k=3)[0]
    assert torch.equal(MODEL.recommend((values, offsets), k=3)[0], expected)
    assert torch.equal(RECOMMENDER.recommend((values, offsets), k=3).items, expected)


@pytest.mark.parametrize("k", [0, 31, True, 3.0, "3", None])
def test_k_is_an_int_of_the_catalogue(k: Any) -> None:
    for ask in (MODEL.recommend, RECOMMENDER.recommend):
        with pytest.raises(ValueError, match=r"k=.* must lie in 1\.\.30"):
            ask([[1]], k=k)


@pytest.mark.parametrize(
    ("seen", "message"),
    [
        ([[1]], "seen is a list"),
        (torch.tensor([1]), "seen is a Tensor"),
        ((torch.tensor([1.0]), torch.tensor([0, 1])), r"float32 \[1\], row 0: 1\.0"),
        ((torch.tensor([31]), torch.tensor([0, 1])), r"seen: item id 31 .* \(row 0\)"),
        ((torch.tensor([-1]), torch.tensor([0, 1])), "seen: item id -1"),
        ((torch.tensor([1]), torch.tensor([0, 1, 1])), "offsets must be 2 numbers"),
        ((torch.tensor([1]), torch.tensor([0, 9])), "offsets must be 2 numbers"),
    ],
    ids=str,
)  # fmt: skip
def test_seen_items_are_checked(seen: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MODEL.recommend([[1, 2]], k=3, seen=seen)


@pytest.mark.parametrize(
    ("exclude", "message"),
    [
        ([[1.5]], r"exclude\[0\]\[0\] is 1\.5, a float"),
        ([["a"]], r"exclude\[0\]\[0\] is 'a'"),
        ([[99]], "exclude: item id 99"),
        (5, "exclude is a int"),
    ],
    ids=str,
)  # fmt: skip
def test_exclusions_are_checked(exclude: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RECOMMENDER.recommend([[1, 2]], k=3, exclude=exclude)


def test_the_module_itself_takes_tensors() -> None:
    for given, lengths, message in (
        ([[1, 2]], None, "item_ids is a list; it must be .* recommend takes lists"),
        (torch.tensor([[1, 2]]), [2], "lengths is a list"),
        (torch.tensor([[1, 2]]), torch.tensor([2.0]), r"lengths must be int64 \[1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            MODEL(given, lengths)
