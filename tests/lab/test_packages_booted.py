"""The packages on machines that systemd has booted, set up as docs/setup.md says, word by word.

A controller and three servers, whose agents run VMs by QEMU. Traffic comes from the router at server1, and
the VM moves between the others: Open vSwitch in user space reads its routes anew whenever a link of its own
changes, and what it sends through tunnels meanwhile may get lost, with us or without us.
"""

import asyncio
import functools
import itertools
import json
import re
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from support.lab import booted
from support.lab.booted_packages import newer
from support.lab.booted_site import (
    CONTROLLER,
    FIRST,
    MACHINES,
    MORE,
    NETWORK,
    SERVERS,
    BootedSite,
    commands,
    give_guest,
    main_pid,
    page_site,
    with_one_more,
    with_qemu,
)
from support.lab.booted_traffic import flowing, nothing_lost
from support.pages import section

why_not = booted.missing()
pytestmark = [
    pytest.mark.lab,
    pytest.mark.long,
    pytest.mark.alone,
    pytest.mark.skipif(why_not != "", reason=why_not),
]

PAGE = "docs/setup.md"
SERVICES = {CONTROLLER: "retinue-controller", **dict.fromkeys(SERVERS, "retinue-agent")}
MOST_EXPOSED = {"retinue-controller": 2.0, "retinue-agent": 5.0, "retinue-routes": 2.0}
VM, VM_ADDRESS = "web", "10.1.0.1"
HOME, AWAY = "server2", "server3"
WELL = "All is as it should be."
before: dict[str, frozenset[str]] = {}
"""What lay on each machine's disk before anything of ours."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootedSite]:
    folder = tmp_path_factory.mktemp("booted")
    with booted.machines(folder / "machines") as machines:
        machines.network(NETWORK)
        machines.boot(MACHINES)
        yield BootedSite(machines, folder / "tools")


def install(site: BootedSite, debs: Path) -> None:
    """As the page has it, on all machines."""
    there = site.controller.files / "root/packages"
    shutil.rmtree(there, ignore_errors=True)
    shutil.copytree(debs, there)
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(functools.partial(install_on, site), MACHINES))


def install_on(site: BootedSite, name: str) -> None:
    site.machines[name].sh("rm -f /root/*.deb")
    for line in commands(PAGE, "Packages"):
        site.sh(line.replace("server1", name).replace("retinue-agent", SERVICES[name]))


def test_packages_are_installed_from_files_and_nothing_runs_yet(site: BootedSite, debs: Path) -> None:
    for name in MACHINES:
        before[name] = site.machines[name].written()
    install(site, debs)
    for name, service in SERVICES.items():
        machine = site.machines[name]
        assert machine.run("retinue", "--version").startswith("retinue ")
        assert machine.run("systemctl", "is-active", service, check=False).strip() == "inactive"
        assert machine.run("systemctl", "is-enabled", service, check=False).strip() == "disabled"
        assert machine.run("systemctl", "is-system-running").strip() == "running"
    assert "retinue" in site.controller.run("getent", "passwd", "retinue")


def test_the_site_is_set_up_as_the_page_says(site: BootedSite) -> None:
    for name, (management, network) in SERVERS.items():
        found = site.sh(f"ssh root@{name} retinue setup look")
        assert f'id = "{name}"' in found and f'management = "{management}"' in found
        assert f"# interface theirs: {network}.2/24" in found
        assert f'# routes = ["172.16.0.0/16 via {network}.1", "{network}.0/24"]' in found
    (site.controller.files / "root/site.toml").write_text(with_qemu(page_site()))
    made = site.type(PAGE, "Make")
    assert "copy each to its machine and run `sh setup.sh` there" in made
    for name in (CONTROLLER, *FIRST):
        set_up(site, name)
    all_is_well(site, FIRST)


def set_up(site: BootedSite, name: str) -> None:
    """Copy a machine's folder to it, and run the script there."""
    if name != CONTROLLER:
        give_guest(site.controller.files / "root/machines" / name / "agent.toml")
    copy, setup, *_ = (line.replace("server1", name) for line in commands(PAGE, "Set up"))
    said = site.sh(copy) + site.sh(setup)
    assert re.search(r"^(\d)/\1 the (service|agent)$", said, re.MULTILINE), said
    machine, service = site.machines[name], SERVICES[name]
    assert machine.run("systemctl", "is-active", service).strip() == "active"
    assert machine.run("systemctl", "is-enabled", service).strip() == "enabled"


def all_is_well(site: BootedSite, servers: Sequence[str]) -> None:
    """By the commands of the page, as soon as the switches have connected."""
    site.until("doctor", until=WELL)
    switches, doctor = (site.sh(line, "machines/controller") for line in commands(PAGE, "Set up")[2:])
    assert all(f"{name}-{part}" in switches for name in servers for part in ("edge", "leaf"))
    assert WELL in doctor
    assert set(site.switches().values()) == {True}


def test_one_server_more(site: BootedSite) -> None:
    (site.controller.files / "root/site.toml").write_text(with_one_more(with_qemu(page_site())))
    (written,) = re.findall(rf"^{MORE} .*$", site.type(PAGE, "Make"), re.MULTILINE)
    assert "agent.toml" in written
    set_up(site, CONTROLLER)
    (again,) = re.findall(r"`(systemctl [^`]*)`", section(PAGE, "One server more"))
    site.controller.sh(again)
    set_up(site, MORE)
    all_is_well(site, tuple(SERVERS))
    # In user space a switch drops what is for a tunnel until it has seen the MAC of the next hop.
    for one, other in itertools.permutations(SERVERS, 2):
        site.servers[one].eventually("ping", "-c1", "-W1", f"{SERVERS[other][1]}.2", until=" 1 received")


@pytest.mark.parametrize(
    ("name", "service"),
    [("controller", "retinue-controller"), ("server1", "retinue-agent"), (MORE, "retinue-routes")],
)
def test_a_running_service_may_do_no_more_than_it_needs(site: BootedSite, name: str, service: str) -> None:
    said = site.machines[name].run("systemd-analyze", "security", "--no-pager", service)
    (exposed,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", said)
    assert float(exposed) < MOST_EXPOSED[service], said


def test_open_vswitch_is_told_routes_again_when_it_has_started_anew(site: BootedSite) -> None:
    """Restarted, killed, and killed where its bridge gets its address later."""
    server, (_, network) = site.servers[MORE], SERVERS[MORE]
    told = f"User: 172.16.0.0/16 dev theirs GW {network}.1"
    shown = ("ovs-appctl", "ovs/route/show")
    server.eventually(*shown, until=told)
    assert server.run("systemctl", "is-active", "retinue-routes").strip() == "active"
    killed = "kill -KILL $(systemctl show --property=MainPID --value ovs-vswitchd)"
    for end in ("systemctl restart openvswitch-switch", killed):
        before = main_pid(server, "ovs-vswitchd")
        server.sh(end)
        server.eventually(*shown, until=told)
        assert main_pid(server, "ovs-vswitchd") not in (0, before)
    server.sh(f"ip address del {network}.2/24 dev theirs; {killed}")
    server.eventually("systemctl", "is-active", "retinue-routes", until="activating")
    assert "User:" not in server.run(*shown, check=False)
    server.sh(f"ip address add {network}.2/24 dev theirs; ip route add 172.16.0.0/16 via {network}.1")
    server.eventually(*shown, until=told)
    all_is_well(site, tuple(SERVERS))


async def test_a_vm_moves_there_and_back_and_no_packet_is_lost(site: BootedSite) -> None:
    words = ("--server", HOME, "--mac", "52:54:00:00:00:01", "--address", VM_ADDRESS)
    site.retinue("vm", "add", VM, *words)
    site.until("vm", "show", VM, until="running")
    console = "cat /var/lib/retinue/agent/vms/*.console"
    site.servers[HOME].eventually("sh", "-c", console, until="RETINUE READY", limit=180.0)
    traffic = await flowing(site, VM_ADDRESS)
    for target in (AWAY, HOME):
        await asyncio.to_thread(site.retinue, "move", "start", VM, "--to", target, "--wait")
    for name in SERVERS:
        told = site.servers[name].run("journalctl", "--unit=retinue-agent", "--no-pager", "--output=cat")
        # Without the rights to look into a VM's tap the agent goes on, and may lose what waits there.
        assert "[error" not in told and "tap.not_" not in told, told
    await nothing_lost(traffic)


async def test_an_upgrade_under_traffic_loses_nothing_and_vms_outlive_it(
    site: BootedSite, debs: Path, tmp_path: Path
) -> None:
    later = newer(debs, tmp_path / "later")
    programs = {name: main_pid(site.machines[name], service) for name, service in SERVICES.items()}
    machine = site.servers[HOME].run("pgrep", "-f", f"guest={VM}")
    traffic = await flowing(site, VM_ADDRESS)
    await asyncio.to_thread(install, site, later)
    for name, service in SERVICES.items():
        version = site.machines[name].run("dpkg-query", "-W", "-f", "${Version}", service)
        assert version.endswith("+1")
        assert main_pid(site.machines[name], service) not in (0, programs[name])
    assert site.servers[HOME].run("pgrep", "-f", f"guest={VM}") == machine
    await asyncio.to_thread(site.until, "doctor", until=WELL)
    shown = json.loads(site.retinue("vm", "show", VM, "--json"))
    assert "running" in json.dumps(shown)
    await asyncio.to_thread(site.retinue, "move", "start", VM, "--to", AWAY, "--wait")
    await nothing_lost(traffic)


def test_a_killed_agent_is_started_anew_and_its_vm_runs_on(site: BootedSite) -> None:
    server = site.servers[AWAY]
    first, machine = main_pid(server, "retinue-agent"), server.run("pgrep", "-f", f"guest={VM}")
    server.run("kill", "-KILL", str(first))
    # It tells systemd that it is ready, after as long as RestartSec says.
    server.eventually("journalctl", "--unit=retinue-agent", "--no-pager", until="Scheduled restart job")
    server.eventually("systemctl", "is-active", "retinue-agent", until="active")
    assert main_pid(server, "retinue-agent") not in (0, first)
    assert server.run("pgrep", "-f", f"guest={VM}") == machine
    site.until("doctor", until=WELL)


def test_taken_back_and_purged_nothing_is_left(site: BootedSite) -> None:
    site.retinue("vm", "remove", VM)
    site.servers[AWAY].eventually("sh", "-c", "pgrep -c qemu || true", until="0")
    # Purged before undo.sh has been run: what only `retinue setup` knows of goes, too.
    site.servers[MORE].sh("apt-get purge -q -y retinue-agent")
    assert "User:" not in site.servers[MORE].run("ovs-appctl", "ovs/route/show")
    assert "retinue" not in site.servers[MORE].sh(
        "find /etc/systemd -name 'retinue*'; ls /etc/retinue/*.sh || true"
    )
    for name in SERVERS:
        site.type(PAGE, "Take back", name=name)
        assert site.servers[name].run("ovs-vsctl", "list-br").split() == ["theirs"]
        assert "User:" not in site.servers[name].run("ovs-appctl", "ovs/route/show")
    site.type(PAGE, "Take back", name=CONTROLLER)
    for name, service in SERVICES.items():
        machine = site.machines[name]
        machine.sh(f"apt-get purge -q -y {service} retinue && rm -rf /root/* /root/.??*")
        assert machine.run("pgrep", "-f", "[r]etinue", check=False) == ""
        assert machine.run("systemctl", "is-system-running").strip() == "running"
        assert machine.run("getent", "passwd", "retinue", check=False) == ""
        assert machine.written() - before[name] == set()
