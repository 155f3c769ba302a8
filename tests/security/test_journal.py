"""The audit log: JSON lines, for its owner's eyes, without secrets and without end."""

from __future__ import annotations

import itertools
import json
import logging
import os
import stat
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from broker.errors import ConfigError
from broker.limits import AUDIT_EVENTS_PER_S_MAX, AUDIT_TEXT_MAX
from broker.security.audit import AuditEvent, AuditKind
from broker.security.identity import Identity
from broker.security.journal import AuditLog

EVENT = AuditEvent(
    AuditKind.DENIED,
    Identity("trainer-3", ("trainer",), "team-a", "certificate", "5A"),
    "tls://10.0.0.7:40112",
    7,
    "client-name",
    "publish",
    "control/stop",
    "no rule allows it",
)


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_an_event_is_one_line_with_all_there_is_to_it(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    with closing(AuditLog(str(file), clock=lambda: 0.5)) as log:
        log.record(EVENT)
    assert lines(file) == [
        {
            "time": "1970-01-01T00:00:00.500000+00:00",
            "event": "denied",
            "session": 7,
            "identity": "trainer-3",
            "proof": "certificate",
            "credential": "5A",
            "tenant": "team-a",
            "client": "client-name",
            "peer": "tls://10.0.0.7:40112",
            "action": "publish",
            "target": "control/stop",
            "detail": "no rule allows it",
        }
    ]
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_what_clients_call_themselves_makes_no_lines_and_shows_no_token(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    hostile = '"}\n{"event":"connected'
    with closing(AuditLog(str(file))) as log:
        log.record(AuditEvent(AuditKind.REFUSED, name=hostile, detail="tb_01_secretsecret"))
    (line,) = lines(file)
    assert line["client"] == hostile
    assert line["detail"] == "tb_01_***"


def test_what_a_stranger_says_at_length_is_cut_and_shows_no_part_of_a_token(tmp_path: Path) -> None:
    file, secret = tmp_path / "audit.jsonl", "Zz9" * 14
    start = "n" * (AUDIT_TEXT_MAX - 20)
    with closing(AuditLog(str(file))) as log:
        log.record(AuditEvent(AuditKind.REFUSED, name=f"{start} tb_7f3a91c2aa55_{secret}{'x' * 60_000}"))
    (event,) = lines(file)
    assert len(str(event["client"])) <= AUDIT_TEXT_MAX + 3
    assert "Zz9" not in file.read_text()
    assert str(event["client"]).startswith(start)


def test_a_flood_is_counted_and_not_written(tmp_path: Path) -> None:
    file, now = tmp_path / "audit.jsonl", [10.0]
    with closing(AuditLog(str(file), clock=lambda: now[0])) as log:
        for _ in range(AUDIT_EVENTS_PER_S_MAX + 5):
            log.record(EVENT)
        assert len(lines(file)) == AUDIT_EVENTS_PER_S_MAX
        now[0] = 11.0
        log.record(EVENT)
    *_, left_out, last = lines(file)
    assert (left_out["event"], left_out["count"]) == ("left out", 5)
    assert last["event"] == "denied"


def test_it_goes_on_in_a_new_file_when_the_old_one_was_moved(tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    with closing(AuditLog(str(file))) as log:
        log.record(EVENT)
        file.rename(tmp_path / "old")
        log.record(EVENT)
        log.reopen()
        log.record(EVENT)
    assert (len(lines(tmp_path / "old")), len(lines(file))) == (2, 1)


def test_a_file_that_cannot_be_written_is_told_at_the_start_and_harms_nobody_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ConfigError, match="setting audit"):
        AuditLog(str(tmp_path / "missing" / "audit.jsonl"))
    with closing(AuditLog("/dev/full")) as log, caplog.at_level(logging.ERROR):
        log.record(EVENT)
        log.record(EVENT)
    assert [record.getMessage().split()[0] for record in caplog.records] == ["audit.failed"]


def test_a_pipe_that_nobody_reads_is_an_error_and_holds_nobody_up(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="No such device or address"):
        AuditLog(str(pipe))
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    audit = AuditLog(str(pipe), clock=itertools.count().__next__)
    for _ in range(1000):
        audit.record(replace(EVENT, detail="x" * 2000))
    assert caplog.text.count("audit.failed") == 1
    assert "nobody reads that pipe fast enough" in caplog.text
    assert os.read(reading, 65_536).startswith(b'{"time":')
    audit.record(replace(EVENT, detail="read again"))
    assert b"read again" in os.read(reading, 1 << 20)
    audit.close()
    os.close(reading)
