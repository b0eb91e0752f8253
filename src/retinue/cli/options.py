"""Options that many commands share."""

from typing import Annotated

import typer

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The controller, such as https://192.0.2.1:8080; several: URL,URL. Also RETINUE_URL.",
    ),
]
Lab = Annotated[
    str | None,
    typer.Option("--lab", metavar="NAME", help="The controller of this running lab. Also RETINUE_LAB."),
]
Json = Annotated[bool, typer.Option("--json", help="Print the data as JSON.")]
Timeout = Annotated[
    float | None, typer.Option("--timeout", metavar="SECONDS", min=0, help="Wait no longer than this.")
]


def group(help: str) -> typer.Typer:
    """A noun, whose commands are verbs."""
    return typer.Typer(help=help, no_args_is_help=True, rich_markup_mode=None, add_completion=False)
