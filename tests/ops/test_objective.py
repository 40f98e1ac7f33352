"""`objective`: Eq. 12 of its parts, and the means that a training log shows."""

from __future__ import annotations

from functools import partial
from typing import Any, ClassVar

import torch
from helpers import Backend, Batch, OpCase
from helpers_suite import RAGGED, OpSuite

from adarec_fast.ops import objective


def build(batch: Batch, *, everywhere: bool = False, without: tuple[str, ...] = ()) -> OpCase:
    g = batch.generator()
    reached, row_depth = batch.reached(), batch.depth()
    if everywhere:
        reached = batch.computed()
        row_depth = reached.sum(0) - 1
    arguments: dict[str, Any] = {
        "rec": torch.rand((), generator=g) + 1,
        "cont": torch.rand((), generator=g),
        "error": torch.rand(batch.num_tokens, generator=g) * batch.size,
        "offsets": batch.offsets(),
        "computed": batch.depth(),
        "logits": torch.randn(batch.num_sequences, batch.levels, generator=g),
        "gates": torch.rand(reached.shape, generator=g),
        "row_depth": row_depth,
    }
    arguments |= dict.fromkeys(without)
    rows = ("token" if everywhere else "sequence", 1)
    return OpCase(
        function=objective,
        arguments=arguments,
        differentiable=tuple(
            name for name in ("rec", "cont", "error", "logits") if name not in without
        ),
        options={"levels": batch.levels, "size": batch.size, "weights": (0.2, 0.1, 0.3)},
        readable={"gates": reached, **({} if "error" in without else {"error": batch.real()})},
        written=(*[None] * 6, reached.any(1)),
        axes={
            "error": ("token", 0), "computed": ("sequence", 0), "logits": ("sequence", 0),
            "gates": rows, "row_depth": (rows[0], 0),
        },
        output_axes=(None,) * 7,
    )


class TestObjective(OpSuite):
    op = "objective"
    variants: ClassVar = {
        "last": build,
        "everywhere": partial(build, everywhere=True),
        "rec-alone": partial(build, without=("cont", "error", "logits")),
        "no-contrast": partial(build, without=("cont",)),
    }
    free = ("rec", "cont", "error", "offsets", "row_depth")
    # Every part is a mean over the batch.
    test_a_sequence_does_not_depend_on_its_batch = None

    def test_levels_that_nobody_reaches_have_no_mean_gate(self, backend: Backend) -> None:
        batch = Batch((2, 1), (1, 0), max_depth=3)
        case = build(batch)
        tensors = case.tensors(torch.float32, backend.device)
        found = objective(**tensors, **case.options, backend=backend.name)
        assert found.gate.isnan().tolist() == [False, False, True, True]
        without = objective(**{**tensors, "gates": None}, **case.options, backend=backend.name)
        assert without.gate.isnan().all()
        assert torch.equal(without.total, found.total)

    def test_parts_are_detached(self, backend: Backend) -> None:
        case = build(RAGGED)
        found = objective(
            **case.tensors(torch.float32, backend.device), **case.options, backend=backend.name
        )
        assert [tensor.requires_grad for tensor in found] == [True] + [False] * 6
