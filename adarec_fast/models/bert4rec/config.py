"""BERT4Rec's configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from ...config import Supervision
from ..blocks.transformer_config import TransformerConfig


class BERT4RecConfig(TransformerConfig):
    """A BERT4Rec; the defaults are those of the public code for Beauty."""

    system: ClassVar[str] = "bert4rec"
    supervisions: ClassVar[tuple[Supervision, ...]] = ("cloze",)

    supervision: Supervision = Field("cloze", description="items of a history that are hidden")
    loss: Literal["full_ce", "original"] = Field(
        "full_ce",
        description="full_ce: cross entropy over all items, which is the system's own: original is "
        "the same",
    )
    attention_dropout: float = Field(0.2, ge=0.0, lt=1.0, description="dropout on attention")
    mask_share: float = Field(
        0.6, gt=0.0, le=1.0, description="share of a history's items that are hidden, at least one"
    )
    last_share: float = Field(
        1 / 11, ge=0.0, le=1.0, description="share of histories whose last item alone is hidden"
    )
    positions: Literal["left", "end"] = Field(
        "left", description="counted from the first item that is read, or from the last"
    )

    @model_validator(mode="after")
    def _fits(self) -> BERT4RecConfig:
        if self.max_length < 2:
            raise ValueError(
                f"max_length={self.max_length} leaves no place for an item beside the mask that "
                "stands for the next one; use at least 2"
            )
        return self
