"""`level_infonce`: the contrastive loss between neighbouring coarse levels (Eq. 6)."""

from __future__ import annotations

from typing import ClassVar

import torch
from helpers import Backend, Batch, OpCase, sized
from helpers_accuracy import check_against_float64
from helpers_suite import WHOLE, Build, OpSuite, recorded

from adarec_fast.ops import level_infonce
from adarec_fast.ops._library import collecting


def build(batch: Batch) -> OpCase:
    g = batch.generator()
    rows = batch.num_sequences
    return OpCase(
        function=level_infonce,
        arguments={
            "z": torch.randn(batch.levels, rows, batch.size, generator=g),
            "depth": batch.depth(),
            # Few enough targets that some users share one.
            "targets": torch.randint(1, max(2, rows) + 1, (rows,), generator=g),
        },
        differentiable=("z",),
        options={"temperature": 0.07},
        readable={"z": batch.reached()},
        scale=1 / max(rows, 1),
        axes={"z": ("sequence", 1), "depth": ("sequence", 0), "targets": ("sequence", 0)},
    )


class TestLevelInfoNCE(OpSuite):
    op = "level_infonce"
    variants: ClassVar = {"shared-targets": build}
    free = ("z",)
    # The reference holds [levels, B, B].
    many = 2000
    # The users of a batch are each other's negatives.
    test_a_sequence_does_not_depend_on_its_batch = None

    def test_opcheck(self, main: Build, rival: Backend) -> None:
        """What kernels hand to their backward has gaps that nobody writes, as has what the C++
        forward keeps; all else is compared."""
        every = ("test_schema", "test_autograd_registration", "test_faketensor")
        for op, arguments in recorded(main(sized(WHOLE, rival)), rival, torch.float32):
            gaps = rival.name == "triton" or op.__name__.startswith("level_infonce_keep")
            more = () if gaps else ("test_aot_dispatch_dynamic",)
            if not collecting():  # it would launch the same again, many times
                torch.library.opcheck(op, arguments, test_utils=every + more)

    def test_all_of_one_depth_and_none(self, backend: Backend) -> None:
        for depths in ((2,) * 40, (0,) * 40, (0,) * 20 + (4,) * 20):
            batch = Batch((1,) * 40, depths, size=20, max_depth=4)
            check_against_float64(build(batch), backend, torch.float32)
