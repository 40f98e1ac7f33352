"""Gradients that their receiver may write into.

Autograd does not tell a backward function whether anybody else holds the gradient it is handed.
One that made a gradient afresh and keeps no reference can say so; the engine hands the same tensor
on, or, where it adds others to it, a sum that nobody else holds either.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MARK = "_adarec_fast_given_away"


def give_away(gradient: Tensor) -> Tensor:
    """The gradient, marked: its maker does not keep it."""
    if not torch.compiler.is_compiling():
        setattr(gradient, _MARK, True)
    return gradient


def ours_to_change(gradient: Tensor) -> bool:
    """Whether a gradient was given away and may be added to in place."""
    if torch.compiler.is_compiling():  # a compiled graph is functional, and reuses memory itself
        return False
    return getattr(gradient, _MARK, False) and gradient.is_contiguous()
