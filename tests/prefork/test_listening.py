from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from parked.prefork import listening
from parked.prefork.listening import ListenError, default_backlog, listen
from parked.shared.addresses import Address

ANY = Address("127.0.0.1", 0)


def close(sockets: list[socket.socket]) -> None:
    for sock in sockets:
        sock.close()


def test_all_sockets_share_one_address() -> None:
    sockets = listen(ANY, 3, 0)
    assert len({sock.getsockname() for sock in sockets}) == 1
    assert all(sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT) for sock in sockets)
    close(sockets)


def test_another_of_our_own_servers_keeps_the_address_for_itself() -> None:
    sockets = listen(ANY, 2, 0)
    with pytest.raises(ListenError, match="in use"):
        listen(Address(*sockets[0].getsockname()), 2, 0)
    close(sockets)


@pytest.mark.parametrize("name", ["a..b", "a" * 64])
def test_a_name_that_no_host_can_have_is_refused(name: str) -> None:
    with pytest.raises(ListenError, match=r"cannot listen on a.*:80: this is no name of a host"):
        listen(Address(name, 80), 1, 0)


def test_a_unix_socket_whose_server_is_too_busy_to_accept_is_in_use(tmp_path: Path) -> None:
    address = Address("", 0, str(tmp_path / "socket"))
    sockets = listen(address, 1, 1)
    sockets += [socket.socket(socket.AF_UNIX) for _ in range(3)]
    for client in sockets[1:]:
        client.setblocking(False)
        client.connect_ex(address.path)
    socket.setdefaulttimeout(5)
    try:
        with pytest.raises(ListenError, match="in use"):
            listen(address, 1, 1)
    finally:
        socket.setdefaulttimeout(None)
        close(sockets)


def test_no_other_file_gets_the_permissions_of_a_unix_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose folder it is may put a link in its place, and root follows."""
    path, private = tmp_path / "socket", tmp_path / "private"
    private.touch(0o600)

    class Replaced(socket.socket):
        def bind(self, address: Any) -> None:
            super().bind(address)
            modes.append(path.stat().st_mode & 0o777)
            path.unlink()
            path.symlink_to(private)

    modes: list[int] = []
    monkeypatch.setattr(listening, "_Socket", Replaced)
    close(listen(Address("", 0, str(path)), 1, 1, 0o622))
    assert (modes, private.stat().st_mode & 0o777) == ([0o622], 0o600)


def test_an_address_can_be_used_again_at_once() -> None:
    for count in (2, 1, 2):
        sockets = listen(ANY, count, 0)
        address = Address(*sockets[0].getsockname())
        with socket.create_connection(tuple(address)[:2]):
            close(sockets)
        close(listen(address, count, 0))


def test_the_backlog_is_the_longest_that_the_kernel_takes() -> None:
    assert default_backlog() > 100


def test_host_names_are_resolved() -> None:
    close(listen(Address("localhost", 0), 1, 5))
