"""What of the configuration can change while the daemon runs: permissions and quotas, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable

from broker.config import Config
from broker.server import Server


def take_over(server: Server, read_again: Callable[[], Config]) -> None:
    """Reads the configuration again, and has the server follow its permissions and quotas.

    Args:
        server: which runs.
        read_again: gives the configuration as it is now; raises ConfigError where it cannot be used.

    Raises:
        ConfigError: it cannot; everything stays as it was.
    """
    config = read_again()
    server.replace_permissions(config.permissions)
    server.replace_quotas(config.tenants)
