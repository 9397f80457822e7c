"""The audit log: a line for everything that was done, once, and nothing that was said."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from cortex.config.load import load_gateway
from cortex.config.schema import AuditSection, AuthSection
from cortex.errors import ConfigError
from cortex.fleet.model import RequestRecord
from cortex.fleet.principal import Key, digest
from cortex.gateway import audit as audit_module
from cortex.gateway.audit import Audit
from cortex.testing import FakeNeuron, until
from tests.gateway.running import Wire, bearer, chat, running

KEYS = tuple(
    Key(name=name, sha256=digest(f"secret of {name}"), admin=name == "root")
    for name in ("zed", "root")
)
AUTH = AuthSection(keys=KEYS, require=True)


def lines(path: Path) -> list[dict]:
    return [json.loads(text) for text in path.read_text().splitlines()]


async def test_every_request_and_every_action_has_one_line_and_no_secret(tmp_path):
    path = tmp_path / "logs" / "audit.jsonl"
    async with (
        FakeNeuron(["m"]) as node,
        running(node, auth=AUTH, audit=AuditSection(path=path)) as gateway,
    ):
        node.answer = "the answer nobody else may see"
        await gateway.ask(key="secret of zed", content="the prompt nobody else may see")
        await gateway.refused(404, "model_not_found", "no such", key="secret of zed")
        await gateway.refused(401, "invalid_api_key", key="secret of somebody")
        node.ending = "hang"
        async with await Wire.to(gateway.address) as client:
            client.post(chat("m"), headers="x-api-key: secret of zed\r\n")
            await until(lambda: node.in_flight["m"] == 1)
        await until(lambda: len(gateway.records) == 3)
        await gateway.get("/api/v1/fleet", "secret of root")
        for key, code in (("root", 200), ("root", 404), ("zed", 403)):
            model = "m" if code != 404 else "none"
            url = f"{gateway.url}/api/v1/models/{model}/unload"
            headers = bearer(f"secret of {key}")
            async with gateway.client.post(url, headers=headers, data="{}") as response:
                assert response.status == code

    assert b"secret" not in path.read_bytes()
    assert b"nobody else may see" not in path.read_bytes()
    found = lines(path)
    requests = [line for line in found if line["kind"] == "request"]
    assert [(r["principal"], r["model"], r["status"], r["outcome"]) for r in requests] == [
        ("zed", "m", 200, "ok"),
        ("zed", "", 404, "error"),
        ("zed", "m", 499, "cancelled"),
    ]
    assert (requests[0]["prompt_tokens"], requests[0]["completion_tokens"]) == (7, 6)
    assert all(line["client"] == "127.0.0.1" and line["id"] for line in found)
    assert [
        (a["kind"], a["principal"], a["method"], a["path"], a["status"])
        for a in found
        if a["kind"] != "request"
    ] == [
        ("refused", "", "POST", "/v1/chat/completions", 401),
        ("admin", "root", "POST", "/api/v1/models/m/unload", 200),
        ("admin", "root", "POST", "/api/v1/models/none/unload", 404),
        ("refused", "", "POST", "/api/v1/models/m/unload", 403),
    ]


def record(number: int) -> RequestRecord:
    return RequestRecord(
        id=str(number),
        model="m",
        node="n",
        dialect="d",
        status=200,
        outcome="ok",
        ttft_s=None,
        duration_s=0.0,
    )


class Request:
    remote = "127.0.0.1"


@pytest.fixture
def audit(tmp_path, monkeypatch):
    """Return an audit log that writes when it is told to."""
    monkeypatch.setattr(audit_module, "Ticker", lambda *_: None)
    log = Audit(tmp_path / "audit.jsonl", "cortex.toml")
    log.open()
    yield log
    log.close()


def ids(*paths: Path) -> list[str]:
    return [line["id"] for path in paths for line in lines(path)]


def test_a_file_that_is_moved_or_deleted_is_made_anew_and_no_line_is_lost(audit, tmp_path):
    path, moved = tmp_path / "audit.jsonl", tmp_path / "audit.jsonl.1"
    audit.note(Request(), record(0))
    audit.write()
    path.rename(moved)
    audit.note(Request(), record(1))
    audit.write()
    assert (ids(moved), ids(path)) == (["0"], ["1"])
    path.unlink()
    audit.note(Request(), record(2))
    audit.write()
    assert ids(path) == ["2"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_after_a_full_disk_every_line_is_there_once_and_whole(audit, tmp_path, monkeypatch):
    write, room = os.write, 0

    def full(file: int, data: bytes) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        taken = write(file, data[:room])
        room -= taken
        return taken

    monkeypatch.setattr(os, "write", full)
    for number in range(10):
        audit.note(Request(), record(number))
        room = 37 * number
        with pytest.raises(OSError, match="No space left"):
            audit.write()
    room = 1 << 20
    audit.write()
    assert ids(tmp_path / "audit.jsonl") == [str(number) for number in range(10)]


def test_what_waits_is_bounded_and_what_is_lost_is_said(audit, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(audit_module, "MAX_WAITING", 3)
    for number in range(5):
        audit.note(Request(), record(number))
    audit.write()
    assert ids(tmp_path / "audit.jsonl") == ["2", "3", "4"]
    assert "2 lines of the audit log are lost" in caplog.text


def test_a_file_that_cannot_be_written_keeps_the_gateway_from_starting(tmp_path):
    log = Audit(tmp_path, "cortex.toml")
    with pytest.raises(ConfigError) as caught:
        log.open()
    assert str(caught.value) == f"cortex.toml: audit.path: {tmp_path}: Is a directory"


def test_the_path_is_relative_to_the_file(tmp_path):
    (tmp_path / "models.toml").write_text("")
    path = tmp_path / "cortex.toml"
    path.write_text('[audit]\npath = "audit.jsonl"\n')
    assert load_gateway(path)[0].audit.path == tmp_path / "audit.jsonl"
    path.write_text("")
    assert load_gateway(path)[0].audit.path is None
