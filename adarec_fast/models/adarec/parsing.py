"""From packed histories to h: Eq. 1 to 11, a model's modules and the ops in a row."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import ops, ragged, rng
from ..encoders.encode import encode as encode_items
from . import several
from .experts import MLPExpert
from .outputs import Parsed
from .parts import Parts
from .router import without_experts

# Of the passes of a step, see rng.of_pass; an encoder's own losses number theirs from 1.
_MIDDLE_EXPERT = 1 << 16


class _Reading(NamedTuple):
    """Which R tokens h is wanted at, and the levels that exist there."""

    offsets: Tensor  # [B+1]
    computed: Tensor  # [B], levels computed: the depth, or T under depth_gradient="full"
    rows: Tensor | None  # [B], the last tokens; None: all N tokens
    row_depth: Tensor  # [R], -1 at capacity behind the last token
    mass: Tensor  # [T+1, R], m_k


class _Biases(NamedTuple):
    """What the levels' embeddings add in the denoiser and the router; None: not known yet."""

    denoiser: Tensor | None
    router: Tensor | None


def encode(model: Parts, values: Tensor, offsets: Tensor, seed: Tensor | None = None) -> Tensor:
    """E ``[N, D]``: the backbone's representation of every item of every history."""
    return _encode(model, values, offsets, seed)[0]


def _encode(
    model: Parts, values: Tensor, offsets: Tensor, seed: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """E, and the item table for the loss where that is not the parameter itself."""
    items, backend = model.item_embedding, model.config.backend
    return encode_items(model.backbone, items, values, offsets, seed, backend)


def parse(
    model: Parts,
    values: Tensor,
    offsets: Tensor,
    seed: Tensor | None,
    readout: str,
    *,
    noise: Tensor | None = None,
    contrast: bool = False,
    hierarchy: bool = False,
) -> Parsed:
    """E, depth, hierarchy and h, read out at the ``"last"`` position or at ``"all"``.

    Args:
        model: in training mode depths are sampled, if there is a ``seed``.
        values: int64 ``[N]``, checked item ids.
        offsets: int64 ``[B+1]``.
        seed: of dropout, the depth's sample and the diffusion noise; None draws none of them.
        readout: ``"last"`` or ``"all"``.
        noise: the diffusion noise ``[T, N, D]``, in place of the seed's; it takes the ops apart,
            since the fused one draws its own.
        contrast: also pool the coarse levels for Eq. 6.
        hierarchy: the levels are wanted, whatever the configuration says of fusing them.
    """
    config = model.config
    embeddings, table = _encode(model, values, offsets, seed)
    rows = ragged.last_tokens(offsets) if readout == "last" else None
    logits, depth, reading = _depths(model, embeddings, offsets, rows, seed)
    biases = _level_biases(model)
    levels: Tensor | None = None
    error: Tensor | None = None
    pooled: Tensor | None = None
    aggregate: ops.Aggregate | None = None
    gates: Tensor | None = None
    if not config.augmented:
        user, levels = _at(rows, embeddings), embeddings[None]
    elif config.fused_trajectory and not hierarchy and noise is None:
        fused = _fused(model, embeddings, reading, seed, contrast, biases)
        user, error, pooled = fused.user, fused.error, fused.pooled if contrast else None
        aggregate = ops.Aggregate(user, fused.gates, fused.fine, fused.coarse)
    else:
        levels, error = _hierarchy(model, embeddings, reading, seed, noise, biases)
        if config.moe:
            given = model, levels, reading, seed, contrast, biases
            if config.num_experts == 2:
                aggregate, pooled = _experts(*given)
            else:
                aggregate, pooled, gates = _several(*given)
            user = aggregate.user
        else:
            at_levels = levels if rows is None else levels[:, rows]
            user = without_experts(
                at_levels, reading.row_depth, reading.mass, config.level_readout
            )
            if contrast:
                pooled = _pool(model, levels, reading)
    if config.residual:
        at_rows = _at(rows, embeddings)
        if rows is None:
            # No op writes behind the last token, where LayerNorm's backward would read.
            user, at_rows = ragged.mask_levels(torch.stack([user, at_rows]), offsets, None)
        user = finish(model, user, at_rows)
    return Parsed(
        user, depth, reading.computed, logits, levels, error, pooled,
        aggregate, reading.row_depth, embeddings, table, gates,
    )  # fmt: skip


def finish(model: Parts, user: Tensor, embeddings: Tensor) -> Tensor:
    """What predicts: h itself, or LayerNorm(E + h) of ``residual=True``, both ``[R, D]``."""
    return model.output_norm(user + embeddings) if model.config.residual else user


def _at(rows: Tensor | None, embeddings: Tensor) -> Tensor:
    """E at the tokens that are read out."""
    return embeddings if rows is None else embeddings[rows]


def _depths(
    model: Parts, embeddings: Tensor, offsets: Tensor, rows: Tensor | None, seed: Tensor | None
) -> tuple[Tensor | None, Tensor, _Reading]:
    """ADC, Eq. 1 to 3: the depth's logits ``[B, T+1]``, T_u ``[B]``, and what follows from it."""
    config, tokens = model.config, embeddings.shape[0]
    all_levels = model.training and config.depth_gradient == "full"
    if config.depth == "adaptive":
        logits = model.depth_controller(embeddings, offsets, backend=config.backend)
        # A mass for each row that h is wanted at: a token, or a sequence.
        everywhere = rows is None
        chosen = model.depth_controller.choose(
            logits, seed, offsets=offsets if everywhere else None,
            num_tokens=tokens if everywhere else None, all_levels=all_levels,
            backend=config.backend,
        )  # fmt: skip
        reading = _Reading(offsets, chosen.computed, rows, chosen.row_depth, chosen.mass)
        return logits, chosen.depth, reading
    depth = torch.full((offsets.shape[0] - 1,), config.max_depth, device=offsets.device)
    mass = torch.ones(
        config.num_levels, depth.shape[0], dtype=embeddings.dtype, device=offsets.device
    )
    row_depth = computed = torch.full_like(depth, config.max_depth) if all_levels else depth
    if rows is None:
        # Capacity behind the last token reaches no level, not even level 0: depth -1.
        row_depth = ragged.row_of_tokens(computed + 1, offsets, tokens) - 1
        mass = ragged.row_of_tokens(mass, offsets, tokens, dim=1)
    return None, depth, _Reading(offsets, computed, rows, row_depth, mass)


def _level_biases(model: Parts) -> _Biases:
    """Both layers over the levels' embeddings at once, where there is a kernel for that."""
    config = model.config
    if config.diffusion and config.moe:
        table, denoiser, router = model.level_embedding.weight, model.denoiser, model.router
        if ops.has_kernel("level_biases", config.backend, table.device.type, table.dtype):
            found = ops.level_biases(
                table, denoiser.level_w1, denoiser.b1, router.level_w1, router.b1,
                backend=config.backend,
            )
            return _Biases(*found)
    return _Biases(None, None)


def _hierarchy(
    model: Parts,
    embeddings: Tensor,
    reading: _Reading,
    seed: Tensor | None,
    noise: Tensor | None,
    biases: _Biases,
) -> tuple[Tensor, Tensor | None]:
    """HDA, Eq. 4 and 5: x0 ``[T+1, N, D]`` and each token's denoising error ``[N]``."""
    config = model.config
    if not config.diffusion:
        x0 = embeddings.expand(config.num_levels, -1, -1)
        # No op writes gradients beyond the depth; unmasked, they would be summed into E.
        return ragged.mask_levels(x0, reading.offsets, reading.computed), None
    return model.denoiser(
        embeddings, reading.offsets, reading.computed, model.level_embedding.weight,
        seed=seed, noise=noise, level_bias=biases.denoiser, max_length=config.max_length,
        backend=config.backend,
    )  # fmt: skip


def _experts(
    model: Parts,
    x0: Tensor,
    reading: _Reading,
    seed: Tensor | None,
    contrast: bool,
    biases: _Biases,
) -> tuple[ops.Aggregate, Tensor | None]:
    """HP-MoE, Eq. 7 to 11: both experts, router, fusion; and Eq. 6's pooled coarse levels."""
    config, rows, last = model.config, reading.rows, reading.rows is not None
    levels = x0, reading.offsets, reading.computed
    shared: dict[str, Any] = {
        "seed": seed, "max_length": config.max_length, "backend": config.backend,
    }  # fmt: skip
    fine = model.fine_expert(*levels, last_only=last, **shared)
    if last and contrast and _pools_as_it_goes(model, x0):
        expert = model.coarse_expert
        assert isinstance(expert, MLPExpert)
        found = expert.pooled(*levels, content=model.router.content, **shared)
        aggregate = model.router(
            fine, found.last, found.content, reading.row_depth, reading.mass,
            model.level_embedding.weight, level_bias=biases.router, backend=config.backend,
        )  # fmt: skip
        return aggregate, found.pooled
    # Eq. 6 pools the coarse output over all tokens; without it the last one is enough.
    coarse = model.coarse_expert(*levels, last_only=last and not contrast, **shared)
    pooled = None
    if contrast:
        pooled = _pool(model, coarse, reading)
        if rows is not None:
            coarse = coarse[:, rows]
    content = _pool(model, x0, reading, causal=not last) if model.router.content else None
    aggregate = model.router(
        fine, coarse, content, reading.row_depth, reading.mass, model.level_embedding.weight,
        level_bias=biases.router, backend=config.backend,
    )  # fmt: skip
    return aggregate, pooled


def _several(
    model: Parts,
    x0: Tensor,
    reading: _Reading,
    seed: Tensor | None,
    contrast: bool,
    biases: _Biases,
) -> tuple[ops.Aggregate, Tensor | None, Tensor]:
    """The same with more than two experts, all but the fine one of the coarse one's kind: Eq. 6's
    levels are ``[N-1, T+1, B, D]``, and the gates of all ``[N, T+1, R]``."""
    config, rows, last = model.config, reading.rows, reading.rows is not None
    levels = x0, reading.offsets, reading.computed
    shared: dict[str, Any] = {"max_length": config.max_length, "backend": config.backend}
    outputs = [model.fine_expert(*levels, last_only=last, seed=seed, **shared)]
    pooled = []
    for number, expert in enumerate([*model.middle_experts, model.coarse_expert]):
        # The coarsest one draws as it does of two, the others from seeds of their own.
        own = seed if expert is model.coarse_expert else _seed_of(seed, number)
        found = expert(*levels, last_only=last and not contrast, seed=own, **shared)
        if contrast:
            pooled.append(_pool(model, found, reading))
            found = found if rows is None else found[:, rows]
        outputs.append(found)
    content = _pool(model, x0, reading, causal=not last) if model.router.content else None
    aggregate, gates = several.aggregate(
        model.router, outputs, content, reading.row_depth, reading.mass,
        model.level_embedding.weight, level_bias=biases.router, backend=config.backend,
    )  # fmt: skip
    return aggregate, torch.stack(pooled) if contrast else None, gates


def _seed_of(seed: Tensor | None, number: int) -> Tensor | None:
    """Of a middle expert's dropout."""
    if seed is None:
        return None
    place = seed[1:] if seed.numel() == 3 else None
    return rng.of_pass(seed, _MIDDLE_EXPERT + number, place)


def _pools_as_it_goes(model: Parts, x0: Tensor) -> bool:
    """Whether there is a kernel for the coarse expert with its means."""
    there = ops.has_kernel("mlp_expert_pooled", model.config.backend, x0.device.type, x0.dtype)
    return there and isinstance(model.coarse_expert, MLPExpert)


def _fused(
    model: Parts,
    embeddings: Tensor,
    reading: _Reading,
    seed: Tensor | None,
    contrast: bool,
    biases: _Biases,
) -> ops.Trajectory:
    """HDA and HP-MoE as one op."""
    config, table = model.config, model.level_embedding.weight
    denoiser, fine, coarse = model.denoiser, model.fine_expert, model.coarse_expert
    assert isinstance(coarse, MLPExpert)
    return ops.fused_trajectory(
        embeddings, reading.offsets, reading.computed, reading.mass, denoiser.alpha_bar,
        denoiser.weights(table, biases.denoiser), fine.weights(), coarse.weights(),
        model.router.weights(table, biases.router),
        heads=fine.heads, eps=config.layer_norm_eps, attention_dropout=config.attention_dropout,
        hidden_dropout=config.dropout, seed=seed, noise_seed=seed,
        bounded=denoiser.bounded, residual=coarse.residual, content=model.router.content,
        contrast=contrast, last_only=reading.rows is not None, max_length=config.max_length,
        backend=config.backend,
    )  # fmt: skip


def _pool(model: Parts, levels: Tensor, reading: _Reading, *, causal: bool = False) -> Tensor:
    return ops.level_pool(
        levels, reading.offsets, reading.computed, causal=causal,
        max_length=model.config.max_length, backend=model.config.backend,
    )  # fmt: skip
