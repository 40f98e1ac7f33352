"""Caser's configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ...config import ModelConfig, Supervision


class CaserConfig(ModelConfig):
    """A Caser; the defaults are those of the public code, but for D."""

    system: ClassVar[str] = "caser"
    supervisions: ClassVar[tuple[Supervision, ...]] = ("prefix", "windows")

    max_length: int = Field(
        5, ge=1, le=256, description="L, items that the convolutions read; keep it small"
    )
    loss: Literal["full_ce", "original"] = Field(
        "original",
        description="full_ce: cross entropy over all items; original: the system's own, a binary "
        "one with sampled negatives",
    )
    negatives: int = Field(3, ge=1, le=4096, description="sampled of an example, in the own loss")
    excluded_negatives: Literal["train", "all"] = Field(
        "train",
        description="items of a user that are never drawn as negatives: of training, or the "
        "held-out ones, too, as public code does",
    )
    window_targets: int = Field(
        1, ge=1, le=256, description="T, items behind each window that are its targets"
    )
    hidden_size: int = Field(64, ge=1, le=65_536, description="D, size of every representation")
    vertical_filters: int = Field(4, ge=1, le=4096, description="weighted sums over the L items")
    horizontal_filters: int = Field(
        16, ge=1, le=4096, description="convolutions of each height 1..L"
    )
    dropout: float = Field(0.5, ge=0.0, lt=1.0, description="hidden dropout probability")
    trainable_padding: bool = Field(
        False, description="missing items are a vector that is learned, as in the public code"
    )
    user_embeddings: bool = Field(
        False,
        description="a vector for each user of training, as in the public code; a user who is not "
        "known has none",
    )
    num_users: int = Field(
        0, ge=0, lt=2**31, description="users with a vector; taken from the data that trains"
    )

    @model_validator(mode="after")
    def _fits(self) -> CaserConfig:
        if self.supervision == "prefix" and self.window_targets > 1:
            raise ValueError(
                f"window_targets={self.window_targets}: a prefix has one target; use "
                "supervision='windows', or window_targets=1"
            )
        return self
