"""What a machine needs to run the service by itself: a systemd unit, a container file."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..config import ConfigError
from .config import ServeConfig

_PYTHON = "3.11.11-slim-bookworm"
_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
_USER = 10001  # of the container: nobody on the host
_MODEL, _TOKENS = "/model", "/tokens"  # where the container has the run folder and the tokens


def systemd_unit(run_dir: Path, config: ServeConfig, command: Sequence[str] | None = None) -> str:
    """A unit that serves a run folder as a user of its own, who may write nothing.

    Args:
        run_dir: must be there; the unit names its absolute path.
        config: what differs from the defaults becomes an option of ``adarec-fast serve``.
        command: the program and its first arguments; by default this Python's ``adarec-fast``.

    Raises:
        ConfigError: there is no run folder, or no file of tokens.
    """
    options = dict(_changed(config))
    credential = ""
    if config.token_file is not None:
        tokens = _absolute(Path(config.token_file), "--token-file")
        # Copied at the start, from where the service's user need not be able to read.
        credential = f"LoadCredential=tokens:{_specifiers(str(tokens))}\n"
        options["token_file"] = "%d/tokens"
    folder = _absolute(run_dir, "RUN_DIR")
    words = [*map(_specifiers, command or _command()), "serve", _specifiers(str(folder)),
             *_flags(options)]  # fmt: skip
    return f"""\
# Made by `adarec-fast deploy systemd`. Put it where it is found, and begin:
#   sudo cp adarec-fast.service /etc/systemd/system/
#   sudo systemctl daemon-reload && sudo systemctl enable --now adarec-fast
# Another model in the same folder: sudo systemctl reload adarec-fast
# The service's user must be able to read the run folder and the program.

[Unit]
Description=Recommendations by adarec_fast
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=60
StartLimitBurst=5

[Service]
Type=exec
ExecStart={" ".join(map(_quoted, words))}
ExecReload=/bin/kill -HUP $MAINPID
Restart=on-failure
RestartSec=2
# The workers are told by the first process, and have so long to answer what is under way.
KillMode=mixed
TimeoutStopSec={config.shutdown_timeout + 10}
LimitNOFILE=65536

DynamicUser=yes
{credential}CacheDirectory=adarec-fast
Environment=ADAREC_FAST_CACHE=%C/adarec-fast
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
NoNewPrivileges=yes
CapabilityBoundingSet=
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectControlGroups=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictSUIDSGID=yes
LockPersonality=yes

[Install]
WantedBy=multi-user.target
"""


def container_file(run_dir: Path, config: ServeConfig) -> str:
    """A container file for an image that serves whatever run folder is mounted, on a CPU.

    Args:
        run_dir: must be there; the file's first lines say how to mount it.
        config: as for :func:`systemd_unit`; it listens on every network of the container.

    Raises:
        ConfigError: there is no run folder, no file of tokens, or port 0.
    """
    if config.port == 0:
        raise ConfigError("port=0: a container's port is published by its number; choose one")
    folder = _absolute(run_dir, "RUN_DIR")
    mounts = f"-v {shlex.quote(f'{folder}:{_MODEL}:ro')}"
    options = {**_changed(config), "host": "0.0.0.0"}
    if config.token_file is not None:
        tokens = _absolute(Path(config.token_file), "--token-file")
        mounts += f" -v {shlex.quote(f'{tokens}:{_TOKENS}:ro')}"
        options["token_file"] = _TOKENS
    torch = version("torch").partition("+")[0]
    entry = json.dumps(["adarec-fast", "serve", _MODEL, *_flags(options)])
    probe = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{config.port}/ready')"
    return f"""\
# Made by `adarec-fast deploy container`. In the folder of this file, with dist/ beside it:
#   pip wheel --no-deps --wheel-dir dist PATH_OF_ADAREC_FAST
#   docker build -t adarec-fast -f Containerfile .
#   docker run --rm -p 127.0.0.1:{config.port}:{config.port} {mounts} adarec-fast
# Another model in the same folder: docker kill --signal HUP NAME
# User {_USER} must be able to read what is mounted.

FROM docker.io/library/python:{_PYTHON} AS build
RUN apt-get update \\
 && apt-get install --yes --no-install-recommends g++ \\
 && rm -rf /var/lib/apt/lists/*
RUN python -m venv /opt/adarec
# For any processor with AVX2, not for the one that builds.
ENV PATH=/opt/adarec/bin:$PATH ADAREC_FAST_CACHE=/opt/adarec/cache ADAREC_FAST_PORTABLE=1
# The build for CPUs: the other one brings gigabytes of CUDA.
RUN pip install --no-cache-dir torch=={torch} --index-url {_TORCH_INDEX}
COPY dist/*.whl /dist/
RUN pip install --no-cache-dir "$(echo /dist/adarec_fast-*.whl)[serve]" \\
 && adarec-fast build

FROM docker.io/library/python:{_PYTHON}
COPY --from=build /opt/adarec /opt/adarec
ENV PATH=/opt/adarec/bin:$PATH ADAREC_FAST_CACHE=/opt/adarec/cache ADAREC_FAST_PORTABLE=1
USER {_USER}:{_USER}
EXPOSE {config.port}
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD {json.dumps(["python", "-c", probe])}
ENTRYPOINT {entry}
"""


def _changed(config: ServeConfig) -> dict[str, Any]:
    """Fields that are not what they are by default."""
    return config.model_dump(exclude_defaults=True)


def _flags(options: dict[str, Any]) -> list[str]:
    words = []
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", f"{value:g}" if isinstance(value, float)
                  else str(value)]  # fmt: skip
    return words


def _absolute(path: Path, what: str) -> Path:
    """Absolute, a link as it is, which may be pointed elsewhere later."""
    if not path.exists():
        raise ConfigError(f"{what} {path}: there is no such {'file' if '-' in what else 'folder'}")
    if re.search(r"[\x00-\x1f\x7f]", str(path)):
        raise ConfigError(f"{what} {str(path)!r}: neither file can hold such a name")
    return path.absolute()


def _command() -> list[str]:
    """This Python's ``adarec-fast``."""
    script = Path(sys.executable).with_name("adarec-fast")
    return [str(script)] if script.exists() else [sys.executable, "-m", "adarec_fast.cli"]


def _specifiers(text: str) -> str:
    """Letters that systemd would replace, doubled."""
    return text.replace("%", "%%").replace("$", "$$")


def _quoted(word: str) -> str:
    """A word of a unit's command line."""
    if re.fullmatch(r"[\w\-./%:=$@+,]+", word):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
