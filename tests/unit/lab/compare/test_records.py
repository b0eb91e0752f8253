"""From records of numbered traffic to figures, each direction by itself; and the traffic program itself."""

import contextlib
import itertools
import select
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest

from retinue_lab.compare.report.records import (
    ClientRecord,
    Dot,
    GuestReport,
    Reply,
    Streamed,
    TrafficRecordError,
    around,
    client_to_vm,
    vm_to_client,
)
from retinue_lab.guest import image

MS = 1_000_000
SECOND = 1000 * MS
PPS = 100
STEP = SECOND // PPS


def requests(count: int) -> list[int]:
    return [SECOND + number * STEP for number in range(count)]


def client(
    count: int = 10, replied: list[int] | None = None, streamed: list[Streamed] | None = None
) -> ClientRecord:
    """One that sent `count` requests, and got the reply of each named one 2 ms later."""
    sent = requests(count)
    numbers = list(range(count)) if replied is None else replied
    replies = [Reply(number, sent[number] + 2 * MS, counter) for counter, number in enumerate(numbers)]
    return ClientRecord(sent, replies, streamed or [])


def report(received: int = 10, sent: int = 0, missing: list[tuple[int, int]] | None = None) -> GuestReport:
    return GuestReport(received, 0, 0, sent, 0.0, missing or [])


def test_a_record_is_read_line_by_line() -> None:
    lines = ["S 100\n", "R 0 300 0\n", "V 7 400 55\n", "S 200\n"]
    found = ClientRecord.parse(lines)
    assert found == ClientRecord([100, 200], [Reply(0, 300, 0)], [Streamed(7, 400, 55)])


@pytest.mark.parametrize("line", ["", "S", "S x", "R 1 2", "V 1 2 3 4", "Q 1 2 3"])
def test_what_is_no_line_of_a_record_is_shown(line: str) -> None:
    with pytest.raises(TrafficRecordError, match="not a line"):
        ClientRecord.parse(["S 1", line])


def test_a_guests_report_is_read() -> None:
    text = "received 8\nduplicated 2\nreordered 1\nsent 40\nwidest 3000000\nmissing 3 4\n"
    assert GuestReport.parse(text) == GuestReport(8, 2, 1, 40, 3.0, [(3, 4)])
    with pytest.raises(TrafficRecordError, match="'sent'"):
        GuestReport.parse("received 8\nduplicated 2\nreordered 1\nwidest 0\n")
    with pytest.raises(TrafficRecordError, match="not a line"):
        GuestReport.parse("sh: steady: not found\n")


def test_nothing_lost() -> None:
    found = client_to_vm(PPS, client(), report(), 0.0)
    assert (found.sent, found.received, found.lost, found.answers_lost) == (10, 10, 0, 0)
    assert (found.lost_after_resume, found.sent_after_resume, found.cut_off) == (0, 0, False)
    assert found.longest_gap_ms == found.longest_send_gap_ms == 10.0


def test_a_lost_request_is_told_from_a_lost_reply() -> None:
    """Requests 3 and 4 never reached the guest, the reply to 6 went missing."""
    record = client(replied=[0, 1, 2, 5, 7, 8, 9])
    found = client_to_vm(PPS, record, report(8, missing=[(3, 4)]), 0.0)
    assert (found.lost, found.answers_lost, found.received) == (2, 1, 8)
    assert found.longest_gap_ms == 30.0


def test_requests_above_the_last_one_the_guest_saw_are_lost() -> None:
    found = client_to_vm(PPS, client(replied=[0, 1, 2]), report(4), 0.0)
    assert (found.lost, found.answers_lost) == (6, 1)


def test_what_was_lost_after_the_vm_ran_on() -> None:
    """RESUME between requests 3 and 4."""
    record = client(replied=[0, 1, 2, 5, 6, 7, 8, 9])
    found = client_to_vm(PPS, record, report(8, missing=[(3, 4)]), (requests(10)[3] + MS) / 1e9)
    assert (found.lost, found.lost_after_resume, found.sent_after_resume) == (2, 1, 6)


def test_silence_to_the_end_is_a_gap() -> None:
    record = client(200, replied=list(range(50)))
    found = client_to_vm(PPS, record, report(50), 0.0)
    assert found.cut_off
    assert found.longest_gap_ms == 1990 - (490 + 2)


def test_no_reply_at_all_is_cut_off() -> None:
    assert client_to_vm(PPS, client(replied=[]), report(0), 0.0).cut_off


def stream(*numbers: int, pause_after: int = 10**9, pause_ms: int = 0) -> list[Streamed]:
    """The guest's stream as the client hears it, when the guest stands still after one of the numbers."""
    return [
        Streamed(n, SECOND + n * STEP + (pause_ms * MS if n > pause_after else 0), n * STEP) for n in numbers
    ]


def test_the_stream_of_the_vm_is_counted_at_the_client() -> None:
    streamed = [*stream(0, 1, 3, 2, 4), *stream(4, 5, 8, 9)]
    found = vm_to_client(PPS, client(streamed=streamed), report(sent=10), 0.0)
    assert (found.sent, found.received, found.lost) == (10, 8, 2)
    assert (found.duplicated, found.reordered) == (1, 1)
    assert found.longest_gap_ms == 30.0


def test_what_the_vm_sent_after_it_ran_on() -> None:
    """It stands still for 50 ms after number 4; 4 is lost before, 5 and 6 afterwards."""
    streamed = stream(0, 1, 2, 3, 7, 8, 9, pause_after=4, pause_ms=50)
    resumed = (SECOND + 4 * STEP + 50 * MS + MS) / 1e9
    found = vm_to_client(PPS, client(streamed=streamed), report(sent=10), resumed)
    assert (found.lost, found.lost_after_resume, found.sent_after_resume) == (3, 2, 5)


def test_a_stream_that_does_not_come_back_is_lost_after_the_vm_ran_on() -> None:
    streamed = stream(*range(5))
    resumed = (SECOND + 4 * STEP + MS) / 1e9
    found = vm_to_client(PPS, client(200, streamed=streamed), report(sent=200), resumed)
    assert (found.lost, found.lost_after_resume, found.cut_off) == (195, 195, True)


def test_requests_around_the_switch() -> None:
    record = client(replied=[0, 1, 2, 4, 5, 6, 7, 8, 9])
    found = around(record, requests(10)[3] / 1e9, 10, 20)
    assert found == [Dot(-10.0, 2.0), Dot(0.0, None), Dot(10.0, 2.0), Dot(20.0, 2.0)]


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
@pytest.mark.parametrize(
    ("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")], ids=["ipv4", "ipv6"]
)
def test_the_traffic_program_both_ways(
    family: socket.AddressFamily, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On this machine's loopback: what is sent is what comes, in both directions, and both sides agree."""
    monkeypatch.setenv("RETINUE_CACHE", str(tmp_path / "cache"))
    program = image.ensure_program("steady")
    assert image.ensure_program("steady") == program
    record = tmp_path / "record"
    with socket.socket(family, socket.SOCK_DGRAM) as free:
        try:
            free.bind((address, 0))
        except OSError:
            pytest.skip("this machine's loopback has no IPv6")
        port = str(free.getsockname()[1])
    words = ["ask", address, port, "1000", "200", "500", str(record)]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen([program, "answer", address, port], stdout=pipe, text=True) as answer,
        subprocess.Popen([program, *words], stdin=pipe, stdout=pipe, text=True) as ask,
    ):
        assert ask.stdin is not None
        assert ask.stdout is not None
        assert ask.stdout.readline() == "flowing\n"
        time.sleep(0.5)  # Some traffic; how much does not matter.
        ask.stdin.write("stop\n")
        ask.stdin.flush()
        assert ask.stdout.readline() == "stopped\n"
        answer.terminate()
        said, _ = answer.communicate()
        ask.stdin.close()
        assert ask.wait() == 0
    seen, found = GuestReport.parse(said), ClientRecord.parse(record.read_text().splitlines())
    forth, back = client_to_vm(1000, found, seen, 0.0), vm_to_client(500, found, seen, 0.0)
    assert forth.sent > 50
    assert back.sent > 25
    assert (forth.lost, forth.answers_lost, forth.duplicated, forth.reordered) == (0, 0, 0, 0)
    assert (back.lost, back.duplicated, back.reordered) == (0, 0, 0)
    assert [reply.counter for reply in found.replies] == list(range(forth.sent))
    assert all(a < b for a, b in itertools.pairwise(found.sent))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_the_traffic_program_says_how_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETINUE_CACHE", str(tmp_path / "cache"))
    program = image.ensure_program("steady")
    for words in ([], ["ask"], ["ask", "127.0.0.1", "1", "0", "64", "0", "x"]):
        done = subprocess.run([program, *words], capture_output=True, text=True)
        assert (done.returncode, "steady answer ADDRESS PORT" in done.stderr) == (2, True)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_guest_that_is_behind_takes_in_what_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its program stands still, as on a busy machine, when the last requests are sent: none is lost."""
    monkeypatch.setenv("RETINUE_CACHE", str(tmp_path / "cache"))
    program = image.ensure_program("steady")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = ["ask", "127.0.0.1", port, "1000", "200", "0", str(tmp_path / "record")]
    pipe = subprocess.PIPE
    with (
        subprocess.Popen([program, "answer", "127.0.0.1", port], stdout=pipe, text=True) as answer,
        subprocess.Popen([program, *words], stdin=pipe, stdout=pipe, text=True) as ask,
        contextlib.ExitStack() as at_the_end,
    ):
        at_the_end.callback(ask.kill)  # One that stands still would be waited for for ever.
        at_the_end.callback(answer.kill)
        assert ask.stdin is not None
        assert ask.stdout is not None
        assert ask.stdout.readline() == "flowing\n"
        answer.send_signal(signal.SIGSTOP)
        time.sleep(0.3)  # Some requests; how many does not matter.
        ask.stdin.write("stop\n")
        ask.stdin.flush()
        # Longer than a guest that has been told to end waits for more.
        assert select.select([ask.stdout], [], [], 0.7)[0] == [], "it has not stopped: answers are missing"
        answer.send_signal(signal.SIGCONT)
        assert ask.stdout.readline() == "stopped\n"
        answer.terminate()
        said, _ = answer.communicate()
        ask.stdin.close()
        assert ask.wait() == 0
    seen = GuestReport.parse(said)
    found = ClientRecord.parse((tmp_path / "record").read_text().splitlines())
    forth = client_to_vm(1000, found, seen, 0.0)
    assert forth.sent > 50
    assert (forth.lost, forth.answers_lost) == (0, 0)
