"""Our database: what the controller knows and must not forget, kept by an ovsdb-server of its own."""

from retinue.store.database import Database
from retinue.store.errors import StoreError
from retinue.store.rows import EndedLease, Owed, Place, Storable, Stored

__all__ = ["Database", "EndedLease", "Owed", "Place", "Storable", "Stored", "StoreError"]
