"""HDA and HP-MoE as one op beside the separate ops of the same backends (Eq. 4, 5, 7-11)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.ops.fused_trajectory import separate
from adarec_fast.reference.fused_trajectory import TrajectoryInputs

from .cell import Cell
from .harness import PACKED, Prepared
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import Histories

SEPARATE = "separate ops"
_HEADS, _EPS, _DROPOUT = 2, 1e-5, 0.5
_WEIGHTS = TrajectoryInputs._fields[5:33]


class FusedTrajectory(OpCase):
    """The read-out is the last position; in training Eq. 6's pooled levels are made too."""

    name = "fused_trajectory"
    workloads = ("train", "serve-1024")
    stochastic = True
    differentiable = ("embeddings", "level_mass", *_WEIGHTS)
    training = True  # what a profiled step does
    axes: ClassVar[dict[str, Axis]] = {"embeddings": ("token", 0), "level_mass": ("sequence", 1)}

    def __init__(self, workload: str, size: int, direction: str, device: str) -> None:
        super().__init__(workload, size, direction, device)
        self.output_axes = (("sequence", 0), ("token", 0), *self._pooled_axis())

    def _pooled_axis(self) -> tuple[Axis, ...]:
        return (("sequence", 1),) if self.training else ()

    def make(self, generator: torch.Generator) -> Tensors:
        size, levels = self.size, self.levels
        shapes = {
            "w1": (2 * size, size), "level_bias": (levels - 1, 2 * size), "w2": (size, 2 * size),
            "qkv_w": (3 * size, size), "qkv_b": (3 * size,), "out_w": (size, size),
            "ff1_w": (4 * size, size), "ff1_b": (4 * size,), "ff2_w": (size, 4 * size),
            "coarse_w1": (2 * size, size), "coarse_b1": (2 * size,),
            "coarse_w2": (size, 2 * size), "router_w1": (size, size),
            "router_level_bias": (levels, size), "router_b2": (1,), "gate_w": (size, size),
        }  # fmt: skip

        def weight(name: str) -> Tensor:
            shape = shapes.get(name, (size,))
            matrix = len(shape) == 2 and name.endswith(("w", "w1", "w2"))
            return normal(generator, *shape, fan_in=shape[-1] if matrix else 1)

        return {
            "embeddings": normal(generator, self.batch.tokens, size),
            "level_mass": self.reached(self.batch).float(),
            "alpha_bar": torch.linspace(1.0, 0.08, levels),
            **{name: weight(name) for name in _WEIGHTS},
        }

    def _inputs_of(self, t: Tensors, batch: Histories, seed: Tensor | None) -> list[Any]:
        dropout = _DROPOUT if seed is not None else 0.0
        return [
            t["embeddings"], batch.offsets, batch.depth, t["level_mass"], t["alpha_bar"].float(),
            *(t[name] for name in _WEIGHTS), seed, None, seed, _HEADS, _EPS, dropout, dropout,
            False, False, True, self.training, True, self.max_length,
        ]

    def _outputs(self, found: ops.Trajectory) -> tuple[Tensor, ...]:
        return (found.user, found.error, *((found.pooled,) if self.training else ()))

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        i = TrajectoryInputs(*self._inputs_of(t, batch, seed))
        return self._outputs(
            ops.fused_trajectory(
                i.embeddings, i.offsets, i.depth, i.level_mass, i.alpha_bar, i.denoiser,
                ops.LayerWeights(*i.fine), i.coarse, i.router, heads=i.heads, eps=i.eps,
                attention_dropout=i.attention_dropout, hidden_dropout=i.hidden_dropout,
                seed=i.seed, noise_seed=i.noise_seed, content=i.content, contrast=i.contrast,
                last_only=i.last_only, max_length=i.max_length, backend=backend,
            )
        )

    def apart(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        """The separate ops of the backend that is fastest here."""
        given = self._inputs_of(t, batch, self.seed if drawn else None)
        return self._outputs(separate(TrajectoryInputs(*given), "auto"))

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        given = self._inputs_of(t, batch, self.seed if drawn else None)
        return self._outputs(separate(TrajectoryInputs(*given), "packed"))

    @classmethod
    def variants(cls, device: str) -> list[str]:
        """No padded baseline: those of the stages are measured with the stages' own ops."""
        return [PACKED, SEPARATE, *super().variants(device)[3:]]

    def prepare(self, variant: str) -> Prepared:
        if variant == SEPARATE:
            return self._prepared(self.apart, {}, padded=False, check_drawn=self.checked_drawn)
        return super().prepare(variant)

    def defined(self, name: str, batch: Histories) -> Tensor | None:
        return self.reached(batch) if name in ("level_mass", "2") else None

    def flops(self) -> int:
        # Of D x D: 4 the denoiser, 2 keys and values; 4 the coarse expert, of every token if Eq. 6
        # wants it; at the read-outs 2 queries and projection, 8 the feed-forward, 1 the router.
        levels, rows = self.batch.level_tokens, self.batch.level_sequences
        coarse = levels if self.training else rows
        square = 2 * self.size**2
        return self.passes * square * (6 * levels + 4 * coarse + 11 * rows)

    def bytes(self) -> int:
        rows = self.batch.tokens + self.batch.batch
        return 4 * (2 * rows * self.size + 25 * self.size**2) * (2 if self.backward else 1)


CASES = (FusedTrajectory,)


def test_fused_trajectory(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
