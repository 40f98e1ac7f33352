"""Caser (Tang and Wang, WSDM 2018): convolutions over the last L items of a history.

The items' vectors are the rows of a matrix X ``[L, D]``, missing ones in front. A vertical filter
is a weighted sum of the rows; a horizontal one of height i meets every i rows that follow each
other, and of its values, after relu, the greatest counts. All of them, through dropout and
z = relu(W_1 o + b_1), and a vector p of the user make x = [z, p]; the score of item i is
x w_i + b_i, where w is a table of its own.

After graytowne/caser_pytorch at c4e10e4. Under ``supervision="windows"`` a history gives its
windows of L + T items, from the end on and at least one, whose last T are targets; under
``"prefix"`` (the default), as in RecBole's variant, every prefix is an example of one target, so
that early items are targets, too. ``loss="original"`` is the mean of softplus(-score) over targets
and the mean of softplus(score) over ``negatives`` sampled items of each example, added;
``"full_ce"`` is the cross entropy over all items.

Deviations from that code:

* Missing items are zeros (``trainable_padding=True``: a trained vector, as there), and no targets.
* No vectors of users unless ``user_embeddings=True``: a request is a history, and who asks may be
  new. With them, :meth:`Caser.scores` takes the user of a batch, as evaluation does; to a request
  the user is nobody, whose vector is zero.
* D = 64 and not 50. Weight decay is the trainer's: 1e-6 there, with batches of 512.

A history is read to its last L items, so that this system is dense: its convolutions are matrix
products over ``[B, L D]``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops, ragged, rng
from ...config import ConfigError, ModelConfig
from ...data import Batch, EvaluationBatch, Split
from ...precision import computing
from ..base import Diagnostics, LossOutput, UserGraph
from ..blocks.diagnostics import CROSS_ENTROPY, SAMPLED, LossDiagnostics
from ..blocks.negatives import NegativeSampler
from ..blocks.system import configured
from ..blocks.uniform import uniform_linears
from ..embedded import EmbeddingModel
from ..pretrained import Pretrained
from .config import CaserConfig

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...distributed import Workers
    from ...distributed.share import Share
    from ..options import CaserOptions


class Caser(Pretrained, EmbeddingModel):
    """Vertical and horizontal convolutions over the last items.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`CaserConfig`, e.g. ``num_items=12101, max_length=9``.

    Attributes:
        item_embedding: ``[V+1, D]``, what is read; not tied to the output.
        output: ``[V+1, D']``, w; D' is D, or 2 D with vectors of users.
        output_bias: ``[V+1]``, b.
        user_embedding: ``[num_users, D]``, or None.
        negatives: while a model with ``loss="original"`` is trained.

    Raises:
        ConfigError: an unknown field, or a value out of range.

    Example:
        >>> model = Caser(num_items=9, hidden_size=8).eval()
        >>> model(torch.tensor([[1, 2, 3]])).shape  # a column more, for the biases
        torch.Size([1, 9])
    """

    config_type: ClassVar[type[ModelConfig]] = CaserConfig
    config: CaserConfig

    def __init__(self, config: CaserConfig | None = None, **options: Unpack[CaserOptions]) -> None:
        config = configured(CaserConfig, config, options)
        size, length = config.hidden_size, config.max_length
        super().__init__(config, size)
        self.negatives: NegativeSampler | None = None
        self.vertical = nn.Linear(length, config.vertical_filters, dtype=torch.float32)
        self.horizontal = nn.ModuleList(
            nn.Linear(height * size, config.horizontal_filters, dtype=torch.float32)
            for height in range(1, length + 1)
        )
        features = config.vertical_filters * size + config.horizontal_filters * length
        self.hidden = nn.Linear(features, size, dtype=torch.float32)
        width = 2 * size if config.user_embeddings else size
        self.output = nn.Parameter(torch.empty(config.num_items + 1, width, dtype=torch.float32))
        self.output_bias = nn.Parameter(torch.zeros(config.num_items + 1, dtype=torch.float32))
        self.user_embedding: nn.Embedding | None = None
        self._add_noise_seed()
        generator = torch.Generator().manual_seed(config.seed)
        for part in (self.vertical, self.horizontal, self.hidden):
            uniform_linears(part, generator)
        with torch.no_grad():
            self.item_embedding.weight.normal_(0.0, 1 / size, generator=generator)
            self.output.normal_(0.0, 1 / width, generator=generator)
            if not config.trainable_padding:
                self.item_embedding.weight[0].zero_()
        if config.user_embeddings and config.num_users:
            self._add_users(generator)

    def _add_users(self, generator: torch.Generator) -> None:
        config = self.config
        self.user_embedding = nn.Embedding(
            config.num_users, config.hidden_size, dtype=torch.float32
        )
        with torch.no_grad():
            self.user_embedding.weight.normal_(0.0, 1 / config.hidden_size, generator=generator)

    # ------------------------------------------------------------------ training

    def prepare(self, split: Split) -> None:
        """Make a vector for each user, where there are to be such."""
        if not self.config.user_embeddings:
            return
        if self.config.num_users not in (0, split.num_users):
            raise ConfigError(
                f"num_users={self.config.num_users}, but {split.data.name} has {split.num_users} "
                "users; leave num_users out to take it from the data"
            )
        self.config = self.config.replace(num_users=split.num_users)
        self._add_users(torch.Generator().manual_seed(self.config.seed))

    def begin_training(self, split: Split) -> None:
        if self.config.loss == "original":
            sampler = NegativeSampler.of(split, self.config.excluded_negatives)
            self.negatives = sampler.to(self.device)

    def loss(self, batch: Batch, share: Share | None = None) -> LossOutput:
        """As configured, over the targets, which is the part ``rec``; see
        :meth:`SequenceModel.loss`. ``batch.targets`` are ``[B]``, or ``[B, T]`` of windows."""
        users, each = batch.offsets.shape[0] - 1, self.config.window_targets
        shape = (users, each) if self.config.supervision == "windows" else (users,)
        if batch.targets.shape != shape:
            raise ValueError(
                f"targets has shape {list(batch.targets.shape)}; "
                f"supervision={self.config.supervision!r} takes {list(shape)}"
            )
        with computing(self.config.precision, self.device.type):
            place = None if share is None else share.place
            draws = rng.at_place(self.noise_seed, place)
            x = self._users(batch.item_ids, batch.offsets, batch.users, self._next_seed(place))
            targets = batch.targets.view(users, -1)
            means = self._means(x, targets, batch.users, draws)
        if share is not None:
            # A mean over targets, and one over all negatives, as many an example.
            counts = {"targets": (targets > 0).sum(), "negatives": draws.new_tensor(users)}
            means, _ = share.of_whole_batch(means, {name: counts[name] for name in means})
        total = sum(means.values(), x.new_zeros(()))
        examples = None if share is None else share.examples
        return LossOutput(total, {"rec": total.detach()}, examples=examples)

    def _means(
        self, x: Tensor, targets: Tensor, users: Tensor, draws: Tensor
    ) -> dict[str, Tensor]:
        """The summands of the loss, by what each is a mean over.

        Args:
            x: ``[B, D'+1]``.
            targets: int64 ``[B, T]``, 0 where there is none.
            users: int64 ``[B]``.
            draws: the step's seed ``[3]``.
        """
        if self.config.loss == "full_ce":
            rows = x.repeat_interleave(targets.shape[1], 0)
            backend = self.config.backend
            rec = ops.linear_cross_entropy(rows, self.table(), targets.flatten(), backend=backend)
            return {"targets": rec}
        if self.negatives is None:
            raise ValueError(
                "loss='original' needs to know what users have met; call begin_training(split) "
                "before the first loss, as train does"
            )
        drawn = self.negatives(draws, users, rng.first_sequence(draws), self.config.negatives)
        items = torch.cat([targets, drawn], 1)
        with torch.autocast(x.device.type, enabled=False):
            scores = (self.output[items] * x.to(self.output.dtype)[:, None, :-1]).sum(-1)
            scores = scores + self.output_bias[items]
            up, down = scores.split([targets.shape[1], drawn.shape[1]], 1)
            there = targets > 0
            pushed = torch.where(there, F.softplus(-up), 0.0).sum() / there.sum().clamp(min=1)
            return {
                "targets": pushed,
                "negatives": F.softplus(down).sum() / max(1, drawn.numel()),
            }

    # ------------------------------------------------------------------ vectors

    def represent(self, values: Tensor, offsets: Tensor) -> Tensor:
        """[x, 1] ``[B, D'+1]``, where the vector of the user is zero."""
        with computing(self.config.precision, self.device.type):
            return self._users(values, offsets, None, self._next_seed())

    def table(self) -> Tensor:
        """[w_i, b_i] ``[V+1, D'+1]``."""
        return torch.cat([self.output, self.output_bias[:, None]], 1)

    def scores(self, batch: EvaluationBatch) -> Tensor:
        """``[B, V+1]``, with the vectors of the batch's users, where there are such."""
        with computing(self.config.precision, self.device.type):
            seed = self._next_seed()
            return self.score(self._users(batch.item_ids, batch.offsets, batch.users, seed))

    @property
    def by_products(self) -> bool:
        return not self.config.user_embeddings

    def _users(
        self, values: Tensor, offsets: Tensor, users: Tensor | None, seed: Tensor | None
    ) -> Tensor:
        """[x, 1] ``[B, D'+1]``; users that are not known, -1 among them, have a zero vector."""
        last = last_items(values, offsets, self.config.max_length)
        return self._of_last(last, users, seed)

    def _of_last(self, item_ids: Tensor, users: Tensor | None, seed: Tensor | None) -> Tensor:
        """The same of last items, int64 ``[B, L]``, 0 where there is none."""
        features = self._features(item_ids)
        if seed is not None:  # a row a sequence, not a token
            seed = torch.stack([seed[0], seed[2], seed[2]])
        features = ops.dropout(
            features, p=self.config.dropout, seed=seed, stream=rng.STREAM_EMBEDDING,
            backend=self.config.backend,
        )  # fmt: skip
        parts = [torch.relu(self.hidden(features))]
        if self.config.user_embeddings:
            parts.append(self._taste(users, parts[0]))
        return F.pad(torch.cat(parts, 1), (0, 1), value=1.0)

    def _features(self, item_ids: Tensor) -> Tensor:
        """o ``[B, F]`` of the last items, int64 ``[B, L]``, 0 where there is none."""
        batch, length = item_ids.shape
        size = self.config.hidden_size
        padding = None if self.config.trainable_padding else 0
        x = F.embedding(item_ids, self.item_embedding.weight, padding)
        found = [self.vertical(x.transpose(1, 2)).transpose(1, 2).reshape(batch, -1)]
        rows = x.view(batch, length * size)
        for height, filters in enumerate(self.horizontal, start=1):
            met = filters(rows.unfold(1, height * size, size))  # [B, L - height + 1, filters]
            found.append(torch.relu(met).max(1).values)
        return torch.cat(found, 1)

    def _taste(self, users: Tensor | None, like: Tensor) -> Tensor:
        """Vectors of users ``[B, D]``."""
        table = self.user_embedding
        if users is None or table is None:
            return torch.zeros_like(like)
        known = (users >= 0) & (users < table.num_embeddings)
        return torch.where(known[:, None], table(torch.where(known, users, 0)), 0.0).to(like.dtype)

    # ------------------------------------------------------------------ use

    def user_graph(self) -> UserGraph:
        from .graph import CaserGraph  # export's parts take a second to import

        return CaserGraph(self)

    def split_items(self, workers: Workers) -> None:
        raise ConfigError(
            "shard_items=True: Caser's items have a bias each, which cannot be split; leave it off "
            "(--no-shard-items)"
        )

    def diagnostics(self) -> Diagnostics:
        sampled = self.config.loss == "original"
        return LossDiagnostics(self, {"rec": SAMPLED if sampled else CROSS_ENTROPY})

    @property
    def leaves_some_unused(self) -> bool:
        return False

    def why_not_captured(self) -> str | None:
        return "steps of caser have not been tried as CUDA graphs"


def last_items(values: Tensor, offsets: Tensor, length: int) -> Tensor:
    """int64 ``[B, length]``: the last items of each history, at the right; 0 where there is none.
    """
    tokens, batch = values.shape[0], offsets.shape[0] - 1
    owner, back = ragged.sequence_ids(offsets, tokens), ragged.from_end(offsets, tokens)
    # A row more for capacity, and a column more for what is too long ago.
    padded = values.new_zeros(batch + 1, length + 1)
    padded[owner, back.clamp(max=length)] = values
    return padded[:batch, :length].flip(1)
