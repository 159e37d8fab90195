from __future__ import annotations

import dataclasses
import inspect
import re

import pytest
from gevent.ssl import wrap_socket

from parked.prefork import settings
from parked.prefork.settings import Settings
from parked.server import KeepAliveWSGIServer, Limits
from tests.support import CHECKOUT

FIELDS = dataclasses.fields(Settings)


def test_a_flag_wins_over_a_variable_and_that_over_the_default() -> None:
    assert settings.load([], {}).idle_timeout == 900
    assert settings.load([], {"PARKED_IDLE_TIMEOUT": "5"}).idle_timeout == 5
    assert settings.load(["--idle-timeout", "7"], {"PARKED_IDLE_TIMEOUT": "5"}).idle_timeout == 7
    assert settings.load(["--access-log", ""], {"PARKED_ACCESS_LOG": "x"}).access_log == ""
    assert settings.load(["--workers", ""], {"PARKED_WORKERS": "2"}).workers == 2


def test_web_concurrency_sets_the_workers_unless_our_own_variable_does() -> None:
    assert settings.load([], {"WEB_CONCURRENCY": "3"}).workers == 3
    assert settings.load([], {"WEB_CONCURRENCY": "3", "PARKED_WORKERS": "auto"}).workers is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--bind", "nonsense"],
        ["--bind", "::1:80"],
        ["--bind", "a:65536"],
        ["--bind", "a:-1"],
        ["--bind", "unix:"],
        ["--bind", "unix:/" + "x" * 200],
        ["--workers", "0"],
        ["--workers", "many"],
        ["--workers", "_"],
        ["--connections", "-5"],
        ["--backlog", "2147483648"],
        ["--limit-requests", "3000M"],
        ["--idle-timeout", "nan"],
        ["--idle-timeout", "-1"],
        ["--idle-timeout", "1e400"],
        ["--limit-request-line", "0"],
        ["--app", "module"],
        ["--socket-mode", "rw"],
        ["--socket-mode", "1777"],
        ["--app", "a b:c"],
        ["--idle-time", "5"],  # no abbreviations: they break when a flag is added
        ["--unknown"],
        ["extra"],
    ],
)
def test_what_makes_no_sense_ends_with_one_line_and_code_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        settings.load(arguments, {})
    assert caught.value.code == settings.EXIT_USAGE
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("--idle-timeot=5", "--idle-timeot: did you mean --idle-timeout?"),
        ("--workers=,", "--workers ',': needs a whole number such as 20000, 400k or 1M"),
        ("--zzz", "unrecognized arguments: --zzz"),
        ("--idle-timeout=soon", "--idle-timeout 'soon': needs a time, 0 or more, such as 30, 30s or 5m"),
    ],
)
def test_who_mistypes_is_told_what_was_meant(
    argument: str, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        settings.load([argument], {})
    assert capsys.readouterr().err.splitlines()[-1].endswith(f": {told}")


def test_a_bad_variable_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        settings.load([], {"WEB_CONCURRENCY": "x"})
    assert capsys.readouterr().err.count("\n") == 1


def test_help_names_every_flag_variable_and_exit_code() -> None:
    text = settings.parser().format_help()
    for field in FIELDS:
        assert settings.flag(field) in text
        assert "PARKED_" + field.name.upper() in text
    for code in (0, 2, 3, 4, 5, 6):
        assert re.search(rf"^  {code}  ", text, re.MULTILINE)


def test_the_documented_table_is_the_one_in_the_code() -> None:
    """To renew it: `python -m parked.prefork.settings`."""
    document = (CHECKOUT / "docs" / "server.md").read_text()
    assert settings.markdown_table() in document


def test_the_documented_keywords_are_the_constructors_own_with_the_defaults_of_the_flags() -> None:
    document = (CHECKOUT / "docs" / "server.md").read_text()
    table = document.partition("| flag | keyword |\n| --- | --- |\n")[2].partition("\n\n")[0]
    rows = [row.strip("| ").split(" | ") for row in table.splitlines()]
    flags = [re.findall("`--([a-z-]+)`", row[0]) for row in rows]
    names = [re.findall(r"`([a-z_]+)(?=`|=)", row[1]) for row in rows]
    defaults = {settings.flag(field)[2:]: getattr(settings.load([], {}), field.name) for field in FIELDS}
    parameters = inspect.signature(KeepAliveWSGIServer).parameters
    own = {name for name, each in parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY}
    of_tls = {*inspect.signature(wrap_socket).parameters, "ssl_context", "ssl"}
    mentioned = {name for row in names for name in row}
    assert {flag for row in flags for flag in row} <= defaults.keys()
    assert own <= mentioned <= parameters.keys() | of_tls | {"json"}
    for row, (name, *others) in zip(flags, names, strict=True):
        if name in own - {"limits", "log_format"} and not others:
            assert parameters[name].default == defaults[row[0]], name
    bounds, of_limits = next(
        (row, re.findall(r"(\w+)=[,)]", words))
        for row, (_, words) in zip(flags, rows, strict=True)
        if "Limits(" in words
    )
    assert {name: defaults[flag] for name, flag in zip(of_limits, bounds, strict=True)} == dataclasses.asdict(
        Limits()
    )
