"""The C++ gated aggregation: threads, sizes, refusals. The rest: the op's suite."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch
from helpers import Backend, Batch, evaluate, random_batch
from helpers_accuracy import check_against_float64
from hypothesis import given
from hypothesis import strategies as st
from test_moe_aggregate import build
from torch import Tensor

from adarec_fast.ops._library import unavailable

CPP = Backend("moe_aggregate", "cpp", "cpu")
VARIANTS = {"content": partial(build, soft=True), "level": partial(build, content=False)}
BATCH = Batch((1, 1, 1), (2, 0, 1))


@pytest.fixture(autouse=True)
def _built() -> Iterator[None]:
    why = unavailable("moe_aggregate", "cpp", "cpu")
    if why is not None:
        pytest.skip(f"cpp cannot run moe_aggregate: {why}")
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_any_number_of_threads_gives_the_same_bits(variant: str) -> None:
    # More tiles than shares of the weights' gradients.
    case = VARIANTS[variant](random_batch(1500, size=32, max_depth=5))
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(evaluate(case, "cpp", torch.float32))
    for result in results[1:]:
        for one, other in zip(results[0].outputs, result.outputs, strict=True):
            assert torch.equal(one, other)
        for name, one in results[0].gradients.items():
            assert torch.equal(one, result.gradients[name]), f"d {name}"


@pytest.mark.parametrize("variant", VARIANTS)
def test_autograd_in_cpp_gives_what_autograd_in_python_does(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = VARIANTS[variant](random_batch(100, size=16, max_depth=4))
    eager = evaluate(case, "cpp", torch.float32)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    python = evaluate(case, "cpp", torch.float32)
    for one, other in zip(eager.outputs, python.outputs, strict=True):
        assert torch.equal(one, other)
    for name, one in eager.gradients.items():
        assert torch.equal(one, python.gradients[name]), f"d {name}"


def test_autograd_in_cpp_follows_what_is_asked_for() -> None:
    case = build(BATCH)
    tensors = case.tensors(torch.float32)
    result = case.call(tensors, "cpp")
    assert [output.requires_grad for output in result] == [True, False, False, False]
    # One gradient alone is that of the whole.
    one = case.tensors(torch.float32)
    for name in case.differentiable:
        one[name] = one[name].detach().requires_grad_(name == "gate_w")
    (alone,) = torch.autograd.grad(case.call(one, "cpp")[0].sum(), [one["gate_w"]])
    assert torch.equal(alone, torch.autograd.grad(result[0].sum(), [tensors["gate_w"]])[0])
    plain = {k: None if v is None else v.detach() for k, v in tensors.items()}
    assert not any(output.requires_grad for output in case.call(plain, "cpp"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("hidden", [1, 7, 48])
def test_router_of_any_width(variant: str, hidden: int) -> None:
    case = VARIANTS[variant](random_batch(40, size=20, max_depth=3))
    for name, axis in (("router_w1", 0), ("router_level_bias", 1), ("router_w2", 0)):
        value = case.arguments[name]
        case.arguments[name] = torch.cat([value, value, value], axis).narrow(axis, 0, hidden)
    check_against_float64(case, CPP, torch.float32)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", torch.tensor([0, 3, 1]), r"depth\[1\]=3 must lie in -1..2"),
        ("depth", torch.tensor([-2, 0, 1]), r"depth\[0\]=-2 must lie in -1..2"),
        ("depth", torch.tensor([0, 1]), "depth has shape"),
        ("fine", torch.zeros(3, 3, 16, dtype=torch.float16), "fine has dtype"),
        ("coarse", torch.zeros(3, 3, 15), "coarse has shape"),
        ("pooled", torch.zeros(3, 2, 16), "pooled has shape"),
        ("level_mass", torch.zeros(3), "level_mass has shape"),
        ("router_w1", torch.zeros(16, 15), "router_w1 has shape"),
        ("gate_w", torch.zeros(16), "gate_w has shape"),
    ],
)
def test_bad_tensors_are_refused(name: str, value: Tensor, message: str) -> None:
    case = build(BATCH)
    tensors = case.tensors(torch.float32)
    tensors[name] = value
    with pytest.raises(ValueError, match=message):
        case.call(tensors, "cpp")


def test_strided_arguments_are_read_right() -> None:
    case = build(random_batch(5, size=16))
    plain = case.tensors(torch.float32)
    strided = dict(plain)
    for name in ("fine", "pooled", "depth", "level_mass", "router_w1", "gate_w"):
        strided[name] = torch.stack([plain[name], plain[name]], -1)[..., 0].detach()
        assert not strided[name].is_contiguous()
    for wanted, got in zip(case.call(plain, "cpp"), case.call(strided, "cpp"), strict=True):
        assert torch.equal(wanted, got)


@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 3), max_size=4))
def test_any_depths_run_or_are_refused(depth: list[int]) -> None:
    case = build(BATCH)
    tensors = case.tensors(torch.float32)
    tensors["depth"] = torch.tensor(depth, dtype=torch.int64)
    if len(depth) == 3 and all(-1 <= d <= 2 for d in depth):
        case.call(tensors, "cpp")
    else:
        with pytest.raises(ValueError, match="depth"):
            case.call(tensors, "cpp")
