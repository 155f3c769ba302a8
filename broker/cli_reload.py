"""Reads the configuration again while the daemon runs: what can change without a restart does, all of it or nothing."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable

from broker.config import Config
from broker.errors import ConfigError
from broker.server import Server

log = logging.getLogger(__name__)


def reload_on_hangup(server: Server, read_again: Callable[[], Config]) -> None:
    """From now on SIGHUP has permissions and quotas read again.

    Args:
        server: which runs on the running loop.
        read_again: gives the configuration as it is now; raises ConfigError where it cannot be.
    """
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, server, read_again)


def _reload(server: Server, read_again: Callable[[], Config]) -> None:
    try:
        config = take_over(server, read_again)
    except ConfigError as error:
        log.error("config.not_reloaded cause=%s", error)
        return
    log.warning(
        "config.reloaded roles=%d members=%d tenants=%d advice=%r",
        len(config.permissions.roles), len(config.permissions.members), len(config.tenants),
        "other settings take a restart",
    )  # fmt: skip


def take_over(server: Server, read_again: Callable[[], Config]) -> Config:
    """Reads the configuration, and has the server follow its permissions and quotas.

    Raises:
        ConfigError: it cannot be used; everything stays as it was.
    """
    config = read_again()
    server.replace_permissions(config.permissions)
    server.replace_quotas(config.tenants)
    return config
