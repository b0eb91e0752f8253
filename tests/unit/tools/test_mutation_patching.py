"""The mutation tool: which mistakes can be put into a module that is imported, and what they change there."""

from types import ModuleType

import pytest

from mutation.patching import Place, exchanged, functions_of, put_in

BEFORE = """\
import functools
LIMIT = 3
NAMES = [name for name in "ab" if name]

def f(x, y=1):
    return [i + y for i in x if i < 2]

class A:
    field: int = 4

    def g(self):
        def inner():
            return 5
        return inner()

    @property
    def h(self):
        return 6

    @staticmethod
    @functools.cache
    def k(x):
        return x + 7

double = lambda x: x * 2
"""


@pytest.mark.parametrize(
    ("old", "new", "places"),
    [
        ("i < 2", "i <= 2", {("f", 5)}),
        ("return 5", "return 55", {("A.g", 11)}),
        ("return 6", "return 66", {("A.h", 16)}),
        ("x + 7", "x - 7", {("A.k", 20)}),
        ("x * 2", "x * 3", {("<lambda>", 25)}),
    ],
)
def test_what_is_inside_a_function(old: str, new: str, places: set[Place]) -> None:
    found = exchanged(BEFORE, BEFORE.replace(old, new))
    assert found is not None
    assert set(found) == places


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("LIMIT = 3", "LIMIT = 4"),
        ("if name]", "if not name]"),
        ("y=1", "y=2"),
        ("= 4", "= 5"),
        ("    @property\n", ""),
        ("double =", "triple ="),
        ("", ""),
        ("import functools", "import functools\n"),
    ],
)
def test_what_takes_effect_at_the_import_or_not_at_all(old: str, new: str) -> None:
    assert exchanged(BEFORE, BEFORE.replace(old, new, 1)) is None


def test_a_mistake_that_makes_lines_of_one_is_found_where_it_was() -> None:
    """Lines behind it are others then."""
    after = BEFORE.replace("return [i + y for i in x if i < 2]", "if x:\n        return []\n    return [y]")
    found = exchanged(BEFORE, after)
    assert found is not None
    assert ("f", 5) in found
    module = imported(BEFORE)
    put_in(found, functions_of(__name__ + ".made"))
    assert (module.f([1]), module.f([]), module.A().g()) == ([], [1], 5)


def imported(source: str) -> ModuleType:
    module = ModuleType("made")
    exec(compile(source, __name__ + ".made", "exec"), module.__dict__)
    return module


def test_it_is_seen_by_whoever_has_the_function_already() -> None:
    module = imported(BEFORE)
    f, h, k = module.f, module.A.h, module.A.k
    after = BEFORE.replace("i + y", "i - y").replace("return 6", "return 66").replace("x + 7", "x - 7")
    found = exchanged(BEFORE, after)
    assert found is not None
    put_in(found, functions_of(__name__ + ".made"))
    assert (f([1]), h.fget(module.A()), k(1)) == ([0], 66, -6)
    assert module.A().g() == 5
