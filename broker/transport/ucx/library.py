"""UCXX, as far as it is used here: channels that carry messages between two workers.

The low-level interface is used, because the asyncio one wants a loop and costs more (decisions/0019). Errors of
endpoints are not handled: with that, UCX leaves shared memory out, and here an error may end the process.
"""

from __future__ import annotations

import secrets
from typing import Final, Protocol

from ucxx._lib import libucxx
from ucxx._lib.arr import Array

_LOOPBACK: Final = {"TLS": "self,posix,cma,tcp", "NET_DEVICES": "lo"}
"""UCX listens at ports of its own, which nobody else is to reach when the link is on loopback."""
_ALWAYS: Final = {"WARN_UNUSED_ENV_VARS": "n"}
_FEATURES: Final = (libucxx.Feature.TAG, libucxx.Feature.WAKEUP)


class Request(Protocol):
    """What UCXX gives for a message under way. Its memory has to stay until it is `completed`."""

    completed: bool

    def check_error(self) -> None:
        """Raises what has gone wrong."""


class ChannelFailed(Exception):
    """UCX cannot go on with a channel; the text is its own."""


class Channel:
    """A worker of UCX and its one endpoint.

    Attributes:
        address: where the worker is found, for the peer's UCX.
        tag: what messages for it are marked with; nobody guesses it.
    """

    def __init__(self, *, loopback: bool) -> None:
        """Args:
            loopback: whether the peer is reached over loopback.

        Raises:
            ChannelFailed: UCX finds no device, or no descriptor is left.
        """
        try:
            context = libucxx.UCXContext({**_ALWAYS, **(_LOOPBACK if loopback else {})}, _FEATURES)
            self._worker = libucxx.UCXWorker(context)
            self._worker.init_blocking_progress_mode()
            self.address: bytes = libucxx.UCXAddress.create_from_worker(self._worker).tobytes()
        except (libucxx.UCXError, OSError, RuntimeError) as error:
            raise ChannelFailed(f"UCX could not be set up: {error}") from error
        self.tag = secrets.randbits(64)
        self._mark = libucxx.UCXXTag(self.tag)
        self._peer_mark = self._mark
        self._endpoint = None

    def fileno(self) -> int:
        """A descriptor that is readable when there is something to do, once `arm` has said True."""
        return int(self._worker.epoll_file_descriptor)

    def open(self, address: bytes, tag: int) -> None:
        """Makes the endpoint.

        Args:
            address: the peer's. UCX may end the process over one that is none.
            tag: the peer's.

        Raises:
            ChannelFailed: the peer is out of reach.
        """
        try:
            peer = libucxx.UCXAddress.create_from_buffer(address)
            self._endpoint = libucxx.UCXEndpoint.create_from_worker_address(self._worker, peer, False)
        except (libucxx.UCXError, OSError, RuntimeError) as error:
            raise ChannelFailed(f"UCX does not reach the peer: {error}") from error
        self._peer_mark = libucxx.UCXXTag(tag)

    @property
    def opened(self) -> bool:
        """Whether the peer is known."""
        return self._endpoint is not None

    def send(self, message: memoryview) -> Request:
        """Begins to send a message, which must not be empty; only when it is `opened`."""
        assert self._endpoint is not None
        request: Request = self._endpoint.tag_send(Array(message), self._peer_mark)
        return request

    def probe(self) -> tuple[object, int] | None:
        """Takes the next message that has come: what to receive it by, and its length in bytes; None if none has."""
        found = self._worker.tag_probe(self._mark, libucxx.UCXXTagMaskFull, True)
        return (found, int(found.length)) if found.matched else None

    def receive(self, found: object, room: memoryview) -> Request:
        """Begins to receive a message that was probed, which fits."""
        request: Request = self._worker.tag_recv_with_handle(Array(room), found)
        return request

    def progress(self) -> None:
        """Lets UCX do what there is to do."""
        self._worker.progress()

    def arm(self) -> bool:
        """Makes the descriptor tell of what comes from now on; False where there is something to do already."""
        return bool(self._worker.arm())


def check(request: Request) -> None:
    """Says whether a request that is completed went well.

    Raises:
        ChannelFailed: it did not.
    """
    try:
        request.check_error()
    except (libucxx.UCXError, RuntimeError) as error:
        raise ChannelFailed(f"UCX lost a message: {error}") from error
