"""A run's model, warm, with the vocabularies and histories that requests speak of."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch

from ..data import DataError, InteractionData, Vocabulary
from ..models.pretrained import CheckpointError
from ..ranking.recommender import Recommender
from ..training import load_run
from ..training.checkpoint import MANIFEST, rankings_of, read_json
from ..training.errors import RunFolderError
from ..training.updated import current_folder, load_current
from .errors import RequestError, shown

Which = Literal["best", "last"]


class Source(NamedTuple):
    """Where models come from.

    Attributes:
        run_dir: the run folder; a symbolic link is followed anew at each loading.
        which: the checkpoint.
        device: where the model goes.
        threads: of the model on a CPU.
        max_batch: the largest batch that will be asked for.
    """

    run_dir: Path
    which: Which
    device: torch.device
    threads: int
    max_batch: int


@dataclass(frozen=True)
class ServedModel:
    """One loaded checkpoint; never altered.

    Attributes:
        id: the first 12 hex digits of the weights' SHA-256; where a memory or features of items
            rank with them, of the SHA-256 of all that these rankings follow from.
        epoch: of training.
        path: the checkpoint's folder, links resolved.
        loaded_at: seconds since 1970.
        data: histories of the known users, and both vocabularies.
        recommender: over ``data.items``.
    """

    id: str
    epoch: int | None
    path: Path
    loaded_at: float
    data: InteractionData
    recommender: Recommender

    @property
    def items(self) -> Vocabulary:
        return self.data.items

    def history_of(
        self, user: int | str, argument: str = "user"
    ) -> tuple[int | str, list[int], str | None]:
        """A user's id as the data has it, the item indices of the history, and what to say of a
        user whom preprocessing dropped.

        Raises:
            RequestError: 404 for a user nobody knows, 422 for one without a history.
        """
        index = int(self.data.users.find([user])[0])
        left_out = self.data.dropped
        dropped = None if left_out is None else left_out.known(user)
        if index < 0 and left_out is not None and dropped is not None:
            try:
                history = self.data.history_of(user).tolist()
                return dropped, history, left_out.told(user)
            except DataError as error:
                raise RequestError(422, "no_history", str(error), argument, user) from None
        if index < 0:
            raise RequestError(
                404,
                "unknown_user",
                f"{argument}={shown(user)} is not among the {len(self.data.users)} users of the "
                f"training data, such as {shown(self.data.users.decode([0])[0])}; a new user is "
                "served by history",
                argument,
                user,
            )
        history = self.data.sequence(index).tolist()
        if not history:
            raise RequestError(
                422, "no_history", f"{argument}={shown(user)} has no history; send one", argument,
                user,
            )  # fmt: skip
        return self.data.users.decode([index])[0], history, None

    def indices(
        self, argument: str, ids: Sequence[int | str], ignored: list[int | str] | None
    ) -> list[int]:
        """Item indices of external ids; unknown ones go to ``ignored``, if it is there.

        Raises:
            RequestError: 422 for an unknown item that must not be ignored.
        """
        found: list[int] = self.items.find(ids).tolist()
        if -1 not in found:
            return found
        if ignored is None:
            place = found.index(-1)
            refusal = self._unknown(f"{argument}[{place}]", ids[place])
            refusal.message += "; unknown_items='ignore' leaves such items out"
            raise refusal
        ignored += [item for item, index in zip(ids, found, strict=True) if index < 0]
        return [index for index in found if index >= 0]

    def index_of(self, item: int | str) -> int:
        """The index of one item.

        Raises:
            RequestError: 422 for one that is unknown.
        """
        index = int(self.items.find([item])[0])
        if index < 0:
            raise self._unknown("item", item)
        return index

    def _unknown(self, argument: str, item: int | str) -> RequestError:
        return RequestError(
            422,
            "unknown_item",
            f"{argument}={shown(item)} is not among the {len(self.items)} items of the catalogue, "
            f"such as {shown(self.items.decode([1])[0])}",
            argument,
            item,
        )


def load(source: Source) -> ServedModel:
    """Read a run folder and answer a few requests, so that the first real one is as fast as any.

    Raises:
        RunFolderError, CheckpointError: as :func:`adarec_fast.training.load_run`.
    """
    folder = source.run_dir.resolve()
    before = _manifest(folder, source.which)
    run = load_current(folder, which=source.which, device=source.device)
    rankings, epoch = rankings_of(before), before.get("epoch")
    if before != _manifest(folder, source.which) or rankings is None:
        raise CheckpointError(f"{folder / source.which}: replaced while it was read; load it again")
    model = ServedModel(
        id=_short(rankings),
        epoch=epoch if isinstance(epoch, int) else None,
        path=folder / run.which,
        loaded_at=time.time(),
        # Out of the map of the file, which somebody may write over.
        data=run.data.replace(
            values=run.data.values.clone(), offsets=run.data.offsets.clone(), labels=None
        ),
        recommender=Recommender(run.model, batch_size=source.max_batch),
    )
    warm(model, source)
    return model


def _short(rankings: str) -> str:
    """A name of a model by what its rankings follow from."""
    several = ":" in rankings
    return (hashlib.sha256(rankings.encode()).hexdigest() if several else rankings)[:12]


def signature(source: Source) -> tuple[object, ...] | None:
    """What tells whether a run folder has another model than before; None while it has none."""
    folder = source.run_dir.resolve()
    try:
        checkpoint = current_folder(folder, source.which)
    except CheckpointError as error:  # a change as well: loading it will say what is wrong
        return folder, str(error)
    if checkpoint is None:
        return None
    try:
        files = [*sorted(checkpoint.iterdir()), folder / "interactions.safetensors"]
        states = [(file.name, file.stat()) for file in files]
    except OSError:  # replaced this very moment: look again later
        return None
    return folder, *((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in states)


def _manifest(folder: Path, which: Which) -> dict[str, object]:
    checkpoint = current_folder(folder, which)
    if checkpoint is None:
        # load_run words it, with what else may be wrong.
        load_run(folder, which=which)
        raise RunFolderError(f"{folder / which}: no such checkpoint yet")
    return read_json(checkpoint / MANIFEST)


def warm(model: ServedModel, source: Source) -> None:
    """Answer a few requests, so that the first real one is as fast as any."""
    torch.set_num_threads(source.threads)
    users = max(1, min(model.data.num_users, source.max_batch))
    histories = [history for u in range(users) if (history := model.data.sequence(u).tolist())]
    for some in (histories[:1], histories[:2], histories, histories[:1]):
        if some:
            model.recommender.recommend(some, min(20, len(model.items)))
