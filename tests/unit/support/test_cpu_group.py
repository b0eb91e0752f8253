"""A control group for the tests: made where it is needed, left as it was found."""

import os
from pathlib import Path

import pytest

from support import cpu_group
from support.cpu_group import enter, leave, nice_counts

ROOT = "4:memory:/box\n2:cpu,cpuacct:/\n0::/\n"


@pytest.fixture(autouse=True)
def linux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sessions count, this process is in the root group, and it is root."""
    monkeypatch.setattr(cpu_group, "AUTOGROUP", tmp_path / "autogroup")
    monkeypatch.setattr(cpu_group, "OWN", tmp_path / "cgroup")
    monkeypatch.setattr(cpu_group, "CONTROLLERS", (tmp_path / "cpu", tmp_path / "unified"))
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    (tmp_path / "autogroup").write_text("1\n")
    (tmp_path / "cgroup").write_text(ROOT)
    return tmp_path


@pytest.mark.parametrize(
    ("own", "counts"),
    [
        (ROOT, False),
        ("2:cpu,cpuacct:/box\n0::/\n", True),
        ("3:cpuset:/box\n0::/\n", False),
        ("0::/box\n", True),
        ("0::/other\n", False),
    ],
)
def test_among_sessions_nice_counts_in_a_group_of_processors_only(
    linux: Path, own: str, counts: bool
) -> None:
    (linux / "unified" / "box").mkdir(parents=True)
    (linux / "unified" / "box" / "cpu.weight").write_text("100\n")
    (linux / "unified" / "other").mkdir()
    (linux / "cgroup").write_text(own)
    assert nice_counts() is counts


@pytest.mark.parametrize("autogroup", ["0\n", None])
def test_where_linux_does_not_go_by_sessions_it_counts(linux: Path, autogroup: str | None) -> None:
    (linux / "autogroup").unlink() if autogroup is None else (linux / "autogroup").write_text(autogroup)
    assert nice_counts()
    assert enter([linux / "cpu"]) is None


class Controller:
    """A folder in which each folder that is made has files, as the kernel's."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, file: str) -> None:
        self.folder = folder
        folder.mkdir()
        (folder / "cgroup.procs").touch()
        mkdir, rmdir = Path.mkdir, Path.rmdir

        def made(group: Path) -> None:
            mkdir(group)
            for name in filter(None, (file, "cgroup.procs")):
                (group / name).touch()

        def removed(group: Path) -> None:
            for path in group.iterdir():
                path.unlink()
            rmdir(group)

        monkeypatch.setattr(Path, "mkdir", made)
        monkeypatch.setattr(Path, "rmdir", removed)

    def groups(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir() if path.is_dir())


@pytest.mark.parametrize(("file", "shares"), [("cpu.shares", "8192"), ("cpu.weight", "800")])
def test_a_group_is_entered_and_left(
    linux: Path, monkeypatch: pytest.MonkeyPatch, file: str, shares: str
) -> None:
    controller = Controller(linux / "cpu", monkeypatch, file)
    group = enter([linux / "none", linux / "cpu"])
    assert group == linux / "cpu" / f"retinue-tests-{os.getpid()}"
    assert (group / file).read_text() == shares
    assert (group / "cgroup.procs").read_text() == str(os.getpid())
    leave(group)
    assert controller.groups() == []
    assert (linux / "cpu" / "cgroup.procs").read_text() == str(os.getpid())


def test_where_there_is_no_controller_of_processors_nothing_is_left(
    linux: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    controller = Controller(linux / "cpu", monkeypatch, "")
    assert enter([linux / "cpu"]) is None
    assert controller.groups() == []


def test_who_is_not_root_enters_none(linux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller(linux / "cpu", monkeypatch, "cpu.shares")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert enter([linux / "cpu"]) is None
    assert controller.groups() == []


def test_a_group_of_tests_that_were_killed_is_removed(linux: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    controller = Controller(linux / "cpu", monkeypatch, "cpu.shares")
    for process in (2**22 + 1, os.getppid()):
        (linux / "cpu" / f"retinue-tests-{process}").mkdir()
    group = enter([linux / "cpu"])
    assert group is not None
    assert controller.groups() == sorted([f"retinue-tests-{os.getppid()}", group.name])
