"""Text of others, at a terminal: whatever it is, it is shown and acts upon nothing."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retinue.core.limits import ID, LONGEST_ID, LONGEST_REASON
from retinue.core.model import ModelError, entity_id
from retinue.core.text import cut, printable, quoted

any_text = st.text(st.characters(exclude_categories=[]))
"""Half a surrogate pair among it."""


@given(any_text)
def test_nothing_is_left_that_a_terminal_acts_upon(text: str) -> None:
    shown = printable(text)
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
    assert shown.isprintable()
    if text.isprintable():
        assert shown == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("vm1", "vm1"),
        ("Größe 5 µs", "Größe 5 µs"),
        ("x\x1b]0;OWNED\x07\x1b[2K\x1b[1A\nvm9", r"x\x1b]0;OWNED\x07\x1b[2K\x1b[1A\x0avm9"),
        ("abc\u202edcb\u2028", r"abc\u202edcb\u2028"),
        ("\x9b31m\U000e0041\ud800", r"\x9b31m\U000e0041\ud800"),
    ],
)
def test_what_is_escaped_can_be_read(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_what_we_lay_out_ourselves_is_kept() -> None:
    assert printable("a\n\x1bb", keep="\n") == "a\n\\x1bb"


@given(any_text)
def test_a_text_is_cut_and_no_longer(text: str) -> None:
    assert len(cut(text)) <= LONGEST_REASON
    assert cut(text) == text or cut(text).startswith(text[: LONGEST_REASON - 3])
    assert len(quoted(text)) <= 240 and quoted(text).isprintable()


def test_what_is_quoted_is_sixty_characters_of_it() -> None:
    assert quoted("x" * 60) == f"'{'x' * 60}'"
    assert quoted("x" * 61) == f"'{'x' * 57}...'"
    assert quoted("\n" * 90) == "'" + r"\n" * 57 + "...'"
    assert len(quoted("\U000e0041" * 90)) == 240, "escaped it is longer, and cut again"


@given(any_text)
def test_an_id_means_nothing_to_paths_options_and_terminals(text: str) -> None:
    try:
        assert entity_id(text, "a VM") == text
    except ModelError as error:
        assert str(error).isprintable() and len(str(error)) < LONGEST_REASON
    else:
        assert ID.fullmatch(text) and len(text) <= LONGEST_ID
        assert not set(text) & set("/\\=,:;%\"' \n\x1b") and not text.startswith(("-", "."))


@pytest.mark.parametrize(
    "id", ["vm1", "3b1f5d0a-77c4-4b6e-9a52-1d2f3c4b5a69", "a", "A.b_c@d-e", "x" * LONGEST_ID]
)
def test_what_people_call_their_vms_is_an_id(id: str) -> None:
    assert entity_id(id, "a VM") == id


@pytest.mark.parametrize("id", ["", "-v", "..", "a/b", "a=b", "process=x", "a b", "ä", "x" * 64, "a\n"])
def test_what_is_an_option_a_path_or_too_long_is_none(id: str) -> None:
    with pytest.raises(ModelError):
        entity_id(id, "a VM")
