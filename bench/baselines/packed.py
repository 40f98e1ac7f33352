"""Plain PyTorch on packed tokens, eager: what is left of the gain when padding is taken away.

The functions are those behind the ``packed`` backend (:mod:`adarec_fast.packed`), called directly
and differentiated by autograd, so that nothing is computed twice. Their dropout is drawn by the
noise contract, which is slow in plain PyTorch; here they are handed torch's own generator instead
(:func:`torch_noise`). One cost remains that a hand-written version would not have: hidden dropout
is drawn for every level of every token and then gathered for those that exist.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adarec_fast import ADARec, ragged, rng
from adarec_fast.models.adarec import losses
from adarec_fast.models.adarec.experts import MLPExpert
from adarec_fast.models.encoders.sasrec import SASRecEncoder
from adarec_fast.models.encoders.transformer_layer import TransformerLayer
from adarec_fast.packed import (
    depth_controller,
    encoder_layer,
    hda_trajectory,
    level_infonce,
    level_pool,
    local_path,
    mlp_expert,
    moe_aggregate,
)

from .padded import best_items, check_config, choose_depth

__all__ = [
    "PackedADARec",
    "cross_entropy",
    "depth_controller",
    "encoder_layer",
    "hda_trajectory",
    "level_infonce",
    "level_pool",
    "local_path",
    "mlp_expert",
    "moe_aggregate",
    "torch_noise",
]


class _TorchNoise:
    """Stands for :mod:`adarec_fast.rng` inside the packed layers: same shapes, torch's numbers."""

    LANES = 1
    SITE_ATTENTION = rng.SITE_ATTENTION
    SITE_PROJECTION = rng.SITE_PROJECTION
    SITE_FEEDFORWARD = rng.SITE_FEEDFORWARD

    @staticmethod
    def element_index(tokens: int, size: int, seed: Tensor) -> Tensor:
        return torch.empty(tokens, size, device=seed.device)

    @staticmethod
    def first_token(seed: Tensor) -> int:
        return 0

    @staticmethod
    def attention_index(tokens: Tensor, heads: int, keys: Tensor) -> Tensor:
        return torch.empty(*tokens.shape, heads, keys.numel(), device=tokens.device)

    @staticmethod
    def philox(seed: Tensor, index: Tensor, stream: int, group: Tensor) -> tuple[Tensor]:
        return (torch.rand_like(index),)

    @staticmethod
    def dropout_threshold(p: float) -> float:
        return p

    @staticmethod
    def keep_levels(seed: Tensor, index: Tensor, stream: int, levels: int, p: float) -> Tensor:
        shape = levels, *index.shape
        return torch.empty(shape, dtype=torch.bool, device=index.device).bernoulli_(1 - p)

    @staticmethod
    def keep_quarters(seed: Tensor, tokens: int, size: int, stream: int, p: float) -> Tensor:
        shape = tokens, size
        return torch.empty(shape, dtype=torch.bool, device=seed.device).bernoulli_(1 - p)


@contextlib.contextmanager
def torch_noise() -> Iterator[None]:
    """While it holds, the packed layers draw their dropout from torch's own generator."""
    with (
        mock.patch.object(encoder_layer, "rng", _TorchNoise),
        mock.patch.object(local_path, "rng", _TorchNoise),
        mock.patch.object(mlp_expert, "rng", _TorchNoise),
    ):
        yield


def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Eq. 13 with all logits in memory, as it is usually written."""
    return F.cross_entropy(hidden @ weight[1:].T, targets - 1)


class PackedADARec(nn.Module):
    """The baseline over a model's own weights; ``train()`` turns noise and dropout on.

    Args:
        model: a default ADARec of either supervision, whose parameters are used and not copied.

    Raises:
        ValueError: a model that is not the default one.
    """

    def __init__(self, model: ADARec) -> None:
        super().__init__()
        check_config(model.config)
        self.model = model

    def _layer(
        self,
        layer: TransformerLayer,
        x: Tensor,
        offsets: Tensor,
        depth: Tensor | None,
        last_only: bool,
    ) -> Tensor:
        seed = offsets[:1] if self.training else None
        return encoder_layer._forward(
            x, offsets, depth, *layer.weights(), layer.heads, layer.eps, layer.attention_dropout,
            layer.hidden_dropout, seed, layer.stream, last_only, self.model.config.max_length,
            True,
        )

    def _encode(self, item_ids: Tensor, offsets: Tensor) -> Tensor:
        encoder = self.model.backbone
        assert isinstance(encoder, SASRecEncoder)
        ends = ragged.row_of_tokens(offsets[1:], offsets, item_ids.shape[0])
        from_end = ends - 1 - torch.arange(item_ids.shape[0], device=item_ids.device)
        x = self.model.item_embedding(item_ids) + encoder.position(from_end)
        x = F.layer_norm(x, x.shape[-1:], encoder.norm.weight, encoder.norm.bias, encoder.eps)
        levels = F.dropout(x, encoder.dropout, self.training)[None]
        for layer in encoder.layers:
            assert isinstance(layer, TransformerLayer)
            levels = self._layer(layer, levels, offsets, None, False)
        return levels[0]

    def _represent(self, item_ids: Tensor, offsets: Tensor) -> tuple[Tensor, ...]:
        """User ``[B, D]``, depth ``[B]``, logits, error ``[N]``, x-coarse ``[T+1, N, D]``.

        Trained by every position, the user is ``[N, D]``.
        """
        model, config = self.model, self.model.config
        everywhere = config.supervision == "all" and torch.is_grad_enabled()
        x = self._encode(item_ids, offsets)
        adc = model.depth_controller
        share = ragged.lengths(offsets)[:, None].to(x.dtype) / config.max_length
        bias = F.linear(adc.length_mlp(share), adc.length_w_ih, adc.b_ih)
        logits, _ = depth_controller._forward(
            x, offsets, bias, adc.w_ih, adc.w_hh, adc.b_hh, adc.w_out, adc.b_out,
            config.max_length,
        )
        gumbel = -torch.empty_like(logits).exponential_().log() if self.training else None
        depth, mass = choose_depth(logits, gumbel, config.gumbel_temperature)

        hda, table = model.denoiser, model.level_embedding.weight
        noise = None
        if self.training:
            noise = torch.randn(config.max_depth, *x.shape, dtype=x.dtype, device=x.device)
        x0, error = hda_trajectory._forward(
            x, offsets, depth, hda.alpha_bar, hda.w1, F.linear(table[1:], hda.level_w1, hda.b1),
            hda.w2, hda.b2, None, noise,
        )
        fine = self._layer(model.fine_expert, x0, offsets, depth, not everywhere)
        expert = model.coarse_expert
        assert isinstance(expert, MLPExpert)
        # Eq. 6 needs every position of the coarse levels; inference needs the last alone.
        coarse = mlp_expert._forward(
            x0, offsets, depth, expert.ff1.weight, expert.ff1.bias, expert.ff2.weight,
            expert.ff2.bias, expert.norm.weight, expert.norm.bias, expert.eps,
            expert.hidden_dropout, offsets[:1] if self.training else None, 0, False,
            not torch.is_grad_enabled(),
        )
        read, read_depth = coarse, depth
        if everywhere:
            tokens = x.shape[0]
            read_depth = ragged.row_of_tokens(depth, offsets, tokens)
            mass = ragged.row_of_tokens(mass, offsets, tokens, dim=1)
        elif torch.is_grad_enabled():
            read = coarse[:, offsets[1:] - 1]
        router = model.router
        user, *_ = moe_aggregate._forward(
            fine, read, level_pool._forward(x0, offsets, depth, everywhere), read_depth, mass,
            router.router_w1, F.linear(table, router.level_w1, router.b1), router.router_w2,
            router.b2, router.gate.weight, router.gate.bias,
        )
        return user, depth, logits, error, coarse

    def forward(self, item_ids: Tensor, offsets: Tensor, targets: Tensor) -> Tensor:
        """L_tot of Eq. 12 on a packed batch ``[N]``, ``[B+1]``, ``[B]``; with autograd on.

        Under ``supervision="all"`` the targets are ``[N]``.
        """
        config = self.model.config
        with torch_noise():
            user, depth, logits, error, coarse = self._represent(item_ids, offsets)
        rec = cross_entropy(user, self.model.item_embedding.weight, targets)
        deno = losses.denoising_loss(error, offsets, depth, config.hidden_size)
        pooled = level_pool._forward(coarse, offsets, depth, False)
        asked = targets[offsets[1:] - 1] if config.supervision == "all" else targets
        cont, _ = level_infonce._forward(pooled, depth, asked, config.contrastive_temperature)
        return (
            rec
            + config.lambda_deno * deno
            + config.lambda_cont * cont
            + config.lambda_expl * losses.exploration_loss(logits)
        )

    @torch.no_grad()
    def recommend(
        self, item_ids: Tensor, offsets: Tensor, padded_ids: Tensor, k: int
    ) -> tuple[Tensor, Tensor]:
        """Scores and ids ``[B, k]`` of the best unseen items."""
        user = self._represent(item_ids, offsets)[0]
        return best_items(user, self.model.item_embedding.weight, padded_ids, k)
