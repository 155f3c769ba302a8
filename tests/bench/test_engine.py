"""The benchmark of the engine alone."""

from __future__ import annotations

import sys

import pytest

from bench import engine
from broker.collectives import shm


def test_a_row_has_percentiles_and_the_quietest_stretch() -> None:
    row = engine.line(64, [9.0] * 10 + [1.0] * 8 + [5.0] * 14, 2.5)
    assert row.split() == ["64", "bytes", "p10", "1.0", "p50", "5.0", "p90", "9.0", "quietest", "1.0", "cpu", "2.5"]


@pytest.mark.skipif(not shm.AVAILABLE, reason="the engine is not compiled")
@pytest.mark.parametrize("more", [[], ["--ring", "--lanes", "2"]])
def test_every_size_is_measured_and_checked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    monkeypatch.setattr(engine, "SIZES_AND_COUNTS", ((8, 16), (64 << 10, 8)))
    monkeypatch.setattr(sys, "argv", ["engine", "--ranks", "2", *more])
    engine.main()
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["8", "65536"]
