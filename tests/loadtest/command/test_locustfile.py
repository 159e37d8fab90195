from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from parked.loadtest.command import locustfile
from tests.loadtest.command.test_arguments import settings

if TYPE_CHECKING:
    from pathlib import Path


def of(tmp_path: Path, text: str) -> Path:
    (tmp_path / "mine.py").write_text(text)
    return tmp_path / "mine.py"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("class User:\n    host = 'http://shop:8080/'\n", ["http://shop:8080"]),
        ("class User:\n    host: str = 'https://shop'\n    wait = 1\n", ["https://shop"]),
        (
            "if True:\n    class A:\n        host = 'http://a'\nclass B:\n    host = 'http://a'\n",
            ["http://a"],
        ),
        ("class A:\n    host = 'http://a'\nclass B:\n    host = 'http://b'\n", ["http://a", "http://b"]),
        ("host = 'http://no.class'\nclass A:\n    host = None\n    host_name = 'http://x'\n", []),
        ("class Broken(:\n", []),
        ("", []),
    ],
)
def test_the_hosts_of_its_classes_are_found(tmp_path: Path, text: str, found: list[str]) -> None:
    assert locustfile.hosts(of(tmp_path, text)) == found


def test_a_run_without_host_goes_where_the_locustfile_says_and_starts_no_server_there(tmp_path: Path) -> None:
    file = str(of(tmp_path, "class User:\n    host = 'http://127.0.0.1:8080'\n"))
    asked = settings("-c", "1", "-f", file)
    assert (asked.host, asked.may_start_server) == ("http://127.0.0.1:8080", False)
    assert settings("-c", "1", "-f", file, "--host", "http://other").host == "http://other"
    none = settings("-c", "1", "-f", str(of(tmp_path, "class User: pass\n")))
    assert (none.host, none.may_start_server) == ("http://127.0.0.1:8000", True)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "import os\nclass A:\n    host = os.environ['HOST']\n",
            "computes a host in line 3: say it with --host",
        ),
        (
            "class A:\n    host = 'http://a'\nclass B:\n    host = 'http://b'\n",
            "several hosts (http://a, http://b)",
        ),
        (None, "cannot read"),
    ],
)
def test_a_host_that_is_not_certain_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, told: str
) -> None:
    file = tmp_path / "none.py" if text is None else of(tmp_path, text)
    with pytest.raises(SystemExit) as ended:
        settings("-c", "1", "-f", str(file))
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


def test_users_that_are_not_ours_are_told_what_to_import(tmp_path: Path) -> None:
    said = "__main__.py: error: unrecognized arguments: --think 10:90 --length 1024:10240 --hold 5s"
    told = locustfile.explained(tmp_path / "mine.py", said)
    assert told.startswith("mine.py has no KeepAliveUser")
    assert "from parked.user import KeepAliveUser as FastHttpUser" in told
    assert (
        locustfile.explained(tmp_path / "mine.py", "SyntaxError: invalid syntax")
        == "SyntaxError: invalid syntax"
    )
