"""Device arrays on a real GPU with the real cupy; skipped where there is none. `python -m tests.gpu` adds figures.

What can be shown without a GPU is in tests/test_devices.py and tests/clients/collectives/test_device_arrays.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import clients
from broker import devices
from broker.devices import Device
from tests.clients.serving import ServingThread

PATIENCE_S = 30.0
DTYPES = [
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float16", "float32", "float64",
    "complex64", "complex128",
]  # fmt: skip

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(120)]


@pytest.fixture(params=["tcp", "unix"])
def broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServingThread]:
    with ServingThread("tcp://127.0.0.1:0" if request.param == "tcp" else f"unix://{tmp_path}/bus") as serving:
        yield serving


@pytest.fixture
def bus(broker: ServingThread) -> Iterator[clients.Client]:
    with clients.connect(broker.url) as client:
        yield client


def values_of(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (300, 70)])
def test_arrays_of_each_dtype_arrive_on_the_device_with_one_copy_each_way(
    bus: clients.Client, dtype: str, shape: tuple[int, ...]
) -> None:
    import cupy

    values, before = values_of(dtype, shape), devices.copies()
    with bus.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", cupy.asarray(values))
        found = subscription.next(PATIENCE_S).value
    assert isinstance(found, cupy.ndarray)
    assert (found.device.id, found.dtype, found.shape) == (0, values.dtype, shape)
    assert np.array_equal(cupy.asnumpy(found), values)
    after, copied = devices.copies(), int(values.size > 0)
    assert (after.to_host - before.to_host, after.to_device - before.to_device) == (copied, copied)
    assert after.pageable == before.pageable


def test_layouts(bus: clients.Client) -> None:
    import cupy

    whole = cupy.asarray(np.arange(600.0).reshape(20, 30))
    with bus.subscribe("a", device="cuda") as subscription:
        for part in (whole.T, whole[::2, 3:9], whole[::-1]):
            bus.publish("a", part)
            assert np.array_equal(cupy.asnumpy(subscription.next(PATIENCE_S).value), cupy.asnumpy(part))


def test_staging_memory_is_pinned() -> None:
    import cupy

    memory = devices.host_memory(1 << 20)
    assert cupy.cuda.runtime.pointerGetAttributes(memory.ctypes.data).type == 1  # cudaMemoryTypeHost


class ByInterface:
    """An array of another library, on a stream of its own."""

    def __init__(self, array: object, stream: int) -> None:
        self.array = array
        told = dict(array.__cuda_array_interface__)  # type: ignore[attr-defined]
        self.__cuda_array_interface__ = told | {"version": 3, "stream": stream}


def test_what_is_queued_on_the_producers_stream_comes_first() -> None:
    import cupy

    matrix = cupy.asarray(np.full((2048, 2048), 1 / 2048, "float32"))
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        product = matrix
        for _ in range(50):
            product = product @ matrix
        product = product + 1
    # Long before the products are formed.
    host = devices.to_host(ByInterface(product, stream.ptr))
    np.testing.assert_allclose(host, 1 + 1 / 2048, rtol=1e-3)
    assert stream.done


def test_a_copy_to_the_device_follows_what_its_stream_does() -> None:
    import cupy

    stream = cupy.cuda.Stream(non_blocking=True)
    target = cupy.asarray(np.zeros(1 << 20, "float32"))
    cupy.cuda.Device().synchronize()
    with stream:
        for _ in range(100):
            target += 1
        devices.write_back(target, np.full(1 << 20, 5, "float32"))
    assert float(target.min()) == float(target.max()) == 5.0


def test_torch_tensors_by_dlpack(bus: clients.Client) -> None:
    torch = pytest.importorskip("torch", reason="torch is not installed")
    if not torch.cuda.is_available():
        pytest.skip("torch is built without CUDA")
    for dtype in (torch.float32, torch.bfloat16, torch.int64):
        tensor = torch.arange(1000, device="cuda").to(dtype)
        with bus.subscribe("a") as subscription:
            bus.publish("a", tensor)
            found = subscription.next(PATIENCE_S).value
        assert np.array_equal(found.astype("float32"), tensor.float().cpu().numpy())
        devices.write_back(tensor, found * 0)
        assert not tensor.any()


def test_requests_and_pulled_parameters(broker: ServingThread, bus: clients.Client) -> None:
    import cupy

    with clients.connect(broker.url) as other:
        other.respond("double", lambda request: request.value * 2, device="cuda:0")
        for elements in (10, 1 << 20):
            reply = bus.request("double", cupy.asarray(np.ones(elements)), device="cuda:0", timeout_s=PATIENCE_S)
            assert np.array_equal(cupy.asnumpy(reply.value), np.full(elements, 2.0))
        parameters = {"weight": np.ones((200, 300), "float32"), "bias": np.zeros(5, "float32")}
        with (
            clients.ParameterServer(other, parameters, clients.SGD(1.0)),
            clients.Trainer(bus, world_size=1, rank=0) as trainer,
        ):
            pulled = trainer.pull(device="cuda:0").parameters
            assert np.array_equal(cupy.asnumpy(pulled["weight"]), parameters["weight"])


@pytest.mark.parametrize("schedule", ["star", "auto"])
@pytest.mark.parametrize("op", ["sum", "mean", "max"])
def test_all_reduce_of_device_arrays_has_the_bits_of_the_hosts(broker: ServingThread, schedule: str, op: str) -> None:
    import cupy

    ranks, inputs = 2, [np.random.default_rng(rank).standard_normal(100_000).astype("float32") for rank in range(2)]

    def work(rank: int) -> bool:
        with clients.connect(broker.url) as client:
            group = client.group("dp", world_size=ranks, rank=rank, schedule=schedule, timeout_s=PATIENCE_S)
            mine = cupy.asarray(inputs[rank])
            assert group.all_reduce(mine, op, timeout_s=PATIENCE_S) is mine
            host = group.all_reduce(inputs[rank].copy(), op, timeout_s=PATIENCE_S)
            shares = group.reduce_scatter(mine, timeout_s=PATIENCE_S)
            return np.array_equal(cupy.asnumpy(mine), host) and isinstance(shares, cupy.ndarray)

    with ThreadPoolExecutor(ranks) as pool:
        assert list(pool.map(work, range(ranks))) == [True] * ranks


def test_a_device_that_does_not_exist_and_one_that_cannot_hold_a_dtype(bus: clients.Client) -> None:
    with pytest.raises(clients.InvalidValue, match="cuda:99.*does not exist here; there is cuda:0"):
        bus.subscribe("a", device="cuda:99")
    with bus.subscribe("a", device="cuda:0") as subscription:
        bus.publish("a", np.ones(3, ">f4"))
        message = subscription.next(PATIENCE_S)
        with pytest.raises(clients.InvalidValue, match="cannot hold it"):
            _ = message.value
        assert message.value_on("cpu").tolist() == [1.0] * 3


def test_an_array_of_another_device_than_the_current_one(bus: clients.Client) -> None:
    import cupy

    if len(devices.available()) < 2:
        pytest.skip("there is one GPU only")
    with cupy.cuda.Device(1):
        array = cupy.asarray(np.arange(10.0))
    with bus.subscribe("a", device="cuda:1") as subscription:
        bus.publish("a", array)
        assert devices.device_of(subscription.next(PATIENCE_S).value) == Device(1)
