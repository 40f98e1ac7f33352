"""What ADARec tells of itself: depths, gates, and the parts of Eq. 12."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ... import ops, ragged
from ...data import EvaluationBatch
from ..base import Diagnostics, Label, LossOutput, Observer

if TYPE_CHECKING:
    from .parts import Parts

_PARTS = ("rec", "deno", "cont", "expl")
_SCALARS = (
    "loss_rec", "loss_deno", "loss_cont", "loss_expl", "loss", "gradient_norm",
    "depth_entropy", "denoising_error",
)  # fmt: skip
_LABELS = {
    "rec": Label(r"$\mathcal{L}_{rec}$, cross entropy (Eq. 13)", "nats"),
    "deno": Label(r"$\mathcal{L}_{deno}$, squared error of the noise", "share of variance"),
    "cont": Label(r"$\mathcal{L}_{cont}$, InfoNCE (Eq. 6)", "nats"),
    "expl": Label(r"$\mathcal{L}_{expl}$, negative depth entropy", "nats"),
}


class ADARecDiagnostics(Diagnostics):
    """Sums of an epoch: float64 ``[8 + 3 (T + 1)]``: losses by ``parts`` and in all, gradient norm,
    depth entropy and denoising error, each weighted by examples; examples of each depth; sums of
    the gate of each level over the examples that reach it; their number; and of N > 2 experts such
    sums of the gates of all but the fine one, (N - 1) (T + 1)."""

    parts: tuple[str, ...] = _PARTS

    def labels(self) -> dict[str, Label]:
        config = self.model.config
        there = {
            "deno": config.diffusion,
            "cont": config.lambda_cont != 0 and config.augmented,
            "expl": config.depth == "adaptive",
        }
        found = {}
        for name, label in _LABELS.items():
            if there.get(name, True):
                weight = "" if name == "rec" else f", weight {getattr(config, f'lambda_{name}'):g}"
                found[name] = label._replace(title=label.title + weight)
        return found

    @property
    def size(self) -> int:
        return self._common + self._further * int(self.model.config.num_levels)

    @property
    def _common(self) -> int:
        """What there is with any number of experts."""
        return len(_SCALARS) + 3 * int(self.model.config.num_levels)

    @property
    def _further(self) -> int:
        """Experts with gates of their own beside the fine one's."""
        return _further(self.model)

    def add(
        self,
        sums: Tensor,
        bad_step: Tensor,
        bad_parts: Tensor,
        output: LossOutput,
        gradient_norm: Tensor,
        examples: int,
        step: int | Tensor,
    ) -> Tensor:
        values = [
            *(output.parts[name] for name in _PARTS), output.total, gradient_norm,
            output.depth_entropy, output.denoising_error,
        ]  # fmt: skip
        # A kernel where there is one; else plain PyTorch, which needs no op around it.
        fused = ops.has_kernel("epoch_statistics", "auto", sums.device.type)
        common = self._common
        if self._further:
            gates, depth = output.further_gates.double(), output.depth.detach()
            reached = ragged.reached_levels(depth, gates.shape[1]).sum(1)
            sums[common:] += (torch.nan_to_num(gates) * reached).flatten()
            sums = sums[:common]
        return ops.epoch_statistics(
            sums, bad_step, bad_parts, values, output.depth.detach(), output.gate, step,
            backend="auto" if fused else "reference",
        )  # fmt: skip

    def means(self, sums: list[float], examples: int) -> dict[str, Any]:
        """``gate`` holds None at levels that no example reached, and so do ``gate_1``, ... of
        further experts."""
        result: dict[str, Any] = {
            name: value / examples for name, value in zip(_SCALARS, sums, strict=False)
        }
        levels = self.model.config.num_levels
        rest = sums[len(_SCALARS) :]
        counts, gates, reached = (rest[k * levels : (k + 1) * levels] for k in range(3))
        result["mean_depth"] = sum(k * count for k, count in enumerate(counts)) / examples
        result["depth_share"] = [count / examples for count in counts]
        result["gate"] = [
            total / number if number else None for total, number in zip(gates, reached, strict=True)
        ]
        for expert in range(self._further):
            gates = rest[(3 + expert) * levels : (4 + expert) * levels]
            result[f"gate_{expert + 1}"] = [
                total / number if number else None
                for total, number in zip(gates, reached, strict=True)
            ]
        return result

    def observer(self) -> DepthObserver:
        return DepthObserver(self.model)

    def intents(self, values: Tensor, offsets: Tensor) -> dict[str, Tensor]:
        found = self.model.representations((values, offsets))
        return {"coarse/theme": found["coarse"], "fine/subtheme": found["fine"]}


def _further(model: Any) -> int:
    config = model.config
    return config.num_experts - 1 if config.num_experts > 2 else 0


class BesideDiagnostics(ADARecDiagnostics):
    """Of an ADARec whose encoder has losses of its own: their sums lie behind the others.

    Args:
        model: an ADARec.
        labels: of the encoder's losses, by their names there.
        weights: of each in the total.
    """

    def __init__(
        self, model: Any, labels: Mapping[str, Label], weights: Mapping[str, float]
    ) -> None:
        super().__init__(model)
        self._beside = {
            f"aux_{name}": label._replace(title=f"{label.title}, weight {weights[name]:g}")
            for name, label in labels.items()
        }
        self.parts = (*_PARTS, *self._beside)

    def labels(self) -> dict[str, Label]:
        return {**super().labels(), **self._beside}

    @property
    def watched(self) -> tuple[str, ...]:
        return (*_PARTS, "total", "gradient norm", *self._beside)

    @property
    def size(self) -> int:
        return super().size + len(self._beside)

    def add(
        self,
        sums: Tensor,
        bad_step: Tensor,
        bad_parts: Tensor,
        output: LossOutput,
        gradient_norm: Tensor,
        examples: int,
        step: int | Tensor,
    ) -> Tensor:
        own, known = super().size, len(_PARTS) + 2
        before = bad_step < 0
        super().add(
            sums[:own], bad_step, bad_parts[:known], output, gradient_norm, examples, step
        )
        values = torch.stack([output.parts[name].double() for name in self._beside])
        not_finite = ~values.isfinite()
        bad_parts[known:].copy_(torch.where(before, not_finite, bad_parts[known:]))
        now = (bad_step < 0) & not_finite.any()
        bad_step.copy_(torch.where(now, step, bad_step))
        sums[own:] += values * examples
        return (bad_step >= 0).float()

    def means(self, sums: list[float], examples: int) -> dict[str, Any]:
        own = super().size
        found = super().means(sums[:own], examples)
        for name, value in zip(self._beside, sums[own:], strict=True):
            found[f"loss_{name}"] = value / examples
        return found


class DepthObserver(Observer):
    """Depths and gates that users were scored with."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        parts: Parts = model
        levels, device = parts.config.num_levels, parts.item_embedding.weight.device
        self._counts = torch.zeros(levels, dtype=torch.float64, device=device)
        self._gates = torch.zeros(levels, dtype=torch.float64, device=device)
        self._further = torch.zeros(_further(model), levels, dtype=torch.float64, device=device)
        self._has_gates = True

    def scores(self, batch: EvaluationBatch) -> Tensor:
        output = self.model((batch.item_ids, batch.offsets), return_gates=True)
        ones = torch.ones_like(output.depth, dtype=torch.float64)
        self._counts.index_add_(0, output.depth, ones)
        if output.gates is None:
            self._has_gates = False
        else:
            levels = torch.arange(output.gates.shape[0], device=output.depth.device)
            reached = levels[:, None] <= output.depth
            self._gates += torch.where(reached, output.gates.double(), 0.0).sum(1)
            if output.expert_gates is not None:
                further = output.expert_gates[1:].double()
                self._further += torch.where(reached, further, 0.0).sum(-1)
        scores: Tensor = self.model.score(output.user)
        return scores

    def sums(self) -> list[Tensor]:
        return [self._counts, self._gates, *self._further]

    def read(self) -> dict[str, Any]:
        """``mean_depth``; ``depth_share`` ``[T+1]``, share of users at each depth; ``gate``
        ``[T+1]``, mean g_k over the users that reach level k, None where none does, or None
        without HP-MoE."""
        counts = self._counts.cpu()
        users = counts.sum()
        reached = counts.flip(0).cumsum(0).flip(0).tolist()

        def means(sums: Tensor) -> list[float | None]:
            return [
                total / number if number else None
                for total, number in zip(sums.tolist(), reached, strict=True)
            ]

        return {
            "mean_depth": float((counts * torch.arange(counts.numel())).sum() / users),
            "depth_share": (counts / users).tolist(),
            "gate": means(self._gates) if self._has_gates else None,
            **{f"gate_{n}": means(sums) for n, sums in enumerate(self._further, 1)},
        }

    def notes(self) -> list[str]:
        found = self.read()
        shares = "  ".join(f"{k}: {share:.0%}" for k, share in enumerate(found["depth_share"]))
        lines = [f"depth, share of users   {shares}  (mean {found['mean_depth']:.2f})"]
        told = {"gate": "the fine expert"}
        told |= {f"gate_{n}": f"expert {n}" for n in range(1, len(self._further) + 1)}
        for name, expert in told.items():
            if found[name] is not None:
                gates = "  ".join(
                    f"{k}: {'-' if gate is None else f'{gate:.2f}'}"
                    for k, gate in enumerate(found[name])
                )
                lines.append(f"gate to {expert:15} {gates}")
        return lines
