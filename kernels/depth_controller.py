"""``depth_controller`` in Triton: a GRU over jagged tokens, mean pool and logits (Eq. 1, 2).

Two launches forward: the input's share of the gates, with the order that the sequences are scanned
in, and the scan, which pools and makes the logits as it ends. Five backward: gates, scan, weights,
dE, and the weights' partials added up. ``_gru.py`` has what runs over all tokens at once,
``_gru_scan.py`` what runs step by step.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from . import _heuristics
from ._gru import RANKED, TURNED, embeddings_kernel, gates_kernel, weights_kernel
from ._gru_scan import scan_backward_kernel, scan_kernel
from ._launch import (
    Operands,
    architecture,
    launch,
    multiprocessors,
    operands,
    padded_size,
    search_steps,
)
from ._reduce import Partials

PROGRAMS = 2  # of a scan, a multiprocessor at most: each loads the recurrent weights once


class _Run:
    """The arguments that kernels share, and their start by name."""

    def __init__(
        self, embeddings: Tensor, offsets: Tensor, sequence_bias: Tensor, w_ih: Tensor,
        w_hh: Tensor, b_hh: Tensor, w_out: Tensor, b_out: Tensor,
    ) -> None:
        self.ops: Operands = operands(embeddings)
        self.tokens, size = embeddings.shape
        self.batch, self.units, levels = offsets.shape[0] - 1, w_hh.shape[1], w_out.shape[0]
        self.device = embeddings.device
        self.arguments: dict[str, Any] = {
            "e_ptr": embeddings, "offsets_ptr": offsets, "bias_ptr": sequence_bias.contiguous(),
            "w_ih_ptr": w_ih.contiguous(), "w_hh_ptr": w_hh.contiguous(), "b_hh_ptr": b_hh,
            "w_out_ptr": w_out.contiguous(), "b_out_ptr": b_out,
            "order_ptr": torch.empty(self.batch, dtype=torch.int32, device=self.device),
            "tokens": self.tokens, "batch": self.batch, "steps": search_steps(self.batch),
            "ranks": triton.cdiv(self.batch, RANKED.value),
            "D": size, "G": self.units, "LEVELS": levels,
            "BLOCK_D": padded_size(size), "BLOCK_G": padded_size(self.units, "hidden size"),
            "OPERAND": self.ops.dtype, "PRECISION": self.ops.precision,
        }

    def tile(self, name: str) -> _heuristics.Tile:
        block = max(self.arguments["BLOCK_G"], self.arguments["BLOCK_D"])
        rows = self.batch if name.startswith("gru_scan") else self.tokens
        return _heuristics.tile(name, block, self.ops.kind, architecture(self.device), rows)

    def __call__(self, kernel: Any, tile: _heuristics.Tile, *grid: int, **more: Any) -> None:
        every = {
            **self.arguments, "ROWS": tile.rows, "USERS": tile.rows, "CHUNK": tile.chunk,
            "DEPTH": 32, **more,
        }
        launch(kernel, grid, {n: every[n] for n in kernel.arg_names}, tile.options)

    def gates(self, *, whole: bool) -> None:
        tile = self.tile("gru_gates")
        programs = self.arguments["ranks"] + triton.cdiv(self.tokens, tile.rows)
        if whole:
            programs += triton.cdiv(3 * self.units**2, TURNED.value)
        chunks = triton.cdiv(self.units, tile.chunk)
        self(gates_kernel, tile, programs, chunks, WHOLE_GATES=whole)

    def scan(self, kernel: Any, name: str) -> None:
        """Small tiles while each of them can have a multiprocessor."""
        most = multiprocessors(self.device)
        tile = self.tile(name)
        if triton.cdiv(self.batch, tile.rows) > most:
            tile = self.tile(f"{name}_many")
        self(kernel, tile, min(triton.cdiv(self.batch, tile.rows), PROGRAMS * most))


def fwd(
    embeddings: Tensor, offsets: Tensor, sequence_bias: Tensor, w_ih: Tensor, w_hh: Tensor,
    b_hh: Tensor, w_out: Tensor, b_out: Tensor, max_length: int,
) -> tuple[Tensor, Tensor]:
    """``depth_controller_fwd`` of the op's schema: logits ``[B, T+1]``, hidden ``[N, G]``."""
    embeddings, offsets = embeddings.contiguous(), offsets.contiguous()
    run = _Run(embeddings, offsets, sequence_bias, w_ih, w_hh, b_hh, w_out, b_out)
    gates = embeddings.new_empty(3, run.tokens, run.units, dtype=torch.float32)
    hidden = embeddings.new_empty(run.tokens, run.units)
    logits = embeddings.new_empty(run.batch, w_out.shape[0])
    run.arguments |= {
        "gates_ptr": gates, "hidden_ptr": hidden, "logits_ptr": logits, "place_ptr": None,
        "turned_ptr": None,
    }
    run.gates(whole=False)
    run.scan(scan_kernel, "gru_scan")
    return logits, hidden


def bwd(
    grad_logits: Tensor, hidden: Tensor, embeddings: Tensor, offsets: Tensor,
    sequence_bias: Tensor, w_ih: Tensor, w_hh: Tensor, b_hh: Tensor, w_out: Tensor, b_out: Tensor,
    max_length: int,
) -> tuple[Tensor, ...]:
    """``depth_controller_bwd``: gradients of all inputs but the offsets, in their order."""
    embeddings, offsets, hidden, grad_logits, sequence_bias = (
        t.contiguous() for t in (embeddings, offsets, hidden, grad_logits, sequence_bias)
    )
    run = _Run(embeddings, offsets, sequence_bias, w_ih, w_hh, b_hh, w_out, b_out)
    wide = {"dtype": torch.float32, "device": embeddings.device}
    d_e, d_bias = torch.empty_like(embeddings), torch.empty_like(sequence_bias)
    tile = run.tile("gru_weights")
    parts = 3 * triton.cdiv(run.units, tile.chunk) + triton.cdiv(w_out.shape[0], tile.chunk)
    slots = min(
        max(1, triton.cdiv(run.tokens, tile.rows)),
        max(2, triton.cdiv(multiprocessors(run.device), parts)),
    )
    weights = {"w_ih": w_ih, "w_hh": w_hh, "b_hh": b_hh, "w_out": w_out, "b_out": b_out}
    partials = Partials()
    run.arguments |= {
        "grad_ptr": grad_logits, "hidden_ptr": hidden, "d_e_ptr": d_e, "d_bias_ptr": d_bias,
        "gates_ptr": torch.empty(4, run.tokens, run.units, **wide),
        "turned_ptr": torch.empty_like(w_hh, memory_format=torch.contiguous_format),
        "pooled_ptr": torch.empty(run.batch, run.units, **wide),
        "place_ptr": torch.empty(run.tokens, dtype=torch.int32, device=run.device),
        **{f"d_{name}_ptr": partials.new(w, slots) for name, w in weights.items()},
    }
    run.gates(whole=True)
    run.scan(scan_backward_kernel, "gru_scan_backward")
    run(weights_kernel, tile, slots, parts)
    tile = run.tile("gru_gates")
    run(embeddings_kernel, tile, triton.cdiv(run.tokens, tile.rows))
    return d_e, d_bias, *partials.sum(*weights.values())
