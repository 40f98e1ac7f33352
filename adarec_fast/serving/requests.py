"""What a request may say: its fields, their bounds, and what is said when they are not kept."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    create_model,
)

from ..config import unknown_keys
from ..data import DataError
from ..data.text import split_ids
from .config import ServeConfig
from .errors import RequestError, shown

DEFAULT_K = 20
_MAX_ID = 1024  # characters
_LISTS = ("history", "exclude", "allow", "users")
_IDS = (*_LISTS, "user", "item")
_INTEGER = re.compile(r"[+-]?\d{1,18}")

Id = StrictInt | Annotated[StrictStr, Field(max_length=_MAX_ID)]


def _one_of(*names: str) -> Callable[[dict[str, Any]], None]:
    """What :func:`_checked` demands, for programs that read the schema."""

    def extend(schema: dict[str, Any]) -> None:
        schema["oneOf"] = [
            {"required": [name], "properties": {name: {"not": {"type": "null"}}}}
            for name in names
        ]

    return extend


class LimitFields(BaseModel):
    """Fields of every request, for programs; :func:`request_type` adds the bounds."""

    model_config = ConfigDict(extra="forbid")

    k: int | None = None
    exclude: Any = ()
    allow: Any = None
    unknown_items: Literal["refuse", "ignore"] | None = None
    timeout_ms: float | None = None


class RequestFields(LimitFields):
    """Fields of a request for recommendations."""

    model_config = ConfigDict(json_schema_extra=_one_of("user", "users", "history"))

    user: Any = None
    users: Any = None
    history: Any = None
    exclude_seen: bool = True


class SimilarFields(LimitFields):
    """Fields of a request for similar items."""

    model_config = ConfigDict(json_schema_extra=_one_of("item"))

    item: Any = None


_Fields = TypeVar("_Fields", bound=LimitFields)


class Item(BaseModel):
    item: int | str = Field(description="external id")
    score: float = Field(description="logit of the next item; falls along the list")


class Recommendations(BaseModel):
    """What one history leads to; a model may tell more of it, as an ADARec does its depth."""

    model_config = ConfigDict(extra="allow")

    user: int | str | None = Field(description="the user asked for, null for a history")
    model: str = Field(description="which weights answered: the start of their SHA-256")
    history_length: int = Field(description="items of the history that the catalogue knows")
    ignored: list[int | str] = Field(description="items of the request that it does not know")
    note: str | None = Field(description="that preprocessing had dropped the user, or null")
    items: list[Item] = Field(description="best first; fewer than k where no more are left")


class ManyRecommendations(BaseModel):
    """What a list of users leads to."""

    model: str = Field(description="which weights answered: the start of their SHA-256")
    answers: list[Recommendations] = Field(description="one for each of the users, in their order")


class SimilarItem(BaseModel):
    item: int | str = Field(description="external id")
    score: float = Field(description="cosine of the items' vectors; falls along the list")


class SimilarItems(BaseModel):
    """Items whose vectors point nearly where an item's own does."""

    item: int | str = Field(description="the item asked for")
    model: str = Field(description="which weights answered: the start of their SHA-256")
    ignored: list[int | str] = Field(description="items of the request that it does not know")
    items: list[SimilarItem] = Field(description="nearest first")


def request_type(config: ServeConfig) -> type[RequestFields]:
    """The type of a request under the bounds of a configuration."""
    fields: dict[str, Any] = {
        "user": (
            Id | None,
            Field(None, description="id of a user of the training data; or give a history"),
        ),
        "history": (
            Annotated[list[Id], Field(min_length=1, max_length=config.max_history)] | None,
            Field(
                None,
                description="item ids, oldest first; the last max_length of them are read, all "
                "of them count as seen",
            ),
        ),
        "users": (
            Annotated[list[Id], Field(min_length=1, max_length=config.max_users)] | None,
            Field(None, description="ids of several users, who are answered in this order"),
        ),
        "exclude_seen": (StrictBool, Field(True, description="leave out what the history holds")),
    }
    return create_model(
        "RecommendRequest",
        __base__=RequestFields,
        __doc__="A user, several or a history, and what to do with it.",
        **{**fields, **_limits(config)},
    )


def similar_type(config: ServeConfig) -> type[SimilarFields]:
    """The type of a request for similar items under the bounds of a configuration."""
    item: Any = (Id | None, Field(None, description="id of an item of the catalogue"))
    return create_model(
        "SimilarRequest",
        __base__=SimilarFields,
        __doc__="An item, and what may come.",
        item=item,
        **_limits(config),
    )


def _limits(config: ServeConfig) -> dict[str, Any]:
    return {
        "k": (
            Annotated[StrictInt, Field(ge=1, le=config.max_k)] | None,
            Field(None, description=f"how many items; {DEFAULT_K} if not given"),
        ),
        "exclude": (
            Annotated[list[Id], Field(max_length=config.max_exclude)],
            Field([], description="items that must not come"),
        ),
        "allow": (
            Annotated[list[Id], Field(min_length=1, max_length=config.max_allow)] | None,
            Field(None, description="items that may come, and no others"),
        ),
        "unknown_items": (
            Literal["refuse", "ignore"] | None,
            Field(None, description=f"items nobody knows; {config.unknown_items} if not given"),
        ),
        "timeout_ms": (
            Annotated[float, Field(ge=1, le=config.timeout_ms, strict=True)] | None,
            Field(None, description=f"deadline; {config.timeout_ms:g} if not given"),
        ),
    }


def read_body(kind: type[_Fields], body: bytes) -> _Fields:
    """A request from JSON.

    Raises:
        RequestError: 400 for what is no JSON or has a key twice, 422 for what does not fit.
    """
    try:
        fields = kind.model_validate_json(body)
    except ValidationError as error:
        _refuse_repeated(body)
        raise _refusal(error, kind) from None
    _refuse_repeated(body)
    return _checked(fields)


def _refuse_repeated(body: bytes) -> None:
    """pydantic takes the last of two equal keys, and other readers the first."""
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        counts = Counter(name for name, _ in pairs)
        repeated.extend(name for name, count in counts.items() if count > 1)

    try:
        # Numbers stay text: Python refuses those of thousands of digits.
        json.loads(body, object_pairs_hook=note, parse_int=str, parse_float=str)
    except (ValueError, RecursionError):
        return  # no JSON, which pydantic has said or will say
    if repeated:
        name = _short(repeated[0])
        raise RequestError(400, "repeated", f"the key {name} is given twice; give it once", name)


def read_query(kind: type[_Fields], pairs: Sequence[tuple[str, str]]) -> _Fields:
    """A request from an address; lists are ``ITEM,ITEM,...`` or repeated.

    An item with a comma stands in double quotes.

    Raises:
        RequestError: 422, as :func:`read_body`.
    """
    values: dict[str, Any] = {}
    for name, text in pairs:
        if name in _LISTS:
            try:
                values.setdefault(name, []).extend(split_ids(text))
            except DataError as error:
                raise RequestError(
                    422,
                    "not_a_list",
                    f"{name}={shown(text)} has a double quote without its second; an item with "
                    'a comma is written "a,1"',
                    name,
                    text,
                ) from error
        elif name in values:
            raise RequestError(422, "repeated", f"{name} is given twice; give it once", name, text)
        elif name in ("k", "timeout_ms") and _INTEGER.fullmatch(text):
            values[name] = int(text)
        elif name == "exclude_seen" and text in ("true", "false"):
            values[name] = text == "true"
        else:
            values[name] = text
    try:
        return _checked(kind.model_validate(values))
    except ValidationError as error:
        raise _refusal(error, kind) from None


def _checked(fields: _Fields) -> _Fields:
    if isinstance(fields, SimilarFields):
        if fields.item is None:
            raise RequestError(422, "no_item", "give item, the id of an item of the catalogue")
    elif isinstance(fields, RequestFields):
        names = ("user", "history", "users")
        there = [name for name in names if getattr(fields, name) is not None]
        if len(there) != 1:
            given = " and ".join(there) + ", both," if there else "neither"
            raise RequestError(
                422, "user_or_history",
                f"give either user or history; {given} is there; users is for several at once",
            )  # fmt: skip
    return fields


def _refusal(error: ValidationError, asked: type[LimitFields]) -> RequestError:
    """The first complaint in plain words."""
    found = error.errors(include_url=False, include_context=False)
    # Of an id that is a string, it is no complaint that it is no integer.
    strings = (e for e in found if isinstance(e["input"], str) and e["type"] == "string_too_long")
    first = next(strings, found[0])
    kind, place = first["type"], first["loc"]
    message = first["msg"].removeprefix("Input ")
    if kind == "json_invalid":
        message = message.removeprefix("Invalid JSON: ")
        return RequestError(400, "not_json", f"the body is not JSON: {message}; send an object")
    if not place:
        return RequestError(
            422, "not_an_object", "the body must be a JSON object", "body", first["input"]
        )
    argument = str(place[0])
    if kind == "extra_forbidden":
        known = list(asked.model_fields)
        return RequestError(
            422, "unknown_field", unknown_keys([_short(argument)], known), _short(argument),
            first["input"],
        )  # fmt: skip
    if len(place) > 1 and isinstance(place[1], int):
        argument = f"{argument}[{place[1]}]"
    value = first["input"]
    if kind in ("too_long", "too_short"):
        message = message.replace("List should have", "give").replace(" after validation", "")
        return RequestError(422, kind, f"{argument}: {message}", argument, f"{len(value)} items")
    if kind in ("int_type", "string_type") and argument.startswith(_IDS):
        message = "an id must be an integer or a string"
    elif kind == "string_too_long":
        message = f"an id has at most {_MAX_ID} characters"
    refusal = RequestError(422, kind, "", argument, value)
    refusal.message = f"{argument}={refusal.value}: {message[0].lower()}{message[1:]}"
    return refusal


def _short(name: str) -> str:
    return ascii(name)[1:-1][:80]
