"""Eq. 4, 5 and 7 to 11 at once: what goes in and comes out, from E to h.

The op's reference is the composition of the references of the ops that it stands for, see
:func:`adarec_fast.ops.fused_trajectory.separate`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from .. import ragged, rng


class TrajectoryInputs(NamedTuple):
    """The op's arguments in the schema's order; see :func:`adarec_fast.ops.fused_trajectory`."""

    embeddings: Tensor
    offsets: Tensor
    depth: Tensor
    level_mass: Tensor
    alpha_bar: Tensor
    w1: Tensor
    level_bias: Tensor
    w2: Tensor
    b2: Tensor
    qkv_w: Tensor
    qkv_b: Tensor
    out_w: Tensor
    out_b: Tensor
    ln1_w: Tensor
    ln1_b: Tensor
    ff1_w: Tensor
    ff1_b: Tensor
    ff2_w: Tensor
    ff2_b: Tensor
    ln2_w: Tensor
    ln2_b: Tensor
    coarse_w1: Tensor
    coarse_b1: Tensor
    coarse_w2: Tensor
    coarse_b2: Tensor
    coarse_ln_w: Tensor
    coarse_ln_b: Tensor
    router_w1: Tensor
    router_level_bias: Tensor
    router_w2: Tensor
    router_b2: Tensor
    gate_w: Tensor
    gate_b: Tensor
    noise_seed: Tensor | None
    noise: Tensor | None
    seed: Tensor | None
    heads: int
    eps: float
    attention_dropout: float
    hidden_dropout: float
    bounded: bool
    residual: bool
    content: bool
    contrast: bool
    last_only: bool
    max_length: int

    @property
    def denoiser(self) -> tuple[Tensor, ...]:
        """w1, level_bias, w2, b2."""
        return self[5:9]  # type: ignore[return-value]

    @property
    def fine(self) -> tuple[Tensor, ...]:
        """The Transformer layer's twelve parameters."""
        return self[9:21]  # type: ignore[return-value]

    @property
    def coarse(self) -> tuple[Tensor, ...]:
        """The coarse expert's six parameters."""
        return self[21:27]  # type: ignore[return-value]

    @property
    def router(self) -> tuple[Tensor, ...]:
        """The router's four parameters and the final gate's two."""
        return self[27:33]  # type: ignore[return-value]

    @property
    def denoiser_options(self) -> tuple[Any, ...]:
        """What follows the denoiser's parameters in ``hda_trajectory``'s schema."""
        return self.noise_seed, self.noise, self.bounded

    @property
    def fine_options(self) -> tuple[Any, ...]:
        """What follows the fine expert's parameters in ``encoder_layer``'s schema."""
        seed = self.seed if self.attention_dropout or self.hidden_dropout else None
        return (
            self.heads, self.eps, self.attention_dropout, self.hidden_dropout, seed,
            rng.STREAM_FINE_EXPERT, self.last_only, self.max_length, True,
        )

    @property
    def coarse_options(self) -> tuple[Any, ...]:
        """What follows the coarse expert's parameters in ``mlp_expert``'s schema."""
        seed = self.seed if self.hidden_dropout else None
        # Eq. 6 pools the coarse output over all tokens; without it the read-outs are enough.
        last_only = self.last_only and not self.contrast
        return self.eps, self.hidden_dropout, seed, rng.STREAM_COARSE_MLP, self.residual, last_only


class Trajectory(NamedTuple):
    """What :func:`adarec_fast.ops.fused_trajectory` returns."""

    user: Tensor
    error: Tensor
    gates: Tensor
    fine: Tensor
    coarse: Tensor
    pooled: Tensor


def row_depths(depth: Tensor, offsets: Tensor, tokens: int, last_only: bool) -> Tensor:
    """int64 ``[R]``: the depth of every read-out; -1 at capacity."""
    if last_only:
        return depth
    return ragged.row_of_tokens(depth + 1, offsets, tokens) - 1
