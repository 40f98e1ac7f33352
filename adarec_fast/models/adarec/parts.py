"""What reads the model's modules sees of it, so that the model may import them in turn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import nn

from ..encoders.foreign import ForeignBackbone
from ..encoders.sasrec import SASRecEncoder
from ..encoders.transformer_layer import TransformerLayer
from .config import ADARecConfig
from .depth_controller import DepthController
from .diffusion import Denoiser
from .experts import MLPExpert
from .router import Router

if TYPE_CHECKING:
    from ...distributed.items import ShardedItems


class Parts(Protocol):
    """The modules of an :class:`ADARec`; those that its configuration leaves out are not there."""

    config: ADARecConfig
    training: bool
    item_embedding: nn.Embedding | ShardedItems
    backbone: SASRecEncoder | ForeignBackbone
    level_embedding: nn.Embedding
    depth_controller: DepthController
    denoiser: Denoiser
    fine_expert: TransformerLayer
    coarse_expert: MLPExpert | TransformerLayer
    middle_experts: nn.ModuleList
    router: Router
    output_norm: nn.LayerNorm
