"""deploy/: what Prometheus and Grafana are given. Every metric in it exists, and every panel shows something.

Prometheus itself runs in these tests, where it is installed: `apt-get install prometheus` has promtool with it.
"""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import pytest

from tests.conftest import ROOT
from tests.daemon import PATIENCE_S, Daemon, Process

DEPLOY = ROOT / "deploy"
RULES = DEPLOY / "prometheus" / "tensorbus.rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "tensorbus.json"
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset", "group_left", "group_right"}
OF_PROMETHEUS = {"up"}
"""What it adds of itself."""
START_S = 60.0
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed: apt-get install prometheus"
)
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed: apt-get install prometheus"
)


def metrics_of(query: str) -> set[str]:
    """The names of metrics in a query."""
    bare = re.sub(r'"[^"]*"', "", query)
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", bare)
    bare = re.sub(r"\b(by|without|on|ignoring)\s*\([^)]*\)", "", bare)
    names = re.findall(r"(?<![\w.$])[a-zA-Z_:][\w:]*(?!\w*\s*\()", bare)
    return {name for name in names if name not in WORDS}


def panel_queries() -> list[tuple[str, str]]:
    """The title of each panel with each of its queries."""
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [(panel["title"], target["expr"]) for panel in panels for target in panel["targets"]]


def alert_queries() -> list[tuple[str, str]]:
    """The name of each alert with its query."""
    text = RULES.read_text()
    return re.findall(r"- alert: (\w+)\n        expr: >-\n          (.+)\n", text)


def exposed(url: str) -> tuple[str, set[str]]:
    """What a broker exposes, and the names of all samples in it."""
    with urlopen(f"{url}/metrics", timeout=PATIENCE_S) as response:
        text = response.read().decode()
    return text, set(re.findall(r"^([a-zA-Z_:][\w:]*)[{ ]", text, re.MULTILINE))


def promtool(*arguments: str, stdin: str = "") -> str:
    """Runs promtool, which has to succeed; returns what it has said."""
    done = subprocess.run(
        ["promtool", *arguments], input=stdin, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class Prometheus:
    """A Prometheus server that scrapes one broker four times in a second."""

    def __init__(self, folder: Path, target: str, rules: Path) -> None:
        config = folder / "prometheus.yml"
        config.write_text(
            "global: {scrape_interval: 250ms, scrape_timeout: 250ms, evaluation_interval: 250ms}\n"
            f"rule_files: [{json.dumps(str(rules))}]\n"
            "scrape_configs:\n"
            f"  - {{job_name: tensorbus, static_configs: [{{targets: [{json.dumps(target)}]}}]}}\n"
        )
        self._log = folder / "prometheus.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={config}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    "--web.listen-address=127.0.0.1:0",
                    "--log.level=info",
                ],
                stdout=log,
                stderr=log,
            )
        self.url = ""

    def start(self) -> None:
        """Waits until it answers."""
        deadline_s = time.monotonic() + START_S
        while time.monotonic() < deadline_s:
            assert self._process.poll() is None, self._log.read_text()
            listening = re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', self._log.read_text())
            if listening is not None:
                self.url = f"http://{listening[1]}"
                try:
                    with urlopen(f"{self.url}/-/ready", timeout=PATIENCE_S) as response:
                        if response.status == 200:
                            return
                except URLError:
                    pass
            time.sleep(0.05)
        raise AssertionError(self._log.read_text())

    def ask(self, path: str) -> Any:
        """The data of an answer of its HTTP interface."""
        with urlopen(f"{self.url}/api/v1/{path}", timeout=PATIENCE_S) as response:
            return json.load(response)["data"]

    def values(self, query: str) -> list[float]:
        """The values of a query at this moment, without those that are no numbers."""
        found = [float(each["value"][1]) for each in self.ask(f"query?query={quote(query)}")["result"]]
        return [value for value in found if value == value]

    def end(self) -> None:
        """Ends it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def prometheus(folder: Path, admin_url: str, rules: Path = RULES) -> Iterator[Prometheus]:
    server = Prometheus(folder, admin_url.removeprefix("http://"), rules)
    try:
        server.start()
        yield server
    finally:
        server.end()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with Daemon() as daemon:
        yield daemon


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("a_total", {"a_total"}),
        ('rate(a_total{b="c d", e=~"$f"}[$__rate_interval]) > 0', {"a_total"}),
        ("histogram_quantile(0.99, sum by (le, lane) (rate(a_bucket[5m])))", {"a_bucket"}),
        ("a / on (b) group_left c * 2e3", {"a", "c"}),
        ("sum (a) without (b)", {"a"}),
    ],
)
def test_the_names_of_metrics_are_found_in_queries(query: str, names: set[str]) -> None:
    assert metrics_of(query) == names


def test_every_metric_of_the_dashboard_and_of_the_alerts_exists(daemon: Daemon) -> None:
    _, names = exposed(daemon.admin_url)
    queries = panel_queries() + alert_queries()
    assert len(panel_queries()) > 30
    assert len(alert_queries()) == RULES.read_text().count("- alert:") > 8
    unknown = [(title, metrics_of(query) - names - OF_PROMETHEUS) for title, query in queries]
    assert [(title, missing) for title, missing in unknown if missing] == []
    assert all(metrics_of(query) for _, query in queries)


def test_every_metric_of_the_broker_is_named_in_the_documents(daemon: Daemon) -> None:
    _, names = exposed(daemon.admin_url)
    ours = {re.sub(r"_(bucket|count|sum|info)$", "", name) for name in names if name.startswith("tensorbus_")}
    text = (ROOT / "docs" / "operations.md").read_text()
    assert sorted(name for name in ours if name not in text) == []


def test_grafana_gets_a_dashboard_whose_panels_all_have_a_query_a_unit_and_a_place_of_their_own() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    panels = dashboard["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        cells = {(place["x"] + right, place["y"] + down) for right in range(place["w"]) for down in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24, panel["title"]
        taken |= cells
        assert panel["targets"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "prometheus", panel["title"]
    source = (DEPLOY / "grafana" / "provisioning" / "datasources" / "prometheus.yml").read_text()
    assert "uid: prometheus" in source


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_metrics(daemon: Daemon) -> None:
    text, _ = exposed(daemon.admin_url)
    ours = "".join(line for line in text.splitlines(keepends=True) if "tensorbus_" in line)
    assert promtool("check", "metrics", stdin=ours).strip() == ""
    promtool("check", "metrics", stdin=text)


@needs_promtool
def test_promtool_finds_nothing_wrong_with_the_alerts_and_their_own_tests_pass() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(RULES))
    assert "SUCCESS" in promtool("check", "config", str(DEPLOY / "prometheus" / "prometheus.yml"))
    assert "SUCCESS" in promtool("test", "rules", str(DEPLOY / "prometheus" / "tensorbus.rules.test.yml"))


@needs_prometheus
@pytest.mark.timeout(240)
def test_every_panel_and_every_alert_works_on_a_real_prometheus_while_the_example_runs(tmp_path: Path) -> None:
    # It is ended once all has been seen; that takes a busy machine longer than a run of 25 epochs.
    arguments = ["--mode", "all", "--trainers", "2", "--epochs", "100", "--plain", "--out", str(tmp_path / "out")]
    open_queries = {query: title for title, query in panel_queries()}
    with Process(*arguments, "--admin", "127.0.0.1:0", module="tests.examples.forked") as example:
        line = ""
        while not line.startswith("admin on "):
            line = example.read_line(START_S)
        with prometheus(tmp_path, line.removeprefix("admin on ")) as server:
            while open_queries and example.running:
                for query in list(open_queries):
                    concrete = query.replace("$__rate_interval", "1m").replace("$instance", ".+")
                    if server.values(concrete):
                        del open_queries[query]
                # It scrapes no more often.
                time.sleep(0.25)
            assert open_queries == {}
            # A busy machine may be late for a scrape, and so for the last one.
            assert server.values('max_over_time(up{job="tensorbus"}[1m])') == [1]
            (group,) = server.ask("rules")["groups"]
            for rule in group["rules"]:
                assert rule["health"] in ("ok", "unknown"), rule
            assert [rule["health"] for rule in group["rules"]].count("ok") > 0
        example.signal(signal.SIGTERM)
        example.wait(START_S)


def test_the_files_are_where_the_documents_say() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    named = set(re.findall(r"`(deploy/[\w./-]+)`", text))
    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
