"""What a client of NBD is owed, in whatever pieces both say what they say."""

import random

import pytest

from retinue.hypervisor.nbd_questions import NbdQuestions
from unit.hypervisor.test_disk_channel import FLAGS, WRITE, request, simple

READ, DISCONNECT, FLUSH = 0, 2, 3
GREETING = b"NBDMAGICIHAVEOPT" + bytes(2)
GO, STRUCTURED = 7, 8


def option(number: int, data: bytes = b"") -> bytes:
    return b"IHAVEOPT" + number.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data


def option_reply(number: int, kind: int, data: bytes = b"") -> bytes:
    head = (0x3E889045565A9).to_bytes(8, "big") + number.to_bytes(4, "big")
    return head + kind.to_bytes(4, "big") + len(data).to_bytes(4, "big") + data


def chunk(cookie: bytes, data: bytes, *, done: bool) -> bytes:
    head = (0x668E33EF).to_bytes(4, "big") + int(done).to_bytes(2, "big") + (1).to_bytes(2, "big")
    return head + cookie + len(data).to_bytes(4, "big") + data


def error(cookie: bytes) -> bytes:
    return (0x67446698).to_bytes(4, "big") + (5).to_bytes(4, "big") + cookie


ONE, TWO = b"cookie 1", b"cookie 2"
DIALOGUE = [
    ("answered", GREETING, False),
    ("asked", FLAGS + option(STRUCTURED), True),
    ("answered", option_reply(STRUCTURED, 1), False),
    ("asked", option(GO, b"disk1"), True),
    ("answered", option_reply(GO, 3, bytes(12)), True),
    ("answered", option_reply(GO, 1), False),
    ("asked", request(WRITE, ONE, 5000) + bytes(5000), True),
    ("asked", request(FLUSH, TWO, 0), True),
    ("answered", simple(TWO), True),
    ("answered", simple(ONE), False),
    ("asked", request(READ, ONE, 3000), True),
    ("answered", chunk(ONE, bytes(1000), done=False), True),
    ("answered", chunk(ONE, bytes(2000), done=True), False),
    ("asked", request(READ, TWO, 100), True),
    ("answered", simple(TWO, bytes(100)), False),
    ("asked", request(READ, TWO, 100), True),
    ("answered", error(TWO), False),
    ("asked", option(GO, b"no disk"), True),
    ("answered", option_reply(GO, 1 << 31 | 6, b"unknown"), False),
    ("asked", request(DISCONNECT, ONE, 0), False),
]


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_is_owed_until_its_last_byte_is_here(seed: int) -> None:
    rng = random.Random(seed)
    questions = NbdQuestions()
    for who, said, owed in DIALOGUE:
        before = questions.is_owed
        while said:
            if who == "answered" and before and not owed:
                assert questions.is_owed, "some of it is to come"
            piece = rng.choice((1, 3, 7, len(said)))
            getattr(questions, who)(said[:piece])
            said = said[piece:]
        assert questions.is_owed is owed, (who, said)
    assert questions.followed


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (b"question", b""),
        (FLAGS + option(1), b""),
        (FLAGS + b"IHAVENOT" + bytes(8), b""),
        (FLAGS, b"answer"),
        (FLAGS, (0x3E889045565A9).to_bytes(8, "big")[:4] + bytes(16)),
    ],
)
def test_who_speaks_otherwise_is_not_followed(client: bytes, server: bytes) -> None:
    questions = NbdQuestions()
    questions.asked(client)
    questions.answered(server)
    assert not questions.followed
    questions.asked(b"more")
