"""The C++ contrastive loss: threads, shared targets, refusals. The rest: the op's suite."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from helpers import Backend, Batch, evaluate, random_batch
from helpers_accuracy import check_against_float64
from test_level_infonce import build
from torch import Tensor

from adarec_fast.ops import _library, level_infonce
from adarec_fast.ops._library import unavailable

CPP = Backend("level_infonce", "cpp", "cpu")


@pytest.fixture(autouse=True)
def _built() -> Iterator[None]:
    why = unavailable("level_infonce", "cpp", "cpu")
    if why is not None:
        pytest.skip(f"cpp cannot run level_infonce: {why}")
    yield
    torch.set_num_threads(1)


def test_any_number_of_threads_gives_the_same_bits() -> None:
    # Enough candidates for several ranges a level.
    case = build(random_batch(5000, size=8, max_depth=3))
    results = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        results.append(evaluate(case, "cpp", torch.float32))
    for result in results[1:]:
        assert torch.equal(results[0].outputs[0], result.outputs[0])
        assert torch.equal(results[0].gradients["z"], result.gradients["z"])


def test_ranges_of_candidates_add_up() -> None:
    # Two ranges at the lowest level; the reference holds [levels, B, B].
    check_against_float64(build(random_batch(2500, size=4, max_depth=2)), CPP, torch.float32)


def test_several_panels_kept_or_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    case = build(random_batch(400, size=20, max_depth=3))
    kept = evaluate(case, "cpp", torch.float32)
    monkeypatch.setattr(_library, "KEPT_BYTES", 0)
    again = evaluate(case, "cpp", torch.float32)
    assert torch.equal(kept.outputs[0], again.outputs[0])
    assert torch.equal(kept.gradients["z"], again.gradients["z"])


def test_pairs_of_too_many_users_are_not_kept() -> None:
    keep = torch.ops.adarec_fast.level_infonce_keep
    z, depth = torch.randn(2, 1025, 4), torch.ones(1025, dtype=torch.int64)
    with pytest.raises(ValueError, match="z has 1025 users; at most 1024"):
        keep(z, depth, torch.arange(1025), 0.07, "cpp")


@pytest.mark.parametrize("temperature", [1e-3, 0.07, 10.0])
def test_temperatures(temperature: float) -> None:
    case = build(random_batch(150, size=16, max_depth=4))
    case.options["temperature"] = temperature
    # The slopes of the similarities are divided by the temperature.
    case = replace(case, scale=case.scale / temperature)
    check_against_float64(case, CPP, torch.float32)


def test_users_who_share_a_target_are_not_compared() -> None:
    # One target for all: every user's own positive is its only candidate.
    z = torch.randn(3, 200, 8, requires_grad=True)
    depth, targets = torch.full((200,), 2), torch.full((200,), 5)
    loss = level_infonce(z, depth, targets, 0.07, backend="cpp")
    loss.backward()
    assert loss == 0
    assert z.grad is not None
    assert not z.grad.any()


def test_vectors_of_zeros() -> None:
    z = torch.zeros(2, 5, 8, requires_grad=True)
    depth, targets = torch.ones(5, dtype=torch.int64), torch.arange(1, 6)
    loss = level_infonce(z, depth, targets, 0.07, backend="cpp")
    loss.backward()
    assert loss.item() == pytest.approx(torch.tensor(5.0).log().item(), rel=1e-6)
    assert z.grad is not None
    assert z.grad.isfinite().all()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("depth", torch.tensor([0, 3, 1]), r"depth\[1\]=3 must lie in 0..2"),
        ("depth", torch.tensor([0, -1, 1]), r"depth\[1\]=-1 must lie in 0..2"),
        ("depth", torch.tensor([0, 1]), "depth has shape"),
        ("targets", torch.tensor([1, 2]), "targets has shape"),
        ("targets", torch.tensor([1.0, 2.0, 3.0]), "targets has dtype"),
        ("z", torch.zeros(3, 3, 16, dtype=torch.float16), "z has dtype"),
    ],
)
def test_bad_tensors_are_refused(name: str, value: Tensor, message: str) -> None:
    case = build(Batch((1, 1, 1), (2, 0, 1)))
    tensors = case.tensors(torch.float32)
    tensors[name] = value
    with pytest.raises(ValueError, match=message):
        case.call(tensors, "cpp")
