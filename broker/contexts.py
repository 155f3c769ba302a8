"""Named contexts: which broker the command line talks to, by a name in place of its address.

    current = "prod"                            # ~/.config/tensorbus/contexts.toml, mode 0600

    [contexts.prod]
    url = "tcp://bus.example:4870"
    admin = "bus.example:4871"
    token_file = "/run/secrets/bus-token"
    tls = "/home/me/.config/tensorbus/contexts/prod-x7k2"

A token's file is read whenever a command begins: a token that is renewed there is renewed here. One that came through a
pipe is kept, as `token`. The folder at `tls` is what $TENSORBUS_TLS names, made of links to the files that
`context add` was given: a certificate that is renewed where it lies is renewed here, and the key is in one place.

A context is taken whole or not at all, so that no broker is told the token of another one: a broker that is named in
any other way, by --url, an argument or TENSORBUS_URL, has nothing of it.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from broker.errors import ConfigError, InvalidValue
from broker.files import read_file
from broker.limits import TOML_BYTES_MAX
from broker.toml import read_toml

VARIABLE: Final = "TENSORBUS_CONTEXT"
_FOLDERS: Final = "contexts"
_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TOKEN_LETTERS_MAX: Final = 4096
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


class Context(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A broker.

    Attributes:
        url: its address, or several with commas between.
        admin: host:port of its HTTP interface; empty for none.
        token: proves who one is; empty for none.
        token_file: where it is instead; empty for nowhere.
        tls: the folder with the certificates; empty for none.
    """

    url: str
    admin: str = ""
    token: str = ""
    tls: str = ""
    token_file: str = ""

    def variables(self) -> dict[str, str]:
        """What it is in the environment, with the token that the file has now.

        Raises:
            ConfigError: that cannot be read, or is no token.
        """
        named = {
            "TENSORBUS_URL": self.url,
            "TENSORBUS_ADMIN": self.admin or "off",
            "TENSORBUS_TOKEN": read_token(self.token_file) if self.token_file else self.token,
            "TENSORBUS_TLS": self.tls,
        }
        return {name: value for name, value in named.items() if value}


class Contexts(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True):
    """All contexts of a user.

    Attributes:
        current: the name of the one that is used when none is named; empty for none.
        contexts: by name.
    """

    current: str = ""
    contexts: dict[str, Context] = {}

    def find(self, name: str, origin: str) -> Context:
        """A context by its name.

        Args:
            name: of the context.
            origin: where the name is from, for the error.

        Raises:
            ConfigError: there is none of that name.
        """
        found = self.contexts.get(name)
        if found is None:
            there = f"there are {', '.join(sorted(self.contexts))}" if self.contexts else "there is none yet"
            raise ConfigError(
                f"context ({origin})", name, f"unknown; {there}; tensorbus context add NAME URL makes one"
            )
        return found


def file_of(variables: Mapping[str, str]) -> Path:
    """Where contexts are kept, by the XDG Base Directory Specification."""
    home = variables.get("HOME") or os.path.expanduser("~")
    if home == "~":
        # A user that the system does not know, as in a container, is at home where such are.
        home = ""
    folder = os.path.expanduser(variables.get("XDG_CONFIG_HOME") or f"{home}/.config")
    return Path(folder) / "tensorbus" / "contexts.toml"


def read(file: Path) -> Contexts:
    """The contexts in a file; none when it is not there.

    Raises:
        ConfigError: it cannot be read, or others can read it and it has a token.
    """
    try:
        mode, text = file.stat().st_mode, read_file(file, TOML_BYTES_MAX).decode()
    except (FileNotFoundError, NotADirectoryError):
        # Users of services have homes such as /nonexistent and /dev/null.
        return Contexts()
    except (OSError, ValueError) as error:
        raise ConfigError("contexts", str(file), f"cannot be read: {error}") from error
    try:
        found = msgspec.convert(read_toml(text), Contexts)
    except ValueError as error:
        raise ConfigError("contexts", str(file), f"cannot be read: {error}") from error
    if mode & _OTHERS and any(context.token for context in found.contexts.values()):
        raise ConfigError("contexts", str(file), "has a token, and others can read it: chmod 600 it")
    return found


def write(file: Path, contexts: Contexts) -> None:
    """Keeps contexts; whoever reads meanwhile finds all of the old file or all of the new one.

    Raises:
        ConfigError: it cannot be written.
    """
    lines = [f"current = {_quoted(contexts.current)}"] if contexts.current else []
    for name, context in sorted(contexts.contexts.items()):
        lines += ["", f"[contexts.{name}]"]
        lines += [f"{key} = {_quoted(value)}" for key, value in msgspec.to_builtins(context).items()]
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        # It is the user's alone from its first moment on.
        descriptor, other = tempfile.mkstemp(dir=file.parent, prefix=file.name)
        try:
            with open(descriptor, "w", encoding="utf-8") as opened:
                opened.write("\n".join(lines).lstrip("\n") + "\n")
            os.replace(other, file)
        except BaseException:
            os.unlink(other)
            raise
    except OSError as error:
        raise ConfigError("contexts", str(file), f"cannot be written: {error.strerror}") from error


def read_token(file: str) -> str:
    """The token in a file.

    Raises:
        ConfigError: it cannot be read, or is no token.
    """
    try:
        with open(file, encoding="utf-8") as opened:
            token = opened.read(_TOKEN_LETTERS_MAX + 1).strip()
    except OSError as error:
        raise ConfigError("token file", file, f"cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError("token file", file, "cannot be read: it is no text") from error
    if not token or len(token) > _TOKEN_LETTERS_MAX or not token.isprintable():
        # It is not told, because it may be a secret all the same.
        raise ConfigError("token file", file, "has to have one line, the token")
    return token


def link(file: Path, name: str, files: Mapping[str, Path]) -> str:
    """Makes a folder of certificates for a context, which nobody else can look into.

    Args:
        file: where contexts are kept; the folder is made near it.
        name: of the context.
        files: what each file of the folder is called, and where it lies.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        parent = file.parent / _FOLDERS
        parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=parent, prefix=f"{name}-"))
        for called, at in files.items():
            (folder / called).symlink_to(at.absolute())
    except OSError as error:
        raise ConfigError("contexts", str(file), f"cannot be written: {error.strerror}") from error
    return str(folder)


def unlink(file: Path, context: Context) -> None:
    """Removes the folder that `link` has made for a context; a folder from elsewhere is not touched."""
    if context.tls and Path(context.tls).parent == file.parent / _FOLDERS:
        shutil.rmtree(context.tls, ignore_errors=True)


def _quoted(text: str) -> str:
    """Text as TOML; JSON's strings are TOML's, for text that `check` lets through."""
    return msgspec.json.encode(text).decode()


def check(name: str, context: Context) -> None:
    """Refuses what could not be kept.

    Raises:
        InvalidValue: a name with other characters than letters, digits, - and _; a control character in a value.
    """
    if not _NAME.fullmatch(name):
        raise InvalidValue("context", name, "is no name: up to 64 letters, digits, - and _")
    for value in (context.url, context.admin, context.tls, context.token_file):
        if not value.isprintable():
            raise InvalidValue("context", value, "has a control character")
    if not context.token.isprintable():
        # Not told, because it is a secret.
        raise InvalidValue("token of context", name, "has a control character, such as a line's end in its middle")


def choose(contexts: Contexts, flag: str | None, variables: Mapping[str, str]) -> Context | None:
    """The context that holds for a command that names no broker.

    Args:
        contexts: all there are.
        flag: the name that --context gives.
        variables: the environment.

    Returns:
        The flag's; else none when TENSORBUS_URL names a broker; else that of TENSORBUS_CONTEXT; else the current one.

    Raises:
        ConfigError: the name is unknown.
    """
    if flag:
        return contexts.find(flag, "flag --context")
    if variables.get("TENSORBUS_URL"):
        return None
    if variables.get(VARIABLE):
        return contexts.find(variables[VARIABLE], VARIABLE)
    return contexts.find(contexts.current, "tensorbus context use") if contexts.current else None
