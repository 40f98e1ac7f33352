"""Named sets of values: a model and how to train it, as one word. ``train --preset NAME``."""

from __future__ import annotations

import difflib
from typing import NamedTuple

from ..config import ConfigError
from .values import Values


class Preset(NamedTuple):
    """A name's values.

    Attributes:
        summary: what it is, in a line.
        values: of model and training; what is absent keeps the fields' defaults.
    """

    summary: str
    values: Values


# What both of ours share. A step size that falls to nothing makes the last epochs the best ones, so
# that patience has nothing to end.
_ENCODER = {
    "model": "sasrec", "num_layers": 2, "num_heads": 2, "dropout": 0.5, "attention_dropout": 0.5,
    "local_path": 3, "supervision": "all", "transition_smoothing": 0.3, "memory": "regression",
    "memory_neighbours": 256,
}  # fmt: skip
_FALLING = {
    "batch_size": 128, "learning_rate": 2e-3, "learning_rate_schedule": "cosine",
}  # fmt: skip

# All that makes the method is written out, so that a change of defaults does not change it.
PRESETS = {
    "paper": Preset(
        "Eq. 1 to 13 and all that the paper states (weight decay 1e-4, 50 items, its temperatures; "
        "T_max and loss weights from its search lists); the rest are defaults",
        Values(
            model={
                "model": "adarec", "max_length": 50, "max_depth": 4, "schedule": "respaced",
                "depth_gradient": "truncated", "gumbel_temperature": 0.5,
                "contrastive_temperature": 0.07, "coarse_expert": "mlp",
                "evaluation_samples": 0, "lambda_deno": 0.1, "lambda_cont": 0.1,
                "lambda_expl": 0.01, "depth": "adaptive", "diffusion": True, "moe": True,
                "router": "content", "residual": False,
            },
            train={"weight_decay": 1e-4},
        ),
    ),
    "best": Preset(
        "what ranked best on validation: a wider encoder with a local path, targets softened by "
        "transitions, a falling step size, and a memory",
        Values(
            model={**_ENCODER, "hidden_size": 128},
            train={**_FALLING, "epochs": 14, "patience": 14},
        ),
    ),
    "fast": Preset(
        "the same in half of the epochs: minutes on two cores",
        Values(
            model={**_ENCODER, "hidden_size": 128},
            train={**_FALLING, "epochs": 7, "patience": 7},
        ),
    ),
}  # fmt: skip


def preset(name: str, where: str = "preset") -> Values:
    """The values of a preset, the caller's own copy.

    Args:
        name: of the preset.
        where: opens the message of an error.

    Raises:
        ConfigError: there is none of that name; says which there are.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(str(name), PRESETS, n=1)
        hint = f", did you mean {close[0]!r}?" if close else ";"
        raise ConfigError(f"{where} {name!r} is not known{hint} there are {', '.join(PRESETS)}")
    return Values().update(PRESETS[name].values)


def listed() -> list[dict[str, str]]:
    """``name``, ``model`` and ``summary`` of each of them."""
    return [
        {"name": name, "model": one.values.system or "", "summary": one.summary}
        for name, one in PRESETS.items()
    ]
