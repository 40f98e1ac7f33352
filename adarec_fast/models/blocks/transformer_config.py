"""The shape of the built-in encoder, for configurations of systems that are built on it."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from ...config import ModelConfig, check_heads


class TransformerConfig(ModelConfig):
    """A system on the built-in encoder as the S3-Rec family's public code has it."""

    local_path: ClassVar[int] = 0

    hidden_size: int = Field(64, ge=1, le=65_536, description="D, size of every representation")
    num_layers: int = Field(2, ge=1, le=256, description="Transformer layers")
    num_heads: int = Field(2, ge=1, description="attention heads")
    feedforward_multiplier: int = Field(4, ge=1, le=64, description="feed-forward size over D")
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="hidden dropout probability")
    attention_dropout: float = Field(0.5, ge=0.0, lt=1.0, description="dropout on attention")
    layer_norm_eps: float = Field(1e-12, gt=0.0, description="added to LayerNorm's variance")

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        check_heads(self.hidden_size, self.num_heads)
        return self
