"""Recommendations for all users as data frames and files: user, item, score, rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..config import ConfigError
from ..data import DataError, InteractionData
from ..data.flat import gather_ranges
from ..data.tables import import_polars
from ..files import replacing
from ..models.base import SequenceModel
from .recommender import Recommender

FrameKind = Literal["polars", "pandas"]
COLUMNS = ("user", "item", "score", "rank")


def recommendation_frames(
    model: SequenceModel,
    data: InteractionData,
    *,
    k: int = 20,
    exclude_seen: bool = True,
    users: Sequence[int] | None = None,
    chunk_size: int = 4096,
    kind: FrameKind = "polars",
) -> Iterator[Any]:
    """The k best items of every user, a frame for each chunk of users.

    Args:
        model: of the data's catalogue.
        data: histories, and the external ids of users and items.
        k: items a user, 1..num_items; fewer where no more are left.
        exclude_seen: leave out what a history holds.
        users: indices of users, all of them when None.
        chunk_size: users in a frame.
        kind: ``"polars"`` or ``"pandas"``.

    Yields:
        Frames of the columns user and item (external ids), score (float32, falling) and rank
        (int32, from 1), a user's rows together.

    Raises:
        ConfigError: k, chunk_size or kind out of range, or a model of another catalogue.
        DataError: polars or pandas is not installed.
    """
    if kind not in ("polars", "pandas"):
        raise ConfigError(f"kind={kind!r} must be 'polars' or 'pandas'")
    if chunk_size < 1:
        raise ConfigError(f"chunk_size={chunk_size} must be at least 1")
    if not 1 <= k <= data.num_items:
        raise ConfigError(f"k={k} must lie in 1..{data.num_items}, the number of items")
    if model.config.num_items != data.num_items:
        raise ConfigError(
            f"the model knows {model.config.num_items} items, the data have {data.num_items}: the "
            "two are not of one catalogue"
        )
    make = _maker(kind)
    chosen = torch.arange(data.num_users) if users is None else torch.as_tensor(list(users))
    recommender = Recommender(model)
    return (
        make(_columns(recommender, data, part, k, exclude_seen))
        for part in chosen.split(chunk_size)
        if part.numel()
    )


def recommendation_frame(model: SequenceModel, data: InteractionData, **options: Any) -> Any:
    """All of :func:`recommendation_frames` as one frame, which takes its options."""
    kind = options.get("kind", "polars")
    frames = list(recommendation_frames(model, data, **options))
    if kind == "pandas":
        import pandas

        return pandas.concat(frames, ignore_index=True)
    return import_polars("a frame of recommendations").concat(frames)


def write_recommendations(
    model: SequenceModel, data: InteractionData, path: Path, *, format: Literal["parquet", "csv"],
    **options: Any,
) -> int:
    """Write :func:`recommendation_frames` to a file, chunk by chunk, and give the number of rows.

    The file gets its name when it is whole; pipes and devices get all of it at the end.

    Raises:
        ConfigError, DataError: as there.
        OSError: the file cannot be written.
    """
    import_polars("writing recommendations")
    frames = recommendation_frames(model, data, kind="polars", **options)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        return (_write_parquet if format == "parquet" else _write_csv)(frames, fresh)


def _write_parquet(frames: Iterator[Any], path: Path) -> int:
    try:
        from pyarrow.parquet import ParquetWriter
    except ImportError as error:
        raise DataError("writing Parquet needs pyarrow: pip install adarec_fast[data]") from error
    rows, writer = 0, None
    try:
        for frame in frames:
            table = frame.to_arrow()
            writer = writer or ParquetWriter(path, table.schema)
            writer.write_table(table)
            rows += len(frame)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _write_csv(frames: Iterator[Any], path: Path) -> int:
    rows = 0
    with path.open("wb") as file:
        for frame in frames:
            frame.write_csv(file, include_header=rows == 0)
            rows += len(frame)
    return rows


def _columns(
    recommender: Recommender, data: InteractionData, users: Tensor, k: int, exclude_seen: bool
) -> dict[str, Any]:
    starts = data.offsets[users]
    histories = gather_ranges(data.values, starts, data.offsets[users + 1] - starts)
    ranking = recommender.recommend(histories, k, exclude_seen=exclude_seen)
    scores = ranking.scores.float().cpu()
    left = torch.isfinite(scores)
    rank = torch.arange(1, k + 1, dtype=torch.int32).expand(len(users), -1)
    return {
        "user": data.users.decode(users[:, None].expand(-1, k)[left]),
        "item": data.items.decode(ranking.items.cpu()[left]),
        "score": scores[left].numpy(),
        "rank": rank[left].numpy(),
    }


def _maker(kind: FrameKind) -> Any:
    if kind == "polars":
        return import_polars("a frame of recommendations").DataFrame
    try:
        import pandas
    except ImportError as error:
        raise DataError(
            "a frame of recommendations needs pandas: pip install adarec_fast[data]"
        ) from error
    return pandas.DataFrame
