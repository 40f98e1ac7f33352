"""How a model is trained, and how the texts among its fields are read."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from .base import BaseConfig, ConfigError
from .model import ModelConfig, Precision

LOGGERS = ("tensorboard", "wandb", "mlflow")


class TrainConfig(BaseConfig):
    """How a model is trained. Defaults reproduce the figures in the README.

    Example:
        >>> af.TrainConfig(learning_rate=1e-4).epochs
        200
    """

    epochs: int = Field(200, ge=1, description="at most so many passes over the examples")
    batch_size: int = Field(256, ge=1, description="examples a step")
    learning_rate: float = Field(1e-3, gt=0.0, description="Adam's step size")
    learning_rate_schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="constant, or a cosine or a line that falls to 0 over all epochs"
    )
    warmup_steps: int = Field(
        0, ge=0, description="steps over which the rate rises to its full height, linearly"
    )
    weight_decay: float = Field(0.0, ge=0.0, description="L2 in Adam; the paper has 1e-4")
    gradient_clip: float = Field(5.0, ge=0.0, description="greatest gradient norm; 0: no clipping")
    amp: Literal["off", "bf16"] = Field(
        "off", description="former name of precision: off is ieee; will be removed"
    )
    patience: int = Field(10, ge=1, description="evaluations without a better one before the end")
    evaluate_every: int = Field(1, ge=1, description="epochs between two validations")
    evaluation_batch_size: int = Field(1024, ge=1, description="users scored at once")
    ks: str = Field(
        "5,10,20", description="cut-offs of validation metrics; the best epoch is by NDCG@20"
    )
    seen_mask: Literal["neg-inf", "official", "off"] = Field(
        "neg-inf", description="score of seen items: -inf, 0 as in the authors' code, or untouched"
    )
    log: str = Field(
        "auto",
        description="who gets the metrics, too: tensorboard, wandb (offline) and mlflow (a folder) "
        "with commas between them, none, or auto, TensorBoard where it is installed",
    )
    log_every: int = Field(50, ge=1, description="steps between two readings of the losses")
    checkpoint_every: int = Field(0, ge=0, description="steps between checkpoints; 0: each epoch")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the batches' order")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, ...")
    contrast_negatives: Literal["batch", "rank"] = Field(
        "batch", description="several workers: Eq. 6 compares users of the batch, or of a worker"
    )
    shard_items: bool = Field(
        False, description="several workers: split the item table and its losses over them"
    )
    worker_timeout: float = Field(
        45.0, gt=0.0, description="seconds that a step or an evaluation waits for another worker"
    )
    save_timeout: float = Field(
        0.0, ge=0.0,
        description="seconds that the other workers wait while the first one saves; 0: "
        "worker_timeout, and one for each 20 MB",
    )  # fmt: skip

    @field_validator("log")
    @classmethod
    def _are_loggers(cls, value: str) -> str:
        loggers_of(value)
        return value

    @field_validator("ks")
    @classmethod
    def _are_cutoffs(cls, value: str) -> str:
        read_cutoffs(value)
        return value


def loggers_of(log: str) -> tuple[str, ...]:
    """The names in a configuration's ``log``; none of ``auto`` and of ``none``.

    Raises:
        ConfigError: one is unknown, or named twice.
    """
    if log in ("auto", "none"):
        return ()
    names = tuple(name.strip() for name in log.split(","))
    if not set(names) <= set(LOGGERS) or len(set(names)) < len(names):
        raise ConfigError(
            f"must be auto, none, or one or more of {', '.join(LOGGERS)}, each once, with commas "
            "between them"
        )
    return names


def read_cutoffs(text: str, option: str = "") -> tuple[int, ...]:
    """``"5,10,20"`` as rising numbers, each once.

    Raises:
        ConfigError: it is something else; ``option`` and the text open the message.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and 0 < len(part) < 10 for part in parts) or (
        any(int(part) < 1 for part in parts)
    ):
        opening = f"{option} {text}: " if option else ""
        raise ConfigError(
            f"{opening}must be cut-offs of at least 1 with commas between them, as in 5,10,20"
        )
    return tuple(sorted({int(part) for part in parts}))


def training_precision(model: ModelConfig, train: TrainConfig) -> Precision:
    """How a training step multiplies: the model's ``precision``, or what ``amp`` says of old runs.

    Those trained under ``amp`` and evaluate in float32, as they always did.

    Raises:
        ConfigError: the two contradict each other.
    """
    if train.amp == "off":
        return model.precision
    if model.precision == "tf32":
        raise ConfigError("amp='bf16' contradicts precision='tf32'; leave out amp, its former name")
    return "bf16"
