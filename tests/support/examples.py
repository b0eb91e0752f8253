"""How many examples a property test looks at: a few in `make test`, many in `make test-long`."""

import os

MORE = "RETINUE_EXAMPLES"
"""In the environment: by how much the number is multiplied. `make test-long` says 4."""


def examples(few: int) -> int:
    return few * int(os.environ.get(MORE, "1"))
