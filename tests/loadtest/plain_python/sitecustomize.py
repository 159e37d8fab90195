"""On the path of a Python that tests start: without what takes as long as a short run itself.

No matplotlib, so no pictures. And gevent, when Locust has it patch modules, looks for its plug-ins around
each one in all packages that there are, a hundred here.
"""

import sys

sys.modules["matplotlib"] = None  # type: ignore[assignment]
if "locust" in sys.orig_argv:
    import importlib.metadata

    importlib.metadata.entry_points = importlib.metadata.entry_points().select
