"""Recommendations for all users as data frames and files: user, item, score, rank."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import numpy as np
import torch
from torch import Tensor

from ..config import ConfigError
from ..data import DataError, InteractionData, Split
from ..data.flat import gather_ranges
from ..data.tables import import_polars
from ..defaults import on_cpu
from ..files import replacing
from ..histories import check_k, pack_lists
from ..models.answers import COLUMNS as COLUMNS
from ..models.answers import FrameKind, Recommendations, frame_maker
from ..models.base import SequenceModel
from ..models.limits import Limits
from ..models.own_ids import Ids, is_list_of_lists
from ..ragged import Jagged
from .recommender import Recommender

if TYPE_CHECKING:
    from typing_extensions import Unpack

HeldOut = Literal["valid", "test"]


class FrameOptions(TypedDict, total=False):
    """The options of :func:`recommendation_frames`."""

    k: int
    exclude_seen: bool
    users: Sequence[int] | None
    chunk_size: int
    kind: FrameKind
    part: HeldOut | None
    exclude: Any
    allow: Any
    mask: Any


@on_cpu()
def recommendation_frames(
    model: SequenceModel,
    data: InteractionData,
    *,
    k: int = 20,
    exclude_seen: bool = True,
    users: Sequence[int] | None = None,
    chunk_size: int = 4096,
    kind: FrameKind = "polars",
    part: HeldOut | None = None,
    exclude: Any = None,
    allow: Any = None,
    mask: Any = None,
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
        part: ``"test"`` or ``"valid"``: the lists that this part of the leave-one-out split
            judges, from the history before its target. None: from the whole history, the last
            items included, which so are masked.
        exclude, allow, mask: the same for all users, else as in :meth:`Recommender.recommend`.

    Yields:
        Frames of the columns user and item (external ids), score (float32, falling) and rank
        (int32, from 1), a user's rows together; at least one, which may be empty.

    Raises:
        ConfigError: k, chunk_size or kind out of range, or a model of another catalogue.
        DataError: polars or pandas is not installed.
    """
    if not isinstance(kind, str) or kind not in ("polars", "pandas"):
        raise ConfigError(f"kind={kind!r} must be 'polars' or 'pandas'")
    for name, given, right in (("model", model, SequenceModel), ("data", data, InteractionData)):
        if not isinstance(given, right):
            raise ConfigError(f"{name} is a {type(given).__name__}; it must be of {right.__name__}")
    sized = isinstance(chunk_size, int) and not isinstance(chunk_size, bool)
    if not sized or not 1 <= chunk_size < 2**31:
        raise ConfigError(f"chunk_size={chunk_size!r} must be an int of at least 1")
    try:
        k = check_k(k, data.num_items)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if model.config.num_items != data.num_items:
        raise ConfigError(
            f"the model knows {model.config.num_items} items, the data have {data.num_items}: the "
            "two are not of one catalogue"
        )
    make = frame_maker(kind)
    histories = Jagged(data.values, data.offsets)
    if part is not None:
        histories = Jagged(*Split(data).inputs(part))
    chosen = torch.nonzero(histories.offsets.diff()).flatten()
    if users is not None:
        try:
            chosen = pack_lists([users], torch.device("cpu"), name="users").values
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < data.num_users:
            wrong = chosen[(chosen < 0) | (chosen >= data.num_users)][0]
            raise ConfigError(f"users: {int(wrong)} must lie in 0..{data.num_users - 1}")
        empty = chosen[histories.offsets.diff()[chosen] == 0]
        if empty.numel():
            raise ConfigError(f"users: {int(empty[0])} has no history before the part {part!r}")
    if not chosen.numel():
        return iter([make(_one_row(data))[:0]])
    recommender = Recommender(model)
    limits = {"exclude": exclude, "allow": allow, "mask": mask, "exclude_seen": exclude_seen}
    ids = Ids(model.item_vocabulary, False, "refuse")
    Limits.of(ids, 1, data.num_items, exclude=exclude, allow=allow, mask=mask)
    if any(map(is_list_of_lists, (exclude, allow, mask))):
        raise ConfigError("exclude, allow and mask must be the same for all users here")
    return (
        make(_columns(recommender, data, histories, chunk, k, limits))
        for chunk in chosen.split(chunk_size)
    )


def recommendation_frame(
    model: SequenceModel, data: InteractionData, **options: Unpack[FrameOptions]
) -> Any:
    """All of :func:`recommendation_frames` as one frame, which takes its options."""
    frames = list(recommendation_frames(model, data, **options))
    if options.get("kind") == "pandas":
        import pandas

        return pandas.concat(frames, ignore_index=True)
    return import_polars("a frame of recommendations").concat(frames)


def write_recommendations(
    model: SequenceModel, data: InteractionData, path: Path, *, format: Literal["parquet", "csv"],
    **options: Unpack[FrameOptions],
) -> int:
    """Write :func:`recommendation_frames` to a file, chunk by chunk, and give the number of rows.

    The file gets its name when it is whole; pipes and devices get all of it at the end.

    Raises:
        ConfigError, DataError: as there.
        OSError: the file cannot be written.
    """
    import_polars("writing recommendations")
    given: FrameOptions = {**options, "kind": "polars"}
    frames = recommendation_frames(model, data, **given)
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


@on_cpu()  # for itself: frames are made as they are asked for
def _columns(
    recommender: Recommender, data: InteractionData, histories: Jagged, users: Tensor, k: int,
    limits: dict[str, Any],
) -> dict[str, Any]:
    values, offsets = histories
    starts = offsets[users]
    chosen = gather_ranges(values, starts, offsets[users + 1] - starts)
    ranking = recommender.recommend(chosen, k, **limits)
    return Recommendations(
        ranking.items, ranking.scores, {}, data.items, asked=data.users.decode(users)
    ).columns()


def _one_row(data: InteractionData) -> dict[str, Any]:
    """Columns of the right types."""
    return {
        "user": data.users.ids[:1],
        "item": data.items.ids[:1],
        "score": np.zeros(min(1, data.num_users), np.float32),
        "rank": np.zeros(min(1, data.num_users), np.int32),
    }
