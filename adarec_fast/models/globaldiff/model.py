"""GlobalDiff (Luo, Li and Lin, "Enhancing sequential recommendation with global diffusion",
AAAI 2025; code XMUDM/GlobalDiff at 2fc1de9).

First an encoder is trained, for ``encoder_epochs``, and frozen. Then a diffusion over all items:
x_0 says of each item whether it goes with the next one (:mod:`.related`), x_t has the noise of a
random step, and a small U-Net (:mod:`.approximator`) returns logits of the next item from x_t, the
history's encoding and the step. To rank, the encoder's scores are taken for x_T and go back all T
steps; with s^d what comes out, s^e the encoder's scores and ranks from 0 upwards,

    score = alpha rank(s^d) softmax(s^d) + (1 - alpha) rank(s^e) softmax(s^e)

The loss is the cross entropy of the U-Net's logits, which ``loss="original"`` and ``"full_ce"``
both name; steps whose loss is large are drawn more often (:mod:`..blocks.importance`). Deviations
from the code:

* The encoder is this package's SASRec, trained by full cross entropy on every prefix, with
  histories of ``max_length``; there, a cloze model of 10 items. Both stages are one run: the
  encoder's last weights are gone on with, not its best, and when frozen it has no dropout.
* Which items go together is counted over whole histories (``related_items=10``: the last ten).
* x_t is read by its signs, as there, where it is normalised along an axis of length one. Probably
  its length was meant (``normalise="l2"``). But x_0 is drawn around the target, and noise is small:
  read at its length, x_t tells the target, which the encoder's scores at ranking do not. The loss
  then falls far below the encoder's while the ranking gets worse, on synthetic data much sooner
  than by signs.
* Ranking draws no noise, whose deviation is at most 0.07 (``sampling_noise=True``: as there, by
  seed and history alone).
* All items of a history rank last in both lists; there, those of the window.
* Adam and its rate are the trainer's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from ... import ops, ragged, rng
from ...config import ConfigError, ModelConfig
from ...data import Batch, EvaluationBatch, Split
from ...precision import computing
from ..base import Diagnostics, Label, LossOutput
from ..blocks.auxiliary import pooled
from ..blocks.diagnostics import CROSS_ENTROPY, LossDiagnostics
from ..blocks.encoder_model import EncoderModel
from ..blocks.gaussian import Posterior, noised, variance_betas
from ..blocks.importance import ImportantSteps
from ..blocks.system import configured
from ..blocks.weighted_cross_entropy import weighted_rows
from .approximator import Approximator, Pass
from .config import GlobalDiffConfig
from .related import Related

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...distributed import Workers
    from ...distributed.share import Share
    from ..options import GlobalDiffOptions

_LABELS = {"rec": CROSS_ENTROPY, "diffusion": Label("cross entropy of the diffusion", "nats")}
_LAST = -9999.0  # the score of items that are not to come, as in the public code


class GlobalDiff(EncoderModel):
    """A diffusion over all items behind a frozen encoder; it has scores, and no vectors of users.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`GlobalDiffConfig`, e.g. ``num_items=12101, encoder_epochs=30``.

    Attributes:
        begun: int64 0-dim, epochs that were begun; saved, since it says which stage a run is in.
        related: while a model is trained.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    config_type: ClassVar[type[ModelConfig]] = GlobalDiffConfig
    config: GlobalDiffConfig
    begun: Tensor
    alpha_bar: Tensor
    sample_seed: Tensor

    def __init__(
        self, config: GlobalDiffConfig | None = None, **options: Unpack[GlobalDiffOptions]
    ) -> None:
        config = configured(GlobalDiffConfig, config, options)
        super().__init__(config)
        self.samples = False  # whichever name the loss is given
        # Of its own, so that the encoder begins as a SASRec does.
        generator = torch.Generator().manual_seed(config.seed + 1)
        self.approximator = Approximator(config, generator)
        self.steps = ImportantSteps(config.diffusion_steps)
        self.related: Related | None = None
        self._diffuses: bool | None = None
        self.posterior = Posterior.of(self._betas())
        self.register_buffer("begun", torch.zeros((), dtype=torch.int64))
        bars = (1 - self._betas()).cumprod(0)
        self.register_buffer("alpha_bar", bars.float(), persistent=False)
        self.register_buffer("sample_seed", rng.spread_seed(config.seed), persistent=False)

    def _betas(self) -> Tensor:
        config = self.config
        return variance_betas(
            config.diffusion_steps, config.noise_scale, config.least_noise, config.greatest_noise
        )

    # ------------------------------------------------------------------ training

    @property
    def first_stage(self) -> int:
        return self.config.encoder_epochs

    def begin_training(self, split: Split) -> None:
        super().begin_training(split)
        found = Related(*split.inputs("train"), split.num_items, self.config.related_items)
        self.related = found.to(self.device)

    def begin_epoch(self, epoch: int) -> None:
        self.begun.fill_(epoch + 1)
        self._diffuses = epoch >= self.config.encoder_epochs

    @property
    def diffuses(self) -> bool:
        """Whether the encoder's stage is over. Reads on the host after a model was loaded."""
        if self._diffuses is None:
            self._diffuses = int(self.begun) > self.config.encoder_epochs
        return self._diffuses

    def loss(self, batch: Batch, share: Share | None = None) -> LossOutput:
        """The parts ``rec`` of the encoder and ``diffusion``, of which one is 0, as the stage is;
        see :meth:`SequenceModel.loss`."""
        nothing = torch.zeros((), dtype=self.alpha_bar.dtype, device=self.device)
        if not self.diffuses:
            output = super().loss(batch, share)
            return output._replace(parts={**output.parts, "diffusion": nothing})
        self._check_targets(batch.item_ids, batch.offsets, batch.targets)
        with computing(self.config.precision, self.device.type):
            place = None if share is None else share.place
            draws, seed = rng.at_place(self.noise_seed, place), self._next_seed(place)
            mean, steps, rows = self._diffusion(batch, draws, seed, share)
        if share is None:
            self.steps.remember(steps, rows)
        else:
            told = torch.stack([steps.double(), rows.double(), torch.ones_like(rows).double()], 1)
            every, lost, there = share.gather(told, share.most_examples).unbind(1)
            self.steps.remember(every.long(), lost, there > 0)
            counts = {"diffusion": draws.new_tensor(batch.targets.shape[0])}
            mean = share.of_whole_batch({"diffusion": mean}, counts)[0]["diffusion"]
        parts = {"rec": nothing, "diffusion": mean.detach()}
        return LossOutput(mean, parts, examples=None if share is None else share.examples)

    def _of_targets(
        self, batch: Batch, embeddings: Tensor, table: Tensor | None, negatives: Tensor | None,
        seed: Tensor | None, share: Share | None,
    ) -> Tensor:
        table = self.item_embedding.weight if table is None else table
        rows = embeddings[ragged.last_tokens(batch.offsets)]
        return ops.linear_cross_entropy(rows, table, batch.targets, backend=self.config.backend)

    def _diffusion(
        self, batch: Batch, draws: Tensor, seed: Tensor | None, share: Share | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The loss; and of each example its step and its own loss, ``[B]``."""
        if self.related is None:
            raise ValueError(
                "the diffusion needs to know which items go together; call begin_training(split) "
                "before the first loss, as train does"
            )
        examples, width = batch.targets.shape[0], self.config.num_items + 1
        history, last = self._history(batch.item_ids, batch.offsets)
        row = torch.arange(examples, device=draws.device) + rng.first_sequence(draws)
        word = rng.words(draws, row, rng.STREAM_DIFFUSION_STEP, 0)
        steps, chance = self.steps.draw(rng.to_uniform(word, torch.float64))
        x0 = self.related.drawn(batch, draws).to(self.alpha_bar.dtype)
        noise = ops.wide_normals(
            row, width, seed=draws, stream=rng.STREAM_DIFFUSION_NOISE, dtype=x0.dtype,
            backend=self.config.backend,
        )  # fmt: skip
        x = noised(x0, noise, self.alpha_bar[steps][:, None])
        given = Pass(seed, share, self.config.backend)
        found = self.approximator(x, history, last, steps, given)
        weights = (1 / chance).to(x0.dtype)
        mean, rows = weighted_rows(found, self.approximator.table(), batch.targets, weights)
        return mean, steps, rows

    # ------------------------------------------------------------------ scores

    def represent(self, values: Tensor, offsets: Tensor) -> Tensor:
        """The encoder's vectors ``[B, D]``, whose products with :meth:`table` are its scores."""
        with computing(self.config.precision, self.device.type):
            return self._history(values, offsets)[1]

    def scores(self, batch: EvaluationBatch) -> Tensor:
        """Of the fusion ``[B, V+1]``; in the encoder's stage the encoder's."""
        with computing(self.config.precision, self.device.type):
            history, last = self._history(batch.item_ids, batch.offsets)
            own = self.score(last)
            if not self.diffuses:
                return own
            own = own.to(self.alpha_bar.dtype)
            found = self._generated(own.masked_fill(own == -torch.inf, 0.0), history, last, batch)
        rows = ragged.sequence_ids(batch.seen_offsets, batch.seen_values.shape[0])
        for scores in (own, found):
            scores[rows, batch.seen_values] = _LAST
            scores[:, 0] = _LAST
        fused = fusion(found, own, self.config.fusion)
        fused[:, 0] = float("-inf")
        return fused

    def _generated(
        self, x: Tensor, history: Tensor, last: Tensor, batch: EvaluationBatch
    ) -> Tensor:
        """s^d ``[B, V+1]`` of x_T, back all steps."""
        table, given = self.approximator.table(), Pass(None, None, self.config.backend)
        row = rng.history_index(batch.item_ids, batch.offsets, 1)[:, 0]
        for step in reversed(range(self.config.diffusion_steps)):
            at = torch.full((1,), step, device=x.device)
            found = self.approximator(x, history, last, at, given).to(x.dtype) @ table.to(x.dtype).T
            x = float(self.posterior.of_x0[step]) * found + float(self.posterior.of_x[step]) * x
            if self.config.sampling_noise and step:
                noise = ops.wide_normals(
                    row, x.shape[1], seed=self.sample_seed, stream=rng.STREAM_SAMPLE, group=step,
                    dtype=x.dtype, backend=self.config.backend,
                )  # fmt: skip
                x = x + float(self.posterior.variance[step]) ** 0.5 * noise
        return x

    @torch.no_grad()
    def _history(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """g and h ``[B, D]``: the mean of the frozen encoder's outputs, and the last one."""
        embeddings, _ = self._encode(values, offsets, None)
        return pooled(self, embeddings, offsets), embeddings[ragged.last_tokens(offsets)]

    # ------------------------------------------------------------------ use

    def split_items(self, workers: Workers) -> None:
        raise ConfigError(
            "shard_items=True: GlobalDiff diffuses over all items, of which workers would hold "
            "parts; leave it off (--no-shard-items)"
        )

    def why_not_captured(self) -> str | None:
        return "how many items go with the targets is read on the host"

    @property
    def leaves_some_unused(self) -> bool:
        return True  # either stage leaves the other's

    def diagnostics(self) -> Diagnostics:
        return LossDiagnostics(self, _LABELS)


def fusion(diffusion: Tensor, encoder: Tensor, alpha: float) -> Tensor:
    """alpha rank(s^d) softmax(s^d) + (1 - alpha) rank(s^e) softmax(s^e) of ``[B, V]``, ranks from
    0, the lowest score's, upwards."""
    parts = []
    for share, scores in ((alpha, diffusion), (1 - alpha, encoder)):
        order = scores.argsort(dim=1, stable=True)
        place = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
        rank = torch.empty_like(order).scatter_(1, order, place)
        parts.append(share * rank * scores.softmax(1))
    return parts[0] + parts[1]
