"""`retinue openapi`: the REST interface, described for programs."""

from retinue.cli import output


def openapi() -> None:
    """Print what the controller's REST interface takes and answers, in OpenAPI 3.1; it needs no controller.

    \b
    Example:
      retinue openapi > retinue.openapi.json

    A controller serves its own at /v1/openapi.json.
    """
    from retinue.protocol.openapi import description

    output.print_json(description())
