"""The Connections tab: what its data say, and a run that is started, changed and stopped in a browser."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flask_login import FlaskLoginClient, UserMixin
from locust.env import Environment

from parked.loadtest.master import recorder
from parked.loadtest.master.fleet import Fleet
from parked.loadtest.plugin import connections_tab
from parked.loadtest.plugin.connections_tab import COLUMNS, HISTORY_S, TAB, History
from tests.commands import free_ports
from tests.loadtest import browser
from tests.loadtest.runs import NO_PICTURES
from tests.loadtest.scene import sample
from tests.support import ServerProcess

PROJECT = Path(__file__).resolve().parents[3]
#: Seconds that Locust may take here to do what a person waits for.
PATIENCE_S = 30.0
#: What an hour of a run with 44 workers may weigh when the page is opened, and each second from then on.
OPENED_BYTES, SECOND_BYTES = 150_000, 12_000


def row(second: int, **changes: Any) -> dict[str, Any]:
    return {
        "time_s": second,
        "connections_wanted": 400_000,
        "connections": 399_999,
        "requests_total": 8000 * second,
        "counted_unix_s": 1000.0 + second,
        "phase": "hold",
    } | changes


def test_a_rate_is_over_the_time_in_which_its_requests_were_counted() -> None:
    history = History()
    history.add(row(1), None)
    history.add(row(2, counted_unix_s=1003.0), 8000.04)
    history.add(row(3, counted_unix_s=1003.0), 8000.0)  # no sample came in between
    _, seconds = history.since(0)
    assert [second[3:] for second in seconds] == [(None, None), (8000.0, 4000.0), (8000.0, None)]


def test_only_what_the_page_has_not_yet_is_told_and_an_hour_is_kept() -> None:
    history = History()
    for second in range(1, HISTORY_S + 11):
        history.add(row(second), 8000.0)
    count = HISTORY_S + 10
    first, seconds = history.since(0)
    assert (first, len(seconds), seconds[0][0]) == (10, HISTORY_S, 11)
    assert history.since(count - 1) == (count - 1, seconds[-1:])
    assert history.since(count) == (count, [])
    assert history.since(count + 1) == (first, seconds)  # of a run that this is not
    assert history.since(-5) == (first, seconds)


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["locust"])  # Locust's web UI parses them for its form


class Master:
    """A Locust with a web UI that does not listen: its pages are asked for directly."""

    def __init__(self, **web_ui: Any) -> None:
        self.environment = Environment(host="http://127.0.0.1:9")
        self.environment.create_local_runner()
        self.web_ui = self.environment.create_web_ui("127.0.0.1", 0, delayed_start=True, **web_ui)
        recorder.attach(self.environment.events)
        connections_tab.attach(self.environment.events)
        self.environment.events.init.fire(
            environment=self.environment, runner=self.environment.runner, web_ui=self.web_ui
        )
        assert self.web_ui.app is not None
        self.app = self.web_ui.app

    def second(self, run: Any) -> None:
        self.environment.parked_recorder.seconds.fire(run=run)  # type: ignore[attr-defined]


def a_run(workers: int = 1) -> Any:
    fleet = Fleet()
    for number in range(workers):
        told = sample(source=f"127.1.0.{number}", connections=18_182, users=18_182, requests=10**8)
        fleet.take(f"a-host-name-{number:032}", told)
    return SimpleNamespace(fleet=fleet, row=row(1), offered_per_s=8000.0, started_unix_s=time.time())


def test_before_the_first_run_there_is_nothing_and_it_says_so() -> None:
    told = Master().app.test_client().get("/connections/data").get_json()
    assert (told["run"], told["phase"], told["workers"], told["established"]) == (0, "", [], 0)
    assert told["history"] == {name: [] for name in COLUMNS}


def test_what_users_hear_that_wait_is_told_and_null_where_there_are_none() -> None:
    master = Master()
    master.second(a_run())
    ask = master.app.test_client().get
    assert ask("/connections/data").get_json()["streams"] is None
    run = a_run()
    run.row |= {"streams": 9, "events_total": 90, "events_lost_total": 1, "delivery_p50_ms": 4.5}
    master.second(run)
    told = ask("/connections/data").get_json()
    assert (told["streams"], told["events"], told["events_lost"]) == (9, 90, 1)
    assert (told["delivery_p50_ms"], told["delivery_p99_ms"]) == (4.5, None)


def test_an_hour_with_44_workers_is_small_and_each_second_smaller() -> None:
    master, run = Master(), a_run(workers=44)
    for second in range(1, HISTORY_S + 1):
        run.row = row(second, time_s=second + 0.1, requests_total=7998 * second)
        master.second(run)
    client = master.app.test_client()
    opened = client.get("/connections/data")
    told = opened.get_json()
    assert (told["established"], len(told["workers"])) == (44 * 18_182, 44)
    assert len(told["history"]["answered_per_s"]) == HISTORY_S
    assert len(opened.data) < OPENED_BYTES
    next_ = client.get(f"/connections/data?run={told['run']}&after={HISTORY_S - 1}")
    assert next_.get_json()["history"]["time_s"] == [HISTORY_S + 0.1]
    assert len(next_.data) < SECOND_BYTES


def test_another_run_begins_anew_and_a_page_of_the_one_before_gets_all_of_it() -> None:
    master, before, run = Master(), a_run(), a_run()
    run.started_unix_s += 1
    for _ in range(3):
        master.second(before)
    master.second(run)
    path = f"/connections/data?run={before.started_unix_s}&after=3"
    told = master.app.test_client().get(path).get_json()
    assert (told["run"], told["first"], told["history"]["time_s"]) == (run.started_unix_s, 0, [1])


def test_a_lost_worker_is_named_and_has_no_connections() -> None:
    master, run = Master(), a_run(workers=2)
    next(iter(run.fleet.workers.values())).lost = True
    master.second(run)
    told = master.app.test_client().get("/connections/data").get_json()
    assert [worker["state"] for worker in told["workers"]] == ["lost", ""]
    assert told["established"] == 18_182


@pytest.mark.parametrize("base", ["", "/a/b", "/a/"])
def test_tab_page_and_download_are_below_locusts_own_path(base: str) -> None:
    client = Master(web_base_path=base).app.test_client()
    top = base.rstrip("/")
    index = client.get(f"{top}/").get_data(as_text=True)
    assert index.count('<script src="./connections/tab.js"></script></body>') == 1
    assert '"key": "connections"' in index
    for path in ("connections/", "connections/data", "connections/csv", "connections/tab.js"):
        assert client.get(f"{top}/{path}").status_code == 200, path


def test_tabs_of_a_locustfiles_own_stay() -> None:
    master = Master()
    master.web_ui.template_args["extended_tabs"] = [{"title": "Mine", "key": "mine"}]
    client = master.app.test_client()
    for _ in range(2):
        assert client.get("/").status_code == 200
    assert [tab["key"] for tab in master.web_ui.template_args["extended_tabs"]] == ["mine", TAB["key"]]


def test_with_web_login_nothing_is_shown_to_those_who_are_not_logged_in() -> None:
    class Person(UserMixin):
        id = "1"

    master = Master(web_login=True, web_base_path="/lo")
    master.app.secret_key = "for the test"
    master.web_ui.login_manager.user_loader(lambda _: Person())
    paths = (
        "/lo/",
        "/lo/connections/",
        "/lo/connections/data",
        "/lo/connections/csv",
        "/lo/connections/tab.js",
    )
    for path in paths:
        answer = master.app.test_client().get(path)
        assert (answer.status_code, answer.headers["Location"].partition("?")[0]) == (302, "/lo/login"), path
    master.app.test_client_class = FlaskLoginClient
    for path in paths:
        assert master.app.test_client(user=Person()).get(path).status_code == 200, path


@pytest.mark.parametrize(("field", "value"), [("think", "90:10"), ("think", ""), ("length", "0")])
def test_the_form_refuses_what_the_command_line_refuses(field: str, value: str) -> None:
    form = {"user_count": "1", "spawn_rate": "1", field: value}
    told = Master().app.test_client().post("/swarm", data=form).get_json()
    assert told["success"] is False
    assert told["message"].startswith(f"{field}: '{value}'")


@contextlib.contextmanager
def locust(folder: Path, *options: str, base: str = "") -> Iterator[str]:
    """The web UI's address of our locustfile against our server."""
    ports = free_ports(2)
    url = f"http://127.0.0.1:{ports[0]}{base}/"
    log = folder / "locust.log"
    with ServerProcess("--workers", "1") as server, log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "locust", "-f", str(PROJECT / "loadtest" / "keepalive.py")),
                *("--web-host", "127.0.0.1", "--web-port", str(ports[0]), "--think", "1:3"),
                *("--host", f"http://127.0.0.1:{server.address[1]}", *options),
                *(("--web-base-path", base) if base else ()),
                *(("--master-bind-port", str(ports[1]), "--master-port", str(ports[1])) if options else ()),
            ],
            cwd=folder,
            env=os.environ | {"PYTHONPATH": NO_PICTURES},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + PATIENCE_S
            wanted = 2 if options else 0
            while True:
                with contextlib.suppress(OSError):
                    if json.loads(get(f"{url}worker-count"))["worker_count"] == wanted:
                        break
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        assert "Traceback" not in log.read_text(), log.read_text()


def get(url: str, **form: Any) -> str:
    data = urllib.parse.urlencode(form).encode() if form else None
    try:
        with urllib.request.urlopen(url, data, timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        if error.code == 405 and form:  # older Locusts take no form at /stop
            return get(url)
        raise


def until(url: str, **wanted: Any) -> Any:
    """The data, once they say that."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        told = json.loads(get(f"{url}connections/data"))
        if all(told[name] == value for name, value in wanted.items()):
            return told
        assert time.monotonic() < deadline, {name: told[name] for name in wanted}
        time.sleep(0.1)


def test_one_process_follows_the_form_up_and_down_and_in_its_think_time(tmp_path: Path) -> None:
    with locust(tmp_path) as url:
        get(f"{url}swarm", user_count=40, spawn_rate=100)
        told = until(url, wanted=40, established=40, phase="hold")
        assert told["offered_per_s"] == 20
        assert [worker["wanted"] for worker in told["workers"]] == [40]
        get(f"{url}swarm", user_count=10, spawn_rate=100, think="4:6")
        assert until(url, wanted=10, established=10, phase="hold", offered_per_s=2)["failures"] == 0
        get(f"{url}stop", now=1)
        until(url, established=0, state="stopped")


#: Locust's form and buttons by what a person sees; React hears of a value by the element's own setter only.
HANDS = """
    window.click = (role, name) =>
      [...document.querySelectorAll(role)].find((it) => it.textContent.trim().toLowerCase() === name).click();
    window.fill = (name, value) => {
      const input = document.querySelector(`input[name=${name}]`);
      Object.getOwnPropertyDescriptor(HTMLInputElement.prototype, "value").set.call(input, value);
      input.dispatchEvent(new Event("input", {bubbles: true}));
    };
    window.ours = () => document.querySelector("iframe").contentDocument;
    window.tile = (id) => ours().getElementById(id).textContent;
"""


def seen(window: browser.Browser, script: str) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (value := window.run(f"try {{ return {script} }} catch {{ return null }}")):
        assert time.monotonic() < deadline, script
        time.sleep(0.1)
    return value


def submit(window: browser.Browser, users: int, button: str) -> None:
    seen(window, "document.querySelector('input[name=userCount]')")
    window.run(f"fill('userCount', {users}); fill('spawnRate', 1000); click('button', '{button}')")


def test_a_run_is_started_changed_and_stopped_in_the_browser(window: browser.Browser, tmp_path: Path) -> None:
    with locust(tmp_path, "--processes", "2", base="/lo") as url:
        window.resize(1300)
        window.prefer("light")
        window.visit(url)
        window.run(HANDS)
        submit(window, 2000, "start")
        seen(
            window,
            "[...document.querySelectorAll('[role=tab]')].some(it => it.textContent === 'Connections')",
        )
        window.run("click('[role=tab]', 'connections')")
        seen(window, "tile('established') === '2,000 of 2,000'")
        seen(window, "tile('phase').startsWith('hold')")

        window.run("click('button', 'edit')")
        submit(window, 3000, "update")
        seen(window, "tile('established') === '3,000 of 3,000'")
        table = "[...ours().querySelectorAll('.wide tbody tr')].map(it => it.cells[3].textContent).join(' ')"
        seen(window, f"{table} === '1,500 1,500'")
        drawn = "document.querySelector('iframe').contentWindow.charts"
        seen(window, f"{drawn}.every(it => it.data[0].length > 3 && it.data[2].at(-1) > 500)")
        seen(window, f"{drawn}[0].data[2].at(-1) === 3000")  # a second's row comes after the workers' figures
        assert window.run("return ours().querySelector('.trouble').hidden") is True

        # Locust's own choice of scheme, on a phone: what is drawn follows, and nothing is cut off.
        light = window.run(f"return {drawn}[0].series[2].stroke()")
        window.run("localStorage.theme = 'dark'")
        window.resize(390)
        window.visit(f"{url}?tab=connections")
        window.run(HANDS)
        seen(window, f"{drawn}[0].series[2].stroke() !== '{light}'")
        seen(window, "tile('established') === '3,000 of 3,000'")
        seen(window, f"{drawn}.every(it => it.root.getBoundingClientRect().right <= 390)")
        assert window.run("return document.documentElement.scrollWidth") <= 390
        assert window.run("return ours().documentElement.scrollWidth") <= 390
        seen(window, "ours().body.scrollHeight <= document.querySelector('iframe').clientHeight")
        window.resize(1300)

        window.run("click('[role=tab]', 'statistics')")
        seen(window, "document.querySelector('iframe') === null && document.querySelector('table')")
        window.run("click('[role=tab]', 'connections')")
        seen(window, "tile('established') === '3,000 of 3,000'")
        window.run("click('button', 'stop')")
        seen(window, "tile('established') === '0 of 3,000' && tile('phase').startsWith('ended')")
        assert window.console() == []

        told = until(url, state="stopped", established=0)
        deadline = time.monotonic() + PATIENCE_S
        while True:  # Locust's workers report every 3 s
            aggregated = list(csv.DictReader(get(f"{url}stats/requests/csv").splitlines()))[-1]
            if int(aggregated["Request Count"]) == told["requests"] > 3000:
                break
            assert time.monotonic() < deadline, (aggregated, told)
            time.sleep(0.2)
        assert (aggregated["Failure Count"], told["failures"], told["reconnects"]) == ("0", 0, 0)
        seconds = list(csv.DictReader(get(f"{url}connections/csv").splitlines()))
        assert max(int(second["established"]) for second in seconds) == 3000
        assert "/?length=N" in get(f"{url}stats/report?download=1")
