"""TI-DiffRec: a diffusion over each user's whole vector of interactions (Ma et al., AAAI 2024, on
Wang et al., SIGIR 2023), trained once and frozen.

x_0 ``[V+1]`` of a user is 0 at items not met and a weight, rising with time, at those met. x_t has
noise, and a perceptron returns x_0 of it. To tell preferences, x_0 itself is taken for x_T, and
goes back all T steps without noise.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ... import ragged
from ..blocks.gaussian import Posterior, diffrec_embedding, noised, variance_betas
from ..blocks.importance import ImportantSteps
from .told import Told

STEP_SIZE = 10  # of the steps' embedding
_DROPOUT, _FADES = 0.5, 0.99  # the learning rate falls by the latter with every epoch
_EVERY, _PATIENCE = 5, 2  # epochs between two checks, and checks without a better one
_CHECKED = 4096  # users of a check
_CUT = 10  # of its NDCG


class Histories(NamedTuple):
    """Whose preferences there are: packed training histories, and the item to validate with.

    Attributes:
        values: int64 ``[N]``.
        offsets: int64 ``[U+1]``.
        weights: float32 ``[N]``, of each interaction in x_0.
        wanted: int64 ``[U]``, a held-out item, 0 for none.
    """

    values: Tensor
    offsets: Tensor
    weights: Tensor
    wanted: Tensor

    @classmethod
    def of(cls, values: Tensor, offsets: Tensor, wanted: Tensor, least: float) -> Histories:
        """With weights evenly spaced from ``least`` to 1, in order."""
        sizes = ragged.lengths(offsets)
        owner = ragged.sequence_ids(offsets, values.shape[0])
        share = ragged.positions(offsets, values.shape[0]) / (sizes[owner] - 1).clamp(min=1)
        alone = sizes[owner] == 1
        weights = torch.where(alone, 1.0, least + (1 - least) * share.float())
        return cls(values, offsets, weights, wanted)

    def to(self, device: torch.device) -> Histories:
        """The same on a device."""
        return Histories(*(tensor.to(device) for tensor in self))

    def in_dtype(self, dtype: torch.dtype) -> Histories:
        """The same with weights of another type."""
        return self._replace(weights=self.weights.to(dtype))

    @property
    def number(self) -> int:
        """Users."""
        return self.offsets.shape[0] - 1

    def tokens(self, users: Tensor) -> tuple[Tensor, Tensor]:
        """Of some users: the row of each interaction among them, int64 ``[M]``, and its place."""
        sizes = ragged.lengths(self.offsets)[users]
        row = torch.repeat_interleave(torch.arange(users.shape[0], device=users.device), sizes)
        before = sizes.cumsum(0) - sizes
        place = torch.arange(row.shape[0], device=users.device) - before[row]
        return row, self.offsets[users][row] + place

    def x0(self, users: Tensor, num_items: int) -> Tensor:
        """``[len(users), V+1]``; of an item that came again the last weight counts."""
        row, place = self.tokens(users)
        found = self.weights.new_zeros(users.shape[0], num_items + 1)
        # Weights rise along a history: the last one is the greatest.
        at = row * (num_items + 1) + self.values[place]
        found.view(-1).scatter_reduce_(0, at, self.weights[place], "amax")
        return found


class PreferenceDiffusion(nn.Module):
    """The perceptron, in buffers: it is trained by :meth:`fit` alone, and saved with the model.

    Args:
        config: a PDRec's.
    """

    read: Tensor
    read_step: Tensor
    read_bias: Tensor
    write: Tensor
    write_bias: Tensor
    step_weight: Tensor
    step_bias: Tensor
    fitted: Tensor
    _NAMES = ("read", "read_step", "read_bias", "write", "write_bias", "step_weight", "step_bias")

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        items, hidden = config.num_items + 1, config.preference_hidden
        generator = torch.Generator().manual_seed(config.seed + 2)

        def drawn(*shape: int, ends: tuple[int, int]) -> Tensor:
            spread: float = (2 / sum(ends)) ** 0.5
            return torch.empty(shape, dtype=torch.float32).normal_(0, spread, generator=generator)

        def bias(size: int) -> Tensor:
            return torch.empty(size, dtype=torch.float32).normal_(0, 0.001, generator=generator)

        inward, outward = (items + STEP_SIZE, hidden), (hidden, items)
        # Of all items by rows, so that a run that goes on with more items keeps the old ones.
        self.register_buffer("read", drawn(items, hidden, ends=inward))
        self.register_buffer("read_step", drawn(STEP_SIZE, hidden, ends=inward))
        self.register_buffer("read_bias", bias(hidden))
        self.register_buffer("write", drawn(items, hidden, ends=outward))
        self.register_buffer("write_bias", bias(items))
        self.register_buffer(
            "step_weight", drawn(STEP_SIZE, STEP_SIZE, ends=(STEP_SIZE, STEP_SIZE))
        )
        self.register_buffer("step_bias", bias(STEP_SIZE))
        self.register_buffer("fitted", torch.zeros((), dtype=torch.int64))

    def beta(self) -> Tensor:
        """float64 ``[T]``."""
        config = self.config
        return variance_betas(
            config.diffusion_steps, config.noise_scale, config.least_noise, config.greatest_noise
        )

    def forward(self, x: Tensor, steps: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """x_0 ``[R, V+1]`` of x_t ``[R, V+1]`` at steps int64 ``[R]`` or ``[1]``."""
        w = {name: getattr(self, name) for name in self._NAMES} if weights is None else weights
        told = diffrec_embedding(steps, STEP_SIZE).to(x.dtype) @ w["step_weight"] + w["step_bias"]
        hidden = torch.tanh(x @ w["read"] + told @ w["read_step"] + w["read_bias"])
        return torch.addmm(w["write_bias"], hidden, w["write"].T)

    @torch.no_grad()
    def preferences(self, x0: Tensor, weights: dict[str, Tensor] | None = None) -> Tensor:
        """What remains of x_0 ``[R, V+1]`` after going back all T steps from x_T = x_0."""
        posterior, x = Posterior.of(self.beta()), x0
        for step in reversed(range(self.config.diffusion_steps)):
            at = torch.full((1,), step, device=x.device)
            found = self(x, at, weights)
            x = float(posterior.of_x0[step]) * found + float(posterior.of_x[step]) * x
        return x

    @torch.enable_grad()
    def fit(self, histories: Histories) -> None:
        """Train it from its beginning; a pure function of configuration, data and device.

        Draws are torch's, from a generator of its own: nothing resumes within this.
        """
        config, device, dtype = self.config, self.read.device, self.read.dtype
        histories = histories.to(device).in_dtype(dtype)
        active = ragged.lengths(histories.offsets).nonzero()[:, 0]
        checks = bool((histories.wanted > 0).any())
        generator = torch.Generator(device).manual_seed(config.seed)
        weights = {n: getattr(self, n).clone().requires_grad_() for n in self._NAMES}
        optimizer = torch.optim.AdamW(
            weights.values(), lr=config.preference_rate, weight_decay=config.preference_decay
        )
        fading = torch.optim.lr_scheduler.ExponentialLR(optimizer, _FADES)
        bar = (1 - self.beta()).cumprod(0)
        importance, bar = snr_weights(bar).to(device), bar.to(device)
        chosen = ImportantSteps(config.diffusion_steps).to(device)
        batches = -(-active.shape[0] // config.preference_batch)
        most = config.preference_epochs
        told = Told(
            f"first, a diffusion of the preferences of {active.shape[0]:,} users, at most "
            f"{most} epoch{'s' * (most > 1)} of {batches:,} steps"
        )
        best, since, kept = -1.0, 0, weights
        for epoch in range(1, config.preference_epochs + 1):
            for step in range(1, batches + 1):
                which = torch.randint(
                    active.shape[0], (config.preference_batch,), generator=generator, device=device
                )
                x0 = histories.x0(active[which], config.num_items)
                uniform = torch.rand(
                    which.shape, generator=generator, device=device, dtype=torch.float64
                )
                steps, chance = chosen.draw(uniform)
                noise = torch.randn(x0.shape, generator=generator, device=device, dtype=dtype)
                x = noised(x0, noise, bar[steps].to(dtype)[:, None])
                dropped = torch.rand(x.shape, generator=generator, device=device) < _DROPOUT
                x = torch.where(dropped, 0.0, x / (1 - _DROPOUT))
                found = self(x, steps, weights)
                losses = importance[steps] * (found - x0).square().mean(1).double()
                chosen.remember(steps, losses)
                optimizer.zero_grad()
                loss = (losses / chance).mean()
                loss.backward()
                optimizer.step()
                if told.due:
                    told.tell(
                        f"epoch {epoch} of {config.preference_epochs}, step {step} of "
                        f"{batches:,}, loss {float(loss.detach()):.4g}"
                    )
            fading.step()
            if checks and (epoch % _EVERY == 0 or epoch == config.preference_epochs):
                found_now = self.ndcg(histories, weights)
                if told.due:
                    told.tell(f"epoch {epoch}, NDCG@{_CUT} {found_now:.4f}")
                if found_now > best:
                    best, since = found_now, 0
                    kept = {name: tensor.detach().clone() for name, tensor in weights.items()}
                else:
                    since += 1
                if since >= _PATIENCE:
                    break
        with torch.no_grad():
            for name, tensor in kept.items():
                getattr(self, name).copy_(tensor)
            self.fitted.fill_(1)
        found = f", NDCG@{_CUT} {best:.4f}" if checks else ""
        told.tell(f"the diffusion is trained: {epoch} epochs in {told.seconds}{found}")

    @torch.no_grad()
    def ndcg(self, histories: Histories, weights: dict[str, Tensor]) -> float:
        """NDCG@10 of preferences for held-out items among those not met, of some users."""
        users = (histories.wanted > 0).nonzero()[:, 0]
        users = users[:: -(-users.shape[0] // _CHECKED) or 1]
        total = 0.0
        for some in users.split(self.config.preference_batch):
            x0 = histories.x0(some, self.config.num_items)
            found = self.preferences(x0, weights)
            wanted = histories.wanted[some][:, None]
            own = found.gather(1, wanted)
            found = found.masked_fill(x0 > 0, float("-inf"))
            found[:, 0] = float("-inf")
            rank = (found > own).sum(1)
            total += float(torch.where(rank < _CUT, 1 / (rank + 2.0).log2(), 0.0).sum())
        return total / max(1, users.shape[0])


def snr_weights(alpha_bar: Tensor) -> Tensor:
    """Of each step's error, float64 ``[T]``: SNR(t-1) - SNR(t) with SNR = alpha-bar / (1 -
    alpha-bar), and 1 at t = 0."""
    ratio = alpha_bar / (1 - alpha_bar)
    return torch.cat([torch.ones_like(ratio[:1]), ratio[:-1] - ratio[1:]])
