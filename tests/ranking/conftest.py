"""The small shop whose recommendations are asked for, and every kind of model of it."""

from __future__ import annotations

import pytest
import torch
from helpers_questions import ITEMS, KINDS, USERS, Given, all_scores, small_model

from adarec_fast import InteractionData, Recommender
from adarec_fast.data import Vocabulary


@pytest.fixture(scope="session")
def data() -> InteractionData:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(3, 9, (USERS,), generator=generator).tolist()
    drawn = torch.randint(1, ITEMS + 1, (sum(sizes),), generator=generator).split(sizes)
    vocabulary = Vocabulary([f"sku-{n}" for n in range(1, ITEMS + 1)], 1)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    users = Vocabulary([f"u{n}" for n in range(USERS)], 0)
    return InteractionData.from_flat(torch.cat(drawn), offsets, vocabulary, users, "small")


@pytest.fixture(scope="session", params=KINDS)
def given(request: pytest.FixtureRequest, data: InteractionData) -> Given:
    torch.manual_seed(0)
    model = small_model(request.param, data)
    histories = [data.sequence(user).tolist() for user in range(9)]
    return Given(model, Recommender(model, batch_size=4), histories, all_scores(model, histories))
