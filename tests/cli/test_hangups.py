"""SIGHUP that comes before the daemon can hear it: it lives, and hears it then, once."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.daemon import PATIENCE_S, Process
from tests.system.workers import wait_until

RELOADED = "credentials.reloaded what='permissions and quotas'"


def early(tmp_path: Path, where: str, *arguments: str) -> Process:
    """A daemon that gets the signal twice as soon as it comes to a function; the process is its own or a worker's."""
    module, name = where.rsplit(".", 1)
    script = tmp_path / "early.py"
    # What the command imports comes behind what it does first: libraries have threads, which hear signals as well.
    script.write_text(
        f"import os, signal, sys, types\n"
        f"def command(**arguments):\n"
        f"    del sys.modules['broker.cli.main']\n"
        f"    import {module} as module\n"
        f"    before = module.{name}\n"
        f"    def signalled(*arguments):\n"
        f"        for _ in range(2):\n"
        f"            os.kill(os.getpid(), signal.SIGHUP)\n"
        f"        return before(*arguments)\n"
        f"    module.{name} = signalled\n"
        f"    from broker.cli.main import main\n"
        f"    main(**arguments)\n"
        f"from broker.__main__ import main\n"
        f"sys.modules['broker.cli.main'] = types.SimpleNamespace(main=command)\n"
        f"main()\n"
    )
    listen = ("--listen", "tcp://127.0.0.1:0", "--admin", "off", "--log-level", "info")
    # Both are for an interpreter that begins anew.
    environment = {"PYTHONPATH": str(tmp_path), "MALLOC_ARENA_MAX": "2"}
    return Process("serve", *listen, *arguments, module="early", environment=environment)


@pytest.mark.parametrize(
    ("where", "workers", "reloads"),
    [
        ("broker.cli.serve.check_system", 1, 1),
        ("broker.cli.serve._catch_signals", 1, 1),
        ("broker.cli.workers._bound", 2, 2),
        ("broker.cli.serve._catch_signals", 2, 2),
    ],
)
def test_it_is_heard_once_there_is_somebody_who_hears_it(
    tmp_path: Path, where: str, workers: int, reloads: int
) -> None:
    with early(tmp_path, where, "--workers", str(workers)) as process:
        assert process.read_line(PATIENCE_S).startswith("listening on ")
        wait_until(lambda: process.errors.count(RELOADED) >= reloads)
        process.signal(signal.SIGTERM)
        assert process.wait() == 0
        assert process.errors.count(RELOADED) == reloads
