"""Configurations of ADARec on other systems: ADARec's fields, and those of their losses."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from ...config import Supervision
from ..adarec.config import ADARecConfig
from ..elcrec.config import ELCRecFields
from ..iclrec.config import ICLRecFields
from ..iocrec.config import IOCRecFields


class ADARecOnConfig(ADARecConfig):
    """ADARec whose encoder has losses of its own."""

    supervision: Supervision = Field("all", description="an example a prefix, or a position")
    layer_norm_eps: float = Field(1e-12, gt=0.0, description="added to LayerNorm's variance")
    loss: Literal["full_ce", "original"] = Field(
        "full_ce",
        description="what h_u is trained by. full_ce: Eq. 13; original: a binary cross entropy "
        "with a sampled negative a target, as the encoder's system has",
    )
    excluded_negatives: Literal["train", "all"] = Field(
        "train",
        description="items of a user that are never drawn as negatives: of training, or the "
        "held-out ones, too, as public code does",
    )
    prediction: Literal["experts", "backbone"] = Field(
        "experts",
        description="what ranks. experts: h_u of HP-MoE; backbone: the encoder's system by the "
        "levels, read out by level_readout; moe is then off and lambda_cont 0, whatever they are "
        "set to",
    )

    @model_validator(mode="before")
    @classmethod
    def _a_system_of_its_own_has_no_experts(cls, values: Any) -> Any:
        # Not an error: who stores every field, as a sweep does, says moe=True of both predictions.
        if isinstance(values, dict) and values.get("prediction") == "backbone":
            return {**values, "moe": False, "lambda_cont": 0.0}
        return values

    @model_validator(mode="after")
    def _the_encoder_is_the_systems(self) -> ADARecOnConfig:
        if self.backbone is not None:
            raise ValueError(
                f"backbone={self.backbone!r}: the encoder here is the other system's; leave it "
                "out, or use the model adarec"
            )
        return self

    @model_validator(mode="after")
    def _smoothing_is_of_all_items(self) -> ADARecOnConfig:
        for name in ("label_smoothing", "transition_smoothing"):
            if self.loss == "original" and getattr(self, name):
                raise ValueError(
                    f"{name}={getattr(self, name)} softens the targets of the full cross entropy; "
                    "leave it 0 with loss='original', or use loss='full_ce'"
                )
        return self


class ADARecICLRecConfig(ADARecOnConfig, ICLRecFields):
    """ADARec on ICLRec."""

    system: ClassVar[str] = "adarec-iclrec"


class ADARecELCRecConfig(ADARecOnConfig, ELCRecFields):
    """ADARec on ELCRec."""

    system: ClassVar[str] = "adarec-elcrec"


class ADARecIOCRecConfig(ADARecOnConfig, IOCRecFields):
    """ADARec on IOCRec."""

    system: ClassVar[str] = "adarec-iocrec"
    positions: ClassVar[str] = "end"  # as ADARec's encoder counts them

    @model_validator(mode="after")
    def _intents_read_whole_histories(self) -> ADARecIOCRecConfig:
        if self.prediction == "experts":
            return self
        wrong = {
            "supervision": (self.supervision, "prefix", "intents read the whole history, so that "
                            "an earlier position would know its target"),
            "loss": (self.loss, "full_ce", "IOCRec's own is the full cross entropy"),
            "label_smoothing": (self.label_smoothing, 0, "an item's best intent has one target"),
            "transition_smoothing": (
                self.transition_smoothing, 0, "an item's best intent has one target"
            ),
            "residual": (self.residual, False, "E is one vector, and the intents are several"),
        }  # fmt: skip
        for name, (value, right, why) in wrong.items():
            if value != right:
                raise ValueError(
                    f"{name}={value!r} with prediction='backbone': {why}; use {name}={right!r}"
                )
        return self
