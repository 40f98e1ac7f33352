"""A causal Transformer layer: in the backbone, and as the fine expert over all levels."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from adarec_fast import ops, rng
from adarec_fast.reference.encoder_layer import encoder_layer as reference

from .baselines import packed
from .baselines.padded import keep_mask
from .cell import Cell
from .op_case import Axis, OpCase, Tensors, normal
from .workloads import Histories

_HEADS, _EPS, _DROPOUT = 2, 1e-5, 0.5


class Backbone(OpCase):
    """One level, every position."""

    name = "encoder_layer"
    form = "backbone"
    stochastic = True
    differentiable = ("x", *ops.LayerWeights._fields)
    axes: ClassVar[dict[str, Axis]] = {"x": ("token", 1)}
    output_axes = (("token", 1),)
    levels = 1
    last_only = False

    def make(self, generator: torch.Generator) -> Tensors:
        size, inner = self.size, 4 * self.size
        shapes = {
            "qkv_w": (3 * size, size), "qkv_b": (3 * size,), "out_w": (size, size),
            "out_b": (size,), "ln1_w": (size,), "ln1_b": (size,), "ff1_w": (inner, size),
            "ff1_b": (inner,), "ff2_w": (size, inner), "ff2_b": (size,), "ln2_w": (size,),
            "ln2_b": (size,),
        }  # fmt: skip
        weights = {
            name: normal(generator, *shape, fan_in=shape[-1]) for name, shape in shapes.items()
        }
        return {"x": normal(generator, self.levels, self.batch.tokens, size), **weights}

    def depth(self, batch: Histories) -> Tensor | None:
        return None

    def _weights(self, t: Tensors) -> ops.LayerWeights:
        return ops.LayerWeights(*(t[name] for name in ops.LayerWeights._fields))

    def public(self, t: Tensors, batch: Histories, backend: str, seed: Tensor | None) -> Any:
        return ops.encoder_layer(
            t["x"], batch.offsets, self.depth(batch), self._weights(t), heads=_HEADS, eps=_EPS,
            attention_dropout=_DROPOUT, hidden_dropout=_DROPOUT, seed=seed,
            stream=rng.STREAM_FINE_EXPERT, last_only=self.last_only, max_length=self.max_length,
            backend=backend,
        )

    def packed(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        with packed.torch_noise():
            return packed.encoder_layer._forward(
                t["x"], batch.offsets, self.depth(batch), *self._weights(t), _HEADS, _EPS,
                _DROPOUT, _DROPOUT, batch.offsets[:1] if drawn else None, 0, self.last_only,
                self.max_length, True,
            )

    def padded(self, t: Tensors, batch: Histories, drawn: bool) -> Any:
        x = t["x"]
        keep: list[Tensor | None] = [None, None, None]
        if drawn:
            lead, length = x.shape[:-2], x.shape[-2]
            square = (*lead, _HEADS, length, length)
            keep = [
                keep_mask(shape, _DROPOUT, x) for shape in (square, tuple(x.shape), tuple(x.shape))
            ]
        y = reference(
            x, self.valid(batch), *self._weights(t), _HEADS, _EPS, _DROPOUT, _DROPOUT, *keep
        )
        if not self.last_only:
            return y
        return y[:, torch.arange(y.shape[1], device=y.device), batch.lengths - 1]

    def padded_floats(self) -> int:
        cells = self.levels * self.batch.batch * self.max_length
        held = 45 if self.backward else 20
        return cells * (held * self.size + 5 * _HEADS * self.max_length)

    def _counts(self) -> tuple[int, int, int]:
        """Tokens, read-outs, and pairs of a read-out and a token that it attends to."""
        sizes = self.batch.lengths
        return self.batch.tokens, self.batch.tokens, int((sizes * (sizes + 1) // 2).sum())

    def flops(self) -> int:
        tokens, outputs, pairs = self._counts()
        keys_values, rest = 4 * tokens, (2 + 2 + 16) * outputs  # query, projection, feed-forward
        return self.passes * ((keys_values + rest) * self.size**2 + 4 * pairs * self.size)

    def bytes(self) -> int:
        tokens, outputs, _ = self._counts()
        moved = (tokens + outputs) * self.size + 12 * self.size**2
        return 4 * moved * (2 if self.backward else 1)


class FineExpert(Backbone):
    """Every level of every sequence, read out at the last position alone."""

    form = "fine expert"
    levels = OpCase.levels
    last_only = True
    output_axes = (("sequence", 1),)

    def depth(self, batch: Histories) -> Tensor | None:
        return batch.depth

    def defined(self, name: str, batch: Histories) -> Tensor | None:
        return {"x": self.computed, "0": self.reached}.get(name, lambda _: None)(batch)

    def _counts(self) -> tuple[int, int, int]:
        return self.batch.level_tokens, self.batch.level_sequences, self.batch.level_tokens

    def flops(self) -> int:
        # One query a read-out needs no keys and values: it is folded with W_k, and the mean of
        # what it attends to is multiplied by W_v. Each head scores and adds up whole rows of x.
        _, outputs, pairs = self._counts()
        folded = 2 + 2 + 2 + 2 + 16  # queries twice, values, projection, feed-forward
        return self.passes * (folded * outputs * self.size**2 + 4 * _HEADS * pairs * self.size)


CASES = (Backbone, FineExpert)


def test_encoder_layer(cell: Cell, benchmark: BenchmarkFixture) -> None:
    cell.run(benchmark)
