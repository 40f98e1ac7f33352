"""GlobalDiff's configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ...config import Supervision
from ..blocks.transformer_config import TransformerConfig


class GlobalDiffConfig(TransformerConfig):
    """A GlobalDiff; the diffusion's defaults are those of the public code."""

    system: ClassVar[str] = "globaldiff"
    supervisions: ClassVar[tuple[Supervision, ...]] = ("prefix",)

    loss: Literal["full_ce", "original"] = Field(
        "full_ce",
        description="full_ce: cross entropy over all items, which is the system's own: original is "
        "the same",
    )
    encoder_epochs: int = Field(
        50, ge=1, description="epochs of the encoder alone, which is then frozen"
    )
    diffusion_steps: int = Field(20, ge=2, le=1000, description="T, steps of the noise schedule")
    noise_scale: float = Field(0.01, gt=0.0, le=1.0, description="all noise is times it")
    least_noise: float = Field(0.05, gt=0.0, lt=1.0, description="noise of the first step")
    greatest_noise: float = Field(0.5, gt=0.0, lt=1.0, description="noise of the last step")
    normalise: Literal["sign", "l2"] = Field(
        "sign",
        description="what the approximator reads of x_t: its signs, as in the public code, or all "
        "of it at length one",
    )
    image_side: int = Field(
        16, ge=4, le=256, description="of the image that the approximator makes of all it reads"
    )
    approximator_dropout: float = Field(
        0.3, ge=0.0, lt=1.0, description="on what the approximator reads, and in its first layers"
    )
    image_dropout: float = Field(0.4, ge=0.0, lt=1.0, description="in its second layers")
    related_items: int = Field(
        0, ge=0, description="last items of a history that count for which go together; 0: all"
    )
    sampling_noise: bool = Field(
        False, description="ranking draws noise at every step, as in the public code"
    )
    fusion: float = Field(
        0.5, ge=0.0, le=1.0, description="alpha, share of the diffusion's ranks in the fusion"
    )

    @model_validator(mode="after")
    def _fits(self) -> GlobalDiffConfig:
        if self.image_side % 2:
            raise ValueError(
                f"image_side={self.image_side} must be even: the U-Net halves it and doubles it "
                "again"
            )
        if self.least_noise >= self.greatest_noise:
            raise ValueError(
                f"least_noise={self.least_noise} must be below greatest_noise={self.greatest_noise}"
            )
        return self
