"""Where histories are cut into what trains, what validates and what tests, user by user."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from .errors import DataError

Kind = Literal["time", "later", "none"]
KINDS: tuple[Kind, ...] = ("time", "later", "none")
PARTS = ("valid", "test")
_TENSORS = ("valid", "test", "lost", "unseen", "trained")


@dataclass(frozen=True, eq=False)
class Cuts:
    """Cuts of the histories of ``InteractionData``, other than leave-one-out.

    Of a history of n items the first ``valid`` train, the item behind them is what validation
    asks for, and the item behind the first ``test`` is what test asks for. A part that is empty
    (``valid == test``, ``test == n``) asks for nothing, unless what came first in it is an item
    that the catalogue does not have: that is ``lost``, and cannot be ranked well.

    Attributes:
        kind: ``"time"``: at two moments, the same for all; ``"later"``: what came after a model
            was trained; ``"none"``: nothing is held out.
        valid, test: int64 [U], 0 <= valid <= test <= n.
        lost: bool [2, U], of validation and of test: the item asked for is not in the catalogue.
        unseen: int64 [2, U], how many items of the part are not.
        trained: bool [U], whose histories steps are taken on; None: everybody's. Counts are of
            all histories in any case.
        facts: JSON-able: the moments, and what was counted.
    """

    kind: Kind
    valid: Tensor
    test: Tensor
    lost: Tensor
    unseen: Tensor
    trained: Tensor | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def at(cls, kind: Kind, valid: Tensor, test: Tensor, facts: Mapping[str, Any]) -> Cuts:
        """Cuts at these numbers of items; nothing is lost."""
        none = torch.zeros(2, valid.numel(), dtype=torch.int64)
        return cls(kind, valid, test, none.bool(), none, None, facts)

    def check(self, lengths: Tensor) -> None:
        """Compare with the lengths int64 [U] of the histories.

        Raises:
            DataError: they are not of these histories.
        """
        users = list(lengths.shape)
        both = [2, *users]
        shapes = dict(zip(_TENSORS, (users, users, both, both, users), strict=True))
        for name, shape in shapes.items():
            found = getattr(self, name)
            kind = torch.bool if name in ("lost", "trained") else torch.int64
            if found is not None and (list(found.shape) != shape or found.dtype != kind):
                raise DataError(
                    f"cuts.{name} is {found.dtype} {list(found.shape)}; it must be {kind} {shape}"
                )
        if self.kind not in KINDS:
            raise DataError(f"cuts.kind={self.kind!r} must be one of {', '.join(KINDS)}")
        right = (self.valid >= 0) & (self.valid <= self.test) & (self.test <= lengths)
        if not bool(right.all()):
            user = int((~right).int().argmax())
            raise DataError(
                f"user index {user} has {int(lengths[user])} items and is cut behind "
                f"{int(self.valid[user])} and {int(self.test[user])}"
            )

    def of(self, users: Tensor, keep: Tensor, kept_users: Tensor) -> Cuts:
        """The cuts of the histories that are left where ``keep`` is true.

        Args:
            users: int64 [N], whose each interaction is, not falling.
            keep: bool [N].
            kept_users: int64 indices of the users who are left.
        """
        first = torch.searchsorted(users, users)
        place = torch.arange(users.numel()) - first
        valid, test = (
            torch.bincount(users[keep & (place < cut[users])], minlength=cut.numel())[kept_users]
            for cut in (self.valid, self.test)
        )
        trained = None if self.trained is None else self.trained[kept_users]
        lost, unseen = self.lost[:, kept_users], self.unseen[:, kept_users]
        return dataclasses.replace(
            self, valid=valid, test=test, lost=lost, unseen=unseen, trained=trained
        )

    # ------------------------------------------------------------------ on disk

    def tensors(self) -> dict[str, Tensor]:
        """What a file of interactions holds of them, beside :meth:`described`."""
        named = {name: getattr(self, name) for name in _TENSORS}
        return {f"cuts/{name}": tensor for name, tensor in named.items() if tensor is not None}

    def described(self) -> str:
        """The rest, as JSON."""
        return json.dumps({"kind": self.kind, "facts": self.facts}, sort_keys=True)

    @classmethod
    def read(cls, tensors: Mapping[str, Tensor], described: str) -> Cuts:
        """Inverse of :meth:`tensors` and :meth:`described`.

        Raises:
            DataError: something is missing.
        """
        named = {name: tensors.get(f"cuts/{name}") for name in _TENSORS}
        try:
            about = json.loads(described)
            kind, facts = about["kind"], about["facts"]
        except (ValueError, KeyError, TypeError):
            raise DataError(f"cuts: {described[:60]!r} does not say of what kind") from None
        missing = [name for name in _TENSORS[:-1] if named[name] is None]
        if missing:
            raise DataError(f"the tensor cuts/{missing[0]} is missing")
        return cls(kind, *(named[name] for name in _TENSORS), facts)  # type: ignore[arg-type,call-arg]

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all of it."""
        digest = hashlib.sha256(self.described().encode())
        for name, tensor in self.tensors().items():
            digest.update(f"{name}:{list(tensor.shape)}:".encode())
            digest.update(tensor.to(torch.int64).numpy().astype("<i8", copy=False).tobytes())
        return digest.hexdigest()


def distinct(users: Tensor, values: Tensor, chosen: Tensor, num_users: int) -> Tensor:
    """int64 [num_users]: how many different items each user has among the chosen interactions.

    Args:
        users, values: int64 [N], whose and of which item.
        chosen: bool [N].
        num_users: U.
    """
    pairs = torch.stack([users[chosen], values[chosen]])
    return torch.bincount(torch.unique(pairs, dim=1)[0], minlength=num_users)
