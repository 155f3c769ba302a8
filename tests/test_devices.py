"""Device arrays to host memory and back, with a stand-in for cupy (cupy_stand_in.py). tests/gpu has the real ones."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable
from types import ModuleType

import numpy as np
import pytest

from broker import devices
from broker.devices import Copies, Device
from broker.errors import InvalidValue
from broker.protocol.tensors import as_array
from broker.protocol.values import decode_value, encode_value
from tests import cupy_stand_in as stand_in


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = stand_in.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(devices, "_counter", devices._Counter())
    return module


@pytest.fixture
def no_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)


def there_and_back(value: object, device: Device) -> object:
    content, meta, payload = encode_value(value)
    return devices.to_device(decode_value(content, meta, bytes(payload)), device)


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", "float16", "float32", "float64", "complex128"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 4), (2, 3, 5)])
def test_an_array_comes_back_as_it_went_with_one_copy_each_way(
    cupy: ModuleType, dtype: str, shape: tuple[int, ...]
) -> None:
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    back = there_and_back(cupy.array(values, 1), Device(0))
    assert isinstance(back, cupy.ndarray)
    assert (back.device.id, back.dtype, back.shape) == (0, values.dtype, shape)
    assert np.array_equal(back.peek(), values)
    assert [(copy.direction, copy.size_bytes, copy.device) for copy in stand_in.copies] == [
        ("to host", values.nbytes, 1),
        ("to device", values.nbytes, 0),
    ]
    assert stand_in.copies[0].pinned
    assert devices.copies() == Copies(1, values.nbytes, 1, values.nbytes)


def test_numpy_cannot_read_the_stand_in_as_it_cannot_read_a_gpu(cupy: ModuleType) -> None:
    with pytest.raises(TypeError):
        np.asarray(cupy.array([1.0]))


def test_the_order_in_memory_is_kept(cupy: ModuleType) -> None:
    values = np.asfortranarray(np.arange(12.0).reshape(3, 4))
    back = there_and_back(cupy.array(values), Device(0))
    assert back.flags.f_contiguous
    assert np.array_equal(back.peek(), values)


def test_a_strided_array_is_packed_on_its_device_and_copied_once(cupy: ModuleType) -> None:
    whole = cupy.array(np.arange(24.0).reshape(4, 6))
    host = devices.to_host(whole[:, ::2])
    assert np.array_equal(host, np.arange(24.0).reshape(4, 6)[:, ::2])
    assert [copy.size_bytes for copy in stand_in.copies] == [12 * 8]


def test_an_array_without_elements_is_not_copied(cupy: ModuleType) -> None:
    back = there_and_back(cupy.array(np.empty((0, 3), "float32")), Device(1))
    assert (back.shape, back.dtype, back.device.id) == ((0, 3), np.dtype("float32"), 1)
    assert stand_in.copies == []


def test_what_a_producer_has_queued_on_its_stream_is_waited_for(cupy: ModuleType) -> None:
    memory, stream = np.zeros(4), cupy.cuda.Stream()
    array = stand_in.Foreign(memory, stream.ptr)
    stream.queued.append(lambda: memory.fill(7.0))
    assert devices.to_host(array).tolist() == [7.0] * 4
    assert stream.synchronized == 1


def test_an_interface_without_a_stream_has_nothing_to_wait_for(cupy: ModuleType) -> None:
    assert devices.to_host(stand_in.Foreign(np.ones(2))).tolist() == [1.0, 1.0]


def test_an_array_by_dlpack_is_told_the_stream_that_reads_it(cupy: ModuleType) -> None:
    array = stand_in.Exchanged(np.arange(3), device=1)
    with cupy.cuda.Stream() as stream:
        assert devices.to_host(array).tolist() == [0, 1, 2]
        assert array.streams == [stream.ptr]
        assert [copy.stream for copy in stand_in.copies] == [stream.ptr]


def test_copies_to_a_device_go_on_the_callers_stream_behind_what_it_has_queued(cupy: ModuleType) -> None:
    done = []
    with cupy.cuda.Stream() as stream:
        stream.queued.append(lambda: done.append("before"))
        array = devices.to_device(np.arange(3.0), Device(1))
    assert done == ["before"]
    assert array.peek().tolist() == [0.0, 1.0, 2.0]
    assert [(copy.stream, copy.device) for copy in stand_in.copies] == [(stream.ptr, 1)]


def test_the_current_device_is_left_as_it_was(cupy: ModuleType) -> None:
    with cupy.cuda.Device(1):
        devices.to_host(cupy.array([1.0], 0))
        devices.to_device(np.ones(1), Device(0))
        devices.write_back(cupy.array([1.0], 0), np.ones(1))
        assert cupy.cuda.Device().id == 1


@pytest.mark.parametrize("place", [lambda a: a, lambda a: a[::2], lambda a: a[:, 1:3]])
def test_a_device_array_is_written_to_where_it_lies(cupy: ModuleType, place: Callable[[object], object]) -> None:
    whole, expected = cupy.array(np.zeros((4, 4))), np.zeros((4, 4))
    target = place(whole)
    values = np.arange(float(np.prod(target.shape))).reshape(target.shape)
    devices.write_back(target, values)
    place(expected)[...] = values
    assert np.array_equal(whole.peek(), expected)
    assert [copy.direction for copy in stand_in.copies] == ["to device"]


def test_lists_and_dicts_keep_what_is_no_array(cupy: ModuleType) -> None:
    value = {"step": 3, "layers": [cupy.array([1.0]), None], "name": "x", "host": np.arange(2)}
    back = there_and_back(value, Device(1))
    assert (back["step"], back["layers"][1], back["name"]) == (3, None, "x")
    assert [each.peek().tolist() for each in (back["layers"][0], back["host"])] == [[1.0], [0, 1]]
    assert {back["layers"][0].device.id, back["host"].device.id} == {1}


def test_memory_that_cannot_be_pinned_is_warned_of_once_and_counted(
    cupy: ModuleType, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stand_in, "fail_to_pin", True)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert devices.to_host(cupy.array([2.0])).tolist() == [2.0]
    assert len([record for record in caplog.records if "not_pinned" in record.message]) == 1
    assert devices.copies() == Copies(3, 24, pageable=3)


def test_what_was_counted_is_told_once(cupy: ModuleType) -> None:
    devices.to_host(cupy.array([2.0]))
    assert devices.untold_copies(within=True) == Copies(1, 8)
    assert devices.untold_copies(within=True) == Copies()
    devices.to_device(np.ones(2), Device(0))
    devices.copied_within(24)
    assert devices.untold_copies(within=False) == Copies(to_device=1, to_device_bytes=16)
    assert devices.untold_copies(within=False) == Copies()
    assert devices.untold_copies(within=True) == Copies(within=1, within_bytes=24)


def test_threads_count_together(cupy: ModuleType) -> None:
    def copy_many() -> None:
        for _ in range(200):
            devices.to_host(cupy.array([1.0]))

    threads = [threading.Thread(target=copy_many) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert devices.copies() == Copies(800, 6400)


# Bad input.


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cuda:2", "does not exist here; there is cuda:0, cuda:1"),
        ("cuda:", "is none of cpu, cuda"),
        ("cuda:-1", "is none of"),
        ("cuda:x", "is none of"),
        ("gpu", "is none of"),
        ("", "is none of"),
        (0, "is none of"),
    ],
)
def test_a_device_that_does_not_exist_is_refused_with_those_that_do(cupy: ModuleType, text: object, words: str) -> None:
    with pytest.raises(InvalidValue, match=words):
        devices.read_device(text)


def test_names_of_devices(cupy: ModuleType) -> None:
    assert [devices.read_device(text) for text in (None, "cpu", "cuda:1")] == [None, None, Device(1)]
    with cupy.cuda.Device(1):
        assert devices.read_device("cuda") == Device(1)
    assert str(Device(1)) == "cuda:1"


def test_a_dtype_that_a_device_cannot_hold_is_named(cupy: ModuleType) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes", reason="ml_dtypes is not installed")
    for array, name in ((np.ones(2, ml_dtypes.bfloat16), "bfloat16"), (np.ones(2, ">f4"), ">f4")):
        with pytest.raises(InvalidValue, match=name) as caught:
            devices.to_device({"a": array}, Device(0))
        assert "value_on('cpu')" in str(caught.value)


def test_a_kind_of_device_that_is_not_known_is_named(cupy: ModuleType) -> None:
    with pytest.raises(InvalidValue, match="kind 8 of DLPack"):
        as_array(stand_in.Exchanged(np.ones(1), kind=8))


def test_a_masked_device_array_is_refused(cupy: ModuleType) -> None:
    array = stand_in.Foreign(np.ones(2))
    array.__cuda_array_interface__["mask"] = stand_in.Foreign(np.ones(2, bool))
    with pytest.raises(InvalidValue, match="mask"):
        as_array(array)


def test_an_error_of_cuda_becomes_one_of_ours_with_its_words(cupy: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **options: object) -> object:
        raise stand_in.CUDARuntimeError("cudaErrorIllegalAddress: an illegal memory access was encountered")

    monkeypatch.setattr(cupy, "empty", fail)
    with pytest.raises(InvalidValue, match="cannot be made on cuda:0: cudaErrorIllegalAddress"):
        devices.to_device(np.ones(2), Device(0))


def test_read_only_is_what_the_interface_says(cupy: ModuleType) -> None:
    assert devices.is_read_only(stand_in.Foreign(np.ones(2), read_only=True))
    assert not devices.is_read_only(stand_in.Foreign(np.ones(2)))
    assert not devices.is_read_only(stand_in.Exchanged(np.ones(2)))


def test_without_cupy_it_says_what_is_missing_and_how_to_install_it(no_cupy: None) -> None:
    assert devices.available() == []
    assert "tensorbus[gpu]" in devices.problem()
    for call in (lambda: devices.read_device("cuda:0"), lambda: as_array(stand_in.Foreign(np.ones(1)))):
        with pytest.raises(InvalidValue, match="needs cupy, which is not installed: pip install"):
            call()


def test_nothing_imports_cupy_before_a_device_is_named() -> None:
    import subprocess

    words = "import sys, clients, clients.aio, broker.server; sys.exit('cupy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", words], timeout=60, check=False).returncode == 0


# torch, of which the tests have CPU tensors only.


def test_tensors_in_host_memory_are_no_device_arrays() -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    for tensor in (torch.ones(2), torch.ones(2, requires_grad=True), torch.ones(2, dtype=torch.bfloat16)):
        assert not devices.is_device_array(tensor)


def test_what_torch_gives_by_dlpack_is_read_with_the_bits_of_bfloat16(
    cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    # The way of a CUDA tensor, of one in host memory: what is read of it is what DLPack gives.
    seen = []

    def from_dlpack(tensor: object) -> stand_in.Array:
        seen.append(tensor)
        return stand_in.Array(np.from_dlpack(tensor))

    monkeypatch.setattr(cupy, "from_dlpack", from_dlpack)
    tensor = torch.tensor([1.0, -2.0], dtype=torch.bfloat16, requires_grad=True)
    host = devices.to_host(tensor)
    assert host.dtype == np.int16
    assert host.view(np.uint16).tolist() == [0x3F80, 0xC000]
    assert not seen[0].requires_grad
    devices.write_back(tensor, np.array([0x4000, 0x3F80], np.int16))
    assert tensor.tolist() == [2.0, 1.0]
