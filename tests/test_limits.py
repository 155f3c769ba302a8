"""Limits that have to fit one another."""

from __future__ import annotations

import re

from broker import limits, limits_links, server
from broker.admin import events
from clients.aio import driver as asynchronous
from clients.connection import driver as synchronous
from tests.conftest import ROOT


def test_a_rank_that_stops_is_named_within_a_second_by_what_passes_by_design() -> None:
    at_links_s = limits_links.LINK_REPORT_S + max(synchronous.TICK_S, asynchronous.TICK_S)
    known_s = at_links_s + server.TICK_S + limits.WAITS_S
    shown_s = known_s + events.INTERVAL_S
    # What is left is for a busy machine, and for Python to start in.
    assert shown_s <= 0.8 * limits.NAMED_WITHIN_S + 1e-9


def test_the_page_says_of_the_same_operations_that_they_wait_as_the_command() -> None:
    words = (ROOT / "broker" / "dashboard" / "words.js").read_text()
    (found,) = re.findall(r"^export const WAITS_S = ([\d.]+);$", words, re.MULTILINE)
    assert float(found) == limits.WAITS_S
