"""Answers of the command line: what a history leads to, and how it is shown."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from rich import box
from rich.table import Table
from rich.text import Text

from ..config import ConfigError
from .console import words

if TYPE_CHECKING:
    from ..data import Split, Vocabulary
    from ..models.base import SequenceModel

_SHOWN_HISTORY = 5
_SHOWN_REASONS = 3
_SHORT_ID = 20  # characters; such a column is not made narrower


class Recommendation(NamedTuple):
    """What one history leads to; ids are external.

    Attributes:
        reasons: of each item, what its score loses without each place of the history; None where
            nobody asked.
    """

    user: str | int | None
    history: list[str | int]
    diagnostics: dict[str, int | float]
    items: list[str | int]
    scores: list[float]
    reasons: list[list[float]] | None = None

    def why(self, place: int) -> list[dict[str, Any]]:
        """The history's items by what the item at a place of the ranking owes them."""
        assert self.reasons is not None
        owed = zip(self.history, self.reasons[place], strict=True)
        return [
            {"item": item, "difference": difference}
            for item, difference in sorted(owed, key=lambda pair: -pair[1])
        ]

    def to_json(self) -> dict[str, Any]:
        ranked = enumerate(zip(self.items, self.scores, strict=True))
        return {
            "user": self.user,
            "history": self.history,
            **self.diagnostics,
            "items": [
                {"item": item, "score": score}
                | ({} if self.reasons is None else {"why": self.why(place)})
                for place, (item, score) in ranked
            ],
        }


def recommend_for(
    model: SequenceModel,
    items: Vocabulary,
    users: list[str | int | None],
    histories: list[list[int]],
    k: int,
    exclude_seen: bool = True,
    *,
    why: bool = False,
    exclude: Sequence[int] | None = None,
    allow: Sequence[int] | None = None,
) -> list[Recommendation]:
    """Ranked items for histories of item indices; fewer than ``k`` where no more are left.

    With ``why`` each says what it owes to the history. ``exclude`` and ``allow`` are indices of
    items, for all.

    Raises:
        ConfigError: ``k`` is larger than the catalogue.
    """
    import torch

    from ..ranking.reasons import score_differences
    from ..ranking.recommender import Recommender

    if k > len(items):
        raise ConfigError(f"k={k} is more than the catalogue holds; at most {len(items)}")
    ranking = Recommender(model).recommend(
        histories, k, exclude_seen=exclude_seen, exclude=exclude, allow=allow
    )
    chosen, scores = ranking.items, ranking.scores
    told = {name: tensor.tolist() for name, tensor in ranking.diagnostics.items()}
    answers = []
    for row, user in enumerate(users):
        left = torch.isfinite(scores[row])
        best = chosen[row][left]
        owed = score_differences(model, histories[row], best.tolist()).tolist() if why else None
        answers.append(
            Recommendation(
                user,
                items.decode(histories[row]),
                {name: column[row] for name, column in told.items()},
                items.decode(best),
                scores[row][left].tolist(),
                owed,
            )
        )
    return answers


def as_csv(
    columns: Sequence[str], ranked: Iterable[tuple[Any, Sequence[Any], Sequence[float]]]
) -> str:
    """Lines of who asked, item, score and rank, below the names of the columns."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(columns)
    for asked, items, scores in ranked:
        for rank, pair in enumerate(zip(items, scores, strict=True), 1):
            writer.writerow((asked, *pair, rank))
    return table.getvalue()


def samples(model: SequenceModel, split: Split, count: int = 5, k: int = 5) -> Table:
    """A few test users: history, the model's diagnostics, recommendations, and what came next."""
    asked = split.users("test")
    users = asked[_spread(asked.numel(), count)].tolist()
    values, offsets = split.inputs("test")
    histories = [values[int(offsets[u]) : int(offsets[u + 1])].tolist() for u in users]
    names = split.data.users.decode(users)
    items = split.data.items
    answers = recommend_for(model, items, names, histories, min(k, len(items)))
    truth = [items.decode([target])[0] if target else "an item that is new"
             for target in split.targets("test")[users].tolist()]  # fmt: skip
    table = Table(box=box.SIMPLE_HEAD, title="Some users of the test set", title_justify="left")
    longest = max((len(str(answer.user)) for answer in answers), default=0)
    table.add_column("user", overflow="fold", no_wrap=longest <= _SHORT_ID)
    table.add_column("history, latest last", overflow="fold", ratio=3)
    for name in answers[0].diagnostics if answers else ():
        table.add_column(Text(name), justify="right")
    table.add_column("recommended", overflow="fold", ratio=3)
    table.add_column("next was", overflow="fold")
    for answer, target in zip(answers, truth, strict=True):
        older = len(answer.history) - _SHOWN_HISTORY
        shown = [Text(f"{older} more", "dim")] if older > 0 else []
        shown += [Text(str(item)) for item in answer.history[-_SHOWN_HISTORY:]]
        ranked = [Text(str(i), "bold green" if i == target else "") for i in answer.items]
        table.add_row(
            Text(str(answer.user)),
            Text(", ").join(shown),
            *map(_number, answer.diagnostics.values()),
            Text(", ").join(ranked),
            Text(str(target)),
        )
    return table


def heading(answer: Recommendation) -> Text:
    who = "a new user" if answer.user is None else f"user {answer.user}"
    latest = ", ".join(str(item) for item in answer.history[-_SHOWN_HISTORY:])
    older = "… " if len(answer.history) > _SHOWN_HISTORY else ""
    told = "".join(f"{name} {_number(value)}, " for name, value in answer.diagnostics.items())
    return words(
        "[bold]{}[/], {}", who, f"{told}{len(answer.history)} items, latest last: {older}{latest}"
    )


def ranking_table(answer: Recommendation) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("rank", justify="right")
    table.add_column("item", overflow="fold")
    table.add_column("score", justify="right")
    if answer.reasons is not None:
        table.add_column("without", overflow="fold")
    for rank, (item, score) in enumerate(zip(answer.items, answer.scores, strict=True), 1):
        told = [] if answer.reasons is None else [_because(answer.why(rank - 1))]
        table.add_row(str(rank), Text(str(item)), f"{score:.3f}", *told)
    return table


def _because(reasons: list[dict[str, Any]]) -> Text:
    """The strongest of them, and what the score loses without each."""
    shown = [
        f"{reason['item']} {-reason['difference']:+.3f}"
        for reason in reasons[:_SHOWN_REASONS] if reason["difference"] > 0
    ]  # fmt: skip
    return Text(", ".join(shown)) if shown else Text("none of the history", "dim")


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _spread(size: int, count: int) -> list[int]:
    """``count`` indices spread evenly over ``range(size)``."""
    count = min(count, size)
    return [index * size // count for index in range(count)]
