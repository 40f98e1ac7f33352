"""BASRec's losses: histories mixed with copies at the input, and with others at the output."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ... import ops, ragged, rng
from ...data import Split
from ..base import Label
from ..blocks.auxiliary import Auxiliary, Encodes, Parts, Step
from ..blocks.beta import drawn, quantiles
from ..blocks.sampled_bce import bce_of_rows
from ..blocks.similarity import most_similar
from ..blocks.weighted_cross_entropy import weighted_cross_entropy
from .copies import copies, sample_weights
from .everyone import Everyone, everyone

LABELS = {
    "augmented": Label("copies mixed with their histories", "nats"),
    "mixed": Label("mixtures of histories", "nats"),
}


class Mixing(Auxiliary):
    """BASRec's two losses, from the end of the first stage on.

    Attributes:
        similar: int64 ``[V+1]``, the item most similar to each, while a model is trained.
        begun: int64 0-dim, epochs that were begun; saved, since it says which stage a run is in.
    """

    begun: Tensor
    similar: Tensor
    beta: Tensor

    def __init__(self, config: Any) -> None:
        weights = {
            "augmented": float(config.augmented_pairs > 0), "mixed": float(config.mixed_rounds > 0)
        }  # fmt: skip
        super().__init__(LABELS, weights)
        self.copies, self.rounds = 2 * config.augmented_pairs, config.mixed_rounds
        self.ratios = config.least_ratio, config.greatest_ratio
        self.by_sample = config.weighting == "sample"
        self.plain_epochs = config.plain_epochs
        self.register_buffer("begun", torch.zeros((), dtype=torch.int64))
        self.register_buffer("beta", quantiles(config.mix_beta).clone(), persistent=False)
        self.register_buffer("similar", torch.zeros(0, dtype=torch.int64), persistent=False)
        self._mixes: bool | None = None

    def begin_training(self, model: Encodes, split: Split) -> None:
        values, offsets = split.inputs("train")
        # The lists that the public code counts end before the last training item.
        kept = ragged.from_end(offsets, values.shape[0]) > 0
        shorter = torch.cat([offsets[:1], (ragged.lengths(offsets) - 1).clamp(min=0).cumsum(0)])
        self.similar = most_similar(values[kept], shorter, split.num_items).to(model.device)

    def begin_epoch(self, model: Encodes, epoch: int) -> None:
        self.begun.fill_(epoch + 1)
        self._mixes = epoch >= self.plain_epochs

    @property
    def mixes(self) -> bool:
        """Whether the first stage is over. Reads on the host after a model was loaded."""
        if self._mixes is None:
            self._mixes = int(self.begun) > self.plain_epochs
        return self._mixes

    def losses(self, model: Encodes, step: Step) -> Parts:
        nothing = torch.zeros((), dtype=torch.float32, device=step.draws.device)
        if not self.mixes:
            return Parts(dict.fromkeys(self.weights, nothing))
        means, counts = {}, {}
        if "augmented" in self.weights:
            means["augmented"] = self.augmented(model, step)
            counts["augmented"] = (step.batch.targets > 0).sum()
        if "mixed" in self.weights:
            means["mixed"] = self.mixed(step, model.config.backend)
        return Parts(means, counts)

    # ------------------------------------------------------------------ at the input

    def augmented(self, model: Encodes, step: Step) -> Tensor:
        """The sum over copies of their weighted losses, each a mean over targets."""
        values, offsets, targets, _ = step.batch
        tokens, each, table = values.shape[0], self.copies, step.table
        made = copies(values, offsets, step.draws, self.similar, each, self.ratios)
        sequence = torch.arange(offsets.shape[0] - 1, device=values.device)
        sequence = sequence + rng.first_sequence(step.draws)
        word = rng.level_words(step.draws, sequence, rng.STREAM_MIX_BETA, range(each))
        alpha = drawn(word, self.beta)
        owner = ragged.sequence_ids(offsets, tokens).clamp(max=max(offsets.shape[0] - 2, 0))
        weights = self._weights(alpha, made.ratio, step).to(table.dtype)[owner]

        share = alpha.to(table.dtype)[owner, :, None]
        own = F.embedding(values, table, padding_idx=0)[:, None]
        mixed = share * own + (1 - share) * F.embedding(made.items, table, padding_idx=0)
        hidden = self._encoded(model, step, mixed, owner)
        if step.negatives is None:
            found = [
                weighted_cross_entropy(hidden[:, copy], table, targets, weights[:, copy])
                for copy in range(each)
            ]
            return torch.stack(found).sum()
        positive = F.embedding(targets, table, padding_idx=0)
        negative = F.embedding(step.negatives, table, padding_idx=0)
        lost = torch.stack(
            [
                bce_of_rows(hidden[:, copy], positive, negative, targets > 0)
                for copy in range(each)
            ], 1,
        )  # fmt: skip
        return (lost * weights).sum() / (targets > 0).sum().clamp(min=1)

    def _weights(self, alpha: Tensor, ratio: Tensor, step: Step) -> Tensor:
        """What each history's loss counts in each copy, ``[B, C]``: its own weight, or the sum of
        all in the batch."""
        valid = None
        batch, share = alpha.shape[0], step.share
        if share is not None:
            most = share.most_examples
            alpha, ratio, there = share.gather(
                torch.stack([alpha, ratio, torch.ones_like(alpha)]).movedim(0, 1), most
            ).unbind(1)
            valid = there[:, 0] > 0
            # Rows that only fill up divide by no zero.
            alpha, ratio = alpha + (1 - there), ratio + (1 - there)
        found = sample_weights(alpha, ratio, valid)
        if not self.by_sample:
            counted = found if valid is None else torch.where(valid[:, None], found, 0.0)
            return counted.sum(0).expand(batch, -1)
        begin = 0 if share is None else share.workers.rank * share.most_examples
        return found[begin : begin + batch]

    def _encoded(self, model: Encodes, step: Step, mixed: Tensor, owner: Tensor) -> Tensor:
        """E ``[N, C, D]`` of the embeddings of C copies of each history."""
        offsets, (tokens, each, size) = step.batch.offsets, mixed.shape
        # Copies of one history side by side: those of a worker's share then are a run, too.
        token = torch.arange(tokens, device=owner.device)
        column = torch.arange(each, device=owner.device)
        begin, length = offsets[owner], ragged.lengths(offsets)[owner]
        at = (each * begin + token - begin)[:, None] + length[:, None] * column
        spare = each * token[:, None] + column
        at = torch.where((token < offsets[-1])[:, None], at, spare).flatten()
        x = mixed.new_zeros(tokens * each, size).index_copy(0, at, mixed.flatten(0, 1))
        lengths = ragged.lengths(offsets)[:, None].expand(-1, each).flatten()
        bounds = F.pad(lengths.cumsum(0), (1, 0))
        place = None if step.share is None else step.share.place * each
        seed = rng.of_pass(step.draws, 1, place) if model.training else None
        encoded: Tensor = model.backbone(x, bounds, seed=seed, backend=model.config.backend)
        return encoded[at].view(tokens, each, size)

    # ------------------------------------------------------------------ at the output

    def mixed(self, step: Step, backend: str) -> Tensor:
        """The sum over rounds of the losses of mixtures, each a mean over targets."""
        all_of = everyone(step)
        found = [
            self._mixture(all_of, self._item_shares(all_of, turn), 2 * turn, backend)
            for turn in range(self.rounds)
        ]
        if all_of.negatives is not None:
            # Mixtures by feature have no target that a cross entropy could name.
            found += [
                self._mixture(all_of, self._feature_shares(all_of, turn), 2 * turn + 1, backend)
                for turn in range(self.rounds)
            ]
        return torch.stack(found).sum()

    def _item_shares(self, all_of: Everyone, turn: int) -> Tensor:
        """alpha ``[M, 1]``, one a token."""
        index, level = all_of.token_index(), self.copies + 2 * turn
        word = rng.words(all_of.seed, index, rng.STREAM_MIX_BETA, level)
        return drawn(word, self.beta)[:, None]

    def _feature_shares(self, all_of: Everyone, turn: int) -> Tensor:
        """alpha ``[M, D]``, one a history and feature."""
        size, level = all_of.hidden.shape[1], self.copies + 2 * turn + 1
        index = torch.arange(all_of.lengths.shape[0] * size, device=all_of.owner.device)
        word = rng.words(all_of.seed, index.view(-1, size), rng.STREAM_MIX_BETA, level)
        return drawn(word, self.beta)[all_of.owner]

    @staticmethod
    def _mixture(all_of: Everyone, alpha: Tensor, level: int, backend: str) -> Tensor:
        """The loss of every history mixed with another one, position by position from the end."""
        sequence = torch.arange(all_of.lengths.shape[0], device=all_of.owner.device)
        word = rng.words(all_of.seed, sequence, rng.STREAM_MIX_PERM, level)
        rows, there = all_of.partners(word.argsort(stable=True))
        table, targets = all_of.table, all_of.targets
        hidden = all_of.hidden.to(table.dtype)
        alpha = torch.where(there[:, None], alpha, 1.0).to(hidden.dtype)

        def mix(x: Tensor) -> Tensor:
            return alpha * x + (1 - alpha) * x[rows]

        counted = targets > 0
        positive = F.embedding(targets, table, padding_idx=0)
        if all_of.negatives is not None:
            negative = F.embedding(all_of.negatives[:, 0], table, padding_idx=0)
            lost = bce_of_rows(mix(hidden), mix(positive), mix(negative)[:, None], counted)
            return lost.sum() / counted.sum().clamp(min=1)
        user = mix(hidden)
        loss = ops.linear_cross_entropy(user, table, targets, backend=backend)
        # alpha CE(y) + (1 - alpha) CE(y') is CE(y) and a share of how far y leads y'.
        lead = (user * (positive - positive[rows])).sum(1) * (1 - alpha[:, 0])
        return loss + torch.where(counted, lead, 0.0).sum() / counted.sum().clamp(min=1)
