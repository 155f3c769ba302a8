"""Has sockets.py compiled as it is, and its system calls made directly."""

from broker.transport.calls cimport read_once, write_once
