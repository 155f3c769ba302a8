"""How much memory there is, and how much of it is used."""

from __future__ import annotations

import mmap
import resource
from pathlib import Path

import pytest

from broker import server_memory
from broker.limits import MEMORY_BYTES_MAX, MIB
from broker.server_memory import PAGE_BYTES, MemoryGauge, give_back


def test_used_memory_is_what_was_touched() -> None:
    gauge = MemoryGauge(MEMORY_BYTES_MAX)
    # Pages of its own: what malloc gives may have been freed by an earlier test, and touched.
    with mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
        before = gauge.used_bytes()
        for place in range(0, len(pages), PAGE_BYTES):
            pages[place] = 1
        assert len(pages) * 3 // 4 < gauge.used_bytes() - before
    gauge.close()
    gauge.close()
    give_back()


def test_the_configured_limit_counts_where_there_is_more() -> None:
    gauge = MemoryGauge(5)
    assert gauge.limit_bytes(1) == 5
    gauge.close()


def test_what_there_is_is_what_is_used_and_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    gauge = MemoryGauge(MEMORY_BYTES_MAX)
    monkeypatch.setattr(server_memory, "_available_bytes", lambda: 100)
    monkeypatch.setattr(gauge, "_groups", [])
    assert gauge.limit_bytes(50) == 150
    gauge.close()


def test_a_control_group_may_have_any_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    told = server_memory._told_by
    (tmp_path / "cgroup").write_bytes("0::/machine/b\u00fcro".encode() + b"\xff\n")
    monkeypatch.setattr(
        server_memory,
        "_told_by",
        lambda file: told(str(tmp_path / "cgroup") if file == "/proc/self/cgroup" else file),
    )
    gauge = MemoryGauge(5)
    assert gauge.limit_bytes(1) == 5
    gauge.close()


@pytest.mark.parametrize("limit", [resource.RLIMIT_AS, resource.RLIMIT_DATA], ids=["ulimit -v", "ulimit -d"])
def test_limits_of_the_process_itself_count(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    gauge = MemoryGauge(MEMORY_BYTES_MAX)
    sizes = Path("/proc/self/statm").read_text().split()
    mapped_bytes = int(sizes[0 if limit == resource.RLIMIT_AS else 5]) * PAGE_BYTES
    limits = {limit: mapped_bytes + 10 * MIB}
    monkeypatch.setattr(server_memory, "_available_bytes", lambda: 1 << 50)
    monkeypatch.setattr(gauge, "_groups", [])
    monkeypatch.setattr(
        server_memory.resource, "getrlimit", lambda asked: (limits.get(asked, resource.RLIM_INFINITY), 0)
    )
    # What has been mapped since is less than that, and what there is is what is left.
    assert 5 < gauge.limit_bytes(5) <= 5 + 11 * MIB
    limits[limit] = mapped_bytes // 2
    assert gauge.limit_bytes(5) == 5
    gauge.close()


@pytest.mark.parametrize(
    ("names", "limit", "left"),
    [
        (server_memory._FILES[0], "1000", 600),
        (server_memory._FILES[0], "max", 1 << 62),
        (server_memory._FILES[1], "900", 500),
    ],
)
def test_a_control_group_gives_its_limit_less_its_use_but_for_its_cache(
    tmp_path: Path, names: tuple[str, str, str], limit: str, left: int
) -> None:
    limit_file, use_file, cache = names
    (tmp_path / limit_file).write_text(f"{limit}\n")
    (tmp_path / use_file).write_text("700\n")
    (tmp_path / "memory.stat").write_text(f"anon 400\n{cache} 300\nfile 300\n")
    assert server_memory._left_of(str(tmp_path), names) == left
