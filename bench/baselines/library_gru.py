"""The depth controller by torch's own GRU, cuDNN's on a GPU: what a user would write there.

The reference steps through 50 tokens in Python; on a GPU that is launches and nothing else, and no
peer of a kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def depth_controller(
    embeddings: Tensor,
    valid: Tensor,
    sequence_bias: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_hh: Tensor,
    w_out: Tensor,
    b_out: Tensor,
) -> tuple[Tensor, Tensor]:
    """As :func:`adarec_fast.reference.depth_controller.depth_controller`.

    The input's share of the gates is one product, with a bias a sequence, which no GRU of a library
    takes; so that is what goes in, and the GRU's own input weights are the identity. What stands at
    padding comes after all that counts.
    """
    gates = F.linear(embeddings, w_ih) + sequence_bias[:, None]
    start = gates.new_zeros(1, gates.shape[0], w_hh.shape[1])
    identity = torch.eye(gates.shape[-1], dtype=gates.dtype, device=gates.device)
    weights = [identity, w_hh, torch.zeros_like(b_hh), b_hh]
    states, _ = torch.gru(gates, start, weights, True, 1, 0.0, torch.is_grad_enabled(), False, True)
    count = valid.sum(1, keepdim=True).clamp(min=1).to(states.dtype)
    pooled = (states * valid[..., None]).sum(1) / count
    return F.linear(pooled, w_out, b_out), states
