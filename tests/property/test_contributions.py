"""Contributions in little room come out as they went in; a switch's mirror is what it would be in full."""

import asyncio
from collections.abc import Mapping

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retinue.controller.switches.mirror import Mirror
from retinue.core.model.network import Owner
from retinue.core.pipeline import contributions as module
from retinue.core.pipeline.contributions import Contribution, Contributions, SwitchProgram
from retinue.core.pipeline.cookies import Reason, cookie, owner_hash
from retinue.core.pipeline.entry import (
    CONTROLLER,
    Change,
    DecTtl,
    Entry,
    EntryKey,
    Field,
    Flow,
    Group,
    Meter,
    Output,
    Program,
    RegMove,
    SetField,
    key_of,
)
from retinue.core.pipeline.shapes import Shapes
from support.examples import examples

OWNERS = [Owner("vm", f"vm{n}") for n in range(4)]
SWITCHES = ["edge1", "leaf1", "spine1"]
NUMBERS = st.sampled_from([0, 1, 5, 0x0A010064, 0x525400000001, 0xFFFFFFFD, 1 << 127])
ENDS = st.sampled_from([None, 5.0, float(0x0A010064), 1e10])
FIELDS = [Field.IN_PORT, Field.ETH_SRC, Field.ETH_TYPE, Field.IPV4_SRC, Field.ARP_TPA, Field.IPV6_DST]
TERMS = st.tuples(st.sampled_from(FIELDS), NUMBERS, st.sampled_from([None, 0xFF, 5]))
ACTIONS = st.one_of(
    st.builds(SetField, st.sampled_from([Field.ETH_DST, Field.ARP_OP, Field.TUN_DST]), NUMBERS),
    st.builds(Output, NUMBERS),
    st.sampled_from([CONTROLLER, DecTtl(), RegMove(Field.ETH_SRC, Field.ETH_DST)]),
)


def flows(owner: Owner) -> st.SearchStrategy[Flow]:
    of = st.sampled_from([owner, *OWNERS])
    return st.builds(
        Flow,
        st.sampled_from([0, 10]),
        st.sampled_from([100, 200]),
        st.lists(TERMS, max_size=3, unique_by=lambda term: term[0]).map(tuple),
        st.lists(ACTIONS, max_size=3).map(tuple),
        goto=st.sampled_from([None, 20]),
        meter=st.sampled_from([None, 7]),
        cookie=st.one_of(st.just(0), st.builds(cookie, st.sampled_from(Reason), of)),
        expires_at=ENDS,
    )


def programs(owner: Owner) -> st.SearchStrategy[Program]:
    others: st.SearchStrategy[Entry] = st.sampled_from(
        [Group(5, ((Output(1),),)), Meter(5, 20, 20), Meter(5, 50, 50)]
    )
    entries = st.lists(st.one_of(flows(owner), flows(owner), others), min_size=1, max_size=5)
    return entries.map(lambda found: {key_of(entry): entry for entry in found})


def contribution_of(owner: Owner) -> st.SearchStrategy[Contribution]:
    return st.dictionaries(st.sampled_from(SWITCHES), programs(owner), max_size=3)


STEPS = st.sampled_from(OWNERS).flatmap(lambda owner: st.tuples(st.just(owner), contribution_of(owner)))


@settings(deadline=None, max_examples=examples(40))
@given(contribution=contribution_of(OWNERS[0]))
def test_what_is_packed_comes_out_equal(contribution: Contribution) -> None:
    mark = owner_hash(OWNERS[0])
    packed = Shapes().pack(contribution, mark)
    found = packed.programs(mark)
    assert found == contribution
    for switch in SWITCHES:
        assert packed.on(switch, mark) == contribution.get(switch, {})
    ends = [e.expires_at for p in found.values() for e in p.values() if isinstance(e, Flow)]
    assert all(end is None or isinstance(end, float) for end in ends)


@settings(deadline=None, max_examples=examples(20))
@pytest.mark.parametrize("hashes", [1, 3, 1 << 60])
@given(steps=st.lists(STEPS, max_size=12), recent=st.sampled_from([0, 1, 100]))
def test_what_is_kept_is_what_was_put(
    hashes: int, steps: list[tuple[Owner, Contribution]], recent: int
) -> None:
    """Also where many keys have one hash: then an index tells more owners than there are, and no less."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_place", lambda key: hash(key) % hashes)
        found, all_of = Contributions(recent), dict[Owner, Contribution]()
        for owner, wanted in steps:
            assert found.drop(owner) == all_of.pop(owner, {})
            taken = {(switch, key) for c in all_of.values() for switch, p in c.items() for key in p}
            free = {
                switch: {key: entry for key, entry in program.items() if (switch, key) not in taken}
                for switch, program in wanted.items()
            }
            all_of[owner] = {switch: program for switch, program in free.items() if program}
            found.put(owner, all_of[owner])
            is_as(found, all_of)


def is_as(found: Contributions, all_of: Mapping[Owner, Contribution]) -> None:
    for owner in OWNERS:
        assert found.of(owner) == all_of.get(owner, {})
    for switch in SWITCHES:
        program = SwitchProgram(found, switch)
        whole: Program = {}
        for contribution in all_of.values():
            whole.update(contribution.get(switch, {}))
        assert program.whole() == whole == dict(program)
        assert len(program) == len(whole)
        assert program.owners() == {owner for owner, c in all_of.items() if c.get(switch)}
        assert program.taken([*whole, ("meter", 99)]) == whole
        assert all(program[key] == entry and key in program for key, entry in whole.items())
        assert program.get(("meter", 99)) is None


# ---- mirror ----

KEYS: list[EntryKey] = [("meter", number) for number in range(4)]
PROGRAMS = st.dictionaries(st.sampled_from(KEYS), st.integers(1, 3), max_size=4).map(
    lambda rates: {key: Meter(int(key[1]), rate, 1) for key, rate in rates.items()}
)
"""Of meters alone: to a mirror an entry is an entry."""
EVENTS = st.tuples(st.sampled_from(["program", "sent", "holds", "gone", "holds late"]), PROGRAMS, PROGRAMS)


class Wanted:
    """A program of one owner, and what it was before each change, as the compiler tells it."""

    def __init__(self) -> None:
        self.contributions = Contributions(0)
        self.program = SwitchProgram(self.contributions, "edge1")

    def change(self, to: Mapping[EntryKey, Entry]) -> dict[EntryKey, Entry | None]:
        was = self.contributions.drop(OWNERS[0]).get("edge1", {})
        self.contributions.put(OWNERS[0], {"edge1": dict(to)} if to else {})
        return {key: was.get(key) for key in {*was, *to} if was.get(key) != to.get(key)}


@settings(deadline=None, max_examples=examples(40))
@given(events=st.lists(EVENTS, max_size=10))
def test_a_mirror_is_what_the_switch_has_confirmed(
    events: list[tuple[str, dict[EntryKey, Meter], dict[EntryKey, Meter]]],
) -> None:
    asyncio.run(mirror_agrees(events))


async def mirror_agrees(
    events: list[tuple[str, dict[EntryKey, Meter], dict[EntryKey, Meter]]],
) -> None:
    """Beside it the same as a dictionary of all entries."""
    wanted = Wanted()
    mirror, has, is_known = Mirror(wanted.program), dict[EntryKey, Entry](), False
    for what, entries, others in events:
        if what == "program":
            mirror.changed(wanted.change(entries))
        elif what == "sent" and is_known:
            mirror.sent(Change(meters=tuple(entries.values())))
            has.update(entries)
        elif what == "gone" and is_known:
            mirror.set(dict.fromkeys(entries))
            has = {key: entry for key, entry in has.items() if key not in entries}
        elif what == "holds":
            await mirror.holds(entries)
            has, is_known = dict(entries), True
        elif what == "holds late":  # The program changes while what was found is being compared.
            task = asyncio.create_task(mirror.holds(entries))
            await asyncio.sleep(0)
            mirror.changed(wanted.change(others))
            await task
            has, is_known = dict(entries), True
        assert mirror.taken(KEYS) == has
        assert [mirror.get(key) for key in KEYS] == [has.get(key) for key in KEYS]
        program = wanted.program.whole()
        if is_known:
            assert mirror.differing == {key for key in KEYS if program.get(key) != has.get(key)}
        assert mirror.has_all(program) == (is_known and program.keys() <= has.keys())
