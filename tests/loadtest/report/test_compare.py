"""Runs side by side: ratios, thresholds, and runs that do not compare."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from parked.loadtest.report import compare
from parked.loadtest.report.comparison import Run, Threshold, ratio
from tests.loadtest import browser
from tests.loadtest.runs import write_run


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def two(tmp_path: Path, **changes: Any) -> list[str]:
    """A run, and one with changes."""
    return [str(write_run(tmp_path / "old")), str(write_run(tmp_path / "new", **changes))]


def test_figures_stand_beside_each_other_with_their_ratio(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(two(tmp_path, requests_per_s=490, latency_ms=10.0)) == 0
    table = {line[:30].strip(): line[30:].split() for line in capsys.readouterr().out.splitlines()}
    assert table["requests/s in the hold"] == ["500", "490", "0.980"]
    assert float(table["latency p50, ms"][2]) == pytest.approx(2, rel=0.01)
    assert table["server memory, MiB"] == ["30", "30", "1.000"]
    assert table["failed requests"] == ["0", "0", "1.000"]
    assert table["server, bytes per connection"][0] == f"{30 * 1024 * 1024 / 1000:,.0f}"
    assert table["server, CPU us per request"][:2] == ["300", "306"]


def test_the_page_has_the_table_and_a_line_a_run(tmp_path: Path) -> None:
    assert compare.main([*two(tmp_path, requests_per_s=490), "--page", str(tmp_path / "it.html")]) == 0
    text = (tmp_path / "it.html").read_text()
    assert "B against A: requests/s 0.98 x" in text
    assert "<td class='number'>0.980</td>" in text
    assert '"name":"A old"' in text
    assert '"name":"B new"' in text


def test_from_nothing_to_something_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(two(tmp_path, failures={"timeout": 3})) == 0
    told = capsys.readouterr().out
    assert "from 0" in told
    assert "B new failed: 3 failed requests (3 x timeout)" in told


@pytest.mark.parametrize(
    ("threshold", "code"),
    [
        ("hold_rps<0.95", 1),
        ("hold_rps<0.9", 0),
        ("hold_rps <= 0.94x", 1),
        ("latency_ms.p99 > 1.2x", 0),
        ("server_us_a_request>=1.06", 1),
        ("failures>1", 0),
    ],
)
def test_a_threshold_is_on_the_ratio_to_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], threshold: str, code: int
) -> None:
    assert compare.main([*two(tmp_path, requests_per_s=470), "--fail-if", threshold]) == code
    told = capsys.readouterr().out
    assert ("crossed:" in told) == bool(code)
    if "hold_rps" in threshold and code:
        assert f"crossed: B new: hold_rps is 0.940 x A's, 470 to 500 (--fail-if '{threshold}')" in told


def test_failures_where_there_were_none_cross_any_threshold_above(tmp_path: Path) -> None:
    assert compare.main([*two(tmp_path, failures={"timeout": 1}), "--fail-if", "failures>2"]) == 1


def test_a_ratio_that_is_not_known_does_not_pass(tmp_path: Path) -> None:
    runs = [
        Run.read("A", write_run(tmp_path / "a")),
        Run.read("B", write_run(tmp_path / "b", hold_s=0, open_=4)),
    ]
    assert ratio(runs[1], runs[0], "latency_ms.p99") is None
    assert "not known" in Threshold.parse("latency_ms.p99>2").crossed(runs[1], runs[0])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"think_s": [2.0, 3.0]}, "think time, s: A old 1-3, B new 2-3"),
        ({"length": [1, 10240]}, "length, characters: A old 1024-10240, B new 1-10240"),
        ({"length": None}, "length, characters: A old 1024-10240, B new unknown"),
    ],
)
def test_another_workload_is_refused_unless_forced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], told: str
) -> None:
    runs = two(tmp_path, **changes)
    assert compare.main(runs) == 3
    assert f"not comparable: {told}" in capsys.readouterr().err
    assert compare.main([*runs, "--force"]) == 0
    assert f"differs: {told}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"machine": {"cpu_count": 64}}, "cpu count: A old 2, B new 64"),
        (
            {"machine": {"cpu_count": 2, "memory_total_bytes": 3 << 30}},
            "memory total: A old 4.0 GiB, B new 3.0 GiB",
        ),
        ({"machine": {"cpu_count": 2, "kernel": "7.0"}}, "kernel: A old 6.1, B new 7.0"),
        ({"host": "https://127.0.0.1:8000"}, "target: A old http, server here, B new https, server here"),
        ({"server_is_local": False, "sockets": 1001}, "B new http, server elsewhere"),
        ({"versions": {"python": "3.13.1"}}, "python: A old 3.11.2, B new 3.13.1"),
        ({"hold_s": 20, "asked_s": 20}, "hold, s: A old 10.0, B new 20.0"),
        ({"target": 900, "open_": 900}, "connections: A old 1000, B new 900"),
    ],
)
def test_what_may_explain_a_ratio_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], told: str
) -> None:
    assert compare.main(two(tmp_path, **changes)) == 0
    assert told in capsys.readouterr().out


def test_two_runs_of_the_same_differ_in_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(two(tmp_path)) == 0
    assert "differs" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ("hold_rps", "latency_ms.p99 > 2x"),
        ("hold_rps<fast", "latency_ms.p99 > 2x"),
        ("no_such_figure<1", "no run has a figure"),
        ("p99>2x", "did you mean latency_ms.p99?"),
    ],
)
def test_a_threshold_that_means_nothing_is_exit_code_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str, told: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        compare.main([*two(tmp_path), "--fail-if", wrong])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_one_run_or_none_is_exit_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = two(tmp_path)
    with pytest.raises(SystemExit) as ended:
        compare.main(runs[:1])
    assert ended.value.code == 2
    capsys.readouterr()
    assert compare.main([runs[0], str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert compare.main([*runs, "--page", str(tmp_path / "nowhere" / "it.html")]) == 2


@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing() or "there is one")
def test_the_page_draws_in_a_browser(tmp_path: Path) -> None:
    compare.main(two(tmp_path, requests_per_s=480))
    (tmp_path / "profile").mkdir()
    with browser.browser(tmp_path / "profile") as window:
        window.resize(390)
        window.open(tmp_path / "compare.html")
        deadline = time.monotonic() + browser.PATIENCE_S
        while window.run("return window.charts?.length") != 8:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert window.run("return document.documentElement.scrollWidth") <= 390
        assert window.console() == []
