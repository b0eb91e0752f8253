"""The page in Debian's Chromium, before the real REST interface of a controller whose switches are fakes."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator, Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from retinue.controller.app import Controller
from retinue.controller.event_ring import EventRing
from retinue.core.migration import Migration, MigrationState
from retinue.protocol.events import EventType
from retinue.protocol.images import HeldImage, ImagesBody, ImageState, SignedManifest, StoreUse
from retinue.protocol.mobility import ServerReport, VMSize
from support.browser import Browser, chromium
from support.fabric.networks import GATEWAY_MAC, vm_mac, vm_port
from support.fabric.world import OUTSIDE, udp_frame
from support.web_page import TOKENS, Served

pytestmark = pytest.mark.browser

MARKUP = '<img src=x onerror="document.title=1"><script>document.title=1</script>'
AXE = "RETINUE_AXE"
"""Variable with the path of axe-core's axe.min.js (npm), for the test that needs it."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as found:
        yield found


@pytest.fixture
async def page(served: Served, browser: Browser) -> Browser:
    """A manager has logged in, and the network is drawn."""
    await browser.open("about:blank")
    browser.said()
    await browser.open(served.page_for("manager"))
    await browser.sees("svg .vm", "vm1")
    return browser


PLACE = """
const box = (node) => node.querySelector("rect").getBoundingClientRect();
const vm = box(document.querySelector(`[data-key="vm ${arguments[0]}"]`));
const has = (it) => it.left <= vm.left && vm.right <= it.right && it.top <= vm.top && vm.bottom <= it.bottom;
return [...document.querySelectorAll(".server")].find((one) => has(box(one)))?.dataset.key ?? "";
"""
"""In whose box a VM is drawn; "" while it is on its way between two."""


WAYS = """
return [...document.querySelectorAll(".over .ways path")].map((way) => getComputedStyle(way).animationName);
"""


async def is_at(page: Browser, vm: str, server: str) -> None:
    await page.until(
        lambda driver: driver.execute_script(PLACE, vm) == f"server {server}", f"{vm} at {server}"
    )


async def test_a_move_started_by_a_click_is_seen_to_end(served: Served, page: Browser) -> None:
    await is_at(page, "vm1", "server1")
    await page.click('[data-key="vm vm1"]')
    await page.choose("#target", "server2")
    await page.click("#start-move")
    await page.sees("h1", "migration-1")
    await page.sees("button", "Cancel this move")
    await page.open(f"{served.url}/#/")
    await page.sees(".under-way", "migration-1")
    await page.sees(".picture .over .vm.moves", "vm1")
    await is_at(page, "vm1", "server1")
    await served.goes(downtime=0.012)
    await is_at(page, "vm1", "server2")
    await served.report("source_freed")
    await page.sees("svg .vm.running", "vm1")
    await page.open(f"{served.url}/#/moves/migration-1")
    await page.sees("dd", "done")
    await page.sees("dd", "12.0 ms")
    await page.sees(".timeline", "diverted")
    await page.sees(".timeline .paused", "VM paused")
    assert "Cancel" not in await page.run("return document.querySelector('main').innerText")
    await page.open(f"{served.url}/#/bindings")
    await page.sees("td", "edge2")
    assert page.said() == []


async def test_a_move_is_cancelled(served: Served, page: Browser) -> None:
    served.controller.orchestrator.start("vm1", target_server="server2")
    await page.open(f"{served.url}/#/moves/migration-1")
    await page.press("Cancel this move")
    await page.sees("dd", "rolling back")
    await served.report("rolled_back")
    await served.report("target_closed")
    await page.sees("dd", "undone")


async def test_a_server_is_drained_and_its_vm_moves(served: Served, page: Browser) -> None:
    await page.open(f"{served.url}/#/servers/server1")
    await page.press("Drain this server")
    await page.sees("dialog", "Drain server1?")
    await page.click("#sure")
    await page.sees("[role=status]", "vm1 goes now")
    assert served.controller.net.drained == {"server1"}
    target = served.controller.orchestrator.migrations["migration-1"].target
    assert target == "server2"
    await served.goes()
    await served.report("source_freed")
    await page.sees("[role=status]", "server1 is drained: 1 VM gone.")
    await page.press("Let it take VMs again")
    await page.sees("button", "Drain this server")
    assert not served.controller.net.drained


@pytest.mark.parametrize(("moves", "animation"), [(12, "on"), (13, "none")])
async def test_of_many_moves_the_ways_stand_still(
    served: Served, page: Browser, moves: int, animation: str
) -> None:
    """Each frame would draw all of them anew."""
    steps = ((MigrationState.COPYING, served.controller.context.clock()),)
    for number in range(moves):
        move = Migration(
            f"migration-{number}", f"other{number}", "server1", "server2", MigrationState.COPYING, steps
        )
        served.controller.events.publish(EventType.MIGRATION_STEP, migration=move)
    await page.until(lambda driver: driver.execute_script(WAYS) == [animation] * moves, f"{moves} ways")


async def test_a_routers_ways_out_are_shown_by_vrf_and_tag(served: Served, page: Browser) -> None:
    router = served.controller.net.servers["router"]
    at, own = str(served.controller.net.location("router")), {"vrf": "red", "vlan": 100}
    await served.post("vrfs", {"id": "red", "tag": 7})
    body = {
        "id": "router",
        "mac": router.mac,
        "address": str(router.address),
        "services": ["router"],
        "at": at,
    }
    await served.post("servers", {**body, "subinterfaces": [{**own, "routes": ["198.51.100.0/24"]}]})
    await page.open(f"{served.url}/#/servers/router")
    await page.sees("caption", "Ways out")
    await page.sees("tr", "".join(("red", "VLAN 100", "198.51.100.0/24", "the way")))
    await page.open(f"{served.url}/#/servers")
    await page.sees("tr", "VRF red by VLAN 100")


def left(server: str) -> ServerReport:
    vms = [VMSize("vm1", 1024)] if server == "server1" else []
    return ServerReport(cpus=8, memory_mib=8192, memory_free_mib=8000, cpu_used=1000, vms=vms)


async def agents(controller: Controller, servers: tuple[str, ...]) -> None:
    """They say what their servers have left when they are asked, until cancelled."""
    with contextlib.ExitStack() as stack:
        for server in servers:
            stack.enter_context(controller.context.agents.listening(server))
            controller.mobility.on_report(server, left(server))
        async for event in controller.events.listen(None, {"mobility.match"}):
            for server in event.data["servers"]:
                controller.mobility.on_answer(event.data["match"], server, left(server))


@pytest.fixture
async def answering(served: Served) -> AsyncIterator[None]:
    task = asyncio.create_task(agents(served.controller, ("server1", "server2", "server3")))
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_target_that_was_chosen_is_explained(served: Served, answering: None, page: Browser) -> None:
    await page.click('[data-key="vm vm1"]')
    await page.click("#start-move")  # To the best server, as nothing else was chosen.
    await page.sees("h1", "migration-1")
    target = served.controller.orchestrator.migrations["migration-1"].target
    await page.sees("h2", f"Why {target}")
    decision = served.controller.context.state.placements["migration-1"].decision
    await page.sees("td", f"{decision.ranked[0].scores[0].measure} ")
    await page.sees("td", decision.refused[0].refused[0].text)
    await page.sees("section p", decision.text)
    await page.open(f"{served.url}/#/decisions")
    await page.sees("td", decision.text)
    assert page.said() == []


async def test_a_forgery_is_shown_and_why_it_was_dropped(served: Served, page: Browser) -> None:
    await page.open(f"{served.url}/#/forgeries")
    await page.sees("p", "Nobody has sent under another's name.")
    served.fake.send(
        "edge1", vm_port(1), udp_frame(vm_mac(1), GATEWAY_MAC, IPv4Address("10.1.0.77"), OUTSIDE)
    )
    await page.sees("td", "10.1.0.77")
    await page.sees("#health", "1 forged frame")
    await page.click("td a")
    await page.press("Why was it dropped?")
    await page.sees("b", "dropped: ")
    assert page.said() == []


async def test_an_event_is_told_in_words_and_a_server_by_its_state(served: Served, page: Browser) -> None:
    forged = udp_frame(vm_mac(1), GATEWAY_MAC, IPv4Address("10.1.0.77"), OUTSIDE)
    served.fake.send("edge1", vm_port(1), forged)
    await served.fake.settle()
    await page.run("location.hash = '#/events'")
    await page.sees("td", "claimed_ip: 10.1.0.77")
    shown = await page.run("return document.querySelector('main').innerText")
    assert "{" not in shown and not re.search(r"\b1\d{9}\b", shown), shown
    await page.run("location.hash = '#/servers'")
    await page.sees("td", "given, dhcp")
    assert "matched" in await page.run("return document.querySelector('tbody tr:nth-child(3)').innerText")


async def test_an_image_is_shown_with_where_it_is(served: Served, page: Browser) -> None:
    await page.open(f"{served.url}/#/images")
    images = served.controller.images
    digest = "ab" * 32
    for server, state, held in (
        ("server1", ImageState.HELD, 4 << 20),
        ("server2", ImageState.FETCHING, 1 << 20),
    ):
        row = HeldImage("debian-12", digest, state, held, origins={"server1": held})
        images.holders.on_report(server, ImagesBody("192.0.2.1:7800", [row], StoreUse(held)))
    images.publish(SignedManifest("debian-12", 4 << 20, digest, 1_000), "server1")
    await page.sees("td", "server2 25 %")
    await page.click("td a")
    await page.sees("dd", digest)
    await page.sees("td", "1.0 MiB, 25 %")
    assert page.said() == []


async def test_a_reader_is_offered_nothing_to_change(served: Served, browser: Browser) -> None:
    served.controller.orchestrator.start("vm1", target_server="server2")
    await browser.open("about:blank")
    await browser.open(served.page_for("reader"))
    await browser.sees("#who", "reader reader-1, who may look and change nothing")
    for part, seen in (
        ("vms/vm1", "vm1"),
        ("servers/server1", "server1"),
        ("moves/migration-1", "migration-1"),
    ):
        await browser.open(f"{served.url}/#/{part}")
        await browser.sees("h1", seen)
        await browser.sees("dd", "server1" if part != "servers/server1" else "edge1")
        assert (
            await browser.run(
                "return document.querySelectorAll('main button, main form, main select').length"
            )
            == 0
        )


async def test_who_shows_no_token_is_asked_for_one(served: Served, browser: Browser) -> None:
    await browser.open("about:blank")
    await browser.open(served.url)
    await browser.run("sessionStorage.clear()")
    await browser.open(f"{served.url}/?")
    await browser.type("#token", "not-a-token")
    await browser.press("Log in")
    await browser.sees("[role=alert]", "This token is not known.")
    await browser.type("#token", TOKENS["reader"])
    await browser.press("Log in")
    await browser.sees("svg .vm", "vm1")
    kept = await browser.run("return [Object.values(sessionStorage), localStorage.length, document.cookie]")
    assert kept == [[TOKENS["reader"]], 0, ""]
    await browser.press("Log out")
    await browser.sees("h1", "Log in")
    assert await browser.run("return sessionStorage.length") == 0


async def test_a_token_in_the_address_does_not_stay_there(served: Served, page: Browser) -> None:
    assert await page.run("return location.href") == f"{served.url}/#/"


async def test_text_that_looks_like_html_is_text(served: Served, page: Browser) -> None:
    """No id can have it, but reasons and what hypervisors and DHCP clients say can."""
    events = served.controller.events
    served.controller.orchestrator.start("vm1", target_server="server2")
    await page.open(f"{served.url}/#/events")
    events.publish(EventType.BINDING_REJECTED, vm="vm1", ip="10.1.0.9", reason=MARKUP)
    await page.sees("td", MARKUP)
    await page.open(f"{served.url}/#/moves/migration-1")
    await served.report("failed", reason=MARKUP)
    await page.sees("dd", MARKUP)
    await page.open(f"{served.url}/#/vms/{MARKUP.replace('/', '%2F')}")
    await page.sees("h1", MARKUP)
    assert await page.run("return document.querySelectorAll('img, main script').length") == 0
    with_html = (
        "try { document.body.innerHTML = arguments[0]; return ''; } catch (error) { return error.name; }"
    )
    assert await page.run(with_html, MARKUP) == "TypeError"  # The browser itself refuses it.
    assert await page.run("return document.title") != "1"


async def test_a_stream_that_broke_off_is_taken_up_where_it_was(served: Served, page: Browser) -> None:
    """What happened meanwhile is shown, and nothing twice."""
    await page.open(f"{served.url}/#/events")
    events = served.controller.events
    events.publish(EventType.BINDING_REJECTED, vm="vm1", ip="10.1.0.9", reason="before")
    await page.sees("td", "before")
    events.close()
    events.publish(EventType.BINDING_REJECTED, vm="vm1", ip="10.1.0.9", reason="meanwhile")
    await page.sees("td", "meanwhile")
    script = "return [...document.querySelectorAll('tbody tr td:first-child')].map((n) => n.textContent)"
    shown = await page.run(script)
    assert len(shown) == len(set(shown)) >= 2
    await page.sees("#health", "All is well.")


@pytest.mark.parametrize("why", ["events are no longer kept", "the controller was restarted"])
async def test_what_no_event_tells_is_read_anew(
    served: Served, page: Browser, monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    await page.open(f"{served.url}/#/servers")
    await page.sees("td", "server2")
    events = served.controller.events
    events.close()
    kept = 1 if why == "events are no longer kept" else 0
    monkeypatch.setattr(events, "_ring", EventRing(kept))
    for server in ("server2", "server3"):
        served.controller.inventory.drain(server, drained=True)
    if not kept:
        monkeypatch.setattr(events, "last_id", 0)
    await page.sees("td", "drained")
    await page.sees("#health", "All is well.")


async def test_all_of_it_can_be_had_by_keyboard(served: Served, page: Browser) -> None:
    from selenium.webdriver.common.keys import Keys

    def keys(*pressed: str) -> None:
        for one in pressed:
            page.driver.switch_to.active_element.send_keys(one)

    await asyncio.to_thread(keys, "/")
    await asyncio.to_thread(keys, "vm1", Keys.ENTER)
    await page.sees("h1", "vm1")
    await page.run("document.activeElement.blur()")
    await asyncio.to_thread(keys, "1")
    await page.sees("h1", "Network")
    await page.run("document.querySelector('.fold').focus()")
    await asyncio.to_thread(keys, Keys.ENTER)
    await page.sees('.fold[aria-expanded="false"]', "2 servers, 1 VM")
    await asyncio.to_thread(keys, " ")
    await page.sees("svg .vm", "vm1")
    await page.run("document.querySelector('[data-key=\"server server2\"]').focus()")
    await asyncio.to_thread(keys, Keys.ENTER)
    await page.sees("h1", "server2")


PARTS = ("", "moves", "moves/migration-1", "vms", "vms/vm1", "servers", "servers/server1", "switches",
         "switches/leaf1", "bindings", "forgeries", "images", "decisions", "events")  # fmt: skip


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing_serious(served: Served, page: Browser, scheme: str) -> None:
    if not os.environ.get(AXE):
        pytest.skip(f"axe-core is not here: `npm pack axe-core`, and its axe.min.js in {AXE}")
    axe = await asyncio.to_thread(Path(os.environ[AXE]).read_text)
    served.controller.orchestrator.start("vm1", target_server="server2")
    feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    await asyncio.to_thread(page.driver.execute_cdp_cmd, "Emulation.setEmulatedMedia", feature)
    found = []
    for part in PARTS:
        await page.open(f"{served.url}/#/{part}")
        await page.sees("h1")
        await page.run(f"if (!window.axe) {{ {axe} }}")
        result = await asyncio.to_thread(
            page.driver.execute_async_script,
            "axe.run(document, {resultTypes: ['violations']})"
            ".then(arguments[0], (error) => arguments[0]({error: String(error)}))",
        )
        assert "error" not in result, result
        found += [
            (part, one["id"], one["impact"], [node["target"] for node in one["nodes"]][:3])
            for one in result["violations"]
        ]
    await asyncio.to_thread(page.driver.execute_cdp_cmd, "Emulation.setEmulatedMedia", {"features": []})
    print(f"axe-core, {scheme}: {found or 'nothing'}")
    assert [one for one in found if one[2] in ("serious", "critical")] == []
