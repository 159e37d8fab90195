"""Responses that are read as they come."""

from __future__ import annotations

import gzip
import time

import gevent
import pytest

from parked.loadtest.client.errors import ClosedByPeer, TooLarge
from parked.loadtest.client.process import Process
from tests.loadtest.conftest import NewSession
from tests.loadtest.peers import Peer, Served, answering, response

OK = response()
HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def test_events_are_read_as_they_come_and_the_connection_is_used_again(new_session: NewSession) -> None:
    told = gevent.event.Event()

    def serve(served: Served) -> None:
        while served.read_request() is not None:
            served.send(HEAD + b"\r\n" + chunk(b"data: 1\n\nda"))
            told.wait(5)
            served.send(chunk(b"ta: 2\r\nlast") + b"0\r\n\r\n")

    with Peer(serve) as peer:
        client = new_session(peer.url)
        lines = client.iter_lines("/events")
        assert [next(lines), next(lines)] == ["data: 1", ""]
        told.set()
        assert list(lines) == ["data: 2", "last"]
        assert client.get("/events").text == "data: 1\n\ndata: 2\r\nlast"
        assert len(peer.connections) == 1


def test_a_request_that_streams_is_counted_when_its_head_has_come(
    new_session: NewSession, process: Process
) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n")
        gevent.sleep(0.3)
        served.send(b"abcdef")
        served.read_request()

    with Peer(serve) as peer:
        began = time.perf_counter()
        answer = new_session(peer.url).get("/", stream=True)
        assert time.perf_counter() - began < 0.25
        assert process.counters.requests == 1
        assert (answer.request_meta["response_length"], answer.isclosed()) == (6, False)
        assert list(answer.iter_content(4)) == ["abcd", "ef"]
        assert answer.isclosed()


def test_the_rest_is_there_as_content_and_its_coding_undone(new_session: NewSession) -> None:
    body = gzip.compress(b"hello" * 100)
    coded = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with Peer(answering(coded)) as peer:
        client = new_session(peer.url)
        assert client.get("/", stream=True).content == b"hello" * 100
        assert client.get("/", stream=True).read(7) == b"hellohe"
        assert client.get("/").content == b"hello" * 100
        assert len(peer.connections) == 1


def test_what_is_not_read_is_given_up_with_its_connection(new_session: NewSession, process: Process) -> None:
    def serve(served: Served) -> None:
        while served.read_request() is not None:
            served.send(HEAD + b"\r\n" + chunk(b"x"))

    with Peer(serve) as peer:
        client = new_session(peer.url)
        with client.get("/", stream=True) as answer:
            assert next(answer.iter_content()) == "x"
        assert not client.connected
        client.get("/", stream=True)
        client.get("/", stream=True)
        assert len(peer.connections) == 3
        assert process.counters.connections == 1


def test_a_stream_that_breaks_off_is_the_requests_failure(new_session: NewSession, process: Process) -> None:
    def serve(served: Served) -> None:
        served.read_request()
        served.send(HEAD + b"\r\n" + chunk(b"one\n"))

    with Peer(serve) as peer:
        client = new_session(peer.url)
        with pytest.raises(ClosedByPeer), client.get("/", stream=True, catch_response=True) as answer:
            for _ in answer.iter_lines():
                pass
        assert process.counters.failures_by_kind["closed_by_peer"] == 1
        with pytest.raises(ClosedByPeer):
            list(client.iter_lines("/"))


def test_a_stream_has_the_bound_of_any_body(new_session: NewSession) -> None:
    many = HEAD + b"\r\n" + chunk(b"x" * 600) * 2 + b"0\r\n\r\n"
    with Peer(answering(many)) as peer, pytest.raises(TooLarge):
        for _ in new_session(peer.url, max_body_bytes=1000).get("/", stream=True).iter_content():
            pass


def test_a_length_that_is_only_announced_is_no_length(new_session: NewSession) -> None:
    """Statistics add them up, and a message holds 64 bits."""
    with Peer(answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (2**64 - 1))) as peer:
        answer = new_session(peer.url, max_body_bytes=1000).get("/", stream=True)
        assert answer.ok
        assert answer.request_meta["response_length"] == 1000


def test_a_failed_status_is_told_before_the_stream_is_read(new_session: NewSession) -> None:
    with Peer(answering(response(b"no", status="503 Busy"))) as peer:
        client = new_session(peer.url)
        with pytest.raises(Exception, match="status 503"):
            next(client.iter_lines("/"))
        assert client.get("/").status_code == 503
