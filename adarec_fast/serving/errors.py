"""Why a request was not answered, as JSON."""

from __future__ import annotations

import json
from typing import Any

from pydantic import BaseModel, Field

_SHOWN = 80


class RequestError(Exception):
    """A request that is refused.

    Args:
        status: of HTTP.
        code: one word for programs.
        message: names the argument, its value and what would be right.
        argument: such as ``history[3]``, or None.
        value: what the argument was.
        headers: to send along, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        argument: str | None = None,
        value: object = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.argument = argument
        self.value = None if argument is None else shown(value)
        self.headers = headers or {}

    def body(self) -> bytes:
        """:class:`ErrorBody` as JSON."""
        error = {
            "code": self.code,
            "argument": self.argument,
            "value": self.value,
            "message": self.message,
        }
        return json.dumps({"error": error}).encode()


class ErrorDetail(BaseModel):
    code: str = Field(description="one word for programs", examples=["out_of_range"])
    argument: str | None = Field(description="what is wrong", examples=["k"])
    value: str | None = Field(description="its value, perhaps shortened", examples=["0"])
    message: str = Field(
        description="what is wrong and what would be right",
        examples=["k=0: should be greater than or equal to 1"],
    )


class ErrorBody(BaseModel):
    """Every answer that is not a success."""

    error: ErrorDetail


def shown(value: Any) -> str:
    """A value as a message can hold it: plain ASCII, and short whatever was sent."""
    # A hostile number may have more digits than Python is willing to print.
    text = "a huge integer" if _is_huge(value) else ascii(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and value.bit_length() > 4 * _SHOWN
