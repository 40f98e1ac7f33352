"""Who may ask: bearer tokens of a file, which may be changed while the service runs."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import stat
from collections.abc import Iterable
from pathlib import Path

from ..config import ConfigError
from .errors import RequestError

_log = logging.getLogger(__name__)

LEAST = 16  # characters
# RFC 6750's b64token: what a header can hold without quotes.
_TOKEN = re.compile(rf"[A-Za-z0-9\-._~+/]{{{LEAST},}}=*")
_LARGEST = 1 << 16  # bytes of the file
_REALM = 'Bearer realm="adarec_fast"'


class Tokens:
    """The tokens of a file, one a line; several are in force at once, so that one can follow the
    other.

    The file is looked at before each request is let in, and read again once its time, size or
    place on the disk has changed. Where it cannot be read then, or holds no token, the log says so
    and the old tokens stay in force: a file that is being written over locks nobody out.

    Args:
        path: of the file; a link is followed anew each time.

    Raises:
        ConfigError: the file cannot be read, or a line of it is no token.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._seen = self._state()
            self._digests = self._read()
        except OSError as error:
            raise ConfigError(f"token_file={str(path)!r}: {error.strerror or error}") from None

    def too_open(self) -> str | None:
        """What to say of a file that others may read or change; None if they may not."""
        mode = stat.S_IMODE(self._path.stat().st_mode)
        if not mode & 0o027:
            return None
        who = "every user" if mode & 0o007 else "its group"
        return (
            f"{self._path}: {who} of this machine may {'read' if mode & 0o004 else 'change'} the "
            f"tokens (mode {mode:o}); chmod 600 {self._path}"
        )

    def refusal(self, headers: Iterable[tuple[bytes, bytes]]) -> RequestError | None:
        """Why a request with these headers is not let in; None if it is."""
        self._renew()
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() != b"bearer":
            return RequestError(
                401, "no_token",
                "this service wants a token: send the header Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": _REALM},
            )  # fmt: skip
        asked = _digest(token.strip())
        # Digests have one length, and all are compared, so that time tells nothing of the tokens.
        known = [hmac.compare_digest(asked, digest) for digest in self._digests]
        if any(known):
            return None
        return RequestError(
            401, "wrong_token", "the token is none of this service's",
            headers={"WWW-Authenticate": f'{_REALM}, error="invalid_token"'},
        )  # fmt: skip

    def _renew(self) -> None:
        try:
            state = self._state()
            if state == self._seen:
                return
            self._seen = state
            self._digests = self._read()
        except (OSError, ConfigError) as error:
            _log.warning("the old tokens stay in force: %s", error)
        else:
            _log.warning("%s: %d tokens are in force now", self._path, len(self._digests))

    def _state(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns

    def _read(self) -> list[bytes]:
        with self._path.open("rb") as file:
            content = file.read(_LARGEST + 1)
        if len(content) > _LARGEST:
            raise ConfigError(
                f"token_file={str(self._path)!r}: has more than {_LARGEST} bytes; it is to hold a "
                "token a line"
            )
        digests = []
        for number, line in enumerate(content.decode("ascii", "replace").splitlines(), 1):
            token = line.strip()
            if not token:
                continue
            if not _TOKEN.fullmatch(token):  # which is not shown
                raise ConfigError(
                    f"{self._path}:{number}: no token; it must have {LEAST} characters or more, "
                    "letters, digits and -._~+/ alone, as `openssl rand -hex 32` makes them"
                )
            digests.append(_digest(token.encode()))
        if not digests:
            raise ConfigError(
                f"token_file={str(self._path)!r}: holds no token; put one there, as "
                "`openssl rand -hex 32` makes them"
            )
        return digests


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
