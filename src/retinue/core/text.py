"""Text that others wrote, made fit to be shown: at a terminal, in a log, in a sentence."""

from retinue.core.limits import LONGEST_REASON

_MORE = "..."


def printable(text: str, keep: str = "") -> str:
    r"""The text with everything escaped (\x1b, \u202e) that a terminal would act upon instead of showing it.

    Control characters and escapes, marks that turn the direction of writing, separators other than the space,
    what is no character at all; but not those in `keep`.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def cut(text: str, longest: int = LONGEST_REASON) -> str:
    """The text, or its beginning if it is longer than so many characters."""
    return text if len(text) <= longest else text[: longest - len(_MORE)] + _MORE


def quoted(text: object, longest: int = 60) -> str:
    """What somebody sent, short and printable, to be named in a sentence."""
    return cut(repr(cut(str(text), longest)), 4 * longest)


def _escaped(character: str) -> str:
    number = ord(character)
    if number < 0x100:
        return f"\\x{number:02x}"
    return f"\\u{number:04x}" if number < 0x1_0000 else f"\\U{number:08x}"
