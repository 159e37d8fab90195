from __future__ import annotations

import pytest

from parked.server import upstream
from parked.server.upstream import Reliance, UpstreamWarning, check


def test_the_gevent_that_is_installed_is_one_that_was_tried() -> None:
    check()  # pytest makes an error of the warning


def test_a_function_that_reads_otherwise_is_named_with_what_it_costs() -> None:
    with pytest.warns(UpstreamWarning) as said:
        check([Reliance("pywsgi.Input.read", "_do_read", "0badc0de", "reading may differ")])
    assert [str(warning.message).partition(" has ")[2] for warning in said] == [
        "another pywsgi.Input.read than parked knows: reading may differ"
    ]


def test_a_function_that_no_longer_calls_ours_is_refused_by_name() -> None:
    with pytest.raises(ImportError, match=r"gevent .*: pywsgi\.Input\.read no longer uses _read_it_all$"):
        check([Reliance("pywsgi.Input.read", "_do_read _read_it_all", "", "")])


@pytest.mark.parametrize("gone", ["pywsgi._NoSuchThing", "baseserver.BaseServer.no_such_method"])
def test_a_name_that_is_gone_is_refused_by_name(gone: str) -> None:
    with pytest.raises(ImportError, match=f"there is no gevent.{gone}$"):
        check([], [gone])
    with pytest.raises(ImportError, match=f"there is no gevent.{gone}$"):
        check([Reliance(gone, "", "", "")], [])


def test_without_sources_only_the_names_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "fingerprint", lambda code, sources: "")
    check([Reliance("pywsgi.Input.read", "_do_read", "0badc0de", "reading may differ")])
