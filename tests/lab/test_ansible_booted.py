"""The Ansible role, run by Ansible itself over SSH on a whole site of machines that systemd has booted."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.lab import booted
from support.lab.booted_packages import newer
from support.lab.booted_site import CONTROLLER, FIRST, NETWORK, BootedSite, main_pid, page_site
from support.lab.booted_ssh import trust
from support.pages import ROOT

playbook = shutil.which("ansible-playbook")
why_not = booted.missing() or ("" if playbook else "no ansible-playbook: pip install ansible-core")
pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.alone,
    pytest.mark.skipif(why_not != "", reason=why_not),
]

SERVICES = {CONTROLLER: "retinue-controller", **dict.fromkeys(FIRST, "retinue-agent")}
WELL = "All is as it should be."
COMMANDER = "192.0.2.9"
"""Where Ansible runs: beside the machines, in the office."""
PATIENCE = 900.0


@dataclass(frozen=True)
class Commander:
    """Whoever runs Ansible, with the files that the page names."""

    site: BootedSite
    folder: Path
    packages: Path

    def play(self) -> dict[str, dict[str, int]]:
        """Run the playbook; what Ansible counts of each host. It must come to its end."""
        code, said = self.tried()
        assert code == 0, said
        counted = re.findall(r"^(\S+) +: (ok=.*)$", said.partition("PLAY RECAP")[2], re.MULTILINE)
        return {
            host: {key: int(number) for key, number in (pair.split("=") for pair in counts.split())}
            for host, counts in counted
        }

    def tried(self) -> tuple[int, str]:
        """Run the playbook; its exit code, and what it said."""
        example = (ROOT / "deploy/ansible/inventory.example.ini").read_text()
        for old, new in (
            ("/root/site/machines", f"{self.folder}/machines-made"),
            ("/root/site/", f"{self.folder}/"),
            ("/root/retinue/build/deb", str(self.packages)),
        ):
            assert old in example
            example = example.replace(old, new)
        key = f"ansible_ssh_private_key_file={self.folder}/key"
        command = f"retinue_command={self.folder}/retinue"
        inventory = self.folder / "inventory.ini"
        inventory.write_text(f"{example}{key}\n{command}\n")
        words = [str(playbook), "-i", str(inventory), str(ROOT / "deploy/ansible/site.yml")]
        done = subprocess.run(
            self.site.machines.outside("env", "-u", "PYTHONPATH", *self._environment(), *words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=PATIENCE,
        )
        return done.returncode, done.stdout

    def _environment(self) -> list[str]:
        """A home of its own, so that nothing of this machine's user has a say, and nothing is left there."""
        known = f"-o UserKnownHostsFile={self.folder}/known -o StrictHostKeyChecking=accept-new"
        return [
            f"HOME={self.folder}",
            f"ANSIBLE_HOME={self.folder}/ansible",
            f"ANSIBLE_SSH_ARGS=-C -o ControlMaster=auto -o ControlPersist=60s {known}",
            "ANSIBLE_NOCOLOR=1",
        ]


@pytest.fixture(scope="module")
def commander(tmp_path_factory: pytest.TempPathFactory, debs: Path) -> Iterator[Commander]:
    folder = tmp_path_factory.mktemp("ansible")
    with booted.machines(folder / "machines") as machines:
        machines.network(f"{NETWORK}\nip address add {COMMANDER}/24 dev office")
        machines.boot((CONTROLLER, *FIRST))
        site = BootedSite(machines, folder / "tools")
        for machine in site.machines.by_name.values():
            machine.sh("rm -rf /etc/apt/sources.list*")  # There is no mirror inside, and none is waited for.
        (folder / "key").write_bytes(trust(site).read_bytes())
        (folder / "key").chmod(0o600)
        (folder / "site.toml").write_text(page_site())
        path = os.pathsep.join(sys.path)
        words = shlex.join(["env", f"PYTHONPATH={path}", sys.executable, "-m", "retinue.cli.main"])
        (folder / "retinue").write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        (folder / "retinue").chmod(0o755)
        shutil.copytree(debs, folder / "packages")
        yield Commander(site, folder, folder / "packages")


def pids(site: BootedSite) -> dict[str, int]:
    return {name: main_pid(site.machines[name], service) for name, service in SERVICES.items()}


def well(commander: Commander) -> None:
    """As the operator asks, whose key has stayed with the commander."""
    folder, site = commander.folder / "machines-made", commander.site
    theirs = site.controller.files / "root/machines/controller"
    theirs.mkdir(parents=True, exist_ok=True)
    for name in ("ca.pem", "operator.pem", "operator.key"):
        shutil.copy(folder / "controller" / name, theirs)
    site.until("doctor", until=WELL)


def test_a_whole_site_is_set_up(commander: Commander) -> None:
    counted = commander.play()
    assert set(counted) == {"localhost", CONTROLLER, *FIRST}
    assert all(counts["changed"] > 0 and counts["failed"] == 0 for counts in counted.values()), counted
    for name, service in SERVICES.items():
        machine = commander.site.machines[name]
        assert machine.run("systemctl", "is-active", service).strip() == "active"
        assert not (machine.files / "root/retinue-setup/operator.key").exists()
    well(commander)


def test_a_second_run_changes_nothing(commander: Commander) -> None:
    before = pids(commander.site)
    counted = commander.play()
    assert {host: counts["changed"] for host, counts in counted.items()} == dict.fromkeys(counted, 0)
    assert pids(commander.site) == before


def state(site: BootedSite, name: str) -> tuple[int, str]:
    """The process of a machine's service, and what dpkg says of its packages."""
    shown = "${Package} ${Version} ${db:Status-Abbrev}\\n"
    packages = site.machines[name].run("dpkg-query", "-W", "-f", shown, "retinue", SERVICES[name])
    return main_pid(site.machines[name], SERVICES[name]), packages


@pytest.mark.parametrize("name", [CONTROLLER, "server1"])
def test_where_the_configuration_is_broken_no_package_is_installed(
    commander: Commander, tmp_path: Path, name: str
) -> None:
    """The service runs on by what it has read; nor does anything happen to the machines after it."""
    site, short = commander.site, SERVICES[name].removeprefix("retinue-")
    config = site.machines[name].files / f"etc/retinue/{short}.toml"
    good, mode = config.read_text(), config.stat().st_mode
    config.write_text(f"of_yesterday = 1\n{good}")
    later = Commander(site, commander.folder, newer(commander.packages, tmp_path / "later"))
    before = {machine: state(site, machine) for machine in (name, "server2")}
    code, said = later.tried()
    assert code != 0 and f"/etc/retinue/{short}.toml" in said and "of_yesterday" in said, said
    (why,) = re.findall(
        r'^fatal: \[\S+\]: FAILED! => \{"changed": false, "msg": "(.*?)"\}$', said, re.MULTILINE
    )
    assert why.startswith("retinue: /etc/retinue/"), said
    assert {machine: state(site, machine) for machine in before} == before
    config.write_text(good)
    config.chmod(mode)
    well(commander)


def test_what_apt_says_is_said_and_the_next_run_begins_anew(commander: Commander, tmp_path: Path) -> None:
    site, broken = commander.site, tmp_path / "broken"
    newer(commander.packages, broken, depends="package-of-nobody")
    before = state(site, CONTROLLER)
    code, said = Commander(site, commander.folder, broken).tried()
    assert code != 0 and "package-of-nobody" in said.rpartition('"msg": ')[2], said
    assert state(site, CONTROLLER) == before


def test_an_upgrade_restarts_each_service_once_and_all_is_well(commander: Commander, tmp_path: Path) -> None:
    before = pids(commander.site)
    later = Commander(commander.site, commander.folder, newer(commander.packages, tmp_path / "later"))
    counted = later.play()
    assert counted["localhost"]["changed"] == 0
    for name, service in SERVICES.items():
        version = commander.site.machines[name].run("dpkg-query", "-W", "-f", "${Version}", service)
        assert version.endswith("+1")
        assert pids(commander.site)[name] not in (0, before[name])
    well(commander)
    again = later.play()
    assert {host: counts["changed"] for host, counts in again.items()} == dict.fromkeys(again, 0)
