"""Permissions at both kinds of client, over every transport."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import clients
from broker.security.identity import Identity
from broker.security.permissions import Permissions
from broker.security.quotas import Quotas
from broker.security.roles import READY_MADE, Role, Verb
from clients.connection.views import view
from tests.clients.conftest import Connect
from tests.clients.serving import ServingThread
from tests.ucxx import need_ucxx

PATIENCE_S = 60.0
_names = itertools.count()
Allow = Callable[..., None]


def permissions(**allow: tuple[str, ...]) -> Permissions:
    """Everybody may do this, and nothing else."""
    role = Role({Verb(verb): filters for verb, filters in allow.items()})
    return Permissions(configured=True, roles={**READY_MADE, "everybody": role}, everybody=("everybody",))


def somebody(folder: Path) -> Path:
    """The certificate of somebody who has no role that is known."""
    from broker.security.certificate_authority import CertificateAuthority

    return CertificateAuthority(folder).issue("somebody", ("nothing",))[0]


@pytest.fixture(params=["inproc", "tcp", "tls", "unix", "zmq+tcp", "zmq+ipc", "ucx"])
def broker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ServingThread]:
    if request.param == "ucx":
        need_ucxx()
    folder = f"{request.getfixturevalue('certificates')}/broker" if request.param == "tls" else ""
    # Whoever runs the broker may do everything at its own socket; the tests are to be somebody else there.
    monkeypatch.setattr(
        "broker.security.admission.identity_of_user", lambda users, number: Identity("somebody", proof="unix")
    )
    address = {
        "inproc": f"inproc://permissions-{next(_names)}",
        "tcp": "tcp://127.0.0.1:0",
        "tls": f"tls://127.0.0.1:0?certificates={folder}",
        "ucx": "ucx://127.0.0.1:0",
        "unix": f"unix://{tmp_path}/broker.sock",
        "zmq+ipc": f"zmq+ipc://{tmp_path}/zeromq.sock",
        "zmq+tcp": "zmq+tcp://127.0.0.1:0",
    }[request.param]
    with ServingThread(address, permissions=permissions(subscribe=("heard",), publish=("said",))) as serving:
        if folder:
            serving.url = serving.url.replace(folder, str(somebody(request.getfixturevalue("certificates"))))
        yield serving


@pytest.fixture
def allow(broker: ServingThread) -> Allow:
    """Replaces what everybody may do."""

    def replace(**filters: tuple[str, ...]) -> None:
        broker.call(broker.server.replace_permissions, permissions(**filters))

    return replace


@pytest.fixture
def bus(connect: Connect) -> clients.Client:
    return connect("somebody")


REFUSED: dict[Verb, Callable[[clients.Client], object]] = {
    Verb.PUBLISH: lambda bus: bus.publish("other", 1, ack="accepted"),
    Verb.SUBSCRIBE: lambda bus: bus.subscribe("other"),
    Verb.REQUEST: lambda bus: bus.request("other", 1, timeout_s=PATIENCE_S),
    Verb.RESPOND: lambda bus: bus.respond("other", lambda message: None),
    Verb.JOIN: lambda bus: bus.group("other", world_size=1, rank=0, timeout_s=PATIENCE_S),
    Verb.DECLARE: lambda bus: bus.declare("other", retain=True),
    Verb.ADMIN: lambda bus: view(bus, "topics"),
}


@pytest.mark.parametrize("verb", Verb)
def test_each_verb_is_refused_where_all_others_are_allowed(broker: ServingThread, allow: Allow, verb: Verb) -> None:
    from broker.answers import show_to_clients

    broker.call(show_to_clients, broker.server)
    allow(**{other.value: ("#",) for other in Verb if other is not verb})
    with clients.connect(broker.url) as bus:
        with pytest.raises(clients.PermissionDenied, match=verb.value):
            REFUSED[verb](bus)
        allow(**{other.value: ("#",) for other in Verb})
        if verb is not Verb.REQUEST:
            # To that nobody responds.
            REFUSED[verb](bus)


def test_publish_is_refused(bus: clients.Client) -> None:
    with pytest.raises(clients.PermissionDenied, match=r"publish 'other'.*it may publish said"):
        bus.publish("other", 1, ack="accepted")
    assert bus.publish("said", 1, ack="accepted") == 1


def test_publish_without_an_answer_is_refused_by_the_next_call_and_all_after_it(bus: clients.Client) -> None:
    bus.publish("other", 1)
    with pytest.raises(clients.PermissionDenied):
        bus.flush(PATIENCE_S)
    for _ in range(3):
        with pytest.raises(clients.PermissionDenied):
            bus.publish("other", 1)
    bus.flush(PATIENCE_S)
    bus.publish("said", 1)


def test_a_large_tensor_is_refused(bus: clients.Client) -> None:
    array = np.ones(1 << 20, np.float32)
    with pytest.raises(clients.PermissionDenied):
        bus.publish("other", array, ack="accepted")
    assert bus.publish("said", array, ack="accepted") == 1


def test_subscribe_is_refused_with_what_one_may_subscribe_to(bus: clients.Client) -> None:
    with pytest.raises(clients.PermissionDenied, match="it may subscribe heard"):
        bus.subscribe("#")
    bus.subscribe("heard").close()


def test_request_is_refused(bus: clients.Client) -> None:
    with pytest.raises(clients.PermissionDenied, match="request 'said'"):
        bus.request("said", 1, timeout_s=PATIENCE_S)
    with pytest.raises(clients.PermissionDenied):
        list(bus.request_many("said", 1, timeout_s=PATIENCE_S))


def test_respond_is_refused(bus: clients.Client) -> None:
    with pytest.raises(clients.PermissionDenied, match="respond 'heard'"):
        bus.respond("heard", lambda message: None)


def test_joining_a_group_or_a_queue_group_is_refused(bus: clients.Client) -> None:
    with pytest.raises(clients.PermissionDenied, match="join 'dp'"):
        bus.group("dp", world_size=1, rank=0, timeout_s=PATIENCE_S)
    with pytest.raises(clients.PermissionDenied, match="join 'workers'"):
        bus.subscribe("heard", queue_group="workers")


def test_declare_is_refused(bus: clients.Client) -> None:
    with pytest.raises(clients.PermissionDenied, match="declare 'said'"):
        bus.declare("said", retain=True)


def test_questions_are_refused(bus: clients.Client) -> None:
    with pytest.raises(clients.PermissionDenied, match="admin 'topics'"):
        bus.pressure("other", timeout_s=PATIENCE_S)
    assert bus.pressure("said", timeout_s=PATIENCE_S).topic == "said"


def test_views_are_refused(broker: ServingThread, allow: Allow) -> None:
    with clients.connect(broker.url) as bus:
        for what in ("server", "sessions", "topics", "groups"):
            with pytest.raises(clients.PermissionDenied):
                view(bus, what)


def test_all_verbs_are_allowed_that_a_rule_names(bus: clients.Client, connect: Connect, allow: Allow) -> None:
    everything = dict.fromkeys((verb.value for verb in Verb), ("#",))
    allow(**everything)
    other = connect("other")
    other.respond("ask", lambda message: message.value + 1)
    assert bus.request("ask", 1, timeout_s=PATIENCE_S).value == 2
    bus.declare("a/#", ring_messages=3)
    with other.subscribe("#", queue_group="workers") as subscription:
        bus.publish("a/b", 5)
        assert subscription.next(PATIENCE_S).value == 5
    assert bus.group("dp", world_size=1, rank=0, timeout_s=PATIENCE_S).rank == 0


def test_a_subscription_that_is_revoked_ends_with_the_reason_behind_what_has_come(
    bus: clients.Client, connect: Connect, allow: Allow
) -> None:
    allow(subscribe=("heard",), publish=("heard",))
    subscription = bus.subscribe("heard")
    connect("other").publish("heard", 1, ack="accepted")
    allow(publish=("heard",))
    assert subscription.next(PATIENCE_S).value == 1
    with pytest.raises(clients.PermissionDenied, match="subscribe 'heard'"):
        subscription.next(PATIENCE_S)
    subscription.close()
    bus.flush(PATIENCE_S)


def test_a_publisher_that_is_revoked_is_refused_and_may_again_when_it_is_allowed(
    bus: clients.Client, allow: Allow
) -> None:
    bus.publish("said", 1, ack="accepted")
    allow()
    bus.publish("said", 2)
    with pytest.raises(clients.PermissionDenied):
        bus.flush(PATIENCE_S)
    with pytest.raises(clients.PermissionDenied):
        bus.publish("said", 3)
    allow(publish=("said",))
    # Behind the answer to the flush, the client knows.
    bus.flush(PATIENCE_S)
    assert bus.publish("said", 4, ack="accepted") == 2


def test_a_handler_ends_with_its_subscription_and_the_others_go_on(
    bus: clients.Client, connect: Connect, allow: Allow
) -> None:
    allow(subscribe=("a", "b"), publish=("a", "b"))
    heard: list[object] = []
    came = threading.Event()
    bus.subscribe("a", handler=lambda message: heard.append(message.value))
    bus.subscribe("b", handler=lambda message: came.set())
    allow(subscribe=("b",), publish=("a", "b"))
    other = connect("other")
    other.publish("a", 1, ack="accepted")
    other.publish("b", 1, ack="accepted")
    assert came.wait(PATIENCE_S)
    assert heard == []


def test_a_subscription_that_may_not_be_any_more_does_not_come_back_after_a_reconnect(
    bus: clients.Client, broker: ServingThread, allow: Allow
) -> None:
    allow(subscribe=("heard", "other"))
    subscription = bus.subscribe("heard")

    def cut_and_revoke() -> None:
        (link,) = broker.server._links.values()
        broker.server._close(link, abort=True)
        broker.server.replace_permissions(permissions(subscribe=("other",)))

    broker.call(cut_and_revoke)
    with pytest.raises(clients.PermissionDenied):
        subscription.next(PATIENCE_S)
    bus.subscribe("other").close()


def test_tenants_see_nothing_of_one_another(connect: Connect, allow: Allow, broker: ServingThread) -> None:
    allow(publish=("#",), subscribe=("#",), admin=("#",), join=("#",), request=("#",), respond=("#",))
    blue, red = connect("blue", tenant="blue"), connect("red", tenant="red")
    blue.respond("ask", lambda message: "blue")
    with blue.subscribe("#") as of_blue, red.subscribe("#") as of_red:
        red.publish("a", np.ones(1 << 18, np.float32))
        red.flush(PATIENCE_S)
        blue.publish("a", 1, ack="accepted")
        assert of_blue.next(PATIENCE_S).value == 1
        assert of_red.next(PATIENCE_S).value.shape == (1 << 18,)
        with pytest.raises(clients.NoResponders):
            red.request("ask", 1, timeout_s=PATIENCE_S)
        assert blue.request("ask", 1, timeout_s=PATIENCE_S).value == "blue"
    groups = [client.group("dp", world_size=1, rank=0, timeout_s=PATIENCE_S) for client in (blue, red)]
    assert [group.world_size for group in groups] == [1, 1]
    for group in groups:
        group.leave()


def test_views_show_a_tenant_its_own_and_those_of_none_all(broker: ServingThread, allow: Allow) -> None:
    from broker.answers import show_to_clients

    allow(publish=("#",), subscribe=("#",), admin=("#",))
    broker.call(show_to_clients, broker.server)
    with clients.connect(broker.url, name="blue", tenant="blue") as blue, clients.connect(broker.url, name="x") as own:
        blue.publish("a", 1, ack="accepted")
        own.publish("b", 1, ack="accepted")
        assert [said(each) for each in view(blue, "sessions")] == ["blue"]
        assert [each["name"] for each in view(blue, "topics")] == ["a"]
        assert view(blue, "server")[0]["published_messages"] == 1
        assert {(each["name"], each["tenant"]) for each in view(own, "topics")} == {("a", "blue"), ("b", "")}
        assert {(said(each), each["tenant"]) for each in view(own, "sessions")} == {("blue", "blue"), ("x", "")}


def said(session: dict[str, Any]) -> str:
    """What a session calls itself, without the name that it may have proven."""
    return str(session["name"]).rpartition("/")[2]


def test_a_tenant_that_may_not_be_entered_is_refused(broker: ServingThread) -> None:
    with pytest.raises(clients.PermissionDenied, match="tenants/blue"):
        clients.connect(broker.url, tenant="blue")


def test_one_session_more_than_the_quota_is_refused() -> None:
    with (
        ServingThread("tcp://127.0.0.1:0", tenants={"blue": Quotas(sessions_max=1)}) as broker,
        clients.connect(broker.url, tenant="blue"),
        pytest.raises(clients.ConnectError, match="tenant_sessions_max: 2 is over the limit of 1"),
    ):
        clients.connect(broker.url, tenant="blue")
