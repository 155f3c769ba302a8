"""The daemon's settings: flags, then TENSORBUS_* variables, then a TOML file, then defaults.

`Config` is the table: a setting is a field, its name is the key in the file, the variable is `TENSORBUS_` and the name
in capitals, the flag is the name with hyphens. Its type says how a value is read and checked (`_KINDS`). `topics`, the
policies of topics, can only be set in the file (`broker/config_topics.py`), and so can `permissions` and `tenants`
(`broker/config_permissions.py`).
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Final

from broker import limits
from broker.config_permissions import describe_permissions, describe_tenants, read_permissions, read_tenants
from broker.config_topics import describe_topics, read_topics
from broker.errors import ConfigError
from broker.files import read_file
from broker.masking import masked
from broker.security.permissions import Permissions
from broker.security.quotas import Quotas
from broker.toml import read_toml
from broker.topics.policy import Declaration

VARIABLE_PREFIX: Final = "TENSORBUS_"
FILE_VARIABLE: Final = "TENSORBUS_CONFIG"
FOREIGN_VARIABLES: Final = frozenset(
    {
        FILE_VARIABLE, "TENSORBUS_URL", "TENSORBUS_TOKEN", "TENSORBUS_TLS", "TENSORBUS_CONTEXT", "TENSORBUS_KERNELS",
        "TENSORBUS_LINK_ADDRESS", "TENSORBUS_LINK_CONGESTION", "TENSORBUS_LOOK_US",
    }
)  # fmt: skip
"""Variables with the prefix that are not settings: the file's name, and what clients and the command line read."""
_OF_A_SERVICE: Final = re.compile(
    r"SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?", re.ASCII
)
"""What Kubernetes adds to the environment of each pod beside a service that is called tensorbus, and Docker's links do
(kubernetes.io, Concepts, Service, "Environment variables"). The daemon has no setting of such a name."""

ADMIN_DEFAULT: Final = "127.0.0.1:4871"
OFF: Final = "off"
"""A setting that nothing is set to."""
ADMIN_OFF: Final = OFF
TOPICS: Final = "topics"
PERMISSIONS: Final = "permissions"
TENANTS: Final = "tenants"
INTEGER_MAX: Final = 1 << 62
SECONDS_MAX: Final = 1e9


class LogLevel(StrEnum):
    """The least severe log records that are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How log records are written."""

    CONSOLE = "console"
    JSON = "json"


def is_foreign(variable: str) -> bool:
    """Whether a variable with the prefix has nothing to say to the daemon."""
    return variable in FOREIGN_VARIABLES or bool(_OF_A_SERVICE.fullmatch(variable.removeprefix(VARIABLE_PREFIX)))


def environment() -> Mapping[str, str]:
    """The process's environment; the daemon reads it here and nowhere else."""
    return os.environ


def adopt(variables: Mapping[str, str]) -> None:
    """Puts a context into this process's environment; with a broker that is named there goes all that belongs to it."""
    for name in ("TENSORBUS_TOKEN", "TENSORBUS_ADMIN", "TENSORBUS_TLS"):
        os.environ.pop(name, None)
    os.environ.update(variables)


def default_listen(variables: Mapping[str, str]) -> tuple[str, ...]:
    """The addresses of a daemon that was told none: TCP on this host, and a Unix socket of this user."""
    runtime_directory = variables.get("XDG_RUNTIME_DIR")
    path = f"{runtime_directory}/tensorbus.sock" if runtime_directory else f"/tmp/tensorbus-{os.getuid()}.sock"
    return ("tcp://127.0.0.1:4870", f"unix://{path}")


@dataclass(frozen=True, slots=True)
class Config:
    """The settings of one daemon.

    Attributes:
        listen: addresses to accept sessions at.
        admin: host:port of the HTTP endpoint, or "off".
        name: the broker's name in logs, metrics and the dashboard.
        log_level: the least severe log records that are written.
        log_format: console for people, or json, one object per line.
        workers: processes that serve, each a share of the topics; of several, worker K has the admin port plus K.
        admin_names: names by which the HTTP interface may be asked for, besides localhost, this machine's and figures.
        sessions_max: sessions open at once.
        half_open_max: connections that have yet to say hello.
        connections_per_address_max: connections of one address on the network.
        memory_max_bytes: what the broker may use at most; what the machine has counts where that is less.
        subscriptions_per_session_max: subscriptions of one session.
        hello_timeout_s: how long a new connection may take to say hello.
        heartbeat_interval_s: how long a silent session waits before it sends a heartbeat.
        heartbeat_timeout_s: how long a peer may be silent before its session is closed.
        ring_messages: messages that a topic keeps for replay.
        ring_bytes: payload bytes that a topic keeps for replay.
        publish_window_messages: messages of one topic that a publisher may send ahead of credit.
        publish_window_bytes: bytes of one topic that a publisher may send ahead of credit.
        drain_timeout_s: how long the daemon waits at its end for what is queued.
        metrics_topic_labels: count messages by topic too; each topic makes a time series, so they should be few.
        latency_metrics: whether clients measure how long messages take to reach them, and the broker its own turns.
        tracing: export spans of traced messages and of collectives by OTLP; takes `pip install tensorbus[otel]`.
        shared_memory: whether clients on this host may send and receive large messages in shared memory.
        device_memory_bytes: how much memory of devices each publisher may share with readers on this host; 0 is none.
        certificates: a folder with ca.crt, tls.crt, tls.key and maybe ca.crl, for listeners at tls:// and for HTTP.
        tokens: a file of tokens by which clients may prove who they are (tensorbus tokens).
        users: other users of this host that are let in at unix sockets, each USER=ROLE[+ROLE][@TENANT].
        insecure: let anybody in who reaches an address, also beyond this host, and warn of it.
        insecure_fabric: listen at ucx:// beyond this host, where nothing on the way is encrypted or checked.
        audit: a file to which is appended who connected, was refused, was denied and changed what, as JSON.
        topics: policies of topics, by filter.
        permissions: who may do what.
        tenants: quotas, by the name of the tenant; `*` is of all others.
    """

    listen: tuple[str, ...] = field(default_factory=lambda: default_listen(environment()))
    admin: str = ADMIN_DEFAULT
    name: str = field(default_factory=socket.gethostname)
    log_level: LogLevel = LogLevel.INFO
    log_format: LogFormat = LogFormat.CONSOLE
    workers: int = 1
    admin_names: tuple[str, ...] = ()
    sessions_max: int = limits.SESSIONS_MAX
    half_open_max: int = limits.HALF_OPEN_MAX
    connections_per_address_max: int = limits.CONNECTIONS_PER_ADDRESS_MAX
    memory_max_bytes: int = limits.MEMORY_BYTES_MAX
    subscriptions_per_session_max: int = limits.SUBSCRIPTIONS_PER_SESSION_MAX
    hello_timeout_s: float = limits.HELLO_TIMEOUT_S
    heartbeat_interval_s: float = limits.HEARTBEAT_INTERVAL_S
    heartbeat_timeout_s: float = limits.HEARTBEAT_TIMEOUT_S
    ring_messages: int = limits.RING_MESSAGES
    ring_bytes: int = limits.RING_BYTES
    publish_window_messages: int = limits.PUBLISH_WINDOW_MESSAGES
    publish_window_bytes: int = limits.PUBLISH_WINDOW_BYTES
    drain_timeout_s: float = limits.DRAIN_TIMEOUT_S
    metrics_topic_labels: bool = False
    latency_metrics: bool = True
    tracing: bool = False
    shared_memory: bool = True
    device_memory_bytes: int = 0
    certificates: str = ""
    tokens: str = ""
    users: tuple[str, ...] = ()
    insecure: bool = False
    insecure_fabric: bool = False
    audit: str = ""
    topics: tuple[Declaration, ...] = ()
    permissions: Permissions = field(default_factory=Permissions)
    tenants: Mapping[str, Quotas] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration, and for each setting where its value came from.

    Attributes:
        config: the settings.
        origins: "flag --listen", "TENSORBUS_LISTEN", the file's path, or "default", by setting.
    """

    config: Config
    origins: dict[str, str]


def admin_address(flag: str | None, variables: Mapping[str, str]) -> str:
    """Where a command finds the HTTP interface of a broker.

    Args:
        flag: host:port; None takes the environment's, else the default.
        variables: the environment variables.

    Raises:
        ConfigError: it cannot be an address, or is off.
    """
    origin = "flag --admin" if flag is not None else "TENSORBUS_ADMIN"
    address = _checked("admin", flag or variables.get("TENSORBUS_ADMIN") or ADMIN_DEFAULT, origin)
    if address == ADMIN_OFF:
        raise ConfigError(f"setting admin ({origin})", ADMIN_OFF, "the broker's HTTP interface is needed: host:port")
    return str(address)


def load(
    flags: Mapping[str, object], environment: Mapping[str, str], file: Path | None, *, again: bool = False
) -> Loaded:
    """Joins the sources of settings; the first one that has a setting wins.

    Args:
        flags: values by setting; None or an empty tuple is a flag that was not given.
        environment: the environment variables.
        file: the TOML file; None takes the one that TENSORBUS_CONFIG names, if any.
        again: whether the file was read before; of a pipe nothing is left then.

    Raises:
        ConfigError: a setting is unknown, of the wrong type or out of range, or the file cannot be read. A value is
            checked even where a stronger source hides it.
    """
    if file is None and environment.get(FILE_VARIABLE):
        file = Path(environment[FILE_VARIABLE])
    values: dict[str, object] = {"listen": default_listen(environment)}
    origins = {entry.name: "default" for entry in fields(Config)}
    for name, value, origin in _given(flags, environment, file, again=again):
        values[name] = _checked(name, value, origin)
        origins[name] = origin
    # Each value was checked against the field's type.
    config = Config(**values)  # type: ignore[arg-type]
    if config.heartbeat_timeout_s <= config.heartbeat_interval_s:
        raise ConfigError(
            f"setting heartbeat_timeout_s ({origins['heartbeat_timeout_s']})",
            config.heartbeat_timeout_s,
            f"must be longer than heartbeat_interval_s, {config.heartbeat_interval_s:g} "
            f"({origins['heartbeat_interval_s']}); three times as long is usual",
        )
    return Loaded(config, origins)


def describe(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Returns each setting's name, value in words and origin, for `--show-config`; of topics, each filter's. A token
    that stands where it does not belong is not readable."""
    settings = [
        (entry.name, masked(_value_text(entry.name, getattr(loaded.config, entry.name))), loaded.origins[entry.name])
        for entry in fields(Config)
        if entry.name not in _TABLES
    ]
    config, origins = loaded.config, loaded.origins
    settings += [(*row, origins[TOPICS]) for row in describe_topics(config.topics)]
    if config.permissions.configured:
        settings.append((PERMISSIONS, describe_permissions(config.permissions), origins[PERMISSIONS]))
    return settings + [(*row, origins[TENANTS]) for row in describe_tenants(config.tenants)]


def _given(
    flags: Mapping[str, object], variables: Mapping[str, str], file: Path | None, *, again: bool
) -> Iterator[tuple[str, object, str]]:
    """Yields (setting, value, origin) from each source, the weakest source first."""
    if file is not None:
        for name, value in _read_file(file, again=again).items():
            _check_known(name, name, str(file))
            yield name, value, str(file)
    for variable in sorted(variables):
        if variable.startswith(VARIABLE_PREFIX) and not is_foreign(variable):
            name = variable.removeprefix(VARIABLE_PREFIX).lower()
            if name in _TABLES:
                raise ConfigError("setting", variable, f"{name} can only be set in a file; see --config")
            _check_known(name, variable, "the environment")
            yield name, _parsed(name, variables[variable], variable), variable
    for name, value in flags.items():
        if value is not None and value != ():
            flag = f"flag --{name.replace('_', '-')}"
            _check_known(name, name, "the flags")
            yield name, _parsed(name, value, flag) if isinstance(value, str) else value, flag


def _read_file(file: Path, *, again: bool) -> dict[str, object]:
    try:
        data = read_file(file, limits.TOML_BYTES_MAX, pipe=not again)
    except OSError as exc:
        raise ConfigError("config file", str(file), f"cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        once = "; what was read from it at the start holds" if again else ""
        raise ConfigError("config file", str(file), f"cannot be read: it {exc}{once}") from exc
    try:
        return read_toml(data.decode())
    except ValueError as exc:
        raise ConfigError("config file", str(file), f"is not TOML: {exc}") from exc


def _check_known(name: str, written: str, origin: str) -> None:
    if name in _TYPES:
        return
    nearest = difflib.get_close_matches(name, _TYPES, n=1, cutoff=0.5)
    advice = f"did you mean {nearest[0]}?" if nearest else f"the settings are {', '.join(_TYPES)}"
    raise ConfigError("setting", written, f"unknown, in {origin}; {advice}")


@dataclass(frozen=True, slots=True)
class _Kind:
    """How values of one type are read.

    Attributes:
        expected: what a value must be, in words.
        parse: reads the text of a variable or a flag; raises ValueError or KeyError.
        accept: checks and converts a value from any source; None refuses it.
    """

    expected: str
    parse: Callable[[str], object]
    accept: Callable[[object], object | None]


_SIZE = re.compile(r"(\d{1,20}) ?(B|KiB|MiB|GiB)", re.ASCII)
_UNIT_BYTES: Final = {"B": 1, "KiB": limits.KIB, "MiB": limits.MIB, "GiB": 1024 * limits.MIB}
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


def _accept_text(value: object) -> str | None:
    return value if isinstance(value, str) and value and "\0" not in value else None


def _accept_shown(value: object) -> str | None:
    # Also no half of a character, which has no place in what is told to clients.
    return value if isinstance(value, str) and value and value.isprintable() else None


def _accept_texts(value: object) -> tuple[str, ...] | None:
    if isinstance(value, list | tuple) and value and all(isinstance(item, str) and item for item in value):
        return tuple(value)
    return None


def _accept_names(value: object) -> tuple[str, ...] | None:
    return () if value in ([], ()) else _accept_texts(value)


def _accept_log_level(value: object) -> LogLevel | None:
    return next((level for level in LogLevel if level == value), None)


def _accept_log_format(value: object) -> LogFormat | None:
    return next((form for form in LogFormat if form == value), None)


def _accept_integer(value: object) -> int | None:
    # Twice as much still fits the 64 bits in which the broker counts.
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= INTEGER_MAX else None


def _accept_number(value: object) -> float | None:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= SECONDS_MAX:
        return float(value)
    return None


def _accept_boolean(value: object) -> bool | None:
    return value if isinstance(value, bool) else None


def size_of(value: object) -> object:
    """Bytes, where a value is a text such as "4MiB"."""
    if isinstance(value, str) and (size := _SIZE.fullmatch(value)):
        return int(size[1]) * _UNIT_BYTES[size[2]]
    return value


def _accept_size(value: object) -> int | None:
    return _accept_integer(size_of(value))


def _accept_users(value: object) -> tuple[str, ...] | None:
    return () if value in (OFF, [OFF]) else _accept_texts(value)


def _accept_path(value: object) -> str | None:
    return "" if value == OFF else _accept_text(value)


def _accept_admin(value: object) -> str | None:
    if value == ADMIN_OFF:
        return ADMIN_OFF
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    known = host and port.isascii() and port.isdigit() and len(port) <= 5 and int(port) < 65536
    return f"{host}:{port}" if known else None


_KINDS: Final[dict[object, _Kind]] = {
    str: _Kind("text that is not empty and can be shown", str, _accept_shown),
    tuple[str, ...]: _Kind(
        "a list of addresses", lambda text: [part.strip() for part in text.split(",")], _accept_texts
    ),
    LogLevel: _Kind(f"one of {', '.join(LogLevel)}", str.lower, _accept_log_level),
    LogFormat: _Kind(f"one of {', '.join(LogFormat)}", str.lower, _accept_log_format),
    int: _Kind("an integer above 0, and at most 2^62", int, _accept_integer),
    float: _Kind("a number of seconds above 0, and at most a billion", float, _accept_number),
    bool: _Kind("true or false", lambda text: _BOOLEANS[text.lower()], _accept_boolean),
}
_SIZE_KIND: Final = _Kind(
    'bytes above 0, as 4194304 or "4MiB"', lambda text: int(text) if text.isdecimal() else text, _accept_size
)
_NONE_TOO_KIND: Final = _Kind(
    'bytes, or 0 for none, as 1073741824 or "1GiB"',
    _SIZE_KIND.parse,
    lambda value: 0 if value is not False and size_of(value) == 0 else _accept_size(value),
)
_USERS_KIND: Final = _Kind(
    f'a list of USER=ROLE, or "{OFF}"', lambda text: [part.strip() for part in text.split(",")], _accept_users
)
_PATH_KIND: Final = _Kind(f'a path, or "{OFF}"', str, _accept_path)
_PATHS: Final = ("certificates", "tokens", "audit")
_NAMES_KIND: Final = _Kind(
    "a list of names", lambda text: [part.strip() for part in text.split(",") if part.strip()], _accept_names
)
_ADMIN_KIND: Final = _Kind(f'host:port, or "{ADMIN_OFF}"', str, _accept_admin)
_TABLES: Final[dict[str, Callable[[object, str], object]]] = {
    TOPICS: lambda value, origin: read_topics(value, origin, size_of),
    PERMISSIONS: read_permissions,
    TENANTS: lambda value, origin: read_tenants(value, origin, size_of),
}
"""Settings that are tables of a file."""
_TYPES: Final[dict[str, object]] = typing.get_type_hints(Config)


def _kind(name: str) -> _Kind:
    if name == "admin":
        return _ADMIN_KIND
    if name == "users":
        return _USERS_KIND
    if name in _PATHS:
        return _PATH_KIND
    if name == "admin_names":
        return _NAMES_KIND
    if name == "device_memory_bytes":
        return _NONE_TOO_KIND
    return _SIZE_KIND if name.endswith("_bytes") else _KINDS[_TYPES[name]]


def _parsed(name: str, text: str, origin: str) -> object:
    try:
        return _kind(name).parse(text)
    except (ValueError, KeyError) as exc:
        raise _refusal(name, text, origin) from exc


def _checked(name: str, value: object, origin: str) -> object:
    if name in _TABLES:
        return _TABLES[name](value, origin)
    accepted = _kind(name).accept(value)
    if accepted is None:
        raise _refusal(name, value, origin)
    return accepted


def _refusal(name: str, value: object, origin: str) -> ConfigError:
    return ConfigError(f"setting {name} ({origin})", value, f"expected {_kind(name).expected}")


def _value_text(name: str, value: object) -> str:
    if not value and name in (*_PATHS, "users"):
        return OFF
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and name.endswith("_bytes"):
        unit = next(unit for unit in ("GiB", "MiB", "KiB", "B") if value % _UNIT_BYTES[unit] == 0)
        return f"{value // _UNIT_BYTES[unit]}{unit}"
    return f"{value:g}" if isinstance(value, float) else str(value)
