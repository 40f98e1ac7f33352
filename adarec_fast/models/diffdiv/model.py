"""DiffDiv (Cai et al., SIGIR 2025), reconstructed on DreamRec (Yang et al., NeurIPS 2023).

The vector of the next item is generated: noise is taken from it step by step, under the guidance of
the history, and what results ranks the items by products. In training x_t is the next item's
vector with the noise of a random step, and the denoiser f returns it; some examples have a learnt
vector in the place of guidance, so that w > 0 can push away from the unguided result. DiffDiv draws
the guidance from a distribution around the history's state, and several vectors of each history.

**This is a reconstruction.** No official code of DiffDiv is public, and its objective has a term
(ADBO) that is known by name alone: it is left out. DreamRec is after YangZhengyi98/DreamRec at
454133c; ``guidance="plain"``, ``loss="original"``, ``denoiser_layers=0`` and ``samples=1`` are its
model. ``loss="original"`` minimises the distance to the next item's vector, and the divergence of
the guidance from N(0, 1), whose weight grows over the first ``kl_epochs``; ``"full_ce"`` adds the
cross entropy of that result over all items. Deviations:

* Generated in ``sampling_steps`` deterministic steps (Song et al., ICLR 2021); DreamRec takes all T
  with fresh noise in each.
* The noise that ranking starts from goes by seed and history alone: the same history has the same
  recommendations, whoever stands beside it. S vectors of a history are averaged, which averages
  their scores.
* The encoder is the S3-Rec family's of two layers; DreamRec's is one block.
* The distance does not move the next item's vector (``detach_target=False``: it does, as in
  DreamRec); with vectors that move, equal ones have no distance, and rank nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ops, rng
from ...config import ConfigError, ModelConfig
from ...data import Batch
from ...precision import computing
from ..base import Diagnostics, Label, LossOutput, initialise
from ..blocks.diagnostics import CROSS_ENTROPY, LossDiagnostics
from ..blocks.gaussian import alpha_bars, implied_noise, noised
from ..blocks.system import configured
from ..blocks.uniform import uniform_linears
from ..embedded import EmbeddingModel
from ..encoders.sasrec import SASRecEncoder
from ..pretrained import Pretrained
from .config import DiffDivConfig
from .networks import Denoiser, VariationalGuidance, divergence, guided

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...distributed import Workers
    from ...distributed.share import Share
    from ..options import DiffDivOptions

_LABELS = {
    "rec": CROSS_ENTROPY,
    "mse": Label("distance to the next item's vector", "squared"),
    "kl": Label("divergence of the guidance", "nats"),
}


class DiffDiv(Pretrained, EmbeddingModel):
    """A diffusion of the next item's vector, guided by the history.

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        options: fields of :class:`DiffDivConfig`, e.g. ``num_items=12101, samples=1``.

    Attributes:
        nothing: ``[D]``, what guides an example without guidance.
        kl_weight: 0-dim, of the divergence in this epoch.

    Raises:
        ConfigError: an unknown field, or a value out of range.
    """

    config_type: ClassVar[type[ModelConfig]] = DiffDivConfig
    config: DiffDivConfig
    alpha_bar: Tensor
    kl_weight: Tensor
    sample_seed: Tensor

    def __init__(
        self, config: DiffDivConfig | None = None, **options: Unpack[DiffDivOptions]
    ) -> None:
        config = configured(DiffDivConfig, config, options)
        size = config.hidden_size
        super().__init__(config, size)
        self.backbone = SASRecEncoder(config)
        self.guidance: VariationalGuidance | None = None
        if config.guidance == "variational":
            self.guidance = VariationalGuidance(size, config.latent_hidden)
        self.denoiser = Denoiser(size, config.denoiser_layers, config.denoiser_hidden)
        self.nothing = nn.Parameter(torch.empty(size, dtype=torch.float32))
        self._add_noise_seed()
        self.register_buffer("kl_weight", torch.zeros((), dtype=torch.float32))
        bars = alpha_bars(config.noise_schedule, config.diffusion_steps)
        self.register_buffer("alpha_bar", bars.float(), persistent=False)
        self.register_buffer("sample_seed", rng.spread_seed(config.seed), persistent=False)
        self.begin_epoch(0)
        generator = torch.Generator().manual_seed(config.seed)
        initialise(self.backbone, generator)
        for part in (self.guidance, self.denoiser):
            if part is not None:
                uniform_linears(part, generator)
        spread = config.item_std or (0.02 if config.loss == "full_ce" else 1.0)
        with torch.no_grad():
            self.nothing.normal_(0.0, 1.0, generator=generator)
            self.item_embedding.weight.normal_(0.0, spread, generator=generator)
            self.item_embedding.weight[0].zero_()

    # ------------------------------------------------------------------ training

    def begin_epoch(self, epoch: int) -> None:
        grown = min(1.0, (epoch + 1) / self.config.kl_epochs)
        self.kl_weight.fill_(self.config.lambda_kl * grown)

    def loss(self, batch: Batch, share: Share | None = None) -> LossOutput:
        """As configured, means over the histories: the parts ``rec``, ``mse`` and ``kl``, before
        their weights, of which there are those that :meth:`diagnostics` names; see
        :meth:`SequenceModel.loss`."""
        self._check_targets(batch.item_ids, batch.offsets, batch.targets)
        with computing(self.config.precision, self.device.type):
            place = None if share is None else share.place
            draws = rng.at_place(self.noise_seed, place)
            state = self._state(batch.item_ids, batch.offsets, self._next_seed(place))
            means = self._means(state, batch.targets, draws)
        examples = None
        if share is not None:
            count = draws.new_tensor(batch.targets.shape[0])
            means, _ = share.of_whole_batch(means, dict.fromkeys(means, count))
            examples = share.examples
        weights: dict[str, float | Tensor] = {"rec": 1.0, "mse": 1.0, "kl": self.kl_weight}
        if self.config.loss == "full_ce":
            weights["mse"] = self.config.lambda_mse
        total = sum((weights[name] * mean for name, mean in means.items()), state.new_zeros(()))
        parts = {name: mean.detach() for name, mean in means.items()}
        return LossOutput(total, parts, examples=examples)

    def _means(self, state: Tensor, targets: Tensor, draws: Tensor) -> dict[str, Tensor]:
        """The parts, each a mean over the histories.

        Args:
            state: c ``[B, D]``.
            targets: int64 ``[B]``.
            draws: the step's seed ``[3]``.
        """
        config, (rows, size) = self.config, state.shape
        row = torch.arange(rows, device=state.device) + rng.first_sequence(draws)
        index = row[:, None] * size + torch.arange(size, device=state.device)
        drawn, dropped = (rng.words(draws, row, rng.STREAM_DIFFUSION_STEP, i) for i in (0, 1))
        step = rng.below(drawn, config.diffusion_steps)
        alone = dropped < rng.dropout_threshold(config.guidance_dropout)
        dtype = self.nothing.dtype
        noise, latent = (
            rng.normal_levels(draws, index, 1, dtype, stream)
            for stream in (rng.STREAM_DIFFUSION_NOISE, rng.STREAM_LATENT)
        )
        means: dict[str, Tensor] = {}
        guidance, divergences = self._guidance(state, latent)
        guidance = torch.where(alone[:, None], self.nothing, guidance[0].to(dtype))
        x0 = F.embedding(targets, self.item_embedding.weight, padding_idx=0)
        x0 = x0.detach() if config.detach_target else x0
        x = noised(x0, noise[0], self.alpha_bar[step][:, None])
        found = self.denoiser(x, guidance, step).to(dtype)
        if config.loss == "full_ce":
            means["rec"] = ops.linear_cross_entropy(
                found, self.table(), targets, backend=config.backend
            )
        # Of no history a mean is 0: a worker may have none.
        means["mse"] = (found - x0).square().sum() / max(1, rows * size)
        if divergences is not None:
            means["kl"] = divergences.sum() / max(1, rows)
        return means

    # ------------------------------------------------------------------ vectors

    def represent(self, values: Tensor, offsets: Tensor) -> Tensor:
        """The mean of the S vectors generated of each history ``[B, D]``."""
        with computing(self.config.precision, self.device.type):
            state = self._state(values, offsets, self._next_seed())
            dtype = self.nothing.dtype
            index = rng.history_index(values, offsets, state.shape[1])
            start, latent = (
                rng.normal_levels(self.sample_seed, index, self.config.samples, dtype, stream)
                for stream in (rng.STREAM_SAMPLE, rng.STREAM_LATENT)
            )
            guidance, _ = self._guidance(state, latent)
            return self._generated(start, guidance.to(dtype)).mean(0)

    def _generated(self, start: Tensor, guidance: Tensor) -> Tensor:
        """Vectors ``[S, B, D]`` of noise ``[S, B, D]``."""
        weight = self.config.guidance_weight

        def predict(x: Tensor, step: int) -> Tensor:
            at = torch.full((1,), step, device=x.device)
            found = self.denoiser(x, guidance, at).to(x.dtype)
            if not weight:
                return found
            return guided(found, self.denoiser(x, self.nothing, at).to(x.dtype), weight)

        steps = sampled_steps(self.config.diffusion_steps, self.config.sampling_steps)
        return generate(predict, start, self.alpha_bar, steps)

    def _state(self, values: Tensor, offsets: Tensor, seed: Tensor | None) -> Tensor:
        """c ``[B, D]``, the encoder's output at the last item."""
        return self.backbone(
            self.item_embedding(values), offsets, seed=seed, backend=self.config.backend,
            last_only=True,
        )

    def _guidance(self, state: Tensor, latent: Tensor) -> tuple[Tensor, Tensor | None]:
        """Guidance ``[S, B, D]`` of noise ``[S, B, D]``, and its divergence ``[B]`` if it has one.
        """
        if self.guidance is None:
            return state.expand_as(latent), None
        guidance, mean, log_variance = self.guidance(state, latent)
        return guidance, divergence(mean.to(latent.dtype), log_variance.to(latent.dtype))

    # ------------------------------------------------------------------ use

    def split_items(self, workers: Workers) -> None:
        raise ConfigError(
            "shard_items=True: DiffDiv needs the vectors of items that other workers hold; leave "
            "it off (--no-shard-items)"
        )

    def why_not_captured(self) -> str | None:
        return "steps of diffdiv have not been tried as CUDA graphs"

    def diagnostics(self) -> Diagnostics:
        config = self.config
        there = {
            "rec": config.loss == "full_ce", "mse": True, "kl": config.guidance == "variational",
        }  # fmt: skip
        return LossDiagnostics(self, {n: label for n, label in _LABELS.items() if there[n]})


def sampled_steps(total: int, count: int) -> list[int]:
    """``count`` of the steps 0 .. total - 1, evenly spaced and falling, the last step first."""
    if count == 1:
        return [total - 1]
    return [round(i * (total - 1) / (count - 1)) for i in range(count - 1, -1, -1)]


def generate(
    predict: Callable[[Tensor, int], Tensor], x: Tensor, alpha_bar: Tensor, steps: list[int]
) -> Tensor:
    """x_0 of noise, without further noise: DDIM (Song et al., ICLR 2021, its Eq. 12 with sigma 0).

    Args:
        predict: x_0 from x_t and t.
        x: x_T, any shape.
        alpha_bar: ``[T]``.
        steps: the t, falling.
    """
    for step, following in pairwise(steps):
        x0 = predict(x, step)
        x = noised(x0, implied_noise(x, x0, alpha_bar[step]), alpha_bar[following])
    return predict(x, steps[-1])
