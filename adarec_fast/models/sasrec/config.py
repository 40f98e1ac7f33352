"""SASRec's configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ...config import ModelConfig, check_heads


class SASRecConfig(ModelConfig):
    """A SASRec; every field is that of ADARec's backbone."""

    system: ClassVar[str] = "sasrec"

    hidden_size: int = Field(64, ge=1, le=65_536, description="D, size of every representation")
    num_layers: int = Field(2, ge=0, le=256, description="Transformer layers")
    num_heads: int = Field(2, ge=1, description="attention heads")
    feedforward_multiplier: int = Field(4, ge=1, le=64, description="feed-forward size over D")
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="hidden dropout probability")
    attention_dropout: float = Field(0.5, ge=0.0, lt=1.0, description="dropout on attention")
    layer_norm_eps: float = Field(1e-5, gt=0.0, description="added to LayerNorm's variance")
    local_path: int = Field(
        0, ge=0, le=16,
        description="taps of a causal convolution before each encoder layer; 0: none",
    )  # fmt: skip
    label_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0, description="share of the target in Eq. 13 that all items divide"
    )
    transition_smoothing: float = Field(
        0.0, ge=0.0, lt=1.0,
        description="share of the target in Eq. 13 that the items divide that follow it elsewhere",
    )  # fmt: skip

    loss: Literal["full_ce", "original"] = Field(
        "full_ce",
        description="full_ce: cross entropy over all items; original: the system's own, a binary "
        "one with a sampled negative a target",
    )
    excluded_negatives: Literal["train", "all"] = Field(
        "train",
        description="items of a user that are never drawn as negatives: of training, or the "
        "held-out ones, too, as public code does",
    )

    @model_validator(mode="after")
    def _smoothing_is_of_all_items(self) -> SASRecConfig:
        for name in ("label_smoothing", "transition_smoothing"):
            if self.loss == "original" and getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} softens the targets of the full cross entropy; "
                    "leave it 0 with loss='original', or use loss='full_ce'"
                )
        return self

    @model_validator(mode="after")
    def _heads_divide(self) -> SASRecConfig:
        check_heads(self.hidden_size, self.num_heads)
        return self
