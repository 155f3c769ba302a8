"""`tensorbus pub`, `sub` and `request` as real processes, with a real daemon."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import clients
from tests.daemon import PATIENCE_S, Daemon, Process, run
from tests.loopback import own_host


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon(admin="off") as daemon:
        yield daemon


def retained(daemon: Daemon, topic: str, count: int = 1) -> list[object]:
    """The values that a topic has kept."""
    with clients.connect(daemon.url) as bus, bus.subscribe(topic, replay="all") as subscription:
        return [subscription.next(PATIENCE_S).value for _ in range(count)]


# pub


def test_pub_publishes_text(daemon: Daemon) -> None:
    assert run("pub", "pub/text", "hällo world", "--url", daemon.url) == (0, "", "")
    assert retained(daemon, "pub/text") == ["hällo world"]


def test_pub_without_a_value_publishes_none(daemon: Daemon) -> None:
    assert run("pub", "pub/none", "--url", daemon.url)[0] == 0
    assert retained(daemon, "pub/none") == [None]


def test_pub_parses_json(daemon: Daemon) -> None:
    assert run("pub", "pub/json", '{"step": 1, "loss": [0.5, null]}', "--json", "--url", daemon.url)[0] == 0
    assert retained(daemon, "pub/json") == [{"step": 1, "loss": [0.5, None]}]


def test_pub_reads_bytes_from_its_input(daemon: Daemon) -> None:
    assert run("pub", "pub/bytes", "-", "--url", daemon.url, stdin=b"\x00\xffline\n")[0] == 0
    assert retained(daemon, "pub/bytes") == [b"\x00\xffline\n"]


def test_pub_with_json_tells_each_sequence_in_an_object(daemon: Daemon) -> None:
    code, told, _ = run("pub", "pub/told", "-", "--json", "--ack", "--url", daemon.url, stdin=b"1\n2")
    assert [json.loads(line) for line in told.splitlines()] == [
        {"topic": "pub/told", "sequence": 1},
        {"topic": "pub/told", "sequence": 2},
    ]
    assert code == 0


def test_pub_reads_a_json_value_from_each_line_of_its_input(daemon: Daemon) -> None:
    assert run("pub", "pub/lines", "-", "--json", "--url", daemon.url, stdin=b'1\n\n{"a": 2}\n"three"')[0] == 0
    assert retained(daemon, "pub/lines", 3) == [1, {"a": 2}, "three"]


def test_pub_repeats_and_tells_sequences_when_it_waits_for_them(daemon: Daemon) -> None:
    arguments = ["pub", "pub/repeated", "x", "--count", "3", "--ack", "--lane", "bulk", "--url", daemon.url]
    assert run(*arguments) == (0, "1\n2\n3\n", "")
    with clients.connect(daemon.url) as bus, bus.subscribe("pub/repeated", replay="all") as subscription:
        messages = [subscription.next(PATIENCE_S) for _ in range(3)]
    assert [(message.value, message.lane) for message in messages] == [("x", "bulk")] * 3


def test_pub_finds_the_broker_in_the_environment(daemon: Daemon) -> None:
    assert run("pub", "pub/environment", "x", environment={"TENSORBUS_URL": daemon.url})[0] == 0
    assert retained(daemon, "pub/environment") == ["x"]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["pub", "a/+", "x"], "topic 'a/+': has a wildcard (+ or #)"),
        (["pub", "a", "{", "--json"], "value '{': is not JSON: Expecting property name"),
        (["pub", "a", "-", "--json"], "line 2 of the standard input b'nonsense\\n': is not JSON"),
        (["sub", "a/#/b"], "topic filter 'a/#/b': "),
        (["sub", "a", "--replay", "some"], "replay 'some': is neither 'latest', 'all' nor a sequence"),
        (["request", "nobody/there"], "nobody responds at 'nobody/there': start a responder, or check"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_status_1(daemon: Daemon, arguments: list[str], problem: str) -> None:
    status, output, errors = run(*arguments, "--url", daemon.url, stdin=b"1\nnonsense\n")
    assert (status, output) == (1, "")
    assert errors.startswith(f"tensorbus: {problem}")
    assert errors.count("\n") == 1


@pytest.mark.parametrize("command", ["pub", "sub", "request"])
def test_a_broker_that_is_not_there_is_one_line_and_status_3(command: str, tmp_path: Path) -> None:
    status, output, errors = run(command, "a", "--url", f"unix://{tmp_path}/absent.sock")
    assert (status, output) == (3, "")
    assert errors.startswith(f"tensorbus: cannot connect to unix://{tmp_path}/absent.sock: there is no such file")
    assert errors.count("\n") == 1


# sub


def sub_retained(daemon: Daemon, topic: str, value: object, *flags: str) -> str:
    """What `sub` prints for one message."""
    with clients.connect(daemon.url, name="publisher") as bus:
        bus.publish(topic, value, headers={"unit": "s"})
        bus.flush()
    status, output, errors = run("sub", topic, "--count", "1", "--replay", "latest", *flags, "--url", daemon.url)
    assert (status, errors) == (0, "")
    return output


def test_sub_prints_topic_and_value_in_one_line(daemon: Daemon) -> None:
    assert sub_retained(daemon, "sub/text", "two words") == "sub/text two words\n"
    assert sub_retained(daemon, "sub/text", [1, None]) == "sub/text [1,null]\n"


def test_sub_prints_all_there_is_to_a_message_as_json(daemon: Daemon) -> None:
    described = json.loads(sub_retained(daemon, "sub/json/all", {"step": 1}, "--json"))
    assert described.pop("published_ns") > 1.6e18
    assert described == {
        "topic": "sub/json/all",
        "sequence": 1,
        "sender": "publisher",
        "lane": "default",
        "headers": {"unit": "s"},
        "value": {"step": 1},
    }


def test_sub_describes_tensors_and_bytes_as_json(daemon: Daemon) -> None:
    tensor = sub_retained(daemon, "sub/json/tensor", np.array([[1, 2]], np.int32), "--json")
    assert json.loads(tensor)["value"] == {"dtype": "int32", "shape": [1, 2], "data": [[1, 2]]}
    data = sub_retained(daemon, "sub/json/bytes", b"\x00\xff", "--json")
    assert json.loads(data)["value"] == {"base64": "AP8="}


def test_sub_writes_raw_payloads_and_nothing_else(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        bus.publish("sub/raw", b"\x00\xff\n")
        bus.publish("sub/raw", np.array([1, 2], "<u2"))
        bus.flush()
    with Process("sub", "sub/raw", "--replay", "all", "--count", "2", "--raw", "--url", daemon.url) as process:
        assert process.read_rest() == b"\x00\xff\n\x01\x00\x02\x00"
        assert process.wait() == 0


def test_sub_begins_at_a_sequence(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        for number in range(1, 5):
            bus.publish("sub/sequence", number)
        bus.flush()
    arguments = ["sub", "sub/sequence", "--replay", "3", "--count", "2", "--url", daemon.url]
    assert run(*arguments) == (0, "sub/sequence 3\nsub/sequence 4\n", "")


def test_sub_ends_with_0_at_ctrl_c(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        bus.publish("sub/interrupted", "one")
        bus.flush()
    with Process("sub", "sub/interrupted", "--replay", "all", "--url", daemon.url) as process:
        assert process.read_line() == "sub/interrupted one"
        process.signal(signal.SIGINT)
        assert process.wait() == 0
        assert process.errors == ""


def test_sub_ends_quietly_when_nobody_reads_its_output_any_more(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        bus.publish("sub/pipe", "one")
        bus.flush()
        with Process("sub", "sub/pipe", "--replay", "all", "--url", daemon.url) as process:
            assert process.read_line() == "sub/pipe one"
            process.close_output()
            bus.publish("sub/pipe", "two")
            assert process.wait() == 0
            assert process.errors == ""


def test_sub_waits_for_no_message_that_nobody_would_read(daemon: Daemon) -> None:
    with Process("sub", "sub/quiet", "--url", daemon.url) as process:
        process.close_output()
        assert process.wait() == 0
        assert process.errors == ""


def test_sub_tells_what_its_policy_has_dropped(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        for number in range(3):
            bus.publish("sub/dropped", number)
        bus.flush()
        arguments = ["--replay", "all", "--overflow", "latest", "--count", "1", "--url", daemon.url]
        status, output, errors = run("sub", "sub/dropped", *arguments)
    assert (status, output) == (0, "sub/dropped 2\n")
    assert errors == "tensorbus: 2 messages were dropped, because this program did not keep up\n"


def test_sub_survives_a_restart_of_the_broker() -> None:
    with Daemon(listen=(f"tcp://{own_host()}:0",), admin="off") as daemon:
        with clients.connect(daemon.url) as bus:
            bus.publish("sub/restart", "before")
            bus.flush()
        with Process("sub", "sub/restart", "--replay", "all", "--url", daemon.url) as process:
            assert process.read_line() == "sub/restart before"
            daemon.kill()
            daemon.start()
            with clients.connect(daemon.url) as bus:
                assert publish_until_printed(bus, "sub/restart", process) == "sub/restart after"


def publish_until_printed(bus: clients.Client, topic: str, process: Process) -> str:
    """The first line of a process that may not have subscribed again yet."""
    for _ in range(100):
        bus.publish(topic, "after")
        try:
            return process.read_line(timeout_s=0.3)
        except TimeoutError:
            continue
    return process.read_line()


def test_sub_ends_with_0_at_ctrl_c_while_the_broker_is_gone() -> None:
    with Daemon(listen=(f"tcp://{own_host()}:0",), admin="off") as daemon:
        with clients.connect(daemon.url) as bus:
            bus.publish("sub/alone", "before")
            bus.flush()
        with Process("sub", "sub/alone", "--replay", "all", "--url", daemon.url) as process:
            assert process.read_line() == "sub/alone before"
            daemon.kill()
            process.signal(signal.SIGINT)
            assert process.wait() == 0
            assert "Traceback" not in process.errors


def test_sub_gives_up_with_status_1_when_the_broker_is_gone_for_good() -> None:
    with Daemon(listen=(f"tcp://{own_host()}:0",), admin="off") as daemon:
        with clients.connect(daemon.url) as bus:
            bus.publish("sub/gone", "before")
            bus.flush()
        arguments = ["--replay", "all", "--reconnect-timeout", "0.2", "--url", daemon.url]
        with Process("sub", "sub/gone", *arguments) as process:
            assert process.read_line() == "sub/gone before"
            daemon.kill()
            assert process.wait() == 1
            errors = process.errors
    reason = f"closed: gave up reconnecting after 0.2 s: cannot connect to {daemon.url}: nobody listens there"
    assert errors.splitlines()[-1].startswith(f"tensorbus: {reason}")
    assert "Traceback" not in errors


# request


def test_request_prints_the_value_of_the_reply(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, bus.respond("request/echo", lambda message: {"got": message.value}):
        text = run("request", "request/echo", "x", "--url", daemon.url)
        nothing = run("request", "request/echo", "--url", daemon.url)
        parsed = run("request", "request/echo", '{"layer": 3}', "--json", "--url", daemon.url)
    assert text == (0, '{"got":"x"}\n', "")
    assert nothing == (0, '{"got":null}\n', "")
    assert parsed == (0, '{"got":{"layer":3}}\n', "")


def test_request_prints_text_as_text_and_with_json_as_json(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, bus.respond("request/text", lambda _: "plain"):
        assert run("request", "request/text", "--url", daemon.url)[1] == "plain\n"
        assert run("request", "request/text", "--json", "--url", daemon.url)[1] == '"plain"\n'


def test_a_failed_request_tells_what_the_responder_said(daemon: Daemon) -> None:
    def fail(message: clients.Message) -> None:
        raise ValueError("no such layer \x1b[2J")

    with clients.connect(daemon.url) as bus, bus.respond("request/fails", fail):
        status, output, errors = run("request", "request/fails", "--url", daemon.url)
    assert (status, output) == (1, "")
    assert errors.startswith("tensorbus: the responder at 'request/fails' failed: ")
    assert "no such layer ?[2J" in errors


def test_a_request_without_a_reply_ends_at_its_timeout(daemon: Daemon) -> None:
    ended = threading.Event()
    with clients.connect(daemon.url) as bus, bus.respond("request/silent", lambda _: ended.wait(PATIENCE_S)):
        status, output, errors = run("request", "request/silent", "--timeout", "0.1", "--url", daemon.url)
        ended.set()
    assert (status, output) == (1, "")
    assert errors == "tensorbus: timed out after 0.1 s waiting for a reply to a request on 'request/silent'\n"
