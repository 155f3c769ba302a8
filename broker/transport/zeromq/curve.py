"""CURVE keys of ZeroMQ (https://rfc.zeromq.org/spec/26/): the listener proves who it is, and the link is encrypted.

An address names files as `zmq.auth.create_certificates` writes them. A listener has `?curve=FILE` with its secret key;
who dials has `?curve=FILE` with the listener's public key, and `&key=FILE` with its own secret key where it has one;
without, it makes a pair for the occasion. Keys stand in files, never in addresses, and so never in logs.
"""

from __future__ import annotations

import zmq
import zmq.auth

from broker.errors import InvalidValue
from broker.transport.addresses import Address


def secure_listener(socket: zmq.Socket[bytes], address: Address) -> None:
    """Makes a socket take only links that know the listener's public key, if the address names its keys.

    Raises:
        InvalidValue: the file has no secret key, or this ZeroMQ knows no CURVE.
    """
    options = dict(address.options)
    if "key" in options:
        raise InvalidValue("address", str(address), "key= is for who dials; a listener has curve= with its secret key")
    if "curve" in options:
        public, secret = _keys(address, options["curve"], secret=True)
        socket.curve_server = True
        socket.curve_publickey, socket.curve_secretkey = public, secret


def secure_dialler(socket: zmq.Socket[bytes], address: Address) -> None:
    """Makes a socket speak only to the listener whose public key the address names, if it names one.

    Raises:
        InvalidValue: a file has no such key, or this ZeroMQ knows no CURVE.
    """
    options = dict(address.options)
    if "curve" not in options:
        if "key" in options:
            raise InvalidValue("address", str(address), "key= needs curve= with the listener's public key")
        return
    socket.curve_serverkey = _keys(address, options["curve"], secret=False)[0]
    if "key" in options:
        socket.curve_publickey, socket.curve_secretkey = _keys(address, options["key"], secret=True)
    else:
        socket.curve_publickey, socket.curve_secretkey = zmq.curve_keypair()


def _keys(address: Address, path: str, *, secret: bool) -> tuple[bytes, bytes]:
    """The public and the secret key in a file; the latter may be empty where it is not needed."""
    if not zmq.has("curve"):
        raise InvalidValue(
            "address", str(address), "this libzmq was built without CURVE; leave curve= out or build it in"
        )
    try:
        public, private = zmq.auth.load_certificate(path)
    except (OSError, ValueError) as error:
        problem = f"no keys can be read from {path}: {error}; zmq.auth.create_certificates writes such files"
        raise InvalidValue("address", str(address), problem) from error
    if secret and not private:
        raise InvalidValue("address", str(address), f"{path} has no secret key; the file ends in .key_secret as a rule")
    return public, private or b""
