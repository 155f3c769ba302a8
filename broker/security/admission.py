"""Who gets in, and as whom: by a token, a certificate, or the user whose process it is.

Pure, but for looking the names of users up, at the start.
"""

from __future__ import annotations

import pwd
from collections.abc import Mapping, Sequence
from typing import Final

from broker.errors import ConfigError, LimitExceeded, PermissionDenied
from broker.limits import USERS_MAX
from broker.security.identity import ADMIN, Identity
from broker.security.tokens import Tokens

_FORM: Final = "expected USER=ROLE, USER=ROLE+ROLE or USER=ROLE@TENANT"


def read_users(texts: Sequence[str], own_user: int) -> dict[int, Identity]:
    """The users of this host that are let in at a Unix-domain socket, by number.

    The broker's own user and root are admins, whether or not they are named: they could do anything to it anyway.

    Args:
        texts: each USER=ROLE[+ROLE]...[@TENANT], the user by name or number.
        own_user: the number of the broker's user.

    Raises:
        ConfigError: one of them is malformed, or no such user exists.
        LimitExceeded: there are too many.
    """
    if len(texts) > USERS_MAX:
        raise LimitExceeded("users_max", len(texts), USERS_MAX, "let them come with tokens instead")
    users = {number: Identity(_name(number), (ADMIN,), "", "unix") for number in (0, own_user)}
    for text in texts:
        user, separator, granted = text.partition("=")
        granted, at, tenant = granted.partition("@")
        roles = tuple(granted.split("+"))
        if not separator or not user or not all(roles) or (at and not tenant):
            raise ConfigError("setting users", text, _FORM)
        number = _number(user)
        if number not in (0, own_user):
            users[number] = Identity(_name(number), roles, tenant, "unix")
    return users


def _number(user: str) -> int:
    if user.isdecimal():
        return int(user)
    try:
        return pwd.getpwnam(user).pw_uid
    except KeyError as error:
        raise ConfigError("setting users", user, f"this host has no such user; {_FORM}") from error


def _name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        # As in a container that is run with a number of its own.
        return str(number)


def identity_of_user(users: Mapping[int, Identity], number: int) -> Identity:
    """Who a process of this host is.

    Raises:
        PermissionDenied: its user is not let in.
    """
    identity = users.get(number)
    if identity is None:
        raise PermissionDenied(
            f"user {_name(number)} of this host is not let in at this socket: start the broker with "
            f"--users {_name(number)}=ROLE, or connect with a token at another address"
        )
    return identity


def admit(proven: Identity, token: str, tokens: Tokens | None, now_s: float, *, strangers: bool) -> Identity:
    """Who somebody is that says hello.

    Args:
        proven: what the connection proves.
        token: what the hello has; it counts for more than what the connection proves.
        tokens: those that are known; None where the broker takes none, and looks at none.
        now_s: seconds since 1970.
        strangers: whether somebody who proves nothing is let in.

    Raises:
        PermissionDenied: nobody who is let in; the text says what to do.
    """
    if token and tokens is not None:
        return tokens.identity_of(token, now_s)
    if proven.proof == "certificate" and not proven.name:
        raise PermissionDenied("the certificate names nobody: it has no common name; tensorbus certs issue makes one")
    if proven.proof == "none" and not strangers:
        ways = ["a certificate (tls://, tls= or $TENSORBUS_TLS)"]
        if tokens is not None:
            ways.append("a token (token= or $TENSORBUS_TOKEN)")
        raise PermissionDenied(f"this broker lets nobody in who does not prove who they are: show {' or '.join(ways)}")
    return proven
