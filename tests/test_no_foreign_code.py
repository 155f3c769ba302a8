"""Nothing that arrives is ever run: no pickle, marshal, eval, exec or compile in what users run, and nothing like it.

The syntax tree is read here, of all of broker and clients, compiled or not. Beside that, an audit hook watches the
whole suite and the processes that it starts (tests/auditing.py).
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("broker", "clients")
MODULES = {
    "pickle", "_pickle", "cPickle", "marshal", "shelve", "dill", "cloudpickle", "joblib", "jsonpickle", "yaml", "code",
    "codeop", "runpy", "imp", "zipimport",
    # Its pipes and queues pickle.
    "multiprocessing",
}  # fmt: skip
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    # Each reads pickle, or runs what a text says.
    "recv_pyobj", "send_pyobj", "recv_serialized", "import_module", "find_class", "load_module",
    "exec_module", "run_path", "run_module",
}  # fmt: skip
LOADERS = {
    ("os", "system"), ("os", "popen"), ("np", "load"), ("numpy", "load"), ("torch", "load"), ("torch", "jit"),
    *(("builtins", name) for name in CALLS),
}  # fmt: skip
HIDDEN = {"__builtins__", "__globals__", "__subclasses__", "__loader__", "__reduce_ex__", "__setstate__"}
"""By which the others can be had without being named."""
ALLOWED = {("registry.py", "import_module")}
"""The modules of transports, each with its name in that file."""
KEYWORDS = {"allow_pickle", "shell"}


def findings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        match node:
            case ast.Import(names=names):
                found = [alias.name for alias in names if alias.name.partition(".")[0] in MODULES]
            case ast.ImportFrom(module=str(module), names=names):
                found = [module] if module.partition(".")[0] in MODULES else []
                found += [f"{module}.{alias.name}" for alias in names if (module, alias.name) in LOADERS]
                found += [alias.name for alias in names if alias.name in METHODS]
            case ast.Name(id=name, ctx=ast.Load()) if name in CALLS or name in HIDDEN:
                found = [name]
            case ast.Constant(value=str(text)) if text in CALLS or text in HIDDEN:
                found = [repr(text)]
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if (owner, name) in LOADERS:
                found = [f"{owner}.{name}"]
            case ast.Attribute(attr=name) if name in METHODS | HIDDEN or name in CALLS - {"compile"}:
                found = [name]
            case ast.keyword(arg=str(name), value=ast.Constant(value=False)) if name in KEYWORDS:
                found = []
            case ast.keyword(arg=str(name)) if name in KEYWORDS:
                found = [f"{name}="]
            case _:
                found = []
        for each in (each for each in found if (path.name, each) not in ALLOWED):
            yield f"{path.name}:{getattr(node, 'lineno', 0)}: {each}"


def test_nothing_in_broker_or_clients_can_run_what_arrives() -> None:
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert len(paths) > 100
    assert [finding for path in paths for finding in findings(path)] == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "import numpy, marshal",
        "from pickle import loads",
        "from cloudpickle import loads as read",
        "eval('1')",
        "run = exec",
        "compile('1', '', 'eval')",
        "__import__('os')",
        "import builtins\nbuiltins.eval('1')",
        "socket.recv_pyobj()",
        "np.load(file)",
        "torch.load(file, weights_only=True)",
        "load(file, allow_pickle=True)",
        "run('ls', shell=True)",
        "importlib.import_module(name)",
        "import os\nos.system('ls')",
        "from os import system",
        "from importlib import import_module",
        "from numpy import load",
        "from multiprocessing import Pipe",
        "import multiprocessing.connection",
        "getattr(__builtins__, name)",
        "getattr(builtins, 'eval')",
        "function.__globals__['x']",
        "object.__subclasses__()",
    ],
)
def test_what_could_is_found(tmp_path: Path, source: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    assert len(list(findings(path))) >= 1


@pytest.mark.parametrize(
    "source", ["re.compile('a')", "cython.compiled", "load(file, allow_pickle=False)", "x.evaluate()"]
)
def test_what_could_not_is_let_be(tmp_path: Path, source: str) -> None:
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    assert list(findings(path)) == []


@pytest.mark.parametrize(
    "source",
    [
        "exec('x = 1')",
        "eval('1')",
        "import marshal\nmarshal.loads(marshal.dumps(1))",
        "import pickle\nimport collections\npickle.loads(pickle.dumps(collections.OrderedDict))",
    ],
)
def test_the_audit_hook_stops_code_of_ours_that_runs_something(tmp_path: Path, source: str) -> None:
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "bad.py").write_text(source, encoding="utf-8")
    script = (
        f"from pathlib import Path\nfrom tests import auditing\nauditing.watch(Path({str(tmp_path)!r}))\nimport bad\n"
    )
    path = f"{tmp_path / 'broker'}:{ROOT}"
    environment = {"PYTHONPATH": path, "PATH": "/usr/bin:/bin", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0
    assert "nothing that arrives is run" in done.stderr


def test_the_audit_hook_lets_others_do_what_they_do() -> None:
    script = (
        "from tests import auditing\nauditing.watch(auditing.ROOT)\nexec('x = 1')\nimport dataclasses, broker.config\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
