// What has happened and what is kept: forgeries, events, images, decisions of placement.

import { button, el, fields, fill, link, table } from "./dom.js";
import { moveHash } from "./moves.js";
import { serverLink } from "./network.js";
import { post } from "./rest.js";
import { bytes, count, day, time } from "./words.js";

export function forgeriesView(model) {
  const rows = el("div");
  const update = (topics) => {
    if (topics && !topics.has("forgeries")) return;
    const found = [...model.forgeries.values()].sort((a, b) => b.last - a.last);
    fill(
      rows,
      table(
        "Frames under a name that is not the sender's",
        ["Forgery", "Kind", "VM", "Switch", "Port", "Claimed MAC", "Claimed IP", "Count", "First", "Last"],
        found.map((row) => [
          link(`#/forgeries/${encodeURIComponent(row.id)}`, row.id),
          row.kind,
          row.vm || "-",
          row.switch,
          row.port ?? "",
          row.claimed_mac,
          row.claimed_ip,
          row.count,
          day(row.first),
          day(row.last),
        ]),
        "Nobody has sent under another's name.",
      ),
    );
  };
  return {
    node: el("div", {}, el("h1", {}, "Forgeries"), rows),
    title: "Forgeries",
    update,
    shown: () => update(null),
  };
}

export function forgeryView(model, [id], { say }) {
  const [facts, way] = [el("div"), el("div")];
  const update = (topics) => {
    if (topics && !topics.has("forgeries")) return;
    const row = model.forgeries.get(id);
    fill(
      facts,
      row
        ? fields([
            ["kind", row.kind],
            ["VM", row.vm ? link(`#/vms/${encodeURIComponent(row.vm)}`, row.vm) : "-"],
            ["switch", row.switch],
            ["port", row.port],
            ["claimed MAC", row.claimed_mac],
            ["claimed IP", row.claimed_ip],
            ["frames that reached the controller", row.count],
            ["first", day(row.first)],
            ["last", day(row.last)],
          ])
        : el("p", { class: "none" }, `There is no forgery ${id} in the log any more.`),
    );
  };
  const trace = () =>
    say(async () => {
      const found = await post("/v1/traces", { forgery: id });
      fill(
        way,
        el("h2", {}, "What becomes of such a frame"),
        el("p", {}, found.summary),
        ...found.hops.map((hop) =>
          table(
            `${hop.role} ${hop.switch}, from port ${hop.port}`,
            ["Table", "Priority", "Match", "Actions"],
            hop.entries.map((one) => [
              one.table_name,
              one.priority_name || one.priority,
              one.match,
              one.actions,
            ]),
            "It meets no entry.",
          ),
        ),
        ...found.ends.map((end) =>
          el(
            "p",
            {},
            el("b", {}, `${end.fate}: `),
            end.text,
            end.advice.length ? ` ${end.advice.join(" ")}` : "",
          ),
        ),
      );
    });
  return {
    node: el(
      "div",
      {},
      el("h1", {}, `Forgery ${id}`),
      facts,
      el("p", {}, button("Why was it dropped?", trace)),
      way,
    ),
    title: id,
    update,
    shown: () => update(null),
  };
}

const SHOWN = 400;
const LONGEST = 400;
/** Fields that are times, in seconds since the epoch. */
const WHEN = /^(first|last|since|until)$|_(at|end)$/;

export function eventsView(model) {
  const wanted = el("input", {
    type: "search",
    maxlength: 80,
    "aria-label": "Only events with this text",
    placeholder: "only those with …",
  });
  const rows = el("div");
  const update = (topics) => {
    if (topics && !topics.has("events")) return;
    const text = wanted.value.toLowerCase();
    const found = [];
    for (let at = model.events.length - 1; at >= 0 && found.length < SHOWN; at -= 1) {
      const event = model.events[at];
      const words = inWords(event);
      if (!text || `${event.type} ${words}`.toLowerCase().includes(text))
        found.push([event.id, time(event.at), event.type, words]);
    }
    fill(
      rows,
      table(
        "What has happened since this page was opened, the last first",
        ["Id", "At", "Type", "What"],
        found,
        "Nothing yet.",
      ),
    );
  };
  wanted.addEventListener("input", () => update(null));
  return {
    node: el("div", {}, el("h1", {}, "Events"), el("p", {}, wanted), rows),
    title: "Events",
    update,
    shown: () => update(null),
  };
}

/** The fields of an event in a line; of a whole thing its name. */
function inWords({ id, at, type, ...data }) {
  const value = (item, name) => {
    if (Array.isArray(item)) return item.map((one) => value(one, name)).join(", ");
    if (item !== null && typeof item === "object")
      return item.id ? `${item.id}${item.state ? ` (${item.state})` : ""}` : pairs(item, ", ");
    return typeof item === "number" && WHEN.test(name) ? day(item) : String(item);
  };
  const pairs = (fields, between) =>
    Object.entries(fields)
      .map(([name, item]) => `${name}: ${value(item, name)}`)
      .join(between);
  const words = pairs(data, "  ");
  return words.length > LONGEST ? `${words.slice(0, LONGEST)}…` : words;
}

export function imagesView(model) {
  const rows = el("div");
  const update = (topics) => {
    if (topics && !topics.has("images")) return;
    fill(
      rows,
      table(
        "Images, and the servers that have all of one",
        ["Image", "Size", "Published", "By", "At", "On the way"],
        [...model.images.values()].map((image) => [
          link(`#/images/${encodeURIComponent(image.name)}`, image.name),
          bytes(image.manifest.size),
          day(image.manifest.published_at),
          image.publisher,
          image.holders.map((holder) => holder.server).join(", "),
          image.held
            .filter((row) => row.state === "fetching")
            .map((row) => `${row.server} ${share(row, image)}`)
            .join(", "),
        ]),
        "No image is published.",
      ),
      model.stores.length
        ? table(
            "Chunk stores of the servers",
            ["Server", "Used", "Of", "Sent", "Bad chunks", "Agent"],
            model.stores.map((store) => [
              serverLink(store.server),
              bytes(store.used),
              bytes(store.quota),
              bytes(store.sent),
              store.bad || "",
              store.here ? "here" : "away",
            ]),
            "",
          )
        : null,
    );
  };
  return {
    node: el("div", {}, el("h1", {}, "Images"), rows),
    title: "Images",
    update,
    shown: () => update(null),
  };
}

export function imageView(model, [id]) {
  const rows = el("div");
  const update = (topics) => {
    if (topics && !topics.has("images")) return;
    const image = model.images.get(id);
    fill(
      rows,
      image
        ? [
            fields([
              ["size", bytes(image.manifest.size)],
              ["published", day(image.manifest.published_at)],
              ["by", image.publisher],
              ["origin", serverLink(image.origin)],
              ["digest of its chunk list", image.manifest.list_digest],
            ]),
            table(
              "Where it is",
              ["Server", "State", "Has", "A second", "Came from", "Pinned for", "Reason"],
              image.held.map((row) => [
                serverLink(row.server),
                row.state + (row.here ? "" : " (agent away)"),
                `${bytes(row.held)}, ${share(row, image)}`,
                row.rate ? bytes(row.rate) : "",
                Object.entries(row.origins)
                  .map(([server, many]) => `${server} ${bytes(many)}`)
                  .join(", "),
                row.pins.join(", "),
                row.reason,
              ]),
              "No server has any of it.",
            ),
          ]
        : el("p", { class: "none" }, `There is no image ${id}.`),
    );
  };
  return { node: el("div", {}, el("h1", {}, id), rows), title: id, update, shown: () => update(null) };
}

function share(row, image) {
  return image.manifest.size ? `${Math.floor((100 * row.held) / image.manifest.size)} %` : "";
}

export function decisionsView(model) {
  const rows = el("div");
  const update = (topics) => {
    if (topics && !topics.has("migrations") && !topics.has("events")) return;
    const chosen = [...model.migrations.values()].filter((one) => one.placement).reverse();
    const not = model.events.filter((event) => event.type === "mobility.unmatched").reverse();
    fill(
      rows,
      table(
        "Moves whose target was chosen",
        ["Move", "VM", "Target", "Next best", "Decided by", "Asked by", "Because", "In words"],
        chosen.map((one) => [
          link(moveHash(one.id), one.id),
          link(`#/vms/${encodeURIComponent(one.vm)}`, one.vm),
          one.target,
          one.placement.runner_up,
          one.placement.decided_by,
          one.placement.by,
          one.placement.reason,
          one.placement.text,
        ]),
        "No target was chosen yet: each was named.",
      ),
      not.length
        ? table(
            `${count(not.length, "VM")} stayed where it was`,
            ["At", "VM", "Because"],
            not.map((event) => [time(event.at), event.vm, event.reason]),
            "",
          )
        : null,
    );
  };
  return {
    node: el("div", {}, el("h1", {}, "Decisions"), rows),
    title: "Decisions",
    update,
    shown: () => update(null),
  };
}
