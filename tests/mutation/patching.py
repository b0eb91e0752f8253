"""Puts a mistake into a module that is imported already, by exchanging the code of its functions.

Most mistakes are inside a function, and importing all that the tests need takes longer than running them. One
that is not (a constant, a default, a field of a class) takes effect when the module is imported, and cannot
be put in so.
"""

import gc
import inspect
from collections.abc import Mapping
from types import CodeType, FunctionType

Place = tuple[str, int]
"""A function's qualified name, and its first line before the mistake."""


def exchanged(before: str, after: str) -> dict[Place, CodeType] | None:
    """The functions' code that a mistake changes; None if it changes more, or nothing."""
    found: dict[Place, CodeType] = {}
    one, other = (compile(text, "", "exec", dont_inherit=True) for text in (before, after))
    return found if _compare(one, other, found) and found else None


def _compare(before: CodeType, after: CodeType, found: dict[Place, CodeType]) -> bool:
    """Of a module or class, which runs when it is imported."""
    if _own(before) != _own(after):
        return False
    pairs = zip(_inner(before), _inner(after), strict=True)
    return all(_compare_inner(one, other, found) for one, other in pairs)


def _compare_inner(before: CodeType, after: CodeType, found: dict[Place, CodeType]) -> bool:
    if not before.co_flags & inspect.CO_OPTIMIZED:
        return _compare(before, after, found)  # a class
    if _all(before) == _all(after):
        return True
    runs_at_once = before.co_name.startswith("<") and before.co_name != "<lambda>"  # a comprehension
    if runs_at_once or before.co_freevars != after.co_freevars:
        return False
    found[before.co_qualname, before.co_firstlineno] = after
    return True


def _own(code: CodeType) -> tuple[object, ...]:
    """What it does itself, wherever its lines are."""
    plain = tuple(repr(value) for value in code.co_consts if not isinstance(value, CodeType))
    return code.co_code, code.co_names, code.co_varnames, plain, len(_inner(code))


def _inner(code: CodeType) -> list[CodeType]:
    return [value for value in code.co_consts if isinstance(value, CodeType)]


def _all(code: CodeType) -> tuple[object, ...]:
    return _own(code), tuple(map(_all, _inner(code)))


def functions_of(file: str) -> dict[Place, list[FunctionType]]:
    """All functions that were made from a file."""
    found: dict[Place, list[FunctionType]] = {}
    for value in gc.get_objects():
        if type(value) is FunctionType and value.__code__.co_filename == file:
            place = (value.__code__.co_qualname, value.__code__.co_firstlineno)
            found.setdefault(place, []).append(value)
    return found


def put_in(code: Mapping[Place, CodeType], functions: Mapping[Place, list[FunctionType]]) -> None:
    for place, new in code.items():
        for function in functions[place]:
            function.__code__ = new
