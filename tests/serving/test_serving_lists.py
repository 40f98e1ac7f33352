"""The service's lists: several users at once, items to choose from, items that are similar."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi_offline", reason="the extra [serve] is not installed")

import httpx
from helpers_serving import connected, error_of, make_data, make_model, make_run, make_service

from adarec_fast import Recommender
from adarec_fast.serving.batcher import Answer, Job, rank
from adarec_fast.serving.errors import RequestError
from adarec_fast.serving.requests import read_body

DATA = make_data()
ALLOW = DATA.items.ids[::3]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("serving") / "run"
    make_run(path)
    return path


@pytest.fixture(scope="module")
def client(folder: Path) -> Iterator[httpx.Client]:
    with connected(make_service(folder, max_users=4, max_allow=20)) as made:
        yield made


@pytest.fixture(scope="module")
def recommender() -> Recommender:
    return Recommender(make_model(DATA))


def _items(answer: dict[str, Any]) -> list[Any]:
    return [row["item"] for row in answer["items"]]


def test_users_are_answered_in_their_order(client: httpx.Client, recommender: Recommender) -> None:
    users = DATA.users.decode([7, 3, 7])
    found = client.post("/recommend", json={"users": users, "k": 4}).json()
    wanted = recommender.recommend_users(DATA, users, 4)
    assert found["model"] == found["answers"][0]["model"]
    assert [answer["user"] for answer in found["answers"]] == users
    assert [_items(answer) for answer in found["answers"]] == wanted.items
    alone = client.post("/recommend", json={"user": users[1], "k": 4}).json()
    assert _items(alone) == wanted.items[1]
    assert alone["depth"] == found["answers"][1]["depth"]
    by_address = client.get("/recommend", params={"users": ",".join(users), "k": 4}).json()
    assert [_items(answer) for answer in by_address["answers"]] == wanted.items


def test_items_to_choose_from(client: httpx.Client, recommender: Recommender) -> None:
    users = DATA.users.decode([7, 3])
    wanted = recommender.recommend_users(DATA, users, 5, allow=ALLOW, exclude=ALLOW[:2])
    body = {"users": users, "k": 5, "allow": ALLOW, "exclude": ALLOW[:2]}
    found = client.post("/recommend", json=body).json()
    assert [_items(answer) for answer in found["answers"]] == wanted.items
    assert all(len(answer["items"]) == 5 for answer in found["answers"])
    by_address = client.get(
        "/recommend", params={"user": users[0], "k": 5, "allow": ",".join(ALLOW)}
    ).json()
    assert _items(by_address) == recommender.recommend_users(DATA, users, 5, allow=ALLOW).items[0]
    many = client.post("/recommend", json={"user": users[0], "allow": ALLOW + ALLOW})
    assert error_of(many, 422)["argument"] == "allow"


def test_similar_items(client: httpx.Client, recommender: Recommender) -> None:
    item = DATA.items.ids[4]
    wanted = recommender.similar_items(item, 5)
    found = client.post("/similar", json={"item": item, "k": 5}).json()
    assert (found["item"], _items(found)) == (item, wanted.items)
    assert [row["score"] for row in found["items"]] == pytest.approx(wanted.scores, abs=1e-5)
    assert client.get("/similar", params={"item": item, "k": 5}).json() == found
    body = {"item": item, "k": 3, "allow": [*ALLOW, "gone"], "exclude": ALLOW[:1],
            "unknown_items": "ignore"}  # fmt: skip
    found = client.post("/similar", json=body).json()
    assert found["ignored"] == ["gone"]
    assert _items(found) == recommender.similar_items(
        item, 3, allow=ALLOW, exclude=ALLOW[:1]
    ).items


@pytest.mark.parametrize(
    ("body", "status", "argument", "message"),
    [
        ({}, 422, None, "give item"),
        ({"item": "no"}, 422, "item", "not among the 40 items"),
        ({"item": [1]}, 422, "item", "an id must be"),
        ({"item": 1, "user": 1}, 422, "user", "unknown key 'user'"),
        ({"item": DATA.items.ids[0], "k": 41}, 422, "k", "k=41 is more than the catalogue"),
        ({"item": DATA.items.ids[0], "exclude": ["x"]}, 422, "exclude[0]", "not among"),
    ],
    ids=str,
)
def test_bad_requests_are_named(
    client: httpx.Client, body: dict[str, Any], status: int, argument: str | None, message: str
) -> None:
    error = error_of(client.post("/similar", json=body), status)
    assert error["argument"] == argument
    assert message in error["message"]


def test_a_model_without_vectors_is_told(
    client: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Recommender, "why_not_similar", lambda self: "it has none")
    assert error_of(client.get("/similar?item=t0-s0-i000"), 501)["message"] == "it has none"


def test_jobs_of_several_kinds_in_one_batch(folder: Path) -> None:
    service, loop = make_service(folder), asyncio.new_event_loop()
    model = service.model

    def job(history: list[int], **options: Any) -> Job:
        return Job(model, history, 3, [], True, loop.create_future(), **options)

    def jobs() -> list[Job]:
        few = list(range(1, 12))
        return [job([1, 2]), job([5], similar=True), job([1, 2], allow=few), job([3]),
                job([5], similar=True, allow=few), job([3], allow=[9, 8, 7, 4])]  # fmt: skip

    together, alone = rank(jobs()), [rank([one])[0] for one in jobs()]
    loop.close()
    assert [answer.items for answer in together] == [answer.items for answer in alone]
    for one, other in zip(together, alone, strict=True):
        assert isinstance(one, Answer)
        assert one.scores == pytest.approx(other.scores, abs=1e-5)
        assert one.diagnostics == other.diagnostics


def test_a_list_is_answered_whole_or_not_at_all(folder: Path) -> None:
    # Nobody computes: the queue fills up, and deadlines pass.
    service = make_service(folder, max_queue=2)

    def ask(**fields: Any) -> RequestError:
        body = service.request_type.model_validate(fields)
        with pytest.raises(RequestError) as caught:
            asyncio.run(service.recommend(body))
        return caught.value

    users = DATA.users.decode([1, 2, 3])
    assert ask(users=users).status == 503
    service = make_service(folder)
    assert ask(users=users, timeout_ms=30).status == 504
    assert read_body(service.request_type, b'{"users": [1]}').users == [1]
