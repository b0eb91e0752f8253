// VMs, servers and switches: all of them, and each by itself.

import { button, el, fields, fill, link, table } from "./dom.js";
import { drain } from "./drain.js";
import { moveHash, moveLine } from "./moves.js";
import { serverLink, serverWords } from "./network.js";
import { get, path, post } from "./rest.js";
import { byName, count, duration } from "./words.js";

const sorted = (rows) => [...rows].sort((a, b) => byName(a.id, b.id));
const vmLink = (id) => link(`#/vms/${encodeURIComponent(id)}`, id);
const switchLink = (id) => (id ? link(`#/switches/${encodeURIComponent(id)}`, id) : "");

/** A page whose rows are made anew when one of these topics changes. */
function listView(title, topics, rows) {
  const part = el("div");
  const update = (changed) => {
    if (!changed || topics.some((topic) => changed.has(topic))) fill(part, rows());
  };
  return { node: el("div", {}, el("h1", {}, title), part), title, update, shown: () => update(null) };
}

export function vmsView(model) {
  return listView("VMs", ["vms", "migrations"], () =>
    table(
      "All VMs",
      ["VM", "State", "Server", "Addresses", "MAC", "Move", "Forged frames"],
      sorted(model.vms.values()).map((vm) => [
        vmLink(vm.id),
        state(vm),
        serverLink(model.serverOf(vm)),
        (vm.holds || []).join(", "),
        vm.mac,
        moveOf(model, vm),
        vm.spoof_attempts || "",
      ]),
      "There are no VMs: `retinue vm add` makes one.",
    ),
  );
}

export function vmView(model, [id], tools) {
  const [facts, nics] = [el("div"), el("div")];
  const form = tools.manages ? moveForm(model, id, tools) : null;
  const update = (topics) => {
    if (topics && !["vms", "migrations", "bindings", "servers"].some((topic) => topics.has(topic))) return;
    const vm = model.vms.get(id);
    if (!vm) {
      fill(facts, el("p", { class: "none" }, `There is no VM ${id}.`));
      fill(nics);
      form?.hide();
      return;
    }
    const migration = model.migrationOf(id);
    const own = [...model.migrations.values()].filter((one) => one.vm === id).slice(-10);
    fill(
      facts,
      migration ? moveLine(model, migration) : null,
      fields([
        ["state", state(vm)],
        ["server", serverLink(model.serverOf(vm))],
        ["switch", el("span", {}, switchLink(vm.switch), vm.port ? ` port ${vm.port}` : "")],
        ["waits for", (vm.missing || []).join("; ")],
        ["addresses it may send from", (vm.holds || []).join(", ")],
        ["warnings", (vm.warnings || []).join("; ")],
        ["restart", vm.restart],
        ["memory", vm.memory_mib ? `${vm.memory_mib} MiB` : ""],
        [
          "disks",
          (vm.disks || [])
            .map((disk) => disk.image || disk.shared || disk.base || `${disk.size_mib} MiB`)
            .join(", "),
        ],
        ["home", vm.home],
        ["forged frames", vm.spoof_attempts ? link("#/forgeries", String(vm.spoof_attempts)) : "0"],
        ["moves", own.length ? el("span", {}, ...own.flatMap(moveInShort)) : ""],
      ]),
    );
    fill(
      nics,
      table(
        "NICs",
        ["NIC", "MAC", "Vnet", "Port", "Addresses", "Enabled"],
        (vm.nics || []).map((nic) => [
          nic.id,
          nic.mac,
          nic.vnet || "default",
          nic.port ?? "",
          (nic.holds || []).join(", "),
          nic.enabled ? "yes" : "no",
        ]),
        "",
      ),
    );
    form?.update(vm, migration);
  };
  return {
    node: el("div", {}, el("h1", {}, id), form?.node, facts, nics),
    title: id,
    update,
    shown: () => update(null),
  };
}

/** Starts a move; its target is named, or left to placement. */
function moveForm(model, id, { say, go }) {
  const choice = el("select", { id: "target" });
  const start = el("button", { type: "submit", id: "start-move" }, "Move");
  const form = el(
    "form",
    {
      class: "act",
      on: {
        submit: async (event) => {
          event.preventDefault();
          start.disabled = true;
          await say(async () => {
            const found = await post("/v1/migrations", {
              vm: id,
              ...(choice.value ? { target_server: choice.value } : {}),
            });
            model.take(found);
            go(moveHash(found.id));
          });
          start.disabled = false;
        },
      },
    },
    el("label", { for: "target" }, "Move to "),
    choice,
    " ",
    start,
  );
  let offered = "";
  return {
    node: form,
    hide: () => {
      form.hidden = true;
    },
    update(vm, migration) {
      form.hidden = Boolean(migration) || vm.state !== "running";
      const servers = targets(model)
        .filter((server) => server.id !== model.serverOf(vm))
        .map((server) => server.id);
      if (servers.join(" ") === offered) return;
      offered = servers.join(" ");
      const chosen = choice.value;
      choice.replaceChildren(
        el("option", { value: "" }, "the best server"),
        ...servers.map((server) => el("option", { value: server }, server)),
      );
      choice.value = servers.includes(chosen) ? chosen : "";
    },
  };
}

/** Servers that take VMs. */
export function targets(model) {
  return sorted(
    [...model.servers.values()].filter((row) => row.id && row.edge && !row.fenced && !row.drained),
  );
}

function stateOf(server) {
  const words = serverWords(server);
  return [String(server.address), "up"].includes(words) ? server.state : `${server.state}, ${words}`;
}

export function serversView(model) {
  return listView("Servers", ["servers", "vms"], () => {
    const vms = model.vmsByServer();
    return table(
      "All servers",
      ["Server", "State", "At", "Address", "Edge", "Agent", "VMs"],
      sorted(model.servers.values()).map((server) => [
        server.id ? serverLink(server.id) : server.mac,
        stateOf(server),
        server.at || server.detected_at,
        server.address || "",
        switchLink(server.edge),
        server.agent || "",
        (vms.get(server.id) || []).length,
      ]),
      "There are no servers.",
    );
  });
}

export function serverView(model, [id], tools) {
  const [facts, acts, vms, going] = [el("div"), el("p"), el("div"), el("p", { role: "status" })];
  const update = (topics) => {
    if (topics && !["servers", "vms", "migrations"].some((topic) => topics.has(topic))) return;
    const server = model.servers.get(id);
    if (!server) {
      fill(facts, el("p", { class: "none" }, `There is no server ${id}.`));
      return;
    }
    const own = sorted(model.vmsByServer().get(id) || []);
    fill(
      facts,
      fields([
        ["state", stateOf(server)],
        ["at", server.at],
        ["detected at", server.detected_at === server.at ? "" : server.detected_at],
        ["address", server.address],
        ["MAC", server.mac],
        ["edge", switchLink(server.edge)],
        ["services", (server.services || []).join(", ")],
        ["agent", server.agent],
      ]),
      server.services?.includes("router") ? waysOut(server) : null,
    );
    fill(
      vms,
      table(
        count(own.length, "VM"),
        ["VM", "State", "Addresses", "Move"],
        own.map((vm) => [vmLink(vm.id), state(vm), (vm.holds || []).join(", "), moveOf(model, vm)]),
        "No VM is here.",
      ),
    );
    if (!tools.manages || !server.edge || server.fenced) fill(acts);
    else if (server.drained) {
      fill(
        acts,
        button("Let it take VMs again", () =>
          tools.say(async () => {
            await post(path`/v1/servers/${id}/undrain`);
            fill(going);
          }),
        ),
        own.length ? button("Go on draining", () => act(own.length)) : null,
      );
    } else
      fill(
        acts,
        button("Drain this server", () => act(own.length)),
      );
  };
  const act = async (many) => {
    const sure = await tools.sure(
      `Drain ${id}? It takes no more VMs, and its ${count(many, "VM")} move to other servers, ` +
        "one after the other, as long as this page is open.",
      "Drain",
    );
    if (sure)
      await tools.say(() =>
        drain(
          model,
          id,
          () => targets(model),
          (words) => fill(going, words),
        ),
      );
  };
  return {
    node: el("div", {}, el("h1", {}, id), acts, going, facts, vms),
    title: id,
    update,
    shown: () => update(null),
  };
}

/** Where a router leads: in the default VRF by its port, in others by subinterfaces, each by a VLAN tag there. */
function waysOut(server) {
  const interfaces = [
    { vrf: "default", routes: server.routes, ways: server.ways, address: server.address },
    ...(server.subinterfaces || []),
  ];
  const now = (one, prefix) =>
    server.lost ? `lost: ${server.lost}` : one.ways.includes(prefix) ? "the way" : "standby";
  const rows = interfaces.flatMap((one) =>
    one.routes.map((prefix) => [
      one.vrf,
      one.vlan ? `VLAN ${one.vlan}` : "no tag",
      prefix,
      one.address || "",
      now(one, prefix),
    ]),
  );
  return table("Ways out", ["VRF", "At its port", "Prefix", "Own address", "Now"], rows, "It leads nowhere.");
}

export function switchesView(model) {
  return listView("Switches", ["switches"], () =>
    table(
      "All switches",
      ["Switch", "Role", "State", "Entries", "Not confirmed", "Peer", "Ports that are no VM's"],
      sorted(model.switches.values()).map((row) => [
        switchLink(row.id),
        row.role,
        el("span", { class: row.connected ? "good" : "bad" }, row.connected ? "connected" : "away"),
        row.flows,
        row.pending || "",
        row.peer,
        row.rejected_ports.length || "",
      ]),
      "There are no switches.",
    ),
  );
}

export function switchView(model, [id], { say }) {
  const [facts, flows] = [el("div"), el("div")];
  const update = (topics) => {
    if (topics && !topics.has("switches")) return;
    const row = model.switches.get(id);
    if (!row) {
      fill(facts, el("p", { class: "none" }, `There is no switch ${id}.`));
      return;
    }
    fill(
      facts,
      fields([
        ["role", row.role],
        ["state", row.connected ? "connected" : "away"],
        ["datapath id", row.dpid],
        ["peer", row.peer],
        ["server", serverLink(row.server)],
        ["entries", row.flows],
        ["not confirmed", row.pending],
        [
          "ports",
          Object.entries(row.ports)
            .map(([name, number]) => `${number} ${name}`)
            .join(", "),
        ],
      ]),
      row.rejected_ports.length
        ? table(
            "Ports that are no VM's",
            ["Port", "VM", "Reason"],
            row.rejected_ports.map((port) => [port.port, port.vm, port.reason]),
            "",
          )
        : null,
    );
  };
  const read = () =>
    say(async () => {
      const found = (await get(`/v1/flows?switch=${encodeURIComponent(id)}`)).flows;
      fill(
        flows,
        table(
          `Entries that ${id} should hold`,
          ["Table", "Priority", "Match", "Actions", "For", "Confirmed"],
          found.map((one) => [
            one.table_name,
            one.priority,
            one.match,
            one.actions,
            one.reason,
            one.confirmed ? "yes" : "no",
          ]),
          "None.",
        ),
      );
    });
  return {
    node: el("div", {}, el("h1", {}, id), facts, el("p", {}, button("Show its entries", read)), flows),
    title: id,
    update,
    shown: () => update(null),
  };
}

export function bindingsView(model) {
  return listView("Bindings", ["bindings"], () =>
    table(
      "Which address may be sent from where",
      ["VM", "MAC", "IP", "Kind", "Lease", "Switch", "Port", "State"],
      [...model.bindings.values()]
        .sort((a, b) => byName(`${a.vm} ${a.ip}`, `${b.vm} ${b.ip}`))
        .map((row) => [
          vmLink(row.vm),
          row.mac,
          row.ip,
          row.kind,
          row.lease_end === null ? "" : duration(Math.max(0, row.lease_end - model.now())),
          switchLink(row.switch),
          row.port ?? "",
          `${row.active ? "active" : "other end"}${row.confirmed ? "" : ", not confirmed"}`,
        ]),
      "No address is bound.",
    ),
  );
}

function state(vm) {
  const kind = vm.state === "running" ? "good" : vm.state === "crashed" ? "bad" : "";
  return el("span", { class: kind }, vm.state + (vm.power_reason ? ` (${vm.power_reason})` : ""));
}

function moveInShort(migration) {
  return [link(moveHash(migration.id), migration.id), ` ${migration.state}  `];
}

function moveOf(model, vm) {
  const migration = model.migrationOf(vm.id);
  return migration ? link(moveHash(migration.id), `${migration.id} ${migration.state}`) : "";
}
