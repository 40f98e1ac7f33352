"""From a history's states to its intents: attention to all of it, and disentangling."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops, ragged, rng
from ..base import initialise


class Places(NamedTuple):
    """Where the tokens of packed histories stand.

    Attributes:
        offsets: int64 ``[B+1]``.
        at: int64 ``[N]``, the position of each, 0..L-1.
        owner: int64 ``[N]``, its history; of capacity the last one.
        real: bool ``[N, 1]``, False at capacity.
        longest: room for a history where it is padded.
    """

    offsets: Tensor
    at: Tensor
    owner: Tensor
    real: Tensor
    longest: int

    @classmethod
    def of(cls, offsets: Tensor, tokens: int, max_length: int, *, from_left: bool) -> Places:
        """Of histories of at most ``max_length`` items; on a CPU no longer than they are."""
        batch = offsets.shape[0] - 1
        owner = ragged.sequence_ids(offsets, tokens)
        count = ragged.positions if from_left else ragged.from_end
        longest = max_length
        if offsets.device.type == "cpu":
            longest = int(ragged.lengths(offsets).max()) if batch else 1
        return cls(
            offsets, count(offsets, tokens).clamp(max=max_length - 1),
            owner.clamp(max=max(batch - 1, 0)), (owner < batch)[:, None], longest,
        )  # fmt: skip

    def padded(self, x: Tensor) -> Tensor:
        """``[B, longest, ...]`` of ``[N, ...]``, zeros behind each history."""
        return ragged.to_padded(x, self.offsets, self.longest)

    def packed(self, x: Tensor) -> Tensor:
        """Inverse of :meth:`padded`; zeros at capacity."""
        return ragged.from_padded(x, self.offsets, self.at.shape[0])

    def over_each(self, scores: Tensor) -> Tensor:
        """Softmax of ``[..., longest]``, padded, over the tokens of each of B histories."""
        there = ragged.padding_mask(self.offsets, self.longest)
        there = there.view(there.shape[0], *[1] * (scores.dim() - 2), self.longest)
        return scores.masked_fill(~there, float("-inf")).softmax(-1)


class GlobalAttention(nn.Module):
    """Learnt queries, one a position, attend to all items of a history, unscaled.

    Args:
        config: hidden_size, max_length, dropout.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, self.dropout = config.hidden_size, config.dropout
        self.query = nn.Parameter(torch.empty(config.max_length, size, dtype=torch.float32))
        self.key = nn.Linear(size, size, dtype=torch.float32)
        self.value = nn.Linear(size, size, dtype=torch.float32)

    def forward(self, items: Tensor, places: Places, seed: Tensor | None, backend: str) -> Tensor:
        """Z^g ``[N, D]`` of the items' vectors ``[N, D]``."""
        query, key, value = (
            places.padded(x) for x in (self.query[places.at], self.key(items), self.value(items))
        )
        shares = places.over_each(query @ key.transpose(1, 2))
        found = places.packed(shares.to(value.dtype) @ value)
        return ops.dropout(
            found, p=self.dropout, seed=seed, stream=rng.STREAM_GLOBAL, backend=backend
        )


class Disentangle(nn.Module):
    """K vectors of a history by prototypes c_k (after Ma et al., KDD 2020).

    With LN_1 .. LN_5 layer norms, phi_t vectors of positions, T the last one:

        p(k|t) = softmax_k(LN_1(z_t) LN_2(c_k) / sqrt(D))
        w_t = softmax_t(LN_3(z_T + phi_T + rho) key_t / sqrt(D))
        key_t = x_t + relu(W x_t + b),  x_t = LN_4(z_t + phi_t)
        m_kt = LN_5(p(k|t) w_t z_t),  or  m_k = LN_5(beta_k + sum_t p(k|t) w_t z_t)

    Args:
        config: hidden_size, max_length, num_intents, pooling.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        size, intents = config.hidden_size, config.num_intents
        self.prototypes = nn.Parameter(torch.empty(intents, size, dtype=torch.float32))
        self.position = nn.Parameter(torch.empty(config.max_length, size, dtype=torch.float32))
        self.query_bias = nn.Parameter(torch.empty(size, dtype=torch.float32))
        self.key = nn.Linear(size, size, dtype=torch.float32)
        self.state_norm, self.prototype_norm, self.query_norm, self.key_norm, self.norm = (
            nn.LayerNorm(size, dtype=torch.float32) for _ in range(5)
        )
        self.bias: nn.Parameter | None = None
        if config.pooling == "sum":
            self.bias = nn.Parameter(torch.zeros(intents, size, dtype=torch.float32))

    def shares(self, z: Tensor, places: Places) -> tuple[Tensor, Tensor]:
        """p ``[N, K]`` and w ``[N]`` of states ``[N, D]``."""
        scale = z.shape[1] ** -0.5
        alike = self.state_norm(z) @ self.prototype_norm(self.prototypes).T
        position = self.position[places.at]
        last = ragged.last_tokens(places.offsets)
        query = self.query_norm(z[last] + position[last] + self.query_bias)
        x = self.key_norm(z + position)
        key = x + torch.relu(self.key(x))
        scores = (query[places.owner] * key).sum(1) * scale
        return (alike * scale).softmax(1), places.packed(places.over_each(places.padded(scores)))

    def forward(self, z: Tensor, places: Places) -> Tensor:
        """m ``[N, K, D]`` of each position, or ``[B, K, D]`` of sums.

        Args:
            z: ``[N, D]``, zeros at capacity.
            places: where its tokens stand.
        """
        shares, weight = self.shares(z, places)
        taken = shares * weight[:, None]
        if self.bias is None:
            return self.norm(taken[..., None] * z[:, None])
        pooled = places.padded(taken).transpose(1, 2) @ places.padded(z)
        return self.norm(self.bias + pooled)


class Intents(nn.Module):
    """M = Disentangle(Z^l) + Disentangle(Z^g), of local and of global states, by one set of
    parameters.

    Args:
        config: an IOCRec's.
        generator: what the weights are drawn from.
    """

    def __init__(self, config: Any, generator: torch.Generator) -> None:
        super().__init__()
        self.everywhere = GlobalAttention(config)
        self.disentangle = Disentangle(config)
        initialise(self, generator)
        with torch.no_grad():
            drawn = self.everywhere.query, self.disentangle.prototypes, self.disentangle.query_bias
            for parameter in drawn:
                parameter.normal_(0.0, 1.0, generator=generator)

    def forward(
        self, local: Tensor, items: Tensor, places: Places, seed: Tensor | None, backend: str
    ) -> Tensor:
        """``[N, K, D]``, or of sums ``[B, K, D]``.

        Args:
            local: Z^l ``[N, D]``.
            items: the items' vectors ``[N, D]``.
            places: where the tokens stand.
            seed: of dropout.
            backend: who runs it.
        """
        # What lies at capacity may not even be a number.
        local, items = (torch.where(places.real, x, 0.0) for x in (local, items))
        far = self.everywhere(items, places, seed, backend)
        found: Tensor = self.disentangle(local, places) + self.disentangle(far, places)
        return found


def embedded(items: Tensor, table: Tensor, mask: Tensor) -> Tensor:
    """Vectors ``[N, D]`` of items 0..V, and of V + 1, which is hidden behind ``mask``."""
    hidden = items >= table.shape[0]
    known = F.embedding(items.masked_fill(hidden, 0), table, padding_idx=0)
    return torch.where(hidden[:, None], mask, known)
