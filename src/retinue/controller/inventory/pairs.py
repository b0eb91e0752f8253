"""The pool of pairs of MAC and IP that a manager gives: added, removed, taken by VMs (core.model.pairs)."""

from collections.abc import Collection, Iterator
from typing import Any

import structlog

from retinue.controller.context import Context
from retinue.controller.errors import RequestError
from retinue.controller.pair_changes import PairAdded, PairRemoved
from retinue.core.model import IP, Mac, ModelError
from retinue.core.model.pairs import AddressPair, added, next_free, user_of
from retinue.protocol.errors import ErrorCode

log = structlog.get_logger()


class Pairs:
    """Keeps the pool."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._net = context.net
        self._pool = context.state.pairs

    def add(self, given: Collection[tuple[Mac, IP]]) -> list[AddressPair]:
        """Pairs given in bulk; all of them or, on a mistake, none (ModelError)."""
        found = added(self._net, self._pool, given)
        self._context.apply(*map(PairAdded, found))
        return [self._pool[mac] for mac, _ in given]

    def configured(self, given: Collection[tuple[Mac, IP]]) -> None:
        """The configuration's; the database's have precedence, and what does not fit them is logged."""
        for mac, ip in given:
            try:
                self.add([(mac, ip)])
            except ModelError as error:
                log.warning("pairs.does_not_fit", mac=mac, ip=str(ip), error=str(error))

    def remove(self, mac: Mac) -> None:
        """Raises RequestError for one that is not there, or that a VM has."""
        pair = self._pool.get(mac)
        if pair is None:
            raise RequestError(
                f"there is no pair with MAC {mac}; `retinue pair list` shows those there are",
                ErrorCode.UNKNOWN_PAIR,
            )
        if user := user_of(self._net, pair):
            raise RequestError(f"{mac} with {pair.ip} is VM {user}'s: it goes when the VM has gone")
        self._context.apply(PairRemoved(pair))

    def take(self, vm: str, taken: Collection[Mac]) -> AddressPair:
        """The next free pair, for this VM. Between this and the VM's registration nothing may be awaited.

        `taken`: those that are for others of the same request. Raises RequestError when there is none.
        """
        pair = next_free(self._net, self._pool.values(), taken)
        if pair is None:
            why = "all pairs are taken" if self._pool else "no pairs are given"
            if any(one.mac not in taken and not user_of(self._net, one) for one in self._pool.values()):
                why = "of the pairs that are left none can be a VM's now"
            raise RequestError(
                f"VM {vm}: `mac` is missing, or `nics`, and {why} (`retinue pair add`)", ErrorCode.NO_PAIR
            )
        return pair

    def shown(self) -> Iterator[dict[str, Any]]:
        """By number, each with the VM that has it."""
        for pair in sorted(self._pool.values(), key=lambda one: one.number):
            yield self.row(pair)

    def row(self, pair: AddressPair) -> dict[str, Any]:
        return {
            "mac": pair.mac,
            "ip": str(pair.ip),
            "number": pair.number,
            "vm": user_of(self._net, pair),
        }


__all__ = ["Pairs"]
