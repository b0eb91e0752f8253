"""What is put together for people, and shown or kept when it is whole."""

import io

from rich.console import Console


def paper(*, colour: bool, width: int) -> Console:
    """A console that keeps what is printed on it."""
    return Console(
        file=io.StringIO(),
        width=width,
        highlight=False,
        force_terminal=colour,
        color_system="standard" if colour else None,
    )


def written(paper: Console) -> str:
    """What stands on it, no line with blanks at its end."""
    assert isinstance(paper.file, io.StringIO)
    return "\n".join(line.rstrip() for line in paper.file.getvalue().rstrip("\n").split("\n"))
