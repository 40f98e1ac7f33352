"""ADARec, the drop-in module: Eq. 1 to 13 over packed histories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from ... import ragged, rng
from ...config import ConfigError
from ...data import Batch
from ...histories import History, check_targets
from ...ops.serving import RequestParts
from ...precision import computing
from ..base import LossOutput, Plan, Represented, UserGraph, initialise
from ..blocks.system import SystemModel, configured
from ..encoders.foreign import ForeignBackbone, check_causal
from ..encoders.named import build_named, trust
from ..encoders.sasrec import SASRecEncoder
from ..encoders.transformer_layer import TransformerLayer
from ..evaluating import evaluating
from ..pretrained import Pretrained
from . import losses
from . import plan as serving
from .config import ADARecConfig
from .depth_controller import DepthController
from .diagnostics import ADARecDiagnostics, BesideDiagnostics
from .diffusion import Denoiser
from .experts import MLPExpert
from .outputs import ADARecOutput, Hierarchy, Parsed
from .parsing import parse
from .request import request_parts
from .router import Router

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from ...distributed.share import Share
    from ..options import ADARecOptions


class ADARec(Pretrained, SystemModel):
    """Adaptive Diffusion Augmentation for Recommendation (AAAI 2026).

    Args:
        config: the whole configuration, or None to give its fields as ``options``.
        backbone: an encoder to use instead of the built-in SASRec one; see
            :class:`adarec_fast.models.encoders.ForeignBackbone` for what it is called with. By
            name, ``"package.module:Class"``, it is built here, and again wherever the model is
            loaded; see :mod:`adarec_fast.models.encoders.named`.
        options: fields of :class:`ADARecConfig`, e.g. ``num_items=12101, max_depth=8``.

    Raises:
        ConfigError: an unknown field, a value out of range, or a backbone that looks ahead under
            ``supervision="all"``.

    Example:
        >>> small = af.ADARec(num_items=12, hidden_size=8, max_length=10, max_depth=2)
        >>> small.config.max_depth
        2
    """

    config_type = ADARecConfig
    config: ADARecConfig
    takes_features: ClassVar[bool] = True

    def __init__(
        self,
        config: ADARecConfig | None = None,
        *,
        backbone: nn.Module | str | None = None,
        **options: Unpack[ADARecOptions],
    ) -> None:
        config = configured(self.config_type, config, options)
        if isinstance(backbone, str):
            config = config.replace(backbone=backbone)
            trust(backbone)
        if config.backbone is not None and not isinstance(backbone, nn.Module):
            backbone = build_named(config.backbone, config.to_dict())
        size = config.hidden_size
        super().__init__(config, size)
        if backbone is None:
            self.backbone = SASRecEncoder(config)
        else:
            if not isinstance(backbone, nn.Module):
                raise ConfigError(f"backbone={backbone!r} must be an nn.Module")
            self.backbone = ForeignBackbone(backbone, size, config.max_length)
            if config.supervision == "all":
                check_causal(self.backbone, config.num_items)
        if config.augmented:
            self.level_embedding = nn.Embedding(config.num_levels, size, dtype=torch.float32)
        if config.depth == "adaptive":
            self.depth_controller = DepthController(
                size, config.max_depth, config.max_length, config.gumbel_temperature
            )
        if config.diffusion:
            self.denoiser = Denoiser(
                size, config.max_depth, config.schedule, bounded=config.denoiser == "bounded"
            )
        if config.moe:
            self.fine_expert = self._transformer(rng.STREAM_FINE_EXPERT)
            self.coarse_expert = self._coarse()
            self.router = Router(
                size, content=config.router == "content", experts=config.num_experts
            )
            if config.num_experts > 2:
                further = range(config.num_experts - 2)
                self.middle_experts = nn.ModuleList(self._coarse() for _ in further)
        if config.residual:
            self.output_norm = nn.LayerNorm(size, eps=config.layer_norm_eps, dtype=torch.float32)
        self._add_noise_seed()
        self._initialise()
        self.auxiliary = self._make_auxiliary()

    def _coarse(self) -> MLPExpert | TransformerLayer:
        config = self.config
        if config.coarse_expert == "transformer":
            return self._transformer(rng.STREAM_COARSE_EXPERT)
        return MLPExpert(
            config.hidden_size, eps=config.layer_norm_eps, hidden_dropout=config.dropout,
            residual=config.start == "backbone",
        )  # fmt: skip

    def _transformer(self, stream: int) -> TransformerLayer:
        config = self.config
        return TransformerLayer(
            config.hidden_size,
            config.num_heads,
            config.feedforward_multiplier * config.hidden_size,
            eps=config.layer_norm_eps,
            attention_dropout=config.attention_dropout,
            hidden_dropout=config.dropout,
            stream=stream,
        )

    def _initialise(self) -> None:
        generator = torch.Generator().manual_seed(self.config.seed)
        for name, child in self.named_children():
            # A foreign encoder brings weights of its own.
            if not (name == "backbone" and isinstance(child, ForeignBackbone)):
                initialise(child, generator)
        with torch.no_grad():
            self.item_embedding.weight[0].zero_()
            for matrix in self._silent():
                matrix.zero_()

    def _silent(self) -> list[Tensor]:
        """The matrices that start at zero, so that what they end adds nothing at first."""
        config = self.config
        found: list[Tensor] = []
        if config.diffusion and config.denoiser == "bounded":
            found.append(self.denoiser.w2)
        if config.moe and config.start == "backbone":
            middle = self.middle_experts if config.num_experts > 2 else ()
            for expert in (self.fine_expert, *middle, self.coarse_expert):
                found.append(expert.ff2.weight)
                if isinstance(expert, TransformerLayer):
                    found.append(expert.out.weight)
        return found

    # ------------------------------------------------------------------ forward

    def forward(
        self,
        item_ids: History,
        lengths: Tensor | None = None,
        *,
        targets: Tensor | None = None,
        return_hierarchy: bool = False,
        return_gates: bool = False,
    ) -> ADARecOutput:
        """Represent users by their histories.

        In training mode depths are sampled and noise and dropout drawn (from ``noise_seed``, which
        advances by one); in evaluation mode the result is deterministic, or the mean over
        ``evaluation_samples`` noisy trajectories.

        Args:
            item_ids: int64 ``[B, L]``, padded with 0 on the left or on the right, or a jagged pair
                (values ``[N]``, offsets ``[B+1]``). Ids are 1..num_items; of longer histories the
                last ``max_length`` items are read.
            lengths: optional int64 ``[B]`` for the padded form; must agree with the padding.
            targets: the items asked for, as in :class:`adarec_fast.data.Batch`; gives the losses.
            return_hierarchy: also return the levels.
            return_gates: also return g_k.

        Raises:
            ValueError: a shape, dtype, length or id that does not fit, naming the argument.

        Example:
            >>> output = model(torch.tensor([[1, 9, 0], [4, 2, 3]]))
            >>> output.user.shape, output.depth.shape
            (torch.Size([2, 8]), torch.Size([2]))
        """
        with computing(self.config.precision, self.noise_seed.device.type):
            return self._forward(item_ids, lengths, targets, return_hierarchy, return_gates)

    def _forward(
        self,
        item_ids: History,
        lengths: Tensor | None,
        targets: Tensor | None,
        return_hierarchy: bool,
        return_gates: bool,
    ) -> ADARecOutput:
        everywhere = targets is not None and self.config.supervision == "all"
        values, offsets = self._histories(item_ids, lengths, aligned=everywhere)
        if targets is not None:
            check_targets(targets, self.ranked_items)
            nobody = offsets.new_zeros(0)
            parsed, output = self._loss(
                Batch(values, offsets, targets, nobody), hierarchy=return_hierarchy
            )
            user = parsed.user
            if self.config.supervision == "all":
                user = user[ragged.last_tokens(offsets)]
        else:
            output = None
            parsed = self._parse(values, offsets, self._next_seed(), hierarchy=return_hierarchy)
            user = parsed.user
            if not self.training and self.config.evaluation_samples:
                user = self._sampled(values, offsets)
        gates, each = None, parsed.expert_gates
        if parsed.aggregate is not None:
            gates = parsed.aggregate.gates
            if gates.shape[1] != user.shape[0]:
                last = ragged.last_tokens(offsets)
                gates, each = gates[:, last], None if each is None else each[..., last]
        hierarchy = None
        if return_hierarchy:
            assert parsed.levels is not None
            hierarchy = Hierarchy(parsed.levels, offsets, parsed.computed)
        return ADARecOutput(
            user,
            parsed.depth,
            hierarchy,
            gates if return_gates else None,
            output,
            each if return_gates else None,
        )

    def _parse(
        self, values: Tensor, offsets: Tensor, seed: Tensor | None, *, everywhere: bool = False,
        **asked: Any,
    ) -> Parsed:
        """:func:`.parse`, at the last positions or everywhere, to what ranks."""
        return parse(self, values, offsets, seed, "all" if everywhere else "last", **asked)

    def _sampled(self, values: Tensor, offsets: Tensor) -> Tensor:
        """Mean of h over S noisy trajectories, at the evaluation depth and without dropout.

        The noise goes by the history, so that a user's is the same in every batch.
        """
        total = None
        config, dtype = self.config, next(self.item_embedding.parameters()).dtype
        for sample in range(config.evaluation_samples):
            seed = rng.spread_seed(config.seed).to(values.device) + sample
            noise = rng.history_noise(
                seed, values, offsets, config.hidden_size, config.max_depth, dtype
            )
            user = self._parse(values, offsets, None, noise=noise).user
            total = user if total is None else total + user
        assert total is not None
        return total / self.config.evaluation_samples

    # ------------------------------------------------------------------ losses

    def loss(self, batch: Batch, share: Share | None = None) -> LossOutput:
        """Eq. 12 on a training batch, with each of its parts; ``rec`` is Eq. 13 smoothed as
        configured.

        Args:
            batch: packed histories of at most ``max_length`` items, on the model's device, with
                targets ``[B]`` under ``supervision="prefix"`` or ``[N]`` under ``"all"``.
            share: where ``batch`` lies in a batch that several workers share; the losses are then
                the whole batch's, and the gradients of all workers add up to its own.

        Example:
            >>> batch = next(batches.epoch(0))
            >>> list(model.loss(batch).parts)
            ['rec', 'deno', 'cont', 'expl']
        """
        with computing(self.config.precision, self.noise_seed.device.type):
            return self._loss(batch, share)[1]

    def _loss(
        self, batch: Batch, share: Share | None = None, *, hierarchy: bool = False
    ) -> tuple[Parsed, LossOutput]:
        config, (values, offsets, targets, _) = self.config, batch
        everywhere = config.supervision == "all"
        self._check_targets(values, offsets, targets)
        contrast = config.lambda_cont > 0 and config.augmented
        draws = self._draws(share)
        seed = self._next_seed(None if share is None else share.place)
        parsed = self._parse(
            values, offsets, seed, everywhere=everywhere, contrast=contrast, hierarchy=hierarchy
        )
        negatives = self._drawn(batch, draws)
        found = losses.objective(
            self.config, parsed, self.item_embedding, offsets, targets, share, self.soft_targets,
            negatives,
        )  # fmt: skip
        if self.auxiliary is None:
            return parsed, found
        means, counts = self._beside(
            batch, parsed.embeddings, parsed.table, negatives, draws, share
        )
        if share is not None and counts:
            means, _ = share.of_whole_batch(means, counts)
        total, parts = found.total, dict(found.parts)
        for name, mean in means.items():
            total = total + self.weights[name] * mean
            parts[f"aux_{name}"] = mean.detach()
        return parsed, found._replace(total=total, parts=parts)

    # ------------------------------------------------------------------ use

    def represent(self, values: Tensor, offsets: Tensor) -> Tensor:
        return self((values, offsets)).user

    def explain(self, values: Tensor, offsets: Tensor) -> Represented:
        output = self((values, offsets))
        return Represented(output.user, {"depth": output.depth})

    def plan(self) -> Plan | None:
        return serving.Plan(self) if serving.Plan.suits(self) else None

    def request_parts(self) -> RequestParts | None:
        config = self.config
        if config.fused_trajectory or config.precision == "bf16":
            return None
        return request_parts(self) if serving.Plan.suits(self) else None

    def user_graph(self) -> UserGraph:
        from .graph import ADARecGraph  # torch.export's parts take a second to import

        return ADARecGraph(self)

    def diagnostics(self) -> ADARecDiagnostics:
        if self.auxiliary is None:
            return ADARecDiagnostics(self)
        return BesideDiagnostics(self, self.auxiliary.labels, self.weights)

    def why_not_captured(self) -> str | None:
        if self.auxiliary is not None:
            return super().why_not_captured()
        if isinstance(self.backbone, ForeignBackbone):
            return "a backbone from outside may wait for the device"
        config = self.config
        if config.diffusion and config.denoiser == "bounded":
            return "denoiser='bounded' has no kernel yet, and plain PyTorch waits for the device"
        if config.num_experts > 2:
            return "more than two experts have no kernel, and plain PyTorch waits for the device"
        if config.moe and config.coarse_expert == "mlp" and config.start == "backbone":
            return "start='backbone' has no kernel yet, and plain PyTorch waits for the device"
        return None

    @property
    def leaves_some_unused(self) -> bool:
        config = self.config
        no_levels = config.augmented and not config.diffusion and not config.moe
        foreign = isinstance(self.backbone, ForeignBackbone)
        return no_levels or foreign or super().leaves_some_unused

    @torch.no_grad()
    def representations(self, item_ids: History) -> dict[str, Tensor]:
        """``user`` h, ``fine`` z_fin and ``coarse`` z_coar, each ``[B, D]``, in evaluation mode.

        Without HP-MoE the two are the user representation itself, or what a read-out by several
        intents reads it from.

        Example:
            >>> sorted(model.representations(torch.tensor([[1, 9]])))
            ['coarse', 'fine', 'user']
        """
        values, offsets = self._histories(item_ids, None)
        with computing(self.config.precision, self.noise_seed.device.type):
            parsed = parse(evaluating(self), values, offsets, None, "last")
        fused = parsed.aggregate
        return {
            "user": parsed.user,
            "fine": parsed.user if fused is None else fused.fine,
            "coarse": parsed.user if fused is None else fused.coarse,
        }
