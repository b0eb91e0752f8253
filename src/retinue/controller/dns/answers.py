"""One DNS message in, one out: what an authoritative server of one zone says (RFC 1034, 4.3.2)."""

from collections.abc import Iterator

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from retinue.controller.dns.zone import Records, Zone
from retinue.core.model import IP

LARGEST_DATAGRAM = 1232
"""Bytes of an answer over UDP: what IPv6's least MTU leaves, so that none is ever fragmented."""
WITHOUT_EDNS = 512
HEADER = 12
REFRESH, RETRY, EXPIRE, NEGATIVE_TTL = 10, 5, 7 * 86400, 5
"""Seconds: how often secondary servers look for changes, and for how long they go on without us."""
PER_MESSAGE = 500
"""Records in one message of a transfer."""

IN = dns.rdataclass.IN
TRANSFERS = (dns.rdatatype.AXFR, dns.rdatatype.IXFR)


def answer(query: bytes, zone: Zone) -> tuple[bytes, dns.rcode.Rcode] | None:
    """The answer over UDP; None: what came in gets none. Over TCP see `Conversation`."""
    asked = read(query)
    if not isinstance(asked, dns.message.Message):
        return asked
    reply = respond(asked, zone)
    most = min(LARGEST_DATAGRAM, max(WITHOUT_EDNS, asked.payload)) if asked.edns >= 0 else WITHOUT_EDNS
    return reply.to_wire(max_size=most, prefer_truncation=True), reply.rcode()


def read(query: bytes) -> dns.message.Message | tuple[bytes, dns.rcode.Rcode] | None:
    """The question; or, of one that cannot be read, the error that is answered; or None."""
    try:
        asked = dns.message.from_wire(query, ignore_trailing=False)
    except (dns.exception.DNSException, ValueError) as error:
        return _unreadable(query, error)
    if asked.flags & dns.flags.QR:
        return None  # An answer is never answered: two servers would go on for ever.
    return asked


def _unreadable(query: bytes, error: Exception) -> tuple[bytes, dns.rcode.Rcode] | None:
    if len(query) < HEADER or query[2] & 0x80:
        return None
    opcode = query[2] & 0x78
    code = dns.rcode.FORMERR if opcode == 0 else dns.rcode.NOTIMP
    return query[:2] + bytes([0x80 | opcode | query[2] & 1, code]) + bytes(8), code


def respond(asked: dns.message.Message, zone: Zone) -> dns.message.Message:
    """The answer to one question that is no transfer."""
    if asked.edns > 0:
        reply = dns.message.make_response(asked, our_payload=LARGEST_DATAGRAM)
        reply.set_rcode(dns.rcode.BADVERS)
        return reply
    reply = dns.message.make_response(asked, our_payload=LARGEST_DATAGRAM)
    if asked.opcode() != dns.opcode.QUERY:
        reply.set_rcode(dns.rcode.NOTIMP)
        return reply
    if len(asked.question) != 1:
        reply.set_rcode(dns.rcode.FORMERR)
        return reply
    question = asked.question[0]
    name, type = question.name, question.rdtype
    if question.rdclass != IN or not name.is_subdomain(zone.origin) or type in TRANSFERS:
        reply.set_rcode(dns.rcode.REFUSED)
        return reply
    reply.flags |= dns.flags.AA
    _look_up(reply, name, type, zone)
    return reply


def _look_up(
    reply: dns.message.Message, name: dns.name.Name, type: dns.rdatatype.RdataType, zone: Zone
) -> None:
    if name == zone.origin:
        sets = [one for one in apex(zone) if type in (one.rdtype, dns.rdatatype.ANY)]
        reply.answer.extend(sets)
        if not sets:
            reply.authority.append(start(zone))
        return
    found = zone.records(name)
    if found is None and not zone.is_whole:
        reply.set_rcode(dns.rcode.SERVFAIL)  # Who asks then asks another server of the zone.
        return
    if found is None:
        reply.set_rcode(dns.rcode.NXDOMAIN)
    elif found.alias is not None:
        reply.answer.extend(_all_of(name, found, zone.ttl))
        if type != dns.rdatatype.CNAME:
            target = zone.records(found.alias)
            reply.answer.extend(_addresses(found.alias, target, zone.ttl, type))
        return
    else:
        reply.answer.extend(_addresses(name, found, zone.ttl, type))
    if not reply.answer:
        reply.authority.append(start(zone))  # For how long "no" may be kept (RFC 2308, 3).


def start(zone: Zone) -> dns.rrset.RRset:
    """The zone's SOA record."""
    owner = dns.name.from_text("hostmaster", zone.origin)
    minimum = min(zone.ttl, NEGATIVE_TTL)
    numbers = f"{zone.serial} {REFRESH} {RETRY} {EXPIRE} {minimum}"
    return _set(zone.origin, minimum, dns.rdatatype.SOA, f"{zone.name_servers[0]} {owner} {numbers}")


def apex(zone: Zone) -> list[dns.rrset.RRset]:
    """What the zone's own name has."""
    servers = [str(name) for name in zone.name_servers]
    return [start(zone), _set(zone.origin, zone.ttl, dns.rdatatype.NS, *servers)]


def transfer(asked: dns.message.Message, zone: Zone) -> Iterator[bytes]:
    """The whole zone, message by message: SOA first and last (RFC 5936, 2.2)."""
    first = start(zone)
    waiting = [first, *apex(zone)[1:]]
    for name, found in zone.every():
        waiting.extend(_all_of(name, found, zone.ttl))
        if len(waiting) >= PER_MESSAGE:
            yield _message(asked, waiting)
            waiting = []
    yield _message(asked, [*waiting, first])


def _message(asked: dns.message.Message, sets: list[dns.rrset.RRset]) -> bytes:
    reply = dns.message.make_response(asked)
    reply.flags |= dns.flags.AA
    reply.answer.extend(sets)
    return reply.to_wire()


def _all_of(name: dns.name.Name, found: Records, ttl: int) -> Iterator[dns.rrset.RRset]:
    if found.alias is not None:
        yield _set(name, ttl, dns.rdatatype.CNAME, str(found.alias))
    else:
        yield from _addresses(name, found, ttl, dns.rdatatype.ANY)


def _addresses(
    name: dns.name.Name, found: Records | None, ttl: int, type: dns.rdatatype.RdataType
) -> Iterator[dns.rrset.RRset]:
    for version, its in ((4, dns.rdatatype.A), (6, dns.rdatatype.AAAA)):
        these: list[IP] = [ip for ip in (found.addresses if found else ()) if ip.version == version]
        if these and type in (its, dns.rdatatype.ANY):
            yield _set(name, ttl, its, *map(str, these))


def _set(name: dns.name.Name, ttl: int, type: dns.rdatatype.RdataType, *texts: str) -> dns.rrset.RRset:
    return dns.rrset.from_text(name, ttl, IN, type, *texts)
