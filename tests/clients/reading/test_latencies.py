"""How long messages take to reach a client: what counts, what does not, and what the broker is told."""

from __future__ import annotations

import time

import pytest

import clients
from broker import devices
from broker.histograms import Histogram
from broker.limits import BATCH_SAMPLES, LATENCY_NS_MAX
from broker.protocol.bodies import decode_body
from broker.protocol.frames import Content, Frame, Kind, Lane
from broker.protocol.measured import Measured
from broker.protocol.session import Session
from clients.reading.latencies import Latencies, wall_offset_ns
from clients.reading.messages import Message, Publication
from tests.daemon import PATIENCE_S, Daemon
from tests.test_metrics import scrape

US = 1000
NOW_NS = 1_000_000_000
PUBLICATION = Publication("topic", "sender")


class Link:
    """Latencies at a time that stands still, and the frames in which they are told."""

    def __init__(self, report_ms: int = 1000) -> None:
        self.latencies = Latencies()
        self.latencies.connected(report_ms)
        self.latencies.read_at(NOW_NS)
        self.wall_ns = self.latencies.wall_ns
        self.frames: list[Frame] = []

    def put(self, frame: Frame) -> None:
        self.frames.append(frame)

    def told(self) -> Measured:
        """What the next report says."""
        session: Session = self  # type: ignore[assignment]
        self.latencies.tell(session)
        frame = self.frames.pop()
        assert (frame.kind, frame.lane) == (Kind.MEASURED, Lane.BULK)
        return decode_body(frame.body, Measured)

    def batch(self, *ages_ns: int) -> list[Message]:
        return [
            Message(PUBLICATION, number, self.wall_ns - age_ns, Lane.DEFAULT, Content.BYTES, b"", b"", None)
            for number, age_ns in enumerate(ages_ns)
        ]


def test_a_message_counts_in_its_lane_by_the_time_since_it_was_published() -> None:
    link = Link()
    link.latencies.arrived(Lane.CONTROL, link.wall_ns - 7 * US, 0)
    link.latencies.arrived(Lane.BULK, link.wall_ns - 30 * US, 0)
    told = link.told()
    assert [sum(counts) for counts in told.counts] == [1, 0, 1]
    assert (told.counts[0][1], told.counts[2][3]) == (1, 1)
    assert (told.sums_us, told.early) == ([7, 0, 30], 0)


def test_what_was_published_before_the_subscription_began_does_not_count() -> None:
    link = Link()
    link.latencies.arrived(Lane.DEFAULT, link.wall_ns - 100, link.wall_ns - 99)
    link.latencies.batch_arrived(link.batch(5, 4), link.wall_ns - 3)
    link.latencies.arrived(Lane.DEFAULT, link.wall_ns - 99, link.wall_ns - 99)
    assert sum(link.told().counts[Lane.DEFAULT]) == 1


def test_a_message_that_comes_before_it_is_published_counts_as_0_and_is_counted_apart() -> None:
    link = Link()
    link.latencies.arrived(Lane.DEFAULT, link.wall_ns + 50 * US, 0)
    told = link.told()
    assert (told.counts[Lane.DEFAULT][0], told.sums_us[Lane.DEFAULT], told.early) == (1, 0, 1)
    link.latencies.arrived(Lane.DEFAULT, link.wall_ns, 0)
    assert link.told().early == 0


def test_what_took_longer_than_an_hour_counts_as_an_hour() -> None:
    link = Link()
    link.latencies.arrived(Lane.DEFAULT, 0, 0)
    assert link.told().sums_us[Lane.DEFAULT] == LATENCY_NS_MAX // US


@pytest.mark.parametrize("count", [1, 2, BATCH_SAMPLES - 1, BATCH_SAMPLES, BATCH_SAMPLES + 1, 100, 4096])
def test_of_a_batch_a_few_messages_evenly_over_it_stand_for_all(count: int) -> None:
    link = Link()
    ages_ns = [(count - number) * US for number in range(count)]
    link.latencies.batch_arrived(link.batch(*ages_ns), 0)
    told = link.told()
    assert sum(told.counts[Lane.DEFAULT]) == count
    assert told.sums_us[Lane.DEFAULT] == pytest.approx(sum(ages_ns) / US, rel=0.1, abs=1)
    if count <= BATCH_SAMPLES:
        exact = Histogram()
        for age_ns in ages_ns:
            exact.observe(age_ns)
        assert told.counts[Lane.DEFAULT] == exact.counts


def test_nothing_is_told_when_nothing_was_measured_and_what_was_told_is_not_told_again() -> None:
    link = Link()
    session: Session = link  # type: ignore[assignment]
    link.latencies.tell(session)
    link.latencies.arrived(Lane.DEFAULT, link.wall_ns, 0)
    link.latencies.tell(session)
    link.latencies.tell(session)
    assert len(link.frames) == 1


def test_a_report_is_due_after_the_interval_that_the_broker_wants() -> None:
    link = Link(report_ms=1000)
    session: Session = link  # type: ignore[assignment]
    for now_ns, expected in ((NOW_NS, 1), (NOW_NS + 999_000_000, 1), (NOW_NS + 1_000_000_000, 2)):
        link.latencies.arrived(Lane.DEFAULT, link.wall_ns, 0)
        link.latencies.tick(now_ns, session)
        assert len(link.frames) == expected


def test_nothing_is_measured_when_the_broker_wants_no_reports() -> None:
    link = Link(report_ms=0)
    link.latencies.arrived(Lane.DEFAULT, link.wall_ns, 0)
    link.latencies.batch_arrived(link.batch(1, 2), 0)
    link.latencies.connected(1000)
    link.latencies.tell(link)  # type: ignore[arg-type]
    assert link.frames == []


def test_nothing_is_measured_at_a_time_that_is_not_known() -> None:
    link = Link()
    link.latencies.read_at(0)
    link.latencies.arrived(Lane.DEFAULT, 1, 0)
    link.latencies.tell(link)  # type: ignore[arg-type]
    assert link.frames == []


def test_clocks_that_cannot_be_compared_well_keep_their_offset(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([100, 100_000_100])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(times))
    assert wall_offset_ns(77) == 77
    times = iter([100, 300])
    monkeypatch.setattr(time, "time_ns", lambda: 10_200)
    assert wall_offset_ns(77) == 10_000


def test_clocks_are_compared_again_when_something_ran_in_between_and_nothing_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # In the first comparison the wall clock is read late: half of the pause would be the error.
    monotonic = iter([0, 50_000_000, 60_000_000, 60_000_200])
    wall = iter([1_049_999_900, 1_060_000_100])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(monotonic))
    monkeypatch.setattr(time, "time_ns", lambda: next(wall))
    assert wall_offset_ns() == 1_000_000_000


def test_the_best_of_bad_comparisons_is_taken_when_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monotonic = iter([at_ns for start in range(20) for at_ns in (start * 10**9, start * 10**9 + 10**6 * (21 - start))])
    monkeypatch.setattr(time, "monotonic_ns", lambda: next(monotonic))
    monkeypatch.setattr(time, "time_ns", lambda: 20 * 10**9)
    assert wall_offset_ns() == 10**9 - 10**6


def received(daemon: Daemon, lane: str = "default") -> float:
    return scrape(daemon)["tensorbus_publish_to_receive_seconds_count", lane]


def test_a_client_tells_what_it_has_measured_before_it_closes() -> None:
    with Daemon() as daemon, clients.connect(daemon.url) as writer:
        for lane, count in (("control", 3), ("default", 40), ("bulk", 2)):
            before = received(daemon, lane)
            with clients.connect(daemon.url) as reader, reader.subscribe("a") as subscription:
                for number in range(count):
                    writer.publish("a", number, lane=lane)
                assert [subscription.next(PATIENCE_S).value for _ in range(count)] == list(range(count))
            assert received(daemon, lane) - before == count


def test_a_large_message_counts_once_and_what_a_topic_had_retained_does_not() -> None:
    with Daemon() as daemon, clients.connect(daemon.url) as writer:
        for shared_memory in (True, False):
            before = received(daemon)
            writer.publish("b", bytes(1 << 20))
            writer.flush()
            with (
                clients.connect(daemon.url, shared_memory=shared_memory) as reader,
                reader.subscribe("b", replay="latest") as subscription,
            ):
                assert len(subscription.next(PATIENCE_S).value) == 1 << 20
                writer.publish("b", bytes(2 << 20))
                assert len(subscription.next(PATIENCE_S).value) == 2 << 20
            assert received(daemon) - before == 1


def test_a_daemon_that_is_told_not_to_measures_nothing() -> None:
    with (
        Daemon("--latency-metrics", "false") as daemon,
        clients.connect(daemon.url) as writer,
    ):
        with clients.connect(daemon.url) as reader, reader.subscribe("a") as subscription:
            for number in range(50):
                writer.publish("a", number)
                subscription.next(PATIENCE_S)
        found = scrape(daemon)
        assert found["tensorbus_publish_to_receive_seconds_count", "default"] == 0
        assert found["tensorbus_turn_seconds_count",] == 0


@pytest.mark.parametrize("knows", [False, True])
def test_what_was_copied_within_devices_is_told_to_whom_that_means_something(
    monkeypatch: pytest.MonkeyPatch, *, knows: bool
) -> None:
    monkeypatch.setattr("broker.devices._counter", devices._Counter())
    devices.copied_otherwise(8, "the test says so")
    devices.copied_within(24)
    link = Link()
    # A broker of before there was such memory ends the session over numbers that it does not expect.
    link.latencies.connected(1000, devices=knows)
    assert link.told().copied == [1, 8, 0, 0, 1, *([1, 24, 0] if knows else [])]
