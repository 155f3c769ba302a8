"""What clients have measured, as the broker adds it up."""

from __future__ import annotations

from broker.histograms import BUCKETS
from broker.limits import REPORTED_MAX
from broker.protocol.codes import Code
from broker.protocol.frames import Kind, Lane
from broker.protocol.measured import Measured
from tests.state.harness import Talk


def counts(**buckets: int) -> list[int]:
    found = [0] * BUCKETS
    for name, count in buckets.items():
        found[int(name[1:])] = count
    return found


def test_reports_of_all_clients_add_up_lane_by_lane() -> None:
    talk = Talk(report_ms=1000)
    for peer in (talk.peer("a"), talk.peer("b")):
        peer.put(Kind.MEASURED, body=Measured([counts(b0=1), [], counts(b2=4, b22=1)], [3, 0, 50], 2))
    latencies = talk.state.latencies
    assert [lane.counts for lane in latencies.lanes] == [counts(b0=2), counts(), counts(b2=8, b22=2)]
    assert [lane.sum_ns for lane in latencies.lanes] == [6_000, 0, 100_000]
    assert latencies.early == 4


def test_what_was_reported_stays_when_its_client_is_gone() -> None:
    talk = Talk()
    peer = talk.peer()
    peer.put(Kind.MEASURED, body=Measured([[], counts(b1=5), []], [0, 40, 0]))
    peer.die()
    assert talk.state.latencies.lanes[Lane.DEFAULT].total == 5


def test_a_client_is_told_how_often_it_may_report() -> None:
    told = [Talk(report_ms=report_ms).peer().welcome for report_ms in (0, 250)]
    assert [welcome.report_ms for welcome in told if welcome is not None] == [0, 250]


def test_rubbish_closes_its_session_and_no_other() -> None:
    talk = Talk()
    good, *bad = (talk.peer(str(number)) for number in range(4))
    bad[0].put(Kind.MEASURED, body=Measured([[1]], [0]))
    bad[1].put(Kind.MEASURED, body=b"\xc1")
    bad[2].put(Kind.MEASURED, body={"counts": [[], [], ["x"]], "sums_us": [0, 0, 0]})
    assert [peer.is_open for peer in (good, *bad)] == [True, False, False, False]
    assert [getattr(peer.session.failure, "code", None) for peer in bad] == [Code.PROTOCOL] * 3
    assert [lane.total for lane in talk.state.latencies.lanes] == [0, 0, 0]


def test_the_largest_reports_again_and_again_harm_nothing() -> None:
    talk = Talk()
    peer = talk.peer()
    for _ in range(3000):
        peer.put(Kind.MEASURED, body=Measured([[REPORTED_MAX] * BUCKETS] * 3, [REPORTED_MAX] * 3, REPORTED_MAX))
    assert peer.is_open
    assert talk.state.latencies.lanes[0].counts[0] == 3000 * REPORTED_MAX
