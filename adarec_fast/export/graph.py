"""The inference graph in ATen's own ops alone, on padded histories of any number and length.

It is the reference's mathematics with the model's weights; what differs is the GRU's loop, which
has to be an operator for the length to stay dynamic, and that nothing is drawn at random.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._higher_order_ops import while_loop

from .. import ragged
from ..config import ConfigError
from ..models.adarec.model import ADARec
from ..models.adarec.parsing import finish
from ..models.adarec.router import mean_of_levels
from ..models.encoders.sasrec import SASRecEncoder
from ..models.encoders.transformer_layer import TransformerLayer
from ..reference.encoder_layer import encoder_layer
from ..reference.hda_trajectory import hda_trajectory
from ..reference.level_pool import level_pool
from ..reference.mlp_expert import mlp_expert
from ..reference.moe_aggregate import moe_aggregate

# What a graph may consist of: it then loads wherever torch or a runtime for ONNX does.
_NAMESPACES = ("aten", "higher_order", "prim", "prims")


class UserModel(nn.Module):
    """h_u of padded histories, in evaluation mode.

    Args:
        model: put into evaluation mode.

    Raises:
        ConfigError: the model has a foreign backbone, or averages noisy samples.
    """

    def __init__(self, model: ADARec) -> None:
        super().__init__()
        if not isinstance(model.backbone, SASRecEncoder):
            raise ConfigError(
                "a model with a backbone of your own cannot be exported: the graph is made of the "
                "built-in encoder"
            )
        if model.config.evaluation_samples:
            raise ConfigError(
                f"evaluation_samples={model.config.evaluation_samples} draws noise, which an "
                "exported graph cannot; export with 0"
            )
        self.model = model.eval()
        self.encoder = model.backbone

    def forward(self, item_ids: Tensor) -> Tensor:
        """``[B, D]`` of int64 ``[B, L]``, 1 <= L <= max_length, padded with 0 on the right."""
        model, config = self.model, self.model.config
        # An axis that may be 1 makes torch choose between two matrix products while it traces; a
        # column of padding spares the choice.
        item_ids = F.pad(item_ids, (0, 1))
        valid = item_ids != 0
        lengths = valid.sum(1)
        embeddings = self._encode(item_ids, valid, lengths)
        user = _at(embeddings[None], lengths - 1)[0]
        if not config.augmented:
            return finish(model, user, user)
        if config.depth == "adaptive":
            depth = self._depth(embeddings, valid, lengths)
        else:
            depth = torch.full_like(lengths, config.max_depth)
        table = model.level_embedding.weight
        if config.diffusion:
            denoiser = model.denoiser
            x0, _ = hda_trajectory(
                embeddings, denoiser.alpha_bar, denoiser.w1, denoiser.level_bias(table),
                denoiser.w2, denoiser.b2, None,
            )  # fmt: skip
        else:
            x0 = embeddings.expand(config.num_levels, -1, -1, -1)
        last = _at(x0, lengths - 1)
        mass = torch.ones_like(last[..., 0])
        if not config.moe:
            return finish(model, mean_of_levels(last, depth, mass), user)
        fine = _at(_layer(model.fine_expert, x0, valid), lengths - 1)
        coarse_expert = model.coarse_expert
        if isinstance(coarse_expert, TransformerLayer):
            coarse = _at(_layer(coarse_expert, x0, valid), lengths - 1)
        else:
            w1, b1, w2, b2, norm_w, norm_b = coarse_expert.weights()
            coarse = mlp_expert(
                last, w1, b1, w2, b2, norm_w, norm_b, coarse_expert.eps, 0.0, None
            )
        pooled = level_pool(x0, valid, False) if model.router.content else None
        reached = ragged.reached_levels(depth, config.num_levels)
        fused, *_ = moe_aggregate(
            fine, coarse, pooled, reached, mass, *model.router.weights(table)
        )
        return finish(model, fused, user)

    def _encode(self, item_ids: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        """E ``[B, L, D]``."""
        encoder = self.encoder
        place = torch.arange(item_ids.shape[1], device=item_ids.device)
        x = self.model.item_embedding(item_ids)
        x = x + encoder.position((lengths[:, None] - 1 - place).clamp(min=0))
        x = F.layer_norm(x, x.shape[-1:], encoder.norm.weight, encoder.norm.bias, encoder.eps)
        for layer in encoder.layers:
            assert isinstance(layer, TransformerLayer)
            x = _layer(layer, x, valid)
        return x

    def _depth(self, embeddings: Tensor, valid: Tensor, lengths: Tensor) -> Tensor:
        """T_u ``[B]`` of Eq. 1 to 3."""
        controller = self.model.depth_controller
        bias = controller.length_bias(lengths, embeddings.dtype)
        inputs = (F.linear(embeddings, controller.w_ih) + bias[:, None]).transpose(0, 1)
        weight = valid.transpose(0, 1)[..., None].to(embeddings.dtype)
        w_hh, b_hh, steps = controller.w_hh, controller.b_hh, embeddings.shape[1]

        def unfinished(step: Tensor, hidden: Tensor, total: Tensor) -> Tensor:
            return step < steps

        def advance(step: Tensor, hidden: Tensor, total: Tensor) -> tuple[Tensor, ...]:
            in_r, in_z, in_n = inputs.index_select(0, step[None])[0].chunk(3, -1)
            rec_r, rec_z, rec_n = F.linear(hidden, w_hh, b_hh).chunk(3, -1)
            update = torch.sigmoid(in_z + rec_z)
            new = torch.tanh(in_n + torch.sigmoid(in_r + rec_r) * rec_n)
            hidden = (1 - update) * new + update * hidden
            return step + 1, hidden, total + hidden * weight.index_select(0, step[None])[0]

        start = torch.zeros_like(lengths[0])
        nothing = embeddings.new_zeros(embeddings.shape[0], w_hh.shape[1])
        _, _, total = while_loop(unfinished, advance, (start, nothing, nothing.clone()))
        pooled = total / lengths[:, None].to(total.dtype)
        return F.linear(pooled, controller.w_out, controller.b_out).argmax(-1)


class RankingModel(nn.Module):
    """The k best items and their scores, of padded histories.

    Args:
        model: put into evaluation mode.
        k: 1..num_items.
        exclude_seen: take a second input, what must not come again.

    Raises:
        ConfigError: as :class:`UserModel`, or k is out of range.
    """

    def __init__(self, model: ADARec, *, k: int, exclude_seen: bool) -> None:
        super().__init__()
        if not 1 <= k <= model.config.num_items:
            raise ConfigError(f"k={k} must lie in 1..{model.config.num_items}, the number of items")
        self.user_model = UserModel(model)
        self.k, self.exclude_seen = k, exclude_seen

    def forward(self, item_ids: Tensor, seen: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Items int64 ``[B, k]`` and scores ``[B, k]``, falling, -inf where none is left.

        ``item_ids`` as in :meth:`UserModel.forward`; ``seen`` int64 ``[B, S]``, padded with 0.
        """
        user = self.user_model(item_ids)
        scores = F.linear(user, self.user_model.model.item_embedding.weight)
        if self.exclude_seen:
            assert seen is not None
            scores = scores.scatter(1, seen, float("-inf"))
        best = torch.topk(scores[:, 1:], self.k, dim=-1)
        return best.indices + 1, best.values


def capture(module: UserModel | RankingModel, *, max_batch: int) -> torch.export.ExportedProgram:
    """``torch.export`` of one of the two, for 1..max_batch users and any length.

    Raises:
        ConfigError: ``max_batch`` is under 2.
    """
    if max_batch < 2:
        raise ConfigError(f"max_batch={max_batch} must be at least 2")
    users = module.user_model if isinstance(module, RankingModel) else module
    longest = users.model.config.max_length
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    inputs = [torch.ones(2, min(2, longest), dtype=torch.int64, device=_device(module))]
    # A length that cannot vary is not dynamic.
    free = {1: torch.export.Dim("length", min=1, max=longest)} if longest > 1 else {}
    dimensions = [{0: batch, **free}]
    if isinstance(module, RankingModel) and module.exclude_seen:
        inputs.append(torch.ones_like(inputs[0]).repeat(1, 3))
        dimensions.append({0: batch, 1: torch.export.Dim("seen", min=1)})
    with torch.no_grad():
        program = torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(dimensions))
    foreign = {
        str(node.target)
        for graph in program.graph_module.modules()
        if isinstance(graph, torch.fx.GraphModule)
        for node in graph.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload)
        and node.target.namespace not in _NAMESPACES
    }
    assert not foreign, f"the graph is not of ATen's ops alone: {sorted(foreign)}"
    return program


def _layer(layer: TransformerLayer, x: Tensor, valid: Tensor) -> Tensor:
    """One causal layer of ``[..., L, D]``, without dropout."""
    return encoder_layer(
        x, valid, *layer.weights(), layer.heads, layer.eps, 0.0, 0.0, None, None, None
    )


def _at(x: Tensor, place: Tensor) -> Tensor:
    """``[K, B, D]``: what ``x [K, B, L, D]`` holds at int64 ``place [B]`` of each sequence."""
    index = place[None, :, None, None].expand(x.shape[0], -1, 1, x.shape[-1])
    return x.gather(2, index)[:, :, 0]


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
