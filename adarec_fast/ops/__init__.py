"""Public ops, one file each; ``backend=`` and ``ADAREC_FAST_BACKEND`` choose who runs them."""

from ._library import (
    BACKENDS,
    OPS,
    BackendError,
    backend_report,
    choose,
    explain,
    synchronising,
)
from .choose_depth import Depths, choose_depth
from .depth_controller import depth_controller
from .dropout import dropout
from .encoder_layer import LayerWeights, encoder_layer
from .fused_trajectory import Trajectory, fused_trajectory
from .hda_trajectory import hda_trajectory
from .length_bias import length_bias
from .level_infonce import level_infonce
from .level_pool import level_pool
from .linear_cross_entropy import linear_cross_entropy
from .mlp_expert import mlp_expert
from .moe_aggregate import Aggregate, moe_aggregate
from .score_topk import score_topk

__all__ = [
    "BACKENDS",
    "OPS",
    "Aggregate",
    "BackendError",
    "Depths",
    "LayerWeights",
    "Trajectory",
    "backend_report",
    "choose",
    "choose_depth",
    "depth_controller",
    "dropout",
    "encoder_layer",
    "explain",
    "fused_trajectory",
    "hda_trajectory",
    "length_bias",
    "level_infonce",
    "level_pool",
    "linear_cross_entropy",
    "mlp_expert",
    "moe_aggregate",
    "score_topk",
    "synchronising",
]
