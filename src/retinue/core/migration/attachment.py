"""What is told of where a VM is attached while it migrates, in this order and no other.

    state entered   what has just come to be true                          told
    switching       the target says that the VM runs there                 ready
    switched        every switch delivers the VM's traffic there (to the    registered
                    source at the most a copy): there its name leads       profile updated
    confirmed       no copy goes to the source any more, and what was      double delivery ended
                    bound there is deleted, while what is bound at the     online, at the target's switch
                    target stands: every switch says so                    offline, from the source's
                                                                           deregistered, at the source
    freed           the source's machine and port are gone                 released

Nothing is told of a migration that is undone before it is switching: the VM has been at its source all along.
"""

from enum import StrEnum

from retinue.core.migration.record import Migration, MigrationState


class AttachmentStep(StrEnum):
    """What is told; of the target: READY to PROFILE_UPDATED, and ONLINE; of the source the others."""

    READY = "ready"
    REGISTERED = "registered"
    PROFILE_UPDATED = "profile_updated"
    DOUBLE_DELIVERY_ENDED = "double_delivery_ended"
    ONLINE = "online"
    OFFLINE = "offline"
    DEREGISTERED = "deregistered"
    RELEASED = "released"

    @property
    def at_target(self) -> bool:
        """It is told of the target, else of the source."""
        return self in _AT_TARGET


_AT_TARGET = frozenset(
    {
        AttachmentStep.READY,
        AttachmentStep.REGISTERED,
        AttachmentStep.PROFILE_UPDATED,
        AttachmentStep.ONLINE,
    }
)
_ON_ENTERING = {
    MigrationState.SWITCHING: (AttachmentStep.READY,),
    MigrationState.SWITCHED: (AttachmentStep.REGISTERED, AttachmentStep.PROFILE_UPDATED),
    MigrationState.CONFIRMED: (
        AttachmentStep.DOUBLE_DELIVERY_ENDED,
        AttachmentStep.ONLINE,
        AttachmentStep.OFFLINE,
        AttachmentStep.DEREGISTERED,
    ),
    MigrationState.FREED: (AttachmentStep.RELEASED,),
}


def told(before: Migration, after: Migration) -> tuple[AttachmentStep, ...]:
    """What a step of a migration makes true that was not. A state that is entered once more tells nothing."""
    been = {state for state, _ in before.steps}
    entered = dict.fromkeys(state for state, _ in after.steps if state not in been)
    return tuple(step for state in entered for step in _ON_ENTERING.get(state, ()))
