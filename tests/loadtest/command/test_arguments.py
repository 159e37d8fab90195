"""What the options of ./run_test come to, before anything is started."""

from __future__ import annotations

import argparse
import errno
import re
import webbrowser
from typing import TYPE_CHECKING, Any

import pytest

from parked.loadtest.command import arguments, outcome, run
from parked.loadtest.command.processes import Stop
from parked.loadtest.command.settings import Settings
from parked.loadtest.machine.machine import Machine
from tests.loadtest.runs import PROJECT

if TYPE_CHECKING:
    from pathlib import Path


def settings(*words: str) -> Settings:
    """As `arguments.main` makes them."""
    made = arguments.parser()
    chosen, chosen.of_locust = made.parse_known_args(words)  # type: ignore[misc]
    arguments._settle(made, chosen)
    return Settings.of(chosen, Machine.read(), "./run_test", 0.0)


def test_quick_is_20000_for_30_s_unless_said_otherwise() -> None:
    quick = settings("--quick")
    assert (quick.connections, quick.hold) == (20_000, "30s")
    smaller = settings("--quick", "-c", "100", "--hold", "1s")
    assert (smaller.connections, smaller.hold) == (100, "1s")


def test_every_option_is_in_a_page() -> None:
    pages = [PROJECT / "README.md", PROJECT / "results/README.md", *(PROJECT / "docs").glob("*.md")]
    words = set(re.findall(r"(?<![\w-])--?\w[\w-]*", "".join(page.read_text() for page in pages)))
    actions = arguments.parser()._actions
    assert [
        a.option_strings for a in actions if a.dest != "version" and not words & {*a.option_strings}
    ] == []


@pytest.mark.parametrize("shell", ["bash", "zsh"])
def test_the_completion_knows_every_option(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert arguments.main(["--print-completion", shell]) == 0
    script = capsys.readouterr().out
    options = [name for action in arguments.parser()._actions for name in action.option_strings]
    assert [name for name in options if name not in script] == []


def test_overwrite_replaces_the_files_of_a_run_and_no_others(tmp_path: Path) -> None:
    for name in ("run.json", "samples.csv", "notes.txt"):
        (tmp_path / name).write_text("old")
    with pytest.raises(Stop, match="--overwrite"):
        run._make_folder(settings("-c", "10", "--results", str(tmp_path)))
    run._make_folder(settings("-c", "10", "--results", str(tmp_path), "--overwrite"))
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


@pytest.mark.parametrize("has_one", [True, False])
def test_open_shows_the_page_in_a_browser_if_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_one: bool
) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(webbrowser, "open", lambda url: shown.append(url) or has_one)
    assert outcome.show(tmp_path) is has_one
    assert shown == [f"file://{tmp_path}/index.html"]
    assert settings("--open").open_page


@pytest.mark.parametrize(
    ("verdict", "interrupts", "code"), [("pass", 1, 0), ("fail", 1, 130), ("fail", 0, 1), ("pass", 0, 0)]
)
def test_a_run_that_has_passed_is_passed_also_if_its_web_page_is_ended_by_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verdict: str, interrupts: int, code: int
) -> None:
    made = argparse.Namespace(summary={"verdict": verdict}, write=lambda: None)
    monkeypatch.setattr(run.report.Report, "of", lambda *_: made)
    monkeypatch.setattr(run.report, "lines", lambda *_: [])
    interrupted = argparse.Namespace(is_set=bool(interrupts), count=interrupts)
    asked = settings("-c", "10", "--results", str(tmp_path), "--web")
    assert run._report(asked, 0, "", interrupted) == code  # type: ignore[arg-type]


@pytest.mark.parametrize("lacks", ["index.html", "junit.xml"])
def test_a_page_that_a_full_disk_has_no_place_for_is_not_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], lacks: str
) -> None:
    def write() -> None:
        if lacks == "index.html":
            raise OSError(errno.ENOSPC, "No space left on device", lacks)
        (tmp_path / "index.html").touch()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", lacks)

    summary = {
        "verdict": "pass",
        "reasons": [],
        "target_connections": 10,
        "workload": {"host": "http://a"},
        "ramp_seconds": 1.0,
        "hold_seconds": 1.0,
    }
    made = argparse.Namespace(summary=summary, write=write)
    monkeypatch.setattr(run.report.Report, "of", lambda *_: made)
    figures = ["hold         7 requests/s", f"results      {tmp_path / 'index.html'}", "verdict      pass"]
    monkeypatch.setattr(run.report, "lines", lambda *_: figures)
    monkeypatch.setattr(outcome, "write_junit", full)
    asked = settings("-c", "10", "--results", str(tmp_path), "--junit", str(tmp_path / "junit.xml"))
    with pytest.raises(Stop, match=f"cannot write to .*{lacks}: No space left") as stopped:
        run._report(asked, 0, "", argparse.Namespace(is_set=False, count=0))  # type: ignore[arg-type]
    assert stopped.value.code == 6
    said = capsys.readouterr().out.splitlines()
    assert said == [line for line in figures if lacks == "junit.xml" or not line.startswith("results")]


def _ended(asked: Settings, monkeypatch: pytest.MonkeyPatch, write: Any, code: int = 0) -> int:
    summary = {
        "verdict": "pass",
        "reasons": [],
        "target_connections": 10,
        "workload": {"host": "http://a"},
        "ramp_seconds": 1.0,
        "hold_seconds": 1.0,
    }
    made = argparse.Namespace(summary=summary, write=write)
    monkeypatch.setattr(run.report.Report, "of", lambda *_: made)
    monkeypatch.setattr(run.report, "lines", lambda *_: [])
    return run._report(asked, code, "", argparse.Namespace(is_set=False, count=0))  # type: ignore[arg-type]


def _full(*_: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_named_by_what_is_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    junit = tmp_path / "elsewhere.xml"
    asked = settings("-c", "10", "--results", str(tmp_path / "run"), "--junit", str(junit))
    monkeypatch.setattr(outcome.files, "replace", _full)
    with pytest.raises(Stop, match=f"^cannot write to {junit}: No space left on device$"):
        _ended(asked, monkeypatch, write=lambda: None)


def test_the_verdict_is_written_for_a_build_server_also_if_the_folder_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(outcome, "write_junit", lambda path, *_: written.append(path))
    asked = settings("-c", "10", "--results", str(tmp_path / "run"), "--junit", str(tmp_path / "j.xml"))
    with pytest.raises(Stop, match=f"^cannot write to {tmp_path}/run: No space left on device$"):
        _ended(asked, monkeypatch, write=_full)
    assert written == [tmp_path / "j.xml"]


@pytest.mark.parametrize("options", [("--html", "/mnt/page.html"), ("--json-file=/mnt/page",), ()])
def test_a_file_that_locust_was_asked_for_and_could_not_write_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    log = tmp_path / "locust.log"
    log.write_text(
        "Traceback (most recent call last):\nOSError: [Errno 30] Read-only file system: '/mnt/p'\n"
    )
    asked = settings("-c", "10", "--results", str(tmp_path), *options)
    if not options:  # its page in our folder: a run is complete without it
        assert _ended(asked, monkeypatch, write=lambda: None, code=1) == 0
        return
    with pytest.raises(Stop, match="asked for: Read-only file system: '/mnt/p'; see ") as stopped:
        _ended(asked, monkeypatch, write=lambda: None, code=1)
    assert stopped.value.code == 6


def test_an_earlier_run_is_there_still_if_the_next_one_is_refused_for_its_junit(tmp_path: Path) -> None:
    (tmp_path / "summary.json").touch()
    asked = ("-c", "10", "--results", str(tmp_path), "--overwrite", "--junit")
    with pytest.raises(Stop, match="there is no such folder"):
        run._check_junit(settings(*asked, str(tmp_path / "none" / "junit.xml")))
    run._check_junit(
        settings("-c", "10", "--results", str(tmp_path / "new"), "--junit", f"{tmp_path}/new/j.xml")
    )
    assert (tmp_path / "summary.json").exists()


@pytest.mark.parametrize("workload", ["keepalive", "longpoll", "events"])
def test_a_certificate_is_looked_at_before_any_of_the_built_in_tests(workload: str, tmp_path: Path) -> None:
    own = tmp_path / "locustfile.py"
    own.touch()
    assert settings("--workload", workload).verifies
    assert not settings("--workload", workload, "--insecure").verifies
    assert not settings("-f", str(own)).verifies


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("-c", "many"), "positive whole number"),
        (("--hold", "soon"), "is not a duration"),
        (("--think", "90:10"), "MIN <= MAX"),
        (("--length", "0:5"), "MIN <= MAX"),
        (("--master-port", "70000"), "is not a port"),
        (("-u", "10"), "here it is -c"),
        (("-u", "5"), "here it is -c"),
        (("--run-time=5",), "here it is --hold"),
        (("--fail-if", "p99"), "latency_ms.p99 > 200"),
        (("--fail-if", "p99 > 200"), "did you mean latency_ms.p99?"),
        (("--path", "/", "-f", "x.py"), "of the built-in test"),
        (("--header", "no field"), "is no field"),
        (("--host", "http://127.0.0.1/x?y=1"), "has a query"),
        (("--host", "http://[::1"), "is no URL: Invalid IPv6 URL"),
        (("--host", "http://127.0.0.1:99999"), "is no URL: Port out of range"),
        # What is sent to Locust's workers.
        (("-c", "1", "--results", "r\udce9sultats"), "\\udce9sultats is no text in UTF-8"),
        (("-c", "1", "--path", "/\udce9"), "/\\udce9 is no text in UTF-8"),
        # Of several hosts.
        (("--join", "a:b"), "is not HOST[:PORT]"),
        (("--join", "a", "-c", "5"), "--connections is for the master"),
        (("--join", "a", "--host", "http://b"), "--host is for the master"),
        (("--join", "a", "--path", "/other"), "--path is for the master"),
        (("--join", "a", "--header", "a: b"), "--header is for the master"),
        (("--join", "a", "--quick"), "--quick is for the master"),
        (("--join", "a", "--plan"), "--plan is for the master"),
        (("--join", "a", "--fail-if", "hold_rps < 1"), "--fail-if is for the master"),
        (("--join", "a", "--junit", "x.xml"), "--junit is for the master"),
        (("--join", "a", "--json"), "--json is for the master"),
        (("--join", "a", "--metrics", "127.0.0.1:24001"), "--metrics is for the master"),
        (("--join", "a", "--server-metrics", "127.0.0.1:9"), "--server-metrics is for the master"),
        (("--join", "a", "--abort-on-fail"), "--abort-on-fail is for the master"),
        (("--master",), "needs a number of connections"),
        (("--expect-hosts", "2"), "goes with --master"),
        (("--web-port", "8090"), "goes with --web"),
        (("--master", "-c", "5", "--processes", "2"), "for the hosts that join"),
        (("--host", "http://a", "--host", "http://a"), "different URLs"),
        (("--source-addresses", "10.0.0.0/40"), "10.0.0.0/40"),
    ],
)
def test_what_makes_no_sense_is_one_line(
    options: tuple[str, ...], wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        arguments.main([*options])
    assert ended.value.code == 2
    assert wanted in capsys.readouterr().err.splitlines()[-1]


def test_source_addresses_of_the_environment_are_checked_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARKED_SOURCE", "10.0.0.0/40")
    with pytest.raises(SystemExit) as ended:
        arguments.main(["-c", "1"])
    assert ended.value.code == 2
    assert "PARKED_SOURCE: '10.0.0.0/40'" in capsys.readouterr().err.splitlines()[-1]


def test_every_option_belongs_to_who_joins_or_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """Also those that are still to come."""
    made = arguments.parser()
    for action in made._actions:
        chosen, chosen.of_locust = made.parse_known_args(["--join", "a"])  # type: ignore[misc]
        if not hasattr(chosen, action.dest) or action.dest in arguments.OF_WHO_JOINS:
            continue
        setattr(chosen, action.dest, "other than the default")
        with pytest.raises(SystemExit):
            arguments._settle(made, chosen)
        assert "is for the master to say" in capsys.readouterr().err.splitlines()[-1]
