"""What a machine has and uses, from files such as the kernel writes them."""

from pathlib import Path

import pytest

from retinue.host.load import WINDOW, LoadMeter

STAT = "cpu  {user} 0 {system} {idle} {iowait} 0 0 0 0 0\ncpu0 1 1 1 1\n"
PRESSURE = (
    "some avg10=90.00 avg60={avg60} avg300=1.00 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=9\n"
)
MEMORY = "MemTotal:       16384000 kB\nMemFree:          100000 kB\nMemAvailable:    8192000 kB\n"


class Machine:
    def __init__(self, at: Path) -> None:
        self.proc, self.sys, self.now = at / "proc", at / "sys", 100.0
        self.link = self.sys / "class/net/up0"
        (self.proc / "pressure").mkdir(parents=True)
        (self.link / "statistics").mkdir(parents=True)
        (self.proc / "meminfo").write_text(MEMORY)
        (self.link / "speed").write_text("1000\n")
        self.used(0, 0)
        self.passed(0)
        self.meter = LoadMeter(at, "up0", lambda: self.now, self.proc, self.sys)

    def used(self, busy: int, idle: int) -> None:
        ticks = STAT.format(user=busy - busy // 2, system=busy // 2, idle=idle - idle // 2, iowait=idle // 2)
        (self.proc / "stat").write_text(ticks)

    def passed(self, bytes: int) -> None:
        (self.link / "statistics/rx_bytes").write_text(f"{bytes}\n")
        (self.link / "statistics/tx_bytes").write_text("0\n")

    def pressure(self, what: str, avg60: str) -> None:
        (self.proc / "pressure" / what).write_text(PRESSURE.format(avg60=avg60))


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_sizes_and_pressure_are_read_and_waiting_for_a_disk_uses_no_processor(
    machine: Machine,
) -> None:
    machine.pressure("cpu", "12.34")
    machine.pressure("memory", "100.00")
    machine.meter.measure()
    machine.now += 10
    machine.used(25, 75)
    machine.passed(125_000_000)
    found = machine.meter.measure()
    assert (found.memory_mib, found.memory_free_mib, found.bandwidth_mbps) == (16000, 8000, 1000)
    assert (found.cpu_used, found.cpu_pressure, found.memory_pressure) == (2500, 1234, 10_000)
    assert (found.bandwidth_used_mbps, found.io_pressure) == (100, None)
    assert found.disk_free_mib is not None


def test_use_is_that_of_the_last_minute(machine: Machine) -> None:
    machine.meter.measure()
    busy = idle = 0
    for second in range(5, 185, 5):
        machine.now = 100.0 + second
        busy, idle = (busy + 5, idle) if second <= 120 else (busy, idle + 5)
        machine.used(busy, idle)
        found = machine.meter.measure()
        if second <= 120:
            assert found.cpu_used == 10_000
    assert found.cpu_used == 0
    assert WINDOW == 60


def test_what_cannot_be_read_is_not_known(tmp_path: Path) -> None:
    nothing = tmp_path / "nothing"
    found = LoadMeter(nothing, "up9", lambda: 5.0, nothing, nothing).measure()
    assert (found.memory_mib, found.memory_free_mib, found.disk_free_mib) == (0, None, None)
    assert (found.bandwidth_mbps, found.cpu_used, found.cpu_pressure) == (0, None, None)


def test_this_machine_can_be_measured(tmp_path: Path) -> None:
    found = LoadMeter(tmp_path, "lo", lambda: 5.0).measure()
    assert found.cpus > 0 and found.memory_mib > 0 and found.memory_free_mib
