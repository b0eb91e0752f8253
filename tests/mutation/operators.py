"""Which mistakes can be made in a source text. Each is a piece of the text and what to put in its place.

Left alone is what only people or tools read: docstrings, types, decorators, imports, logs and the words of
messages.
"""

import ast
import copy
from collections.abc import Callable
from dataclasses import dataclass

EXCHANGED = (
    ("source", "target"),
    ("stopped_at", "resumed_at"),
    ("want", "have"),
    ("wanted", "found"),
    ("add", "remove"),
    ("leaf", "spine"),
    ("src", "dst"),
    ("eth_src", "eth_dst"),
    ("udp_src", "udp_dst"),
    ("ETH_SRC", "ETH_DST"),
    ("arp_sha", "eth_src"),
    ("arp_spa", "arp_tpa"),
    ("ciaddr", "requested_address"),
    ("ADMIT", "FORWARD"),
    ("DELIVER", "FORWARD"),
    ("ROUTE", "SERVERS"),
    ("HOST", "HAIRPIN"),
    ("ACK", "NAK"),
    ("min", "max"),
    ("any", "all"),
)
"""Names that are easily taken for each other."""

COMPARED: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
}

STEP = 50
"""By how much a priority is moved: past those beside it. (So is any other number that is as large.)"""

_OTHER_NAME = {one: other for pair in EXCHANGED for one, other in (pair, pair[::-1])}
_LOGS = ("log", "logger")
_ANY_ORDER = ("min", "max")


@dataclass(frozen=True)
class Mutant:
    """One mistake. Lines count from 1; `first` to `last` are those of the statement it is made in."""

    module: str
    scope: str
    """Function or class it is made in; "" for the module itself."""
    in_function: bool
    first: int
    last: int
    line: int
    text: str
    """The whole module with the mistake."""
    old: str
    new: str
    """The lines that change, before and after, without indentation."""

    @property
    def key(self) -> tuple[str, str, str, str]:
        return (self.module, self.scope, self.old, self.new)

    def compiles(self) -> bool:
        """False for a mistake that Python itself would find, such as a case that can never be reached."""
        try:
            compile(self.text, self.module, "exec", dont_inherit=True)
        except SyntaxError:
            return False
        return True


def plain(code: str) -> str:
    """Source text without its layout, so that it is found again when it was wrapped otherwise."""
    return " ".join(code.split()).replace("( ", "(").replace(" )", ")").replace(",)", ")")


def mutants(module: str, source: str) -> list[Mutant]:
    """All mistakes, in the order of the text; a few of them do not compile."""
    found = {mutant.text: mutant for mutant in _Maker(module, source).run()}
    return sorted(found.values(), key=lambda mutant: mutant.line)


class _Maker:
    def __init__(self, module: str, source: str) -> None:
        self.module, self.source = module, source
        self.lines = source.splitlines(keepends=True)
        self.starts = [0]
        for line in self.lines:
            self.starts.append(self.starts[-1] + len(line.encode()))
        self.bytes = source.encode()
        self.found: list[Mutant] = []
        self.scope: list[str] = []
        self.functions = 0
        self.span = (1, 1)

    def run(self) -> list[Mutant]:
        for statement in ast.parse(self.source).body:
            self.statement(statement)
        return self.found

    # ---- the text ----

    def location(self, node: ast.expr | ast.stmt) -> tuple[int, int]:
        assert node.end_lineno is not None and node.end_col_offset is not None
        begin = self.starts[node.lineno - 1] + node.col_offset
        return begin, self.starts[node.end_lineno - 1] + node.end_col_offset

    def put(self, begin: int, end: int, new: str) -> None:
        text = (self.bytes[:begin] + new.encode() + self.bytes[end:]).decode()
        first = self.bytes.count(b"\n", 0, begin)
        last = self.bytes.count(b"\n", 0, max(begin, end - 1))
        removed = last - first + 1
        now = text.splitlines(keepends=True)
        kept = removed + len(now) - len(self.lines)
        old = plain("".join(self.lines[first : first + removed]))
        changed = plain("".join(now[first : first + kept]))
        if old == changed:
            return
        scope = ".".join(self.scope)
        self.found.append(
            Mutant(self.module, scope, self.functions > 0, *self.span, first + 1, text, old, changed)
        )

    def swap_in(self, node: ast.expr, change: Callable[[ast.expr], ast.expr | None]) -> None:
        """Put in place of an expression what `change` makes of a copy of it."""
        new = change(copy.deepcopy(node))
        if new is not None:
            text = ast.unparse(ast.fix_missing_locations(new))
            simple = isinstance(new, ast.Call | ast.Name | ast.Attribute | ast.Constant | ast.Tuple | ast.Set)
            self.put(*self.location(node), text if simple else f"({text})")

    def instead(self, node: ast.expr, text: str) -> None:
        self.put(*self.location(node), text)

    # ---- statements ----

    def statement(self, node: ast.stmt) -> None:
        match node:
            case ast.Import() | ast.ImportFrom() | ast.Assert():
                return
            case ast.Assign(targets=[ast.Name(id="__all__")]):
                return
            case ast.Assign(value=ast.Subscript()) if not self.scope:
                return  # A type, or a place in a table of those.
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.Expr(value=ast.Constant()):
                return
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                self.definition(node)
                return
        body = getattr(node, "body", None)
        before, self.span = self.span, (node.lineno, node.end_lineno or node.lineno)
        if body:
            self.span = (node.lineno, max(node.lineno, body[0].lineno - 1))
        self.delete(node)
        match node:
            case ast.Match():
                self.span = (node.lineno, node.lineno)
                self.expression(node.subject)
                for case in node.cases:
                    self.case(case)
            case _:
                if isinstance(node, ast.If | ast.While):
                    self.negate(node.test)
                for child in ast.iter_child_nodes(node):
                    if isinstance(child, ast.expr) and child is not getattr(node, "annotation", None):
                        self.expression(child)
                self.blocks(node)
        self.span = before

    def blocks(self, node: ast.stmt) -> None:
        for name in ("body", "orelse", "finalbody"):
            for statement in getattr(node, name, ()):
                self.statement(statement)
        if isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                self.expression(item.context_expr)
        if isinstance(node, ast.Try):
            for handler in node.handlers:
                if isinstance(handler.type, ast.Tuple):
                    self.expression(handler.type)
                for statement in handler.body:
                    self.statement(statement)

    def definition(self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> None:
        self.scope.append(node.name)
        if not isinstance(node, ast.ClassDef):
            self.functions += 1
            before, self.span = self.span, (node.lineno, node.end_lineno or node.lineno)
            for default in (*node.args.defaults, *(d for d in node.args.kw_defaults if d is not None)):
                self.expression(default)
            self.return_early(node)
            self.span = before
        for statement in node.body:
            self.statement(statement)
        if not isinstance(node, ast.ClassDef):
            self.functions -= 1
        self.scope.pop()

    def case(self, case: ast.match_case) -> None:
        before_it = self.span  # Whether a case is looked at is known of the whole match only.
        if case.guard is not None:
            self.negate(case.guard)
            begin, end = self.location(case.guard)
            before = self.bytes.rindex(b" if ", 0, begin)
            self.put(before, end, "")
            self.expression(case.guard)
        for statement in case.body:
            self.statement(statement)
        self.span = before_it

    def delete(self, node: ast.stmt) -> None:
        match node:
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id=name)))) if name in _LOGS:
                return
            case ast.Expr() | ast.AugAssign() | ast.Delete() | ast.Raise() | ast.Continue() | ast.Break():
                self.put(*self.location(node), "pass")
            case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]):
                self.put(*self.location(node), "pass")
            case ast.If(orelse=[], body=[*_, ast.Return() | ast.Raise() | ast.Continue()]):
                self.put(*self.location(node), "pass")
            case ast.Return() if self.functions:
                self.put(*self.location(node), "pass")

    def return_early(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        if len(node.body) > 2 and not isinstance(node.body[-1], ast.Return):
            begin, end = self.location(node.body[-1])
            self.span = (node.body[-1].lineno, node.body[-1].lineno)
            self.put(begin, end, "return")

    # ---- expressions ----

    def negate(self, test: ast.expr) -> None:
        self.swap_in(test, lambda node: ast.UnaryOp(ast.Not(), node))

    def expression(self, node: ast.expr) -> None:
        if isinstance(node, ast.JoinedStr):
            return
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id in _LOGS:
                return
        self.change(node)
        match node:
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                self.comprehension(node)
            case ast.IfExp():
                self.negate(node.test)
        for child in ast.iter_child_nodes(node):
            match child:
                case ast.expr():
                    self.expression(child)
                case ast.keyword(value=value):
                    self.expression(value)
                case ast.comprehension():
                    self.expression(child.iter)
                    for test in child.ifs:
                        self.expression(test)

    def comprehension(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        for generator in node.generators:
            for test in generator.ifs:
                self.negate(test)
                begin, end = self.location(test)
                keyword = self.bytes.rindex(b"if", 0, begin)
                self.put(keyword, end, "")

    def change(self, node: ast.expr) -> None:
        match node:
            case ast.Compare():
                self.compare(node)
            case ast.BoolOp():
                self.boolean(node)
            case ast.Constant():
                self.constant(node)
            case ast.BinOp(op=ast.Add() | ast.Sub() | ast.BitOr() | ast.BitAnd()):
                self.arithmetic(node)
            case ast.Tuple() | ast.List() | ast.Set():
                self.elements(node)
            case ast.Dict():
                self.entries(node)
            case ast.Call():
                self.call(node)
            case ast.Attribute(value=ast.Name(id="Priority")):
                name = ast.unparse(node)
                self.instead(node, f"{name} - {STEP}")
                self.instead(node, f"{name} + {STEP}")
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                self.instead(node, f"({ast.unparse(operand)})")
        match node:
            case ast.Name(id=name, ctx=ast.Load()) if name in _OTHER_NAME:
                self.instead(node, _OTHER_NAME[name])
            case ast.Attribute(attr=name, ctx=ast.Load()) if name in _OTHER_NAME:
                self.instead(node, f"{ast.unparse(node.value)}.{_OTHER_NAME[name]}")

    def compare(self, node: ast.Compare) -> None:
        for number, op in enumerate(node.ops):
            for other in COMPARED[type(op)]:

                def turned(found: ast.expr, n: int = number, to: type[ast.cmpop] = other) -> ast.expr:
                    assert isinstance(found, ast.Compare)
                    found.ops[n] = to()
                    return found

                self.swap_in(node, turned)

    def boolean(self, node: ast.BoolOp) -> None:
        def other(found: ast.expr) -> ast.expr:
            assert isinstance(found, ast.BoolOp)
            found.op = ast.Or() if isinstance(found.op, ast.And) else ast.And()
            return found

        self.swap_in(node, other)
        for number in range(len(node.values)):

            def without(found: ast.expr, n: int = number) -> ast.expr:
                assert isinstance(found, ast.BoolOp)
                del found.values[n]
                return found if len(found.values) > 1 else found.values[0]

            self.swap_in(node, without)

    def constant(self, node: ast.Constant) -> None:
        match node.value:
            case bool():
                self.instead(node, str(not node.value))
            case int() if node.value >= STEP:
                self.instead(node, str(node.value + STEP))
                self.instead(node, str(node.value - STEP))
            case int():
                self.instead(node, str(node.value + 1))
                if node.value:
                    self.instead(node, str(node.value - 1))
            case float():
                self.instead(node, repr(node.value * 2 if node.value else 1.0))
                if node.value:
                    self.instead(node, repr(node.value / 2))

    def arithmetic(self, node: ast.BinOp) -> None:
        if not self.scope and isinstance(node.op, ast.BitOr):
            names = [part for part in ast.walk(node) if isinstance(part, ast.Name | ast.Subscript)]
            if len(names) * 2 - 1 >= sum(isinstance(p, ast.expr) for p in ast.walk(node)):
                return  # A union of types.
        self.instead(node, f"({ast.unparse(node.left)})")
        self.instead(node, f"({ast.unparse(node.right)})")
        if isinstance(node.op, ast.Add | ast.Sub):
            sign = "-" if isinstance(node.op, ast.Add) else "+"
            self.instead(node, f"({ast.unparse(node.left)} {sign} {ast.unparse(node.right)})")

    def elements(self, node: ast.Tuple | ast.List | ast.Set) -> None:
        count = len(node.elts)
        if count < 2 or not isinstance(getattr(node, "ctx", ast.Load()), ast.Load):
            return
        for number in range(count):

            def without(found: ast.expr, n: int = number) -> ast.expr:
                assert isinstance(found, ast.Tuple | ast.List | ast.Set)
                del found.elts[n]
                return found

            self.swap_in(node, without)
        if not isinstance(node, ast.Set):
            for number in range(count - 1):
                if ast.dump(node.elts[number]) == ast.dump(node.elts[number + 1]):
                    continue

                def turned(found: ast.expr, n: int = number) -> ast.expr:
                    assert isinstance(found, ast.Tuple | ast.List)
                    found.elts[n], found.elts[n + 1] = found.elts[n + 1], found.elts[n]
                    return found

                self.swap_in(node, turned)

    def entries(self, node: ast.Dict) -> None:
        for number in range(len(node.keys) if len(node.keys) > 1 else 0):

            def without(found: ast.expr, n: int = number) -> ast.expr:
                assert isinstance(found, ast.Dict)
                del found.keys[n], found.values[n]
                return found

            self.swap_in(node, without)

    def call(self, node: ast.Call) -> None:
        for number, keyword in enumerate(node.keywords):

            def without(found: ast.expr, n: int = number) -> ast.expr:
                assert isinstance(found, ast.Call)
                del found.keywords[n]
                return found

            self.swap_in(node, without)
            if keyword.arg in _OTHER_NAME:

                def renamed(found: ast.expr, n: int = number) -> ast.expr:
                    assert isinstance(found, ast.Call)
                    found.keywords[n].arg = _OTHER_NAME[found.keywords[n].arg or ""]
                    return found

                self.swap_in(node, renamed)
        if isinstance(node.func, ast.Name) and node.func.id in _ANY_ORDER:
            return
        for number in range(len(node.args) - 1):

            def turned(found: ast.expr, n: int = number) -> ast.expr:
                assert isinstance(found, ast.Call)
                found.args[n], found.args[n + 1] = found.args[n + 1], found.args[n]
                return found

            self.swap_in(node, turned)
