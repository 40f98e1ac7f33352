"""The op registry: who runs what and why, and the memory that tests poison."""

from __future__ import annotations

import pytest
import torch
from helpers import Backend, OpCase
from helpers_accuracy import assert_close_to_float64
from helpers_suite import compile_counter

import adarec_fast.ops as ops
from adarec_fast.ops import BACKENDS, OPS, BackendError, backend_report, choose, explain
from adarec_fast.ops._library import implementation, unavailable

EVERY_OP = {
    "hda_trajectory", "encoder_layer", "mlp_expert", "level_pool", "depth_controller",
    "moe_aggregate", "level_infonce", "linear_cross_entropy", "score_topk", "dropout",
    "fused_trajectory", "embedding", "objective", "epoch_statistics", "adam", "gradient_norm",
    "level_biases", "mlp_expert_pooled", "choose_depth", "length_bias",
    "local_path", "memory_topk", "wide_normals",
}  # fmt: skip
WITHOUT_BACKWARD = {
    "dropout", "score_topk", "memory_topk", "epoch_statistics", "adam", "gradient_norm",
    "wide_normals",
}  # fmt: skip
# All others are functional. These change what is there: sums that live as long as an epoch, weights
# and moments, a counter, and, backward, the catalogue's gradient.
IN_PLACE = {"epoch_statistics_fwd", "adam_fwd", "gradient_norm_fwd", "embedding_bwd"}


def test_every_op_is_defined() -> None:
    assert set(OPS) == EVERY_OP
    for name in EVERY_OP:
        assert callable(getattr(ops, name))
        forward = getattr(torch.ops.adarec_fast, f"{name}_fwd").default
        assert forward._schema.arguments[-1].name == "backend"
        assert hasattr(torch.ops.adarec_fast, f"{name}_bwd") == (name not in WITHOUT_BACKWARD)
        for direction in ("fwd", "bwd")[: 1 + (name not in WITHOUT_BACKWARD)]:
            schema = getattr(torch.ops.adarec_fast, f"{name}_{direction}").default._schema
            writes = any(argument.is_write for argument in schema.arguments)
            assert writes == (f"{name}_{direction}" in IN_PLACE)


@pytest.mark.parametrize("name", sorted(EVERY_OP))
def test_packed_and_reference_always_run(name: str) -> None:
    for device in ("cpu", "cuda"):
        assert OPS[name].backends(device)[-2:] == ("packed", "reference")
        for backend in ("packed", "reference"):
            assert unavailable(name, backend, device) is None
            assert choose(name, backend, device) == backend
    assert callable(implementation(name, "packed").fwd)


def test_an_argument_is_obeyed_or_refused() -> None:
    assert explain("dropout", "packed") == ("packed", "asked for")
    with pytest.raises(BackendError, match="backend='fast' is unknown; choose from auto, refer"):
        choose("dropout", "fast", "cpu")
    with pytest.raises(BackendError, match="'cuda' cannot run dropout on cpu: not written for cpu"):
        choose("dropout", "cuda", "cpu")
    with pytest.raises(BackendError, match="has no code behind the op dropout"):
        implementation("dropout", "reference")


def test_the_variable_speaks_where_no_argument_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAREC_FAST_BACKEND", "reference")
    assert explain("level_pool") == ("reference", "ADAREC_FAST_BACKEND is set")
    assert explain("level_pool", "packed") == ("packed", "asked for")
    assert {row["backend"] for row in backend_report()} == {"reference"}
    monkeypatch.setenv("ADAREC_FAST_BACKEND", "wrong")
    with pytest.raises(BackendError, match="backend='wrong' is unknown"):
        explain("level_pool")


def test_an_op_that_lacks_the_variables_backend_takes_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("ADAREC_FAST_BACKEND", "cuda")
    choice = explain("score_topk")
    assert choice.backend in OPS["score_topk"].cpu
    assert choice.reason.startswith("cuda not written for cpu")


def test_the_report_names_every_op_once() -> None:
    rows = backend_report()
    assert [row["op"] for row in rows] == list(OPS)
    for row in rows:
        assert row["backend"] in row["available"]
        assert set(row["available"]) <= set(BACKENDS)
        assert row["reason"]
    reasons = {row["op"]: row["reason"] for row in rows}
    assert "fused_trajectory=True" in reasons["fused_trajectory"]


def test_an_op_without_gradient_says_so() -> None:
    with pytest.raises(BackendError, match="no gradient"):
        implementation("score_topk", "packed").bwd()


def test_the_choice_is_fixed_in_a_compiled_graph() -> None:
    counter = compile_counter("eager")

    def half(x: torch.Tensor, seed: torch.Tensor) -> torch.Tensor:
        return ops.dropout(x, p=0.5, seed=seed, stream=2, backend="packed")

    torch._dynamo.reset()
    x, seed = torch.randn(4, 6), torch.tensor([3])
    assert torch.equal(torch.compile(half, fullgraph=True, backend=counter)(x, seed), half(x, seed))
    (graph,) = counter.graphs
    calls = [node for node in graph.graph.nodes if "dropout" in str(node.target)]
    assert calls, graph.graph


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["reference", "packed"])
def test_inductor_gives_the_same_loss(backend: str) -> None:
    """The other compile tests stop before code generation, which takes its time."""

    def step(hidden: torch.Tensor, items: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return ops.linear_cross_entropy(hidden, items, targets, backend=backend)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for rows in (5, 9):
        gradients = []
        for run in (step, compiled):
            generator = torch.Generator().manual_seed(rows)
            hidden = torch.randn(rows, 8, generator=generator).requires_grad_()
            items = torch.randn(31, 8, generator=generator).requires_grad_()
            targets = torch.randint(0, 31, (rows,), generator=generator)
            run(hidden, items, targets).backward()
            gradients.append((hidden.grad, items.grad))
        for want, got in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.usefixtures("poisoned")
def test_poisoned_memory_is_poisoned() -> None:
    like = torch.zeros(3)
    for memory in (torch.empty(3), torch.empty_like(like), like.new_empty(3),
                   torch.empty_strided((3,), (1,)), torch.empty(3, dtype=torch.bfloat16)):
        assert memory.isnan().all()
    assert (torch.empty(3, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()


class TestAccuracyRule:
    """The rule itself must be able to fail."""

    gold = torch.tensor([1.0, -2.0], dtype=torch.float64)

    def test_accepts_twice_the_references_error(self) -> None:
        assert_close_to_float64(self.gold + 2e-4, self.gold + 1e-4, self.gold, "x")

    def test_rejects_more(self) -> None:
        with pytest.raises(AssertionError, match=r"x: off by 3\.000e-04"):
            assert_close_to_float64(self.gold + 3e-4, self.gold + 1e-4, self.gold, "x")

    def test_rejects_more_than_roundings_where_the_reference_is_exact(self) -> None:
        assert_close_to_float64(self.gold + 1e-6, self.gold, self.gold, "x")
        with pytest.raises(AssertionError, match="off by"):
            assert_close_to_float64(self.gold + 3e-6, self.gold, self.gold, "x")

    def test_rejects_nan_and_other_shapes(self) -> None:
        with pytest.raises(AssertionError, match="not finite"):
            assert_close_to_float64(self.gold * float("nan"), self.gold, self.gold, "x")
        with pytest.raises(AssertionError, match="shape"):
            assert_close_to_float64(self.gold[:1], self.gold, self.gold, "x")


def test_unreadable_parts_of_a_case_are_nan() -> None:
    mask = torch.tensor([True, False])
    case = OpCase(torch.neg, {"x": torch.ones(2, 3)}, ("x",), readable={"x": mask})
    x = case.tensors(torch.float32)["x"]
    assert x[0].eq(1).all()
    assert x[1].isnan().all()
    assert Backend("dropout", "cpp", "cpu").dtypes == (torch.float32,)
