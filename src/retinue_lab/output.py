"""Text for people that is put together first, and shown or written when it is complete."""

import io

from rich.console import Console


def buffer(*, colour: bool, width: int) -> Console:
    """A console that keeps what is printed to it; see `text_of`."""
    return Console(
        file=io.StringIO(),
        width=width,
        highlight=False,
        force_terminal=colour,
        color_system="standard" if colour else None,
    )


def text_of(buffer: Console) -> str:
    """What was printed to a `buffer`, without blanks at the ends of lines."""
    assert isinstance(buffer.file, io.StringIO)
    return "\n".join(line.rstrip() for line in buffer.file.getvalue().rstrip("\n").split("\n"))
