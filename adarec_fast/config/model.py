"""What the configurations of all kinds of models share."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from .base import BaseConfig

Supervision = Literal["prefix", "all", "cloze", "windows"]
Precision = Literal["ieee", "tf32", "bf16"]
Backend = Literal["auto", "reference", "packed", "cpp", "triton", "cuda"]


class ModelConfig(BaseConfig):
    """What every model's configuration says; each kind of model adds its own fields."""

    # The name of the kind of model, as in ``--model NAME`` and in saved files.
    system: ClassVar[str] = ""
    # What its training examples may be, the default first.
    supervisions: ClassVar[tuple[Supervision, ...]] = ("prefix", "all")

    num_items: int = Field(
        ge=1, lt=2**31, description="items in the catalogue; ids are 1..num_items"
    )
    max_length: int = Field(50, ge=1, le=65_535, description="longest history read, in items")
    supervision: Supervision = Field(
        "prefix",
        description="an example a prefix, or a position; cloze: hidden items of a history; "
        "windows: the last items of a window of it",
    )
    memory: Literal["none", "regression", "transitions"] = Field(
        "none",
        description="what is added to every ranking: nothing; a regression of next items on "
        "histories; or counts of which items follow which; weighed on the validation part when "
        "training ends",
    )
    memory_neighbours: int = Field(
        128, ge=1, le=65_536, description="largest weights that the memory keeps of an item"
    )
    feature_net: Literal["sum", "mlp"] = Field(
        "sum",
        description="how features of items (--items) become part of an item's vector: a sum of "
        "theirs, or through a hidden layer",
    )
    id_dropout: float = Field(
        0.2, ge=0.0, lt=1.0,
        description="items whose own vector a step leaves out, so that features learn to stand "
        "alone; where there are features",
    )  # fmt: skip
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the weights and of the noise")
    backend: Backend = Field("auto", description="who runs the ops, see adarec_fast.ops")
    precision: Precision = Field(
        "ieee",
        description="products, in training and ever after: ieee float32, tf32 on a GPU's tensor "
        "cores (on a CPU float32), or bf16, bfloat16 autocast",
    )

    @field_validator("supervision")
    @classmethod
    def _supervision_is_its_own(cls, value: Supervision) -> Supervision:
        if value not in cls.supervisions:
            allowed = " or ".join(map(repr, cls.supervisions))
            raise ValueError(f"the model {cls.system} takes {allowed}")
        return value


def check_heads(hidden_size: int, num_heads: int) -> None:
    """ValueError unless so many heads divide a size."""
    if hidden_size % num_heads:
        raise ValueError(
            f"hidden_size={hidden_size} is not divisible by num_heads={num_heads}; choose a "
            f"multiple of {num_heads}"
        )
