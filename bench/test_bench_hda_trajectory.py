"""Hierarchical diffusion augmentation: noise, denoiser and x0 of every level (Eq. 4, 5)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops
from adarec_fast.models.adarec.diffusion import alpha_bar_schedule
from adarec_fast.reference.hda_trajectory import hda_trajectory as reference

from .baselines import packed
from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import MAX_DEPTH, Histories


class HDATrajectory(OpCase):
    name = "hda_trajectory"
    workloads = ("train", "large")
    stochastic = True
    differentiable = ("embeddings", "w1", "level_bias", "w2", "b2")
    axes: ClassVar[dict[str, Axis]] = {"embeddings": ("token", 0), "noise": ("token", 1)}
    output_axes = (("token", 1), ("token", 0))

    def make(self, generator: torch.Generator) -> Tensors:
        size, hidden, tokens = self.size, 2 * self.size, self.batch.tokens
        made = {
            "embeddings": normal(generator, tokens, size),
            "alpha_bar": alpha_bar_schedule(MAX_DEPTH, "respaced").float(),
            "w1": normal(generator, hidden, size, fan_in=size),
            "level_bias": normal(generator, MAX_DEPTH, hidden),
            "w2": normal(generator, size, hidden, fan_in=hidden),
            "b2": normal(generator, size),
        }
        if self.training:
            made["noise"] = normal(generator, MAX_DEPTH, tokens, size)
        return made

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.hda_trajectory(
            t["embeddings"], batch.offsets, batch.depth, t["alpha_bar"].float(), t["w1"],
            t["level_bias"], t["w2"], t["b2"], seed=seed,
            noise=t.get("noise") if seed is None else None, max_length=self.max_length,
            backend=backend,
        )

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        noise = t.get("noise")
        if drawn:
            noise = torch.randn(MAX_DEPTH, *t["embeddings"].shape, device=self.device)
        return packed.hda_trajectory._forward(
            t["embeddings"], batch.offsets, batch.depth, t["alpha_bar"], t["w1"],
            t["level_bias"], t["w2"], t["b2"], None, noise,
        )

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        noise = t.get("noise")
        if drawn:
            noise = torch.randn(MAX_DEPTH, *t["embeddings"].shape, device=self.device)
        x0, error = reference(
            t["embeddings"], t["alpha_bar"], t["w1"], t["level_bias"], t["w2"], t["b2"], noise
        )
        computed = self.reached(batch)[1:, :, None]
        return x0, torch.where(computed, error, torch.zeros_like(error)).sum(0)

    def padded_floats(self) -> int:
        held = 12 if self.backward else 4
        return held * self.levels * self.batch.batch * self.max_length * self.size

    def defined(self, name: str, batch: Histories) -> Tensor | None:
        return self.computed(batch) if name == "0" else None

    def flops(self) -> int:
        deep = self.batch.level_tokens - self.batch.tokens
        return self.passes * deep * 8 * self.size**2

    def bytes(self) -> int:
        read, written = self.batch.tokens, self.batch.level_tokens
        weights = 4 * self.size**2
        if self.backward:  # forward, then: gradient of x0 and E read, gradient of E written
            read, written, weights = 3 * read, 2 * written, 3 * weights
        return 4 * ((read + written) * self.size + weights)


CASES = (HDATrajectory,)


def test_hda_trajectory(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
