"""The model's inference with every argument bound once: what a warm :class:`Recommender` runs."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import ragged, rng
from ...precision import computing
from ..base import Represented
from ..encoders.plan import EncoderPlan, layer_arguments
from ..encoders.sasrec import SASRecEncoder
from ..encoders.transformer_layer import TransformerLayer
from .parsing import finish
from .parts import Parts


class Plan:
    """From item ids to h in evaluation mode: the model's ops with their arguments bound once.

    See :class:`EncoderPlan` for why. The numbers are those of ``ADARec.forward`` (tested).
    """

    def __init__(self, model: Parts) -> None:
        config, encoder = model.config, model.backbone
        assert isinstance(encoder, SASRecEncoder)
        device, dtype = model.item_embedding.weight.device, model.item_embedding.weight.dtype
        self._device, self._config = device, config
        self._encode = EncoderPlan(encoder, model.item_embedding.weight, config.backend)
        self._layer = self._encode.layer
        controller = model.depth_controller
        lengths = torch.arange(config.max_length + 1, device=device)
        self._length_bias = controller.length_bias(lengths, dtype)
        self._controller = self._encode.op("depth_controller")
        self._controller_weights = (
            controller.w_ih, controller.w_hh, controller.b_hh, controller.w_out, controller.b_out,
            config.max_length,
        )  # fmt: skip
        table, denoiser, router = model.level_embedding.weight, model.denoiser, model.router
        self._trajectory = self._encode.op("hda_trajectory")
        self._denoiser_weights = (
            denoiser.alpha_bar, denoiser.w1, denoiser.level_bias(table), denoiser.w2, denoiser.b2,
            None, None, denoiser.bounded,
        )  # fmt: skip
        self._fine = layer_arguments(model.fine_expert)
        coarse = model.coarse_expert
        if isinstance(coarse, TransformerLayer):
            self._coarse, self._coarse_weights = self._layer, layer_arguments(coarse)
        else:
            self._coarse = self._encode.op("mlp_expert")
            self._coarse_weights = (
                *coarse.weights(), coarse.eps, 0.0, None, rng.STREAM_COARSE_MLP, coarse.residual,
            )  # fmt: skip
        self._pool = self._encode.op("level_pool")
        self._aggregate = self._encode.op("moe_aggregate")
        self._router_weights = router.weights(table)
        self._content = router.content
        # m_k of levels up to the depth; those beyond are not read.
        self._mass = torch.ones(config.num_levels, 1, dtype=dtype, device=device)
        self._model = model
        self._fused = None
        if config.fused_trajectory:
            self._fused = self._encode.op("fused_trajectory")
            self._fused_inputs = (
                denoiser.alpha_bar, *denoiser.weights(table), *model.fine_expert.weights(),
                *coarse.weights(), *self._router_weights, None, None, None, config.num_heads,
                config.layer_norm_eps, 0.0, 0.0, denoiser.bounded, coarse.residual,
                router.content, False, True, config.max_length,
            )  # fmt: skip

    @staticmethod
    def suits(model: Parts) -> bool:
        """Whether this is the paper's whole model on the built-in encoder, run by our ops."""
        config, weight = model.config, model.item_embedding.weight
        ops = (
            "depth_controller", "hda_trajectory", "mlp_expert", "level_pool", "moe_aggregate",
            *(("fused_trajectory",) if config.fused_trajectory else ()),
        )  # fmt: skip
        return (
            isinstance(model.backbone, SASRecEncoder)
            and (config.depth, config.diffusion, config.moe) == ("adaptive", True, True)
            and config.num_experts == 2
            and config.evaluation_samples == 0
            and EncoderPlan.suits(config.backend, weight, *ops)
        )

    def __call__(self, values: Tensor, offsets: Tensor) -> Represented:
        """h ``[B, D]`` and T_u ``[B]`` of packed histories of at most ``max_length`` items."""
        with computing(self._config.precision, self._device.type):
            user, depth = self._run(values, offsets)
        return Represented(user, {"depth": depth})

    def _run(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        embeddings = self._encode(values, offsets)
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

    def _stages(
        self, embeddings: Tensor, offsets: Tensor, depth: Tensor, mass: Tensor
    ) -> Tensor:
        """From E to h, an op after the other."""
        longest = self._config.max_length
        x0, _ = self._trajectory(embeddings, offsets, depth, *self._denoiser_weights)
        fine = self._layer(x0, offsets, depth, *self._fine, True, longest, True)
        if self._coarse is self._layer:
            coarse = self._layer(x0, offsets, depth, *self._coarse_weights, True, longest, True)
        else:
            coarse = self._coarse(x0, offsets, depth, *self._coarse_weights, True)
        pooled = self._pool(x0, offsets, depth, False) if self._content else None
        user, *_ = self._aggregate(
            fine, coarse, pooled, depth, mass, *self._router_weights
        )
        return user
