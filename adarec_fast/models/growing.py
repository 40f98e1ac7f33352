"""A trained model with more items than it was trained with."""

from __future__ import annotations

import torch

from ..config import ConfigError
from .base import SequenceModel


def take_over(model: SequenceModel, trained: SequenceModel) -> None:
    """Give a freshly built model the weights of a trained one that knows fewer items, or as many.

    What has a row for each item (dimension 0 is V+1) keeps the old rows bit for bit, behind which
    the fresh model's own, as its initialiser drew them, stay. All else is copied.

    Raises:
        ConfigError: as :func:`check_growth`.
    """
    check_growth(model, trained)
    old, state = trained.state_dict(), model.state_dict()
    for name, fresh in state.items():
        found = old[name].to(fresh.device)
        longer = fresh.shape != found.shape
        state[name] = torch.cat([found, fresh[found.shape[0] :]]) if longer else found
    model.load_state_dict(state)


def check_growth(model: SequenceModel, trained: SequenceModel) -> None:
    """Whether a model, which may be of shapes alone, can take over a trained one's weights.

    Raises:
        ConfigError: they are of different kinds, or a tensor is of another shape than the number
            of items explains.
    """
    if type(model) is not type(trained):
        raise ConfigError(
            f"a {type(model).__name__} cannot go on from a {type(trained).__name__}"
        )
    old, state = trained.state_dict(), model.state_dict()
    rows = trained.config.num_items + 1, model.config.num_items + 1
    for name in dict.fromkeys((*state, *old)):
        here, there = (list(tensors[name].shape) if name in tensors else None
                       for tensors in (state, old))  # fmt: skip
        grown = here and there and (there[0], here[0]) == rows and there[1:] == here[1:]
        if here != there and not grown:
            raise ConfigError(
                f"{type(model).__name__}: {name} is {here or 'not there'} and was "
                f"{there or 'not there'} in the run to go on from; keep the sizes as they are"
            )
