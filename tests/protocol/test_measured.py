"""A client's report of latencies: what a broker takes, and what it refuses."""

from __future__ import annotations

import pytest

from broker.errors import ProtocolError
from broker.histograms import BUCKETS
from broker.limits import REPORTED_MAX
from broker.protocol.measured import Measured

NONE: list[int] = []


def test_a_report_of_all_lanes_with_counts_or_none_is_taken() -> None:
    Measured([[0] * BUCKETS, NONE, [REPORTED_MAX] * BUCKETS], [0, 0, REPORTED_MAX], REPORTED_MAX).check()


@pytest.mark.parametrize(
    "report",
    [
        Measured([NONE, NONE], [0, 0]),
        Measured([NONE, NONE, NONE], [0, 0]),
        Measured([NONE, NONE, [1]], [0, 0, 0]),
        Measured([NONE, NONE, [-1] * BUCKETS], [0, 0, 0]),
        Measured([NONE, NONE, [REPORTED_MAX + 1] * BUCKETS], [0, 0, 0]),
        Measured([NONE, NONE, NONE], [0, 0, -1]),
        Measured([NONE, NONE, NONE], [0, 0, 0], -1),
        Measured([NONE, NONE, NONE], [0, 0, 0], 0, [1, 2]),
        Measured([NONE, NONE, NONE], [0, 0, 0], 0, [0, 0, 0, 0, -1]),
    ],
)
def test_a_report_that_cannot_be_is_refused(report: Measured) -> None:
    with pytest.raises(ProtocolError, match="3 lanes of 23 counts"):
        report.check()
