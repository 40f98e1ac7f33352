"""What bounds the service, every bound in one place."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator

from ..config import BaseConfig


class ServeConfig(BaseConfig):
    """Where the service listens, how it batches, and what it refuses."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 is every network")
    port: int = Field(8000, ge=0, le=65535, description="port; 0 takes a free one")
    root_path: str = Field(
        "",
        description="path that a proxy puts before the service's own and may strip, like /rec",
    )
    workers: int = Field(
        1, ge=1, le=256, description="processes that answer; they share one model's memory"
    )
    token_file: str | None = Field(
        None, min_length=1,
        description="file of bearer tokens, one a line; who has none gets a 401",
    )  # fmt: skip
    max_batch: int = Field(
        128, ge=1, description="requests computed together; 1 turns batching off"
    )
    max_wait_ms: float = Field(
        2.0, ge=0, le=1000, description="longest wait for others under load, in ms; 0 never waits"
    )
    max_queue: int = Field(1024, ge=1, description="requests that may wait; more get a 503")
    timeout_ms: float = Field(
        2000.0, ge=1, le=600_000, description="deadline of a request in ms; then it gets a 504"
    )
    max_k: int = Field(100, ge=1, description="most items a request may ask for")
    max_history: int = Field(1000, ge=1, description="longest history a request may send")
    max_exclude: int = Field(1000, ge=0, description="most items a request may leave out")
    max_allow: int = Field(5000, ge=1, description="most items a request may choose from")
    max_users: int = Field(100, ge=1, description="most users that one request may ask for")
    max_body: int = Field(65_536, ge=64, description="largest request body in bytes")
    max_connections: int = Field(
        1000, ge=1, description="open connections; more are turned away with a 503"
    )
    unknown_items: Literal["refuse", "ignore"] = Field(
        "refuse",
        description="what becomes of items the catalogue lacks, if a request does not say",
    )
    shutdown_timeout: int = Field(
        10, ge=1, description="seconds that a shutdown waits for what is under way"
    )
    watch: float = Field(
        0.0, ge=0, description="look for a new model every so many seconds; 0 only on SIGHUP"
    )
    threads: int = Field(1, ge=1, description="threads of the model on a CPU")

    @field_validator("root_path")
    @classmethod
    def _begins_and_ends(cls, value: str) -> str:
        if not re.fullmatch(r"(/[^/?#\s]+)*", value):
            raise ValueError("must begin with / and not end with it, like /rec; or be empty")
        return value
