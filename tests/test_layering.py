"""The import arrows of ARCHITECTURE.md: each layer with what it may import, checked against the source.

The source is read, not run, so that an import under TYPE_CHECKING or inside a function counts like any other.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("broker", "clients", "examples")
NOT_INSTALLED = ("bench", "tests")

OPEN = (
    "broker.buffers",
    "broker.clock",
    "broker.conventions",
    "broker.devices",
    "broker.errors",
    "broker.files",
    "broker.histograms",
    "broker.ids",
    "broker.limits",
    "broker.masking",
    "broker.schedules",
    "broker.toml",
    "broker.telemetry",
    "broker.uncompiled",
    "broker.version",
    "broker.wires",
)
PURE = (
    "broker.protocol",
    "broker.topics",
    "broker.collectives",
    "broker.state",
    "broker.security.identity",
    "broker.security.audit",
)
EVERYTHING = ("broker", "clients")

# A layer is a module or package, with its submodules and its siblings `layer_*`. The longest name that fits decides.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(OPEN, OPEN),
    "broker.protocol": (*OPEN, "broker.protocol"),
    "broker.topics": (*OPEN, "broker.topics"),
    "broker.collectives": (*OPEN, "broker.collectives"),
    "broker.security": (*OPEN, "broker.security", "broker.topics.names"),
    "broker.state": (*OPEN, *PURE, "broker.security"),
    "broker.transport": (*OPEN, "broker.transport"),
    "broker.config": (*OPEN, "broker.config", "broker.security", "broker.topics.names", "broker.topics.policy"),
    "broker.measuring": ("broker.measuring",),
    "broker.logs": (*OPEN, "broker.config", "broker.logs"),
    "broker.tracing": EVERYTHING,
    "broker.server": (*OPEN, *PURE, "broker.security", "broker.transport", "broker.config", "broker.server"),
    "broker.embedded": EVERYTHING,
    "broker.__main__": EVERYTHING,
    "broker.cli": EVERYTHING,
    "broker.admin": EVERYTHING,
    "broker.answers": EVERYTHING,
    "broker.contexts": (*OPEN, "broker.contexts"),
    "broker.dashboard": ("broker.dashboard",),
    "broker.metrics": EVERYTHING,
    "clients": (
        *OPEN,
        "broker.protocol",
        "broker.transport",
        "broker.topics.names",
        "broker.topics.owners",
        "broker.topics.policy",
        "broker.collectives.member",
        "broker.collectives.encoding",
        "broker.collectives.claims",
        "broker.collectives.buckets",
        "broker.collectives.shm",
        "broker.collectives.ring",
        "broker.collectives.costs",
        "clients",
    ),
    "examples": ("clients", "examples"),
}
ROOT_PACKAGE = "broker"

IMPURE_LIBRARIES = {"asyncio", "os", "select", "selectors", "socket", "threading", "time", "uvloop"}
ENVIRONMENT_READERS = {"broker.config", "clients.connection.environment"}
ENVIRONMENT_NAMES = {"environ", "environb", "getenv", "getenvb"}


class Import(NamedTuple):
    """One imported name: the module it comes from, the name in it if any, and where."""

    module: str
    name: str
    line: int


def is_within(module: str, layer: str) -> bool:
    return module == layer or module.startswith((layer + ".", layer + "_"))


def layer_of(module: str) -> str | None:
    return max((layer for layer in MAY_IMPORT if is_within(module, layer)), key=len, default=None)


def modules_of(root: Path) -> dict[str, Path]:
    """Maps the name of each module under the root's packages to its file."""
    found = {}
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str, path: Path, tree: ast.Module) -> Iterator[Import]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, "", node.lineno)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            source = ".".join([*base, node.module] if node.module else base)
            for alias in node.names:
                yield Import(source, alias.name, node.lineno)


def target_of(imported: Import, modules: dict[str, Path]) -> str:
    """Resolves `from broker import limits` to broker.limits, and `from broker.limits import KIB` too."""
    inner = f"{imported.module}.{imported.name}"
    return inner if inner in modules else imported.module


def environment_reads(tree: ast.Module) -> Iterator[int]:
    aliases = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
        if alias.name == "os"
    }
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=name), attr=attribute):
                found = name in aliases and attribute in ENVIRONMENT_NAMES
            case ast.ImportFrom(module="os", names=names):
                found = bool(ENVIRONMENT_NAMES & {alias.name for alias in names})
            case _:
                found = False
        if found:
            yield node.lineno


def violations_of(module: str, path: Path, modules: dict[str, Path]) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    if module not in ENVIRONMENT_READERS:
        for line in environment_reads(tree):
            yield f"{module}:{line}: reads the environment; only {', '.join(sorted(ENVIRONMENT_READERS))} may"
    if module == ROOT_PACKAGE:
        return
    layer = layer_of(module)
    if layer is None:
        yield f"{module}:1: belongs to no layer; give it a line in MAY_IMPORT"
        return
    pure = any(is_within(module, name) for name in PURE)
    for imported in imports_of(module, path, tree):
        target = target_of(imported, modules)
        top = target.partition(".")[0]
        if top in (*PACKAGES, *NOT_INSTALLED) and not any(is_within(target, allowed) for allowed in MAY_IMPORT[layer]):
            yield f"{module}:{imported.line}: {layer} may not import {target}"
        if pure and top in IMPURE_LIBRARIES:
            yield f"{module}:{imported.line}: {layer} is pure and may not import {target}"


def violations(root: Path) -> list[str]:
    modules = modules_of(root)
    return [text for module, path in modules.items() for text in violations_of(module, path, modules)]


def write_tree(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_the_source_follows_the_arrows() -> None:
    assert violations(ROOT) == []


def test_the_checker_sees_the_source() -> None:
    modules = modules_of(ROOT)
    assert {"broker", "broker.errors", "broker.topics.trie"} <= modules.keys()


@pytest.mark.parametrize(
    ("file", "source", "report"),
    [
        (
            "broker/protocol/frames.py",
            "import broker.topics.names",
            "broker.protocol may not import broker.topics.names",
        ),
        ("broker/topics/ring.py", "from broker import state", "broker.topics may not import broker.state"),
        (
            "broker/topics/ring.py",
            "from ..protocol import frames",
            "broker.topics may not import broker.protocol.frames",
        ),
        (
            "broker/topics/__init__.py",
            "from ..protocol import frames",
            "broker.topics may not import broker.protocol.frames",
        ),
        (
            "broker/collectives/groups.py",
            "from broker.protocol.tensors import TensorMeta",
            "may not import broker.protocol.tensors",
        ),
        (
            "broker/collectives/buckets.py",
            "from broker.protocol.frames import Frame",
            "may not import broker.protocol.frames",
        ),
        ("broker/state.py", "from broker.metrics import Counter", "broker.state may not import broker.metrics"),
        ("broker/state_groups.py", "from broker.transport import tcp", "broker.state may not import broker.transport"),
        (
            "broker/transport/tcp.py",
            "from broker.protocol.frames import Frame",
            "may not import broker.protocol.frames",
        ),
        (
            "broker/limits.py",
            "from broker.protocol import frames",
            "broker.limits may not import broker.protocol.frames",
        ),
        ("broker/server.py", "from broker.cli import main", "broker.server may not import broker.cli"),
        ("clients/client.py", "from broker.state import BrokerState", "clients may not import broker.state"),
        ("clients/client.py", "from broker.topics.trie import Trie", "clients may not import broker.topics.trie"),
        ("clients/client.py", "import broker", "clients may not import broker"),
        ("examples/job.py", "from broker.errors import BrokerError", "examples may not import broker.errors"),
        ("broker/cli/main.py", "from bench import report", "broker.cli may not import bench"),
        ("broker/protocol/frames.py", "import asyncio", "broker.protocol is pure and may not import asyncio"),
        ("broker/state.py", "from time import monotonic_ns", "broker.state is pure and may not import time"),
        ("broker/topics/ring.py", "def now():\n    import time", "broker.topics is pure and may not import time"),
        ("broker/novelty.py", "", "belongs to no layer"),
        ("clients/client.py", "import os\nurl = os.environ['TENSORBUS_URL']", "reads the environment"),
        ("broker/server.py", "import os as system\nhome = system.getenv('HOME')", "reads the environment"),
        ("broker/__init__.py", "from os import environ", "reads the environment"),
    ],
)
def test_a_forbidden_import_is_reported(tmp_path: Path, file: str, source: str, report: str) -> None:
    write_tree(
        tmp_path, {"broker/state.py": "", "broker/protocol/frames.py": "", "broker/transport/tcp.py": "", file: source}
    )
    found = violations(tmp_path)
    assert len(found) == 1
    assert report in found[0]


def test_an_import_for_the_type_checker_counts(tmp_path: Path) -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from broker.server import Server\n"
    write_tree(tmp_path, {"clients/client.py": source})
    assert violations(tmp_path) == ["clients.client:3: clients may not import broker.server"]


def test_allowed_imports_pass(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "broker/__init__.py": "from broker.server import Server",
            "broker/protocol/frames.py": "from broker.limits import KIB\nimport struct",
            "broker/state/__init__.py": "from broker.topics.trie import Trie\nfrom . import queues",
            "broker/state/queues.py": "from broker.protocol import frames",
            "broker/transport/__init__.py": "",
            "broker/server.py": "import asyncio\nfrom broker import state, transport",
            "broker/config.py": "import os\nenvironment = os.environ",
            "broker/cli/main.py": "import clients\nfrom broker import server, admin",
            "broker/admin/http.py": "from broker.state import BrokerState",
            "clients/connection/environment.py": "from os import environ",
            "clients/client.py": "import broker.collectives.claims\nfrom broker.topics.names import levels",
            "examples/training_loop/__main__.py": "import clients\nimport numpy\nfrom . import data",
            "examples/training_loop/data.py": "",
        },
    )
    assert violations(tmp_path) == []
