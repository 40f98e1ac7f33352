"""What a request reads of an ADARec, for :class:`adarec_fast.ops.serving.Serving`."""

from __future__ import annotations

import torch

from ...ops.serving import RequestParts
from ..encoders.request import encoder_parts, layer_parts
from ..encoders.sasrec import SASRecEncoder
from ..encoders.transformer_layer import TransformerLayer
from .parts import Parts


def request_parts(model: Parts) -> RequestParts:
    """The whole model, of a configuration that :class:`.plan.Plan` suits and that runs its stages
    one by one; in evaluation mode."""
    assert isinstance(model.backbone, SASRecEncoder)
    found = encoder_parts(model.backbone, model.item_embedding.weight)
    for more in (_depth(model), _levels(model), _experts(model)):
        found = found.joined(more)
    if not model.config.residual:
        return found
    norm = model.output_norm
    output = {"output.w": norm.weight, "output.b": norm.bias}
    return found.joined(RequestParts(output, {"output.eps": norm.eps}, ()))


def _depth(model: Parts) -> RequestParts:
    controller, weight = model.depth_controller, model.item_embedding.weight
    lengths = torch.arange(model.config.max_length + 1, device=weight.device)
    weights = {
        f"controller.{name}": getattr(controller, name)
        for name in ("w_ih", "w_hh", "b_hh", "w_out", "b_out")
    }
    weights["length_bias"] = controller.length_bias(lengths, weight.dtype)
    return RequestParts(weights, {}, ("depth_controller",))


def _levels(model: Parts) -> RequestParts:
    denoiser, table = model.denoiser, model.level_embedding.weight
    names = ("w1", "level_bias", "w2", "b2")
    weights = dict(zip(names, denoiser.weights(table), strict=True))
    weights["alpha_bar"] = denoiser.alpha_bar
    named = {f"denoiser.{name}": weight for name, weight in weights.items()}
    return RequestParts(named, {"denoiser.bounded": denoiser.bounded}, ("hda_trajectory",))


def _experts(model: Parts) -> RequestParts:
    router, coarse = model.router, model.coarse_expert
    names = ("router.w1", "router.level_bias", "router.w2", "router.b2", "gate.w", "gate.b")
    weights = dict(zip(names, router.weights(model.level_embedding.weight), strict=True))
    ops = ("moe_aggregate", *(("level_pool",) if router.content else ()))
    found = RequestParts(weights, {"router.content": router.content}, ops)
    found = found.joined(layer_parts("fine", model.fine_expert))
    if isinstance(coarse, TransformerLayer):
        return found.joined(layer_parts("coarse", coarse))
    names = ("w1", "b1", "w2", "b2", "ln_w", "ln_b")
    expert = {f"coarse.{n}": w for n, w in zip(names, coarse.weights(), strict=True)}
    settings = {"coarse.eps": coarse.eps, "coarse.residual": coarse.residual}
    return found.joined(RequestParts(expert, settings, ("mlp_expert",)))
