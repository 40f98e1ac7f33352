"""ADARec as a model of RePlay: ``fit`` and ``predict`` on its ``Dataset``, frames in and out."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..config import ConfigError, TrainConfig
from ..data import DataError, InteractionData, load
from ..models.base import SequenceModel
from ..ranking.frames import recommendation_frame
from ..training import load_run, train

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ..models.options import ADARecOptions


class ADARecRePlay:
    """A recommender with the interface of ``replay.models`` (``pip install adarec_fast[replay]``).

    Args:
        run_dir: where the training run is kept; a temporary folder when None.
        train: fields of :class:`adarec_fast.TrainConfig`, such as ``{"epochs": 20}``.
        model: fields of :class:`adarec_fast.ADARecConfig` but num_items.

    Attributes:
        model: the trained model, None before ``fit``.
    """

    def __init__(
        self, *, run_dir: str | Path | None = None, train: dict[str, Any] | None = None,
        **model: Unpack[ADARecOptions],
    ) -> None:
        self.run_dir = run_dir
        self.train_config = TrainConfig.create(**(train or {}))
        self.model_options = dict(model)
        self.model: SequenceModel | None = None

    def fit(self, dataset: Any) -> None:
        """Train on a ``replay.data.Dataset`` of pandas or polars frames.

        The last two items of each history validate and test; queries with fewer than three items
        are not trained on.

        Raises:
            DataError: frames of Spark, or interactions that cannot be read.
            ConfigError: an option out of range.
        """
        data = _interactions(dataset, min_length=3)
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "run" if self.run_dir is None else Path(self.run_dir)
            train(self.model_options, self.train_config, data, folder)
            self.model = load_run(folder).model

    def predict(
        self,
        dataset: Any,
        k: int,
        queries: Any = None,
        items: Any = None,
        filter_seen_items: bool = True,
        recs_file_path: str | None = None,
    ) -> Any:
        """The k best items of every query, as RePlay's models give them.

        Args:
            dataset: the histories to go by, of any length; items that ``fit`` has not seen are
                skipped, and a query that has no other is left out with a warning.
            k: items a query.
            queries: ids, or a frame with the query column; all of the data set when None.
            items: not supported: the whole catalogue is ranked.
            filter_seen_items: leave out what a history holds.
            recs_file_path: write Parquet there and return None.

        Returns:
            A frame of the data set's kind with the query column, the item column and ``rating``;
            without rows where no query can be served.

        Raises:
            ConfigError: ``items`` was given, or ``fit`` has not been called.
            DataError: a query that the data set does not have.
        """
        if self.model is None or self.model.item_vocabulary is None:
            raise ConfigError("predict needs a fitted model; call fit first")
        if items is not None:
            raise ConfigError("items cannot be restricted: ADARec ranks the whole catalogue")
        schema = dataset.feature_schema
        query, item = schema.query_id_column, schema.item_id_column
        data = _known(_interactions(dataset, min_length=1), self.model)
        asked = torch.arange(data.num_users)
        if queries is not None:
            ids = queries[query] if hasattr(queries, "columns") else queries
            asked = torch.from_numpy(data.users.encode(dict.fromkeys(_plain(ids))))
        served = data.lengths[asked] > 0
        if not bool(served.all()):
            _warn_of(data.users.decode(asked[~served]), query, item)
        chosen = asked[served].tolist()
        frame = recommendation_frame(
            self.model, data, k=k, exclude_seen=filter_seen_items, users=chosen,
            kind="pandas" if dataset.is_pandas else "polars",
        )  # fmt: skip
        names = {"user": query, "item": item, "score": "rating"}
        if dataset.is_pandas:
            frame = frame.drop(columns="rank").rename(columns=names)
        else:
            frame = frame.drop("rank").rename(names)
        if recs_file_path is None:
            return frame
        write = frame.to_parquet if dataset.is_pandas else frame.write_parquet
        write(recs_file_path)
        return None

    def fit_predict(
        self, dataset: Any, k: int, queries: Any = None, items: Any = None,
        filter_seen_items: bool = True, recs_file_path: str | None = None,
    ) -> Any:
        """``fit``, then ``predict`` on the same data set."""
        self.fit(dataset)
        return self.predict(dataset, k, queries, items, filter_seen_items, recs_file_path)


def _interactions(dataset: Any, *, min_length: int) -> InteractionData:
    schema = dataset.feature_schema
    if not (dataset.is_pandas or dataset.is_polars):
        raise DataError("the data set holds Spark frames; convert them to pandas or polars first")
    return load(
        dataset.interactions, user=schema.query_id_column, item=schema.item_id_column,
        time=schema.interactions_timestamp_column, min_length=min_length,
    )  # fmt: skip


def _known(data: InteractionData, model: SequenceModel) -> InteractionData:
    """The same histories in the model's own item indices, without items it does not know."""
    vocabulary = model.item_vocabulary
    assert vocabulary is not None
    index = torch.zeros(data.num_items + 1, dtype=torch.int64)
    for position, external in enumerate(data.items.ids, 1):
        if external in vocabulary:
            index[position] = int(vocabulary.encode([external])[0])
    values = index[data.values]
    owner = torch.repeat_interleave(torch.arange(data.num_users), data.lengths)[values > 0]
    counts = torch.bincount(owner, minlength=data.num_users)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    return InteractionData.from_flat(
        values[values > 0], offsets, vocabulary, data.users, data.name
    )


def _warn_of(left_out: list[Any], query: str, item: str) -> None:
    some = ", ".join(map(repr, left_out[:5])) + (", …" if len(left_out) > 5 else "")
    warnings.warn(
        f"left out, since fit has seen none of their items (column {item!r}): {len(left_out)} of "
        f"the queries ({query!r}: {some})",
        stacklevel=3,
    )


def _plain(ids: Iterable[Any]) -> list[Any]:
    return ids.tolist() if hasattr(ids, "tolist") else list(ids)
