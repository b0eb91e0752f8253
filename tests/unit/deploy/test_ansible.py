"""The Ansible role names packages, services and files that there are, and types commands that there are."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from retinue.cli.main import app
from support.pages import ROOT, fenced, section, text

ANSIBLE = ROOT / "deploy/ansible"
ROLE = ANSIBLE / "roles/retinue"
playbook = shutil.which("ansible-playbook")


def read(file: Path) -> Any:
    return yaml.safe_load(file.read_text())


def plays() -> list[dict[str, Any]]:
    return list(read(ANSIBLE / "site.yml"))


def test_the_controller_is_set_up_before_the_servers() -> None:
    assert [play["hosts"] for play in plays()] == ["localhost", "retinue_controller", "retinue_servers"]


def test_services_are_packages_and_units() -> None:
    services = [play["roles"][0]["vars"]["retinue_service"] for play in plays()[1:]]
    assert services == ["retinue-controller", "retinue-agent"]
    build = (ROOT / "deploy/deb/build.sh").read_text()
    for service in services:
        assert (ROOT / f"deploy/systemd/{service}.service").exists()
        assert f"control {service} " in build


def test_what_is_made_is_a_command() -> None:
    _, noun, verb, *words = plays()[0]["tasks"][0]["ansible.builtin.command"]["argv"]
    command = get_command(app).commands[noun].commands[verb]  # type: ignore[attr-defined]
    command.make_context(verb, [word.replace("{{ ", "").replace(" }}", "") for word in words])


def test_the_operators_key_stays_where_it_was_made() -> None:
    (copied,) = [
        task
        for task in read(ROLE / "tasks/main.yml")[1]["block"]
        if "ansible.builtin.copy" in task and "retinue_machines" in task["loop"]
    ]
    assert "reject('search', '/operator[.]')" in copied["loop"]
    assert copied["ansible.builtin.copy"]["mode"] == "0600"


def test_each_variable_that_is_to_be_set_is_in_the_example_and_on_the_page() -> None:
    said = (ANSIBLE / "inventory.example.ini").read_text()
    page = section("docs/setup.md", "By Ansible")
    used = "".join(file.read_text() for file in ANSIBLE.rglob("*.yml"))
    for variable in ("retinue_site", "retinue_machines", "retinue_pki", "retinue_packages"):
        assert f"\n{variable}=" in said and f"`{variable}`" in page and variable in used
    assert fenced(page) and text("docs/setup.md").count("deploy/ansible/inventory.example.ini") == 1


@pytest.mark.skipif(playbook is None, reason="no ansible-playbook: pip install ansible-core")
def test_ansible_reads_it() -> None:
    example = ANSIBLE / "inventory.example.ini"
    words = [str(playbook), "-i", str(example), "--syntax-check", str(ANSIBLE / "site.yml")]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
