"""Reading configuration files, and addresses as people write them."""

import re
import socket
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import pytest

from retinue import socket_addresses
from retinue.config_file import ConfigError, ConfigTable, TlsTable, read


class Part(ConfigTable, frozen=True):
    name: str
    id: str = ""


class Kind(Enum):
    EDGE = "edge"
    LEAF = "leaf"


class Whole(ConfigTable, frozen=True):
    number: int
    kind: Kind = Kind.EDGE
    word: Literal["b", "c"] = "b"
    most: Annotated[int, msgspec.Meta(le=10)] = 5
    words: list[str] = []
    part: list[Part] = []
    tls: TlsTable | None = None


TLS = '[tls]\nca = "ca.pem"\ncertificate = "/etc/own.pem"\nkey = "own.key"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "the.toml"


def test_a_file_becomes_its_tables(file: Path) -> None:
    file.write_text('number = 5\n[[part]]\nname = "one"\n')
    assert read(file, Whole) == Whole(5, part=[Part("one")])
    file.write_bytes(b"\xef\xbb\xbfnumber = 5\r\n")
    assert read(file, Whole) == Whole(5), "as editors of another system write it"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"number = ", "Invalid value"),
        (b"", "number is missing"),
        (b'number = "five"', "number: a whole number is expected, not text in quotes"),
        (b"number = 5\n[[part]]\nnam = 1", r"\[\[part\]\] number 1: there is no key nam; is name meant\?"),
        (b'number = 5\n[[part]]\nid = "b"\nname = 1', r"\[\[part\]\] b: name: text in quotes is expected"),
        (b'number = 5\n[part]\nname = "a"', r"part: a list, as in .* is expected, not a table"),
        (b'number = 5\n[part]\nname = "a"\n[[part]]\n', "is one table, and each .* one of several"),
        (b'number = 5\n[[part]]\nname = "a"\n[part]\n', r"each of which begins with \[\[part\]\]"),
        (b"number = 5\n[tls]\n[tls]\n", r"there is one table \[tls\]"),
        (b"number = five", 'text stands in quotes, as in name = "value"'),
        (b'number = 5\nkind = "Edge"', "kind: 'Edge' is none of edge, leaf"),
        (b"number = 5\nword = 5", "word: one of b, c is expected|word: .*b"),
        (b"number = 5\nmost = 11", "most: it is to be <= 10"),
        (b"number = 5\nwords = [1]", "words: number 1: text in quotes is expected, not a whole number"),
        (b"number = 5\nother = 1", "there is no key other$"),
        (b"number = \xff", "no text in UTF-8"),
    ],
)
def test_a_mistake_is_answered_with_file_and_key(file: Path, text: bytes, reason: str) -> None:
    file.write_bytes(text)
    with pytest.raises(ConfigError, match=re.escape(str(file)) + ".*" + reason):
        read(file, Whole)


def test_a_file_that_cannot_be_read_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{file} cannot be read: No such file")):
        read(file, Whole)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        read(file.parent, Whole)


def test_relative_files_are_beside_the_configuration(file: Path) -> None:
    file.write_text("number = 1\n" + TLS)
    tls = read(file, Whole).tls
    assert tls is not None
    folder = file.parent
    assert tls.beside(folder) == TlsTable(f"{folder}/ca.pem", "/etc/own.pem", f"{folder}/own.key")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1:6653", ("192.0.2.1", 6653)),
        ("[2001:db8::1]:0", ("2001:db8::1", 0)),
        ("controller.example:65535", ("controller.example", 65535)),
    ],
)
def test_an_endpoint(text: str, expected: tuple[str, int]) -> None:
    assert socket_addresses.endpoint(text) == expected


@pytest.mark.parametrize(
    "text", ["", "h", ":1", "h:", "h:x", "h:-1", "h:65536", "h:\N{SUPERSCRIPT TWO}", "h:1 "]
)
def test_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST:PORT"):
        socket_addresses.endpoint(text)


def test_the_longest_path_of_a_socket_is_the_systems(tmp_path: Path) -> None:
    longest = "/" + "x" * (socket_addresses.LONGEST_PATH - 1)
    assert socket_addresses.fits(longest) and not socket_addresses.fits(longest + "x")
    assert not socket_addresses.fits("/" + "\N{LATIN SMALL LETTER E WITH ACUTE}" * 60)  # two bytes each
    with socket.socket(socket.AF_UNIX) as wire:
        with pytest.raises(FileNotFoundError):
            wire.connect(longest)
        with pytest.raises(OSError, match="too long"):
            wire.connect(longest + "x")


def test_a_longer_path_of_a_socket_leads_through_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    fds = len(list(Path("/proc/self/fd").iterdir()))
    with socket.socket(socket.AF_UNIX) as heard, socket.socket(socket.AF_UNIX) as wire:
        with socket_addresses.short_path(folder / "a.sock") as path:
            heard.bind(path)
        heard.listen()
        with socket_addresses.short_path(folder / "a.sock") as path:
            wire.connect(path)
    assert (folder / "a.sock").is_socket()
    assert len(list(Path("/proc/self/fd").iterdir())) == fds, "the folder is closed"
    with pytest.raises(FileNotFoundError), socket_addresses.short_path(folder / "none" / "a.sock"):
        pass
    with pytest.raises(OSError, match="107 bytes at most"), socket_addresses.short_path(folder / ("y" * 120)):
        pass
    with socket_addresses.short_path(tmp_path / "a.sock") as path:
        assert path == str(tmp_path / "a.sock"), "one that fits is as it is"
