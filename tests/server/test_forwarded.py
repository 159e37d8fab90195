from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest

from parked.server.forwarded import MAX_HOPS, Forwarded
from parked.server.request import BadRequestError
from tests.support import Client, eventually, serving

PROXY = ("10.0.0.1", 40000)
TRUSTED = "10.0.0.0/8"
CLIENT = "192.0.2.7"


def applied(fields: dict[str, str], peer: Any = PROXY, trusted: str = TRUSTED, **more: Any) -> dict[str, Any]:
    """What becomes of an environ with these fields, and `client`."""
    environ = {
        "HTTP_HOST": "inner",
        "REMOTE_ADDR": peer[0],
        "REMOTE_PORT": str(peer[1]),
        "SERVER_NAME": "inner",
        "SERVER_PORT": "8000",
        "wsgi.url_scheme": "http",
        **{f"HTTP_{name.upper().replace('-', '_')}": value for name, value in fields.items()},
        **more,
    }
    client = Forwarded(trusted).apply(environ, peer)
    return {**environ, "client": client}


@pytest.mark.parametrize(
    ("chain", "client"),
    [
        (CLIENT, CLIENT),
        (f"203.0.113.66, {CLIENT}", CLIENT),  # the left one is the client's own word
        (f"127.0.0.1,{CLIENT}", CLIENT),
        (f"{CLIENT}, 10.0.0.2", CLIENT),  # two proxies of ours
        (f"203.0.113.66, {CLIENT}, 10.0.0.2,10.0.0.3", CLIENT),
        ("10.0.0.9, 10.0.0.2", "10.0.0.9"),  # nobody but ours: the first of them
        (f" ,, {CLIENT} ,", CLIENT),
        (f"{CLIENT}:4711", CLIENT),
        ("2001:DB8:0::1", "2001:db8::1"),
        ("[2001:db8::1]:4711", "2001:db8::1"),
        (f"{CLIENT}:_hidden", CLIENT),
        (f"::ffff:{CLIENT}", CLIENT),
        ("unknown", PROXY[0]),  # then the last that is known
        ("<script>", PROXY[0]),
        ("_hidden, 10.0.0.2", "10.0.0.2"),
        ("", PROXY[0]),
    ],
)
def test_the_rightmost_untrusted_address_is_the_client(chain: str, client: str) -> None:
    environ = applied({"X-Forwarded-For": chain})
    assert environ["REMOTE_ADDR"] == environ["client"][0] == client
    assert environ["HTTP_X_FORWARDED_FOR"] == chain


def test_the_port_of_the_proxy_is_not_said_to_be_the_clients() -> None:
    assert "REMOTE_PORT" not in applied({"X-Forwarded-For": CLIENT})
    assert applied({"X-Forwarded-For": f"{CLIENT}:4711"})["REMOTE_PORT"] == "4711"
    assert applied({"X-Forwarded-Proto": "https"})["REMOTE_PORT"] == "40000"


@pytest.mark.parametrize(
    ("field", "client", "scheme", "host"),
    [
        (f"for={CLIENT};proto=https;host=example.org", CLIENT, "https", "example.org"),
        (f'For="{CLIENT}:4711" ; PROTO=HTTPS;by=_us', CLIENT, "https", "inner"),
        ('for="[2001:db8::1]:80"', "2001:db8::1", "http", "inner"),
        ("for=[2001:db8::1]", "2001:db8::1", "http", "inner"),
        ('for="[2001:db8::1]:_p.1"', "2001:db8::1", "http", "inner"),
        (f"for=203.0.113.66;proto=https, for={CLIENT};proto=http", CLIENT, "http", "inner"),
        (f"for={CLIENT};proto=https;host=a, for=10.0.0.2;proto=http;host=b", CLIENT, "https", "a"),
        ('for="unknown";proto=https', PROXY[0], "https", "inner"),
        (r'for="\1\9\2.0.2.7";host="ex\ample.org"', CLIENT, "http", "example.org"),
        (f",; for={CLIENT};; ,", CLIENT, "http", "inner"),
    ],
)
def test_forwarded_is_read_as_rfc_7239_has_it(field: str, client: str, scheme: str, host: str) -> None:
    environ = applied({"Forwarded": field})
    found = environ["REMOTE_ADDR"], environ["wsgi.url_scheme"], environ["HTTP_HOST"]
    assert found == (client, scheme, host)


@pytest.mark.parametrize(
    ("fields", "scheme", "host", "name", "port"),
    [
        ({"Proto": "https"}, "https", "inner", "inner", "443"),
        ({"Proto": "wss"}, "https", "inner", "inner", "443"),
        ({"Host": "example.org"}, "http", "example.org", "example.org", "80"),
        ({"Host": "example.org", "Proto": "https"}, "https", "example.org", "example.org", "443"),
        ({"Host": "example.org:81"}, "http", "example.org:81", "example.org", "81"),
        ({"Host": "[::1]"}, "http", "[::1]", "[::1]", "80"),
        ({"Host": "[::1]:81"}, "http", "[::1]:81", "[::1]", "81"),
        ({"Host": "example.org", "Port": "81"}, "http", "example.org:81", "example.org", "81"),
        ({"Host": "a:81", "Port": "443", "Proto": "https"}, "https", "a", "a", "443"),
        ({"Port": "81"}, "http", "inner:81", "inner", "81"),
        # of a proxy that adds to some fields and replaces others
        ({"For": f"9.9.9.9,{CLIENT},10.0.0.2", "Proto": "http,https,http"}, "https", "inner", "inner", "443"),
        ({"For": f"9.9.9.9,{CLIENT}", "Host": "forged,example.org"}, "http", *["example.org"] * 2, "80"),
        ({"For": f"{CLIENT},10.0.0.2", "Proto": "https"}, "https", "inner", "inner", "443"),
    ],
)
def test_scheme_host_and_port_are_those_of_the_clients_hop(
    fields: dict[str, str], scheme: str, host: str, name: str, port: str
) -> None:
    environ = applied({f"X-Forwarded-{key}": value for key, value in fields.items()})
    found = [environ[key] for key in ("wsgi.url_scheme", "HTTP_HOST", "SERVER_NAME", "SERVER_PORT")]
    assert found == [scheme, host, name, port]


@pytest.mark.parametrize(
    "fields",
    [
        {"X-Forwarded-Proto": "ftp"},
        {"X-Forwarded-Proto": "https\x01"},
        {"X-Forwarded-Host": "a b"},
        {"X-Forwarded-Host": "user@example.org"},
        {"X-Forwarded-Host": ":80"},
        {"X-Forwarded-Port": "0"},
        {"X-Forwarded-Port": "65536"},
        {"X-Forwarded-Port": "-1"},
        {"Forwarded": 'for="192.0.2.7'},
        {"Forwarded": f'for="forged, for={CLIENT}'},  # swallows what the proxy has added
        {"Forwarded": f'for="forged, for="{CLIENT}"'},
        {"Forwarded": "for=a;for=b"},
        {"Forwarded": "for a"},
        {"Forwarded": "for=a b"},
        {"Forwarded": "proto=ftp"},
        {"Forwarded": ",".join(["for=10.0.0.2"] * (MAX_HOPS + 2))},
        {"Forwarded": "for=203.0.113.66", "X-Forwarded-For": CLIENT},
        {"Forwarded": "proto=https", "X-Forwarded-Proto": "http"},
        {"Forwarded": "host=a", "X-Forwarded-Host": "b"},
    ],
)
def test_what_is_malformed_or_contradicts_itself_is_refused(fields: dict[str, str]) -> None:
    with pytest.raises(BadRequestError):
        applied(fields)


def test_both_families_may_say_the_same() -> None:
    environ = applied(
        {
            "Forwarded": f'for="{CLIENT}:1";proto=https;host=Example.org',
            "X-Forwarded-For": CLIENT,
            "X-Forwarded-Proto": "https",
            "X-Forwarded-Host": "example.org",
        }
    )
    assert environ["client"] == (CLIENT, 0)
    assert environ["wsgi.url_scheme"] == "https"


def test_what_an_untrusted_peer_says_is_not_there() -> None:
    fields = {f"X-Forwarded-{name}": "forged" for name in ("For", "Proto", "Host", "Port")}
    peer = ("192.0.2.1", 5)
    assert applied({**fields, "Forwarded": "for=;"}, peer) == applied({}, peer)


def test_a_long_list_is_read_as_far_as_a_chain_of_proxies_goes() -> None:
    chain = ",".join(["192.0.2.1"] * 3000 + ["10.0.0.2"] * (MAX_HOPS - 1))
    assert applied({"X-Forwarded-For": chain})["REMOTE_ADDR"] == "192.0.2.1"
    ours = applied({"X-Forwarded-For": ",".join(f"10.0.0.{n % 250}" for n in range(6000))})
    assert ours["REMOTE_ADDR"] == f"10.0.0.{(6000 - MAX_HOPS) % 250}"


def test_whoever_may_connect_a_client_forges_no_address() -> None:
    """Its proxy adds the true one at the end; of those before it, only named proxies are believed."""
    environ = applied(
        {"X-Forwarded-For": f"203.0.113.66, {CLIENT}", "X-Forwarded-Proto": "ftp, https"}, trusted="*"
    )
    assert (environ["REMOTE_ADDR"], environ["wsgi.url_scheme"]) == (CLIENT, "https")
    chain = {"X-Forwarded-For": f"203.0.113.66, {CLIENT}, 10.0.0.2"}
    assert applied(chain, trusted=f"*,{TRUSTED}")["REMOTE_ADDR"] == CLIENT


def told(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
    start_response("200 OK", [])
    keys = "REMOTE_ADDR", "wsgi.url_scheme", "HTTP_HOST"
    return [" ".join(environ[key] for key in keys).encode()]


def request(**fields: str) -> bytes:
    lines = "".join(f"X-Forwarded-{name}: {value}\r\n" for name, value in fields.items())
    return f"GET / HTTP/1.1\r\nHost: inner\r\n{lines}\r\n".encode()


def test_a_served_request_and_its_line_in_the_log_are_the_clients(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    log = logging.getLogger("access")
    with serving(told, forwarded_allow_ips="127.0.0.1", log=log) as server, Client(server) as client:
        asked = request(For=CLIENT, Proto="https", Host="example.org")
        assert client.ask(asked).body == f"{CLIENT} https example.org".encode()
        assert client.ask(request()).body == b"127.0.0.1 http inner"
        eventually(lambda: len(caplog.messages) == 2)
        assert [message.split()[0] for message in caplog.messages] == [CLIENT, "127.0.0.1"]


def test_a_refused_request_gets_a_400_and_a_line_and_the_server_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = logging.getLogger("errors")
    with serving(told, forwarded_allow_ips="127.0.0.1", error_log=log) as server:
        with Client(server) as client:
            assert client.ask(request(Proto="ftp")).status == 400
            assert client.closed()
        with Client(server) as client:
            assert client.ask().status == 200
        assert server.faults == 0
    assert any("malformed forwarded scheme" in message for message in caplog.messages)


def test_without_the_option_the_fields_are_the_applications_affair() -> None:
    with serving(told) as server, Client(server) as client:
        assert client.ask(request(For=CLIENT, Proto="ftp")).body == b"127.0.0.1 http inner"
