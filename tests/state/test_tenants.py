"""Tenants: sessions of one see nothing of those of another, and each has its quotas."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from broker.protocol.bodies import Declare, Join, Refusal, Settle, Subscribe, decode_body
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind
from broker.protocol.pressure import Pressure, Query, View
from broker.security.identity import Identity
from broker.security.permissions import Permissions, Rights
from broker.security.quotas import Quotas
from broker.state.tenants import Tenant
from tests.state.harness import Peer, Talk
from tests.state.sharers import Sharer
from tests.state.test_authority import ADMIN, permissions, role


def identity(tenant: str, *roles: str) -> Identity:
    return Identity("somebody", roles or ("admin",), tenant, "token")


def two() -> tuple[Talk, Peer, Peer]:
    talk = Talk(ring_messages=10)
    return talk, talk.peer("blue", identity=identity("blue")), talk.peer("red", identity=identity("red"))


def test_topics_of_the_same_name_are_two() -> None:
    talk, blue, red = two()
    numbers = [peer.subscribe("#") for peer in (blue, red)]
    blue.publish("a", b"b")
    red.publish("a", b"r")
    red.publish("a", b"r")
    assert [peer.payloads(number) for peer, number in zip((blue, red), numbers, strict=True)] == [[b"b"], [b"r"] * 2]
    assert blue.sequences(numbers[0]) == [1]
    assert red.sequences(numbers[1]) == [1, 2]
    assert talk.state.router.topics.keys() == set()


def test_nothing_that_is_kept_is_replayed_to_another_tenant() -> None:
    _, blue, red = two()
    blue.publish("a", b"b")
    number = red.subscribe("a", replay="all")
    assert red.delivered(number) == []


def test_requests_and_replies_stay_among_their_own() -> None:
    _, blue, red = two()
    blue.subscribe("ask", responder=True)
    red.publish("ask", b"q", Flag.REQUEST, target=3, sequence=1)
    assert [failure.code for failure in red.failures()] == [Code.NO_RESPONDERS]
    assert blue.delivered() == []
    red.publish(f"$inbox/{blue.record.id}", b"forged", Flag.LAST, sequence=1)
    assert blue.delivered(0) == []


def test_groups_of_the_same_name_are_two() -> None:
    talk, blue, red = two()
    heard = red.subscribe("$sys/groups/#")
    for peer in (blue, red):
        peer.put(Kind.JOIN, body=Join("dp", 2), target=5)
    assert blue.all_of(Kind.JOINED) == []
    assert red.all_of(Kind.JOINED) == []
    other = talk.peer("other", identity=identity("blue"))
    other.put(Kind.JOIN, body=Join("dp", 2), target=5)
    assert len(blue.all_of(Kind.JOINED)) == 1
    assert red.all_of(Kind.JOINED) == []
    assert red.delivered(heard) == []
    talk.tick(61.0)
    assert len(red.all_of(Kind.FAILED)) == 0 or len(red.all_of(Kind.JOINED)) == 0


def test_policies_jobs_and_dead_letters_stay_among_their_own() -> None:
    talk, blue, red = two()
    blue.put(Kind.DECLARE, body=Declare("jobs", acknowledge=True), target=9)
    theirs = red.subscribe("jobs", queue_group="g")
    own = blue.subscribe("jobs", queue_group="g")
    blue.publish("jobs", b"x")
    red.publish("jobs", b"y")
    assert blue.delivered(own)[0].flags & Flag.TRACKED
    assert not red.delivered(theirs)[0].flags & Flag.TRACKED
    assert [len(tenant.router.policies) for tenant in talk.state.tenants.values()] == [0, 1, 0]


def test_events_of_sessions_and_pressure_are_told_to_their_own() -> None:
    talk, blue, red = two()
    heard = red.subscribe("$sys/#")
    slow = blue.subscribe("a", "drop_newest", queue_messages=1)
    for _ in range(5):
        blue.publish("a", b"x")
    talk.tick(2.0)
    talk.peer("late", identity=identity("blue")).die()
    assert blue.dropped(slow) == 4
    assert red.delivered(heard) == []


def test_questions_are_answered_with_what_is_their_own() -> None:
    _, blue, red = two()
    blue.subscribe("a")
    red.put(Kind.QUERY, body=Query(topic="a"), target=5)
    (done,) = [frame for frame in red.all_of(Kind.DONE) if frame.target == 5]
    assert decode_body(done.body, Pressure).subscribers == 0


def test_shared_memory_reaches_readers_of_the_tenant_alone() -> None:
    talk = Talk(ring_messages=0)
    publisher, reader = Sharer(talk, "publisher", arena=True), Sharer(talk, "reader")
    foreign = talk.peer("foreign", identity=identity("red"))
    reader.peer.subscribe("#")
    foreign.subscribe("#")
    publisher.publish("a", b"x" * 20_000)
    reader.read(1)
    assert foreign.delivered() == []
    assert foreign.all_of(Kind.ARENA) == []


def refusal(peer: Peer) -> Refusal | None:
    return peer.session.refusal


def test_a_tenant_is_the_identitys_own_and_no_other() -> None:
    talk = Talk()
    assert refusal(talk.peer("a", identity=identity("blue"), tenant="blue")) is None
    told = refusal(talk.peer("a", identity=identity("blue"), tenant="red"))
    assert told is not None
    assert told.code == Code.DENIED
    assert "belongs to tenant 'blue'" in told.reason
    told = refusal(talk.peer("a", identity=Identity("a", ("trainer",), proof="token"), tenant="red"))
    assert told is not None
    assert told.code == Code.DENIED
    assert "admin 'tenants/red'" in told.reason
    admin = talk.peer("ada", identity=ADMIN, tenant="red")
    assert admin.record.tenant.name == "red"
    assert talk.peer("b").record.tenant is talk.state.own
    assert refusal(talk.peer("a", tenant="x" * 5000)) is not None


def test_an_admin_who_may_not_any_more_leaves_the_tenant() -> None:
    some = Identity("somebody", ("some",), proof="token")
    talk = Talk(permissions=permissions(some=role({"admin": ("tenants/red",)})))
    peer = talk.peer("somebody", identity=some, tenant="red")
    talk.state.replace_permissions(permissions(some=role({"admin": ("sessions",)})))
    talk.settle()
    assert not peer.is_open
    assert "tenants/red" in str(peer.session.failure)


def test_tenants_are_bounded_and_empty_ones_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("broker.state.broker_state.TENANTS_MAX", 3)
    talk, blue, red = two()
    blue.publish("a", b"x")
    told = refusal(talk.peer("a", identity=identity("green")))
    assert told is not None
    assert told.code == Code.LIMIT
    assert "tenants_max" in told.reason
    published = talk.state.totals().published_messages
    blue.die()
    green = talk.peer("a", identity=identity("green"))
    assert refusal(green) is None
    assert talk.state.tenants.keys() == {"", "red", "green"}
    assert talk.state.totals().published_messages == published, "what was counted stays counted"
    assert red.is_open


def test_a_sessions_end_is_its_tenants_alone() -> None:
    talk, blue, red = two()
    number = red.subscribe("#")
    blue.subscribe("#")
    blue.die()
    assert blue.record.id not in talk.state.sessions
    assert blue.record.tenant.sessions == {}
    red.publish("a", b"x")
    assert red.payloads(number) == [b"x"]


# Quotas.


def bounded(**quotas: int) -> Talk:
    return Talk(quotas={"blue": Quotas(**quotas)}, ring_messages=100)


def test_sessions_of_a_tenant_are_bounded() -> None:
    talk = bounded(sessions_max=2)
    peers = [talk.peer("a", identity=identity("blue")) for _ in range(3)]
    told = refusal(peers[2])
    assert [refusal(peer) for peer in peers[:2]] == [None, None]
    assert told is not None
    assert told.code == Code.LIMIT
    assert "tenant_sessions_max: 3 is over the limit of 2" in told.reason
    assert refusal(talk.peer("a", identity=identity("red"))) is None
    peers[0].die()
    assert refusal(talk.peer("a", identity=identity("blue"))) is None


def test_subscriptions_of_a_tenant_are_bounded() -> None:
    talk = bounded(subscriptions_max=2)
    one, two = (talk.peer("a", identity=identity("blue")) for _ in range(2))
    one.subscribe("a")
    two.subscribe("a")
    one.put(Kind.SUBSCRIBE, body=Subscribe("b"), number=9, target=5)
    (told,) = one.failures()
    assert (told.code, told.limit, told.value, told.maximum) == (Code.LIMIT, "tenant_subscriptions_max", 3, 2)
    two.die()
    one.subscribe("b")


def test_topics_of_a_tenant_are_bounded() -> None:
    talk = bounded(topics_max=5)
    peer = talk.peer("a", identity=identity("blue"))
    for number in range(10):
        peer.publish(f"a/{number}", b"x")
    assert peer.is_open
    refused = peer.failures()
    assert {(told.code, told.limit, told.value, told.maximum) for told in refused} == {
        (Code.LIMIT, "tenant_topics_max", 6, 5)
    }
    assert len(refused) == 10 - sum(name.startswith("a/") for name in peer.record.tenant.router.topics) > 4
    assert len(peer.record.tenant.router.topics) <= 5
    other = talk.peer("b", identity=identity("red"))
    for number in range(10):
        other.publish(f"a/{number}", b"x")
    assert other.is_open


def test_what_a_tenant_keeps_is_bounded_and_the_oldest_goes() -> None:
    talk = bounded(held_bytes_max=1000)
    peer, other = talk.peer("a", identity=identity("blue")), talk.peer("b", identity=identity("red"))
    for each in (peer, other):
        for number in range(10):
            each.publish(f"a/{number}", bytes(200))
    talk.tick(0.1)
    assert peer.record.tenant.router.retained_bytes <= 1000 < other.record.tenant.router.retained_bytes


def test_what_waits_over_the_quota_stops_credit_until_it_is_read() -> None:
    talk = bounded(held_bytes_max=10_000)
    peer = talk.peer("a", identity=identity("blue"))
    reader = talk.peer("r", identity=identity("blue"))
    reader.subscribe("a")
    reader.reading = False
    window = talk.state.publishing.window_messages
    for _ in range(100):
        peer.publish("a", bytes(200))
    talk.tick(0.1)
    assert peer.record.tenant.flow.is_over
    for _ in range(window - 100):
        peer.publish("a", bytes(200))
    assert peer.topic_credit("a") == (0, 0)
    reader.reading = True
    talk.settle()
    while len(reader.delivered()) < window:
        reader.credit(1, 1024, 1024 * 200)
    talk.tick(0.1)
    assert not peer.record.tenant.flow.is_over
    assert peer.topic_credit("a")[0] > 0


def test_what_a_tenant_sends_is_bounded_on_average_and_nothing_else_waits() -> None:
    talk = bounded(bytes_per_second_max=10_000)
    peer, other = talk.peer("a", identity=identity("blue")), talk.peer("b", identity=identity("red"))
    window = talk.state.publishing.window_messages
    talk.tick(0.1)
    for each in (peer, other):
        for _ in range(window):
            each.publish("a", bytes(200))
        talk.tick(0.1)
    for _ in range(window // 2):
        peer.publish("a", bytes(200))
    first = peer.topic_credit("a")[0]
    assert peer.record.tenant.flow.is_over
    assert not other.record.tenant.flow.is_over
    assert other.topic_credit("a")[0] >= window // 2
    number = peer.subscribe("b")
    peer.publish("b", b"x")
    assert peer.payloads(number) == [b"x"], "what there is credit for goes on"
    came = peer.record.session.received_bytes
    talk.tick(came / 10_000 - 2)
    assert peer.topic_credit("a")[0] == first
    talk.tick(3)
    assert peer.topic_credit("a")[0] > first
    assert not peer.record.tenant.flow.is_over


def test_sessions_that_come_and_go_are_counted_as_well() -> None:
    talk = bounded(bytes_per_second_max=10_000)
    talk.peer("first", identity=identity("blue"))
    talk.tick(0.1)
    for _ in range(4):
        peer = talk.peer("a", identity=identity("blue"))
        for _ in range(50):
            peer.publish("a", bytes(200))
        peer.die()
    talk.tick(0.1)
    assert talk.state.tenants["blue"].flow.is_over


def test_quotas_of_every_other_tenant() -> None:
    talk = Talk(quotas={"*": Quotas(sessions_max=1), "blue": Quotas()})
    assert [refusal(talk.peer("a", identity=identity("blue"))) for _ in range(2)] == [None, None]
    assert refusal(talk.peer("a", identity=identity("red"))) is None
    assert refusal(talk.peer("a", identity=identity("red"))) is not None


def test_permissions_hold_within_a_tenant() -> None:
    talk = Talk(permissions=Permissions())
    some = talk.peer("trainer-3", identity=Identity("trainer-3", ("trainer",), "blue", "certificate"))
    number = some.subscribe("#")
    some.publish("gradients/trainer-4", b"x")
    some.publish("gradients/trainer-3", b"y")
    assert some.payloads(number) == [b"y"]


def test_quotas_change_while_sessions_are_open() -> None:
    talk = bounded(bytes_per_second_max=1000, topics_max=3)
    peer = talk.peer("a", identity=identity("blue"))
    window = talk.state.publishing.window_messages
    talk.tick(0.1)
    for _ in range(window // 2 - 1):
        peer.publish("a", bytes(20))
    talk.tick(0.1)
    for _ in range(window // 2):
        peer.publish("a", bytes(20))
    held = peer.record.tenant.router.topics["a"].held_back
    talk.state.replace_quotas({})
    talk.settle()
    assert held
    assert not peer.record.tenant.router.topics["a"].held_back
    for number in range(9):
        peer.publish(f"a/{number}", b"x")
    assert peer.is_open


def test_those_of_no_tenant_are_told_of_those_they_may_go_into() -> None:
    rules = permissions(some=role({"admin": ("sessions", "tenants/blue")}))
    talk = Talk(permissions=rules)
    asked: list[list[str]] = []

    def viewer(query: Query, seen: Sequence[Tenant], rights: Rights, now_ns: int) -> View:
        asked.append([tenant.name for tenant in seen])
        return View([])

    talk.state.viewer = viewer
    for name in ("blue", "red"):
        talk.peer(name, identity=identity(name)).put(Kind.QUERY, body=Query(view="sessions"), target=1)
    talk.peer("some", identity=Identity("a", ("some",))).put(Kind.QUERY, body=Query(view="sessions"), target=1)
    talk.peer("ada", identity=ADMIN).put(Kind.QUERY, body=Query(view="sessions"), target=1)
    assert asked == [["blue"], ["red"], ["", "blue"], ["", "blue", "red"]]


def test_when_memory_runs_short_all_tenants_feel_it_also_those_that_come_then() -> None:
    talk, blue, red = two()
    heard = red.subscribe("$sys/pressure")
    talk.state.watermark.look(900, 1000, talk.state.sessions.values())
    talk.settle()
    assert len(red.delivered(heard)) == 1
    for peer in (blue, red):
        peer.publish("a", b"x", Flag.ACKNOWLEDGE, target=3)
        assert [(failure.code, failure.limit) for failure in peer.failures()] == [(Code.LIMIT, "memory_max_bytes")]
    talk.state.watermark.look(760, 1000, talk.state.sessions.values())
    late = talk.peer("late", identity=identity("green"))
    window = talk.state.publishing.window_messages
    for _ in range(window):
        late.publish("a", b"x")
    assert late.topic_credit("a") == (0, 0)
    talk.state.watermark.look(100, 1000, talk.state.sessions.values())
    talk.settle()
    assert late.topic_credit("a")[0] >= window // 2


def test_groups_of_all_tenants_have_numbers_of_their_own() -> None:
    talk, blue, red = two()
    for peer in (blue, red):
        peer.put(Kind.JOIN, body=Join("dp", 1), target=5)
    assert blue.all_of(Kind.JOINED)[0].number != red.all_of(Kind.JOINED)[0].number
    assert blue.record.tenant.groups.observing is red.record.tenant.groups.observing is talk.state.observing


def test_sessions_that_have_not_said_hello_are_nobodys() -> None:
    talk = Talk(quotas={"": Quotas(sessions_max=2, subscriptions_max=1)})
    for _ in range(5):
        talk.state.connect("stranger", talk.now_ns)
    one, two, three = (talk.peer("a") for _ in range(3))
    assert [refusal(peer) is None for peer in (one, two, three)] == [True, True, False]
    one.subscribe("a")
    two.put(Kind.SUBSCRIBE, body=Subscribe("b"), number=9, target=5)
    (told,) = two.failures()
    assert (told.limit, told.value, told.maximum) == ("tenant_subscriptions_max", 2, 1)


def test_a_session_that_goes_into_another_tenant_is_forgotten_by_the_one_it_leaves() -> None:
    talk = Talk(quotas={"": Quotas(bytes_per_second_max=1000)})
    record = talk.state.connect("a", talk.now_ns, None, identity("blue"))
    talk.tick(0.1)
    assert record.id in talk.state.own.flow._received
    talk.state._enter(record, "blue")
    assert talk.state.own.flow._received == {}


def test_jobs_that_are_not_done_count_as_held() -> None:
    talk = bounded(held_bytes_max=10_000)
    peer = talk.peer("a", identity=identity("blue"))
    peer.put(Kind.DECLARE, body=Declare("jobs", acknowledge=True), target=9)
    worker = talk.peer("w", identity=identity("blue"))
    number = worker.subscribe("jobs", queue_group="g")
    for _ in range(100):
        peer.publish("jobs", bytes(200))
    talk.tick(0.1)
    assert peer.record.tenant.flow.is_over
    for frame in worker.delivered(number):
        worker.put(Kind.SETTLE, body=Settle([frame.stream]), number=number)
    talk.tick(0.1)
    assert not peer.record.tenant.flow.is_over
