"""BASRec's configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ...config import Supervision
from ..sasrec.config import SASRecConfig


class BASRecConfig(SASRecConfig):
    """A BASRec; the defaults are those of Beauty."""

    system: ClassVar[str] = "basrec"

    supervision: Supervision = Field("all", description="an example a position")
    dropout: float = Field(0.1, ge=0.0, lt=1.0, description="hidden dropout probability")
    attention_dropout: float = Field(0.1, ge=0.0, lt=1.0, description="dropout on attention")
    layer_norm_eps: float = Field(1e-12, gt=0.0, description="added to LayerNorm's variance")
    loss: Literal["full_ce", "original"] = Field(
        "original",
        description="full_ce: cross entropy over all items; original: the system's own, a binary "
        "one with a sampled negative a target",
    )
    plain_epochs: int = Field(
        100, ge=0, description="epochs of SASRec's loss alone, before samples are mixed"
    )
    mix_beta: float = Field(
        0.4, ge=0.05, le=100.0, description="b of the Beta(b, b) that samples are mixed by"
    )
    augmented_pairs: int = Field(
        2, ge=0, le=64, description="P: 2 P copies of each history, augmented and mixed with it"
    )
    mixed_rounds: int = Field(
        3, ge=0, le=64, description="W: mixtures of different histories, by item and by feature"
    )
    least_ratio: float = Field(
        0.2, gt=0.0, lt=1.0, description="least share of a history that a copy changes"
    )
    greatest_ratio: float = Field(
        0.71, gt=0.0, lt=1.0, description="greatest share of a history that a copy changes"
    )
    weighting: Literal["sample", "outer"] = Field(
        "sample",
        description="of copies: each history by its weight, or as the public code has it all by "
        "the sum of the weights",
    )

    @model_validator(mode="after")
    def _ranges(self) -> BASRecConfig:
        if self.supervision != "all":
            raise ValueError(
                f"supervision={self.supervision!r}: basrec mixes position by position; use 'all'"
            )
        if self.least_ratio > self.greatest_ratio:
            raise ValueError(
                f"least_ratio={self.least_ratio} is above greatest_ratio={self.greatest_ratio}; "
                "it must be at most that"
            )
        return self
