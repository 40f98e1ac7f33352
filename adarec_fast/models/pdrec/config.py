"""PDRec's configuration."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, model_validator

from ..iclrec.config import EncoderConfig


class PDRecConfig(EncoderConfig):
    """A PDRec; the defaults are those of the public code for Amazon's toys."""

    system: ClassVar[str] = "pdrec"

    cosine_scale: float = Field(
        5.0, ge=0.0,
        description="of loss='original': logits are cosines times it; 0: products, as in full_ce",
    )  # fmt: skip
    preference_epochs: int = Field(
        200, ge=1, description="of the diffusion that is trained first, at most"
    )
    preference_hidden: int = Field(1000, ge=1, le=65_536, description="its hidden size")
    preference_rate: float = Field(5e-5, gt=0.0, description="its learning rate")
    preference_decay: float = Field(0.5, ge=0.0, description="its weight decay, decoupled")
    preference_batch: int = Field(400, ge=1, description="its users a step")
    least_weight: float = Field(
        0.5, gt=0.0, le=1.0, description="of a history's first item in what is diffused; last: 1"
    )
    diffusion_steps: int = Field(10, ge=2, le=1000, description="T, steps of the noise schedule")
    noise_scale: float = Field(0.01, gt=0.0, le=1.0, description="all noise is times it")
    least_noise: float = Field(0.0005, gt=0.0, lt=1.0, description="noise of the first step")
    greatest_noise: float = Field(0.005, gt=0.0, lt=1.0, description="noise of the last step")
    rank_share: float = Field(
        0.1, ge=0.0, le=1.0, description="omega, share of a target's rank in its weight"
    )
    weight_limit: float = Field(1.0, gt=0.0, description="greatest weight of a target, unscaled")
    weight_scale: float = Field(4.0, gt=0.0, description="weights of targets are times it")
    candidates: int = Field(
        50, ge=1, le=65_536, description="items of highest preference that may be soft targets"
    )
    soft_targets: int = Field(5, ge=1, le=4096, description="of them, those of highest score")
    lambda_soft: float = Field(0.05, ge=0.0, description="weight of the loss of soft targets")
    exclude_observed: bool = Field(
        True, description="no item of a user's history is a soft target, as in the paper"
    )
    band_begin: float = Field(
        0.9, ge=0.0, lt=1.0, description="where, by preference, a user's negatives begin"
    )
    band_end: float = Field(0.99, gt=0.0, le=1.0, description="and where they end")

    @model_validator(mode="after")
    def _fits(self) -> PDRecConfig:
        if self.supervision != "all":
            raise ValueError(
                f"supervision={self.supervision!r}: pdrec weighs the targets of a whole history; "
                "use 'all'"
            )
        for least, greatest in (("least_noise", "greatest_noise"), ("band_begin", "band_end")):
            if getattr(self, least) >= getattr(self, greatest):
                raise ValueError(
                    f"{least}={getattr(self, least)} must be below {greatest}="
                    f"{getattr(self, greatest)}"
                )
        if self.soft_targets > self.candidates:
            raise ValueError(
                f"soft_targets={self.soft_targets} is more than candidates={self.candidates}; use "
                "at most as many"
            )
        for name in ("label_smoothing", "transition_smoothing"):
            if getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)}: pdrec's targets have weights of their own; "
                    "leave it 0"
                )
        return self
