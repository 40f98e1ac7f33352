"""The length's share of the GRU's input, Eq. 1: an MLP of length / max_length."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def length_bias(
    share: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, w_v: Tensor, b_ih: Tensor
) -> tuple[Tensor, Tensor]:
    """W_v v + b_ih, the same at every token of a sequence, with v = W2 SiLU(W1 share + b1) + b2.

    Args:
        share: ``[B, 1]``, length / max_length.
        w1, b1, w2, b2: the MLP, ``[D, 1]``, ``[D]``, ``[D, D]``, ``[D]``.
        w_v, b_ih: the GRU's input weights of v, ``[3G, D]``, and its bias ``[3G]``.

    Returns:
        The bias ``[B, 3G]``, and v ``[B, D]``.
    """
    v = F.linear(F.silu(F.linear(share, w1, b1)), w2, b2)
    return F.linear(v, w_v, b_ih), v
