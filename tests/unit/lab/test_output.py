"""What is put together for people keeps its width, its colours where wanted, and no blanks at the ends."""

import pytest
from rich.text import Text

from retinue_lab.output import buffer, text_of


def test_lines_are_broken_at_the_width_and_end_with_their_last_word() -> None:
    sheet = buffer(colour=False, width=10)
    sheet.print("one two   three")
    sheet.print("four  ")
    sheet.print()
    assert text_of(sheet) == "one two\nthree\nfour"


@pytest.mark.parametrize(("colour", "shown"), [(False, "lost"), (True, "\x1b[1;31mlost\x1b[0m")])
def test_colours_are_there_where_they_are_wanted(colour: bool, shown: str) -> None:
    sheet = buffer(colour=colour, width=20)
    sheet.print(Text("lost", "bold red"))
    assert text_of(sheet) == shown
