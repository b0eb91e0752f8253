"""What the packages' scripts do to services at an upgrade, and what they say of VMs that run on."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from support.pages import ROOT

DEB = ROOT / "deploy/deb"
SYSTEMCTL = """#!/bin/sh
echo "$@" >> SAID
case $1 in
    is-active) echo STATE; test STATE = active ;;
    is-enabled) exit ENABLED ;;
    restart) exit RESTARTED ;;
esac
"""
SERVICES = [
    ("retinue-agent", "retinue-agent"),
    ("retinue-controller", "retinue-controller"),
    ("retinue-managers", "retinue-mobility"),
    ("retinue-managers", "retinue-resource"),
]
"""By package: whose services it looks after."""
PLACES = {"/etc/retinue": "etc", "/etc/systemd/system": "units", "/var/lib/retinue": "var"}
LIKE_A_VM = "import time; print(flush=True); time.sleep(600)"


def run(
    tmp_path: Path, script: str, *words: str, state: str = "active", restarted: int = 0, enabled: int = 0
) -> tuple["subprocess.CompletedProcess[str]", list[str]]:
    """Of a package's script, where systemd has booted; and what systemctl was told."""
    programs, said, booted = tmp_path / "bin", tmp_path / "said", tmp_path / "systemd"
    for folder in (programs, booted):
        folder.mkdir(exist_ok=True)
    said.write_text("")
    fake = SYSTEMCTL.replace("SAID", str(said)).replace("STATE", state)
    fake = fake.replace("RESTARTED", str(restarted)).replace("ENABLED", str(enabled))
    for name, text in (("systemctl", fake), ("systemd-sysusers", "#!/bin/sh\n")):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    text = (DEB / script).read_text().replace("/run/systemd/system", str(booted))
    own = tmp_path / script
    # As root, and on a machine that may be a server: nothing of it is to be touched.
    for place, instead in PLACES.items():
        text = text.replace(place, str(tmp_path / instead))
    assert not re.findall(r"(?<!\w)/(?:etc|var|root|home)/.*", text.replace(str(tmp_path), "T"))
    own.write_text(text)
    path = f"{programs}:/usr/bin:/bin"
    done = subprocess.run(["sh", own, *words], env={"PATH": path}, capture_output=True, text=True)
    return done, said.read_text().splitlines()


@pytest.mark.parametrize(("package", "service"), SERVICES)
@pytest.mark.parametrize(
    ("before", "state", "restarts"),
    [
        ("", "inactive", False),
        ("0.1", "active", True),
        ("0.1", "activating", True),
        ("0.1", "failed", True),
        ("0.1", "inactive", False),
    ],
)
def test_an_upgrade_starts_anew_what_runs_or_has_failed_and_not_what_was_stopped(
    tmp_path: Path, package: str, service: str, before: str, state: str, restarts: bool
) -> None:
    done, said = run(tmp_path, f"{package}.postinst", "configure", before, state=state)
    assert (done.returncode, done.stderr) == (0, "")
    assert (f"restart {service}.service" in said) is restarts
    assert said[0] == "daemon-reload"


@pytest.mark.parametrize(("package", "service"), SERVICES)
def test_one_that_failed_before_anybody_set_it_up_fails_no_upgrade(
    tmp_path: Path, package: str, service: str
) -> None:
    """Somebody has tried `systemctl start` before there was a configuration; or it was disabled since."""
    words = ("configure", "0.1")
    done, said = run(tmp_path, f"{package}.postinst", *words, state="failed", restarted=1, enabled=1)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"restart {service}.service" not in said


@pytest.mark.parametrize(("package", "service"), SERVICES)
def test_a_service_that_does_not_come_up_is_told_and_tried_at_the_next_configuring(
    tmp_path: Path, package: str, service: str
) -> None:
    done, _ = run(tmp_path, f"{package}.postinst", "configure", "0.1", restarted=1)
    assert done.returncode == 1
    assert f"journalctl --unit={service}" in done.stderr and f"dpkg --configure {package}" in done.stderr
    done, said = run(tmp_path, f"{package}.postinst", "configure", "0.1", state="failed")
    assert done.returncode == 0 and f"restart {service}.service" in said


def test_whoever_removes_the_agent_is_told_of_vms_that_run_on(tmp_path: Path) -> None:
    folder = tmp_path / "agent"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/agent.toml").write_text(
        f'server = "server1"\nfolder = "{folder}"     # sockets\n[libvirt]\nfolder = "/elsewhere"\n'
    )
    words = ("-name", "guest=web,debug-threads=on", "-qmp", f"unix:{folder}/vms/web-1.qmp")
    vm = subprocess.Popen(
        ["qemu-system-x86_64", "-c", LIKE_A_VM, *words],
        executable=os.path.realpath("/usr/bin/python3"),
        stdout=subprocess.PIPE,
    )
    try:
        assert vm.stdout is not None and vm.stdout.readline()
        done, said = run(tmp_path, "retinue-agent.prerm", "remove")
        assert f"    web (process {vm.pid})\n" in done.stderr and "`retinue vm remove`" in done.stderr
        assert (done.returncode, said) == (0, ["disable --now retinue-agent.service"])
        assert run(tmp_path, "retinue-agent.prerm", "upgrade", "0.2")[0].stderr == ""
    finally:
        vm.kill()
        vm.communicate()
    (tmp_path / "etc/agent.toml").unlink()
    done = run(tmp_path, "retinue-agent.prerm", "remove")[0]
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(("word", "left"), [("purge", False), ("remove", True)])
def test_purging_takes_back_the_routes_that_nobody_has_undone(tmp_path: Path, word: str, left: bool) -> None:
    """`retinue setup` made the script and its unit, outside the package: dpkg does not know of them."""
    script, told = tmp_path / "etc/routes.sh", tmp_path / "told"
    script.parent.mkdir()
    script.write_text(f"echo $1 > {told}\n")
    unit, state = tmp_path / "units/retinue-routes.service", tmp_path / "var/agent"
    unit.parent.mkdir()
    unit.touch()
    state.mkdir(parents=True)
    done, said = run(tmp_path, "retinue-agent.postrm", word)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.exists() for path in (script, unit, state)] == [left] * 3
    assert ("disable --now retinue-routes.service" in said) is not left
    assert (told.exists() and told.read_text() == "del\n") is not left
    assert "daemon-reload" in said
