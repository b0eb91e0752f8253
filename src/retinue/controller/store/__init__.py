"""Our database: what the controller knows and must not forget, kept by an ovsdb-server of its own."""

from retinue.controller.errors import StoreError
from retinue.controller.store.database import Database

__all__ = ["Database", "StoreError"]
