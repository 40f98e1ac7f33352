"""The HTTP application: its paths, and its errors as JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi_offline import FastAPIOffline
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from ..version import __version__
from .edge import ENDPOINTS, Edge, own_path
from .errors import ErrorBody, RequestError, shown
from .requests import (
    LimitFields,
    ManyRecommendations,
    Recommendations,
    SimilarItems,
    read_body,
    read_query,
)
from .service import Service

_ABOUT = """Recommendations from a trained model, by the id of a known user or by any
history. Ids are those of the training data. Requests that come together are computed together."""


class Health(BaseModel):
    status: str
    ready: bool
    model: dict[str, Any]
    reload: dict[str, Any]
    uptime_seconds: float
    worker: int
    workers: int


class Ready(BaseModel):
    ready: bool


_Fields = TypeVar("_Fields", bound=LimitFields)


def create_app(service: Service) -> FastAPI:
    """The application over a service, which it starts and ends (ASGI lifespan)."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        async with service.peers or nullcontext():
            yield
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    config = service.config
    app = FastAPIOffline(
        redoc_url=None,
        title="adarec_fast",
        version=__version__,
        description=_ABOUT,
        lifespan=lifespan,
        redirect_slashes=False,  # Starlette's name the host that a proxy has
        exception_handlers={
            RequestError: _refused,
            HTTPException: _not_found,
            Exception: _failed,
        },
    )
    app.add_middleware(
        Edge, metrics=service.metrics, max_body=config.max_body, timeout=config.timeout_ms / 1000,
        root_path=config.root_path, tokens=service.tokens,
    )

    async def respond(
        request: Request, fields: _Fields, answer: Callable[..., Awaitable[dict[str, Any]]]
    ) -> Response:
        left = asyncio.ensure_future(_disconnect(request))
        try:
            found = await answer(fields, left)
        except asyncio.CancelledError:
            if not left.done():
                raise
            # Nobody reads it; the code is the one that nginx made common for the log.
            return Response(status_code=499)
        finally:
            left.cancel()
        return Response(json.dumps(found).encode(), media_type="application/json")

    async def body_of(request: Request) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise RequestError(
                415, "not_json",
                f"content-type={shown(kind)}: send JSON, and the header "
                "Content-Type: application/json",
                "content-type", kind,
            )  # fmt: skip
        return await request.body()

    async def post(request: Request) -> Response:
        fields = read_body(service.request_type, await body_of(request))
        return await respond(request, fields, service.recommend)

    async def get(request: Request) -> Response:
        fields = read_query(service.request_type, request.query_params.multi_items())
        return await respond(request, fields, service.recommend)

    async def post_similar(request: Request) -> Response:
        fields = read_body(service.similar_type, await body_of(request))
        return await respond(request, fields, service.similar)

    async def get_similar(request: Request) -> Response:
        fields = read_query(service.similar_type, request.query_params.multi_items())
        return await respond(request, fields, service.similar)

    async def health() -> Response:
        state = service.health()
        return _json(state, 503 if state["status"] == "broken" else 200)

    async def ready() -> Response:
        return _json({"ready": service.ready}, 200 if service.ready else 503)

    async def metrics() -> Response:
        text = service.metrics.text() if service.peers is None else await service.peers.text()
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    schema = service.request_type.model_json_schema()
    refusals: dict[int | str, dict[str, Any]] = {
        400: {"model": ErrorBody, "description": "The body is not JSON, or has a key twice."},
        401: {"model": ErrorBody, "description": "A token is missing or wrong."},
        404: {"model": ErrorBody, "description": "The user is unknown."},
        408: {"model": ErrorBody, "description": "The body came too slowly."},
        413: {"model": ErrorBody, "description": "The body is too large."},
        415: {"model": ErrorBody, "description": "The body is not called JSON."},
        422: {"model": ErrorBody, "description": "An argument does not fit; an item is unknown."},
        500: {"model": ErrorBody, "description": "A fault of the service."},
        503: {"model": ErrorBody, "description": "Too many requests wait, or the service ends."},
        504: {"model": ErrorBody, "description": "The deadline passed."},
    }
    by_address = {code: refusals[code] for code in refusals if code != 415}
    # The server's own answer, which no application sees.
    by_address[400] = {
        "content": {"text/plain": {}}, "description": "Not HTTP, or an address too long for it.",
    }  # fmt: skip
    answers = Recommendations | ManyRecommendations
    common: dict[str, Any] = {"response_model": answers, "tags": ["recommend"]}
    app.add_api_route(
        "/recommend", post, methods=["POST"], responses=refusals, summary="Recommend items",
        openapi_extra={"requestBody": _body(schema, _examples(service))}, **common,
    )  # fmt: skip
    app.add_api_route(
        "/recommend", get, methods=["GET"], responses=by_address,
        summary="The same by address; lists are ITEM,ITEM,...",
        openapi_extra={"parameters": _parameters(schema)}, **common,
    )  # fmt: skip
    schema = service.similar_type.model_json_schema()
    first = {"an item": {"value": {"item": service.model.items.decode([1])[0], "k": 5}}}
    common = {"response_model": SimilarItems, "tags": ["recommend"]}
    vectors: dict[int | str, dict[str, Any]] = {
        501: {"model": ErrorBody, "description": "The model has no vectors of items."}
    }
    app.add_api_route(
        "/similar", post_similar, methods=["POST"], responses={**refusals, **vectors},
        summary="List similar items", openapi_extra={"requestBody": _body(schema, first)},
        **common,
    )  # fmt: skip
    app.add_api_route(
        "/similar", get_similar, methods=["GET"], responses={**by_address, **vectors},
        summary="The same by address", openapi_extra={"parameters": _parameters(schema)},
        **common,
    )  # fmt: skip
    broken: dict[int | str, dict[str, Any]] = {503: {"model": Health, "description": "Broken."}}
    waiting: dict[int | str, dict[str, Any]] = {503: {"model": Ready, "description": "Not ready."}}
    app.add_api_route(
        "/health", health, methods=["GET"], response_model=Health, responses=broken,
        summary="The model that serves, and the last reload", tags=["state"],
    )  # fmt: skip
    app.add_api_route(
        "/ready", ready, methods=["GET"], response_model=Ready, responses=waiting,
        summary="Whether to send requests", tags=["state"],
    )  # fmt: skip
    app.add_api_route(
        "/metrics", metrics, methods=["GET"], response_class=Response, tags=["state"],
        summary="Prometheus' text format",
        responses={200: {"content": {"text/plain": {}}, "description": "Metrics."}},
    )  # fmt: skip
    return app


async def _disconnect(request: Request) -> None:
    """Return when the client is gone."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json(values: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(values).encode(), status, media_type="application/json")


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return Response(error.body(), error.status, error.headers, "application/json")


async def _not_found(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: no such path, no such method; a slash too many is led back."""
    assert isinstance(error, HTTPException)
    path = own_path(request.scope)
    headers = dict(error.headers or {})
    routes = [route for route in request.app.routes if getattr(route, "path", None) == path]
    if error.status_code == 405:  # Starlette names the methods of the first route only
        methods = {m for route in routes for m in route.methods}
        headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    if error.status_code == 404 and path[:-1] in ENDPOINTS and path.endswith("/"):
        # From where the client is, whatever a proxy has put before it.
        query = request.scope["query_string"].decode("ascii", "replace")
        target = f"..{path[:-1]}" + (f"?{query}" if query else "")
        return Response(status_code=307, headers={"Location": target})
    where = f"{request.method} {shown(path)[1:-1]}"
    refusal = RequestError(
        error.status_code,
        "no_such_path" if error.status_code == 404 else "http",
        f"{where}: {error.detail}; {request.scope['root_path']}/docs lists what there is",
        headers=headers,
    )
    return await _refused(request, refusal)


async def _failed(request: Request, error: Exception) -> Response:
    """A bug: the server logs its traceback, the client learns that it was not to blame."""
    return await _refused(
        request, RequestError(500, "internal", "the service failed; its log says why")
    )


def _examples(service: Service) -> dict[str, Any]:
    """Requests that the data at hand can answer."""
    data = service.model.data
    history = data.items.decode(data.sequence(0)[-3:])
    return {
        "a known user": {"value": {"user": data.users.decode([0])[0], "k": 5}},
        "known users": {"value": {"users": data.users.decode([0]), "k": 5}},
        "a new user": {"value": {"history": history, "k": 5, "exclude": history[:1]}},
    }


def _body(schema: dict[str, Any], examples: dict[str, Any]) -> dict[str, Any]:
    content = {"schema": schema, "examples": examples}
    return {"required": True, "content": {"application/json": content}}


def _parameters(schema: dict[str, Any]) -> list[dict[str, Any]]:
    """The fields of the body as parameters of an address."""
    found = []
    for name, field in schema["properties"].items():
        kinds = field.get("anyOf", [field])
        kind = next(kind for kind in kinds if kind.get("type") != "null")
        parameter = {
            "name": name, "in": "query", "required": False,
            "description": field.get("description", ""), "schema": kind,
        }  # fmt: skip
        if kind.get("type") == "array":
            parameter |= {"style": "form", "explode": False}
        found.append(parameter)
    return found
