"""The whole model as a benchmark subject: shared by the training step and the recommendation."""

from __future__ import annotations

import copy
import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from adarec_fast import ADARec
from adarec_fast.reference.depth_controller import depth_controller

from .baselines import library_gru
from .baselines.packed import PackedADARec
from .baselines.padded import PaddedADARec
from .harness import COMPILED, EAGER, MEMORY_LIMIT, PACKED, Subject, Unavailable
from .workloads import MAX_DEPTH, MAX_LENGTH, NUM_ITEMS, WORKLOADS, Histories, histories

OURS = "adarec_fast"


class ModelCase(Subject):
    """ADARec with T = 8, two layers, two heads, dropout 0.5 and a catalogue of Beauty's size."""

    workloads: ClassVar[tuple[str, ...]]
    training_only: ClassVar[bool] = False
    serving_only: ClassVar[bool] = False
    every_position: ClassVar[bool] = False

    def __init__(
        self, workload: str, size: int, direction: str, device: str, batches: int = 4
    ) -> None:
        self.workload, self.size, self.direction, self.device = workload, size, direction, device
        drawn = histories(workload, batches, every_position=self.every_position)
        self.data = [batch.to(device) for batch in drawn]
        self.model = ADARec(
            num_items=NUM_ITEMS, hidden_size=size, max_depth=MAX_DEPTH,
            supervision="all" if self.every_position else "prefix",
        ).to(device)  # fmt: skip
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            # Fresh weights give everybody the same depth at evaluation; these spread it.
            for parameter in self.model.depth_controller.parameters():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
        # Counted are the levels that this model computes.
        self.data = [dataclasses.replace(b, depth=self._depth(b)) for b in self.data]

    @torch.no_grad()
    def _depth(self, batch: Histories) -> Tensor:
        model = self.copy().train(WORKLOADS[self.workload].training)
        return model((batch.item_ids, batch.offsets)).depth

    @classmethod
    def option_name(cls) -> str:
        """What ``--op`` calls it."""
        raise NotImplementedError

    @classmethod
    def variants(cls, device: str) -> list[str]:
        """The baselines, and the model as its users have it."""
        return [EAGER, COMPILED, PACKED, OURS]

    def copy(self) -> ADARec:
        """The model again, with parameters of its own."""
        return copy.deepcopy(self.model)

    def padded(self, *, compiled: bool = False) -> PaddedADARec:
        """The padded baseline. Raises Unavailable if it would not fit into memory.

        On a GPU its recurrence is cuDNN's. To be compiled, the recurrence is left out, which breaks
        the graph in two: see ``GRU_NOT_COMPILED``.
        """
        limit = MEMORY_LIMIT
        if self.device == "cuda":
            limit = int(0.6 * torch.cuda.get_device_properties(0).total_memory)
        cells = (MAX_DEPTH + 1) * WORKLOADS[self.workload].batch * MAX_LENGTH
        # Kept for the backward pass: both experts, the trajectory, the attention's squares.
        held = 70 if WORKLOADS[self.workload].training else 20
        needed = 4 * cells * (held * self.size + 10 * MAX_LENGTH)
        if self.every_position:
            needed += 12 * max(batch.tokens for batch in self.data) * NUM_ITEMS
        if needed > limit:
            raise Unavailable(
                f"padded it needs about {needed / 2**30:.0f} GiB, more than {limit / 2**30:.0f}"
            )
        recurrent = library_gru.depth_controller if self.device == "cuda" else depth_controller
        if compiled:
            recurrent = torch.compiler.disable(recurrent)
        return PaddedADARec(self.copy(), recurrent)

    def packed(self) -> PackedADARec:
        """The packed baseline."""
        return PackedADARec(self.copy())

    def layer_flops(self, tokens: int, outputs: int, pairs: int) -> int:
        """Matrix products of a Transformer layer: see ``test_bench_encoder_layer``."""
        return (4 * tokens + 20 * outputs) * self.size**2 + 4 * pairs * self.size

    def model_flops(self, batch: Histories, *, contrast: bool) -> int:
        """Matrix products from item ids to users, at the depths of the batch."""
        square, tokens, sequences = self.size**2, batch.tokens, batch.level_sequences
        pairs = int((batch.lengths * (batch.lengths + 1) // 2).sum())
        backbone = self.model.config.num_layers * self.layer_flops(tokens, tokens, pairs)
        trajectory = (batch.level_tokens - tokens) * 8 * square
        read, read_levels, level_pairs = batch.batch, sequences, batch.level_tokens
        if self.every_position:
            read, read_levels = tokens, batch.level_tokens
            level_pairs = int((batch.lengths * (batch.lengths + 1) // 2 * (batch.depth + 1)).sum())
        fine = self.layer_flops(batch.level_tokens, read_levels, level_pairs)
        coarse = (batch.level_tokens if contrast else read_levels) * 8 * square
        fusion = (read_levels + read) * 2 * square
        return backbone + tokens * 12 * square + trajectory + fine + coarse + fusion

    def parameter_bytes(self) -> int:
        """Bytes of all parameters."""
        return sum(p.numel() * p.element_size() for p in self.model.parameters())
