"""Copies of what another process has open: here our own sockets."""

import os
import socket
from pathlib import Path

import pytest

from retinue.host.errors import HostError
from retinue.host.open_files import socket_towards


def test_a_socket_is_found_by_whom_it_is_connected_to_and_set_by_its_copy(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as other:
        listener.bind(str(path))
        listener.listen()
        other.bind(str(tmp_path / "other"))
        with socket.socket(socket.AF_UNIX) as connected, socket.socket(socket.AF_INET, socket.SOCK_DGRAM):
            connected.connect(str(path))
            with socket_towards(os.getpid(), path) as copy:
                assert copy.fileno() != connected.fileno()
                copy.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
                assert connected.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * 8192
        with pytest.raises(HostError, match="is not connected to"):
            socket_towards(os.getpid(), path)


def test_a_process_that_has_ended_is_said() -> None:
    with pytest.raises(HostError, match="cannot be looked at"):
        socket_towards(1 << 22, Path("/nowhere"))
