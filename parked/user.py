"""What a locustfile imports: `from parked.user import KeepAliveUser`.

Importing it installs the plug-in into Locust (`parked.loadtest.plugin.install`); no module below it does.
"""

from parked.loadtest.client.errors import RequestFailure, WrongLength
from parked.loadtest.client.user import KeepAliveUser
from parked.loadtest.plugin.install import install

__all__ = ["KeepAliveUser", "RequestFailure", "WrongLength"]

install(KeepAliveUser)
