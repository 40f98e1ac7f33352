"""IOCRec's configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ...config import Supervision
from ..blocks.transformer_config import TransformerConfig
from ..iclrec.config import ViewFields


class IOCRecFields(ViewFields):
    """Of IOCRec's intents and their contrast."""

    num_intents: int = Field(4, ge=1, le=256, description="K, intents of each history")
    lambda_contrast: float = Field(
        0.1, ge=0.0, description="weight of the contrast of two views, intent by intent"
    )
    pooling: Literal["position", "sum"] = Field(
        "position",
        description="an intent's vector: of each position by itself, as in the public code, or "
        "their sum, as in the block that it is taken from",
    )


class IOCRecConfig(TransformerConfig, IOCRecFields):
    """An IOCRec; the defaults are those of the public code's log."""

    system: ClassVar[str] = "iocrec"
    supervisions: ClassVar[tuple[Supervision, ...]] = ("prefix",)

    loss: Literal["full_ce", "original"] = Field(
        "full_ce",
        description="full_ce: cross entropy over all items, which is the system's own: original is "
        "the same",
    )
    num_layers: int = Field(3, ge=1, le=256, description="Transformer layers")
    feedforward_multiplier: int = Field(2, ge=1, le=64, description="feed-forward size over D")
    positions: Literal["left", "end"] = Field(
        "left", description="counted from the first item that is read, or from the last"
    )
