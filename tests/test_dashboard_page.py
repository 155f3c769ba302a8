"""The dashboard's page in headless Chromium, with a real broker and real ranks: what a person sees of it."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

import clients
from tests.admin.test_http import ask_json
from tests.clients.ranks import all_together
from tests.holding_back import publish_until_held_back
from tests.loopback import own_host

from .daemon import PATIENCE_S, Daemon, Process

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

sync_api = pytest.importorskip("playwright.sync_api", reason="without playwright no browser is driven")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium")

PATIENCE_MS = PATIENCE_S * 1000
RANKS = 4
NASTY = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_api.sync_playwright() as playwright:
        # As root, as in a container, it has no sandbox of its own.
        arguments = ["--no-sandbox"] if os.getuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    # With a Unix socket, over which ranks share memory where that is compiled.
    host = own_host()
    listen = (f"tcp://{host}:0", f"unix://{tmp_path}/bus.sock")
    with Daemon("--name", "the-bus", listen=listen, admin=f"{host}:0") as daemon:
        yield daemon


@contextmanager
def opened(browser: Browser, daemon: Daemon, **options: object) -> Iterator[Page]:
    """The page; when it is closed again, nothing has been said in its console, and nobody else was asked."""
    said: list[str] = []
    asked: list[str] = []
    context = browser.new_context(**options)  # type: ignore[arg-type]
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("dialog", lambda dialog: said.append(f"dialog: {dialog.message}"))
    page.on("request", lambda request: asked.append(request.url))
    try:
        page.goto(daemon.admin_url)
        page.wait_for_selector("#state.live")
        yield page
    finally:
        context.close()
    assert said == []
    assert [url for url in asked if not url.startswith(daemon.admin_url + "/")] == []


@contextmanager
def ranks(daemon: Daemon, schedule: str) -> Iterator[list[Process]]:
    """Processes that reduce together."""
    with ExitStack() as stack:
        started = [
            stack.enter_context(Process(daemon.url, str(rank), str(RANKS), schedule, module="tests.dashboard_rank"))
            for rank in range(RANKS)
        ]
        for process in started:
            assert process.read_line().startswith("joined ")
        yield started


def text(page: Page, selector: str) -> str:
    return page.inner_text(selector)


def wait_for_text(page: Page, selector: str, *words: str) -> None:
    """Waits until an element has all these words."""
    page.wait_for_function(
        "([selector, words]) => words.every(each => document.querySelector(selector)?.innerText.includes(each))",
        arg=[selector, list(words)],
    )


def wait_for_change(page: Page, selector: str) -> None:
    page.wait_for_function(
        "([selector, before]) => document.querySelector(selector).innerText !== before",
        arg=[selector, text(page, selector)],
    )


@pytest.mark.parametrize("schedule", ["auto", "star"])
def test_with_four_trainers_numbers_change_the_timeline_draws_and_a_stopped_rank_is_named(
    browser: Browser, daemon: Daemon, schedule: str
) -> None:
    with ranks(daemon, schedule) as processes, opened(browser, daemon) as page:
        wait_for_text(page, "#groups h2", "dp", "4 of 4 ranks")
        wait_for_change(page, ".figure:first-child b")
        wait_for_change(page, "#groups .about")
        page.wait_for_function("() => document.querySelectorAll('.timeline .came').length >= 4 * 8")
        # In each column of an operation that all have come to, one of them was the last.
        assert page.locator(".timeline .last").count() >= 8
        assert page.locator("#topics tbody tr").count() == 2 * RANKS
        assert [text(page, f"#groups tbody tr:nth-child({row}) td:nth-child(2)") for row in range(1, 5)] == [
            f"trainer-{rank}" for rank in range(RANKS)
        ]
        processes[2].signal(signal.SIGSTOP)
        try:
            wait_for_text(page, "#troubles", "waits for rank 2", f"Rank 2 is trainer-2, process {processes[2].pid}")
            page.wait_for_selector(".timeline .waited")
            assert page.locator(".timeline .there").count() == RANKS - 1
            page.wait_for_selector("#troubles li.bad")
        finally:
            processes[2].signal(signal.SIGCONT)
        page.wait_for_selector("#well:visible, #troubles li:not(:has-text('waits for rank'))")


def test_a_mismatch_is_explained_in_one_sentence(browser: Browser, daemon: Daemon) -> None:
    with clients.connect(daemon.url) as first, clients.connect(daemon.url) as second:

        def reduce(bus: clients.Client, rank: int, elements: int) -> None:
            group = bus.group("dp", world_size=2, rank=rank, timeout_s=PATIENCE_S)
            with pytest.raises(clients.CollectiveMismatchError):
                group.all_reduce(np.ones(elements, np.float32), timeout_s=PATIENCE_S)

        all_together(lambda: reduce(first, 0, 4), lambda: reduce(second, 1, 5))
        with opened(browser, daemon) as page:
            wait_for_text(page, "#troubles li.bad", "dp: ", "(4,)", "(5,)", "rank 1")
            (line,) = page.locator("#troubles li.bad").all_inner_texts()
    assert "\n" not in line


def test_names_are_shown_as_they_are_and_never_become_markup(browser: Browser, daemon: Daemon) -> None:
    with clients.connect(daemon.url, name=NASTY) as bus, opened(browser, daemon) as page:
        bus.publish(f"{NASTY}/script", NASTY, headers={NASTY: NASTY})
        bus.flush()
        page.click(f"#topics button:text-is('{NASTY}/script')")
        wait_for_text(page, "#tap-text", NASTY)
        wait_for_text(page, "#tap-about", f"from {NASTY}", f"{NASTY}: {NASTY}")
        wait_for_text(page, "#sessions", NASTY)
        assert page.locator("img, body script").count() == 0


def test_the_page_may_not_make_markup_of_text(browser: Browser, daemon: Daemon) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.goto(daemon.admin_url)
    refused = page.evaluate(
        "() => { try { document.body.innerHTML = '<b>x</b>'; } catch (error) { return error.name; } return 'done'; }"
    )
    context.close()
    assert refused == "TypeError"


def test_a_tap_shows_values_and_tensors_and_ends_with_its_viewer(browser: Browser, daemon: Daemon) -> None:
    def readers() -> object:
        (topic,) = ask_json(daemon, "/api/v1/topics?filter=weights")["topics"]
        return topic["subscriptions"]

    with clients.connect(daemon.url, name="trainer-0") as bus, opened(browser, daemon) as page:
        bus.publish("weights", {"step": 7, "note": "words"}, ack="accepted")
        page.fill("#tap-topic", "weights")
        page.click("#tap-form button[type=submit]")
        wait_for_text(page, "#tap-text", '"step":7', "words")
        assert readers() == 1
        array = np.linspace(-1.0, 3.0, 3_000_000, dtype=np.float32).reshape(1000, 3000)
        array[0, 0] = np.nan
        bus.publish("weights", array, ack="accepted")
        wait_for_text(page, "#tap-tensor", "float32", "[1000, 3000]", "3000000", "NaN or infinite")
        wait_for_text(page, "#tap-about", "tensor 2 from trainer-0", "12000000 bytes")
        assert page.locator(".histogram rect").count() == 32
        page.click("#tap-stop")
        page.wait_for_function(
            "async () => (await (await fetch('/api/v1/topics?filter=weights')).json()).topics[0].subscriptions === 0"
        )


def test_who_holds_up_whom_and_what_is_lost_are_told(browser: Browser, daemon: Daemon) -> None:
    with (
        clients.connect(daemon.url, name="slow-reader") as reader,
        reader.subscribe("held", queue_messages=1),
        clients.connect(daemon.url) as writer,
        opened(browser, daemon) as page,
    ):
        publish_until_held_back(writer, "held")
        wait_for_text(page, "#troubles", "held: 1 of its publishers wait for slow-reader.")
        wait_for_text(page, "#topics tbody", "slow-reader")
        assert text(page, ".figure:last-child b") == "1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_light_or_dark_as_its_viewer_likes(browser: Browser, daemon: Daemon, scheme: str) -> None:
    with opened(browser, daemon, color_scheme=scheme) as page:
        red = page.evaluate("Number(getComputedStyle(document.body).backgroundColor.match(/[0-9]+/)[0])")
        assert (red > 128) == (scheme == "light")


def test_on_a_phone_nothing_is_wider_than_the_screen(browser: Browser, daemon: Daemon) -> None:
    phone = {"width": 390, "height": 844}
    with ranks(daemon, "auto"), opened(browser, daemon, viewport=phone, is_mobile=True, has_touch=True) as page:
        page.wait_for_selector(".timeline .came")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        width = page.evaluate("document.querySelector('.timeline').getBoundingClientRect().right")
        assert width <= 390


def test_a_page_that_outlives_its_broker_says_so_and_finds_the_next_one(browser: Browser, daemon: Daemon) -> None:
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.goto(daemon.admin_url)
    page.wait_for_selector("#state.live")
    daemon.kill()
    page.wait_for_selector("#state.lost")
    daemon.start()
    page.wait_for_selector("#state.live")
    context.close()


def test_a_page_in_the_background_asks_for_nothing(browser: Browser, daemon: Daemon) -> None:
    with opened(browser, daemon) as page:
        with page.expect_event("requestfailed", lambda request: request.url.endswith("/api/v1/events")):
            page.evaluate(
                """() => {
                    Object.defineProperty(document, "hidden", { value: true, configurable: true });
                    document.dispatchEvent(new Event("visibilitychange"));
                }"""
            )
        with page.expect_request("**/api/v1/events"):
            page.evaluate(
                """() => {
                    delete document.hidden;
                    document.dispatchEvent(new Event("visibilitychange"));
                }"""
            )
