"""What agents have rejected where VMs are brought to them: each reports its totals, so that a report that
arrives twice does no harm."""

from typing import Annotated

import msgspec

from retinue.core.limits import LARGEST_COUNT, LATEST
from retinue.security.listener.rejections import Rejection


class CountersBody(msgspec.Struct, forbid_unknown_fields=True):
    """POST /v1/servers/{id}/counters: an agent's totals since it started."""

    since: Annotated[float, msgspec.Meta(gt=0, le=LATEST)]
    """When the agent started, by the server's clock."""
    rejected: dict[Rejection, Annotated[int, msgspec.Meta(ge=0, le=LARGEST_COUNT)]]
