"""The fields of the models' configurations as keyword arguments, for type checkers and editors.

``ADARec(num_items=12101, max_depth=8)`` takes what ``ADARecConfig`` has; a test holds these lists
to the configurations.
"""

from __future__ import annotations

from typing import Literal, TypedDict

from ..config import Backend, Precision, Supervision


class ModelOptions(TypedDict, total=False):
    """Of every model."""

    num_items: int
    max_length: int
    supervision: Supervision
    memory: Literal["none", "regression", "transitions"]
    memory_neighbours: int
    feature_net: Literal["sum", "mlp"]
    id_dropout: float
    seed: int
    backend: Backend
    precision: Precision


class EncoderOptions(ModelOptions, total=False):
    """Of every model on the built-in encoder."""

    hidden_size: int
    num_layers: int
    num_heads: int
    feedforward_multiplier: int
    dropout: float
    attention_dropout: float
    layer_norm_eps: float
    local_path: int
    label_smoothing: float
    transition_smoothing: float


class SASRecOptions(EncoderOptions, total=False):
    """Of :class:`adarec_fast.models.sasrec.config.SASRecConfig`."""

    loss: Literal["full_ce", "original"]
    excluded_negatives: Literal["train", "all"]


class ViewOptions(ModelOptions, total=False):
    """Of augmented views and their contrast."""

    view_temperature: float
    crop_ratio: float
    mask_ratio: float
    reorder_ratio: float


class ContrastOptions(ViewOptions, total=False):
    """Of contrasts of views and intents."""

    num_intents: int
    lambda_sequence: float
    lambda_intent: float


class ICLRecOptions(SASRecOptions, ContrastOptions, total=False):
    """Of :class:`adarec_fast.models.iclrec.config.ICLRecConfig`."""

    mask_false_negatives: bool


class ELCRecOptions(SASRecOptions, ContrastOptions, total=False):
    """Of :class:`adarec_fast.models.elcrec.config.ELCRecConfig`."""

    fusion: Literal["concat", "shift"]
    lambda_cluster: float


class IOCRecFieldOptions(ViewOptions, total=False):
    """Of IOCRec's intents."""

    num_intents: int
    lambda_contrast: float
    pooling: Literal["position", "sum"]


class BASRecOptions(SASRecOptions, total=False):
    """Of :class:`adarec_fast.models.basrec.config.BASRecConfig`."""

    plain_epochs: int
    mix_beta: float
    augmented_pairs: int
    mixed_rounds: int
    least_ratio: float
    greatest_ratio: float
    weighting: Literal["sample", "outer"]


class TransformerOptions(ModelOptions, total=False):
    """Of systems on the built-in encoder as public code has it."""

    hidden_size: int
    num_layers: int
    num_heads: int
    feedforward_multiplier: int
    dropout: float
    attention_dropout: float
    layer_norm_eps: float


class PDRecOptions(SASRecOptions, total=False):
    """Of :class:`adarec_fast.models.pdrec.config.PDRecConfig`."""

    cosine_scale: float
    preference_epochs: int
    preference_hidden: int
    preference_rate: float
    preference_decay: float
    preference_batch: int
    least_weight: float
    diffusion_steps: int
    noise_scale: float
    least_noise: float
    greatest_noise: float
    rank_share: float
    weight_limit: float
    weight_scale: float
    candidates: int
    soft_targets: int
    lambda_soft: float
    exclude_observed: bool
    band_begin: float
    band_end: float


class BERT4RecOptions(TransformerOptions, total=False):
    """Of :class:`adarec_fast.models.bert4rec.config.BERT4RecConfig`."""

    loss: Literal["full_ce", "original"]
    mask_share: float
    last_share: float
    positions: Literal["left", "end"]


class IOCRecOptions(TransformerOptions, IOCRecFieldOptions, total=False):
    """Of :class:`adarec_fast.models.iocrec.config.IOCRecConfig`."""

    loss: Literal["full_ce", "original"]
    positions: Literal["left", "end"]


class CaserOptions(ModelOptions, total=False):
    """Of :class:`adarec_fast.models.caser.config.CaserConfig`."""

    loss: Literal["full_ce", "original"]
    negatives: int
    excluded_negatives: Literal["train", "all"]
    window_targets: int
    hidden_size: int
    vertical_filters: int
    horizontal_filters: int
    dropout: float
    trainable_padding: bool
    user_embeddings: bool
    num_users: int


class DiffDivOptions(TransformerOptions, total=False):
    """Of :class:`adarec_fast.models.diffdiv.config.DiffDivConfig`."""

    loss: Literal["full_ce", "original"]
    item_std: float
    guidance: Literal["variational", "plain"]
    guidance_dropout: float
    guidance_weight: float
    latent_hidden: int
    denoiser_layers: int
    denoiser_hidden: int
    diffusion_steps: int
    noise_schedule: Literal["exp", "linear", "cosine"]
    sampling_steps: int
    samples: int
    lambda_mse: float
    lambda_kl: float
    kl_epochs: int
    detach_target: bool


class GlobalDiffOptions(TransformerOptions, total=False):
    """Of :class:`adarec_fast.models.globaldiff.config.GlobalDiffConfig`."""

    loss: Literal["full_ce", "original"]
    encoder_epochs: int
    diffusion_steps: int
    noise_scale: float
    least_noise: float
    greatest_noise: float
    normalise: Literal["sign", "l2"]
    image_side: int
    approximator_dropout: float
    image_dropout: float
    related_items: int
    sampling_noise: bool
    fusion: float


class ADARecOptions(EncoderOptions, total=False):
    """Of :class:`adarec_fast.ADARecConfig`."""

    max_depth: int
    schedule: Literal["respaced", "direct"]
    denoiser: Literal["paper", "bounded"]
    depth_gradient: Literal["truncated", "full"]
    gumbel_temperature: float
    contrastive_temperature: float
    coarse_expert: Literal["mlp", "transformer"]
    num_experts: int
    evaluation_samples: int
    lambda_deno: float
    lambda_cont: float
    lambda_expl: float
    depth: Literal["adaptive", "fixed"]
    diffusion: bool
    moe: bool
    level_readout: Literal["mean", "deepest"]
    router: Literal["content", "level"]
    start: Literal["random", "backbone"]
    residual: bool
    fused_trajectory: bool


class ADARecICLRecOptions(ADARecOptions, ICLRecOptions, total=False):
    """Of :class:`adarec_fast.models.adarec_on.config.ADARecICLRecConfig`."""

    prediction: Literal["experts", "backbone"]


class ADARecELCRecOptions(ADARecOptions, ELCRecOptions, total=False):
    """Of :class:`adarec_fast.models.adarec_on.config.ADARecELCRecConfig`."""

    prediction: Literal["experts", "backbone"]


class ADARecIOCRecOptions(ADARecOptions, IOCRecFieldOptions, total=False):
    """Of :class:`adarec_fast.models.adarec_on.config.ADARecIOCRecConfig`."""

    loss: Literal["full_ce", "original"]
    excluded_negatives: Literal["train", "all"]
    prediction: Literal["experts", "backbone"]


class PopularityOptions(ModelOptions, total=False):
    """Of :class:`adarec_fast.models.counting.config.PopularityConfig`."""


class CountingOptions(ModelOptions, total=False):
    """Of :class:`adarec_fast.models.counting.config.CountingConfig`."""

    window: int
    transition: float
    backward: float
    decay: float
    row_exponent: float
    popularity_exponent: float
    prior: float
    neighbours: int
