"""The local path before an encoder layer: a causal depthwise convolution, residual, LayerNorm."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.reference.local_path import local_path as reference

from .baselines import packed
from .baselines.padded import keep_mask
from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import Histories

_TAPS, _EPS, _DROPOUT = 3, 1e-5, 0.5
_WEIGHTS = ("taps", "norm_weight", "norm_bias")


def _weights(t: Tensors) -> tuple[Tensor, Tensor, Tensor]:
    return t["taps"], t["norm_weight"], t["norm_bias"]


class LocalPath(OpCase):
    name = "local_path"
    stochastic = True
    differentiable = ("x", *_WEIGHTS)
    axes: ClassVar[dict[str, Axis]] = {"x": ("token", 0)}
    output_axes = (("token", 0),)

    def make(self, generator: torch.Generator) -> Tensors:
        return {
            "x": normal(generator, self.batch.tokens, self.size),
            "taps": normal(generator, _TAPS, self.size),
            "norm_weight": normal(generator, self.size),
            "norm_bias": normal(generator, self.size),
        }

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.local_path(
            t["x"], batch.offsets, *_weights(t), eps=_EPS, p=_DROPOUT, seed=seed,
            max_length=self.max_length, backend=backend,
        )  # fmt: skip

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        with packed.torch_noise():
            return packed.local_path.fwd(
                t["x"], batch.offsets, *_weights(t), _EPS, _DROPOUT,
                batch.offsets[:1] if drawn else None, 0,
            )  # fmt: skip

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        keep = keep_mask(tuple(t["x"].shape), _DROPOUT, t["x"]) if drawn else None
        return reference(t["x"], *_weights(t), _EPS, _DROPOUT, keep)

    def padded_floats(self) -> int:
        held = (16 if self.backward else 6) + _TAPS
        return held * self.batch.batch * self.max_length * self.size

    def flops(self) -> int:
        taps, norm = 2 * _TAPS, 10
        both = taps + norm
        return (3 * both if self.backward else both) * self.batch.tokens * self.size

    def bytes(self) -> int:
        # Backward reads x and y's gradient and writes x's.
        return 4 * self.batch.tokens * self.size * (5 if self.backward else 2)


CASES = (LocalPath,)


def test_local_path(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
