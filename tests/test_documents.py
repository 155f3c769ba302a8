"""The documents name what is there: files where they lie, and every public name."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

import clients
import clients.aio
from broker.protocol.codes import Code

ROOT = Path(__file__).parents[1]
BROKER = ROOT / "broker"
FOLDERS = [ROOT, BROKER, ROOT / "clients", *(folder for folder in sorted(BROKER.iterdir()) if folder.is_dir())]
FILE = re.compile(r"[\w./-]+\.(?:py|c|h)\b")
PUBLIC = re.compile(r"\bclients(?:\.aio)?\.[A-Za-z]\w*")


def document(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def missing_files(document: str) -> list[str]:
    """What a document calls a file and is none; of several, each may be in the folder of the one before it."""
    missing, before = [], ROOT
    for name in FILE.findall(document):
        found = [folder / name for folder in (before, *FOLDERS) if (folder / name).is_file()]
        if found:
            before = found[0].parent
        else:
            missing.append(name)
    return missing


def missing_names(document: str) -> list[str]:
    """What a document calls a public name of the library and is none."""
    missing = []
    for name in PUBLIC.findall(document):
        library, _, last = name.rpartition(".")
        # `clients.connection.views` is a module, to be imported by its name.
        if not hasattr(clients if library == "clients" else clients.aio, last) and find_spec(name) is None:
            missing.append(name)
    return missing


@pytest.mark.parametrize("name", ["ARCHITECTURE.md", "README.md", "CONTRIBUTING.md", "docs/recording.md"])
def test_each_file_that_a_document_names_is_there(name: str) -> None:
    assert missing_files(document(name)) == []


def test_a_file_that_is_gone_or_lies_elsewhere_is_found_out() -> None:
    assert missing_files("state/lines.py, gone.py, clients/lines.py") == ["gone.py", "clients/lines.py"]
    assert missing_files("security/audit.py, journal.py; collectives/journal.py") == ["collectives/journal.py"]


def test_each_public_error_is_explained_with_all_its_attributes() -> None:
    told = dict(re.findall(r"^\| (\w+)(?: \((.*)\))? \| .+ \| .+ \|$", document("docs/api.md"), re.MULTILINE))
    errors = {name: value for name in clients.__all__ if is_error(value := getattr(clients, name))}
    assert len(errors) > 15
    assert {name for name in told if name in errors} == errors.keys() - {"BrokerError"}
    for name, error in errors.items():
        attributes = re.findall(r"^ {8}(\w+): ", (error.__doc__ or "").partition("Attributes:")[2], re.MULTILINE)
        assert set(re.findall(r"`(\w+)`", told.get(name, ""))) == set(attributes), name


def is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, clients.BrokerError)


def test_the_codes_of_the_protocol_are_those_of_the_document() -> None:
    section = document("docs/wire.md").partition("## 7. Codes")[2].partition("## 8.")[0]
    assert {name: int(number) for number, name in re.findall(r"^\| (\d+) \| ([A-Z_]+) \|", section, re.MULTILINE)} == {
        code.name: code.value for code in Code
    }


@pytest.mark.parametrize("name", ["README.md", "docs/api.md", "docs/operations.md"])
def test_each_public_name_that_a_document_uses_is_there(name: str) -> None:
    assert missing_names(document(name)) == []


def test_a_public_name_that_is_gone_is_found_out() -> None:
    assert missing_names("clients.Trainer clients.Gone, clients.aio.connect, clients.aio.gone(") == [
        "clients.Gone",
        "clients.aio.gone",
    ]


def test_each_public_name_is_in_the_page_of_the_interface() -> None:
    page = (ROOT / "docs/api.md").read_text(encoding="utf-8")
    assert [name for name in clients.__all__ if not re.search(rf"\b{name}\b", page)] == []
