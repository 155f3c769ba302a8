"""The ZeroMQ transport: `zmq+tcp://host:port` and `zmq+ipc:///path` (docs/wire.md section 16, decisions/0016).

A listener is one ROUTER socket, a dialled connection one DEALER. ZeroMQ moves messages where the contract of
transport/base.py wants a stream of bytes with readiness, so three things stand between them:

    messages.py    what a message says: bytes of the stream and their position, how far the other end may send, the end
    stream.py      a Connection over such messages: what has come and was not taken, what may be sent, when it is over
    ../readiness.py   a descriptor that is readable while there is something to do, made of ZeroMQ's and one of our own

`hub.py` has a ROUTER and the streams of all its peers, `dealer.py` the dialled end, `sockets.py` how either is set up,
and `curve.py` the keys. The module is imported when an address asks for it, and pyzmq with it.

ZeroMQ's high-water marks count messages, are told to nobody by peer, and drop or block. Here each end grants the other
one a window in bytes instead, so that no queue of ZeroMQ ever holds more than a window for a peer, a sender knows when
it may go on, and a peer that does not read costs memory that is known.
"""

from broker.transport.registry import register
from broker.transport.zeromq.transport import ZeroMqTransport

register(ZeroMqTransport("zmq+tcp"))
register(ZeroMqTransport("zmq+ipc"))
