// The network as a picture: spines, leaves, servers, VMs. What moves is seen to move.

import { button, el, fill, link, set, svg } from "./dom.js";
import { folds, layout, middle, NODE, VM_HEIGHT } from "./layout.js";
import { moveLine } from "./moves.js";
import { byName, count, cut } from "./words.js";

const RACKS = { open: new Set(), all: null }; // What is unfolded, as long as the page is open.
const TOPICS = ["switches", "servers", "vms", "migrations"];
const DRAW_MS = 60; // Between two drawings: what moves meanwhile is the browser's own work.
const REST = 4; // Times as long as a drawing took, at the least, until the next: the rest is the browser's.
const MOVED_MS = 900; // From when a VM is told where it goes until it is there: style.css has it take 800.
const MOST_LINES = 12; // Moves told in a line each. Ways of more stand still: each frame would draw them anew.
const SIGNS = { running: "●", ready: "◐", registered: "○", off: "○", crashed: "✕" };

export function networkView(model) {
  const picture = new Picture(model);
  const moves = el("section", { class: "under-way", "aria-label": "Moves under way" });
  const tools = el(
    "p",
    { class: "tools" },
    button("unfold all", () => unfold(true)),
    " ",
    button("fold all", () => unfold(false)),
    el("span", { class: "legend" }, "● runs  ◐ is to start  ○ off or registered  ✕ crashed  ⇄ moves"),
  );
  const view = el("div", { class: "network" }, el("h1", {}, "Network"), tools, moves, picture.node);
  let [due, took] = [0, 0];
  const update = (topics) => {
    if (topics && !TOPICS.some((topic) => topics.has(topic))) return;
    if (!due) due = setTimeout(draw, topics ? Math.max(DRAW_MS, REST * took) : 0);
  };
  const draw = () => {
    due = 0;
    const began = performance.now();
    showMoves();
    picture.draw();
    took = performance.now() - began;
  };
  const unfold = (all) => {
    RACKS.all = all;
    RACKS.open.clear();
    picture.draw();
  };
  const showMoves = () => {
    const found = model.underWay();
    fill(
      moves,
      ...found.slice(0, MOST_LINES).map((migration) => moveLine(model, migration)),
      found.length > MOST_LINES ? el("p", {}, `and ${found.length - MOST_LINES} more`) : null,
    );
  };
  const resized = new ResizeObserver(() => picture.draw());
  const scrolled = () => picture.paint();
  return {
    node: view,
    title: "Network",
    update,
    shown() {
      resized.observe(picture.node);
      window.addEventListener("scroll", scrolled, { passive: true });
      update(null);
    },
    gone() {
      clearTimeout(due);
      resized.disconnect();
      window.removeEventListener("scroll", scrolled);
    },
  };
}

const MARGIN = 500; // pixels above and below the window that are drawn, too

/** Draws by changing what is there: an element for each thing in sight, and for each VM that moves. */
class Picture {
  constructor(model) {
    this.model = model;
    this.cables = svg("g", { class: "cables" });
    this.boxes = svg("g");
    this.ways = svg("g", { class: "ways" });
    this.vms = svg("g", { class: "vms" });
    this.going = svg("g", { class: "vms" });
    const label = "Spines, leaves, servers and VMs";
    this.svg = svg("svg", { role: "group", "aria-label": label }, this.cables, this.boxes, this.vms);
    // What moves is painted anew for each frame: by itself, for all the rest stands still.
    const over = { role: "group", "aria-label": "VMs that move", class: "over" };
    this.over = svg("svg", over, this.ways, this.going);
    this.node = el("div", { class: "picture" }, this.svg, this.over);
    this.made = new Map();
  }

  draw() {
    const width = Math.max(320, Math.floor(this.node.clientWidth) || 1000);
    this.picture = layout(this.model, width, (rack) => this.isOpen(rack));
    const height = this.picture.height;
    for (const one of [this.svg, this.over]) set(one, { width, height, viewBox: `0 0 ${width} ${height}` });
    this.paint();
  }

  paint() {
    const picture = this.picture;
    if (!picture) return;
    const top = -this.svg.getBoundingClientRect().top - MARGIN;
    const bottom = top + window.innerHeight + 2 * MARGIN;
    const sight = (y, height) => y < bottom && y + height > top;
    const used = new Set();
    for (const spine of picture.spines) this.switch(used, spine.row, spine.x, spine.y, NODE.width);
    for (const rack of picture.racks) if (sight(rack.y, rack.height)) this.rack(used, picture, rack, sight);
    this.cable(used, picture);
    const moves = this.model.underWay();
    set(this.ways, { class: moves.length > MOST_LINES ? "ways many" : "ways" });
    for (const migration of moves) this.way(used, picture, migration);
    for (const [id, at] of picture.vms) {
      if (sight(at.y, VM_HEIGHT) || this.model.migrationOf(id)) this.vm(used, picture, id, at);
    }
    for (const [key, part] of this.made) {
      if (used.has(key)) continue;
      this.made.delete(key);
      part.node.remove();
    }
  }

  isOpen(rack) {
    const folded = RACKS.all === null ? folds(this.model) : !RACKS.all;
    return RACKS.open.has(rack) ? folded : !folded; // The set has those that differ from the rest.
  }

  toggle(rack) {
    if (!RACKS.open.delete(rack)) RACKS.open.add(rack);
    this.draw();
  }

  /** The part called `key`, made by `make` if it is not there yet. */
  part(used, parent, key, make) {
    used.add(key);
    let part = this.made.get(key);
    if (!part) {
      part = make();
      part.node.dataset.key = key;
      this.made.set(key, part);
      parent.append(part.node);
    }
    return part;
  }

  switch(used, row, x, y, width) {
    const part = this.part(used, this.boxes, `switch ${row.id}`, () => {
      const name = svg("text", { x: 10, y: 22, class: "name" });
      const box = svg("rect", { height: NODE.height, rx: 5 });
      const title = svg("title");
      const node = svg("a", { href: `#/switches/${encodeURIComponent(row.id)}` }, title, box, name);
      return { node, name, box, title };
    });
    const away = row.connected ? "" : " away";
    set(part.node, { class: `switch ${row.role}${away}`, "aria-label": `${row.role} ${row.id}${away}` });
    set(part.box, { width });
    text(part.name, `${row.connected ? "" : "✕ "}${cut(row.id, Math.floor((width - 14) / 8))}`);
    text(part.title, `${row.role} ${row.id}${away ? ", which is away" : ""}`);
    move(part.node, x, y);
  }

  rack(used, picture, rack, sight) {
    const part = this.part(used, this.boxes, `rack ${rack.id}`, () => {
      const frame = svg("rect", { class: "frame", rx: 6 });
      const words = svg("text", { class: "words", y: 12 });
      const area = svg("rect", { class: "area", height: 24, rx: 4, y: -4 });
      const fold = svg(
        "g",
        {
          role: "button",
          tabindex: 0,
          class: "fold",
          on: {
            click: () => this.toggle(rack.id),
            keydown: (event) => pressed(event, () => this.toggle(rack.id)),
          },
        },
        area,
        words,
      );
      return { node: svg("g", { class: "rack" }, frame, fold), frame, fold, words, area };
    });
    set(part.frame, { width: rack.width, height: rack.height });
    const servers = count(rack.servers.length, "server");
    set(part.fold, {
      "aria-expanded": rack.open ? "true" : "false",
      "aria-label": `${rack.id || "servers whose place is not known"}: ${servers}, ${count(rack.vms, "VM")}`,
    });
    text(
      part.words,
      `${rack.open ? "▾" : "▸"} ${rack.leaf ? "" : "not found: "}${servers}, ${count(rack.vms, "VM")}`,
    );
    const beside = rack.leaf && rack.width > NODE.width + 140;
    if (rack.leaf) this.switch(used, rack.leaf, rack.x + 4, rack.y + 4, beside ? NODE.width : rack.width - 8);
    set(part.area, { width: beside ? rack.width - NODE.width - 20 : rack.width - 8 });
    move(part.fold, beside ? NODE.width + 14 : 8, beside ? 12 : NODE.height + 10);
    move(part.node, rack.x, rack.y);
    for (const place of rack.places) if (sight(place.y, place.height)) this.server(used, picture, place);
  }

  server(used, picture, place) {
    const { server } = place;
    const part = this.part(used, this.boxes, `server ${server.id || server.mac}`, () => {
      const box = svg("rect", { rx: 5 });
      const [name, state, more] = [
        svg("text", { x: 9, y: 17, class: "name" }),
        svg("text", { x: 9, y: 32, class: "state" }),
        svg("text", { x: 9, class: "state" }),
      ];
      const title = svg("title");
      const node = svg(
        "a",
        { href: `#/servers/${encodeURIComponent(server.id || server.mac)}` },
        title,
        box,
        name,
        state,
        more,
      );
      return { node, box, name, state, more, title };
    });
    const words = serverWords(server);
    const bad =
      server.fenced || server.state === "missing" || server.state === "mismatch" || server.agent === "away";
    set(part.node, { class: `server${bad ? " bad" : ""}${server.drained ? " drained" : ""}` });
    set(part.box, { width: picture.serverWidth, height: place.height });
    text(part.name, place.name);
    text(part.state, cut(words, picture.letters + 4));
    const whole = server.id || server.mac;
    text(
      part.title,
      part.name.textContent === whole && part.state.textContent === words ? "" : `${whole} ${words}`,
    );
    text(part.more, place.more ? `and ${place.more} more` : "");
    set(part.more, { y: place.height - 8 });
    move(part.node, place.x, place.y);
  }

  /** Every leaf has a cable to every spine. Where racks stand in several rows lines would only hide them. */
  cable(used, picture) {
    if (!picture.oneRow) {
      const part = this.part(used, this.cables, "cables in words", () => ({
        node: svg("text", { class: "state" }),
      }));
      text(part.node, `each leaf has a cable to each of ${count(picture.spines.length, "spine")}`);
      set(part.node, { x: 4, y: picture.spines.length ? picture.racks[0]?.y - 12 : 20 });
      return;
    }
    for (const spine of picture.spines) {
      for (const rack of picture.racks) {
        if (!rack.leaf) continue;
        const part = this.part(used, this.cables, `cable ${spine.id} ${rack.id}`, () => ({
          node: svg("line"),
        }));
        const away = !spine.row.connected || !rack.leaf.connected;
        set(part.node, {
          x1: spine.x + NODE.width / 2,
          y1: spine.y + NODE.height,
          x2: rack.x + 4 + NODE.width / 2,
          y2: rack.y + 4,
          class: away ? "away" : null,
        });
      }
    }
  }

  way(used, picture, migration) {
    const [from, to] = [migration.source, migration.target].map((server) =>
      middle(picture, this.model, server),
    );
    if (!from || !to) return;
    const part = this.part(used, this.ways, `way ${migration.id}`, () => ({ node: svg("path") }));
    const bend = Math.min(60, Math.abs(to.x - from.x) / 4 + 12);
    set(part.node, {
      d: `M${from.x} ${from.y} Q${(from.x + to.x) / 2} ${Math.min(from.y, to.y) - bend} ${to.x} ${to.y}`,
    });
  }

  /** VMs are in a layer of their own, so that one may go from any server to any other. */
  vm(used, picture, id, at) {
    const migration = this.model.migrationOf(id);
    if (at.hidden && !migration) {
      this.leave(used, id, at);
      return;
    }
    const part = this.part(used, this.vms, `vm ${id}`, () => {
      const box = svg("rect", { width: picture.serverWidth - 12, height: VM_HEIGHT - 4, rx: 4 });
      const name = svg("text", { x: 6, y: 14 });
      const title = svg("title");
      const node = svg("a", { href: `#/vms/${encodeURIComponent(id)}` }, title, box, name);
      return { node, box, name, title, leaves: false, until: 0 };
    });
    part.leaves = false;
    put(part.node, migration || performance.now() < part.until ? this.going : this.vms);
    const state = migration ? "moves" : at.vm.state;
    set(part.box, { width: at.hidden ? 126 : picture.serverWidth - 12 });
    set(part.node, { class: `vm ${state}`, "aria-label": `VM ${id}, ${state}, at ${at.server.id}` });
    text(part.name, `${migration ? "⇄" : SIGNS[state] || "○"} ${cut(id, picture.letters)}`);
    text(
      part.title,
      migration
        ? `${id} moves from ${migration.source} to ${migration.target}: ${migration.state}`
        : `${id}: ${state}`,
    );
    if (move(part.node, at.x, at.y)) part.until = performance.now() + MOVED_MS;
  }

  /** One that has arrived in a folded rack, or below the last line: it is seen to get there first. */
  leave(used, id, at) {
    const part = this.made.get(`vm ${id}`);
    if (!part) return;
    used.add(`vm ${id}`);
    if (part.leaves) return;
    part.leaves = true;
    move(part.node, at.x, at.y);
    setTimeout(() => {
      if (this.made.get(`vm ${id}`) === part && part.leaves) {
        this.made.delete(`vm ${id}`);
        part.node.remove();
      }
    }, MOVED_MS);
  }
}

export function serverWords(server) {
  const words = [];
  if (server.fenced) words.push("fenced");
  if (server.drained) words.push("drained");
  if (!server.id) words.push("unknown");
  else if (server.state === "missing") words.push("not found");
  else if (server.state === "mismatch") words.push("elsewhere");
  if (server.agent === "away") words.push("agent away");
  if (server.services?.length) words.push([...server.services].sort(byName).join(", "));
  if (server.subinterfaces?.length)
    words.push(server.subinterfaces.map((one) => `VRF ${one.vrf} by VLAN ${one.vlan}`).join(", "));
  return words.join(", ") || (server.address ? String(server.address) : "up");
}

export function serverLink(id) {
  return id ? link(`#/servers/${encodeURIComponent(id)}`, id) : "";
}

/** Whether it was elsewhere. */
function move(node, x, y) {
  const wanted = `translate(${Math.round(x)}px, ${Math.round(y)}px)`;
  const moves = node.style.transform !== wanted;
  if (moves) node.style.transform = wanted;
  return moves;
}

/** Into another layer; what has the focus keeps it. */
function put(node, layer) {
  if (node.parentNode === layer) return;
  const focused = node === document.activeElement;
  layer.append(node);
  if (focused) node.focus({ preventScroll: true });
}

function text(node, words) {
  if (node.textContent !== words) node.textContent = words;
}

function pressed(event, act) {
  if (event.key !== "Enter" && event.key !== " ") return;
  event.preventDefault();
  act();
}
