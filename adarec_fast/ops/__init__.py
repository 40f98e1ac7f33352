"""Public ops, one file each; ``backend=`` and ``ADAREC_FAST_BACKEND`` choose who runs them."""

from .. import packed as _packed  # noqa: F401  (fills its place in the table, as the next two do)
from . import _triton, extension  # noqa: F401
from ._library import (
    BACKENDS,
    OPS,
    BackendError,
    backend_report,
    choose,
    explain,
    has_kernel,
    synchronising,
)
from .adam import adam
from .choose_depth import Depths, choose_depth
from .depth_controller import depth_controller
from .dropout import dropout
from .embedding import Embedded, embedding
from .encoder_layer import LayerWeights, encoder_layer
from .epoch_statistics import epoch_statistics
from .fused_trajectory import Trajectory, fused_trajectory
from .gradient_norm import gradient_norm
from .hda_trajectory import hda_trajectory
from .length_bias import length_bias
from .level_biases import level_biases
from .level_infonce import level_infonce
from .level_pool import level_pool
from .linear_cross_entropy import linear_cross_entropy
from .local_path import local_path
from .memory_topk import TransitionWeights, memory_topk
from .mlp_expert import mlp_expert
from .mlp_expert_pooled import PooledLevels, mlp_expert_pooled
from .moe_aggregate import Aggregate, moe_aggregate
from .objective import Objective, objective
from .score_topk import score_topk
from .wide_normals import wide_normals

__all__ = [
    "BACKENDS",
    "OPS",
    "Aggregate",
    "BackendError",
    "Depths",
    "Embedded",
    "LayerWeights",
    "Objective",
    "PooledLevels",
    "Trajectory",
    "TransitionWeights",
    "adam",
    "backend_report",
    "choose",
    "choose_depth",
    "depth_controller",
    "dropout",
    "embedding",
    "encoder_layer",
    "epoch_statistics",
    "explain",
    "fused_trajectory",
    "gradient_norm",
    "has_kernel",
    "hda_trajectory",
    "length_bias",
    "level_biases",
    "level_infonce",
    "level_pool",
    "linear_cross_entropy",
    "local_path",
    "memory_topk",
    "mlp_expert",
    "mlp_expert_pooled",
    "moe_aggregate",
    "objective",
    "score_topk",
    "synchronising",
    "wide_normals",
]
