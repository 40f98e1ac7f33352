"""The choice of products: where it holds, who sets it, and what runs of earlier versions say."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from adarec_fast import ADARec, Recommender, TrainConfig
from adarec_fast.cli import app
from adarec_fast.config import ConfigError, Precision, training_precision
from adarec_fast.data import Batch
from adarec_fast.models.adarec.config import ADARecConfig
from adarec_fast.ops._autocast import Autocast
from adarec_fast.precision import chosen, computing, of_float32, ranking
from adarec_fast.training import load_run
from adarec_fast.training.optimization import Stepper
from adarec_fast.training.origin import describe_origin
from adarec_fast.training.values import Values, renamed

CPU = torch.device("cpu")
HISTORIES = [[1, 2, 3], [4], [5, 6, 7, 8]]


@pytest.fixture(autouse=True)
def _switch() -> Iterator[None]:
    before = torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.cuda.matmul.fp32_precision = before


def test_torchs_switch_holds_where_nothing_is_chosen() -> None:
    for switch in ("ieee", "tf32"):
        torch.backends.cuda.matmul.fp32_precision = switch
        assert (chosen(), of_float32()) == (None, switch)
        with computing("ieee", "cpu"):
            assert (chosen(), of_float32()) == ("ieee", "ieee")
            with computing("tf32", "cpu"), computing(None, "cpu"):
                assert of_float32() == "tf32"
            assert of_float32() == "ieee"
        assert chosen() is None


def test_bfloat16_is_autocast_but_not_for_scores() -> None:
    with computing("bf16", "cpu"):
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        assert chosen() is None
    assert not torch.is_autocast_enabled("cpu")
    with ranking("bf16", "cpu"):
        assert not torch.is_autocast_enabled("cpu")
        assert of_float32() == "ieee"
    with ranking("tf32", "cpu"):
        assert of_float32() == "tf32"


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("precision", ["ieee", "tf32", None])
def test_a_backward_pass_sees_what_its_forward_pass_did(
    precision: Precision | None, autocast: bool
) -> None:
    """Also in another thread, where autograd runs it on a GPU."""
    with computing(precision, "cpu"), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        state = Autocast.current(torch.zeros(1))
    seen: list[Any] = []

    def backward() -> None:
        for around in (False, True):
            with torch.autocast("cpu", torch.float16, enabled=around), state.restored():
                seen.append((chosen(), torch.is_autocast_enabled("cpu")))
                if autocast:
                    assert torch.get_autocast_dtype("cpu") == torch.bfloat16
        seen.append((chosen(), torch.is_autocast_enabled("cpu")))

    thread = threading.Thread(target=backward)
    thread.start()
    thread.join()
    assert seen == [(precision, autocast)] * 2 + [(None, False)]


class _Seen(torch.autograd.Function):
    """The identity, which notes what is chosen."""

    forward_saw: ClassVar[list[Any]] = []
    backward_saw: ClassVar[list[Any]] = []

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.autocast = Autocast.current(x)
        _Seen.forward_saw.append((chosen(), torch.is_autocast_enabled("cpu")))
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        with ctx.autocast.restored():
            _Seen.backward_saw.append((chosen(), torch.is_autocast_enabled("cpu")))
        return grad


def _model(precision: Precision, **options: Any) -> ADARec:
    return ADARec(
        num_items=20, hidden_size=16, max_depth=2, max_length=8, backend="packed",
        precision=precision, **options,
    )  # fmt: skip


def _batch() -> Batch:
    values = torch.tensor([item for history in HISTORIES for item in history])
    return Batch(values, torch.tensor([0, 3, 4, 8]), torch.tensor([4, 5, 9]), torch.arange(3))


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_the_models_choice_holds_wherever_it_is_used(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = (None, True) if precision == "bf16" else (precision, False)
    model = _model(precision)
    embedding = model.item_embedding.forward
    monkeypatch.setattr(
        model.item_embedding, "forward", lambda ids: _Seen.apply(embedding(ids))
    )
    used = {
        "loss": lambda: model.train().loss(_batch()).total.backward(),
        "forward": lambda: model.eval()(torch.tensor([[1, 2, 3]])),
        "recommend": lambda: model.recommend(HISTORIES, k=3),
        "representations": lambda: model.representations((_batch()[0], _batch()[1])),
    }
    for name, use in used.items():
        _Seen.forward_saw.clear()
        _Seen.backward_saw.clear()
        use()
        assert _Seen.forward_saw == [inside], name
        assert _Seen.backward_saw == ([inside] if name == "loss" else []), name
    assert chosen() is None


@pytest.mark.parametrize("precision", ["ieee", "tf32", "bf16"])
def test_requests_are_answered_as_by_the_model(precision: Precision) -> None:
    """On a CPU, "tf32" is float32."""
    model = _model(precision).eval()
    items, scores = model.recommend(HISTORIES, k=5)
    ranking_ = Recommender(model).recommend(HISTORIES, k=5)
    assert torch.equal(ranking_.items, items)
    torch.testing.assert_close(ranking_.scores, scores)
    exact = _model("ieee").eval().recommend(HISTORIES, k=5)[1]
    assert scores.dtype == torch.float32
    assert torch.equal(scores, exact) == (precision != "bf16")


def test_it_is_saved_and_can_be_replaced(tmp_path: Path) -> None:
    _model("tf32").save_pretrained(tmp_path / "model")
    assert ADARec.from_pretrained(tmp_path / "model").config.precision == "tf32"
    other = ADARec.from_pretrained(tmp_path / "model", precision="bf16")
    assert other.config.precision == "bf16"


# ---------------------------------------------------------------------- amp, its former name


def test_amp_still_trains_in_bfloat16() -> None:
    ieee, tf32, bf16 = (
        ADARecConfig.create(num_items=5, precision=p) for p in ("ieee", "tf32", "bf16")
    )
    off, on = TrainConfig.create(), TrainConfig.create(amp="bf16")
    assert [training_precision(m, off) for m in (ieee, tf32, bf16)] == ["ieee", "tf32", "bf16"]
    assert [training_precision(m, on) for m in (ieee, bf16)] == ["bf16", "bf16"]
    with pytest.raises(ConfigError, match=r"amp='bf16' contradicts precision='tf32'"):
        training_precision(tf32, on)
    with pytest.raises(ConfigError, match="contradicts"):
        Stepper(_model("tf32"), on, CPU)


def test_on_the_command_line_amp_is_precision() -> None:
    assert renamed(Values(train={"epochs": 2})) == Values(train={"epochs": 2})
    for amp, precision in (("off", "ieee"), ("bf16", "bf16")):
        expected = Values(model={"precision": precision})
        assert renamed(Values(train={"amp": amp})) == expected
        same = Values(model={"precision": precision}, train={"amp": amp})
        assert renamed(same) == expected
    for amp, precision in (("off", "tf32"), ("bf16", "ieee")):
        with pytest.raises(ConfigError, match=f"amp={amp} contradicts precision={precision}"):
            renamed(Values(model={"precision": precision}, train={"amp": amp}))


SMALL = [
    "--set", "epochs=1", "--set", "hidden_size=16", "--set", "batch_size=1024", "--set",
    "max_depth=2", "--backend", "packed",
]  # fmt: skip


@pytest.mark.parametrize("option", ["--precision", "--amp"])
def test_train_takes_either_option(option: str, tmp_path: Path) -> None:
    folder, data = tmp_path / "run", tmp_path / "few.txt"
    data.write_text("".join(f"{u} {u} {u % 7 + 1} {u % 5 + 1} {u % 3 + 1}\n" for u in range(1, 31)))
    done = CliRunner().invoke(
        app,
        ["train", "--data", str(data), "--run-dir", str(folder), option, "bf16", *SMALL],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    run = load_run(folder)
    assert (run.model_config.precision, run.train_config.amp) == ("bf16", "off")
    assert run.model.config.precision == "bf16"


def test_both_options_are_refused_where_they_contradict(tmp_path: Path) -> None:
    options = ["--precision", "tf32", "--amp", "bf16", *SMALL]
    done = CliRunner().invoke(app, ["train", "--run-dir", str(tmp_path / "run"), *options])
    assert done.exit_code != 0
    assert "amp=bf16 contradicts precision=tf32" in " ".join(done.output.split())


def test_settings_of_runs_before_are_the_same(tmp_path: Path) -> None:
    """A run's manifest holds a hash of its settings: a new field's default must not change it."""
    (tmp_path / "config.json").write_text('{"run": "x"}')
    old = describe_origin(
        tmp_path / "config.json", ADARecConfig.create(num_items=5), TrainConfig.create(amp="bf16")
    )
    assert old["settings"] == (
        "962a1b78bedccf240aca9c79543fda1d650bb8e0e071002fd5a68c7a713734a5"
    )
