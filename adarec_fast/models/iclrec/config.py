"""ICLRec's configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ...config import ModelConfig, Supervision
from ..sasrec.config import SASRecConfig


class ViewFields(ModelConfig):
    """Of augmented views and their contrast."""

    view_temperature: float = Field(
        1.0, gt=0.0, description="tau of the contrasts, over dot products"
    )
    crop_ratio: float = Field(0.2, ge=0.0, lt=1.0, description="share that a crop keeps")
    mask_ratio: float = Field(0.7, ge=0.0, lt=1.0, description="share that is masked")
    reorder_ratio: float = Field(0.2, ge=0.0, lt=1.0, description="share that is shuffled")


class ContrastFields(ViewFields):
    """Of contrasts of views and of intents."""

    num_intents: int = Field(256, ge=2, le=65_536, description="K, clusters of users")
    lambda_sequence: float = Field(
        0.1, ge=0.0, description="weight of the contrast of two views of a history"
    )
    lambda_intent: float = Field(
        0.1, ge=0.0, description="weight of the contrast of a view with its user's intent"
    )


class ICLRecFields(ContrastFields):
    """Of ICLRec's losses."""

    mask_false_negatives: bool = Field(
        False, description="users of one intent are not told from each other"
    )


class EncoderConfig(SASRecConfig):
    """SASRec's fields, as the public code of systems on its encoder has them."""

    supervision: Supervision = Field("all", description="an example a prefix, or a position")
    layer_norm_eps: float = Field(1e-12, gt=0.0, description="added to LayerNorm's variance")
    loss: Literal["full_ce", "original"] = Field(
        "original",
        description="full_ce: cross entropy over all items; original: the system's own, a binary "
        "one with a sampled negative a target",
    )


class ICLRecConfig(EncoderConfig, ICLRecFields):
    """An ICLRec."""

    system: ClassVar[str] = "iclrec"
