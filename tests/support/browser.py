"""Debian's Chromium, headless, driven from a test whose event loop goes on meanwhile.

Where Chromium, its driver or Python's Selenium is missing, what asks for it is skipped.
"""

import asyncio
import contextlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

PATIENCE = 60.0
"""Seconds for what is to be seen: a limit for what never comes, and no measure."""
ARGUMENTS = (
    "--headless=new",
    "--no-sandbox",  # Tests run as root.
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-background-networking",
    "--no-first-run",
    "--window-size=1280,900",
)


class Browser:
    """A tab. What it is asked is done in another thread, so that what it shows can be served here."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    async def open(self, url: str) -> None:
        await asyncio.to_thread(self.driver.get, url)

    async def run(self, script: str, *arguments: object) -> Any:
        """What a script in the page returns."""
        return await asyncio.to_thread(self.driver.execute_script, script, *arguments)

    async def click(self, selector: str) -> None:
        await self.sees(selector)
        await asyncio.to_thread(lambda: self.driver.find_element("css selector", selector).click())

    async def press(self, text: str, selector: str = "button") -> None:
        """Click what has this text."""
        script = (
            "const all = [...document.querySelectorAll(arguments[0])];"
            "const one = all.find((node) => node.textContent === arguments[1]);"
            "one?.click(); return Boolean(one);"
        )
        await self.until(lambda driver: driver.execute_script(script, selector, text), f"{selector} {text!r}")

    async def type(self, selector: str, text: str) -> None:
        await self.sees(selector)
        await asyncio.to_thread(lambda: self.driver.find_element("css selector", selector).send_keys(text))

    async def choose(self, selector: str, value: str) -> None:
        from selenium.webdriver.support.select import Select

        option = f'{selector} option[value="{value}"]'
        await self.until(lambda driver: driver.find_elements("css selector", option), option)
        await asyncio.to_thread(
            lambda: Select(self.driver.find_element("css selector", selector)).select_by_value(value)
        )

    async def sees(self, selector: str, text: str = "") -> None:
        """Until something that the selector names has this in its text."""
        script = (
            "return [...document.querySelectorAll(arguments[0])].some((n) => "
            "n.checkVisibility() && n.textContent.includes(arguments[1]));"
        )
        await self.until(lambda driver: driver.execute_script(script, selector, text), f"{selector} {text!r}")

    async def until(self, look: Callable[[Any], T], what: str) -> T:
        """What `look` finds in the end."""
        try:
            async with asyncio.timeout(PATIENCE):
                while True:
                    found = await asyncio.to_thread(look, self.driver)
                    if found:
                        return found
                    await asyncio.sleep(0.02)
        except TimeoutError:
            shown = await self.run("return document.body.innerText")
            raise AssertionError(f"{what} is not seen; the page has:\n{shown}\n{self.said()}") from None

    def said(self) -> list[str]:
        """What the page wrote to its console since this was last asked: errors, violations of its policy."""
        return [row["message"] for row in self.driver.get_log("browser")]


@contextlib.contextmanager
def chromium(*more: str) -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="make install-browser")
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        pytest.skip("Chromium or its driver is not installed: make install-browser")
    with tempfile.TemporaryDirectory(prefix="retinue-chromium-") as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = program
        for argument in (*ARGUMENTS, *more, f"--user-data-dir={Path(profile)}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield Browser(running)
        finally:
            running.quit()
