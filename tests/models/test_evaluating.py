"""An answer depends on the user alone: not on the module's mode, other threads, or the batch."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adarec_fast import ADARec, Recommender, Split, synthetic
from adarec_fast.export.graph import RankingModel
from adarec_fast.models.evaluating import evaluating
from adarec_fast.models.sasrec.model import SASRec
from adarec_fast.ranking.evaluation import evaluate
from adarec_fast.ranking.recommender import exportable

SHAPE: dict[str, Any] = {
    "num_items": 60, "hidden_size": 16, "num_layers": 1, "max_length": 8, "dropout": 0.5,
}  # fmt: skip
HISTORIES = [[1 + (7 * user + 3 * place) % 60 for place in range(1 + user % 9)]
             for user in range(12)]  # fmt: skip


def adarec(**options: Any) -> ADARec:
    model = ADARec(**{**SHAPE, "max_depth": 2, **options})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


class Encoder(nn.Module):
    """Dropout and a BatchNorm read their own flags, wherever they lie."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(16, 16, batch_first=True)
        self.norm = nn.BatchNorm1d(16)
        self.rest = nn.ModuleList([nn.Dropout(0.5), torch.jit.script(nn.Dropout(0.5))])

    def forward(self, x: Tensor) -> Tensor:
        x = self.gru(x)[0]
        x = self.norm(x.transpose(1, 2)).transpose(1, 2)
        for part in self.rest:
            x = part(x)
        return x


def answers(model: Any) -> dict[str, Callable[[], Tensor]]:
    """Everything that answers in evaluation mode, whatever the module's."""
    data = synthetic(num_users=12, num_items=60, seed=1)
    packed = torch.tensor([5, 9, 2, 7]), torch.tensor([0, 3, 4])
    found = {
        "recommend": lambda: model.recommend(HISTORIES, k=5)[1],
        "recommender": lambda: Recommender(model).recommend(HISTORIES, k=5).scores,
        "evaluate": lambda: evaluate(model, Split(data)).ranks,
        "exportable": lambda: exportable(model, k=5)(*packed)[1],
    }
    if isinstance(model, ADARec):
        found["representations"] = lambda: model.representations(packed)["fine"]
    if not (isinstance(model, ADARec) and hasattr(model.backbone, "module")):
        ranking = RankingModel(model, k=5, exclude_seen=False)
        found["graph"] = lambda: ranking(torch.tensor([[5, 9, 2]]))[1]
    return found


@pytest.mark.parametrize("kind", ["adarec", "sasrec", "foreign"])
@torch.no_grad()
def test_no_answer_depends_on_the_mode_or_changes_it(kind: str) -> None:
    model: Any
    if kind == "sasrec":
        model = SASRec(**SHAPE)
    else:
        model = adarec(**({"backbone": Encoder()} if kind == "foreign" else {}))
    model.eval()
    expected = {name: answer() for name, answer in answers(model).items()}
    for frozen in (False, True):
        model.train()
        if frozen:  # as a part that is not trained on is kept
            model.backbone.eval()
        modes = {name: part.training for name, part in model.named_modules()}
        for name, answer in answers(model).items():
            assert torch.equal(answer(), expected[name]), name
        assert {name: part.training for name, part in model.named_modules()} == modes
    # The other way about: the whole in evaluation mode, a part of it not.
    model.eval().backbone.train()
    for name, answer in answers(model).items():
        assert torch.equal(answer(), expected[name]), name


@torch.no_grad()
def test_threads_do_not_disturb_each_other_nor_a_training_module() -> None:
    model = adarec()
    expected = [model.recommend([history], k=5)[1] for history in HISTORIES]
    recommender, wrong, flags = Recommender(model), [], []

    def ask() -> None:
        for _ in range(5):
            for history, scores in zip(HISTORIES, expected, strict=True):
                if not torch.equal(model.recommend([history], k=5)[1], scores):
                    wrong.append(history)
                if not torch.equal(recommender.recommend([history], k=5).scores, scores):
                    wrong.append(history)
                flags.append(model.training)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(flags)


@torch.no_grad()
def test_a_recommender_keeps_evaluating_when_training_goes_on() -> None:
    model = adarec().eval()
    recommender = Recommender(model)
    before = recommender.recommend(HISTORIES, k=5)
    model.train()
    assert torch.equal(recommender.recommend(HISTORIES, k=5).scores, before.scores)
    model.item_embedding.weight.mul_(2.0)
    assert not torch.equal(recommender.recommend(HISTORIES, k=5).scores, before.scores)


def test_a_view_shares_weights_hooks_and_repeated_modules() -> None:
    shared = nn.Linear(2, 2)
    module = nn.Sequential(shared, nn.Dropout(0.9), shared)
    called = []
    module.register_forward_hook(lambda *_: called.append(1))
    view = evaluating(module)
    assert view[0] is view[2]
    assert view[0].weight is shared.weight
    shared.weight = nn.Parameter(torch.ones(2, 2))
    assert view[0].weight is shared.weight
    view(torch.ones(1, 2))
    assert called == [1]
    assert list(view.state_dict()) == list(module.state_dict())


@pytest.mark.parametrize("options", [{}, {"fused_trajectory": True}], ids=str)
@torch.no_grad()
def test_sampled_noise_is_the_users_whatever_the_batch(options: dict[str, Any]) -> None:
    model = adarec(evaluation_samples=2, **options)
    whole = model.recommend(HISTORIES, k=5)
    order = torch.randperm(len(HISTORIES))
    shuffled = model.recommend([HISTORIES[i] for i in order.tolist()], k=5)
    torch.testing.assert_close(shuffled[1], whole[1][order])
    for row, history in enumerate(HISTORIES):
        alone = model.recommend([history], k=5)
        torch.testing.assert_close(alone[1][0], whole[1][row])
        assert torch.equal(alone[0][0], whole[0][row])
    ranks = [
        evaluate(model, Split(synthetic(num_users=40, num_items=60)), batch_size=size).ranks
        for size in (1, 7, 40)
    ]
    assert torch.equal(ranks[0], ranks[1])
    assert torch.equal(ranks[0], ranks[2])
