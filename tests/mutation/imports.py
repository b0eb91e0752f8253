"""What a file of the project imports, from all of the project, and a digest of all of it."""

import ast
import functools
import hashlib
from collections.abc import Iterable
from pathlib import Path

FROM = {"retinue": "src", "retinue_lab": "src"}
"""In which folder a package is; the tests' own are in the other."""
TESTS = "tests"


class Imports:
    """Of one tree. Only what import statements say; a module that is imported by name does not count."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._direct = functools.cache(self._read)
        self._is_file = functools.cache(lambda file: (root / file).is_file())
        self._content = functools.cache(lambda file: hashlib.sha256((root / file).read_bytes()).digest())

    def all_of(self, file: str) -> list[str]:
        """The file itself, and what it imports directly or not; paths in the tree, sorted."""
        found, left = {file}, [file]
        while left:
            new = self._direct(left.pop()) - found
            found |= new
            left += new
        return sorted(found)

    def conftests(self, file: str) -> list[str]:
        """Those that hold for a test file."""
        beside = [folder / "conftest.py" for folder in Path(file).parents]
        return [str(file) for file in beside if self._is_file(file)]

    def digest(self, files: Iterable[str], alone: Iterable[str] = (), more: str = "") -> str:
        """Another when one of the files or what it imports has changed, one of `alone` itself, or `more`."""
        made = hashlib.sha256(more.encode())
        for name in sorted({*alone, *(name for file in files for name in self.all_of(file))}):
            made.update(name.encode() + b"\0" + self._content(name))
        return made.hexdigest()

    def _read(self, file: str) -> frozenset[str]:
        found: set[str] = set()
        for node in ast.walk(ast.parse((self._root / file).read_text())):
            match node:
                case ast.Import(names=names):
                    for alias in names:
                        found |= self._files_of(alias.name)
                case ast.ImportFrom(module=str(module), level=0, names=names):
                    for alias in names:
                        found |= self._files_of(f"{module}.{alias.name}")
        return frozenset(found - {file})

    def _files_of(self, name: str) -> set[str]:
        """A module's, and those of the packages it is in; nothing for what is not of the project."""
        parts = name.split(".")
        base = Path(FROM.get(parts[0], TESTS))
        found: set[str] = set()
        for count in range(1, len(parts) + 1):
            place = base.joinpath(*parts[:count])
            for file in (place / "__init__.py", place.with_suffix(".py")):
                if self._is_file(file):
                    found.add(str(file))
        return found
