"""Roles, who has them, and quotas of tenants in the daemon's TOML file.

    [permissions]
    everybody = ["reader"]                       # roles that every session has, whoever it is
    members = { "trainer-0" = ["trainer"] }      # roles by proven name, or NAME@TENANT

    [permissions.roles.reader]                   # beside trainer, parameter-server, monitor and admin
    includes = ["monitor"]
    allow = { subscribe = ["metrics/#"] }
    deny = { subscribe = ["metrics/private/#"] }

    [tenants.blue]                               # "*" is every tenant that has no table
    sessions_max = 100
    bytes_per_second_max = "100MiB"

The file is read again on SIGHUP. What it says is taken over as a whole, or not at all.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from types import MappingProxyType

from broker.errors import ConfigError, InvalidValue, LimitExceeded
from broker.limits import NAME_BYTES_MAX, ROLES_MAX, ROLES_NESTED_MAX, TENANTS_MAX
from broker.security.permissions import Permissions, check_size
from broker.security.quotas import Quotas
from broker.security.roles import READY_MADE, Filters, Role, Verb, check_rule

_VERBS = tuple(verb.value for verb in Verb)
_QUOTAS = tuple(quota.name for quota in fields(Quotas))


def read_permissions(value: object, file: str) -> Permissions:
    """The permissions of a file.

    Args:
        value: what TOML has made of the table.
        file: the file's path, for errors.

    Raises:
        ConfigError: a key is unknown, a filter cannot be, a role is not defined, includes itself or is ready-made.
    """
    where = f"[permissions] in {file}"
    table = _table(value, where, ("everybody", "members", "roles"))
    tables = _named(table.get("roles", {}), f"[permissions.roles] in {file}", ROLES_MAX)
    for name in tables:
        if name in READY_MADE:
            raise ConfigError(f"role in {where}", name, "is ready-made; give yours another name, and include it")
    roles: dict[str, Role] = dict(READY_MADE)
    for name in tables:
        _make_role(name, tables, roles, file, ())
    try:
        check_size(roles)
    except LimitExceeded as error:
        raise ConfigError(where, error.value, str(error)) from error
    members = _named(table.get("members", {}), f"members of {where}", None)
    return Permissions(
        configured=True,
        roles=MappingProxyType(roles),
        everybody=_known_roles(table.get("everybody", []), f"everybody of {where}", roles),
        members=MappingProxyType(
            {_member(name): _known_roles(given, f"members.{name} of {where}", roles) for name, given in members.items()}
        ),
    )


def _member(text: str) -> tuple[str, str]:
    """The name and the tenant of NAME or NAME@TENANT."""
    name, separator, tenant = text.rpartition("@")
    return (name, tenant) if separator else (text, "")


def _make_role(
    name: str, tables: Mapping[str, object], roles: dict[str, Role], file: str, path: tuple[str, ...]
) -> Role:
    """A role with all that it includes; each is made once."""
    if name in roles:
        return roles[name]
    where = f"[permissions.roles.{name}] in {file}"
    if name in path:
        raise ConfigError(where, " -> ".join((*path, name)), "a role includes itself")
    if len(path) >= ROLES_NESTED_MAX:
        raise ConfigError(where, name, f"roles include one another over {ROLES_NESTED_MAX} deep")
    table = _table(tables[name], where, ("includes", "allow", "deny"))
    included = _known_roles(table.get("includes", []), f"includes of {where}", {**READY_MADE, **tables})
    parts = [_make_role(other, tables, roles, file, (*path, name)) for other in included]
    parts.append(Role(_filters(table.get("allow", {}), where), _filters(table.get("deny", {}), where)))
    roles[name] = Role(_joined(part.allow for part in parts), _joined(part.deny for part in parts))
    return roles[name]


def _joined(parts: Iterable[Filters]) -> Filters:
    joined: dict[Verb, tuple[str, ...]] = {}
    for part in parts:
        for verb, filters in part.items():
            joined[verb] = tuple(dict.fromkeys((*joined.get(verb, ()), *filters)))
    return joined


def _filters(value: object, where: str) -> Filters:
    found: dict[Verb, tuple[str, ...]] = {}
    for verb, filters in _table(value, where, _VERBS).items():
        if not isinstance(filters, list):
            raise ConfigError(f"{verb} in {where}", filters, 'expected a list of topic filters, ["metrics/#"]')
        try:
            found[Verb(verb)] = tuple(check_rule(each) for each in filters)
        except InvalidValue as error:
            raise ConfigError(f"{verb} in {where}: {error.what}", error.value, error.problem) from error
    return found


def read_tenants(value: object, file: str, size_of: Callable[[object], object]) -> Mapping[str, Quotas]:
    """The quotas of tenants of a file, by name.

    Args:
        value: what TOML has made of the tables.
        file: the file's path, for errors.
        size_of: makes bytes of a text such as "4MiB", and leaves everything else as it is.

    Raises:
        ConfigError: a name cannot be, or a quota is unknown or no number above 0.
    """
    found = {}
    for name, given in _named(value, f"[tenants] in {file}", TENANTS_MAX).items():
        where = f"[tenants.{name}] in {file}"
        if not name.isprintable() or len(name.encode()) > NAME_BYTES_MAX:
            raise ConfigError(where, name, f"a tenant's name has 1 to {NAME_BYTES_MAX} printable bytes")
        table = {quota: size_of(each) for quota, each in _table(given, where, _QUOTAS).items()}
        for quota, each in table.items():
            if not isinstance(each, int) or isinstance(each, bool) or each < 1:
                raise ConfigError(f"{quota} in {where}", each, 'expected an integer above 0; bytes also as "4MiB"')
        found[name] = Quotas(**table)  # type: ignore[arg-type]
    return MappingProxyType(found)


def _table(value: object, where: str, known: Iterable[str]) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(where, value, "expected a table")
    known = tuple(known)
    for key in value:
        if key not in known:
            nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            advice = f"did you mean {nearest[0]}?" if nearest else f"there are {', '.join(known)}"
            raise ConfigError(f"key in {where}", key, f"unknown; {advice}")
    return value


def _named(value: object, where: str, most: int | None) -> dict[str, object]:
    """A table of which every key is somebody's name."""
    if not isinstance(value, dict) or "" in value:
        raise ConfigError(where, value, "expected a table with a key for each name")
    if most is not None and len(value) > most:
        raise ConfigError(f"number of entries of {where}", len(value), f"the limit is {most}")
    return value


def _known_roles(value: object, where: str, roles: Mapping[str, object]) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        raise ConfigError(where, value, 'expected a list of roles, ["trainer"]')
    for name in value:
        if name not in roles:
            raise ConfigError(where, name, f"no such role; there are {', '.join(roles)}")
    return tuple(value)


def describe_permissions(permissions: Permissions) -> str:
    """The permissions in words, for `--show-config`."""
    own = [name for name in permissions.roles if name not in READY_MADE]
    everybody = ",".join(permissions.everybody) or "none"
    return f"everybody={everybody} members={len(permissions.members)} roles={','.join(own) or 'ready-made'}"


def describe_tenants(tenants: Mapping[str, Quotas]) -> list[tuple[str, str]]:
    """For each tenant its name and quotas, as texts."""
    return [
        (
            f"tenants.{name}",
            " ".join(f"{quota}={value}" for quota in _QUOTAS if (value := getattr(quotas, quota)) is not None),
        )
        for name, quotas in tenants.items()
    ]
