"""The routes to other servers that Open vSwitch in user space is told, as long as it runs, and no longer."""

import re
import subprocess
from pathlib import Path

import pytest

from retinue.setup.machines import machines
from retinue.setup.site import load
from support.site import SITE, make, site_file

IN_USER_SPACE = f'datapath = "netdev"\n{SITE}'
ROUTED = 'endpoint = "172.16.1.2"\nroutes = ["172.16.1.0/24", "172.16.0.0/16 via 172.16.1.1"]'


@pytest.mark.parametrize(
    ("routes", "reason"),
    [
        ('["172.16.0.0/16; reboot"]', "is no route such as"),
        ('["172.16.0.0/16 via router"]', "is no route such as"),
        ('["172.16.1.2/16"]', "has host bits set"),
        ('["172.16.0.0/99"]', "172.16.0.0/99"),
        ('["10.0.0.0/8 via 172.16.1.1", "10.0.0.0/8 via 172.16.1.3"]', "has 2 routes to 10.0.0.0/8"),
        ('["172.16.0.0/16 via 172.16.1.999"]', "172.16.1.999"),
        (f"[{', '.join([chr(34) + '10.0.0.0/8' + chr(34)] * 65)}]", "65 routes; up to 64 are told"),
    ],
)
def test_what_is_no_route_is_said(tmp_path: Path, routes: str, reason: str) -> None:
    said = make(
        tmp_path,
        IN_USER_SPACE.replace('endpoint = "172.16.1.2"', f'endpoint = "172.16.1.2"\nroutes = {routes}'),
    )
    assert reason in said and not (tmp_path / "machines").exists()


OVS_APPCTL = """#!/bin/sh
echo "$@" >> SAID
case "$*" in *ovs/route/show) cat TOLD ;; esac
"""
IP = "#!/bin/sh\necho '7: theirs    inet 172.16.1.2/24 scope global theirs'\n"


class Server:
    """Stand-ins of programs, and what Open vSwitch says that it is told."""

    def __init__(self, folder: Path, text: str) -> None:
        made = {one.name: one.files for one in machines(load(site_file(folder, text)))}
        self.files = made["server1"]
        self.said, self.told, self._bin = folder / "said", folder / "told", folder / "bin"
        self._bin.mkdir()
        self.said.touch()
        self.told.touch()
        appctl = OVS_APPCTL.replace("SAID", str(self.said)).replace("TOLD", str(self.told))
        for name, program in (("ovs-appctl", appctl), ("ip", IP)):
            self.program(name, program)

    def program(self, name: str, text: str) -> None:
        (self._bin / name).write_text(text)
        (self._bin / name).chmod(0o755)

    def sh(self, script: str, *words: str) -> tuple[int, str]:
        path = f"{self._bin}:/usr/bin:/bin"
        argv = ["sh", "-c", script, "sh", *words]
        done = subprocess.run(argv, env={"PATH": path}, capture_output=True, text=True)
        return done.returncode, done.stdout + done.stderr

    def changes(self) -> list[str]:
        """What Open vSwitch was told, but for questions."""
        words = (line.removeprefix("--timeout=60 ") for line in self.said.read_text().splitlines())
        return [line for line in words if "show" not in line]


def test_open_vswitch_in_user_space_is_told_routes_and_they_are_taken_back(tmp_path: Path) -> None:
    server = Server(tmp_path, IN_USER_SPACE.replace('endpoint = "172.16.1.2"', ROUTED))
    script = server.files["routes.sh"]
    assert server.sh(script) == (0, "")
    adds = ["add 172.16.1.0/24 theirs", "add 172.16.0.0/16 theirs 172.16.1.1"]
    assert server.changes() == [f"ovs/route/{one}" for one in adds]
    server.said.write_text("")
    server.told.write_text("Route Table:\nUser: 172.16.0.0/16 dev theirs GW 172.16.1.1 SRC 172.16.1.2\n")
    assert server.sh(script, "del") == (0, "")
    assert server.changes() == ["ovs/route/del 172.16.0.0/16"], "of one that is not told it would fail"


@pytest.mark.parametrize(
    ("failed", "pause"), [("0", ""), ("1", "1"), ("2", "2"), ("4", "8"), ("7", "64"), ("900", "64"), ("", "")]
)
def test_its_unit_tries_again_after_a_longer_pause_each_time(tmp_path: Path, failed: str, pause: str) -> None:
    server = Server(tmp_path, IN_USER_SPACE.replace('endpoint = "172.16.1.2"', ROUTED))
    server.program("systemctl", f"#!/bin/sh\necho {failed}\n")
    server.program("sleep", f"#!/bin/sh\necho $1 > {tmp_path}/slept\n")
    assert server.sh(server.files["routes.sh"], "patiently") == (0, "")
    slept = tmp_path / "slept"
    assert (slept.read_text().strip() if slept.exists() else "") == pause
    assert len(server.changes()) == 2, "and then they are told"


def test_a_route_that_open_vswitch_does_not_take_is_named(tmp_path: Path) -> None:
    server = Server(tmp_path, IN_USER_SPACE.replace('endpoint = "172.16.1.2"', ROUTED))
    (tmp_path / "bin/ovs-appctl").write_text('#!/bin/sh\ncase "$*" in *add*/16*) exit 2 ;; esac\n')
    code, said = server.sh(server.files["routes.sh"])
    assert code == 1
    assert "takes no route 172.16.0.0/16 via 172.16.1.1: is what it leads to, or its router" in said
    assert "in a network of theirs?" in said


def test_a_route_that_somebody_else_has_told_is_found_before_anything_is_changed(tmp_path: Path) -> None:
    """undo.sh would take it away."""
    server = Server(tmp_path, IN_USER_SPACE.replace('endpoint = "172.16.1.2"', ROUTED))
    (check,) = re.findall(r"^if [^\n]*User: 172.16.0.0/16 .*?^fi\n", server.files["setup.sh"], re.M | re.S)
    stop = 'stop() { echo "$1"; exit 1; }\n'
    assert server.sh(stop + check) == (0, "")
    server.told.write_text("User: 172.16.0.0/16 dev theirs\n")
    code, said = server.sh(stop + check)
    assert code == 1 and "Open vSwitch is told a route to 172.16.0.0/16 already" in said
    own = tmp_path / "etc/routes.sh"
    own.parent.mkdir()
    own.write_text(server.files["routes.sh"])
    check = check.replace("/etc/retinue/routes.sh", str(own))
    assert server.sh(stop + check) == (0, "")
    own.write_text(server.files["routes.sh"].replace("172.16.0.0/16", "172.17.0.0/16"))
    assert server.sh(stop + check)[0] == 1, "that setup.sh told others before makes this one not ours"


def test_a_route_for_marked_packets_is_another(tmp_path: Path) -> None:
    """`ovs/route/del` finds none then, and undo.sh would never come to its end."""
    server = Server(tmp_path, IN_USER_SPACE.replace('endpoint = "172.16.1.2"', ROUTED))
    server.told.write_text("User: 172.16.0.0/16 MARK 1 dev theirs GW 172.16.1.1 SRC 172.16.1.2\n")
    assert server.sh(server.files["routes.sh"], "del") == (0, "") and server.changes() == []


def test_with_the_kernels_datapath_none_is_told_and_those_of_before_are_taken_back(tmp_path: Path) -> None:
    """A site's datapath may change, and undo.sh is made anew then: what was told in user space went on."""
    for one in machines(load(site_file(tmp_path, SITE))):
        assert "routes.sh" not in one.files and "routes.sh" not in one.files["setup.sh"]
        assert ("sh /etc/retinue/routes.sh del" in one.files["undo.sh"]) is (one.name != "controller")
