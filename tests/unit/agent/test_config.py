"""The agent's configuration file, and how a VM is run by it."""

import re
from pathlib import Path

import pytest

from retinue.agent.config import VMTable, load
from retinue.agent.vms.vm_spec import kernel_command_line, spec
from retinue.config_file import ConfigError
from retinue.core.placement import PressureRule
from retinue.host.taps import tap_name
from retinue.protocol.nics import SubnetRecord
from retinue.protocol.vms import VMRecord

WHOLE = """\
server = "server1"
controller = "https://192.0.2.1:8080"
listen = "192.0.2.3:7800"
bridge = "br0"
folder = "/var/lib/retinue/agent"

[vm]
kernel = "/boot/vmlinuz"
initrd = "/boot/initrd.img"
append = "quiet hostname={hostname} ip={ipv4}"
append_with_ipv6 = "ip6={ipv6}"
append_without_ipv6 = "ipv6.disable=1"
memory_mib = 96
accelerator = "kvm"
wrapper = ["nice", "-n", "5"]

[tls]
ca = "/etc/retinue/ca.pem"
certificate = "/etc/retinue/agent.pem"
key = "/etc/retinue/agent.key"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "agent.toml"


def test_a_whole_file_is_read(file: Path) -> None:
    file.write_text(WHOLE)
    config = load(file)
    assert (config.server, config.bridge, config.endpoint) == ("server1", "br0", ("192.0.2.3", 7800))
    assert config.vm is not None and config.libvirt is None
    assert (config.vm.memory_mib, config.vm.wrapper) == (96, ["nice", "-n", "5"])
    assert config.tls is not None
    assert config.tls.key == "/etc/retinue/agent.key"


def test_wishes_are_off_unless_a_threshold_is_given(file: Path) -> None:
    file.write_text(WHOLE)
    assert load(file).mobility.rule() == PressureRule(0, 0, 60, 0)
    table = "cpu_pressure = 12.34\nmemory_pressure = 5\nbandwidth = 80\nseconds = 30\n"
    file.write_text(f"{WHOLE}[mobility]\n{table}")
    assert load(file).mobility.rule() == PressureRule(1234, 500, 30, 8000)
    for wrong in ("cpu_pressure = 101", "seconds = -1", "disk = 1"):
        file.write_text(f"{WHOLE}[mobility]\n{wrong}\n")
        with pytest.raises(ConfigError, match="mobility"):
            load(file)


def test_an_ipv6_address_to_listen_at_is_in_brackets(file: Path) -> None:
    file.write_text(WHOLE.replace("192.0.2.3:7800", "[2001:db8::3]:0"))
    assert load(file).endpoint == ("2001:db8::3", 0)


def without_tls(text: str) -> str:
    return text[: text.index("[tls]")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("server =", "Invalid value"),
        ("", "server is missing"),
        (WHOLE.replace('bridge = "br0"\n', ""), "bridge: which Open vSwitch bridge"),
        (WHOLE.replace('"br0"', "5"), "bridge: text in quotes is expected"),
        (WHOLE.replace("memory_mib = 96", 'memory_mib = "96"'), "vm: memory_mib: a whole number is expected"),
        (
            WHOLE.replace("accelerator", "accelerater"),
            "vm: there is no key accelerater; is accelerator meant",
        ),
        (WHOLE.replace('key = "/etc', 'keys = "/etc'), "tls: there is no key keys; is key meant"),
        (WHOLE.replace('"server1"', '"server 1"'), "'server 1' cannot be a server's id"),
        (WHOLE.replace("https://192", "192"), "'192.0.2.1:8080' is no URL, such as https"),
        (WHOLE.replace("192.0.2.3:7800", "0.0.0.0:7800"), "name an address of this server's"),
        (WHOLE.replace('"kvm"', '"KVM"'), "vm.accelerator: 'KVM' is neither tcg nor kvm"),
        (WHOLE.replace("{hostname}", "{host}"), "vm.append: nothing is filled in for {host}"),
        (WHOLE.replace("{ipv6}", "{nic}"), "vm.append_with_ipv6: nothing is filled in for {nic}"),
        (WHOLE.replace(":7800", ""), "'192.0.2.3' is not HOST:PORT"),
        (WHOLE.replace(":7800", ":70000"), "is not HOST:PORT"),
        (WHOLE.replace("192.0.2.3:7800", ":7800"), "is not HOST:PORT"),
        (without_tls(WHOLE), "there is no .tls.: make certificates with `retinue pki`"),
        ("plaintext = false\n" + without_tls(WHOLE), "there is no .tls."),
    ],
)
def test_a_mistake_is_answered_with_the_file_and_the_place(file: Path, text: str, reason: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(file)) + ".*" + reason):
        load(file)


DOMAIN = """
[[domain]]
id = "b"
ca = "domain-b.pem"
listen = "192.0.2.3:7801"
"""


def test_other_domains_have_a_door_each(file: Path) -> None:
    file.write_text(WHOLE + DOMAIN + DOMAIN.replace('"b"', '"c"').replace("7801", "7802"))
    first, second = load(file).domain
    assert (first.id, first.ca, first.listen) == ("b", str(file.parent / "domain-b.pem"), "192.0.2.3:7801")
    assert second.id == "c"
    assert not first.images, "images only where it is said"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (WHOLE + DOMAIN.replace('"b"', '""'), "a domain needs an id"),
        (WHOLE + DOMAIN.replace('"b"', '"b/server1"'), "'b/server1' cannot be a domain's id"),
        (WHOLE + DOMAIN.replace('"b"', f'"{"b" * 64}"'), "cannot be a domain's id"),
        (WHOLE + DOMAIN.replace('"b"', r'"b\n"'), "cannot be a domain's id"),
        (WHOLE + DOMAIN + DOMAIN.replace("7801", "7802"), "domain b is given twice"),
        (WHOLE + DOMAIN.replace(":7801", ""), "domain b: listen: '192.0.2.3' is not HOST:PORT"),
        ("plaintext = true\n" + without_tls(WHOLE) + DOMAIN, "agents of two domains speak TLS"),
    ],
)
def test_a_domain_has_a_name_and_a_door_of_its_own(file: Path, text: str, reason: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(f"{file}: ") + ".*" + reason):
        load(file)


def test_a_file_that_is_not_there_is_named(file: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{file} cannot be read: No such file")):
        load(file)


def test_a_file_that_is_not_text_is_named(file: Path) -> None:
    file.write_bytes(b"server = \xff")
    with pytest.raises(ConfigError, match=re.escape(str(file))):
        load(file)


def test_relative_files_of_tls_are_beside_the_configuration(file: Path) -> None:
    file.write_text(re.sub(r'ca = "[^"]*"', 'ca = "pki/ca.pem"', WHOLE))
    tls = load(file).tls
    assert tls is not None and tls.ca == str(file.parent / "pki/ca.pem")


def test_plain_text_is_possible_by_name_only(file: Path) -> None:
    file.write_text("plaintext = true\n" + without_tls(WHOLE))
    assert load(file).tls is None


# ---- how a VM is run ----

TABLE = VMTable(
    "/boot/vmlinuz",
    "/boot/initrd.img",
    append="quiet hostname={hostname} ip={ipv4}",
    append_with_ipv6="ip6={ipv6}",
    append_without_ipv6="ipv6.disable=1",
    memory_mib=96,
)


def line(vm: VMRecord) -> str:
    return kernel_command_line(vm, TABLE)


def test_a_vm_is_run_as_the_table_says_on_the_tap_of_its_name() -> None:
    made = spec(VMRecord("a-very-long-name-of-a-vm", "52:54:00:00:00:01", "server1"), TABLE)
    assert (made.kernel, made.initrd) == (Path("/boot/vmlinuz"), Path("/boot/initrd.img"))
    assert (made.mac, made.memory_mib) == ("52:54:00:00:00:01", 96)
    assert made.port == tap_name("a-very-long-name-of-a-vm")
    assert spec(VMRecord("web", "m", "s", memory_mib=256), TABLE).memory_mib == 256, "the VM's own"


def test_a_vm_without_an_address_asks_for_one() -> None:
    assert line(VMRecord("web", "m", "s")) == "quiet hostname=web ip=dhcp ipv6.disable=1"


def test_a_vm_with_an_address_is_told_its_subnet_and_gateway() -> None:
    subnets = {"10.1.0.50": SubnetRecord(25, "10.1.0.126")}
    vm = VMRecord("web", "m", "s", addresses=["10.1.0.50"], subnets=subnets)
    assert line(vm) == "quiet hostname=web ip=10.1.0.50/25,10.1.0.126 ipv6.disable=1"


def test_a_subnet_that_is_not_known_is_the_usual_one() -> None:
    assert "ip=10.1.0.50/24" in line(VMRecord("web", "m", "s", addresses=["10.1.0.50"])).split()
    half = VMRecord("web", "m", "s", addresses=["10.1.0.50"], subnets={"10.1.0.50": SubnetRecord(16)})
    assert "ip=10.1.0.50/16" in line(half).split()


def test_a_vm_with_an_ipv6_address_only_asks_nobody() -> None:
    vm = VMRecord("v6", "m", "s", addresses=["2001:db8::5"])
    assert line(vm) == "quiet hostname=v6 ip=none ip6=2001:db8::5/64"


def test_a_vm_with_both_has_both_and_the_first_of_each() -> None:
    addresses = ["2001:db8::5", "10.1.0.50", "10.1.0.51", "2001:db8::6"]
    assert {"ip=10.1.0.50/24", "ip6=2001:db8::5/64"} <= set(
        line(VMRecord("web", "m", "s", addresses=addresses)).split()
    )


def test_a_name_that_is_no_host_name_becomes_one() -> None:
    assert "hostname=web-1-x-" in line(VMRecord("web_1 xé", "m", "s")).split()


def test_an_empty_table_gives_an_empty_line() -> None:
    assert kernel_command_line(VMRecord("web", "m", "s"), VMTable("k", "i")) == ""


LIBVIRT = """
[libvirt]
uri = "qemu+unix:///system?socket=/x"
control = "qemu+tls://server1.example/system"
folder = "/vms"
seen_at = "/outside/vms"
user = "libvirt-qemu"
"""


def with_libvirt(text: str = WHOLE) -> str:
    return text.replace('wrapper = ["nice", "-n", "5"]\n', "") + LIBVIRT


def test_a_server_whose_vms_libvirt_runs(file: Path) -> None:
    file.write_text(with_libvirt())
    table = load(file).libvirt
    assert table is not None
    assert (table.control, table.folder, table.seen_at, table.user) == (
        "qemu+tls://server1.example/system",
        "/vms",
        "/outside/vms",
        "libvirt-qemu",
    )
    start, end = WHOLE.index("[vm]"), WHOLE.index("[tls]")
    file.write_text(WHOLE[:start] + WHOLE[end:] + "[libvirt]\n")
    config = load(file)
    assert config.vm is None and config.libvirt is not None
    assert config.libvirt.uri == "qemu:///system"
    made = spec(VMRecord("vm1", "52:54:00:00:00:01", "server1"), config.vm)
    assert (made.id, made.port, made.kernel) == ("vm1", "tap-vm1", Path())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (WHOLE + LIBVIRT, "vm.wrapper"),
        (with_libvirt(WHOLE.replace('"kvm"', '"hvf"')), r"vm.accelerator: 'hvf' is neither tcg nor kvm"),
        (with_libvirt().replace('"/vms"', '"vms"'), "libvirt.folder: 'vms' is not an absolute path"),
        (with_libvirt().replace('"/outside/vms"', '"vms"'), "libvirt.seen_at"),
        (with_libvirt().replace("qemu+tls://", ""), "libvirt.control: .*qemu.TRANSPORT"),
        (with_libvirt().replace("control", "controls"), "controls"),
        (WHOLE[: WHOLE.index("[vm]")] + WHOLE[WHOLE.index("[tls]") :], r"neither \[vm\] nor \[libvirt\]"),
    ],
)
def test_what_is_wrong_about_libvirt_is_said(file: Path, text: str, expected: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load(file)


CACHE = (
    WHOLE[: WHOLE.index("bridge")]
    + WHOLE[WHOLE.index("folder") : WHOLE.index("[vm]")]
    + ("[content]\ncache = true\n" + WHOLE[WHOLE.index("[tls]") :])
)


def test_a_cache_needs_neither_bridge_nor_vms(file: Path) -> None:
    file.write_text(CACHE)
    assert load(file).content.cache
    file.write_text(CACHE + DOMAIN + "images = true\n")
    assert [one.id for one in load(file).domain if one.images] == ["b"], "it hands images on to that domain"
    for table in (WHOLE[WHOLE.index("[vm]") : WHOLE.index("[tls]")], DOMAIN):
        file.write_text(CACHE + table)
        with pytest.raises(ConfigError, match=r"content\.cache: a cache runs no VMs: leave out"):
            load(file)
