"""The UCX transport: `ucx://host:port`, over UCXX (docs/wire.md section 21, decisions/0019).

UCX ends its process where it meets what it did not expect: a peer that dies in the middle of a transfer, a byte that is
wrong in an address. So no broker and no client calls it. Each end of a connection has a process for it, a carrier,
which reads and writes the stream in memory that it shares with its owner, and speaks UCX with the carrier at the other
end. Whatever happens to a carrier, its owner sees one connection end. Nor has an owner to keep UCX moving: a carrier
goes on by itself, as a kernel does, while its owner computes, and after it has closed or ended.

    owner  --- memory, a socket ---  carrier  === UCX, a TCP link ===  carrier  --- memory, a socket ---  owner

    connection.py  the owner's end, a Connection
    transport.py   dialling and listening, which happens on the link
    carriers.py    the process from which carriers are forked, and forking.py, what it does
    records.py     what owner and carrier tell each other
    carrier.py     a carrier
    link.py        what carriers tell each other over the link
    library.py     UCXX, imported there alone
"""

from importlib.util import find_spec

from broker.transport.registry import register
from broker.transport.ucx.transport import UcxTransport

if find_spec("ucxx") is None:
    raise ImportError("it needs UCXX; install it with `pip install 'tensorbus[ucx]'`, which is the package ucxx-cu12")

register(UcxTransport())
