"""Schedules, the straight-through depth, positions, foreign encoders."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from adarec_fast import ADARec, ConfigError, rng
from adarec_fast.models.adarec.depth_controller import DepthController
from adarec_fast.models.adarec.diffusion import alpha_bar_schedule
from adarec_fast.models.encoders.foreign import ForeignBackbone, check_causal
from adarec_fast.models.encoders.sasrec import SASRecEncoder

VALUES = torch.tensor([3, 4, 9, 1, 2, 7])
OFFSETS = torch.tensor([0, 2, 3, 6])


@pytest.mark.parametrize("depth", [1, 4, 8, 12])
def test_respaced_schedule_is_ddpms_read_at_even_steps(depth: int) -> None:
    table = alpha_bar_schedule(depth, "respaced")
    assert table[0] == 1
    for k in range(1, depth + 1):
        product = 1.0
        for step in range(round(500 * k / depth)):
            product *= 1 - (1e-4 + (0.02 - 1e-4) * step / 999)
        assert math.isclose(float(table[k]), product, rel_tol=1e-10)
    assert abs(float(table[-1]) - 0.079) < 1e-3


@pytest.mark.parametrize("depth", [1, 4, 8])
def test_direct_schedule_is_the_product_of_even_betas(depth: int) -> None:
    table = alpha_bar_schedule(depth, "direct")
    product = 1.0
    for k in range(depth):
        beta = 1e-4 if depth == 1 else 1e-4 + (0.02 - 1e-4) * k / (depth - 1)
        product *= 1 - beta
        assert math.isclose(float(table[k + 1]), product, rel_tol=1e-12)
    assert bool((table[1:] < table[:-1]).all())


def test_bad_schedules() -> None:
    with pytest.raises(ValueError, match="max_depth=0"):
        alpha_bar_schedule(0, "direct")
    with pytest.raises(ValueError, match="cosine"):
        alpha_bar_schedule(4, "cosine")  # type: ignore[arg-type]


def test_depth_is_hard_in_value_and_soft_in_gradient() -> None:
    controller = DepthController(8, 3, 10, 0.5)
    logits = torch.randn(200, 4, dtype=torch.float64, requires_grad=True)
    seed = rng.as_seed(5)
    depth, *_, mass = controller.choose(logits, seed)
    assert torch.equal(mass, (torch.arange(4)[:, None] <= depth).double())
    noise = rng.gumbel(seed, 200, 4, torch.float64)
    assert torch.equal(depth, (logits + noise).argmax(-1))
    weight = torch.randn(4, 200, dtype=torch.float64)
    (found,) = torch.autograd.grad((mass * weight).sum(), logits)
    soft = torch.softmax((logits + noise) / 0.5, -1)
    tails = torch.stack([soft[:, k:].sum(-1) for k in range(4)])
    (expected,) = torch.autograd.grad((tails * weight).sum(), logits)
    torch.testing.assert_close(found, expected)


def test_depth_without_a_seed_is_the_argmax() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    depth, *_, mass = DepthController(8, 2, 10, 0.5).choose(logits, None)
    assert depth.tolist() == [1, 0]
    assert mass.tolist() == [[1, 1], [1, 0], [0, 0]]


def test_samples_follow_the_softmax() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0, 0.5]).expand(20_000, 4)
    depth, *_ = DepthController(8, 3, 10, 0.5).choose(logits, rng.as_seed(1))
    share = torch.bincount(depth, minlength=4) / 20_000
    torch.testing.assert_close(share, torch.softmax(logits[0], 0), rtol=0, atol=0.015)


def test_positions_count_from_the_end() -> None:
    model = ADARec(num_items=9, hidden_size=8, num_layers=0, max_length=5).eval()
    encoder = model.backbone
    assert isinstance(encoder, SASRecEncoder)
    with torch.no_grad():
        encoder.position.weight.copy_(torch.arange(5.0)[:, None].expand(5, 8) ** 2)
        encoder.position.weight += torch.linspace(0, 1, 8)
    embedded = torch.zeros(6, 8)
    out = encoder(embedded, OFFSETS, seed=None, backend="packed")
    table = torch.nn.functional.layer_norm(encoder.position.weight, (8,), eps=1e-5)
    assert torch.allclose(out, table[torch.tensor([1, 0, 0, 2, 1, 0])], atol=1e-5)


class PaddedGRU(nn.Module):
    """A small foreign encoder that takes embeddings and returns [B, L, D]."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gru = nn.GRU(size, size, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, D] to [B, L, D]."""
        return self.gru(x)[0]


class JaggedIds(nn.Module):
    """A foreign encoder with item embeddings of its own, on packed ids."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.table = nn.Embedding(50, size)

    def forward(self, item_ids: Tensor, offsets: Tensor, lengths: Tensor) -> Tensor:
        """[N] to [N, D]."""
        assert torch.equal(offsets.diff(), lengths)
        return self.table(item_ids)


class LikeHuggingFace(nn.Module):
    """An encoder with the signature of ``transformers.GPT2Model``: embeddings by their name, a
    mask that is 1 at tokens, and an object around the states."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(size, 2, 32, dropout=0.0, batch_first=True)

    def forward(
        self, input_ids: Tensor | None = None, past_key_values: object = None,
        attention_mask: Tensor | None = None, position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None, use_cache: bool | None = None, **rest: object,
    ) -> SimpleNamespace:  # fmt: skip
        """[B, L, D] to [B, L, D]."""
        assert input_ids is None
        assert use_cache is False
        assert not rest
        assert attention_mask is not None
        assert attention_mask.dtype == torch.int64
        length = inputs_embeds.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool).triu(1)
        states = self.layer(inputs_embeds, causal, attention_mask == 0)
        return SimpleNamespace(last_hidden_state=states, past_key_values=None)


def _foreign(name: str) -> nn.Module:
    torch.manual_seed(0)
    if name == "transformer":
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        return nn.TransformerEncoder(layer, 1)
    return {
        "gru module": lambda: PaddedGRU(16),
        "nn.GRU": lambda: nn.GRU(16, 16, batch_first=True),
        "jagged ids": lambda: JaggedIds(16),
        "inputs_embeds": lambda: LikeHuggingFace(16),
    }[name]()


@pytest.mark.parametrize(
    "name", ["gru module", "nn.GRU", "transformer", "jagged ids", "inputs_embeds"]
)
def test_foreign_encoders(name: str) -> None:
    encoder = _foreign(name)
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    model = ADARec(num_items=40, hidden_size=16, max_length=6, max_depth=2, backbone=encoder)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())
    out = model((VALUES, OFFSETS), targets=torch.tensor([5, 6, 7]))
    assert out.user.shape == (3, 16)
    assert out.losses is not None
    out.losses.total.backward()
    for key, parameter in encoder.named_parameters():
        assert parameter.grad is not None, key
        assert float(parameter.grad.abs().sum()) > 0, key
    model.eval()
    together = model((VALUES, OFFSETS)).user
    alone = model((VALUES[:2], OFFSETS[:2])).user
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["transformer", "inputs_embeds"])
def test_padding_takes_no_part_in_a_foreign_transformer(name: str) -> None:
    model = ADARec(num_items=40, hidden_size=16, max_length=6, backbone=_foreign(name))
    wide = ADARec(num_items=40, hidden_size=16, max_length=30, backbone=_foreign(name))
    a = model.backbone(VALUES, model.item_embedding(VALUES), OFFSETS)
    b = wide.backbone(VALUES, model.item_embedding(VALUES), OFFSETS)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (nn.Linear(16, 8), r"backbone returned \[3, 6, 8\]"),
        (nn.Flatten(0, 1), r"backbone returned 18 rows for 6 tokens"),
    ],
)
def test_misfitting_encoders_are_named(encoder: nn.Module, message: str) -> None:
    model = ADARec(num_items=40, hidden_size=16, max_length=6, backbone=encoder)
    with pytest.raises(ValueError, match=message):
        model((VALUES, OFFSETS))


def test_an_encoder_that_asks_for_what_it_cannot_get_is_refused() -> None:
    class Asking(nn.Linear):
        def forward(self, embeddings: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
            return super().forward(embeddings)

    with pytest.raises(ValueError, match="forward asks for valid, which nothing here gives it"):
        ADARec(num_items=40, hidden_size=16, backbone=Asking(16, 16))


def test_time_major_recurrent_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_first=True"):
        ADARec(num_items=40, hidden_size=16, backbone=nn.GRU(16, 16))


class Ahead(nn.Module):
    """Gives each place the mean over the places around it."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.dropout = nn.Dropout(0.5)

    def forward(self, embedded: torch.Tensor) -> torch.Tensor:
        padded = nn.functional.pad(embedded, (0, 0, self.before, self.after))
        return self.dropout(padded.unfold(1, self.before + self.after + 1, 1).mean(-1))


class OfIds(nn.Module):
    """Looks ahead in the ids."""

    def __init__(self, shift: int) -> None:
        super().__init__()
        self.items, self.shift = nn.Embedding(41, 16), shift

    def forward(self, item_ids: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.items(item_ids.roll(-self.shift, 1))
        return found


def _layer(masked: bool) -> nn.Module:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.TransformerEncoder(
                nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1
            )

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.inner(x, mask=mask if masked else None)
            return found

    return Plain()


LOOKING = {
    "one place": lambda: Ahead(3, 1), "far": lambda: Ahead(0, 5), "ids": lambda: OfIds(1),
    "both directions": lambda: nn.GRU(16, 8, batch_first=True, bidirectional=True),
    "no mask": lambda: _layer(False),
}  # fmt: skip
CAUSAL = {
    "before": lambda: Ahead(3, 0), "ids": lambda: OfIds(0), "mask": lambda: _layer(True),
    "gru": lambda: nn.GRU(16, 16, batch_first=True),
}  # fmt: skip


@pytest.mark.parametrize("kind", LOOKING)
def test_an_encoder_that_looks_ahead_cannot_predict_every_place(kind: str) -> None:
    shape = {"num_items": 40, "hidden_size": 16, "max_length": 9, "max_depth": 1}
    with pytest.raises(ConfigError, match=r'backbone looks ahead: .*supervision="all"'):
        ADARec(**shape, supervision="all", backbone=LOOKING[kind]())
    ADARec(**shape, supervision="prefix", backbone=LOOKING[kind]())


@pytest.mark.parametrize("kind", CAUSAL)
@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_causal_encoder_passes_and_nothing_is_changed(
    kind: str, length: int, tmp_path: Path
) -> None:
    backbone = CAUSAL[kind]()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    state = torch.random.get_rng_state()
    foreign = ForeignBackbone(backbone, 16, length)
    check_causal(foreign, 40)
    check_causal(foreign, 1)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert backbone.training
    assert all(torch.equal(before[name], now) for name, now in backbone.state_dict().items())
    shape = {"num_items": 40, "hidden_size": 16, "max_length": length, "supervision": "all"}
    model = ADARec(**shape, backbone=backbone)
    model.save_pretrained(tmp_path / "model")
    again = ADARec.from_pretrained(tmp_path / "model", backbone=CAUSAL[kind]())
    assert torch.equal(again.item_embedding.weight, model.item_embedding.weight)
