"""What stands in the code below a field or a member of an enumeration, for those who read a description."""

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise


def said_of(kind: type) -> dict[str, str]:
    """By field or member of a class, its bases' among them: what stands below it, in one line."""
    said: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__ in sys.modules and base.__module__.startswith("retinue."):
            said |= _of_module(base.__module__).get(base.__qualname__, {})
    return said


@cache
def _of_module(name: str) -> dict[str, dict[str, str]]:
    """By class of the module."""
    tree = ast.parse(inspect.getsource(sys.modules[name]))
    return {node.name: _below(node.body) for node in tree.body if isinstance(node, ast.ClassDef)}


def _below(body: list[ast.stmt]) -> dict[str, str]:
    found = {}
    for before, after in pairwise(body):
        match before, after:
            case (
                ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                ast.Expr(value=ast.Constant(value=str(text))),
            ):
                found[name] = " ".join(text.split())
    return found


__all__ = ["said_of"]
