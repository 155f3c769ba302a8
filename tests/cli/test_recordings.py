"""`tensorbus record`, `replay` and `diff` as real processes."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

import clients
from broker.cli.record import Bounds, record
from broker.errors import InvalidValue
from clients.recordings import Reader, Start, Writer
from tests.clients.test_recordings import message
from tests.daemon import PATIENCE_S, Daemon, Process, run


def values(file: Path) -> list[object]:
    with Reader(file) as reader:
        found = [recorded.value for recorded in reader]
        assert reader.problem == ""
    return found


def test_a_recording_published_again_is_the_same_messages(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a.rec"
    with clients.connect(daemon.url, name="trainer-0") as bus:
        for step in range(3):
            bus.publish("again/loss", {"step": step}, headers={"run": "one"})
        bus.publish("again/weights", np.arange(5.0), lane="bulk")
        bus.flush()
        status, output, errors = run(
            "record", "again/#", "--output", str(file), "--replay", "all", "--count", "4", "--json", "--url", daemon.url
        )
        assert (status, errors) == (0, "")
        told = json.loads(output)
        assert (told["messages"], told["topics"], told["file"]) == (4, 2, str(file))
        with bus.subscribe("rerun/#") as subscription:
            status, output, errors = run(
                "replay", str(file), "--speed", "max", "--prefix", "rerun", "--url", daemon.url
            )
            came = [subscription.next(PATIENCE_S) for _ in range(4)]
    assert (status, errors) == (0, "")
    assert output.startswith("published 4 messages of 2 topics")
    assert sorted(each.topic for each in came) == ["rerun/again/loss"] * 3 + ["rerun/again/weights"]
    losses = [each for each in came if each.topic.endswith("loss")]
    assert [each.value for each in losses] == [{"step": 0}, {"step": 1}, {"step": 2}]
    assert losses[0].headers == {"run": "one"}
    (weights,) = [each for each in came if each.topic.endswith("weights")]
    assert (weights.lane, list(weights.value)) == ("bulk", [0.0, 1.0, 2.0, 3.0, 4.0])  # type: ignore[call-overload]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_recording_in_order(daemon: Daemon, tmp_path: Path, number: signal.Signals) -> None:
    file, topic = tmp_path / "a.rec", f"ended/{number.name}"
    with clients.connect(daemon.url) as bus, Process("record", topic, "-o", str(file), "--url", daemon.url) as recorder:
        # Until the recorder is there, nobody gets what is published.
        while not bus.pressure(topic).subscribers:
            assert recorder.running, recorder.errors
        bus.publish(topic, 1, ack="accepted")
        while not file.exists() or file.stat().st_size < 200:
            assert recorder.running, recorder.errors
        recorder.signal(number)
        assert recorder.wait() == 0
    with Reader(file) as reader:
        assert [recorded.value for recorded in reader] == [1]
        assert reader.ended


def test_a_recorder_that_is_killed_leaves_what_it_had_and_can_be_gone_on_with(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a.rec"
    with clients.connect(daemon.url) as bus:
        with Process("record", "killed", "-o", str(file), "--url", daemon.url) as recorder:
            while not bus.pressure("killed").subscribers:
                assert recorder.running, recorder.errors
            bus.publish("killed", "first", ack="accepted")
            while not file.exists() or file.stat().st_size < 200:
                assert recorder.running, recorder.errors
            recorder.kill()
        arguments = ("--append", "--replay", "all", "--count", "1", "--url", daemon.url)
        assert run("record", "killed", "-o", str(file), *arguments)[0] == 0
    assert values(file) == ["first", "first"]


def recorded(file: Path, *topics_and_values: tuple[str, object]) -> Path:
    with Writer(file, Start(["#"], 0)) as writer:
        for number, (topic, value) in enumerate(topics_and_values):
            writer.add(message(value, topic, sequence=number + 1), received_ns=number)
    return file


def test_a_recording_can_be_shown_without_a_broker(tmp_path: Path) -> None:
    file = recorded(tmp_path / "a.rec", ("metrics/loss", 0.5), ("other", "words"))
    assert run("replay", str(file), "--show")[:2] == (0, "metrics/loss 0.5\nother words\n")
    status, output, _ = run("replay", str(file), "--show", "--json", "--only", "metrics/#")
    (line,) = [json.loads(line) for line in output.splitlines()]
    assert (status, line["topic"], line["value"], len(line["digest"])) == (0, "metrics/loss", 0.5, 32)


def test_a_torn_recording_is_shown_as_far_as_it_goes_with_status_1(tmp_path: Path) -> None:
    file = recorded(tmp_path / "a.rec", ("a", 1), ("b", 2))
    file.write_bytes(file.read_bytes()[:-60])
    status, output, errors = run("replay", str(file), "--show")
    assert (status, output) == (1, "a 1\n")
    assert "cannot be read to its end: at byte" in errors


def test_what_belongs_to_the_broker_is_passed_over(daemon: Daemon, tmp_path: Path) -> None:
    file = recorded(tmp_path / "a.rec", ("$sys/sessions", 1), ("passed", 2))
    status, output, _ = run("replay", str(file), "--speed", "max", "--json", "--url", daemon.url)
    told = json.loads(output)
    assert (status, told["messages"], told["passed_over"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("record", "a//b", "-o", "x.rec"), "topic filter 'a//b': level 2 is empty"),
        (("record", "#", "-o", "/"), "is a directory"),
        (("record", "#"), "Missing option '--output'"),
        (("record", "#", "-o", "x", "--max-size", "much"), "is no size above 0"),
        (("replay", "/missing.rec"), "recording '/missing.rec': cannot be read"),
        (("replay", "/dev/null"), "recording '/dev/null': is none"),
        (("replay", "x", "--speed", "0"), "is neither a number above 0 nor max"),
        (("diff", "/missing.rec"), "recording '/missing.rec': cannot be read"),
    ],
)
def test_what_cannot_be_is_told(daemon: Daemon, arguments: Sequence[str], problem: str) -> None:
    named = () if arguments[0] == "diff" else ("--url", daemon.url)
    status, output, errors = run(*arguments, *named)
    assert status in (1, 2)
    assert output == ""
    assert problem in errors


def note(rank: int, number: int, digest: str, label: str = "gradients") -> tuple[str, object]:
    told = {"group": "dp", "generation": 1, "round": number, "rank": rank, "label": label, "digest": digest}
    return f"digests/dp/{rank}", told


def test_the_first_round_and_the_rank_that_differs_are_named(tmp_path: Path) -> None:
    notes = [note(rank, number, f"same-{number}") for number in range(3) for rank in range(4)]
    notes += [note(rank, 3, "odd" if rank == 2 else "even", "parameters") for rank in (3, 2, 0, 1)]
    notes += [note(rank, 4, f"all-{rank}") for rank in range(4)]
    file = recorded(tmp_path / "a.rec", *notes, ("digests/words", "not a note"), ("metrics", 1))
    status, output, errors = run("diff", str(file))
    assert (status, errors) == (1, "")
    assert output == ("dp: round 3 (parameters), generation 1: rank 2 differs from 0-1, 3; 2 of 5 rounds differ\n")
    (line,) = run("diff", str(file), "--json")[1].splitlines()
    told = json.loads(line)
    assert (told["round"], told["differing_ranks"], told["agreeing_ranks"]) == (3, [2], [0, 1, 3])


def test_ranks_that_agree_are_told_too(tmp_path: Path) -> None:
    file = recorded(tmp_path / "a.rec", *[note(rank, number, str(number)) for number in range(5) for rank in range(2)])
    assert run("diff", str(file)) == (0, "dp: ranks 0-1 hold the same in all of 5 rounds\n", "")


def test_a_recording_without_digests_says_how_to_get_them(tmp_path: Path) -> None:
    status, output, errors = run("diff", str(recorded(tmp_path / "a.rec", ("a", 1))))
    assert (status, output) == (0, "")
    assert "ranks publish them with clients.Digests" in errors


def test_two_recordings_are_compared_message_by_message(tmp_path: Path) -> None:
    one = recorded(tmp_path / "one.rec", ("a", 1), ("b", 1), ("a", 2), ("a", 3), ("c", 1))
    other = recorded(tmp_path / "two.rec", ("a", 1), ("a", 5), ("a", 3), ("b", 1), ("b", 2))
    assert run("diff", str(one), str(one))[:2] == (0, "the same 5 messages of 3 topics and publishers\n")
    status, output, _ = run("diff", str(one), str(other))
    assert status == 1
    assert output.splitlines() == [
        "a from me: message 2 (sequence 3 in A, 2 in B) is another one; 1 differ",
        "b from me: message 2 is missing in A, 1 in all",
        "c from me: message 1 is missing in B, 1 in all",
    ]


def test_a_recording_for_whose_beginning_there_was_no_room_is_not_in_the_way(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(writer: Writer, lost: int = 0) -> None:
        if writer._file.closed:
            return
        writer._file.close()
        os.truncate(writer._file.name, 0)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Writer, "close", full)
    file = tmp_path / "a.rec"
    with pytest.raises(InvalidValue, match="cannot be written on: No space left on device"):
        record(daemon.url, "a", file, Bounds(duration_s=0.01), append=False, replay=None, overflow=None)
    assert not file.exists()


def test_a_recording_that_could_not_begin_is_not_in_the_way_of_the_next(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "a.rec"
    status, _, errors = run("record", "a", "-o", str(file), "--replay", "some", "--url", daemon.url)
    assert (status, errors.count("\n")) == (1, 1)
    assert run("record", "a", "-o", str(file), "--duration", "0.05", "--url", daemon.url)[0] == 0
    # What was there before stays.
    assert run("record", "a", "-o", str(file), "--append", "--replay", "some", "--url", daemon.url)[0] == 1
    assert file.exists()


def test_a_broker_that_does_not_answer_is_not_taken_for_a_disk_that_is_full(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(bus: clients.Client, topic_filter: str, **options: object) -> clients.Subscription:
        raise clients.TimeoutError(f"subscribe to {topic_filter!r}", 5.0)

    monkeypatch.setattr(clients.Client, "subscribe", stopped)
    file = tmp_path / "a.rec"
    with pytest.raises(clients.TimeoutError, match="subscribe to 'a'"):
        record(daemon.url, "a", file, Bounds(duration_s=0.01), append=False, replay=None, overflow=None)
    assert not file.exists()


@pytest.mark.parametrize("number", ["nan", "inf", "1e300", "-1"])
def test_a_number_that_cannot_be_counted_with_is_a_wrong_command_line(number: str, tmp_path: Path) -> None:
    for arguments in (
        ("record", "a", "-o", str(tmp_path / "a.rec"), "--duration", number),
        ("certs", "init", str(tmp_path / "pki"), "--days", number),
        ("top", "--once", "--interval", number),
        ("stuck", "--after", number),
        ("bench", "--duration", number),
    ):
        status, output, errors = run(*arguments)
        assert (status, output, "Traceback" in errors) == (2, "", False), arguments
    assert list(tmp_path.iterdir()) == []
