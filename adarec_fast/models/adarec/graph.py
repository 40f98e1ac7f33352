"""ADARec's inference graph in ATen's own ops alone, for export; see :mod:`..encoders.graph`.

What differs from the reference is the GRU's loop, which has to be an operator for the length to
stay dynamic, and that nothing is drawn at random.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._higher_order_ops import while_loop

from ... import ragged
from ...config import ConfigError
from ...reference.hda_trajectory import hda_trajectory
from ...reference.level_pool import level_pool
from ...reference.mlp_expert import mlp_expert
from ...reference.moe_aggregate import moe_aggregate
from ...reference.several_experts import several_experts
from ..base import UserGraph
from ..encoders.graph import at, encode, layer, with_spare_column
from ..encoders.sasrec import SASRecEncoder
from ..encoders.transformer_layer import TransformerLayer
from ..evaluating import evaluating
from .parsing import finish, parse
from .router import without_experts

# Two depths whose logits differ by less are a tie that rounding decides.
_DEPTH_TIE = 1e-5


class ADARecGraph(UserGraph):
    """h_u of padded histories.

    Args:
        model: an :class:`ADARec`, in whatever mode.

    Raises:
        ConfigError: the model has a foreign backbone, or averages noisy samples.
    """

    def __init__(self, model: Any) -> None:
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
        self.model = evaluating(model)
        self.encoder: SASRecEncoder = self.model.backbone

    def forward(self, item_ids: Tensor) -> Tensor:
        """``[B, D]`` of int64 ``[B, L]``, 1 <= L <= max_length, padded with 0 on the right."""
        model, config = self.model, self.model.config
        item_ids, valid, lengths = with_spare_column(item_ids)
        embeddings = encode(self.encoder, model.item_embedding, item_ids, valid, lengths)
        user = at(embeddings[None], lengths - 1)[0]
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
                denoiser.w2, denoiser.b2, None, denoiser.bounded,
            )  # fmt: skip
        else:
            x0 = embeddings.expand(config.num_levels, -1, -1, -1)
        last = at(x0, lengths - 1)
        mass = torch.ones_like(last[..., 0])
        if not config.moe:
            read = without_experts(last, depth, mass, config.level_readout)
            return finish(model, read, user)
        fine = at(layer(model.fine_expert, x0, valid), lengths - 1)
        middle = model.middle_experts if config.num_experts > 2 else ()
        coarse = []
        for expert in (*middle, model.coarse_expert):
            if isinstance(expert, TransformerLayer):
                coarse.append(at(layer(expert, x0, valid), lengths - 1))
            else:
                w1, b1, w2, b2, norm_w, norm_b = expert.weights()
                coarse.append(mlp_expert(
                    last, w1, b1, w2, b2, norm_w, norm_b, expert.eps, 0.0, None, expert.residual
                ))  # fmt: skip
        pooled = level_pool(x0, valid, False) if model.router.content else None
        reached = ragged.reached_levels(depth, config.num_levels)
        weights = pooled, reached, mass, *model.router.weights(table)
        if config.num_experts > 2:
            fused, *_ = several_experts(torch.stack([fine, *coarse]), *weights)
        else:
            fused, *_ = moe_aggregate(fine, coarse[0], *weights)
        return finish(model, fused, user)

    def settled(self, values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`UserGraph.settled`; a depth that rounding decides is not."""
        parsed = parse(self.model, values, offsets, None, "last")
        clear = torch.ones(offsets.shape[0] - 1, dtype=torch.bool, device=values.device)
        if parsed.logits is not None and parsed.logits.shape[1] > 1:
            best = parsed.logits.topk(2, dim=-1).values
            clear = best[:, 0] - best[:, 1] > _DEPTH_TIE
        return parsed.user, clear

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
