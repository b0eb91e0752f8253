"""Packages of a version that is later than this tree's."""

import re
import shutil
import subprocess
from pathlib import Path


def newer(debs: Path, folder: Path, *, depends: str = "") -> Path:
    """The same packages, by a later version's number; `depends`: on one package more."""
    folder.mkdir()
    for deb in sorted(debs.glob("*.deb")):
        tree = folder / "tree"
        subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
        control = tree / "DEBIAN/control"
        (version,) = re.findall(r"^Version: (.*)$", control.read_text(), re.MULTILINE)
        text = control.read_text().replace(version, f"{version}+1")
        control.write_text(
            re.sub(r"^Depends: ", f"Depends: {depends}, " if depends else "Depends: ", text, flags=re.M)
        )
        to = folder / deb.name.replace(version, f"{version}+1")
        subprocess.run(["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b", tree, to], check=True)
        shutil.rmtree(tree)
    return folder
