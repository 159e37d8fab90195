from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from packaging.version import Version

from tests.support import CHECKOUT

NO_HOST = "sends HTTP/1.1 without Host, which a server must refuse (RFC 9112, 3.2)"
BOTH_LENGTHS = "sends Transfer-Encoding beside Content-Length, which is refused (RFC 9112, 6.3)"

HALF_AN_UPGRADE = "wants an upgrade that Upgrade or Connection: upgrade alone asks for (RFC 9110, 7.8)"

#: What passes with the stock class and not with ours, and why.
EXCEPTIONS = {
    "ChunkedInputTests.test_chunked_readline": BOTH_LENGTHS,
    "ChunkedInputTests.test_short_read_with_content_length": BOTH_LENGTHS,
    "ChunkedInputTests.test_short_read_with_zero_content_length": BOTH_LENGTHS,
    "ChunkedInputTests.test_close_before_finished": NO_HOST,
    "ChunkedInputTests.test_dirt": NO_HOST,
    "ChunkedInputTests.test_short_read": NO_HOST,
    "TestNonLatin1HeaderFromApplication.test": NO_HOST,
    "TestNonLatin1UnicodeHeaderFromApplication.test": NO_HOST,
    "TestConnectionUpgrades.test_connection_upgrade": HALF_AN_UPGRADE,
    "TestConnectionUpgrades.test_upgrade_websocket": HALF_AN_UPGRADE,
    "TestContentLength304.test_err": "a 304 may have the length of what it does not send (RFC 9110, 15.4.5)",
    "TestMultiLineHeader.test_multiline_116": "sends a folded field line, which is refused (RFC 9112, 5.2)",
}
#: The same, of the suites of older versions.
OLD_EXCEPTIONS = {
    "Expect100ContinueTests.test_continue": "until 25.4 it sends a request in place of its content",
}


def outcomes(which: str) -> dict[str, str]:
    run = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("gevent_suite.py")), which],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    result: dict[str, str] = json.loads(run.stdout.splitlines()[0])
    return result


def test_gevents_own_suite_fails_nothing_with_our_server_that_stock_passes() -> None:
    stock, ours = outcomes("stock"), outcomes("ours")
    if not stock:
        pytest.fail("gevent.tests holds no tests for pywsgi")
    passed = {name for name, outcome in stock.items() if outcome == "ok"}
    assert len(passed) > 100
    old = set(OLD_EXCEPTIONS) if Version(gevent.__version__) < Version("25.4") else set()
    assert {name for name in passed if ours.get(name) != "ok"} == set(EXCEPTIONS) | old
