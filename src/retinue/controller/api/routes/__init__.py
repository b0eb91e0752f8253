"""The handlers of all routes, by resource."""

from retinue.controller.api.http import Handlers
from retinue.controller.api.routes import (
    bindings,
    description,
    domains,
    events,
    fabric,
    images,
    migrations,
    mobility,
    nics,
    pairs,
    renewals,
    servers,
    switches,
    traces,
    vms,
    vnets,
)
from retinue.controller.app import Controller


def handlers(controller: Controller) -> Handlers:
    """One for each route, but for GET_STATUS and GET_METRICS, which are about the interface, too."""
    return {
        **vms.handlers(controller),
        **bindings.handlers(controller),
        **migrations.handlers(controller),
        **renewals.handlers(controller),
        **nics.handlers(controller),
        **vnets.handlers(controller),
        **pairs.handlers(controller),
        **servers.handlers(controller),
        **fabric.handlers(controller),
        **switches.handlers(controller),
        **traces.handlers(controller),
        **domains.handlers(controller),
        **images.handlers(controller),
        **events.handlers(controller),
        **description.handlers(controller),
        **mobility.handlers(controller),
    }
