"""`retinue pki`: a certificate authority of one's own, certificates for each party, tokens for the rest."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retinue.cli import options, output
from retinue.cli.errors import CliError

if TYPE_CHECKING:
    from retinue.security.authority import Authority, Issued
    from retinue.security.identity import PeerRole

app = options.group("Certificates and tokens: who may speak to a controller, and as what.")

Folder = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER", envvar="RETINUE_PKI", show_envvar=False, help="The authority's. Also RETINUE_PKI."
    ),
]
ROLES = "controller, switch, agent, mobility, manager, reader."
RoleName = Annotated[str, typer.Argument(metavar="ROLE", help=ROLES)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Switch id, server id, or a person's name.")]
Days = Annotated[int | None, typer.Option(metavar="DAYS", min=1, help="How long it is good (397).")]
DEFAULT = Path("pki")
SOON = 60
"""Days before a certificate's end at which `renew` renews it, and `list` says so."""

NOT_FOR_SERVING = (
    "retinue: agent {name} has no --address, so its certificate is not made for serving: no VM can be "
    "brought to its server by other agents. It can report, renew leases, and bring VMs to others."
)


@app.command()
def init(
    folder: Folder = DEFAULT,
    name: Annotated[str, typer.Option(metavar="NAME", help="What the authority is called.")] = "retinue",
    days: Annotated[int, typer.Option(metavar="DAYS", min=1, help="How long it is good.")] = 3650,
    as_json: options.Json = False,
) -> None:
    """Make a certificate authority.

    Its key, FOLDER/ca.key, makes certificates for everybody: keep the folder where only you can read it.

    \b
    Example:
      retinue pki init --folder /root/pki
    """
    from retinue.security.authority import Authority, PkiError

    try:
        made = Authority.create(folder, name, days)
    except PkiError as error:
        raise CliError(str(error)) from error
    if as_json:
        output.print_json({"folder": str(folder), "ca": str(made.ca), "not_after": _seconds(made.ends)})
    else:
        output.say(
            f"authority {name} is in {folder}, good until {made.ends:%Y-%m-%d}: {made.ca} for everybody"
        )


@app.command()
def issue(
    role: RoleName,
    name: Name,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--for", metavar="ID", help="Whom it may speak for, if not NAME: switches of one host. Repeat."
        ),
    ] = None,
    address: Annotated[
        list[str] | None,
        typer.Option(metavar="ADDRESS", help="Where it is reached: IP address or host name. Repeat."),
    ] = None,
    days: Days = None,
    folder: Folder = DEFAULT,
    as_json: options.Json = False,
) -> None:
    """Issue a certificate, with a new key.

    A switch's says which switches, an agent's which server. A controller's needs the addresses at which it is
    reached. An agent's needs one if VMs are to be brought to its server: only then is it made for serving.

    \b
    Examples:
      retinue pki issue controller c1 --address 192.0.2.1
      retinue pki issue switch edge1
      retinue pki issue switch rack7 --for leaf1 --for spine1
      retinue pki issue agent server1 --address 10.0.0.11
      retinue pki issue mobility m1 --address 192.0.2.5
      retinue pki issue manager anna
    """
    from retinue.security.authority import DAYS, PkiError
    from retinue.security.identity import PeerRole

    try:
        made = _authority(folder).issue(
            _role(role), name, names=names or (), addresses=address or (), days=days or DAYS
        )
    except PkiError as error:
        raise CliError(str(error)) from error
    if made.identity.role is PeerRole.AGENT and not made.addresses:
        output.say(NOT_FOR_SERVING.format(name=name), err=True)
    _show_made([made], as_json, "issued")


@app.command()
def renew(
    role: Annotated[str | None, typer.Argument(metavar="ROLE", help="Left out: all that end soon.")] = None,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Of that role.")] = None,
    within: Annotated[
        int, typer.Option(metavar="DAYS", min=0, help="Which end soon: in so many days or fewer.")
    ] = SOON,
    days: Days = None,
    folder: Folder = DEFAULT,
    as_json: options.Json = False,
) -> None:
    """Issue a certificate anew, in its place: the same role, names and addresses, a new key, a new end.

    A running controller takes its own after SIGHUP, Open vSwitch after `ovs-vsctl set-ssl`.

    \b
    Examples:
      retinue pki renew
      retinue pki renew switch edge1
    """
    from retinue.security.authority import DAYS, PkiError

    if (role is None) != (name is None):
        raise typer.BadParameter("give ROLE and NAME, or neither")
    try:
        authority = _authority(folder)
        if role is not None and name is not None:
            old = [authority.get(_role(role), name)]
        else:
            old = [one for one in authority.issued() if _days_left(one) <= within]
        made = [authority.renew(one, days or DAYS) for one in old]
    except PkiError as error:
        raise CliError(str(error)) from error
    if made or as_json:
        _show_made(made, as_json, "renewed")
    else:
        output.say(f"Nothing ends within {within} days.")


@app.command("list")
def list_(folder: Folder = DEFAULT, as_json: options.Json = False) -> None:
    """List what was issued.

    \b
    Example:
      retinue pki list
    """
    from retinue.security.authority import PkiError

    try:
        found = _authority(folder).issued()
    except PkiError as error:
        raise CliError(str(error)) from error
    if as_json:
        output.print_json({"certificates": [_row(one) for one in found]})
        return
    output.print_table(
        ("ROLE", "NAME", "FOR", "ADDRESSES", "UNTIL", "STATE"),
        (
            (
                one.identity.role,
                one.label,
                sorted(one.identity.names),
                one.addresses,
                f"{one.not_after:%Y-%m-%d}",
                _state(one),
            )
            for one in found
        ),
        "Nothing was issued; `retinue pki issue ROLE NAME` does.",
    )


@app.command()
def show(role: RoleName, name: Name, folder: Folder = DEFAULT, as_json: options.Json = False) -> None:
    """Show a certificate.

    \b
    Example:
      retinue pki show switch edge1
    """
    from retinue.security.authority import PkiError

    try:
        found = _authority(folder).get(_role(role), name)
    except PkiError as error:
        raise CliError(str(error)) from error
    if as_json:
        output.print_json(_row(found))
        return
    output.print_fields(
        (
            ("role", found.identity.role),
            ("name", found.label),
            ("for", sorted(found.identity.names)),
            ("addresses", found.addresses),
            ("good", f"{found.not_before:%Y-%m-%d %H:%M} to {found.not_after:%Y-%m-%d %H:%M} UTC"),
            ("state", _state(found)),
            ("certificate", found.file),
            ("key", found.key),
            ("authority", found.file.parent / "ca.pem"),
            ("serial", f"{found.serial:x}"),
            ("SHA-256", found.fingerprint),
        )
    )


@app.command()
def token(
    role: Annotated[str, typer.Argument(metavar="ROLE", help="manager, agent, reader.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of whoever will show it.")],
    file: Annotated[
        Path, typer.Option(metavar="FILE", help="The controller's tokens ([rest] tokens), made if not there.")
    ],
    server: Annotated[list[str] | None, typer.Option(metavar="ID", help="An agent's server. Repeat.")] = None,
    as_json: options.Json = False,
) -> None:
    """Make a bearer token for the REST interface, and print it, once: the file has only its hash.

    A running controller knows it after SIGHUP.

    \b
    Example:
      retinue pki token reader grafana --file /etc/retinue/tokens.toml
    """
    from retinue.security import tokens

    try:
        made = tokens.add(file, name, _role(role), server or [])
    except tokens.TokenError as error:
        raise CliError(str(error)) from error
    if as_json:
        output.print_json({"role": role, "name": name, "token": made})
    else:
        output.say(made)


def _authority(folder: Path) -> "Authority":
    from retinue.security.authority import Authority

    return Authority(folder)


def _role(text: str) -> "PeerRole":
    from retinue.security.identity import PeerRole

    try:
        return PeerRole(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is no role; there are {', '.join(PeerRole)}") from None


def _show_made(made: list["Issued"], as_json: bool, what: str) -> None:
    if as_json:
        output.print_json({"certificates": [_row(one) for one in made]})
        return
    for one in made:
        output.say(f"{what} {one.identity}: {one.file} and {one.key}, good until {one.not_after:%Y-%m-%d}")


def _row(one: "Issued") -> dict[str, Any]:
    return {
        "role": one.identity.role,
        "name": one.label,
        "for": sorted(one.identity.names),
        "addresses": list(one.addresses),
        "certificate": str(one.file),
        "key": str(one.key),
        "serial": f"{one.serial:x}",
        "not_before": _seconds(one.not_before),
        "not_after": _seconds(one.not_after),
        "sha256": one.fingerprint,
        "state": _state(one),
    }


def _seconds(at: datetime) -> float:
    return at.timestamp()


def _days_left(one: "Issued") -> float:
    return (one.not_after - datetime.now(UTC)).total_seconds() / 86400


def _state(one: "Issued") -> str:
    left = _days_left(one)
    return "ended" if left < 0 else "ends soon" if left <= SOON else "good"
