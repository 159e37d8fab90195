from __future__ import annotations

from pathlib import Path

import pytest

import parked
from parked.prefork import configuration, settings
from tests.support import run_app

KNOWN = ("bind", "idle_timeout", "workers", "reload")


def written(folder: Path, text: str) -> str:
    path = folder / "parked.toml"
    path.write_text(text)
    return str(path)


def test_values_of_all_kinds_are_read(tmp_path: Path) -> None:
    text = 'bind = [":80", "unix:/x"]\nidle-timeout = 2.5\nworkers = 3\nreload = true\n'
    found = configuration.read(written(tmp_path, text), KNOWN)
    assert found == {"bind": ":80,unix:/x", "idle_timeout": "2.5", "workers": "3", "reload": "yes"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("worker = 3", "unknown setting worker; is it workers?"),
        ("idle-timout = 3", "unknown setting idle-timout; is it idle-timeout?"),
        ("colour = 3", "unknown setting colour$"),
        ("workers = 3\nwork", "Expected '='"),
        ("idle-timeout = 1\nidle_timeout = 2", "idle_timeout is there twice"),
        ("[workers]\na = 1", "workers needs a text"),
        ("bind = [[1]]", "bind needs a text"),
    ],
)
def test_what_is_wrong_is_one_line_with_the_file(tmp_path: Path, text: str, reason: str) -> None:
    name = written(tmp_path, text)
    with pytest.raises(ValueError, match=reason) as caught:
        configuration.read(name, KNOWN)
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_one_line() -> None:
    ended = run_app("--config", "/nowhere.toml")
    assert (ended.returncode, ended.stderr) == (
        2,
        "run_server: cannot read /nowhere.toml: No such file or directory\n",
    )


def test_flags_come_before_variables_and_these_before_the_file(tmp_path: Path) -> None:
    name = written(tmp_path, "workers = 1\nbacklog = 1\nidle-timeout = 1\n")
    environment = {"PARKED_CONFIG": name, "PARKED_WORKERS": "2", "PARKED_BACKLOG": "2"}
    chosen = settings.load(["--workers", "3"], environment)
    assert (chosen.workers, chosen.backlog, chosen.idle_timeout) == (3, 2, 1)


def test_a_file_whose_name_leads_elsewhere_at_a_reload_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = written(tmp_path, "workers = 3\n")
    monkeypatch.chdir(tmp_path)
    assert settings.load(["--config", "parked.toml"], {}).workers == 3
    assert settings.load(["--config", name, "--chdir", "elsewhere"], {}).workers == 3
    with pytest.raises(SystemExit, match="2"):
        settings.load(["--config", "parked.toml", "--chdir", "elsewhere"], {})
    assert capsys.readouterr().err == "run_server: with --chdir, --config needs a whole path\n"


def test_a_wrong_value_names_its_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = written(tmp_path, "workers = 0\n")
    with pytest.raises(SystemExit, match="2"):
        settings.load(["--config", name], {})
    assert capsys.readouterr().err == f"run_server: {name}: workers '0': needs a whole number, 1 or more\n"


def test_what_is_printed_is_a_configuration_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--bind", "127.0.0.1:80", "--bind", "unix:/x", "--access-log-format", '"%(r)s"']
    with pytest.raises(SystemExit, match="0"):
        settings.load([*flags, "--print-config"], {"PARKED_BACKLOG": "5"})
    printed = capsys.readouterr().out
    assert 'bind = "127.0.0.1:80,unix:/x"  # --bind\n' in printed
    assert 'backlog = "5"  # PARKED_BACKLOG\n' in printed
    assert 'idle-timeout = "900"  # default\n' in printed
    again = settings.load(["--config", written(tmp_path, printed)], {})
    expected = settings.load([*flags, "--backlog", "5"], {})
    assert again.__dict__ | {"config": ""} == expected.__dict__


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match=r"^0$"):
        settings.load(["--version"], {})
    assert capsys.readouterr().out.split()[-1] == parked.__version__


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (("--app", "tests.apps:pid"), 0, "the configuration is fine\n"),
        (("--app", "tests.apps:nothing"), 4, "run_server: cannot import tests.apps:nothing: "),
        (
            ("--app", "nowhere:pid"),
            4,
            "run_server: cannot import nowhere:pid: ModuleNotFoundError: No module named 'nowhere'; looked",
        ),
        (("--app", "tests.apps:pid", "--certfile", "/nowhere"), 2, "run_server: cannot read /nowhere: "),
        (("--app", "tests.apps:made()"), 0, "the configuration is fine\n"),
        (("--app", "apps:pid", "--chdir", "tests"), 0, "the configuration is fine\n"),
        (("--chdir", "/nowhere"), 2, "run_server: cannot work in /nowhere: No such file or directory\n"),
        (("--app", "tests.apps:unmakeable()"), 4, "run_server: cannot import tests.apps:unmakeable(): "),
    ],
)
def test_a_configuration_is_checked_without_a_start(flags: tuple[str, ...], code: int, said: str) -> None:
    ended = run_app(*flags, "--check-config")
    assert ended.returncode == code
    assert (ended.stdout + ended.stderr).startswith(said)
    assert (ended.stdout + ended.stderr).count("\n") == 1
