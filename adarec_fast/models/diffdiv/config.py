"""DiffDiv's configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ...config import Supervision
from ..blocks.transformer_config import TransformerConfig


class DiffDivConfig(TransformerConfig):
    """A DiffDiv; ``guidance="plain"`` and ``loss="original"`` are DreamRec's."""

    system: ClassVar[str] = "diffdiv"
    supervisions: ClassVar[tuple[Supervision, ...]] = ("prefix",)

    loss: Literal["full_ce", "original"] = Field(
        "full_ce",
        description="full_ce: cross entropy over all items, the system's own beside it; original: "
        "the system's own alone, a distance to the next item's vector",
    )
    item_std: float = Field(
        0.0, ge=0.0, description="of the items' vectors at first; 0: 0.02, or 1 in the own loss"
    )
    guidance: Literal["variational", "plain"] = Field(
        "variational", description="what guides the denoiser: drawn around the history, or itself"
    )
    guidance_dropout: float = Field(
        0.1, ge=0.0, lt=1.0, description="share of examples that are denoised without guidance"
    )
    guidance_weight: float = Field(
        2.0, ge=0.0, description="w: guided results are (1 + w) f(guidance) - w f(none)"
    )
    latent_hidden: int = Field(128, ge=1, le=65_536, description="of the guidance's perceptrons")
    denoiser_layers: int = Field(2, ge=0, le=16, description="hidden layers; 0: one linear map")
    denoiser_hidden: int = Field(256, ge=1, le=65_536, description="their size")
    diffusion_steps: int = Field(200, ge=2, le=10_000, description="T, steps of the noise schedule")
    noise_schedule: Literal["exp", "linear", "cosine"] = Field(
        "exp", description="how the noise grows"
    )
    sampling_steps: int = Field(
        10, ge=1, le=10_000, description="steps from noise to a vector, of the T, evenly spaced"
    )
    samples: int = Field(5, ge=1, le=256, description="S, vectors generated of each history")
    lambda_mse: float = Field(0.1, ge=0.0, description="of the distance, beside the cross entropy")
    lambda_kl: float = Field(0.01, ge=0.0, description="of the guidance's divergence from N(0, 1)")
    kl_epochs: int = Field(10, ge=1, description="over which that weight grows to its full height")
    detach_target: bool = Field(
        True, description="the distance moves the denoiser alone, not the next item's vector"
    )

    @model_validator(mode="after")
    def _fits(self) -> DiffDivConfig:
        if self.hidden_size % 2:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be even: half of a step's embedding are "
                "sines, half cosines"
            )
        if self.sampling_steps > self.diffusion_steps:
            raise ValueError(
                f"sampling_steps={self.sampling_steps} is more than "
                f"diffusion_steps={self.diffusion_steps}; use at most as many"
            )
        return self
