"""Fetch the paper's data sets: resumable, checked, and never half there."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import DataError

BASE_URL = (
    "https://raw.githubusercontent.com/yueliu1999/ELCRec/"
    "ad6e1c806c43df406f92e5671149ef28a705180f/data"
)
BASE_URL_VARIABLE = "ADAREC_FAST_DATA_URL"
_BACKOFF_SECONDS = 0.5  # before the first retry; doubles with each
_CHUNK = 1 << 16


@dataclass(frozen=True)
class RemoteFile:
    """A file of the public repository: its name there and its SHA-256 (hex)."""

    file: str
    sha256: str


FILES = {
    "beauty": RemoteFile(
        "Beauty.txt", "226cce9c3105299ca0db9615d7d3fb32b3175e90da43100ae352599f0f0107b8"
    ),
    "sports": RemoteFile(
        "Sports_and_Outdoors.txt",
        "2a095e0648872beb9982408958290f5d655db5be2911c3756b5446de9f0b8de2",
    ),
    "toys": RemoteFile(
        "Toys_and_Games.txt", "176c680c688d497598c4a89a03b402c0fe78d795e5db335c2e78dd5f2d778a3f"
    ),
    "yelp": RemoteFile(
        "Yelp.txt", "724b219106b81dd2349027da997334ddb6da9fe2f152ad6e0d97a93170f7caed"
    ),
}


class _Transient(Exception):
    """A failure that another try may cure."""


def download(
    name: str,
    folder: str | os.PathLike[str],
    *,
    base_url: str | None = None,
    timeout: float = 30,
    retries: int = 3,
    progress: Callable[[int, int | None], None] | None = None,
) -> Path:
    """Fetch one of the paper's four data sets and check its SHA-256.

    The file grows under the name ``<file>.part`` and is renamed once its checksum is right; an
    interrupted download goes on where it stopped. A file that is there already and has the
    right checksum is left alone, without any network.

    Args:
        name: ``"beauty"``, ``"sports"``, ``"toys"`` or ``"yelp"``.
        folder: where to put it; made if it is not there.
        base_url: where the files lie; by default the environment variable
            ``ADAREC_FAST_DATA_URL``, else the public repository yueliu1999/ELCRec on GitHub.
        timeout: seconds that a connection may stay silent.
        retries: further tries after a failure that may pass (silence, cut connections, 5xx).
        progress: called with bytes so far and bytes in all (None where unknown).

    Returns:
        Path of the file.

    Raises:
        DataError: an unknown name, another file in the place, no such file on the server, an
            error page, a wrong checksum, failure after all retries, or a full disk.
    """
    if name not in FILES:
        raise DataError(f"name={name!r} must be one of {', '.join(map(repr, FILES))}")
    if retries < 0:
        raise DataError(f"retries={retries} must be at least 0")
    if timeout <= 0:
        raise DataError(f"timeout={timeout} must be above 0 seconds")
    remote = FILES[name]
    target = Path(folder) / remote.file
    place = Path(os.path.realpath(target))  # a link stays one
    part = place.with_name(target.name + ".part")
    base = base_url or os.environ.get(BASE_URL_VARIABLE) or BASE_URL
    if not base.startswith(("http://", "https://")):
        raise DataError(f"base_url={base!r} must begin with http:// or https://")
    url = f"{base.rstrip('/')}/{remote.file}"
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            found = _sha256(target)
            if found == remote.sha256:
                return target
            raise DataError(
                f"{target}: there is another file of this name (SHA-256 {found}, expected "
                f"{remote.sha256}); move it away or choose another folder"
            )
        _fetch(url, part, remote.sha256, timeout, retries, progress)
        os.replace(part, place)
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}") from error
    return target


def _fetch(
    url: str,
    part: Path,
    sha256: str,
    timeout: float,
    retries: int,
    progress: Callable[[int, int | None], None] | None,
) -> None:
    """Fill ``part`` until its checksum is right."""
    for attempt in range(retries + 1):
        try:
            resumed = _transfer(url, part, timeout, progress)
            found = _sha256(part)
            if found == sha256:
                return
            part.unlink()
            message = f"{url}: wrong content: SHA-256 {found}, expected {sha256}"
            if not resumed:
                raise DataError(f"{message}; the download was deleted")
            # What was there from before may be at fault: begin anew.
            raise _Transient(message)
        except _Transient as error:
            if attempt == retries:
                tries = "1 try" if retries == 0 else f"{retries + 1} tries"
                kept = f"; {part} is kept, and resumed next time" if part.exists() else ""
                raise DataError(
                    f"{error} (gave up after {tries}{kept}); a mirror can be named by "
                    f"{BASE_URL_VARIABLE}, or fetch the file elsewhere and read it by its path"
                ) from error
            time.sleep(_BACKOFF_SECONDS * 2**attempt)


def _transfer(
    url: str, part: Path, timeout: float, progress: Callable[[int, int | None], None] | None
) -> bool:
    """One request: append to ``part`` what is missing. Returns whether it was begun before."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "adarec-fast", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    request = urllib.request.Request(url, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            return True  # nothing is missing, as far as the server knows: the checksum decides
        message = f"{url}: the server answered {error.code} {error.reason}"
        if error.code in (408, 429) or error.code >= 500:
            raise _Transient(message) from error
        raise DataError(message) from error
    except (http.client.HTTPException, OSError) as error:
        raise _Transient(_network_message(url, error, timeout)) from error
    with response:
        resumed = response.status == 206 and _range_start(response) == have
        if response.status == 206 and not resumed:
            part.unlink()
            raise _Transient(f"{url}: the server sent another range than asked for")
        done = have if resumed else 0
        length = response.headers.get("Content-Length", "")
        total = done + int(length) if length.isdigit() else None
        chunk = _read(response, url, timeout)
        if "html" in response.headers.get("Content-Type", "").lower() or chunk.startswith(b"<"):
            raise DataError(
                f"{url}: the server sent an HTML page instead of the data: "
                f"{chunk[:80].decode('utf-8', 'replace')!r}"
            )
        with part.open("ab" if resumed else "wb") as file:
            while chunk:
                file.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
                chunk = _read(response, url, timeout)
    if total is not None and done < total:
        raise _Transient(f"{url}: the connection ended after {done} of {total} bytes")
    return resumed


def _read(response: http.client.HTTPResponse, url: str, timeout: float) -> bytes:
    try:
        return response.read1(_CHUNK)
    except (http.client.HTTPException, OSError) as error:
        raise _Transient(_network_message(url, error, timeout)) from error


def _network_message(url: str, error: Exception, timeout: float) -> str:
    reason = getattr(error, "reason", error)
    if isinstance(reason, TimeoutError):
        return f"{url}: no answer for {timeout:g} s"
    return f"{url}: {reason or type(error).__name__}"


def _range_start(response: http.client.HTTPResponse) -> int | None:
    match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
    return int(match[1]) if match else None


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
