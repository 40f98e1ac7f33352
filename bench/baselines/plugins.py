"""BASRec, PDRec, IOCRec, GlobalDiff and DiffDiv in plain PyTorch, padded, as their public code is.

As in :mod:`.systems`: what a step draws is given, drawn and padded beforehand, and dropout is
torch's. GlobalDiff's and DiffDiv's normal noise is drawn in the step, unless a check gives it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from adarec_fast import ragged, rng
from adarec_fast.data import Batch
from adarec_fast.models.basrec.copies import copies, sample_weights
from adarec_fast.models.basrec.everyone import everyone
from adarec_fast.models.blocks.augmentation import augmented
from adarec_fast.models.blocks.auxiliary import Step
from adarec_fast.models.blocks.beta import drawn
from adarec_fast.models.blocks.gaussian import diffrec_embedding, noised
from adarec_fast.models.blocks.next_place import with_next
from adarec_fast.models.globaldiff.approximator import STEP_SIZE

from .systems import PaddedSystem, pairs_loss

Given = dict[str, Any]


class PaddedPlugin(PaddedSystem):
    """A system's loss on what :meth:`given` made of a batch."""

    @property
    def longest(self) -> int:
        """L."""
        return int(self.model.config.max_length)

    def histories(self, values: Tensor, offsets: Tensor, places: Tensor | None = None) -> Given:
        """Items, positions and what is there, ``[B, L]`` each."""
        places = ragged.from_end(offsets, values.shape[0]) if places is None else places
        return {
            "items": ragged.to_padded(values, offsets, self.longest),
            "places": ragged.to_padded(places, offsets, self.longest),
            "there": ragged.padding_mask(offsets, self.longest),
        }

    def given(self, batch: Batch, exact: bool = False) -> Given:
        """What a step of the model would read and draw for the batch now; ``exact``: all of it."""
        raise NotImplementedError

    def last(self, x: Tensor, there: Tensor) -> Tensor:
        """The last output of each history ``[B, D]``."""
        return x[torch.arange(x.shape[0], device=x.device), there.sum(1) - 1]


class PaddedBASRec(PaddedPlugin):
    """``loss="original"``, ``weighting="sample"``, both stages' losses."""

    def given(self, batch: Batch, exact: bool = False) -> Given:
        model, mixing = self.model, self.model.auxiliary
        draws = rng.at_place(model.noise_seed)
        negatives = model._drawn(batch, draws)
        made = copies(
            batch.item_ids, batch.offsets, draws, mixing.similar, mixing.copies, mixing.ratios
        )
        sequence = torch.arange(batch.users.shape[0], device=draws.device)
        alpha = drawn(
            rng.level_words(draws, sequence, rng.STREAM_MIX_BETA, range(mixing.copies)),
            mixing.beta,
        )
        weights = sample_weights(alpha, made.ratio)
        table = model.item_embedding.weight
        nothing = table.new_zeros(batch.item_ids.shape[0], table.shape[1])
        everybody = everyone(Step(batch, nothing, draws, None, table, negatives))
        rounds = []
        for turn in range(mixing.rounds):
            for kind, shares in enumerate((mixing._item_shares, mixing._feature_shares)):
                word = rng.words(
                    everybody.seed, sequence, rng.STREAM_MIX_PERM, 2 * turn + kind
                )
                rows, there = everybody.partners(word.argsort(stable=True))
                share = torch.where(there[:, None], shares(everybody, turn), 1.0)
                rounds.append((share.to(table.dtype), rows))
        return {
            **self.histories(batch.item_ids, batch.offsets), "targets": batch.targets,
            "negatives": negatives[:, 0], "alpha": alpha.to(table.dtype),
            "weights": weights.to(table.dtype), "rounds": rounds,
            "copies": [
                ragged.to_padded(made.items[:, copy], batch.offsets, self.longest)
                for copy in range(mixing.copies)
            ],
        }  # fmt: skip

    def forward(self, given: Given) -> Tensor:
        table, there = self.model.item_embedding.weight, given["there"]
        h = self._encode(given["items"], given["places"], there)[there]
        up, down = table[given["targets"]], table[given["negatives"]]
        total = _bce(h, up, down).mean()
        own = table[given["items"]]
        for copy, items in enumerate(given["copies"]):
            share = given["alpha"][:, copy, None, None]
            mixed = share * own + (1 - share) * table[items]
            encoded = self._through(mixed, given["places"], there)[there]
            weight = given["weights"][:, copy, None].expand_as(there)[there]
            total = total + (weight * _bce(encoded, up, down)).mean()
        for share, rows in given["rounds"]:
            one, positive, negative = (share * x + (1 - share) * x[rows] for x in (h, up, down))
            total = total + _bce(one, positive, negative).mean()
        return total


class PaddedPDRec(PaddedPlugin):
    """``loss="original"``."""

    def given(self, batch: Batch, exact: bool = False) -> Given:
        model, beside = self.model, self.model.auxiliary
        draws, tables = rng.at_place(model.noise_seed), beside.tables()
        tokens = batch.item_ids.shape[0]
        users = batch.users[ragged.sequence_ids(batch.offsets, tokens)]
        index = torch.arange(tokens, device=draws.device)
        word = rng.words(draws, index, rng.STREAM_NEGATIVE, 1)
        bottom = tables.pool[users, rng.below(word, tables.sizes[users])].long()
        items, behind, offsets = with_next(batch.item_ids, batch.offsets, self.longest - 1)
        items = items[: int(offsets[-1])]
        behind = behind[: items.shape[0]]
        last = batch.targets[ragged.last_tokens(batch.offsets)]
        items = torch.where(behind, last[ragged.sequence_ids(offsets, items.shape[0])], items)
        return {
            **self.histories(batch.item_ids, batch.offsets), "targets": batch.targets,
            "negatives": torch.stack([model._drawn(batch, draws)[:, 0], bottom], 1),
            "weights": beside.target_weights(batch), "whole": self.histories(items, offsets),
            "candidates": tables.candidates[batch.users].long(),
        }  # fmt: skip

    def _logits(self, rows: Tensor, items: Tensor) -> Tensor:
        scale, table = self.model.config.cosine_scale, self.model.item_embedding.weight
        rows = F.normalize(rows, dim=-1)
        return scale * (F.normalize(table[items], dim=-1) @ rows[..., None])[..., 0]

    def forward(self, given: Given) -> Tensor:
        config, there = self.model.config, given["there"]
        h = self._encode(given["items"], given["places"], there)[there]
        up = self._logits(h, given["targets"][:, None])[:, 0]
        total = (given["weights"] * F.softplus(-up)).mean()
        total = total + 0.5 * F.softplus(self._logits(h, given["negatives"])).sum(1).mean()
        whole = given["whole"]
        last = self.last(self._encode(**whole), whole["there"])
        logits = self._logits(last, given["candidates"])
        return total + config.lambda_soft * F.softplus(-logits.topk(config.soft_targets)[0]).mean()


class PaddedIOCRec(PaddedPlugin):
    """``pooling="position"``."""

    def given(self, batch: Batch, exact: bool = False) -> Given:
        draws = rng.at_place(self.model.noise_seed)
        views = augmented(
            batch.item_ids, batch.offsets, draws, (0, 1), self.model.auxiliary.ratios,
            mask_id=self.model.config.num_items + 1,
        )  # fmt: skip
        plain, seen = (
            self.histories(values, offsets, ragged.positions(offsets, values.shape[0]))
            for values, offsets in (batch[:2], (views.values[: int(views.offsets[-1])],
                                                views.offsets))
        )  # fmt: skip
        return {"plain": plain, "views": seen, "targets": batch.targets}

    def _intents(self, items: Tensor, places: Tensor, there: Tensor) -> Tensor:
        """M ``[B, L, K, D]``."""
        beside = self.model.auxiliary
        far, part = beside.intents.everywhere, beside.intents.disentangle
        table = torch.cat([self.model.item_embedding.weight, beside.mask[None]])
        x = table[items]
        local = self._through(x, places, there)
        scores = far.query[: items.shape[1]] @ far.key(x).transpose(1, 2)
        shares = scores.masked_fill(~there[:, None], float("-inf")).softmax(-1)
        wide = F.dropout(shares @ far.value(x), far.dropout, self.training)
        found = torch.zeros((), dtype=x.dtype, device=x.device)
        for z in (local, wide):
            alike = part.state_norm(z) @ part.prototype_norm(part.prototypes).T
            scale = z.shape[-1] ** -0.5
            position = part.position[: items.shape[1]]
            ends = there.sum(1) - 1
            query = part.query_norm(self.last(z, there) + position[ends] + part.query_bias)
            key = part.key_norm(z + position)
            key = key + torch.relu(part.key(key))
            weight = (key @ query[:, :, None])[..., 0] * scale
            weight = weight.masked_fill(~there, float("-inf")).softmax(1)
            taken = (alike * scale).softmax(-1) * weight[..., None]
            found = found + part.norm(taken[..., None] * z[:, :, None])
        return found

    def forward(self, given: Given) -> Tensor:
        plain, views = given["plain"], given["views"]
        users = self.last(self._intents(**plain), plain["there"])
        scores = (users @ self.model.item_embedding.weight[1:].T).amax(1)
        total = F.cross_entropy(scores, given["targets"] - 1)
        found = self._intents(**views) * views["there"][..., None, None]
        # Intent k of the first view and that of the second are a pair.
        rows = found.transpose(1, 2).unflatten(0, (-1, 2)).transpose(1, 2).flatten(0, 2).flatten(1)
        return total + self.model.config.lambda_contrast * pairs_loss(rows)


class PaddedGlobalDiff(PaddedPlugin):
    """The second stage, ``normalise="sign"``."""

    def given(self, batch: Batch, exact: bool = False) -> Given:
        model, width = self.model, self.model.config.num_items + 1
        draws = rng.at_place(model.noise_seed)
        row = torch.arange(batch.users.shape[0], device=draws.device)
        word = rng.words(draws, row, rng.STREAM_DIFFUSION_STEP, 0)
        steps, chance = model.steps.draw(rng.to_uniform(word, torch.float64))
        x0 = model.related.drawn(batch, draws).to(model.alpha_bar.dtype)
        noise = rng.wide_normals(draws, row, width, x0.dtype, rng.STREAM_DIFFUSION_NOISE)
        return {
            "plain": self.histories(batch.item_ids, batch.offsets), "targets": batch.targets,
            "steps": steps, "chance": chance, "x0": x0, "noise": noise if exact else None,
        }  # fmt: skip

    def _norm(self, x: Tensor, part: Any) -> Tensor:
        return F.batch_norm(x, None, None, part.weight, part.bias, True)

    def _block(self, x: Tensor, part: Any) -> Tensor:
        for conv, norm, p in zip(
            (part.first, part.second), (part.first_norm, part.second_norm), part.dropouts,
            strict=True,
        ):
            x = F.leaky_relu(F.dropout(self._norm(conv(x), norm), p, self.training))
        return x

    def forward(self, given: Given) -> Tensor:
        part, plain = self.model.approximator, given["plain"]
        with torch.no_grad():
            training, self.training = self.training, False
            h = self._encode(**plain)
            self.training = training
            there = plain["there"]
            mean = (h * there[..., None]).sum(1) / there.sum(1, keepdim=True)
        noise = torch.randn_like(given["x0"]) if given["noise"] is None else given["noise"]
        steps = given["steps"]
        x = noised(given["x0"], noise, self.model.alpha_bar[steps][:, None])
        read = x.sign() @ part.read + part.read_bias
        told = torch.cat([read, mean, self.last(h, there)], 1)
        told = F.dropout(told, part.dropout, self.training)
        step = diffrec_embedding(steps, STEP_SIZE).to(told.dtype)
        image = part.paint(torch.cat([told, step], 1)).view(-1, 1, part.side, part.side)
        net = part.image
        wide = self._block(image, net.inward)
        deep = self._block(F.leaky_relu(net.down(wide)), net.inner)
        deep = net.up(F.interpolate(deep, scale_factor=2.0, mode="nearest"))
        image = torch.sigmoid(net.last(self._block(torch.cat([deep, wide], 1), net.outward)))
        logits = F.linear(part.hidden(image.flatten(1)), part.write, part.write_bias)[:, 1:]
        lost = F.cross_entropy(logits, given["targets"] - 1, reduction="none")
        return (lost / given["chance"]).mean()


class PaddedDiffDiv(PaddedPlugin):
    """``loss="full_ce"``."""

    def given(self, batch: Batch, exact: bool = False) -> Given:
        model, config = self.model, self.model.config
        draws = rng.at_place(model.noise_seed)
        row = torch.arange(batch.users.shape[0], device=draws.device)
        index = rng.element_index(row.shape[0], config.hidden_size, draws)
        picked, dropped = (
            rng.words(draws, row, rng.STREAM_DIFFUSION_STEP, level) for level in (0, 1)
        )
        noise, latent = (
            rng.normal_levels(draws, index, 1, model.nothing.dtype, stream)[0] if exact else None
            for stream in (rng.STREAM_DIFFUSION_NOISE, rng.STREAM_LATENT)
        )
        return {
            "plain": self.histories(batch.item_ids, batch.offsets), "targets": batch.targets,
            "steps": rng.below(picked, config.diffusion_steps), "noise": noise, "latent": latent,
            "alone": dropped < rng.dropout_threshold(config.guidance_dropout),
        }  # fmt: skip

    def forward(self, given: Given) -> Tensor:
        model, config, plain = self.model, self.model.config, given["plain"]
        state = self.last(self._encode(**plain), plain["there"])
        noise, latent = (
            torch.randn_like(state) if given[name] is None else given[name]
            for name in ("noise", "latent")
        )
        guidance, mean, log_variance = model.guidance(state, latent)
        guidance = torch.where(given["alone"][:, None], model.nothing, guidance)
        x0 = model.item_embedding.weight[given["targets"]].detach()
        x = noised(x0, noise, model.alpha_bar[given["steps"]][:, None])
        found = model.denoiser(x, guidance, given["steps"])
        logits = (found @ model.item_embedding.weight.T)[:, 1:]
        kl = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).mean()
        total = F.cross_entropy(logits, given["targets"] - 1) + model.kl_weight * kl
        return total + config.lambda_mse * F.mse_loss(found, x0)


def _bce(h: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return F.softplus(-(h * positive).sum(-1)) + F.softplus((h * negative).sum(-1))
