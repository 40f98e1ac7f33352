"""The systemd unit and the container file, linted."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from adarec_fast import ConfigError
from adarec_fast.cli import app
from adarec_fast.serving import ServeConfig
from adarec_fast.serving.deploy import container_file, systemd_unit

runner = CliRunner()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / 'a "run" of 100% $HOME'
    folder.mkdir()
    return folder


def printed(what: str, *words: str) -> str:
    done = runner.invoke(app, ["deploy", what, *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def unit_of(text: str) -> dict[str, dict[str, str]]:
    """Keys by section; each line is a comment, a section, or one key that comes once."""
    sections: dict[str, dict[str, str]] = {}
    for line in filter(None, text.splitlines()):
        if line.startswith("#"):
            continue
        if found := re.fullmatch(r"\[(\w+)\]", line):
            sections[found[1]] = {}
            continue
        key, equals, value = line.partition("=")
        assert equals, line
        section = sections[list(sections)[-1]]
        assert key not in section, line
        section[key] = value
    return sections


def words_of(command: str) -> list[str]:
    """A unit's command line as systemd hands it on, but for specifiers that are meant."""
    return [w.replace("%%", "%").replace("$$", "$") for w in shlex.split(command)]


def test_a_unit(run: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch()
    text = printed("systemd", str(run), "--workers", "2", "--port", "8001", "--token-file",
                   str(tokens), "--shutdown-timeout", "20", "--timeout-ms", "500")  # fmt: skip
    sections = unit_of(text)
    assert list(sections) == ["Unit", "Service", "Install"]
    service = sections["Service"]
    program, *words = words_of(service["ExecStart"])
    assert Path(program).is_absolute()
    assert words[words.index("serve") :] == [
        "serve", str(run), "--port", "8001", "--workers", "2", "--token-file", "%d/tokens",
        "--timeout-ms", "500", "--shutdown-timeout", "20",
    ]  # fmt: skip
    assert service["LoadCredential"] == f"tokens:{tokens}"
    assert int(service["TimeoutStopSec"]) > 20
    assert service["KillMode"] == "mixed"
    assert "HUP" in service["ExecReload"]
    assert service["DynamicUser"] == "yes"
    assert service["Restart"] == "on-failure"
    assert sections["Install"]["WantedBy"] == "multi-user.target"
    assert "LoadCredential" not in printed("systemd", str(run))


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_a_unit_is_verified_by_systemd(run: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch()
    config = ServeConfig(workers=2, token_file=str(tokens), root_path="/rec")
    unit = tmp_path / "adarec-fast.service"

    def complaints(text: str) -> str:
        unit.write_text(text)
        done = subprocess.run(
            ["systemd-analyze", "verify", "--man=no", str(unit)], capture_output=True, text=True,
            check=False, timeout=60, env={"SYSTEMD_LOG_LEVEL": "warning", "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
        return "\n".join(line for line in done.stderr.splitlines() if unit.name in line)

    text = systemd_unit(run, config, ["/bin/true"])
    assert complaints(text) == ""
    assert "Unknown key" in complaints(text.replace("KillMode=", "KilMode="))


def stages_of(text: str) -> list[list[tuple[str, str]]]:
    """Instructions and their arguments by stage, lines that go on joined."""
    stages: list[list[tuple[str, str]]] = []
    joined = re.sub(r"\\\n", " ", text)
    for line in joined.splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(" ")
        assert name in {"FROM", "RUN", "ENV", "COPY", "USER", "EXPOSE", "STOPSIGNAL",
                        "HEALTHCHECK", "ENTRYPOINT"}, line  # fmt: skip
        if name == "FROM":
            stages.append([])
        stages[-1].append((name, rest.strip()))
    return stages


def test_a_container_file(run: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.touch()
    text = printed("container", str(run), "--workers", "2", "--port", "8001", "--token-file",
                   str(tokens))  # fmt: skip
    build, final = stages_of(text)
    for name, rest in (build[0], final[0]):
        assert name == "FROM"
        assert re.fullmatch(r"\S+/python:\d+\.\d+\.\d+-slim-\w+( AS build)?", rest)
    assert build[0][1].split()[0] == final[0][1]  # one Python: the environment is copied
    installs = [rest for name, rest in build if name == "RUN" and "pip install" in rest]
    # torch comes first, in one version and without CUDA, and what comes later finds it there.
    assert re.search(r"torch==\d+\.\d+\.\d+ --index-url \S+/cpu$", installs[0])
    assert not any("torch" in rest for rest in installs[1:])
    last = dict(final)
    user, group = last["USER"].split(":")
    assert int(user) > 0 < int(group)
    names = [name for name, _ in final]
    assert names.index("USER") < names.index("ENTRYPOINT")
    assert names.count("ENTRYPOINT") == names.count("HEALTHCHECK") == 1
    assert last["EXPOSE"] == "8001"
    probe = json.loads(last["HEALTHCHECK"].partition("CMD ")[2])
    compile(probe[2], "probe", "exec")
    assert "http://127.0.0.1:8001/ready" in probe[2]
    assert json.loads(last["ENTRYPOINT"]) == [
        "adarec-fast", "serve", "/model", "--port", "8001", "--workers", "2", "--token-file",
        "/tokens", "--host", "0.0.0.0",
    ]  # fmt: skip
    # The line to run it is one that a shell takes apart as meant.
    command = next(line for line in text.splitlines() if "docker run" in line).lstrip("# ")
    assert f"{run}:/model:ro" in shlex.split(command)
    assert f"{tokens}:/tokens:ro" in shlex.split(command)
    assert dict(build)["ENV"] == last["ENV"]  # the library that was built is the one looked for


def test_what_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"RUN_DIR .*none: there is no such folder"):
        systemd_unit(tmp_path / "none", ServeConfig())
    with pytest.raises(ConfigError, match=r"--token-file .*none: there is no such file"):
        container_file(run, ServeConfig(token_file=str(tmp_path / "none")))
    with pytest.raises(ConfigError, match="port=0"):
        container_file(run, ServeConfig(port=0))
    odd = tmp_path / "a\nb"
    odd.mkdir()
    with pytest.raises(ConfigError, match="can hold such a name"):
        systemd_unit(odd, ServeConfig())
    done = runner.invoke(app, ["deploy", "systemd", str(run), "--workers", "0"])
    assert done.exit_code == 2
