"""The training step: forward, backward, gradient clipping and Adam, dropout on."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from adarec_fast import ADARec, TrainConfig
from adarec_fast.training.captured import make_stepper
from adarec_fast.training.statistics import EpochStatistics

from .cell import Cell
from .harness import (
    BASELINE_TINY,
    COMPILED,
    EAGER,
    PACKED,
    Prepared,
    assert_accurate,
    complaint,
    warmed,
)
from .model_case import OURS, ModelCase
from .workloads import NUM_ITEMS, Histories

_CLIP, _LEARNING_RATE = 5.0, 1e-3
_CHECKED = 64  # sequences of the batch that gradients are compared on
_DRAWS = 3
Loss = Callable[[Histories], Tensor]


class TrainingStep(ModelCase):
    """One optimizer step, over four batches in turn.

    Every variant has the same optimizer and clipping. Padded ids are made beforehand. Noise,
    depths and dropout are drawn by the contract in ours and by torch's generator elsewhere.
    """

    name = "training step"
    workloads: ClassVar[tuple[str, ...]] = ("train",)
    training_only = True

    @classmethod
    def option_name(cls) -> str:
        return "step"

    @classmethod
    def directions(cls, workload: str) -> tuple[str, ...]:
        """A step is a step."""
        return ("step",)

    def prepare(self, variant: str) -> Prepared:
        module, loss = self._loss(variant)
        wrong = complaint(lambda: self._check(variant, module, loss))
        module.train()
        if variant == OURS and self.device == "cuda":
            return self._captured(module, wrong)
        parameters = list(module.parameters())
        fused = torch.optim.Adam(parameters, lr=_LEARNING_RATE, fused=True)
        batches = itertools.cycle(self.data)

        def step(batch: Histories | None = None) -> None:
            fused.zero_grad(set_to_none=True)
            loss(batch or next(batches)).backward()
            nn.utils.clip_grad_norm_(parameters, _CLIP)
            fused.step()

        if variant != COMPILED:
            step(self.data[0].part(0, 2))  # Adam's state is no activation
        info = warmed(step, self.device, first=variant != COMPILED)
        return Prepared(step, {**info, "ours": variant == OURS}, wrong)

    def _captured(self, module: nn.Module, wrong: str | None) -> Prepared:
        """Ours on a GPU is the step that training takes there, replayed from a graph."""
        assert isinstance(module, ADARec)
        device = torch.device(self.device)
        settings = TrainConfig.create(gradient_clip=_CLIP, learning_rate=_LEARNING_RATE)
        stepper = make_stepper(module, settings, device)
        statistics = EpochStatistics(module.diagnostics(), device)
        batches = itertools.cycle([batch.as_batch() for batch in self.data])

        def step() -> None:
            stepper.step(next(batches), 1, statistics)

        info = warmed(step, self.device, first=True)
        for _ in range(2 * len(self.data)):  # a shape is captured at its second use
            step()
        return Prepared(step, {**info, "ours": True, "step": type(stepper).__name__}, wrong)

    def _loss(self, variant: str) -> tuple[nn.Module, Loss]:
        if variant == PACKED:
            packed = self.packed()
            return packed, lambda b: packed(b.item_ids, b.offsets, b.targets)
        if variant in (EAGER, COMPILED):
            padded = self.padded(compiled=variant == COMPILED)
            ids = {id(batch): batch.padded_ids() for batch in self.data}
            call: Callable[..., Tensor] = padded
            if variant == COMPILED:
                mode = "reduce-overhead" if self.device == "cuda" else None
                call = torch.compile(padded, dynamic=False, mode=mode)

            def loss(batch: Histories) -> Tensor:
                known = ids.get(id(batch))
                return call(
                    batch.padded_ids() if known is None else known, batch.lengths, batch.targets
                )

            return padded, loss
        model = self.copy()
        return model, lambda b: model.loss(b.as_batch()).total

    def _check(self, variant: str, module: nn.Module, loss: Loss) -> None:
        """Loss and gradients without noise and dropout against the reference in float64.

        A compiled baseline is not compiled a second time for that: with everything drawn, its mean
        loss is compared with the eager one's.
        """
        if variant == COMPILED:
            eager = self._loss(EAGER)[1]
            means = []
            for function in (loss, eager):
                with torch.no_grad():
                    draws = [float(function(self.data[0]).detach()) for _ in range(_DRAWS)]
                means.append(sum(draws) / _DRAWS)
            assert abs(means[0] - means[1]) < 0.02 * means[1], f"mean losses {means}"
            return
        part = self.data[0].part(0, _CHECKED)
        module.eval()
        gold, same = self._gold()
        value = loss(part)
        value.backward()
        found = torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])
        module.zero_grad()
        pairs = ((value.detach()[None], gold[0], same[0]), (found, gold[1], same[1]))
        for ours, exact, plain in pairs:
            assert_accurate(ours, plain, exact, f"{variant}: loss or gradients", BASELINE_TINY)

    def _gold(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Loss and gradients of the reference backend on the CPU, in float64 and in float32."""
        if not hasattr(self, "_exact"):
            part = self.data[0].part(0, _CHECKED).to("cpu")
            made = []
            for dtype in (torch.float64, torch.float32):
                model = self.copy().to("cpu", dtype).eval()
                model.config = model.config.replace(backend="reference")
                total = model.loss(part.as_batch()).total
                total.backward()
                grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
                made.append((total.detach()[None], torch.cat(grads)))
            self._exact = made[0], made[1]
        return self._exact

    def flops(self) -> int:
        batch = self.data[0]
        catalogue = 2 * batch.targets.numel() * NUM_ITEMS * self.size
        return 3 * (self.model_flops(batch, contrast=True) + catalogue)

    def bytes(self) -> int:
        # Weights read, gradients written, Adam: reads and writes weights and two moments.
        return (2 + 1 + 6) * self.parameter_bytes()


class EveryPositionStep(TrainingStep):
    """The step under ``supervision="all"``: whole histories, each position with its target."""

    form = "every position"
    every_position: ClassVar[bool] = True

    @classmethod
    def variants(cls, device: str) -> list[str]:
        """Without the compiled baseline: its positions are selected by a mask, in any number."""
        return [EAGER, PACKED, OURS]


CASES = (TrainingStep, EveryPositionStep)


def test_step(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
