"""Parts of a batch, stretches of whole sequences, and their rows of what the whole batch has.

The C++ ops read offsets on the host anyway, and so do their parts; otherwise which sequences they
are is found out on the device, and only the number of parts is known to the host. Noise and dropout
are functions of a token's place in the whole batch, so each part is told where it begins and draws
what the whole batch would.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from .. import ragged, rng
from ..reference.fused_trajectory import TrajectoryInputs

# Tokens that begin a sequence of a part lie in a stretch of so many: on a CPU what the caches
# hold, on a GPU what keeps all of it busy.
PART_TOKENS = {"cpu": 1024, "cuda": 8192}


class Part(Protocol):
    """Some of the sequences, and where they lie in the whole batch."""

    @property
    def inputs(self) -> TrajectoryInputs:
        """The op's inputs of the part alone."""

    def put(self, target: Tensor, value: Tensor, dim: int, *, token: bool) -> None:
        """Write the part's own rows, one a token or one a sequence, to the whole's."""

    def take(self, source: Tensor, dim: int, *, token: bool) -> Tensor:
        """The part's rows of the whole's; those of sequences that do not exist are some other's."""


class _Slice(NamedTuple):
    """A part that the host knows: so many of the tokens, so many of the sequences."""

    inputs: TrajectoryInputs
    tokens: slice
    sequences: slice

    def _of(self, whole: Tensor, dim: int, token: bool) -> Tensor:
        place = self.tokens if token else self.sequences
        return whole.narrow(dim, place.start, place.stop - place.start)

    def put(self, target: Tensor, value: Tensor, dim: int, *, token: bool) -> None:
        self._of(target, dim, token).copy_(value)

    def take(self, source: Tensor, dim: int, *, token: bool) -> Tensor:
        return self._of(source, dim, token).contiguous()


def _slices(inputs: TrajectoryInputs) -> Iterator[_Slice]:
    """As many whole sequences at a time as a stretch holds, and one at least."""
    ragged.check_offsets(inputs.offsets, inputs.embeddings.shape[0])
    ends = inputs.offsets.tolist()
    first, length = 0, PART_TOKENS["cpu"]
    while first < len(ends) - 1:
        last = max(first + 1, bisect_right(ends, ends[first] + length) - 1)
        part = _Slice(inputs, slice(ends[first], ends[last]), slice(first, last))
        yield part._replace(
            inputs=inputs._replace(
                embeddings=part.take(inputs.embeddings, 0, token=True),
                offsets=inputs.offsets[first : last + 1] - ends[first],
                depth=part.take(inputs.depth, 0, token=False),
                level_mass=part.take(inputs.level_mass, 1, token=not inputs.last_only),
                noise=None if inputs.noise is None else part.take(inputs.noise, 1, token=True),
                noise_seed=rng.moved(inputs.noise_seed, ends[first]),
                seed=rng.moved(inputs.seed, ends[first]),
            )
        )
        first = last


class _Stretch(NamedTuple):
    """The sequences that begin in a stretch of tokens, and the slice of tokens they lie in.

    Attributes:
        first: the slice's first token.
        inputs: the op's inputs of the part alone. Its sequence 0 has depth -1: it stands for the
            tokens at the slice's begin that belong to the part before.
        own: bool, tokens of the slice that are the part's.
        sequences: int64, the sequences' places in the whole batch; B for those that do not exist.
    """

    first: int
    inputs: TrajectoryInputs
    own: Tensor
    sequences: Tensor

    def put(self, target: Tensor, value: Tensor, dim: int, *, token: bool) -> None:
        """The whole has one row more if not ``token``, for sequences that do not exist."""
        if not token:
            target.index_copy_(dim, self.sequences, value)
            return
        place = target.narrow(dim, self.first, value.shape[dim])
        own = self.own.view(-1, *[1] * (value.dim() - dim - 1))
        place.copy_(torch.where(own, value, place))

    def take(self, source: Tensor, dim: int, *, token: bool) -> Tensor:
        if token:
            return source.narrow(dim, self.first, self.own.shape[0])
        return source.index_select(dim, self.sequences.clamp(max=source.shape[dim] - 1))


def _stretches(inputs: TrajectoryInputs) -> Iterator[_Stretch]:
    tokens, offsets = inputs.embeddings.shape[0], inputs.offsets
    batch, device = offsets.shape[0] - 1, offsets.device
    length = PART_TOKENS[device.type]
    if batch == 0:
        return
    for first in range(0, tokens, length):
        size = min(length + inputs.max_length - 1, tokens - first)
        begin = (offsets[:-1] < first).sum()
        end = (offsets[:-1] < first + length).sum()
        # As many sequences as could begin here, the one before them in front.
        sequence = begin - 1 + torch.arange(min(batch, length) + 1, device=device)
        exists = (sequence >= begin) & (sequence < end)
        ends = (offsets[(sequence + 1).clamp(max=end)] - first).clamp(min=0, max=size)
        place = torch.arange(size, device=device)
        own = (place >= ends[0]) & (place < ends[-1])
        sequences = torch.where(exists, sequence, batch)
        depth = inputs.depth[sequence.clamp(min=0, max=batch - 1)]
        part = _Stretch(first, inputs, own, sequences)
        yield part._replace(
            inputs=inputs._replace(
                embeddings=part.take(inputs.embeddings, 0, token=True),
                offsets=torch.cat([ends.new_zeros(1), ends]),
                depth=torch.where(exists, depth, -1),
                level_mass=part.take(inputs.level_mass, 1, token=not inputs.last_only),
                noise=None if inputs.noise is None else part.take(inputs.noise, 1, token=True),
                noise_seed=rng.moved(inputs.noise_seed, first),
                seed=rng.moved(inputs.seed, first),
            )
        )


def parts(inputs: TrajectoryInputs, backend: str) -> Iterator[Part]:
    """The whole batch, a part at a time; the C++ ops' on the host, the others' on the device."""
    return _slices(inputs) if backend == "cpp" else _stretches(inputs)
