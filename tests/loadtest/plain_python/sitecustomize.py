"""On the path of a Python that is not to find matplotlib: pictures take as long as a short run itself."""

import sys

sys.modules["matplotlib"] = None  # type: ignore[assignment]
