"""ADARec as a sequential model of RecBole, for its trainer and its evaluation.

::

    config = Config(model=recbole_model(), dataset="ml-100k", config_dict={
        "train_neg_sample_args": None, "max_depth": 4, "hidden_size": 64,
    })
    train, valid, test = data_preparation(config, create_dataset(config))
    model = recbole_model()(config, train.dataset).to(config["device"])
    Trainer(config, model).fit(train, valid)
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..config import ConfigError
from ..data import Batch
from ..models.adarec.config import ADARecConfig
from ..models.adarec.model import ADARec

# RecBole fills these from its own settings; the rest keep ADARec's names.
_RENAMED = {
    "n_layers": "num_layers",
    "n_heads": "num_heads",
    "hidden_dropout_prob": "dropout",
    "attn_dropout_prob": "attention_dropout",
}
_FIXED = ("num_items", "max_length", "supervision")


@functools.cache
def recbole_model() -> type[Any]:
    """The class ``ADARecRecBole``, a ``SequentialRecommender`` built when RecBole is there.

    Its settings are read from RecBole's ``config``: ADARec's own fields by their names, and
    ``n_layers``, ``n_heads``, ``hidden_dropout_prob`` and ``attn_dropout_prob`` as RecBole's
    models have them. RecBole makes a row of every prefix, so that supervision is ``"prefix"``; set
    ``train_neg_sample_args`` to None, since the loss ranks the whole catalogue.

    Raises:
        ConfigError: RecBole cannot be imported.
    """
    try:
        from recbole.model.abstract_recommender import SequentialRecommender
        from recbole.utils import InputType
    except ImportError as error:
        raise ConfigError(
            f"the adapter needs RecBole: pip install adarec_fast[recbole] ({error})"
        ) from error

    class ADARecRecBole(SequentialRecommender):  # type: ignore[misc]
        """ADARec over RecBole's interactions, histories padded with 0 on the right."""

        input_type = InputType.POINTWISE

        def __init__(self, config: Any, dataset: Any) -> None:
            super().__init__(config, dataset)
            # RecBole counts the padding as an item.
            self.adarec = ADARec(
                **_options(config), num_items=self.n_items - 1, max_length=self.max_seq_length,
                supervision="prefix",
            )  # fmt: skip

        def forward(self, item_seq: Tensor, item_seq_len: Tensor) -> Tensor:
            """h ``[B, D]``."""
            return self.adarec(item_seq, item_seq_len.long()).user

        def calculate_loss(self, interaction: Any) -> Tensor:
            """Eq. 12 of a batch."""
            item_seq, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN].long()
            offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            batch = Batch(
                item_seq[item_seq != 0], offsets, interaction[self.POS_ITEM_ID].long(),
                interaction[self.USER_ID].long(),
            )  # fmt: skip
            return self.adarec.loss(batch).total

        def predict(self, interaction: Any) -> Tensor:
            """Scores ``[B]`` of one item each."""
            user = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
            items = self.adarec.item_embedding(interaction[self.ITEM_ID])
            return (user * items).sum(-1)

        def full_sort_predict(self, interaction: Any) -> Tensor:
            """Scores ``[B, n_items]`` of the whole catalogue, padding included."""
            user = self.forward(interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN])
            return self.adarec.score(user)

    return ADARecRecBole


def _options(config: Any) -> dict[str, Any]:
    """Fields of ADARecConfig that RecBole's configuration sets."""
    options: dict[str, Any] = {}
    for field in ADARecConfig.model_fields:
        if field not in _FIXED and field in config and config[field] is not None:
            options[field] = config[field]
    for theirs, ours in _RENAMED.items():
        if theirs in config and config[theirs] is not None and ours not in options:
            options[ours] = config[theirs]
    return options
