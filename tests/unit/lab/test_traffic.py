"""The measurer judges every run of the laboratory, so its own judgement is tested on runs we make up."""

import asyncio
import itertools
import json
import os
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue_lab.measure.capture import WatchedPort, noise, sniff_argv
from retinue_lab.measure.figures import Arrival, Record, StreamMessage, analyse, sort_out
from retinue_lab.measure.sniff import KIND_OF_PACKET, Instruction, filter_for
from retinue_lab.measure.traffic import HEADER, MAGIC, Run
from support.lab.losses import lost_spans, overtaken, overtaken_requests

MS = 1_000_000
START = 1_700_000_000 * 1000 * MS


def record(sequences: list[int], *, sent: int = 10, delay: int = 2) -> Record:
    """One datagram a millisecond; replies to these sequence numbers, in this order, a millisecond apart."""
    times = [START + n * MS for n in range(sent)]
    arrivals = [Arrival(s, START + (n + delay) * MS, n) for n, s in enumerate(sequences)]
    return Record(1000, times, arrivals)


def test_all_well() -> None:
    traffic = analyse(record(list(range(10))))
    assert (traffic.sent, traffic.received, traffic.lost) == (10, 10, 0)
    assert (traffic.duplicated, traffic.reordered) == (0, 0)
    assert traffic.longest_gap_ms == 1
    assert traffic.longest_answer_ms == 2
    assert traffic.achieved_pps == pytest.approx(1000)
    assert traffic.tcp_survived is None


def test_the_lost_are_counted_and_the_gap_is_found() -> None:
    run = record([0, 1, 2, 8, 9])
    shifted = [a if a.sequence < 8 else a._replace(at=a.at + 5 * MS) for a in run.arrivals]
    run = replace(run, arrivals=shifted)
    traffic = analyse(run)
    assert (traffic.lost, traffic.lost_requests) == (5, 5)
    assert traffic.longest_gap_ms == 6
    assert lost_spans(run) == [(START / 1e9 + 0.003, START / 1e9 + 0.007, 5)]


def test_a_lost_reply_is_told_from_a_lost_request() -> None:
    run = record([0, 1, 2])
    # The guest counted five before the one it answered last: two of its replies are missing.
    run = replace(run, arrivals=[*run.arrivals, Arrival(9, START + 12 * MS, 5)])
    traffic = analyse(run)
    assert (traffic.lost, traffic.lost_requests) == (6, 4)


def test_a_second_reply_is_a_duplicate_and_nothing_else() -> None:
    traffic = analyse(record([0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0]))
    assert (traffic.duplicated, traffic.reordered, traffic.lost) == (2, 0, 0)


def test_a_late_reply_is_reordered() -> None:
    traffic = analyse(record([0, 2, 3, 1, 4, 5, 6, 7, 9, 8]))
    assert (traffic.duplicated, traffic.reordered, traffic.lost) == (0, 2, 0)


def test_a_late_request_is_told_from_a_late_reply() -> None:
    """The guest got 1 after 3, and its answer to 8 came after that to 9."""
    run = record([0, 2, 3, 1, 4, 5, 6, 7, 9, 8])
    run = replace(
        run, arrivals=[*run.arrivals[:8], Arrival(9, START + 10 * MS, 9), Arrival(8, START + 11 * MS, 8)]
    )
    traffic = analyse(run)
    assert (traffic.reordered, traffic.reordered_requests) == (2, 1)
    assert overtaken(run) == [START / 1e9 + 0.001, START / 1e9 + 0.008]
    assert overtaken_requests(run) == {START / 1e9 + 0.001}


def test_lost_after_counts_those_sent_later_only() -> None:
    run = record([0, 1, 3, 4, 6, 7, 8])
    assert run.lost_after(0) == 3
    assert run.lost_after(START / 1e9 + 0.0025) == 2
    assert run.lost_after(START / 1e9 + 0.0095) == 0


def test_the_stream_survives_when_every_message_is_answered() -> None:
    good = [StreamMessage(START, START + MS), StreamMessage(START + 20 * MS, START + 95 * MS)]
    traffic = analyse(replace(record([0]), messages=good))
    assert (traffic.tcp_survived, traffic.tcp_longest_stall_ms, traffic.tcp_messages) == (True, 75, 2)
    assert analyse(replace(record([0]), messages=[*good, StreamMessage(START, 0)])).tcp_survived is False
    broken = analyse(replace(record([0]), messages=good, tcp_broken="reset"))
    assert (broken.tcp_survived, broken.tcp_problem) == (False, "reset")
    assert analyse(replace(record([0]), tcp_broken="rejected")).tcp_survived is False


def test_nothing_at_all_gives_zeros() -> None:
    traffic = analyse(Record(1000, [], []))
    assert (traffic.sent, traffic.lost, traffic.longest_gap_ms, traffic.achieved_pps) == (0, 0, 0, 0)


@given(st.lists(st.integers(0, 30), max_size=80))
def test_the_figures_add_up_whatever_arrives(sequences: list[int]) -> None:
    run = record(sequences, sent=31)
    traffic = analyse(run)
    assert traffic.received + traffic.lost == traffic.sent == 31
    assert traffic.received + traffic.duplicated == len(sequences)
    assert sum(count for _, _, count in lost_spans(run)) == traffic.lost == run.lost_after(0)
    firsts = list(dict.fromkeys(sequences))
    assert (traffic.reordered == 0) == all(a < b for a, b in itertools.pairwise(firsts))
    assert len(overtaken(run)) == traffic.reordered
    assert len(overtaken_requests(run)) == traffic.reordered_requests
    assert 0 <= traffic.lost_requests <= traffic.lost


@given(st.lists(st.integers(0, 9), max_size=20), st.text())
def test_a_saved_record_is_read_back_as_it_was(sequences: list[int], problem: str) -> None:
    import tempfile

    run = replace(record(sequences), messages=[StreamMessage(1, 2)], tcp_broken=problem)
    with tempfile.TemporaryDirectory() as folder:
        run.save(Path(folder) / "r")
        assert Record.load(Path(folder) / "r") == run


# ---- the measurer against a small echo server with faults ----


class EchoServer:
    """Answers on loopback like the guest. Loses the datagrams of `lose`, answers those of `double` twice."""

    def __init__(self, address: str, lose: set[int], double: set[int]) -> None:
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.tcp = socket.socket()
        self.udp.bind((address, 7))
        self.tcp.bind((address, 7))
        self.tcp.listen()
        self._faults = (lose, double)
        self._over = threading.Event()
        self._threads = [threading.Thread(target=t, daemon=True) for t in (self._datagrams, self._stream)]
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        self.udp.close()
        self.tcp.close()

    def _datagrams(self) -> None:
        lose, double = self._faults
        received = 0
        self.udp.settimeout(0.05)
        while not self._over.is_set():
            try:
                data, peer = self.udp.recvfrom(2048)
            except TimeoutError:
                continue
            magic, run, sequence, _ = HEADER.unpack_from(data)
            assert magic == MAGIC
            if sequence in lose:
                continue
            answer = HEADER.pack(magic, run, sequence, received) + data[HEADER.size :]
            received += 1
            for _ in range(2 if sequence in double else 1):
                self.udp.sendto(answer, peer)

    def _stream(self) -> None:
        connection, _ = self.tcp.accept()
        with connection:
            while data := connection.recv(4096):
                connection.sendall(data)


@pytest.fixture
def faulty_server() -> Iterator[str]:
    # The port is always the same; the address is this process's own.
    address = str(IPv4Address("127.64.0.0") + os.getpid())
    try:
        server = EchoServer(address, lose={3, 4}, double={6})
    except PermissionError:
        pytest.skip("port 7 needs root")
    yield address
    server.close()


def test_a_run_against_a_server_with_faults_finds_them(faulty_server: str) -> None:
    run = Run(faulty_server, pps=100, seconds=1.0)
    result = run.run()
    traffic = analyse(result)
    assert (traffic.sent, traffic.lost, traffic.lost_requests, traffic.duplicated) == (100, 2, 2, 1)
    assert traffic.tcp_survived
    assert traffic.tcp_messages >= 5
    assert run.flowing.is_set()
    # The kernel's time stamps are of the same clock as ours.
    assert all(0 <= a.at - result.sent[a.sequence] < 60_000 * MS for a in result.arrivals)


async def test_the_program_says_when_traffic_flows_and_stops_when_told(
    faulty_server: str, tmp_path: Path
) -> None:
    argv = [
        "-m",
        "retinue_lab.measure.traffic",
        "udp",
        "--to",
        faulty_server,
        "--pps",
        "200",
        "--seconds",
        "600",
    ]
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *argv,
        *("--json", "--save", str(tmp_path / "record")),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin and process.stdout
    async with asyncio.timeout(60):
        flowing = json.loads(await process.stdout.readline())
        assert flowing["event"] == "flowing"
        output, _ = await process.communicate(b"stop\n")
    result = json.loads(output)
    assert result["event"] == "result"
    assert 0 < result["sent"] < 120_000
    saved = Record.load(tmp_path / "record")
    assert len(saved.sent) == result["sent"]
    assert saved.arrivals[0].at / 1e9 == flowing["at"]


# ---- silent ports ----

OWN = "02:00:00:00:00:01"


def frame(destination: str, ethertype: int = 0x0800) -> bytes:
    address = bytes.fromhex(destination.replace(":", ""))
    return address + bytes.fromhex("020000000002") + ethertype.to_bytes(2, "big") + bytes(46)


def test_only_frames_for_the_port_itself_are_silence() -> None:
    frames = [
        frame(OWN),
        frame("ff:ff:ff:ff:ff:ff", 0x0806),
        frame("02:00:00:00:00:09"),
        frame("33:33:00:00:00:01"),
    ]
    found = noise([*frames, frames[1]], frozenset({OWN}))
    assert found.count == 4
    assert found.kinds["02:00:00:00:00:02 > ff:ff:ff:ff:ff:ff ARP"] == 2
    assert str(noise([frame(OWN)], frozenset({OWN}))) == "silence"


def test_the_watcher_is_told_to_leave_out_what_is_expected() -> None:
    assert sniff_argv(WatchedPort("server1", "eth0", frozenset({OWN})))[-4:] == ["eth0", "in", "128", OWN]
    assert sniff_argv(WatchedPort("server1", "tap0", direction="out"))[-3:] == ["tap0", "out", "128"]


def passes(program: Sequence[Instruction], frame: bytes, *, outgoing: bool) -> bool:
    """What the kernel's packet filter decides: the few instructions of it that are used, executed."""
    value = at = 0
    while True:
        code, if_true, if_false, operand = program[at]
        at += 1
        match code:
            case 0x20 | 0x28:
                value = int.from_bytes(frame[operand : operand + (4 if code == 0x20 else 2)], "big")
            case 0x30:
                assert operand == KIND_OF_PACKET
                value = 4 if outgoing else 0
            case 0x15:
                at += if_true if value == operand else if_false
            case 0x06:
                return operand > 0
            case _:
                raise AssertionError(f"instruction {code:#x}")


@pytest.mark.parametrize("direction", ["in", "out", "inout"])
@pytest.mark.parametrize("outgoing", [False, True])
@pytest.mark.parametrize("left_out", [[], [OWN], [OWN, "02:00:00:00:00:09"]])
@pytest.mark.parametrize(
    "dst", [OWN, "02:00:00:00:00:09", "03" + OWN[2:], OWN[:-2] + "ff", "ff:ff:ff:ff:ff:ff"]
)
def test_the_kernel_filters_by_direction_and_destination(
    direction: str, outgoing: bool, left_out: list[str], dst: str
) -> None:
    wanted = direction == "inout" or (direction == "out") == outgoing
    found = passes(filter_for(direction, left_out), frame(dst), outgoing=outgoing)
    assert found == (wanted and dst not in left_out)


@pytest.mark.parametrize(
    ("numbers", "first", "duplicated", "reordered"),
    [
        ([], [], 0, 0),
        ([0, 1, 2], [0, 1, 2], 0, 0),
        ([0, 2, 1, 3], [0, 2, 1, 3], 0, 1),
        ([3, 0, 1], [3, 0, 1], 0, 2),
        ([0, 1, 0, 1, 1], [0, 1], 3, 0),
        ([1, 0, 1, 0], [1, 0], 2, 1),
    ],
)
def test_of_each_number_the_first_arrival_counts(
    numbers: list[int], first: list[int], duplicated: int, reordered: int
) -> None:
    found, again, late = sort_out((number, at) for at, number in enumerate(numbers))
    assert list(found) == first
    assert all(numbers.index(number) == at for number, at in found.items())
    assert (again, late) == (duplicated, reordered)
