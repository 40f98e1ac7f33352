"""ELCRec's configuration."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from ..iclrec.config import ContrastFields, EncoderConfig


class ELCRecFields(ContrastFields):
    """Of ELCRec's losses."""

    fusion: Literal["concat", "shift"] = Field(
        "concat",
        description="what views are compared by: vectors with their nearest centre beside them, or "
        "added to them",
    )
    lambda_cluster: float = Field(
        1.0, ge=0.0, description="weight of the loss that moves the centres"
    )


class ELCRecConfig(EncoderConfig, ELCRecFields):
    """An ELCRec."""

    system: ClassVar[str] = "elcrec"
