"""The coarse expert, a token-wise MLP over all levels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.reference.mlp_expert import mlp_expert as reference

from .baselines import packed
from .baselines.padded import keep_mask
from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import Histories

_EPS, _DROPOUT = 1e-5, 0.5
_WEIGHTS = ("w1", "b1", "w2", "b2", "ln_w", "ln_b")


def _weights(t: Tensors) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return t["w1"], t["b1"], t["w2"], t["b2"], t["ln_w"], t["ln_b"]


class MLPExpert(OpCase):
    name = "mlp_expert"
    stochastic = True
    differentiable = ("x", *_WEIGHTS)
    axes: ClassVar[dict[str, Axis]] = {"x": ("token", 1)}
    output_axes = (("token", 1),)

    def make(self, generator: torch.Generator) -> Tensors:
        size, hidden = self.size, 2 * self.size
        return {
            "x": normal(generator, self.levels, self.batch.tokens, size),
            "w1": normal(generator, hidden, size, fan_in=size),
            "b1": normal(generator, hidden),
            "w2": normal(generator, size, hidden, fan_in=hidden),
            "b2": normal(generator, size),
            "ln_w": normal(generator, size),
            "ln_b": normal(generator, size),
        }

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.mlp_expert(
            t["x"], batch.offsets, batch.depth, *_weights(t), eps=_EPS,
            hidden_dropout=_DROPOUT, seed=seed, max_length=self.max_length, backend=backend,
        )

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        with packed.torch_noise():
            return packed.mlp_expert._forward(
                t["x"], batch.offsets, batch.depth, *_weights(t), _EPS, _DROPOUT,
                batch.offsets[:1] if drawn else None, 0, False, False,
            )

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        keep = keep_mask(tuple(t["x"].shape), _DROPOUT, t["x"]) if drawn else None
        return reference(t["x"], *_weights(t), _EPS, _DROPOUT, keep)

    def padded_floats(self) -> int:
        held = 14 if self.backward else 7
        return held * self.levels * self.batch.batch * self.max_length * self.size

    def defined(self, name: str, batch: Histories) -> Tensor | None:
        return self.computed(batch) if name in ("x", "0") else None

    def flops(self) -> int:
        return self.passes * self.batch.level_tokens * 8 * self.size**2

    def bytes(self) -> int:
        moved = 2 * self.batch.level_tokens * self.size + 4 * self.size**2
        return 4 * moved * (2 if self.backward else 1)


CASES = (MLPExpert,)


def test_mlp_expert(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
