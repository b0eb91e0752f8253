"""What a real Prometheus makes of the controller's metrics, the alert rules, and what the dashboard asks."""

import json
import shutil
import socket
import subprocess
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from retinue.controller.api.metrics import CONTENT_TYPE, exposition
from support.monitoring import asked, more, talkative
from support.pages import ROOT

prometheus = shutil.which("prometheus")
pytestmark = pytest.mark.skipif(prometheus is None, reason="no prometheus: make install-prometheus")
RULES, DASHBOARD = ROOT / "deploy/prometheus/retinue.rules.yml", ROOT / "deploy/grafana/retinue.json"
PATIENCE = 60.0
SCRAPES = 4
"""As many as a rate needs, and some."""


class Scraped(BaseHTTPRequestHandler):
    """Each time everything that is counted has been counted once more."""

    controller = talkative()
    times = 1

    def do_GET(self) -> None:
        cls = type(self)
        cls.times += 1
        more(self.controller, cls.times)
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.end_headers()
        self.wfile.write(exposition(self.controller, {"rest": {"no_such_path": cls.times}}))

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scraped)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


class Prometheus:
    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **query: str) -> Any:
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}") as answer:
            said = json.load(answer)
        assert said["status"] == "success", said
        return said["data"]

    def ask(self, expression: str) -> list[dict[str, Any]]:
        return list(self.get("query", query=expression)["result"])


@pytest.fixture(scope="module")
def asks(target: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the controller some times."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(RULES)],
        "scrape_configs": [{"job_name": "retinue", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        at = f"127.0.0.1:{free.getsockname()[1]}"
    words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
    log = (folder / "log").open("wb")
    process = subprocess.Popen(
        [str(prometheus), *words, f"--web.listen-address={at}"], stdout=log, stderr=subprocess.STDOUT
    )
    try:
        found = Prometheus(f"http://{at}")
        end = time.monotonic() + PATIENCE
        while not has_scraped(found):
            assert time.monotonic() < end and process.poll() is None, Path(folder / "log").read_text()
            time.sleep(0.1)
        yield found
    finally:
        process.terminate()
        process.wait()
        log.close()


def has_scraped(found: Prometheus) -> bool:
    try:
        rows = found.ask("count_over_time(retinue_build_info[1m])")
    except OSError:
        return False
    return bool(rows) and int(rows[0]["value"][1]) >= SCRAPES


QUERIES = sorted({one.replace("$__rate_interval", "30s") for one in asked(json.loads(DASHBOARD.read_text()))})


@pytest.mark.parametrize("query", QUERIES)
def test_what_the_dashboard_asks_is_answered(asks: Prometheus, query: str) -> None:
    assert asks.ask(query) != []


def test_the_rules_are_evaluated_and_what_is_so_is_told(asks: Prometheus) -> None:
    def rules() -> dict[str, dict[str, Any]]:
        groups = asks.get("rules")["groups"]
        return {rule["name"]: rule for group in groups for rule in group["rules"]}

    end = time.monotonic() + PATIENCE
    while {rule["health"] for rule in rules().values()} != {"ok"}:
        assert time.monotonic() < end, rules()
        time.sleep(0.1)
    assert rules()["RetinueNoController"]["state"] == "inactive"
    while rules()["RetinueSpoofing"]["state"] != "firing":
        assert time.monotonic() < end, rules()
        time.sleep(0.1)
