"""Run gevent's own pywsgi tests, in a process that they may patch: `python gevent_suite.py stock|ours`.

Prints one line of JSON: test id to "ok", "skipped" or "failed".
"""

from __future__ import annotations

import io
import json
import sys
import unittest


class Outcomes(unittest.TextTestResult):
    """Remember how each test ended; a later failure, in tearDown say, counts."""

    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802 - unittest's name
        super().startTest(test)
        outcomes[test.id().removeprefix("gevent.tests.test__pywsgi.")] = "ok"

    def _note(self, test: unittest.TestCase, outcome: str) -> None:
        outcomes[test.id().removeprefix("gevent.tests.test__pywsgi.")] = outcome

    def addFailure(self, test: unittest.TestCase, err: object) -> None:  # noqa: N802
        super().addFailure(test, err)  # type: ignore[arg-type]
        self._note(test, "failed")

    def addError(self, test: unittest.TestCase, err: object) -> None:  # noqa: N802
        super().addError(test, err)  # type: ignore[arg-type]
        self._note(test, "failed")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:  # noqa: N802
        super().addSkip(test, reason)
        self._note(test, "skipped")


outcomes: dict[str, str] = {}


def main() -> None:
    from gevent import monkey

    monkey.patch_all()
    from gevent import pywsgi

    if sys.argv[1] == "ours":
        from parked.server.handler import KeepAliveWSGIHandler
        from parked.server.server import KeepAliveWSGIServer

        pywsgi.WSGIServer = KeepAliveWSGIServer
        pywsgi.WSGIHandler = KeepAliveWSGIHandler
    from gevent.tests import test__pywsgi

    sys.stderr = log = io.StringIO()
    suite = unittest.defaultTestLoader.loadTestsFromModule(test__pywsgi)
    unittest.TextTestRunner(stream=log, resultclass=Outcomes).run(suite)  # type: ignore[arg-type]
    print(json.dumps(outcomes))
    if len(sys.argv) > 2:
        print(log.getvalue())


if __name__ == "__main__":
    main()
