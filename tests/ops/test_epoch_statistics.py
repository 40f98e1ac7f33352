"""`epoch_statistics`: a step's numbers added to an epoch's sums, on the device."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import Backend, available, backends_for
from torch import Tensor

from adarec_fast.ops import epoch_statistics

LEVELS = 4


def _state(device: str) -> dict[str, Tensor]:
    return {
        "sums": torch.rand(8 + 3 * LEVELS, dtype=torch.float64, device=device),
        "bad_step": torch.full((), -1, dtype=torch.int64, device=device),
        "bad_parts": torch.zeros(6, dtype=torch.bool, device=device),
    }


def _step(number: int, device: str, users: int = 5) -> dict[str, Any]:
    g = torch.Generator().manual_seed(number)
    gate = torch.rand(LEVELS, generator=g)
    gate[number % LEVELS] = math.nan
    return {
        "values": [torch.rand((), generator=g).to(device) for _ in range(8)],
        "depth": torch.randint(0, LEVELS, (users,), generator=g).to(device),
        "gate": gate.to(device),
        "step": number,
    }


@pytest.fixture(params=backends_for("epoch_statistics"))
def backend(request: pytest.FixtureRequest) -> Backend:
    return available(request.param)


def _both(backend: Backend, steps: list[dict[str, Any]]) -> tuple[dict[str, Tensor], list[float]]:
    """The state after some steps, which must be the reference's bit for bit, and what came back."""
    torch.manual_seed(0)
    ours = _state(backend.device)
    reference = {name: tensor.clone() for name, tensor in ours.items()}
    found = []
    for step in steps:
        got = epoch_statistics(**ours, **step, backend=backend.name)
        wanted = epoch_statistics(**reference, **step, backend="reference")
        assert (got.dtype, got.shape) == (torch.float32, ())
        assert torch.equal(got, wanted)
        found.append(float(got))
    for name, tensor in ours.items():
        assert torch.equal(tensor.nan_to_num(), reference[name].nan_to_num()), name
        assert torch.equal(tensor.isnan(), reference[name].isnan()), name
    return ours, found


@pytest.mark.parametrize("users", [0, 1, 5, 1300])
def test_sums_are_the_references(backend: Backend, users: int) -> None:
    state, found = _both(backend, [_step(n, backend.device, users) for n in range(1, 4)])
    assert found == [0.0] * 3
    assert int(state["bad_step"]) == -1
    assert not state["bad_parts"].any()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(8))
def test_the_first_bad_step_is_kept(backend: Backend, place: int, value: float) -> None:
    steps = [_step(n, backend.device) for n in range(1, 5)]
    steps[1]["values"][place].fill_(value)
    steps[2]["values"][(place + 1) % 6].fill_(value)
    state, found = _both(backend, steps)
    first = 2 if place < 6 else 3  # entropy and error are not watched: they are parts of others
    assert int(state["bad_step"]) == first
    wanted = place if place < 6 else (place + 1) % 6
    assert state["bad_parts"].nonzero().flatten().tolist() == [wanted]
    assert found == [float(n >= first) for n in range(1, 5)]


def test_the_step_may_be_on_the_device(backend: Backend) -> None:
    steps = [_step(n, backend.device) for n in (1, 2)]
    steps[1]["values"][4].fill_(math.nan)
    for step in steps:
        step["step"] = torch.tensor(step["step"] + 40, device=backend.device)
    assert int(_both(backend, steps)[0]["bad_step"]) == 42


def test_wider_numbers(backend: Backend) -> None:
    """Means of a batch that workers share are float64."""
    step = _step(1, backend.device)
    step["gate"] = step["gate"].double()
    step["values"] = [value.double() for value in step["values"]]
    _both(backend, [step])


def test_opcheck(backend: Backend) -> None:
    if backend.name == "reference":
        pytest.skip("it is inlined")
    step = _step(1, backend.device)
    tensors = (*_state(backend.device).values(), *step["values"], step["depth"], step["gate"])
    tensors[-1].nan_to_num_()
    arguments = (*tensors, torch.tensor(3, device=backend.device), 0, backend.name)
    torch.library.opcheck(torch.ops.adarec_fast.epoch_statistics_fwd.default, arguments)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"values": []}, "values are 0; they must be 8"),
        ({"gate": torch.zeros(1, LEVELS)}, "gate has shape"),
        ({"depth": torch.zeros(3)}, "depth has dtype torch.float32"),
        ({"sums": torch.zeros(3, dtype=torch.float64)}, "sums has shape"),
        ({"sums": torch.zeros(20)}, "sums has dtype"),
        ({"bad_parts": torch.zeros(5, dtype=torch.bool)}, "bad_parts has shape"),
    ],
)
def test_errors_name_the_argument(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        epoch_statistics(**{**_state("cpu"), **_step(1, "cpu"), **changed})
