"""`retinue setup`: a network of ours on servers that exist, from one file that says what there is."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from retinue.cli import options, output
from retinue.cli.errors import CliError

if TYPE_CHECKING:
    from retinue.security.authority import Authority
    from retinue.setup.machines import Identity


class _Row(NamedTuple):
    machine: str
    folder: str
    written: list[str]


app = options.group("Set up servers that exist: look at them, and make what each of them needs.")


@app.command()
def look(as_json: options.Json = False) -> None:
    """Look at this server, and print what a site's file has to say of it.

    Nothing is changed.

    \b
    Example:
      retinue setup look >> site.toml
    """
    from dataclasses import asdict

    from retinue.setup.look import look as look_here

    found = look_here()
    if as_json:
        output.print_json(asdict(found) | {"management": found.management})
    else:
        for line in found.table():
            output.say(line)


@app.command()
def make(
    site: Annotated[Path, typer.Argument(metavar="SITE", help="The site's file (TOML).")],
    folder: Annotated[
        Path, typer.Option("--output", metavar="FOLDER", help="Where the machines' folders go.")
    ] = Path("machines"),
    pki: Annotated[
        Path, typer.Option(metavar="FOLDER", envvar="RETINUE_PKI", show_envvar=False, help="The authority's.")
    ] = Path("pki"),
    as_json: options.Json = False,
) -> None:
    """Make a folder for each machine of a site: configuration, certificates, setup.sh and undo.sh.

    Read them, copy each to its machine, and run `sh setup.sh` there as root: the controller's first. undo.sh
    takes it back. Made once more, after a server was added to the file, only what is new or has changed is
    written; certificates stay. The authority is made where there is none; its key stays here.

    \b
    Example:
      retinue setup make site.toml --output machines --pki /root/pki
      scp -r machines/server1 root@server1: && ssh root@server1 sh server1/setup.sh
    """
    from retinue.config_file import ConfigError
    from retinue.security.authority import PkiError
    from retinue.setup.machines import machines
    from retinue.setup.site import load

    try:
        plan = list(machines(load(site)))
        authority = _authority(pki)
        rows = []
        for machine in plan:
            where = folder / machine.name
            where.mkdir(mode=0o700, parents=True, exist_ok=True)
            written = [name for name, text in machine.files.items() if _write(where / name, text)]
            written += [name for one in machine.identities for name in _certificate(authority, where, one)]
            if _write(where / "ca.pem", authority.ca.read_text()):
                written.append("ca.pem")
            rows.append(_Row(machine.name, str(where), sorted(written)))
        _check(folder / plan[0].name / "controller.toml")
    except (ConfigError, PkiError) as error:
        raise CliError(str(error)) from error
    except OSError as error:
        raise CliError(f"{error.filename} cannot be written: {error.strerror}") from error
    if as_json:
        output.print_json({"machines": [row._asdict() for row in rows]})
        return
    shown = ((row.machine, row.folder, ", ".join(row.written) or "nothing new") for row in rows)
    output.print_table(("MACHINE", "FOLDER", "WRITTEN"), shown, "no machines")
    output.say("copy each to its machine and run `sh setup.sh` there, the controller's first")


def _authority(folder: Path) -> "Authority":
    from retinue.security.authority import Authority

    return Authority(folder) if (folder / "ca.pem").exists() else Authority.create(folder)


def _write(path: Path, text: str) -> bool:
    """False: it is so already."""
    if path.exists() and path.read_text() == text:
        return False
    path.write_text(text)
    path.chmod(0o755 if path.suffix == ".sh" else 0o644)
    return True


def _certificate(authority: "Authority", where: Path, wanted: "Identity") -> list[str]:
    """Issued, unless it was before; the names of the files that are new here."""
    made = authority.folder / f"{wanted.role}-{wanted.name}.pem"
    if not made.exists():
        authority.issue(wanted.role, wanted.name, names=wanted.names, addresses=wanted.addresses)
    certificate, key = where / f"{wanted.file}.pem", where / f"{wanted.file}.key"
    if certificate.exists() and certificate.read_bytes() == made.read_bytes() and key.exists():
        return []
    key.touch(mode=0o600)
    key.write_bytes(made.with_suffix(".key").read_bytes())
    certificate.write_bytes(made.read_bytes())
    return [certificate.name, key.name]


def _check(config: Path) -> None:
    """As the controller reads it: what the site's file says of addresses and MACs is judged there."""
    from retinue.controller.config import load

    load(config).network()
