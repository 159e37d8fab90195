"""What a locustfile imports: `from parked.user import KeepAliveUser`.

The first class with tasks that is derived from it installs the plug-in into Locust
(`parked.loadtest.plugin.install`); a file without one runs as if this had not been imported.
"""

from typing import Any

from parked.shared.extras import imported

with imported("parked.user", ("locust", "httptools", "psutil", "prometheus_client", "hdrh"), "loadtest"):
    from parked.loadtest.client import events, long_poll, user
    from parked.loadtest.client.errors import RequestFailure, WrongLength
    from parked.loadtest.plugin.install import install

__all__ = ["EventsUser", "KeepAliveUser", "LongPollUser", "RequestFailure", "WrongLength"]


class KeepAliveUser(user.KeepAliveUser):
    __doc__ = user.KeepAliveUser.__doc__

    abstract = True

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not cls.abstract:
            install(user.KeepAliveUser)


class LongPollUser(long_poll.LongPollUser):
    __doc__ = long_poll.LongPollUser.__doc__

    abstract = True

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not cls.abstract:
            install(user.KeepAliveUser)


class EventsUser(events.EventsUser):
    __doc__ = events.EventsUser.__doc__

    abstract = True

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if not cls.abstract:
            install(user.KeepAliveUser)
