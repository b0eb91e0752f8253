"""Watches an interface for frames of FCoE that are no data: what there is to see of trouble, and of logins.

    python -m support.lab.fc_watch INTERFACE

A line for each: "aborts FC_ID > FC_ID" (ABTS), "asks ...", "answers ..." with the command of a link service
in hexadecimal (13: REC, 03: PLOGI), "logs in NODE" (FIP). Data is left out in the kernel. "watches" first.
"""

import sys

from retinue.core.packets import EtherType, FrameError, parse
from retinue.core.packets.fip import REQUEST, parse_fip
from retinue_lab.measure import sniff
from retinue_lab.storage.frames import HEADER_AT, RCtl, Type, parse_storage

KIND_OF_FRAME = 0xF0
"""Of R_CTL the half that is 0 for data (FC-FS, routing)."""
LOAD_HALF, LOAD_BYTE, AND, JUMP_EQUAL, RETURN = 0x28, 0x30, 0x54, 0x15, 0x06
NO_DATA: list[sniff.Instruction] = [
    (LOAD_HALF, 0, 0, 12),
    (JUMP_EQUAL, 4, 0, EtherType.FIP),
    (JUMP_EQUAL, 0, 4, EtherType.FCOE),
    (LOAD_BYTE, 0, 0, HEADER_AT),
    (AND, 0, 0, KIND_OF_FRAME),
    (JUMP_EQUAL, 1, 0, 0),
    (RETURN, 0, 0, 0xFFFF),
    (RETURN, 0, 0, 0),
]


def told(data: bytes) -> str:
    """ "": nothing to tell. Raises FrameError."""
    ethernet = parse(data)
    if ethernet.ethertype == EtherType.FIP:
        said = parse_fip(ethernet.payload)
        asks = said.service is not None and said.subcode == REQUEST
        return f"logs in {ethernet.src}" if asks else ""
    frame = parse_storage(data)
    way = f"{frame.s_id:06x} > {frame.d_id:06x}"
    if frame.r_ctl == RCtl.ABORT:
        return f"aborts {way}"
    if frame.kind == Type.LINK_SERVICE and frame.data:
        word = {RCtl.LINK_REQUEST: "asks", RCtl.LINK_ANSWER: "answers"}.get(frame.r_ctl, "says")
        return f"{word} {frame.data[0]:02x} {way}"
    return f"r_ctl {frame.r_ctl:02x} {way}"


def main(interface: str) -> None:
    with sniff.listen(interface, NO_DATA) as wire:
        print("watches", flush=True)
        while True:
            try:
                line = told(sniff.take(wire)[1])
            except FrameError as error:
                line = f"damaged: {error}"
            if line:
                print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
