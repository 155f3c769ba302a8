"""The HTTP interface: what it shows, that it changes nothing, and how it refuses."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from typing import NamedTuple

import msgspec
import numpy as np
import pytest

import clients
from broker.admin.http import Admin
from broker.admin.shapes import GroupView
from broker.admin.views import ServerView, SessionView, TopicView
from broker.config import Config
from broker.errors import ListenError
from broker.server import Server
from tests.daemon import PATIENCE_S, Daemon
from tests.holding_back import publish_until_held_back


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes


def ask(url: str, path: str, method: str = "GET") -> Answer:
    connection = HTTPConnection(url.removeprefix("http://"), timeout=PATIENCE_S)
    try:
        connection.request(method, path)
        response: HTTPResponse = connection.getresponse()
        return Answer(response.status, dict(response.getheaders()), response.read())
    finally:
        connection.close()


def ask_json(daemon: Daemon, path: str) -> dict[str, list[dict[str, object]]]:
    answer = ask(daemon.admin_url, path)
    assert (answer.status, answer.headers["Content-Type"]) == (200, "application/json")
    return json.loads(answer.body)


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon("--name", "test-broker") as daemon:
        yield daemon
        # Of what is asked for here by everybody: nobody is to find a library's advice in the log.
        assert "Warning: " not in daemon.errors


def test_health_is_plain_text(daemon: Daemon) -> None:
    answer = ask(daemon.admin_url, "/healthz")
    assert (answer.status, answer.body) == (200, b"ok")
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_metrics_are_prometheus_text(daemon: Daemon) -> None:
    answer = ask(daemon.admin_url, "/metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    assert b"\ntensorbus_sessions " in answer.body


def test_the_first_page_links_to_everything_else(daemon: Daemon) -> None:
    page = ask(daemon.admin_url, "/").body.decode()
    links = [part.split('"')[0] for part in page.split('href="')[1:]]
    assert "/api/v1/groups" in links
    assert [link for link in links if ask(daemon.admin_url, link).status != 200] == []


def test_an_unknown_path_is_an_error_in_json(daemon: Daemon) -> None:
    answer = ask(daemon.admin_url, "/api/v1/secrets")
    assert (answer.status, answer.headers["Content-Type"]) == (404, "application/json")
    assert json.loads(answer.body)["error"].startswith("/api/v1/secrets: no such path; there are /, /healthz")


@pytest.mark.parametrize("path", ["/../../etc/passwd", "/static/../../etc/passwd", "/etc/passwd", "/%2e%2e/etc/passwd"])
def test_no_path_leads_to_a_file(daemon: Daemon, path: str) -> None:
    assert ask(daemon.admin_url, path).status == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_get_is_answered(daemon: Daemon, method: str) -> None:
    answer = ask(daemon.admin_url, "/api/v1/sessions", method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET")
    assert f"{method} /api/v1/sessions: nothing can be changed here" in json.loads(answer.body)["error"]


def test_the_server_tells_its_name_addresses_and_totals(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, bus.subscribe("server/#"):
        before = msgspec.convert(ask_json(daemon, "/api/v1/server"), ServerView)
        bus.publish("server/topic", b"1234")
        bus.flush()
        view = msgspec.convert(ask_json(daemon, "/api/v1/server"), ServerView)
    assert daemon.process is not None
    assert (view.name, view.process, view.listeners) == ("test-broker", daemon.process.pid, list(daemon.urls))
    assert (view.draining, view.subscriptions, view.groups) == (False, 1, 0)
    assert view.published_messages - before.published_messages == 1
    assert view.published_bytes - before.published_bytes == 4
    assert set(view.dropped_messages) == {"block", "drop_oldest", "drop_newest", "latest"}
    assert view.uptime_s >= before.uptime_s > 0


def test_a_session_tells_its_client_its_topics_and_its_subscriptions(daemon: Daemon) -> None:
    with (
        clients.connect(daemon.url, name="shown") as bus,
        bus.subscribe("sessions/#", overflow="drop_oldest", queue_group="workers") as subscription,
    ):
        bus.publish("sessions/b", 1)
        bus.publish("sessions/a", 2)
        assert [subscription.next(PATIENCE_S).value for _ in range(2)] == [1, 2]
        listed = ask_json(daemon, "/api/v1/sessions")["sessions"]
        view = next(msgspec.convert(entry, SessionView) for entry in listed if entry["name"] == "shown")
    assert (view.phase, view.publishes, view.groups) == ("open", ["sessions/a", "sessions/b"], [])
    assert view.peer.startswith("tcp://127.0.0.1:")
    assert (view.host, view.process > 0, view.open_s > 0) == (socket.gethostname(), True, True)
    shown = view.subscriptions[0]
    assert (shown.filter, shown.overflow, shown.queue_group) == ("sessions/#", "drop_oldest", "workers")
    assert (shown.delivered_messages, shown.dropped_messages, shown.waiting_messages) == (2, 0, 0)
    assert len(view.subscriptions) == 1, "the inbox is not shown"


def test_a_topic_tells_what_it_keeps_and_who_listens(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus, bus.subscribe("topics/+"), bus.subscribe("topics/one"):
        bus.publish("topics/one", b"12")
        bus.publish("topics/one", b"345")
        bus.flush()
        listed = [msgspec.convert(entry, TopicView) for entry in ask_json(daemon, "/api/v1/topics")["topics"]]
    names = [view.name for view in listed]
    view = listed[names.index("topics/one")]
    assert view == TopicView(
        name="topics/one",
        published_messages=2,
        published_bytes=5,
        next_sequence=3,
        oldest_sequence=1,
        retained_messages=2,
        retained_bytes=5,
        subscriptions=2,
        held_back_publishers=0,
        held_back_by=[],
        queue_groups=[],
        refused_messages=0,
        policy=view.policy,
    )
    assert [held.setting for held in view.policy][:2] == ["ring_messages", "ring_bytes"]
    assert {(held.filter, held.origin) for held in view.policy} == {("", "default")}
    assert names == sorted(names)
    assert not any(name.startswith("$") for name in names)


def test_a_filter_chooses_topics(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        for topic in ("chosen/a", "chosen/b/c", "others/a"):
            bus.publish(topic, 1)
        bus.flush()
    listed = ask_json(daemon, "/api/v1/topics?filter=chosen/%23")["topics"]
    assert [entry["name"] for entry in listed] == ["chosen/a", "chosen/b/c"]
    answer = ask(daemon.admin_url, "/api/v1/topics?filter=a//b")
    assert (answer.status, json.loads(answer.body)["error"].startswith("topic filter 'a//b'")) == (400, True)


def test_a_refused_message_is_counted(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        bus.declare("refused", max_message_bytes=3)
        with pytest.raises(clients.LimitExceeded):
            bus.publish("refused", b"1234", ack="accepted")
    (entry,) = ask_json(daemon, "/api/v1/topics?filter=refused")["topics"]
    assert (entry["refused_messages"], entry["published_messages"]) == (1, 0)
    assert ask_json(daemon, "/api/v1/server")["refused_messages"] == 1
    assert b"\ntensorbus_messages_refused_total 1.0\n" in ask(daemon.admin_url, "/metrics").body


def test_a_slow_subscription_tells_which_topics_it_blocks(daemon: Daemon) -> None:
    with (
        clients.connect(daemon.url, name="slow") as reader,
        reader.subscribe("blocked", queue_messages=1),
        clients.connect(daemon.url) as writer,
    ):
        publish_until_held_back(writer, "blocked")
        sessions = ask_json(daemon, "/api/v1/sessions")["sessions"]
        topics = ask_json(daemon, "/api/v1/topics")["topics"]
    view = next(msgspec.convert(entry, SessionView) for entry in sessions if entry["name"] == "slow")
    assert view.subscriptions[0].blocks_topics == ["blocked"]
    assert view.subscriptions[0].waiting_messages > 0
    (topic,) = [entry for entry in topics if entry["name"] == "blocked"]
    assert (topic["held_back_publishers"], topic["held_back_by"]) == (1, ["slow"])


def groups_of(daemon: Daemon) -> list[GroupView]:
    return msgspec.convert(ask_json(daemon, "/api/v1/groups")["groups"], list[GroupView], str_keys=True)


def test_a_group_tells_who_holds_up_the_operation_in_progress(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as first, clients.connect(daemon.url) as second:
        joining = asyncio.run(join_both(first, second))
        work = joining[0].all_reduce(np.ones(4, np.float32), op="sum", async_op=True)
        first.flush()
        (view,) = groups_of(daemon)
        joining[1].all_reduce(np.ones(4, np.float32), op="sum", timeout_s=PATIENCE_S)
        work.wait(timeout_s=PATIENCE_S)
    assert (view.name, view.generation, view.world_size, view.ranks, view.missing_ranks) == ("dp", 1, 2, [0, 1], [])
    (operation,) = view.operations
    assert (operation.sequence, operation.state) == (1, "gathering")
    assert (operation.arrived_ranks, operation.missing_ranks) == ([0], [1])
    assert (operation.held_bytes, operation.waiting_s >= 0, operation.deadline_s > 0) == (16, True, True)
    assert "all_reduce" in operation.claim


async def join_both(first: clients.Client, second: clients.Client) -> list[clients.Group]:
    return await asyncio.gather(
        asyncio.to_thread(first.group, "dp", world_size=2, rank=0, schedule="star"),
        asyncio.to_thread(second.group, "dp", world_size=2, rank=1, schedule="star"),
    )


def test_a_group_that_forms_tells_which_ranks_are_missing(daemon: Daemon) -> None:
    with clients.connect(daemon.url) as bus:
        (view,) = asyncio.run(seen_while_joining(bus, daemon))
    assert (view.generation, view.ranks, view.missing_ranks, view.waiting) == (0, [], [0, 2], 1)


async def seen_while_joining(bus: clients.Client, daemon: Daemon) -> list[GroupView]:
    """The groups as they show while a member waits for others, who never come."""
    joining = asyncio.create_task(asyncio.to_thread(join_in_vain, bus))
    views: list[GroupView] = []
    while not views and not joining.done():
        views = await asyncio.to_thread(groups_of, daemon)
    bus.close()
    await joining
    return views


def join_in_vain(bus: clients.Client) -> None:
    with pytest.raises(clients.ConnectionClosed):
        bus.group("forming", world_size=3, rank=1, timeout_s=PATIENCE_S)


def test_readiness_follows_the_server() -> None:
    async def answers() -> list[tuple[int, bytes]]:
        server = Server(Config(listen=("tcp://127.0.0.1:0",)))
        admin = Admin(server)
        url = await admin.start("127.0.0.1:0")

        async def ready() -> tuple[int, bytes]:
            answer = await asyncio.to_thread(ask, url, "/readyz")
            return answer.status, answer.body

        seen = [await ready()]
        server.start(server.config.listen)
        seen.append(await ready())
        await server.stop()
        seen.append(await ready())
        await admin.stop()
        return seen

    assert asyncio.run(answers()) == [(503, b"not listening"), (200, b"ready"), (503, b"draining")]


def test_an_address_in_use_is_refused_with_what_to_do() -> None:
    async def start_at(address: str) -> None:
        admin = Admin(Server(Config(listen=("tcp://127.0.0.1:0",))))
        try:
            await admin.start(address)
        finally:
            await admin.stop()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError) as error:
            asyncio.run(start_at(address))
    assert str(error.value) == (
        f"cannot listen on http://{address}: the address is in use; stop what listens there or choose another one "
        "(--admin HOST:PORT chooses another address, --admin off does without)"
    )


def test_it_can_be_stopped_twice_and_frees_its_port() -> None:
    async def start_twice() -> tuple[str, str]:
        server = Server(Config(listen=("tcp://127.0.0.1:0",)))
        first, second = Admin(server), Admin(server)
        url = await first.start("127.0.0.1:0")
        await first.stop()
        await first.stop()
        again = await second.start(url.removeprefix("http://"))
        await second.stop()
        return url, again

    url, again = asyncio.run(start_twice())
    assert url == again
    assert not url.endswith(":0")
