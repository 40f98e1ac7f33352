"""``hda_trajectory``: noising, denoiser and x0 for all levels of ragged depth (Eq. 4, 5)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import ragged, rng
from ..reference.hda_trajectory import hda_trajectory as reference
from ._autocast import Autocast
from ._library import check_index, check_seed, check_shape, choose, define, keeps, run

_INPUTS = (
    "Tensor embeddings, Tensor offsets, Tensor depth, Tensor alpha_bar, Tensor w1, "
    "Tensor level_bias, Tensor w2, Tensor b2, Tensor? seed, Tensor? noise, bool bounded"
)


def _fake_forward(embeddings: Tensor, offsets: Tensor, depth: Tensor, alpha_bar: Tensor,
                  *_: Any) -> tuple[Tensor, Tensor]:
    tokens, size = embeddings.shape
    return (
        embeddings.new_empty(alpha_bar.shape[0], tokens, size),
        embeddings.new_empty(tokens, dtype=torch.float32)
        if embeddings.dtype != torch.float64
        else embeddings.new_empty(tokens),
    )


def _fake_backward(grad_x0: Tensor, grad_error: Tensor, embeddings: Tensor, offsets: Tensor,
                   depth: Tensor, alpha_bar: Tensor, w1: Tensor, level_bias: Tensor, w2: Tensor,
                   b2: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(t) for t in (embeddings, w1, level_bias, w2, b2))


def _kept_shape(embeddings: Tensor, alpha_bar: Tensor, w1: Tensor) -> tuple[int, int]:
    """Of what the C++ forward leaves: ``hda_trajectory_kept`` in ``csrc/cpu/hda_trajectory.cpp``.
    """
    tokens, size = embeddings.shape
    return (alpha_bar.shape[0] - 1) * tokens, w1.shape[0] + 2 * size


def _fake_kept(embeddings: Tensor, offsets: Tensor, depth: Tensor, alpha_bar: Tensor, w1: Tensor,
               *_: Any) -> Tensor:
    return embeddings.new_empty(_kept_shape(embeddings, alpha_bar, w1), dtype=torch.float32)


define(
    "hda_trajectory",
    f"({_INPUTS}) -> (Tensor, Tensor)",
    f"(Tensor grad_x0, Tensor grad_error, {_INPUTS}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_forward,
    _fake_backward,
    cpu=("cpp", "packed"),
    cuda=("triton", "packed"),
    fake_kept=_fake_kept,
)


class _HDATrajectory(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, backend: str, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.backend, ctx.autocast = backend, Autocast.current(inputs[0])
        *tensors, ctx.bounded = inputs
        rows, columns = _kept_shape(tensors[0], tensors[3], tensors[4])
        ctx.kept = keeps(backend, rows * columns)
        if not ctx.kept:
            ctx.save_for_backward(*tensors)
            return torch.ops.adarec_fast.hda_trajectory_fwd(*inputs, backend)
        x0, error, kept = torch.ops.adarec_fast.hda_trajectory_keep(*inputs, backend)
        ctx.save_for_backward(kept, *tensors)
        return x0, error

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        with ctx.autocast.restored():
            run = torch.ops.adarec_fast.hda_trajectory_bwd
            if ctx.kept:
                run = torch.ops.adarec_fast.hda_trajectory_resume
            d_e, d_w1, d_bias, d_w2, d_b2 = run(
                *(grad.contiguous() for grad in grads), *ctx.saved_tensors, ctx.bounded,
                ctx.backend,
            )
        return None, d_e, None, None, None, d_w1, d_bias, d_w2, d_b2, None, None, None


def hda_trajectory(
    embeddings: Tensor,
    offsets: Tensor,
    depth: Tensor,
    alpha_bar: Tensor,
    w1: Tensor,
    level_bias: Tensor,
    w2: Tensor,
    b2: Tensor,
    *,
    seed: Tensor | None = None,
    noise: Tensor | None = None,
    bounded: bool = False,
    max_length: int,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """x0 of every level k <= depth of every sequence, and the denoising error of every token.

    Args:
        embeddings: ``[N, D]`` float, E of the packed tokens.
        offsets: int64 ``[B+1]``.
        depth: int64 ``[B]`` in 0..T, the deepest level computed for each sequence.
        alpha_bar: float32 ``[T+1]``, cumulative schedule with alpha_bar[0] = 1.
        w1: ``[H, D]``; level_bias: ``[T, H]``; w2: ``[D, H]``; b2: ``[D]``: the denoiser, the level
            embedding's share of W1 and b1 folded into ``level_bias`` (row k-1 for level k).
        seed: int64 ``[1]`` or ``[3]`` (:mod:`adarec_fast.rng`); None means epsilon = 0.
        noise: explicit epsilon ``[T, N, D]`` instead of a seed.
        bounded: eps_theta is not the denoiser's F(E_k, k) itself, but sqrt(1 - alpha_bar_k) E_k +
            sqrt(alpha_bar_k) F(E_k, k), so that Eq. 5 is x0 = sqrt(alpha_bar_k) E_k -
            sqrt(1 - alpha_bar_k) F.
        max_length: no sequence is longer (the reference pads to it).
        backend: see :mod:`adarec_fast.ops`.

    Returns:
        x0 ``[T+1, N, D]`` (level 0 is E; levels beyond a sequence's depth are not written) and
        error ``[N]``, float32 or wider: the sum over k = 1..depth and D of (eps_theta - eps)^2.

    Raises:
        ValueError: a shape or dtype that does not fit, naming the argument.
        BackendError: the backend cannot run here.
    """
    check_shape("embeddings", embeddings, None, None)
    tokens, size = embeddings.shape
    check_shape("alpha_bar", alpha_bar, None)
    levels = alpha_bar.shape[0]
    hidden = w1.shape[0]
    check_index("offsets", offsets)
    check_index("depth", depth, offsets.shape[0] - 1)
    check_shape("w1", w1, hidden, size)
    check_shape("level_bias", level_bias, levels - 1, hidden)
    check_shape("w2", w2, size, hidden)
    check_shape("b2", b2, size)
    if seed is not None:
        seed = check_seed(seed)
    if noise is not None:
        check_shape("noise", noise, levels - 1, tokens, size)
    chosen = choose("hda_trajectory", backend, embeddings.device.type, embeddings.dtype)
    if chosen != "reference":
        return run(
            _HDATrajectory, "hda_trajectory", chosen, embeddings, offsets, depth, alpha_bar, w1,
            level_bias, w2, b2, seed, noise, bounded,
        )
    if noise is None and seed is not None:
        noise = rng.trajectory_noise(seed, tokens, size, levels - 1, embeddings.dtype)
    if noise is not None:
        # Plane k-1 holds level k. What is beyond a depth may be anything, also for the gradient.
        noise = ragged.mask_levels(noise, offsets, depth - 1)
    padded = ragged.to_padded(embeddings, offsets, max_length)
    padded_noise = None if noise is None else ragged.to_padded(noise, offsets, max_length, dim=1)
    x0, error = reference(
        padded, alpha_bar.to(embeddings.dtype), w1, level_bias, w2, b2, padded_noise, bounded
    )
    computed = ragged.reached_levels(depth, levels)[1:, :, None]
    summed = torch.where(computed, error, torch.zeros_like(error)).sum(0)
    return (
        ragged.from_padded(x0, offsets, tokens, dim=1),
        ragged.from_padded(summed, offsets, tokens),
    )
