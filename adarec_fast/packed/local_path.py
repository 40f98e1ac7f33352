"""The local path on packed tokens: a token's place says how far back its sequence reaches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import ragged, rng
from ..reference.encoder_layer import drop


def _mixed(
    x: Tensor, offsets: Tensor, taps: Tensor, p: float, seed: Tensor | None, stream: int
) -> tuple[Tensor, list[Tensor], Tensor | None]:
    """What the residual is added to, x_{t-j} of every tap but the first, and dropout's mask."""
    place = ragged.positions(offsets, x.shape[0])[:, None]
    earlier = [torch.where(place >= back, x.roll(back, 0), 0) for back in range(1, taps.shape[0])]
    mixed = x * taps[0]
    for tokens, tap in zip(earlier, taps[1:], strict=True):
        mixed = torch.addcmul(mixed, tokens, tap)
    keep = None
    if seed is not None:
        keep = rng.keep_quarters(seed, x.shape[0], x.shape[1], stream, p)
    return x + drop(mixed, keep, p), earlier, keep


def fwd(
    x: Tensor, offsets: Tensor, taps: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float,
    p: float, seed: Tensor | None, stream: int,
) -> Tensor:
    """``local_path_fwd`` of the op's schema; rows behind the last token are undefined."""
    mixed, _, _ = _mixed(x, offsets, taps, p, seed, stream)
    return F.layer_norm(mixed, (x.shape[1],), norm_weight, norm_bias, eps).to(x.dtype)


def bwd(
    grad: Tensor, x: Tensor, offsets: Tensor, taps: Tensor, norm_weight: Tensor, norm_bias: Tensor,
    eps: float, p: float, seed: Tensor | None, stream: int,
) -> tuple[Tensor, ...]:
    """``local_path_bwd``: gradients of x, the taps and LayerNorm's weight and bias."""
    # What lies behind the last token is no number, and sums over tokens would take it in.
    grad, x = (ragged.mask_levels(rows[None], offsets, None)[0] for rows in (grad, x))
    mixed, earlier, keep = _mixed(x, offsets, taps, p, seed, stream)
    shape = (x.shape[1],)
    _, mean, rstd = torch.native_layer_norm(mixed, shape, norm_weight, norm_bias, eps)
    d_sum, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
        grad, mixed, shape, mean, rstd, norm_weight, norm_bias, [True, True, True]
    )
    d_mixed = drop(d_sum, keep, p)
    d_x = torch.addcmul(d_sum, d_mixed, taps[0])
    place = ragged.positions(offsets, x.shape[0])[:, None]
    for back in range(1, taps.shape[0]):
        # Token t gave to token t + back where that one's sequence reaches so far back.
        later = torch.where(place >= back, d_mixed, 0).roll(-back, 0)
        d_x = torch.addcmul(d_x, later, taps[back])
    d_taps = torch.stack([(tokens * d_mixed).sum(0) for tokens in (x, *earlier)])
    return d_x, d_taps, d_weight, d_bias
