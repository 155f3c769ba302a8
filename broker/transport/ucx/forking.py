"""The process from which carriers are forked, as it is inside: it loads UCXX, and then does nothing but fork."""

from __future__ import annotations

import gc
import os
import resource
import signal
import socket

from broker.transport.ucx.records import READY, REASON_BYTES_MAX


def fork_carriers(control: socket.socket) -> None:
    """Makes a carrier of each set of descriptors that comes, until its owner's process closes its end."""
    # Who ends all processes of a terminal or of a service ends the owner; carriers go by that.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        from broker.transport.ucx.carrier import Carrier
    except (ImportError, OSError, RuntimeError) as error:
        control.send(f"UCXX cannot be loaded: {error}".encode()[:REASON_BYTES_MAX])
        return
    gc.collect()
    gc.freeze()
    control.send(READY)
    while True:
        data, descriptors, _, _ = socket.recv_fds(control, 1, 3)
        if not data:
            return
        try:
            child = os.fork()
        except OSError:
            # The owner sees the end of this one: its door is closed.
            child = -1
        if child == 0:
            control.close()
            link, door, memory = descriptors
            try:
                Carrier(socket.socket(fileno=link), socket.socket(fileno=door), memory).run()
            finally:
                # Nothing of the parent's is to be written or ended here, and UCX has nothing that outlives a process.
                os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)
