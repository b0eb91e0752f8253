// What the page knows: read once, and then kept up to date by the events. Views are told what changed.

import { get, path } from "./rest.js";

const EVENTS_KEPT = 2000;
const ENDED = new Set(["done", "undone"]);
const MANY = 20; // VMs that changed: more are not asked for one by one,
const MANY_MS = 3000; // but all together, so long after.

/** Of a list: where it is read, under which name it stands there, by what its rows are called. */
const LISTS = {
  switches: ["/v1/switches", "switches", (row) => row.id, 1000],
  servers: ["/v1/servers", "servers", (row) => row.id || row.mac, 1000],
  vms: ["/v1/vms", "vms", (row) => row.id, 1000],
  migrations: ["/v1/migrations", "migrations", (row) => row.id, 1000],
  bindings: ["/v1/bindings", "bindings", bindingKey, 1000],
  forgeries: ["/v1/spoof-attempts", "spoof_attempts", (row) => row.id, 2000],
  images: ["/v1/images", "images", (row) => row.name, 2000],
};
/** By the beginning of an event's type: the lists that it changes in a way only the list tells. */
const ANEW = { "switch.": "switches", "server.": "servers", spoofing: "forgeries", "image.": "images" };
const STATUS_MS = 2000;
const FETCHING_MS = 3000;
const STATUS_AT_REST_MS = 15000;

export class Model {
  constructor() {
    for (const list of Object.keys(LISTS)) this[list] = new Map();
    this.status = null;
    this.stores = [];
    this.events = [];
    this.copying = new Map(); // By migration: its last event of progress.
    this.live = "away";
    this._ahead = Infinity;
    this._active = new Map(); // By VM: the migration it is in.
    this._listeners = new Set();
    this._changed = new Set();
    this._due = new Map(); // By topic: the timer after which it is read anew.
    this._vms = new Set();
    setInterval(() => this._later("status", 0), STATUS_AT_REST_MS);
  }

  /** Read everything; the id of the event after which to follow. */
  async load() {
    const status = await get("/v1/status");
    await Promise.all(Object.keys(LISTS).map((list) => this._read(list)));
    this.status = status;
    this._tell("status");
    return status.last_event;
  }

  /** `listener` gets the set of topics that changed, once a frame at most; returns what ends that. */
  listen(listener) {
    this._listeners.add(listener);
    return () => this._listeners.delete(listener);
  }

  apply(event) {
    // Of an event that is caught up with, the time is one of before.
    this._ahead = Math.min(this._ahead, Date.now() / 1000 - event.at);
    this.events.push(event);
    if (this.events.length > EVENTS_KEPT) this.events.splice(0, EVENTS_KEPT / 2);
    this._tell("events");
    this._later("status", STATUS_MS);
    const { type, migration, vm } = event;
    if (vm && typeof vm === "object" && type !== "vm.removed" && "state" in vm) {
      this.vms.set(vm.id, vm);
      this._tell("vms");
    }
    if (migration && typeof migration === "object") this._step(migration);
    if (type === "vm.removed") {
      this.vms.delete(typeof vm === "object" ? vm.id : vm);
      this._tell("vms");
    } else if (type === "migration.copying") {
      this.copying.set(event.migration_id, event);
      this._tell("migrations");
    } else if (
      type.startsWith("port.") ||
      type.startsWith("binding.") ||
      type === "vm.reported" ||
      type === "address.taken" ||
      type === "vm.online" ||
      type === "vm.offline"
    ) {
      this._refresh(typeof vm === "string" ? vm : event.bindings?.[0]?.vm);
    }
    for (const [beginning, list] of Object.entries(ANEW)) {
      if (type.startsWith(beginning)) this._later(list, LISTS[list][3]);
    }
  }

  /** Seconds since the epoch, by the controller's clock, as far as its last event tells. */
  now() {
    return Date.now() / 1000 - (Number.isFinite(this._ahead) ? this._ahead : 0);
  }

  setLive(state) {
    this.live = state;
    this._tell("live");
  }

  migrationOf(vm) {
    return this._active.get(vm);
  }

  underWay() {
    return [...this._active.values()];
  }

  /** The server where a VM runs: a migrating one is at its source until it has resumed. */
  serverOf(vm) {
    const migration = this._active.get(vm.id);
    if (!migration) return vm.server;
    return migration.resumed_at === null ? migration.source : migration.target;
  }

  /** By server: its VMs, in the order of their names. */
  vmsByServer() {
    const found = new Map();
    for (const vm of this.vms.values()) {
      const server = this.serverOf(vm);
      if (!found.has(server)) found.set(server, []);
      found.get(server).push(vm);
    }
    return found;
  }

  take(migration) {
    this._step(migration);
  }

  _step(migration) {
    this.migrations.set(migration.id, migration);
    if (ENDED.has(migration.state)) {
      if (this._active.get(migration.vm)?.id === migration.id) this._active.delete(migration.vm);
      this.copying.delete(migration.id);
      this._refresh(migration.vm);
      const vm = this.vms.get(migration.vm);
      if (vm && !migration.far) {
        vm.server = migration.state === "done" ? migration.target : migration.source;
        vm.migration = "";
      }
    } else this._active.set(migration.vm, migration);
    this._tell("migrations");
    this._tell("vms");
  }

  /** A VM, or its bindings, changed in a way that the event does not tell in full. */
  _refresh(vm) {
    if (vm) this._vms.add(vm);
    if (!this._due.has("changed"))
      this._due.set(
        "changed",
        setTimeout(() => this._readChanged(), 300),
      );
  }

  async _readChanged() {
    this._due.delete("changed");
    const vms = [...this._vms];
    this._vms.clear();
    if (vms.length > MANY) {
      this._later("vms", MANY_MS);
      this._later("bindings", MANY_MS);
      return;
    }
    await Promise.allSettled(
      vms.map(async (id) => {
        const { bindings } = await get(`/v1/bindings?vm=${encodeURIComponent(id)}`);
        for (const [key, row] of this.bindings) if (row.vm === id) this.bindings.delete(key);
        for (const row of bindings) this.bindings.set(bindingKey(row), row);
        this.vms.set(id, await get(path`/v1/vms/${id}`));
      }),
    );
    this._tell("vms");
    this._tell("bindings");
  }

  async _read(list) {
    const [where, name, key] = LISTS[list];
    const found = await get(where);
    this[list] = new Map(found[name].map((row) => [key(row), row]));
    if (list === "images") {
      this.stores = found.stores;
      // How far a fetch is, no event tells.
      const fetching = (image) => image.held.some((row) => row.state === "fetching");
      if (found.images.some(fetching)) this._later("images", FETCHING_MS);
    }
    if (list === "migrations") {
      this._active = new Map();
      for (const row of this.migrations.values()) if (!ENDED.has(row.state)) this._active.set(row.vm, row);
    }
    this._tell(list);
  }

  _later(topic, milliseconds) {
    if (this._due.has(topic)) return;
    this._due.set(
      topic,
      setTimeout(async () => {
        this._due.delete(topic);
        try {
          if (topic !== "status") await this._read(topic);
          else {
            this.status = await get("/v1/status");
            this._tell("status");
          }
        } catch (error) {
          if (this.live === "live") this._later(topic, STATUS_MS);
        }
      }, milliseconds),
    );
  }

  _tell(topic) {
    if (!this._changed.size) {
      // A page that nobody looks at draws no frames, and is told all the same.
      requestAnimationFrame(() => this._flush());
      setTimeout(() => this._flush(), 300);
    }
    this._changed.add(topic);
  }

  _flush() {
    if (!this._changed.size) return;
    const changed = this._changed;
    this._changed = new Set();
    for (const listener of [...this._listeners]) listener(changed);
  }
}

export function ended(migration) {
  return ENDED.has(migration.state);
}

function bindingKey(row) {
  return [row.vm, row.mac, row.ip, row.switch].join(" ");
}
