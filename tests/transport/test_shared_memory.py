"""Memory that processes share: who can write to it, when it can be used, and how long it lives."""

from __future__ import annotations

import errno
import fcntl
import gc
import mmap
import os
import resource
import stat
import subprocess
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from broker.errors import InvalidValue, LimitExceeded
from broker.limits import ARENA_BYTES_MAX, LARGE_PAGE_BYTES, SHARED_PAGE_BYTES
from broker.transport.shared_memory import SharedMemory
from tests.descriptors import opened

SIZE = 4 * SHARED_PAGE_BYTES
ALL_SEALS = 0x1F & ~fcntl.F_SEAL_WRITE


class Holder:
    """Something that a view keeps alive."""

    def __init__(self, memory: SharedMemory) -> None:
        self.memory = memory


def adopted(memory: SharedMemory) -> SharedMemory:
    return SharedMemory.adopt(os.dup(memory.descriptor), memory.size_bytes)


def unsealed(size_bytes: int, seals: int) -> int:
    descriptor = os.memfd_create("test", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, size_bytes)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, seals)
    return descriptor


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:tensorbus")


def test_what_its_maker_writes_others_read() -> None:
    memory = SharedMemory.create(SIZE)
    other = adopted(memory)
    assert other.identity == memory.identity
    memory.view(10, 5, memory)[:] = b"hello"
    assert bytes(other.view(10, 5, other)) == b"hello"


def test_the_length_is_whole_pages() -> None:
    assert SharedMemory.create(1).size_bytes == SHARED_PAGE_BYTES


def test_a_long_file_lies_where_large_pages_fit_and_takes_no_other_addresses() -> None:
    before = mappings()
    memory = SharedMemory.create(LARGE_PAGE_BYTES + SHARED_PAGE_BYTES)
    other = adopted(memory)
    assert [each.address % LARGE_PAGE_BYTES for each in (memory, other)] == [0, 0]
    assert mappings() == before + 2
    around = [
        line.split()[0]
        for line in Path("/proc/self/maps").read_text().splitlines()
        if " ---p 00000000 00:00 0 " in line
    ]
    for each in (memory, other):
        ends = f"{each.address:x}", f"{each.address + each.size_bytes:x}"
        assert not any(line.endswith(f"-{ends[0]}") or line.startswith(f"{ends[1]}-") for line in around)


def test_what_is_prepared_holds_zeros_and_what_lies_before_it_stays() -> None:
    memory = SharedMemory.create(3 * LARGE_PAGE_BYTES + SHARED_PAGE_BYTES)
    other = adopted(memory)
    memory.view(0, LARGE_PAGE_BYTES, memory)[:] = b"x" * LARGE_PAGE_BYTES
    large = memory.prepare(LARGE_PAGE_BYTES, LARGE_PAGE_BYTES + 1)
    assert bytes(other.view(0, LARGE_PAGE_BYTES, other)) == b"x" * LARGE_PAGE_BYTES
    assert bytes(other.view(LARGE_PAGE_BYTES, 2 * LARGE_PAGE_BYTES, other)) == bytes(2 * LARGE_PAGE_BYTES)
    memory.view(LARGE_PAGE_BYTES, 5, memory)[:] = b"hello"
    assert bytes(other.view(LARGE_PAGE_BYTES, 5, other)) == b"hello"
    assert (large_bytes(memory) == 2 * LARGE_PAGE_BYTES) is large


def large_bytes(memory: SharedMemory) -> int:
    """How much of a mapping lies in large pages."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{memory.address:x}-"):
            return next(int(each.split()[1]) * 1024 for each in lines if each.startswith("ShmemPmdMapped:"))
    raise AssertionError("there is no such mapping")


def test_where_no_large_page_fits_none_is_made() -> None:
    memory = SharedMemory.create(LARGE_PAGE_BYTES + SHARED_PAGE_BYTES)
    assert not memory.prepare(LARGE_PAGE_BYTES, SHARED_PAGE_BYTES)
    assert not SharedMemory.create(SIZE).prepare(0, SIZE)


@pytest.mark.parametrize(("offset", "size_bytes"), [(0, SIZE + 1), (SIZE, 1), (-1, 1), (1, -1)])
def test_what_does_not_lie_in_it_is_no_view(offset: int, size_bytes: int) -> None:
    memory = SharedMemory.create(SIZE)
    with pytest.raises(ValueError, match=f"{size_bytes} bytes at {offset}"):
        memory.view(offset, size_bytes, memory)


def test_others_cannot_write_to_it_in_any_way() -> None:
    memory = SharedMemory.create(SIZE)
    other = adopted(memory)
    array = np.frombuffer(other.view(0, SIZE, other), np.uint8)
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True
    with pytest.raises(PermissionError):
        mmap.mmap(memory.descriptor, SIZE, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(PermissionError):
        os.pwrite(memory.descriptor, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.descriptor, SHARED_PAGE_BYTES)
    with pytest.raises(PermissionError):
        os.ftruncate(memory.descriptor, 2 * SIZE)


@pytest.mark.parametrize("missing", [fcntl.F_SEAL_SHRINK, fcntl.F_SEAL_GROW, fcntl.F_SEAL_SEAL, 0x10])
def test_memory_that_could_change_is_refused_and_its_descriptor_closed(missing: int) -> None:
    descriptor = unsealed(SIZE, ALL_SEALS & ~missing)
    with pytest.raises(InvalidValue, match="seals"):
        SharedMemory.adopt(descriptor, SIZE)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


@pytest.mark.parametrize("told", [0, -1, SIZE - 1, SIZE + 1, ARENA_BYTES_MAX + SHARED_PAGE_BYTES])
def test_a_length_that_is_not_the_files_is_refused(told: int) -> None:
    with pytest.raises(InvalidValue, match=f"bytes {told}"):
        SharedMemory.adopt(unsealed(SIZE, ALL_SEALS), told)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes(SIZE))
    with pytest.raises(LimitExceeded, match="cannot be mapped"):
        SharedMemory.adopt(os.open(path, os.O_RDWR), SIZE)
    with pytest.raises(LimitExceeded, match="cannot be mapped"):
        SharedMemory.adopt(-1, SIZE)


def test_more_than_anybody_may_have_is_an_error_with_numbers() -> None:
    with pytest.raises(LimitExceeded) as caught:
        SharedMemory.create(ARENA_BYTES_MAX + 1)
    assert caught.value.maximum == ARENA_BYTES_MAX


def test_a_view_and_all_that_is_made_of_it_keep_the_holder() -> None:
    memory = SharedMemory.create(SIZE)
    holder = Holder(memory)
    alive = weakref.ref(holder)
    array = np.frombuffer(memory.view(0, 4096, holder), np.float32)
    part = array[10:20].reshape(2, 5)
    view = memoryview(part)
    del holder, array
    assert alive() is not None
    del part
    assert alive() is not None
    view.release()
    del view
    assert alive() is None


@pytest.mark.parametrize(
    "make",
    [
        np.asarray,
        lambda view: np.frombuffer(view, np.uint8),
        lambda view: np.ndarray(4096, np.uint8, view),
        lambda view: np.asarray(view.obj),
        lambda view: np.asarray(view.obj).view(np.ndarray)[10:],
        lambda view: view[5:].cast("c"),
    ],
)
def test_there_is_no_array_over_a_view_that_does_not_keep_the_holder(make: Callable[[memoryview], object]) -> None:
    memory = SharedMemory.create(SIZE)
    holder = Holder(memory)
    alive = weakref.ref(holder)
    made = make(memory.view(4096, 4096, holder))
    del holder
    assert alive() is not None
    del made
    assert alive() is None


def test_a_mapping_goes_with_the_last_view_and_the_descriptor_with_the_memory() -> None:
    gc.collect()
    before, files = mappings(), len(opened())
    memory = SharedMemory.create(SIZE)
    view = memory.view(0, 10, Holder(memory))
    assert mappings() == before + 1
    del memory
    assert mappings() == before + 1
    view[:] = b"0123456789"
    del view
    assert mappings() == before
    assert len(opened()) <= files


def test_a_mapping_outlives_its_descriptor() -> None:
    memory = SharedMemory.create(SIZE)
    memory.close_descriptor()
    memory.close_descriptor()
    assert memory.descriptor == -1
    memory.view(0, 3, memory)[:] = b"abc"
    assert bytes(memory.view(0, 3, memory)) == b"abc"


def test_an_address_is_known_by_its_memory() -> None:
    memory = SharedMemory.create(SIZE)
    array = np.frombuffer(memory.view(100, 8, memory), np.uint8)
    address = array.__array_interface__["data"][0]
    assert memory.holds(address)
    assert address - memory.address == 100
    assert not memory.holds(memory.address - 1)
    assert not memory.holds(memory.address + SIZE)


def test_what_is_kept_is_the_readers_own_and_the_file_is_gone() -> None:
    gc.collect()
    before = mappings()
    memory = SharedMemory.create(SIZE)
    other = adopted(memory)
    memory.view(0, SIZE, memory)[:] = bytes([1]) * SIZE
    array = np.frombuffer(other.view(5000, 10, other), np.uint8)
    last = np.frombuffer(other.view(SIZE - 1, 1, other), np.uint8)
    other.keep([(5000, 10), (SIZE - 1, 1)])
    memory.view(0, SIZE, memory)[:] = bytes(SIZE)
    assert array.tolist() == [1] * 10
    assert last.tolist() == [1]
    assert not array.flags.writeable
    other.close_descriptor()
    del memory
    assert mappings() == before
    del other
    assert array.tolist() == [1] * 10


def test_what_there_is_no_memory_for_stays_where_it_is() -> None:
    memory = SharedMemory.create(SIZE)
    other = adopted(memory)
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1, limits[1]))
    try:
        with pytest.raises(LimitExceeded, match="what is kept"):
            other.keep([(0, 10)])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    memory.view(0, 2, memory)[:] = b"ok"
    assert bytes(other.view(0, 2, other)) == b"ok"


@pytest.mark.parametrize("code", [errno.EACCES, errno.EINVAL], ids=["insists", "does not know"])
def test_a_system_may_insist_on_files_that_cannot_be_executed_or_know_none(
    monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    create = os.memfd_create

    def refusing(name: str, flags: int) -> int:
        if bool(flags & 8) == (code == errno.EINVAL):
            raise OSError(code, os.strerror(code))
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", refusing)
    memory = SharedMemory.create(SIZE)
    assert adopted(memory).identity == memory.identity


@pytest.mark.parametrize("common", [False, True])
def test_nobody_else_may_open_its_file_again_for_writing(common: bool) -> None:
    memory = SharedMemory.create(SIZE, common=common)
    assert stat.S_IMODE(os.fstat(memory.descriptor).st_mode) == stat.S_IRUSR
    handle = memory.handle(read_only=True)
    assert fcntl.fcntl(handle.descriptor, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY


@pytest.mark.skipif(os.geteuid() != 0, reason="takes the right to become another user")
def test_another_user_does_not_open_what_it_has_for_reading_again_for_writing() -> None:
    handle = SharedMemory.create(SIZE, common=True).handle(read_only=True)
    number = handle.descriptor
    script = f"head -c 1 <&{number} | wc -c; : >>/proc/self/fd/{number}"
    done = subprocess.run(
        ["/bin/bash", "-c", script], user=65534, group=65534, extra_groups=(), pass_fds=(number,), capture_output=True,
        text=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == "1"
    assert done.returncode != 0
    assert "Permission denied" in done.stderr
