"""The model's inference with every argument bound once: what a warm :class:`Recommender` runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ... import ragged, rng
from ...ops import choose, has_kernel
from ...ops._library import implementation
from ...precision import computing
from ..encoders.sasrec import SASRecEncoder
from ..encoders.transformer_layer import TransformerLayer
from .parsing import finish
from .parts import Parts


class Plan:
    """From item ids to h in evaluation mode: the model's ops with their arguments bound once.

    For one user the ops themselves take a third of the time that modules, checks and dispatch
    take; here the histories were checked and the weights are known. The numbers are those of
    ``ADARec.forward`` (tested).
    """

    def __init__(self, model: Parts) -> None:
        config, encoder = model.config, model.backbone
        assert isinstance(encoder, SASRecEncoder)
        device, dtype = model.item_embedding.weight.device, model.item_embedding.weight.dtype
        self._backend, self._device, self._dtype = config.backend, device, dtype
        self._encoder, self._config = encoder, config
        self._items = model.item_embedding.weight.detach()
        # Row max_length - n of this one belongs to the first token of n. Not for a graph, whose
        # input has rows behind the last token.
        self._alone = device.type == "cpu"
        self._positions = encoder.position.weight.detach().flip(0)
        self._norm = (config.hidden_size,), encoder.norm.weight, encoder.norm.bias, encoder.eps
        self._embedding = None
        if has_kernel("embedding", config.backend, device.type, dtype):
            self._embedding = self._op("embedding")
            self._embedding_weights = (
                self._items, encoder.position.weight, *self._norm[1:], 0.0, None
            )  # fmt: skip
        self._layer = self._op("encoder_layer")
        self._layers = [self._layer_arguments(layer) for layer in encoder.layers]
        controller = model.depth_controller
        lengths = torch.arange(config.max_length + 1, device=device)
        self._length_bias = controller.length_bias(lengths, dtype)
        self._controller = self._op("depth_controller")
        self._controller_weights = (
            controller.w_ih, controller.w_hh, controller.b_hh, controller.w_out, controller.b_out,
            config.max_length,
        )  # fmt: skip
        table, denoiser, router = model.level_embedding.weight, model.denoiser, model.router
        self._trajectory = self._op("hda_trajectory")
        self._denoiser_weights = (
            denoiser.alpha_bar, denoiser.w1, denoiser.level_bias(table), denoiser.w2, denoiser.b2,
            None, None,
        )  # fmt: skip
        self._fine = self._layer_arguments(model.fine_expert)
        coarse = model.coarse_expert
        if isinstance(coarse, TransformerLayer):
            self._coarse, self._coarse_weights = self._layer, self._layer_arguments(coarse)
        else:
            self._coarse = self._op("mlp_expert")
            self._coarse_weights = (
                *coarse.weights(), coarse.eps, 0.0, None, rng.STREAM_COARSE_MLP,
            )  # fmt: skip
        self._pool = self._op("level_pool")
        self._aggregate = self._op("moe_aggregate")
        self._router_weights = router.weights(table)
        self._content = router.content
        # m_k of levels up to the depth; those beyond are not read.
        self._mass = torch.ones(config.num_levels, 1, dtype=dtype, device=device)
        self._model = model
        self._fused = None
        if config.fused_trajectory:
            self._fused = self._op("fused_trajectory")
            self._fused_inputs = (
                denoiser.alpha_bar, *denoiser.weights(table), *model.fine_expert.weights(),
                *coarse.weights(), *self._router_weights, None, None, None, config.num_heads,
                config.layer_norm_eps, 0.0, 0.0, router.content, False, True, config.max_length,
            )  # fmt: skip

    @staticmethod
    def suits(model: Parts) -> bool:
        """Whether this is the paper's whole model on the built-in encoder, run by our ops."""
        config, weight = model.config, model.item_embedding.weight
        names = (
            "encoder_layer", "depth_controller", "hda_trajectory", "mlp_expert", "level_pool",
            "moe_aggregate", *(("fused_trajectory",) if config.fused_trajectory else ()),
        )  # fmt: skip
        return (
            isinstance(model.backbone, SASRecEncoder)
            and (config.depth, config.diffusion, config.moe) == ("adaptive", True, True)
            and config.evaluation_samples == 0
            and all(
                choose(name, config.backend, weight.device.type, weight.dtype) != "reference"
                for name in names
            )
        )

    def _op(self, name: str) -> Callable[..., Any]:
        chosen = choose(name, self._backend, self._device.type, self._dtype)
        return implementation(name, chosen).fwd

    def _layer_arguments(self, layer: nn.Module) -> tuple[Any, ...]:
        """All that follows x, offsets and depth, less ``last_only`` and ``max_length``."""
        assert isinstance(layer, TransformerLayer)
        return (*layer.weights(), layer.heads, layer.eps, 0.0, 0.0, None, layer.stream)

    def __call__(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """h ``[B, D]`` and T_u ``[B]`` of packed histories of at most ``max_length`` items."""
        with computing(self._config.precision, self._device.type):
            return self._run(values, offsets)

    def _run(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        longest = self._config.max_length
        x = self._embed(values, offsets)[None]
        for weights in self._layers:
            x = self._layer(x, offsets, None, *weights, False, longest)
        embeddings = x[0]
        bias = self._length_bias[offsets[1:] - offsets[:-1]]
        logits, _ = self._controller(embeddings, offsets, bias, *self._controller_weights)
        depth = logits.argmax(-1)
        mass = self._mass.expand(-1, depth.shape[0]).contiguous()
        if self._fused is not None:
            user, *_ = self._fused(embeddings, offsets, depth, mass, *self._fused_inputs)
        else:
            user = self._stages(embeddings, offsets, depth, mass)
        if self._config.residual:
            user = finish(self._model, user, embeddings[ragged.last_tokens(offsets)])
        return user, depth

    def _embed(self, values: Tensor, offsets: Tensor) -> Tensor:
        """What the first layer reads ``[N, D]``."""
        if self._embedding is not None:
            return self._embedding(values, offsets, *self._embedding_weights)
        tokens = values.shape[0]
        x = F.embedding(values, self._items)
        if self._alone and offsets.shape[0] == 2:
            x = x + self._positions[self._config.max_length - tokens :]
        else:
            x = x + self._encoder.positions(offsets, tokens)
        return F.layer_norm(x, *self._norm)

    def _stages(
        self, embeddings: Tensor, offsets: Tensor, depth: Tensor, mass: Tensor
    ) -> Tensor:
        """From E to h, an op after the other."""
        longest = self._config.max_length
        x0, _ = self._trajectory(embeddings, offsets, depth, *self._denoiser_weights)
        fine = self._layer(x0, offsets, depth, *self._fine, True, longest)
        if self._coarse is self._layer:
            coarse = self._layer(x0, offsets, depth, *self._coarse_weights, True, longest)
        else:
            coarse = self._coarse(x0, offsets, depth, *self._coarse_weights, True)
        pooled = self._pool(x0, offsets, depth, False) if self._content else None
        user, *_ = self._aggregate(
            fine, coarse, pooled, depth, mass, *self._router_weights
        )
        return user
