"""Metrics follow Prometheus' rules; alert rules and dashboard ask for those that there are."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families
from typer.main import get_command

from retinue.cli.main import app
from retinue.controller.api.metrics import exposition
from retinue.controller.app import Controller
from retinue.controller.counters import Count
from retinue.core.histogram import Histogram, buckets
from retinue.protocol.images import ChunkTimes, ImagesBody
from support.fabric.networks import fabric
from support.monitoring import asked, talkative
from support.pages import ROOT

PROMETHEUS, GRAFANA = ROOT / "deploy/prometheus", ROOT / "deploy/grafana/retinue.json"
LEAST_EXPRESSIONS = 20
promtool = shutil.which("promtool")
with_promtool = pytest.mark.skipif(promtool is None, reason="no promtool: make install-prometheus")


@pytest.fixture
def text() -> str:
    return exposition(talkative(), {"rest": {"no_such_path": 1}}).decode()


@pytest.fixture
def families(text: str) -> list[Metric]:
    return list(text_string_to_metric_families(text))


ENDS = {"histogram": ("_bucket", "_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
NO_UNIT = re.compile(r"_(ms|milliseconds|kb|mb|percent|counter|gauge|total|count|sum|bucket)")


def samples(families: list[Metric]) -> set[str]:
    """Everything that can be asked for."""
    return {f"{one.name}{end}" for one in families for end in ENDS[one.type]}


def test_names_follow_the_rules(families: list[Metric]) -> None:
    """https://prometheus.io/docs/practices/naming: a prefix, base units, `_total` for counters alone."""
    assert len(families) > LEAST_EXPRESSIONS
    for one in families:
        assert re.fullmatch(r"retinue(_[a-z]+)+", one.name) and one.documentation
        is_time = one.name.endswith("_seconds")
        assert is_time if one.type == "histogram" else not is_time or one.type == "counter", one.name
        assert not re.search(
            r"_(ms|milliseconds|kb|mb|percent|counter|gauge|total|count|sum|bucket)$", one.name
        )
        assert not {"le", "job", "instance"} & {
            label for s in one.samples for label in s.labels if label != "le"
        }


@with_promtool
def test_promtool_finds_nothing(text: str) -> None:
    found = subprocess.run([str(promtool), "check", "metrics"], input=text, text=True, capture_output=True)
    assert (found.returncode, found.stdout + found.stderr) == (0, "")


def test_a_histogram_counts_up_to_each_bound() -> None:
    histogram = Histogram((0.1, 1.0))
    for seconds in (0.05, 0.1, 0.5, 7.0, -0.2):
        histogram.observe(seconds)
    assert buckets(histogram.bounds, histogram.counts) == [("0.1", 3.0), ("1.0", 4.0), ("+Inf", 5.0)]
    assert histogram.seconds == pytest.approx(7.65)


def test_times_that_an_agent_tells_by_other_bounds_are_left_out() -> None:
    controller = Controller(fabric(), clock=lambda: 1000.0)
    controller.images.holders.on_report("server1", ImagesBody("x:1", fetched=ChunkTimes([1, 2], 3.0)))
    assert b"retinue_chunk_fetch_seconds_bucket" not in exposition(controller, {})


# ---- alert rules and dashboard ----


def rules() -> list[dict[str, Any]]:
    file = yaml.safe_load((PROMETHEUS / "retinue.rules.yml").read_text())
    return [rule for group in file["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    return [rule["expr"] for rule in rules()] + list(asked(json.loads(GRAFANA.read_text())))


def test_only_metrics_that_there_are_are_asked_for(families: list[Metric]) -> None:
    known = samples(families)
    assert len(expressions()) > LEAST_EXPRESSIONS
    for expression in expressions():
        names = set(re.findall(r"retinue_\w+", expression))
        assert names and names <= known, f"{expression} asks for {names - known}"


def test_every_metric_is_drawn_or_watched(families: list[Metric]) -> None:
    asked_for = " ".join(expressions())
    assert [one.name for one in families if one.name not in asked_for] == []


def test_only_labels_and_values_that_there_are_are_asked_for(families: list[Metric]) -> None:
    labels = {label for one in families for sample in one.samples for label in sample.labels}
    for expression in expressions():
        for label, value in re.findall(r'(\w+)="([^"]*)"', expression):
            assert label in labels, expression
            assert label != "kind" or value in set(Count), expression
        for by in re.findall(r"by \(([^)]*)\)", expression):
            assert set(by.split(", ")) <= labels | {"le"}, expression


def test_an_alert_says_what_it_is_and_what_to_do() -> None:
    for rule in rules():
        assert rule["labels"]["severity"] in ("critical", "warning")
        assert rule["annotations"]["summary"].endswith(".") or "log has" in rule["annotations"]["summary"]
        program, noun, *rest = rule["annotations"]["do"].split()
        command = get_command(app).commands[noun]  # type: ignore[attr-defined]
        verbs = getattr(command, "commands", None)
        assert program == "retinue" and (verbs is None or rest[0] in verbs), rule["annotations"]["do"]


@with_promtool
def test_promtool_reads_what_the_dashboard_asks(tmp_path: Path) -> None:
    """As recording rules, which is all of a query that it reads."""
    found = [one.replace("$__rate_interval", "5m") for one in asked(json.loads(GRAFANA.read_text()))]
    recorded = [{"record": f"asked:{number}", "expr": one} for number, one in enumerate(found)]
    file = tmp_path / "asked.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "asked", "rules": recorded}]}))
    command = [str(promtool), "check", "rules", "--lint=none", str(file)]
    read = subprocess.run(command, text=True, capture_output=True)
    assert read.returncode == 0 and f"{len(found)} rules found" in read.stdout, read.stdout + read.stderr


@with_promtool
@pytest.mark.parametrize(
    ("verb", "file"), [("check", "retinue.rules.yml"), ("test", "retinue.rules.test.yml")]
)
def test_promtool_reads_the_rules(verb: str, file: str) -> None:
    found = subprocess.run(
        [str(promtool), verb, "rules", file], cwd=PROMETHEUS, text=True, capture_output=True
    )
    assert found.returncode == 0, found.stdout + found.stderr


def test_of_each_alert_it_is_tried_what_makes_it_fire_and_what_does_not() -> None:
    file = yaml.safe_load((PROMETHEUS / "retinue.rules.test.yml").read_text())
    tried = {
        (one["alertname"], bool(one["exp_alerts"])) for f in file["tests"] for one in f["alert_rule_test"]
    }
    assert tried == {(rule["alert"], fires) for rule in rules() for fires in (True, False)}


def test_what_is_counted_is_shown_before_the_first_of_its_kind() -> None:
    """A series that begins with 1 has not increased, and nobody would be told of the first internal error."""
    controller = Controller(fabric(), clock=lambda: 1000.0)
    (events,) = (
        one
        for one in text_string_to_metric_families(exposition(controller, {}).decode())
        if one.name == "retinue_events"
    )
    shown = {sample.labels["kind"]: sample.value for sample in events.samples}
    assert shown == dict.fromkeys(Count, 0)


def test_the_dashboard_is_for_any_grafana() -> None:
    """Its data source is a variable, and it has no id of the one that it was made in."""
    dashboard = json.loads(GRAFANA.read_text())
    assert "id" not in dashboard and "uid" not in dashboard
    sources = {panel["datasource"]["uid"] for panel in dashboard["panels"] if panel["type"] != "row"}
    assert sources == {"${datasource}"}
    assert [one["name"] for one in dashboard["templating"]["list"]] == ["datasource"]
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
