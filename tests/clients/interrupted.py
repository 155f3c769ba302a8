"""A program whose request is interrupted from the keyboard; see test_responding."""

from __future__ import annotations

import signal
import sys
import threading

import clients

PATIENCE_S = 60.0
cancelled = threading.Event()


def interrupt(request: clients.Request) -> object:
    """Never answers, and presses Ctrl-C while its requester waits."""
    request.on_cancel(cancelled.set)
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
    return clients.DEFERRED


with clients.connect(sys.argv[1]) as responder, clients.connect(sys.argv[1]) as bus:
    responder.respond("slow", interrupt)
    try:
        bus.request("slow", timeout_s=PATIENCE_S)
    except KeyboardInterrupt:
        print("interrupted", "and cancelled" if cancelled.wait(PATIENCE_S) else "and not cancelled")
