"""Messages in shared memory in the broker's state: whose bytes they are, and when they come back."""

from __future__ import annotations

import gc

import pytest

from broker.buffers import Buffer
from broker.errors import ConnectionClosed
from broker.limits import MIB
from broker.protocol.bodies import Declare, Settle
from broker.protocol.codes import Code
from broker.protocol.frames import Flag, Kind, Lane
from broker.protocol.places import PLACE, charge
from broker.protocol.sharing import released
from tests.state.harness import Talk
from tests.state.sharers import SIZE, Sharer

# Messages.


def test_a_reader_is_told_of_the_arena_first_and_gets_the_message_when_it_has_mapped_it(
    talk: Talk, publisher: Sharer
) -> None:
    reader = Sharer(talk)
    reader.peer.subscribe("a")
    publisher.publish("a", b"hello", offset=4096)
    (arena,) = reader.peer.all_of(Kind.ARENA)
    assert (arena.count, arena.total_bytes, arena.sequence) == (1, SIZE, 77)
    assert reader.passage.given == [publisher.memory]
    assert reader.peer.delivered() == []
    reader.peer.put(Kind.MAPPED, number=arena.number, count=1, lane=Lane.CONTROL)
    (frame,) = reader.peer.delivered()
    assert (frame.flags, frame.total_bytes, frame.sequence) == (Flag.SHARED, 5, 1)
    assert PLACE.unpack(frame.payload) == (arena.number, 1, 4096)
    publisher.publish("a", b"second")
    assert len(reader.peer.all_of(Kind.ARENA)) == 1
    assert len(reader.peer.delivered()) == 2


def test_what_comes_behind_waits_as_well_so_that_the_order_is_kept(talk: Talk, publisher: Sharer) -> None:
    reader = Sharer(talk)
    reader.peer.subscribe("a")
    publisher.publish("a", b"shared")
    publisher.peer.publish("a", b"plain")
    publisher.peer.publish("a", b"urgent", lane=Lane.CONTROL)
    assert reader.peer.payloads() == [b"urgent"]
    reader.read(1)
    assert reader.peer.sequences() == [3, 1, 2]


@pytest.mark.parametrize("answer", ["no", "another transport"])
def test_who_cannot_map_it_gets_the_same_bytes_in_chunks_and_holds_the_loan_so_long(
    talk: Talk, publisher: Sharer, answer: str
) -> None:
    payload = bytes(range(256)) * 6000
    reader = Sharer(talk).peer if answer == "no" else talk.peer()
    reader.subscribe("a")
    reader.reading = False
    loan = publisher.publish("a", payload)
    if answer == "no":
        reader.reading = True
        talk.settle()
        (arena,) = reader.all_of(Kind.ARENA)
        reader.put(Kind.MAPPED, number=arena.number, count=0, lane=Lane.CONTROL)
    else:
        assert publisher.back() == []
        reader.reading = True
        talk.settle()
    assert reader.large() == [payload]
    reader.frames.clear()
    assert publisher.back() == [loan]


def test_readers_of_both_kinds_get_the_same_message(talk: Talk, publisher: Sharer, reader: Sharer) -> None:
    far = talk.peer()
    far.subscribe("a")
    loan = publisher.publish("a", b"x" * 100_000)
    assert far.large() == [b"x" * 100_000]
    (lease,) = reader.leases()
    far.frames.clear()
    assert publisher.back() == []
    reader.release(lease)
    assert publisher.back() == [loan]


def test_a_loan_comes_back_when_the_last_of_its_readers_has_released_it(
    talk: Talk, publisher: Sharer, reader: Sharer
) -> None:
    second = Sharer(talk, "second")
    second.peer.subscribe("a")
    loan = publisher.publish("a", b"x")
    second.read(1)
    reader.release(*reader.leases())
    assert publisher.back() == []
    second.release(*second.leases())
    assert publisher.back() == [loan]


def test_a_loan_that_nobody_reads_comes_back_at_once(publisher: Sharer) -> None:
    assert publisher.back() == []
    loan = publisher.publish("nowhere", b"x")
    assert publisher.back() == [loan]


def test_a_reader_that_dies_has_released_all(publisher: Sharer, reader: Sharer) -> None:
    loans = [publisher.publish("a", b"x") for _ in range(5)]
    assert publisher.back() == []
    reader.peer.die()
    assert sorted(publisher.back()) == loans


def test_a_reader_that_never_answers_holds_up_nobody_but_itself(talk: Talk, publisher: Sharer, reader: Sharer) -> None:
    silent = Sharer(talk, "silent")
    silent.peer.subscribe("a")
    loan = publisher.publish("a", b"x")
    assert len(reader.leases()) == 1
    reader.release(*reader.leases())
    assert publisher.back() == []
    silent.peer.die()
    assert publisher.back() == [loan]


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest", "latest"])
def test_what_an_overflow_policy_drops_comes_back(talk: Talk, publisher: Sharer, overflow: str) -> None:
    slow = Sharer(talk, "slow")
    slow.peer.subscribe("a", overflow, queue_messages=1 if overflow == "latest" else 2)
    slow.peer.reading = False
    loans = [publisher.publish("a", b"x") for _ in range(10)]
    kept = {"drop_oldest": loans[-2:], "drop_newest": loans[:2], "latest": loans[-1:]}[overflow]
    assert sorted(publisher.back()) == [loan for loan in loans if loan not in kept]


def test_a_ring_holds_a_loan_and_replays_it(publisher: Sharer) -> None:
    talk = publisher.peer.talk
    publisher.peer.put(Kind.DECLARE, body=Declare("kept", ring_messages=2, ring_bytes=1 << 20), target=1)
    loans = [publisher.publish("kept", bytes([number]) * 100, offset=4096 * number) for number in range(3)]
    assert publisher.back() == loans[:1]
    late, far = Sharer(talk, "late"), talk.peer()
    late.peer.subscribe("kept", replay="all")
    late.read(1)
    assert late.peer.sequences() == [2, 3]
    far.subscribe("kept", replay="all")
    assert far.large() == [bytes([1]) * 100, bytes([2]) * 100]
    far.frames.clear()
    publisher.publish("kept", b"more")
    publisher.publish("kept", b"more")
    late.release(*late.leases())
    assert sorted(publisher.back()) == loans


def test_a_message_that_its_topic_refuses_comes_back(publisher: Sharer, reader: Sharer) -> None:
    publisher.peer.put(Kind.DECLARE, body=Declare("a", max_message_bytes=50), target=1)
    loan = publisher.publish("a", b"x" * 51, Flag.ACKNOWLEDGE, target=9)
    (failure,) = publisher.peer.failures()
    assert (failure.code, failure.limit, failure.value) == (Code.LIMIT, "max_message_bytes", 51)
    assert publisher.back() == [loan]
    assert reader.leases() == []


def test_an_acknowledged_message_is_acknowledged_at_once(publisher: Sharer, reader: Sharer) -> None:
    publisher.publish("a", b"x", Flag.ACKNOWLEDGE, target=9)
    (done,) = [frame for frame in publisher.peer.all_of(Kind.DONE) if frame.target == 9]
    assert done.sequence == 2


def test_a_job_holds_its_loan_until_it_is_settled(talk: Talk, publisher: Sharer) -> None:
    publisher.peer.put(Kind.DECLARE, body=Declare("jobs", acknowledge=True), target=1)
    worker = Sharer(talk, "worker")
    number = worker.peer.subscribe("jobs", queue_group="workers")
    loan = publisher.publish("jobs", b"work")
    worker.read(number)
    (job,) = worker.peer.delivered()
    assert job.flags == Flag.SHARED | Flag.TRACKED
    worker.release(*worker.leases())
    assert publisher.back() == []
    worker.peer.put(Kind.SETTLE, body=Settle([job.stream]), number=number)
    assert publisher.back() == [loan]


def test_a_job_whose_worker_dies_goes_to_another_one_in_full(talk: Talk, publisher: Sharer) -> None:
    publisher.peer.put(Kind.DECLARE, body=Declare("jobs", acknowledge=True, max_deliveries=2), target=1)
    first, second = Sharer(talk, "first"), talk.peer("second")
    first.peer.subscribe("jobs", queue_group="workers")
    loan = publisher.publish("jobs", b"work" * 1000)
    first.read(1)
    second.subscribe("jobs", queue_group="workers")
    first.peer.die()
    assert second.large() == [b"work" * 1000]
    # It was delivered twice; the dead letter has the same bytes.
    mourner = talk.peer()
    mourner.subscribe("$dead/jobs")
    second.die()
    assert mourner.large() == [b"work" * 1000]
    for peer in (second, mourner):
        peer.frames.clear()
    assert publisher.back() == [loan]


def test_a_job_is_shared_again_when_it_is_delivered_again_and_with_who_comes_later(
    talk: Talk, publisher: Sharer
) -> None:
    publisher.peer.put(Kind.DECLARE, body=Declare("jobs", acknowledge=True, ring_messages=1, ring_bytes=MIB), target=1)
    worker, late = Sharer(talk, "worker"), Sharer(talk, "late")
    number = worker.peer.subscribe("jobs", queue_group="workers")
    publisher.publish("jobs", b"work")
    worker.read(number)
    (job,) = worker.peer.delivered()
    worker.peer.credit(number, 1, 4)
    worker.peer.put(Kind.SETTLE, body=Settle([job.stream], refused=True), number=number)
    assert [frame.flags for frame in worker.peer.delivered()] == [Flag.SHARED | Flag.TRACKED] * 2
    late.peer.subscribe("jobs", replay="all")
    late.read(1)
    assert [frame.flags for frame in late.peer.delivered()] == [Flag.SHARED]


def test_a_request_and_its_reply_may_both_be_shared(talk: Talk, publisher: Sharer) -> None:
    responder = Sharer(talk, "responder", arena=True)
    responder.peer.subscribe("ask", responder=True)
    loan = publisher.publish("ask", b"question", Flag.REQUEST, sequence=5, target=4)
    responder.read(1)
    responder.release(*responder.leases())
    assert publisher.back() == [loan]
    inbox = f"$inbox/{publisher.peer.record.id}"
    answer = responder.publish(inbox, b"answer", Flag.LAST, sequence=5)
    publisher.read(0)
    assert len(publisher.leases()) == 1
    publisher.release(*publisher.leases())
    assert responder.back() == [answer]


def test_a_request_that_nobody_answers_comes_back(publisher: Sharer) -> None:
    loan = publisher.publish("ask", b"question", Flag.REQUEST, sequence=5, target=4)
    assert [failure.code for failure in publisher.peer.failures()] == [Code.NO_RESPONDERS]
    assert publisher.back() == [loan]


def test_what_waits_for_an_arena_that_goes_meanwhile_is_sent_all_the_same(talk: Talk, publisher: Sharer) -> None:
    reader, other = Sharer(talk, "reader"), talk.peer()
    reader.peer.subscribe("#", "drop_oldest", queue_messages=2)
    publisher.publish("a", b"shared")
    other.publish("b", b"plain")
    # It has no room for three and drops the shared one; so nothing is lent any more.
    other.publish("b", b"urgent", lane=Lane.CONTROL)
    publisher.peer.die()
    assert reader.peer.payloads() == [b"urgent", b"plain"]


def test_a_lease_that_is_held_is_not_given_to_another_message_when_numbers_begin_again(
    publisher: Sharer, reader: Sharer
) -> None:
    shares = reader.peer.record.shares
    first = publisher.publish("a", b"x")
    (held,) = reader.leases()
    for last in (held - 1 or 0xFFFFFFFF, 0xFFFFFFFE):
        shares._last_lease = last
        publisher.publish("a", b"y")
    assert len(set(reader.leases())) == 3
    assert first not in publisher.back()


def test_a_reader_that_releases_nothing_gets_chunks_in_the_end(
    talk: Talk, publisher: Sharer, reader: Sharer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("broker.state.sharing.LEASES_MAX", 2)
    loans = [publisher.publish("a", b"%d" % number, offset=4096 * number) for number in range(4)]
    assert len(reader.leases()) == 2
    assert reader.peer.large() == [b"2", b"3"]
    reader.release(reader.leases()[0])
    publisher.publish("a", b"4")
    assert len(reader.leases()) == 3
    reader.peer.frames.clear()
    assert sorted(publisher.back()) == [loans[0], *loans[2:]]


def test_a_link_that_fails_in_the_middle_of_a_write_holds_no_loan(talk: Talk, publisher: Sharer) -> None:
    far = talk.peer()
    far.subscribe("a")
    far.reading = False
    loan = publisher.publish("a", b"x" * 100_000)
    session = far.record.session
    session.sent(session.unsent_bytes)

    def send(buffers: list[Buffer]) -> int:
        assert sum(map(len, buffers)) > 100_000
        try:
            raise BrokenPipeError
        except OSError as error:
            raise ConnectionClosed("the peer closed the connection") from error

    gc.collect()
    gc.disable()
    try:
        with pytest.raises(ConnectionClosed) as caught:
            session.flush(send)
        failure = caught.value
        del caught
        session.lost(failure)
        far.die()
        assert [loan for frame in publisher.peer.all_of(Kind.RELEASE) for loan in released(frame)] == [loan]
    finally:
        gc.enable()


# Credit.


def test_a_shared_message_takes_a_64th_of_its_topics_credit_and_counts_in_full_for_its_reader(
    talk: Talk, publisher: Sharer, reader: Sharer
) -> None:
    before = talk.state.sessions[publisher.peer.record.id].publishers[1].used_bytes
    queue = talk.state.sessions[reader.peer.record.id].subscriptions[1].queue
    queue_before = queue.credit_bytes
    publisher.publish("a", bytes(MIB))
    after = talk.state.sessions[publisher.peer.record.id].publishers[1].used_bytes
    assert after - before == MIB // 64
    assert queue_before - queue.credit_bytes == MIB


def test_no_message_takes_more_credit_than_a_frame() -> None:
    assert charge(1 << 40) == MIB
    assert charge(64 * MIB) == MIB
    assert charge(MIB) == MIB // 64


def test_a_reader_that_does_not_keep_up_holds_the_publisher_back(talk: Talk, publisher: Sharer) -> None:
    slow = Sharer(talk, "slow")
    slow.peer.subscribe("a", queue_messages=4)
    granted = publisher.peer.topic_credit("a") if "a" in publisher.peer._numbers else (0, 0)
    for _ in range(5000):
        publisher.publish("a", b"x")
    assert publisher.peer.topic_credit("a")[0] - granted[0] < 5000
    assert talk.state.router.topics["a"].held_back
