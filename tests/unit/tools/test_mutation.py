"""The mutation tool: which mistakes it makes in a source text, and how it finds them again."""

import pytest

from mutation.__main__ import holes, known, sample, source_of
from mutation.operators import Mutant, mutants, plain
from mutation.targets import MODULES, PER_LINE


def made(source: str) -> set[str]:
    """The changed lines of all mistakes."""
    return {mutant.new for mutant in mutants("m", source)}


@pytest.mark.parametrize(
    ("source", "mistakes"),
    [
        ("x = a < b", {"x = (a <= b)", "x = (a >= b)"}),
        ("x = a is None", {"x = (a is not None)"}),
        ("x = a and b", {"x = (a or b)", "x = b", "x = a"}),
        ("x = 3", {"x = 4", "x = 2"}),
        ("x = 200", {"x = 250", "x = 150"}),
        ("x = True", {"x = False"}),
        ("x = Priority.ARP", {"x = Priority.ARP - 50", "x = Priority.ARP + 50"}),
        ("x = {a, b}", {"x = {a}", "x = {b}"}),
        ("x = (a, *b)", {"x = (a)", "x = (*b)", "x = (*b, a)"}),
        ("x = match(p=a, q=b)", {"x = match(p=a)", "x = match(q=b)"}),
        ("x = f(a, b)", {"x = f(b, a)"}),
        ("x = move.source", {"x = move.target"}),
        ("x = a - b", {"x = (a)", "x = (b)", "x = (a + b)"}),
        ("x = [a for a in b if a]", {"x = [a for a in b if (not a)]", "x = [a for a in b ]"}),
        ("if a:\n    f()", {"if (not a):", "pass"}),
        ("a.b = c", {"pass"}),
    ],
)
def test_mistakes(source: str, mistakes: set[str]) -> None:
    assert {plain(mistake) for mistake in mistakes} == made(source)


@pytest.mark.parametrize(
    "source",
    [
        '"""Words."""',
        "import a",
        "from a import b, c",
        "x: tuple[int, int]",
        "Event = Matched | TargetOpened | Confirmed",
        "def f(a: tuple[int, str]) -> dict[int, str]: ...",
        "@dataclass(frozen=True, slots=True)\nclass A:\n    x: int",
        "log.warning('words', a=1, b=2)",
        "x = f'{a + b} and {c < d}'",
        "assert a < b",
        "__all__ = ['a', 'b']",
        "if TYPE_CHECKING:\n    x = 1",
    ],
)
def test_what_is_left_alone(source: str) -> None:
    assert made(source) == set()


def test_guards_and_early_returns() -> None:
    source = "def f(a):\n    match a:\n        case A() if a.b:\n            g()\n"
    assert {"case A():", "case A() if (not a.b):", "pass"} == made(source)
    assert "return" in made("def f(a):\n    g()\n    h()\n    i()\n")


def test_a_mistake_knows_where_it_is() -> None:
    source = "class A:\n    def f(self):\n        return g(\n            a < b,\n        )\n"
    (mutant, *_) = [m for m in mutants("m", source) if "<=" in m.new]
    assert (mutant.scope, mutant.line, mutant.first, mutant.last, mutant.in_function) == (
        "A.f",
        4,
        3,
        5,
        True,
    )
    assert "(a <= b)" in mutant.text
    assert mutant.key == ("m", "A.f", "a < b,", "(a <= b),")
    (constant, *_) = mutants("m", "LIMIT = 2")
    assert (constant.scope, constant.in_function) == ("", False)


def test_a_sample_is_always_the_same_and_from_all_over_the_text() -> None:
    source = source_of(MODULES[0])
    found = mutants(MODULES[0], source)

    def texts(seed: int) -> list[str]:
        return [mutant.text for mutant in sample(MODULES[0], found, 20, seed)]

    assert texts(1) == texts(1) != texts(2)
    lines = [mutant.line for mutant in sample(MODULES[0], found, 20, 1)]
    assert len(lines) == 20
    assert max(map(lines.count, lines)) <= PER_LINE


@pytest.mark.parametrize("module", MODULES)
def test_every_mistake_is_another_program(module: str) -> None:
    source = source_of(module)
    found = mutants(module, source)
    assert len({mutant.text for mutant in found}) == len(found)
    assert all(mutant.text != source for mutant in found)
    some = found[:30]
    assert sum(mutant.compiles() for mutant in some) >= 0.8 * len(some)


def test_the_lists_fit_the_code() -> None:
    """Whoever changes code of which they speak changes them, too."""
    for hole in holes():
        assert hole.module in MODULES
        assert hole.compiles(), hole.scope
    keys = {mutant.key for module in MODULES for mutant in mutants(module, source_of(module))}
    for entry in known():
        assert entry.key in keys, f"equivalent.toml, {entry.scope}: {entry.old} -> {entry.new}"
        assert entry.why


def test_a_mistake_can_be_told_from_another_in_the_same_words() -> None:
    source = "def f(a):\n    return a < 1\n\n\ndef g(a):\n    return a < 1\n"
    by_scope: dict[str, list[Mutant]] = {}
    for mutant in mutants("m", source):
        by_scope.setdefault(mutant.scope, []).append(mutant)
    assert len(by_scope["f"]) == len(by_scope["g"])
    assert not {m.key for m in by_scope["f"]} & {m.key for m in by_scope["g"]}
