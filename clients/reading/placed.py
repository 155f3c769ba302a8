"""Values of messages that lie in the memory of a device."""

from __future__ import annotations

from broker.devices import Device
from broker.devices.memory import DevicePayload
from broker.errors import ProtocolError
from broker.protocol.tensors import BFLOAT16, DTYPES, TensorMeta, read_tensor


def read_placed(payload: DevicePayload, tensor: TensorMeta | None, device: Device | None) -> object:
    """The array that a message is, copied once: to a device, from device memory, or to the host.

    Args:
        payload: of the message.
        tensor: what its bytes mean.
        device: where it is to be; None is host memory.

    Raises:
        ProtocolError: its publisher has sent something that cannot be read.
        InvalidValue: the device has no memory for it, or fails.
    """
    if tensor is None or tensor.dtype == BFLOAT16 or tensor.byte_order != "<":
        raise ProtocolError(f"message in the memory of a device that is no array of one: {tensor}")
    tensor.check()
    if tensor.nbytes != len(payload):
        raise ProtocolError(f"tensor {tensor.dtype}{list(tensor.shape)} has {tensor.nbytes} bytes, not {len(payload)}")
    if device is None:
        return read_tensor(tensor, payload.to_host().data)
    return payload.on(device, DTYPES[tensor.dtype], tensor.shape, tensor.order)
