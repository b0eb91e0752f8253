// Where everything is drawn: rows that stay, spines above leaves above servers above VMs. Pure.

import { byName, cut } from "./words.js";

const GAP = 14;
export const NODE = { width: 110, height: 34 };
const SERVER_HEAD = 40;
export const VM_HEIGHT = 24;
const MOST_VMS = 10; // of a server that are drawn; how many more there are is said
const PAD = 10;
const RACK_HEAD = 44;
const ROW = 76; // between the spines and the leaves
const FOLD_OVER = 48; // servers: in a larger network racks are folded until somebody unfolds them
const LETTER = 7.4; // width, in pixels
const LONGEST = 26; // letters of a name that are shown

export function folds(model) {
  return model.servers.size > FOLD_OVER;
}

/** The leaf that a server is at; "" while it is not known. */
function rackOf(server) {
  return (server.at || "").split(":")[0];
}

/**
 * `isOpen(leaf)` says whether a rack's servers are drawn. Answers with the picture's size, its spines and racks
 * with their servers, and `vms`: by id where each is drawn.
 */
export function layout(model, width, isOpen) {
  const longest = Math.min(LONGEST, Math.max(8, longestOf(model.servers), longestOf(model.vms)));
  const serverWidth = Math.round(Math.max(124, longest * LETTER + 44));
  const letters = Math.floor((serverWidth - 44) / LETTER);
  const byServer = model.vmsByServer();
  const roles = (role) =>
    [...model.switches.values()].filter((row) => row.role === role).sort((a, b) => byName(a.id, b.id));
  const spines = roles("spine");
  const racks = new Map(roles("leaf").map((row) => [row.id, { id: row.id, leaf: row, servers: [] }]));
  for (const server of model.servers.values()) {
    const at = rackOf(server);
    if (!racks.has(at)) racks.set(at, { id: at, leaf: model.switches.get(at) || null, servers: [] });
    racks.get(at).servers.push(server);
  }
  const shown = [...racks.values()];
  for (const rack of shown) measure(rack, width, serverWidth, byServer, isOpen);
  const vms = new Map();
  const spineRows = Math.ceil((spines.length * (NODE.width + GAP)) / width) || 1;
  const top = GAP + (spineRows - 1) * (NODE.height + GAP) + ROW;
  const height = flow(shown, width, top);
  for (const rack of shown) place(rack, serverWidth, byServer, vms, letters);
  const total = spines.length * (NODE.width + GAP) - GAP;
  const perRow = Math.max(1, Math.floor((width + GAP) / (NODE.width + GAP)));
  const left = Math.max(0, (Math.min(width, extent(shown)) - Math.min(total, width)) / 2);
  const placed = spines.map((row, index) => ({
    id: row.id,
    row,
    x: left + (index % perRow) * (NODE.width + GAP),
    y: GAP + Math.floor(index / perRow) * (NODE.height + GAP),
  }));
  const oneRow = new Set(shown.map((rack) => rack.y)).size <= 1 && spineRows === 1;
  return { width, height, spines: placed, racks: shown, vms, oneRow, serverWidth, letters };
}

function longestOf(things) {
  let longest = 0;
  for (const name of things.keys()) if (name.length > longest) longest = name.length;
  return longest;
}

function extent(racks) {
  return Math.max(0, ...racks.map((rack) => rack.x + rack.width));
}

function measure(rack, width, serverWidth, byServer, isOpen) {
  rack.open = isOpen(rack.id);
  rack.vms = rack.servers.reduce((sum, server) => sum + (byServer.get(server.id) || []).length, 0);
  if (!rack.open) {
    [rack.width, rack.height, rack.head] = [150, RACK_HEAD + 20, RACK_HEAD];
    return;
  }
  rack.servers.sort((a, b) => byName(a.id, b.id));
  const fit = Math.max(1, Math.floor((width - 2 * PAD + 8) / (serverWidth + 8)));
  rack.columns = Math.max(1, Math.min(rack.servers.length, fit));
  rack.rows = [];
  for (let from = 0; from < rack.servers.length; from += rack.columns) {
    const most = Math.max(
      ...rack.servers
        .slice(from, from + rack.columns)
        .map((server) => (byServer.get(server.id) || []).length),
    );
    const lines = Math.min(most, MOST_VMS) + (most > MOST_VMS ? 1 : 0);
    rack.rows.push(SERVER_HEAD + lines * VM_HEIGHT + 6);
  }
  rack.width = Math.max(150, rack.columns * (serverWidth + 8) - 8 + 2 * PAD);
  rack.head = rack.width > NODE.width + 140 ? RACK_HEAD : RACK_HEAD + 18;
  rack.height = rack.head + PAD + rack.rows.reduce((sum, height) => sum + height + 8, 0);
}

/** From left to right, and on in the next row; the height of all. */
function flow(racks, width, top) {
  let [x, y, row] = [0, top, 0];
  for (const rack of racks) {
    if (x > 0 && x + rack.width > width) [x, y, row] = [0, y + row + GAP, 0];
    [rack.x, rack.y] = [x, y];
    x += rack.width + GAP;
    row = Math.max(row, rack.height);
  }
  return y + row + GAP;
}

function place(rack, serverWidth, byServer, vms, letters) {
  rack.places = [];
  let y = rack.y + rack.head;
  rack.servers.forEach((server, index) => {
    const own = byServer.get(server.id) || [];
    if (!rack.open) {
      for (const vm of own)
        vms.set(vm.id, { vm, hidden: true, x: rack.x + 12, y: rack.y + RACK_HEAD - 6, server });
      return;
    }
    const column = index % rack.columns;
    if (column === 0 && index) y += rack.rows[index / rack.columns - 1] + 8;
    const x = rack.x + PAD + column * (serverWidth + 8);
    const height = rack.rows[Math.floor(index / rack.columns)];
    rack.places.push({
      server,
      x,
      y,
      height,
      more: Math.max(0, own.length - MOST_VMS),
      name: cut(server.id || server.mac, letters + 2),
    });
    own.sort((a, b) => byName(a.id, b.id));
    own.forEach((vm, line) => {
      const at = Math.min(line, MOST_VMS);
      vms.set(vm.id, { vm, hidden: line >= MOST_VMS, x: x + 6, y: y + SERVER_HEAD + at * VM_HEIGHT, server });
    });
  });
}

/** Where a line to a server ends: above its place, or in the rack it is folded into; null: there is no such server. */
export function middle(picture, model, server) {
  const found = model.servers.get(server);
  const rack = found && picture.racks.find((one) => one.id === rackOf(found));
  if (!rack) return null;
  const place = rack.places.find((one) => one.server.id === server);
  if (place) return { x: place.x + picture.serverWidth / 2, y: place.y };
  return { x: rack.x + rack.width / 2, y: rack.y + 20 };
}
