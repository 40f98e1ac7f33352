"""Item vectors that are a sum of one of their own and of what the items' features give.

    e_i = v_i + f(x_i)

for the K items that training has. A cold one has no v_i, and gets what the features let expect of
one: e_i = f(x_i) + w(x_i), with w the ridge regression of the trained v on what f's last matrix
reads. f alone would not do: v takes up some of what all items with a feature have in common, and
whatever is cold would rank behind all of them.

x_i is what is known of the item: a one for each value of its categories (of several in a column
their mean), numbers standardised by the K trained items, vectors standardised and divided by the
root of their size, and a one for each number or vector that is missing. f is linear, or has a
hidden layer of 2 D and GELU in between. It has no bias, and its first matrix begins at zero: what
no trained item has stays zero, and adds nothing.

In training the table has the K items alone: a cold one in the softmax would only ever be wrong, and
f would learn to keep it off the lists. With ``id_dropout`` a step leaves v_i out of some items'
vectors, so that f learns to stand alone.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import rng
from ..data import ItemFeatures

Model = TypeVar("Model", bound=nn.Module)
# Standard deviations: what lies further out counts as no further.
_BEYOND = 10.0
# Of conjugate gradients: rounds at most, and the residual's share that is enough.
_ROUNDS, _PRECISION = 50, 1e-8


class FeaturedItems(nn.Embedding):
    """The table ``[V+1, D]`` of items with features, ``weight``; in training ``[K+1, D]``.

    Args:
        own: ``[V+1, D]``, as an ``nn.Embedding`` would have it.
        features: of V items.
        net: ``"sum"`` or ``"mlp"``.
        dropout: of v_i, in training.
        seed: of the hidden layer's weights.

    Attributes:
        ids: ``[K, D]``, v.
        values: ``[C, H]`` and ``numbers`` ``[F, H]``: the first matrix, of values of categories and
            of all else; None where there are none. H is D, or 2 D under ``"mlp"``.
        out: ``[H, D]``, or None.
        mean, scale: ``[F']``, of numbers and vectors, by the items that training had.
    """

    mean: Tensor
    scale: Tensor
    raw: Tensor
    missing: Tensor
    codes: Tensor
    rows: Tensor
    shares: Tensor
    column: Tensor

    def __init__(
        self, own: Tensor, features: ItemFeatures, net: str, dropout: float, seed: int
    ) -> None:
        nn.Module.__init__(self)
        size, trained = own.shape[1], features.trained
        self.num_embeddings, self.embedding_dim, self.padding_idx = own.shape[0], size, 0
        self.trained, self.dropout = trained, dropout
        self._made: tuple[Any, Tensor] | None = None
        found = features.rows
        width = 2 * size if net == "mlp" else size
        dense = found.numbers.shape[1] + found.missing.shape[1]

        def zeros(rows: int, columns: int) -> nn.Parameter | None:
            if not rows:
                return None
            return nn.Parameter(torch.zeros(rows, columns, dtype=torch.float32))

        self.ids = nn.Parameter(own[1 : trained + 1].detach().clone())
        self.values = zeros(len(found.labels), width)
        self.numbers = zeros(dense, width)
        self.out: nn.Parameter | None = None
        if net == "mlp":
            draw = torch.Generator().manual_seed(seed)
            self.out = nn.Parameter(torch.empty(width, size, dtype=torch.float32))
            with torch.no_grad():
                self.out.normal_(0.0, width**-0.5, generator=draw)
        mean, scale = _standards(features)
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        sizes = torch.tensor([column.size for column in found.dense], dtype=torch.int64)
        for name, tensor in (
            ("raw", found.numbers), ("missing", found.missing), ("codes", found.codes),
            ("rows", found.rows), ("shares", _shares(features)),
            ("column", torch.repeat_interleave(sizes)),
        ):  # fmt: skip
            self.register_buffer(name, tensor, persistent=False)
        self._ends = trained, int(found.rows[trained])

    # ------------------------------------------------------------------ the table

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The table of the module's mode, without dropout; kept where no gradient is wanted."""
        if self.training or torch.is_grad_enabled():
            return self.composed(None)
        key = self._state()
        if key is None:
            return self.composed(None)
        if self._made is None or self._made[0] != key:
            with torch.inference_mode(False), torch.no_grad():
                self._made = key, self.composed(None)
        return self._made[1]

    def composed(self, seed: Tensor | None) -> Tensor:
        """The table, made now.

        Args:
            seed: the step's, of the dropout in training; None: there is none.
        """
        with torch.autocast(self.ids.device.type, enabled=False):
            own: Tensor = self.ids
            if self.training and seed is not None and self.dropout:
                index = torch.arange(own.shape[0], device=own.device)
                keep = rng.keep_mask(seed, index, rng.STREAM_ITEM_IDS, 0, self.dropout)
                own = own * keep[:, None]
            told = self._told()
            if told.shape[0] > own.shape[0]:
                own = torch.cat([own, self.expected(own.shape[0])[own.shape[0] :]])
            return F.pad(own + told, (0, 0, 1, 0))

    @torch.no_grad()
    def expected(self, trained: int) -> Tensor:
        """w(x_i) ``[V, D]``: what an item's own vector is likely to be, by those of the first
        ``trained`` items and all items' features. On the CPU in float64, the same everywhere."""
        inputs: _Hidden
        if self.out is None:
            inputs = _Features(self)
        else:
            inputs = _Hidden(F.gelu(self._first(len(self.missing), len(self.codes))))
        own = self.ids[:trained].detach().cpu().double()
        return inputs.of(_ridge(inputs, own)).to(self.ids)

    def _told(self) -> Tensor:
        """f(x_i) ``[K, D]`` in training, else ``[V, D]``."""
        ends = self._ends if self.training else (len(self.missing), len(self.codes))
        found = self._first(*ends)
        return found if self.out is None else F.gelu(found) @ self.out

    def _first(self, items: int, codes: int) -> Tensor:
        """The first matrix's part ``[items, H]``, of items with so many codes."""
        parts: list[Tensor] = []
        if self.values is not None:
            parts.append(F.embedding_bag(
                self.codes[:codes], self.values, self.rows[: items + 1], mode="sum",
                per_sample_weights=self.shares[:codes].to(self.values.dtype),
                include_last_offset=True,
            ))  # fmt: skip
        if self.numbers is not None:
            parts.append(self.dense(items) @ self.numbers)
        return parts[0] if len(parts) == 1 else parts[0] + parts[1]

    def dense(self, items: int) -> Tensor:
        """Numbers and vectors, standardised, and what is missing of them ``[items, F]``."""
        missing = self.missing[:items]
        known = ((self.raw[:items] - self.mean) * self.scale).clamp(-_BEYOND, _BEYOND)
        known = known.masked_fill(missing[:, self.column], 0.0)
        return torch.cat([known, missing.to(known.dtype)], 1)

    def forward(self, input: Tensor) -> Tensor:
        """Rows of the table."""
        return F.embedding(input, self.weight)

    # ------------------------------------------------------------------ what is kept

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, trained={self.trained}"

    def train(self, mode: bool = True) -> FeaturedItems:
        self._made = None
        super().train(mode)
        return self

    def _state(self) -> Any:
        """What the table follows from, to tell a change by; None where that cannot be told."""
        tensors = [*self.parameters(), self.mean, self.scale]
        if any(tensor.is_inference() for tensor in tensors):
            return None
        return [(t.data_ptr(), t._version, t.dtype, t.device) for t in tensors]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}


class _Hidden:
    """A matrix X ``[V, P]`` as it is, for :func:`_ridge`."""

    def __init__(self, x: Tensor) -> None:
        self.x = x.cpu().double()

    def of(self, w: Tensor) -> Tensor:
        """X w ``[V, D]``."""
        return self.x @ w

    def back(self, rows: Tensor) -> Tensor:
        """X' r ``[P, D]``, of the first rows."""
        return self.x[: rows.shape[0]].T @ rows


class _Features(_Hidden):
    """The same of x_i, where categories may have very many values: none of their ones is stored."""

    def __init__(self, items: FeaturedItems) -> None:
        super().__init__(items.dense(len(items.missing)))
        self.codes, self.shares = items.codes.cpu(), items.shares.cpu().double()
        self.owner = torch.repeat_interleave(
            torch.arange(len(items.missing)), items.rows.cpu().diff()
        )
        self.values = 0 if items.values is None else items.values.shape[0]

    def of(self, w: Tensor) -> Tensor:
        found = super().of(w[self.values :])
        return found.index_add(0, self.owner, w[self.codes] * self.shares[:, None])

    def back(self, rows: Tensor) -> Tensor:
        number = int(torch.searchsorted(self.owner, rows.shape[0]))
        told = rows[self.owner[:number]] * self.shares[:number, None]
        first = rows.new_zeros(self.values, rows.shape[1])
        return torch.cat([first.index_add(0, self.codes[:number], told), super().back(rows)])


def _ridge(x: _Hidden, target: Tensor) -> Tensor:
    """w of min |X w - t|^2 + |w|^2 over the first rows of X, ``[P, D]``, by conjugate gradients."""
    residual = x.back(target)
    found, direction, size = torch.zeros_like(residual), residual, residual.square().sum(0)
    enough = size * _PRECISION**2
    for _ in range(_ROUNDS):
        if bool((size <= enough).all()):
            break
        image = x.back(x.of(direction)[: target.shape[0]]) + direction
        along = (direction * image).sum(0)
        # A column that is solved stays as it is.
        step = torch.where(along > 0, size / along.clamp(min=1e-300), 0.0)
        found, residual = found + step * direction, residual - step * image
        after = residual.square().sum(0)
        turn = torch.where(size > 0, after / size.clamp(min=1e-300), 0.0)
        direction = residual + turn * direction
        size = after
    return found


def plain_items(model: Model) -> Model:
    """A view of a model (:func:`.evaluating.evaluating`) with its table as a plain ``nn.Embedding``
    where its items have features, so that a graph of it holds the table and not how it is made."""
    items = getattr(model, "item_embedding", None)
    if isinstance(items, FeaturedItems):
        model.item_embedding = nn.Embedding.from_pretrained(items.weight.detach(), padding_idx=0)
    return model


def _standards(features: ItemFeatures) -> tuple[Tensor, Tensor]:
    """Mean and scale of numbers and vectors over the trained items that have them."""
    found, trained = features.rows, features.trained
    sizes = torch.tensor([column.size for column in found.dense], dtype=torch.int64)
    there = ~torch.repeat_interleave(found.missing[:trained], sizes, 1)
    values = torch.where(there, found.numbers[:trained], 0.0).double()
    count = there.sum(0).clamp(min=1)
    mean = values.sum(0) / count
    spread = (torch.where(there, values - mean, 0.0).square().sum(0) / count).sqrt()
    # What is the same for all trained items says nothing about any.
    alike = spread <= 1e-6 * mean.abs()
    width = torch.repeat_interleave(sizes, sizes).double().sqrt()
    scale = torch.where(alike, 0.0, 1.0 / (torch.where(alike, 1.0, spread) * width))
    return mean.float(), scale.float()


def _shares(features: ItemFeatures) -> Tensor:
    """float32 ``[N]``: one over the number of values that the item has in the column."""
    found = features.rows
    columns = torch.tensor([place for place, _ in found.labels] or [0], dtype=torch.int64)
    owner = torch.repeat_interleave(torch.arange(len(found)), found.rows.diff())
    key = owner * max(1, len(found.columns)) + columns[found.codes]
    _, place, count = torch.unique(key, return_inverse=True, return_counts=True)
    return 1.0 / count[place].float()
