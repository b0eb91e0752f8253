"""How many examples a property test looks at: a few, always the same, in `make test`; many, and others each
time, in `make test-long`."""

import os

MORE = "RETINUE_EXAMPLES"
"""In the environment: by how much the number is multiplied. `make test-long` says 4."""


def wanted_more() -> bool:
    return MORE in os.environ


def examples(few: int) -> int:
    return few * int(os.environ.get(MORE, "1"))
