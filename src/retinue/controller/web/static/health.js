// Health in one line: what is not as it should be, or that all is well.

import { el, fill, link } from "./dom.js";
import { count } from "./words.js";

export function healthLine(model, node) {
  const update = (topics) => {
    if (
      topics &&
      !["status", "live", "vms", "servers", "switches", "migrations"].some((topic) => topics.has(topic))
    )
      return;
    const troubles =
      model.live === "live" ? troublesOf(model) : ["The controller does not answer: this is how it was."];
    node.className = troubles.length ? "bad" : "good";
    const { switches, servers, bindings } = model.status;
    const sums = [
      `${switches.connected} of ${count(switches.known, "switch", "switches")}`,
      `${servers.placed} of ${count(servers.known, "server")}`,
      count(model.vms.size, "VM"),
      count(bindings, "binding"),
      model.underWay().length ? `${count(model.underWay().length, "move")} under way` : "nothing moves",
    ].join(", ");
    const forged = model.status.spoof_attempts;
    fill(
      node,
      troubles.length ? troubles.join(" ") : "All is well.",
      ` ${sums}`,
      forged ? el("span", {}, ", ", link("#/forgeries", count(forged, "forged frame"))) : "",
      ".",
    );
  };
  model.listen(update);
  update(null);
}

function troublesOf(model) {
  const { status } = model;
  const found = [];
  const away = [...model.switches.values()].filter((row) => !row.connected).map((row) => row.id);
  if (away.length) found.push(some(away, "switch is", "switches are", "away"));
  const lost = [...model.servers.values()]
    .filter((row) => row.id && row.state === "missing")
    .map((row) => row.id);
  if (lost.length) found.push(some(lost, "server is", "servers are", "not found"));
  const crashed = [...model.vms.values()].filter((vm) => vm.state === "crashed").map((vm) => vm.id);
  if (crashed.length) found.push(some(crashed, "VM has", "VMs have", "crashed"));
  const pending = Object.values(status.pending).reduce((sum, number) => sum + number, 0);
  if (pending) found.push(`${count(pending, "entry", "entries")} not confirmed.`);
  const rejected = Object.values(status.entries_rejected).reduce((sum, number) => sum + number, 0);
  if (rejected) found.push(`Switches rejected ${count(rejected, "entry", "entries")}.`);
  return found;
}

function some(ids, one, many, what) {
  const names = `${ids.slice(0, 3).join(", ")}${ids.length > 3 ? ", …" : ""}`;
  return `${count(ids.length, one, many)} ${what} (${names}).`;
}
