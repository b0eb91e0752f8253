"""python -m docsite FOLDER: writes the site's source there.
python -m docsite --look FOLDER: looks through a site that was built, and says what is wrong with it.
python -m docsite --man FOLDER: writes the manual pages of the configuration files and of the services there.
"""

import shutil
import sys
from pathlib import Path

from docsite import manual
from docsite.look import faults
from docsite.stage import write


def main(argv: list[str]) -> int:
    match argv:
        case ["--look", folder]:
            found = faults(Path(folder))
            for line in found:
                print(line, file=sys.stderr)
            return 1 if found else 0
        case ["--man", folder]:
            manual.write(Path(folder))
            return 0
        case [folder]:
            shutil.rmtree(folder, ignore_errors=True)
            write(Path(folder))
            return 0
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
