"""The whole model in plain PyTorch on padded tensors: the first baseline.

Every history is padded to 50 items, every one of the T + 1 levels is computed for everybody and
masked afterwards, as a direct implementation of the paper does. The functions are those of
:mod:`adarec_fast.reference`, differentiated by autograd; noise, Gumbel noise and dropout masks
come from torch's own generator. It runs eagerly or through ``torch.compile``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adarec_fast import ADARec
from adarec_fast.models.adarec import losses
from adarec_fast.models.adarec.config import ADARecConfig
from adarec_fast.models.adarec.experts import MLPExpert
from adarec_fast.models.encoders.sasrec import SASRecEncoder
from adarec_fast.models.encoders.transformer_layer import TransformerLayer
from adarec_fast.ragged import reached_levels
from adarec_fast.reference.depth_controller import depth_controller
from adarec_fast.reference.encoder_layer import drop, encoder_layer
from adarec_fast.reference.hda_trajectory import hda_trajectory
from adarec_fast.reference.level_infonce import level_infonce
from adarec_fast.reference.level_pool import level_pool
from adarec_fast.reference.linear_cross_entropy import linear_cross_entropy
from adarec_fast.reference.mlp_expert import mlp_expert
from adarec_fast.reference.moe_aggregate import moe_aggregate

GRU_NOT_COMPILED = (
    "Inductor unrolls the recurrent loop's 50 steps: minutes of compilation for some "
    "milliseconds; it stays eager"
)


def keep_mask(shape: tuple[int, ...], p: float, like: Tensor) -> Tensor | None:
    """A dropout mask from torch's generator, True with probability 1 - p; None for p = 0."""
    if p == 0:
        return None
    return torch.empty(shape, dtype=torch.bool, device=like.device).bernoulli_(1 - p)


def check_config(config: ADARecConfig) -> None:
    """The baselines compute the default model, of either supervision; ValueError for any other."""
    wanted = {
        "depth": "adaptive", "depth_gradient": "truncated", "diffusion": True, "moe": True,
        "coarse_expert": "mlp", "router": "content", "residual": False, "evaluation_samples": 0,
        "denoiser": "paper", "start": "random", "num_experts": 2,
        "level_readout": "mean",
    }  # fmt: skip
    for name, value in wanted.items():
        if getattr(config, name) != value:
            raise ValueError(
                f"{name}={getattr(config, name)!r}: the baseline is written for {value!r} alone"
            )


def choose_depth(logits: Tensor, gumbel: Tensor | None, temperature: float) -> tuple[Tensor, ...]:
    """Depth ``[B]`` and level mass ``[T+1, B]`` by Eq. 3, or by argmax without Gumbel noise."""
    levels = logits.shape[1]
    if gumbel is None:
        depth = logits.argmax(-1)
        return depth, reached_levels(depth, levels).to(logits.dtype)
    soft = torch.softmax((logits + gumbel) / temperature, -1)
    depth = soft.argmax(-1)
    chosen = F.one_hot(depth, levels).to(logits.dtype) + (soft - soft.detach())
    return depth, chosen.flip(-1).cumsum(-1).flip(-1).T


def best_items(user: Tensor, items: Tensor, padded_ids: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Scores and ids of the k best unseen items; the 0 of padded ids masks column 0 as well."""
    scores = (user @ items.T).scatter(1, padded_ids, float("-inf"))
    best = torch.topk(scores, k, dim=-1)
    return best.values, best.indices


class _Represented(NamedTuple):
    user: Tensor  # [B, D], or [B, L, D] if every position is read
    depth: Tensor  # [B]
    logits: Tensor  # [B, T+1]
    error: Tensor  # [T, B, L]
    contrast: Tensor  # [T+1, B, D]


class PaddedADARec(nn.Module):
    """The baseline over a model's own weights; ``train()`` turns noise and dropout on.

    Args:
        model: a default ADARec of either supervision, whose parameters are used and not copied.
        recurrent: what computes Eq. 1 and 2. A compiled baseline may take
            ``torch.compiler.disable(depth_controller)``: see ``GRU_NOT_COMPILED``.

    Raises:
        ValueError: a model that is not the default one.
    """

    def __init__(
        self,
        model: ADARec,
        recurrent: Callable[..., tuple[Tensor, Tensor]] = depth_controller,
    ) -> None:
        super().__init__()
        check_config(model.config)
        self.model = model
        self.recurrent = recurrent

    def _layer(self, layer: TransformerLayer, x: Tensor, valid: Tensor) -> Tensor:
        keep_attention = keep_projection = keep_feedforward = None
        if self.training:
            *lead, length, _ = x.shape
            keep_attention = keep_mask(
                (*lead, layer.heads, length, length), layer.attention_dropout, x
            )
            keep_projection = keep_mask(tuple(x.shape), layer.hidden_dropout, x)
            keep_feedforward = keep_mask(tuple(x.shape), layer.hidden_dropout, x)
        return encoder_layer(
            x, valid, *layer.weights(), layer.heads, layer.eps, layer.attention_dropout,
            layer.hidden_dropout, keep_attention, keep_projection, keep_feedforward,
        )

    def _encode(self, item_ids: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
        encoder = self.model.backbone
        assert isinstance(encoder, SASRecEncoder)
        place = torch.arange(item_ids.shape[1], device=item_ids.device)
        from_end = (lengths[:, None] - 1 - place).clamp(min=0)
        x = self.model.item_embedding(item_ids) + encoder.position(from_end)
        x = F.layer_norm(x, x.shape[-1:], encoder.norm.weight, encoder.norm.bias, encoder.eps)
        if self.training:
            x = drop(x, keep_mask(tuple(x.shape), encoder.dropout, x), encoder.dropout)
        for layer in encoder.layers:
            assert isinstance(layer, TransformerLayer)
            x = self._layer(layer, x, valid)
        return x

    def _represent(
        self,
        item_ids: Tensor,
        lengths: Tensor,
        noise: Tensor | None,
        gumbel: Tensor | None,
        everywhere: bool,
    ) -> _Represented:
        model, config = self.model, self.model.config
        batch, length = item_ids.shape
        valid = torch.arange(length, device=item_ids.device) < lengths[:, None]
        x = self._encode(item_ids, lengths, valid)

        adc = model.depth_controller
        share = lengths[:, None].to(x.dtype) / config.max_length
        bias = F.linear(adc.length_mlp(share), adc.length_w_ih, adc.b_ih)
        logits, _ = self.recurrent(
            x, valid, bias, adc.w_ih, adc.w_hh, adc.b_hh, adc.w_out, adc.b_out
        )
        if self.training and gumbel is None:
            gumbel = -torch.empty_like(logits).exponential_().log()
        depth, mass = choose_depth(logits, gumbel, config.gumbel_temperature)

        hda, table = model.denoiser, model.level_embedding.weight
        if self.training and noise is None:
            noise = torch.randn(config.max_depth, *x.shape, dtype=x.dtype, device=x.device)
        x0, error = hda_trajectory(
            x, hda.alpha_bar.to(x.dtype), hda.w1, F.linear(table[1:], hda.level_w1, hda.b1),
            hda.w2, hda.b2, noise,
        )

        fine = self._layer(model.fine_expert, x0, valid)
        expert = model.coarse_expert
        assert isinstance(expert, MLPExpert)
        keep = keep_mask(tuple(x0.shape), expert.hidden_dropout, x0) if self.training else None
        coarse = mlp_expert(
            x0, expert.ff1.weight, expert.ff1.bias, expert.ff2.weight, expert.ff2.bias,
            expert.norm.weight, expert.norm.bias, expert.eps, expert.hidden_dropout, keep,
        )
        contrast = level_pool(coarse, valid, False)
        content = level_pool(x0, valid, everywhere)
        reached = reached_levels(depth, config.num_levels)
        if everywhere:
            fine, coarse, content = (values.flatten(1, 2) for values in (fine, coarse, content))
            reached = reached.repeat_interleave(length, 1)
            mass = mass.repeat_interleave(length, 1)
        else:
            rows = torch.arange(batch, device=item_ids.device)
            fine, coarse = fine[:, rows, lengths - 1], coarse[:, rows, lengths - 1]
        router = model.router
        user, *_ = moe_aggregate(
            fine, coarse, content, reached, mass, router.router_w1,
            F.linear(table, router.level_w1, router.b1), router.router_w2, router.b2,
            router.gate.weight, router.gate.bias,
        )
        if everywhere:
            user = user.unflatten(0, (batch, length))
        return _Represented(user, depth, logits, error, contrast)

    def forward(
        self,
        item_ids: Tensor,
        lengths: Tensor,
        targets: Tensor,
        noise: Tensor | None = None,
        gumbel: Tensor | None = None,
    ) -> Tensor:
        """L_tot of Eq. 12.

        Args:
            item_ids: int64 ``[B, L]``, padded with 0 on the right.
            lengths: int64 ``[B]``.
            targets: int64 ``[B]``; ``[N]``, packed, under ``supervision="all"``, whose logits are
                computed at the N valid positions alone.
            noise: epsilon ``[T, B, L, D]``; None draws it in training and is 0 otherwise.
            gumbel: ``[B, T+1]``; None draws it in training and is 0 otherwise.
        """
        config = self.model.config
        everywhere = config.supervision == "all"
        found = self._represent(item_ids, lengths, noise, gumbel, everywhere)
        valid = torch.arange(item_ids.shape[1], device=item_ids.device) < lengths[:, None]
        user = found.user[valid] if everywhere else found.user
        rec = linear_cross_entropy(user, self.model.item_embedding.weight, targets)
        computed = reached_levels(found.depth, config.num_levels)[1:, :, None] & valid
        error = torch.where(computed, found.error, torch.zeros_like(found.error)).sum()
        deno = error / ((lengths * found.depth).sum() * config.hidden_size).clamp(min=1)
        asked = targets[lengths.cumsum(0) - 1] if everywhere else targets
        cont = level_infonce(found.contrast, found.depth, asked, config.contrastive_temperature)
        return (
            rec
            + config.lambda_deno * deno
            + config.lambda_cont * cont
            + config.lambda_expl * losses.exploration_loss(found.logits)
        )

    def recommend(self, item_ids: Tensor, lengths: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Scores and ids ``[B, k]`` of the best unseen items."""
        user = self._represent(item_ids, lengths, None, None, False).user
        return best_items(user, self.model.item_embedding.weight, item_ids, k)
