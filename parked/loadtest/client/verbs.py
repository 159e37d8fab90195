"""The methods of HTTP as methods of a session: each is `request()` with its name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Generator

    from parked.loadtest.client.response import KeepAliveResponse


class Verbs:
    """For a session that has `request`, whose parameters all of these take too."""

    __slots__ = ()

    if TYPE_CHECKING:

        def request(self, *args: Any, **kwargs: Any) -> KeepAliveResponse: ...

    def get(self, url: str, **kwargs: Any) -> KeepAliveResponse:
        return self.request("GET", url, **kwargs)

    def head(self, url: str, **kwargs: Any) -> KeepAliveResponse:
        return self.request("HEAD", url, **kwargs)

    def options(self, url: str, **kwargs: Any) -> KeepAliveResponse:
        return self.request("OPTIONS", url, **kwargs)

    def delete(self, url: str, **kwargs: Any) -> KeepAliveResponse:
        return self.request("DELETE", url, **kwargs)

    def post(self, url: str, data: Any = None, json: Any = None, **kwargs: Any) -> KeepAliveResponse:
        return self.request("POST", url, data=data, json=json, **kwargs)

    def put(self, url: str, data: Any = None, **kwargs: Any) -> KeepAliveResponse:
        return self.request("PUT", url, data=data, **kwargs)

    def patch(self, url: str, data: Any = None, **kwargs: Any) -> KeepAliveResponse:
        return self.request("PATCH", url, data=data, **kwargs)

    def iter_lines(self, url: str, method: str = "GET", **kwargs: Any) -> Generator[str]:
        """The lines of a response as they come, as text."""
        response = self.request(method, url, stream=True, **kwargs)
        response.raise_for_status()
        yield from response.iter_lines(decode_unicode=True)
