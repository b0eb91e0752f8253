// Migrations: all of them, and the timeline of one.

import { button, el, fields, fill, link, svg, table } from "./dom.js";
import { ended } from "./model.js";
import { get, path, post } from "./rest.js";
import { bytes, day, duration, time } from "./words.js";

const DONE = "done";

export function moveHash(id) {
  return `#/moves/${encodeURIComponent(id)}`;
}

/** One migration in a line. */
export function moveLine(model, migration) {
  return el(
    "p",
    { class: `move ${stateClass(migration)}` },
    link(moveHash(migration.id), migration.id),
    " ",
    link(`#/vms/${encodeURIComponent(migration.vm)}`, migration.vm),
    " from ",
    migration.source,
    " to ",
    targetOf(migration),
    ": ",
    el("b", {}, migration.state),
    progress(model, migration),
    migration.reason ? ` (${migration.reason})` : "",
  );
}

export function movesView(model) {
  const rows = el("div");
  const update = (topics) => {
    if (topics && !topics.has("migrations")) return;
    const found = [...model.migrations.values()].reverse();
    fill(
      rows,
      table(
        "Moves, the last first",
        ["Move", "VM", "From", "To", "State", "Began", "Took", "Downtime", "Reason"],
        found.map((one) => [
          link(moveHash(one.id), one.id),
          link(`#/vms/${encodeURIComponent(one.vm)}`, one.vm),
          one.source,
          targetOf(one),
          el("span", { class: stateClass(one) }, one.state),
          day(one.steps[0]?.at),
          took(one),
          downtime(one),
          one.reason,
        ]),
        "Nothing has moved yet.",
      ),
    );
  };
  return {
    node: el("div", {}, el("h1", {}, "Moves"), rows),
    title: "Moves",
    update,
    shown: () => update(null),
  };
}

export function moveView(model, [id], { manages, say }) {
  const [picture, facts, acts, chosen] = [el("div"), el("div"), el("p"), el("section")];
  let explained = false;
  const update = (topics) => {
    if (topics && !topics.has("migrations")) return;
    const migration = model.migrations.get(id);
    if (!migration) {
      fill(facts, el("p", { class: "none" }, `There is no move ${id} any more, or never was.`));
      return;
    }
    fill(picture, timeline(migration, model.now()));
    fill(facts, figures(model, migration));
    const may =
      manages && !ended(migration) && migration.resumed_at === null && migration.state !== "rolling back";
    fill(
      acts,
      may
        ? button("Cancel this move", async (event) => {
            event.target.disabled = true;
            await say(async () => model.take(await post(path`/v1/migrations/${id}/cancel`)));
            event.target.disabled = false;
          })
        : null,
    );
    if (migration.placement && !explained) {
      explained = true;
      explain(chosen, migration, say);
    }
  };
  const node = el("div", {}, el("h1", {}, id), acts, picture, facts, chosen);
  const clock = setInterval(() => {
    const migration = model.migrations.get(id);
    if (migration && !ended(migration)) update(null);
  }, 200);
  return { node, title: id, update, shown: () => update(null), gone: () => clearInterval(clock) };
}

/** A bar for each state, and one for the time in which the VM stood still. */
function timeline(migration, now) {
  const steps = migration.steps;
  const begin = steps[0].at;
  const over = ended(migration);
  const end = over ? steps.at(-1).at : Math.max(now, steps.at(-1).at);
  const span = Math.max(end - begin, 0.001);
  const [left, right, line, width] = [130, 90, 24, 900];
  const scale = (at) => left + ((Math.min(at, end) - begin) / span) * (width - left - right);
  const rows = steps
    .filter((step, index) => !(over && index === steps.length - 1))
    .map((step, index) => ({
      name: step.state,
      from: step.at,
      to: steps[index + 1]?.at ?? end,
      kind: step.state.replace(" ", "-"),
    }));
  if (migration.stopped_at !== null) {
    rows.push({
      name: "VM paused",
      from: migration.stopped_at,
      to: migration.resumed_at ?? end,
      kind: "paused",
    });
  }
  const words = rows.map((row) => `${row.name} ${duration(row.to - row.from)}`).join(", ");
  return svg(
    "svg",
    {
      class: "timeline",
      viewBox: `0 0 ${width} ${rows.length * line + 8}`,
      role: "img",
      "aria-label": `Timeline: ${words}`,
    },
    ...rows.map((row, index) =>
      svg(
        "g",
        { class: row.kind },
        svg("text", { x: left - 10, y: index * line + 18, "text-anchor": "end" }, row.name),
        svg("rect", {
          x: scale(row.from),
          y: index * line + 6,
          width: Math.max(2, scale(row.to) - scale(row.from)),
          height: line - 8,
          rx: 3,
        }),
        svg(
          "text",
          { x: scale(row.to) + 6, y: index * line + 18, class: "state" },
          duration(row.to - row.from),
        ),
      ),
    ),
  );
}

function figures(model, migration) {
  const found = migration.figures || {};
  return fields([
    ["VM", link(`#/vms/${encodeURIComponent(migration.vm)}`, migration.vm)],
    ["from", migration.source],
    ["to", targetOf(migration)],
    ["state", el("b", { class: stateClass(migration) }, migration.state)],
    ["waits for", ended(migration) ? "" : migration.waits_for],
    ["reason", migration.reason],
    ["began", day(migration.steps[0].at)],
    ["took", took(migration)],
    ["downtime", downtime(migration)],
    ["copy", progress(model, migration)],
    ["copy passes", found.passes],
    ["written by the VM", found.written_a_second ? `${bytes(found.written_a_second)} a second` : ""],
    ["flow entries changed", found.flow_mods],
    ["frames to the controller", found.packet_ins],
    ["diverted in", milliseconds(found.diverting_ms)],
    ["network switched over in", milliseconds(found.control_ms)],
    ["packets diverted", found.diverted],
    ["of them kept at the source", found.kept],
    ["of them handed back", found.handed_back],
    ["packets lost, about", found.lost_about],
    ["bindings before", bindings(found.bindings_before)],
    ["bindings after", bindings(found.bindings_after)],
    ["target chosen", migration.placement?.text || "named by whoever started the move"],
    ["steps", migration.steps.map((step) => `${time(step.at)} ${step.state}`).join(", ")],
  ]);
}

async function explain(section, migration, say) {
  await say(async () => {
    const found = await get(path`/v1/migrations/${migration.id}/placement`);
    const { ranked, refused } = found.decision;
    fill(
      section,
      el("h2", {}, `Why ${migration.target}`),
      el("p", {}, `${found.why || ""} ${found.decision.text}`),
      table(
        "Servers that may take it, the best first",
        ["Server", "Points", "Of which"],
        ranked.map((one) => [
          one.server,
          (one.total / 100).toFixed(2),
          one.scores.map((score) => `${score.measure} ${(score.points / 100).toFixed(2)}`).join(", "),
        ]),
        "None may.",
      ),
      refused.length
        ? table(
            "Servers that may not",
            ["Server", "Because"],
            refused.map((one) => [
              one.server,
              one.refused.map((check) => check.text || check.reason || check.filter).join("; "),
            ]),
            "",
          )
        : null,
    );
  });
}

function bindings(rows) {
  return rows?.length
    ? rows.map((row) => `${row.ip} at ${row.switch} port ${row.port ?? "-"}`).join("; ")
    : "";
}

function progress(model, migration) {
  const at = model.copying.get(migration.id);
  if (!at || ended(migration)) return "";
  if (at.postcopy) return ` runs at the target, ${bytes(at.remaining)} to follow`;
  return at.copy_pass
    ? ` pass ${at.copy_pass}, ${bytes(at.remaining)} left`
    : ` disks, ${bytes(at.remaining)} left`;
}

function targetOf(migration) {
  return migration.far ? `${migration.far.domain}/${migration.far.server || "?"}` : migration.target;
}

function took(migration) {
  return ended(migration) ? duration(migration.steps.at(-1).at - migration.steps[0].at) : "";
}

function downtime(migration) {
  if (migration.stopped_at === null || migration.resumed_at === null) return "";
  return milliseconds((migration.resumed_at - migration.stopped_at) * 1000);
}

function milliseconds(number) {
  return number === null || number === undefined ? "" : `${number.toFixed(1)} ms`;
}

function stateClass(migration) {
  return migration.state === DONE
    ? "good"
    : migration.state === "undone" || migration.state === "rolling back"
      ? "bad"
      : "busy";
}
