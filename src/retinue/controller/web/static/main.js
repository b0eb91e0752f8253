// The page: log-in, the line of health, and the view that the address names.

import { button, el, fill, link } from "./dom.js";
import { healthLine } from "./health.js";
import { Model } from "./model.js";
import { moveHash, movesView, moveView } from "./moves.js";
import { networkView } from "./network.js";
import { decisionsView, eventsView, forgeriesView, forgeryView, imagesView, imageView } from "./records.js";
import { get, hasToken, RestError, takeToken, useToken } from "./rest.js";
import { follow } from "./stream.js";
import {
  bindingsView,
  serversView,
  serverView,
  switchesView,
  switchView,
  vmsView,
  vmView,
} from "./things.js";

const PARTS = [
  ["", "Network", networkView, null],
  ["moves", "Moves", movesView, moveView],
  ["vms", "VMs", vmsView, vmView],
  ["servers", "Servers", serversView, serverView],
  ["switches", "Switches", switchesView, switchView],
  ["bindings", "Bindings", bindingsView, null],
  ["forgeries", "Forgeries", forgeriesView, forgeryView],
  ["images", "Images", imagesView, imageView],
  ["decisions", "Decisions", decisionsView, null],
  ["events", "Events", eventsView, null],
];
const SAID_MS = 30000;

const [main, nav, who, health, said, find, findText] = [
  "main",
  "nav",
  "who",
  "health",
  "said",
  "find",
  "find-text",
].map((id) => document.getElementById(id));
let model = null;
let me = null;
let view = null;

async function start() {
  takeToken();
  try {
    me = await get("/web/who");
  } catch (error) {
    logIn(error);
    return;
  }
  model = new Model();
  showWho();
  find.hidden = false;
  fill(main, el("p", { class: "none" }, "Reading what there is …"));
  try {
    const since = await model.load();
    show();
    healthLine(model, health);
    await follow(since, {
      act: (event) => model.apply(event),
      state: (state) => model.setLive(state),
      anew: () => model.load(),
    });
  } catch (error) {
    logIn(error);
  }
}

/** The form for a token. Who has a certificate that the browser shows never sees it. */
function logIn(error) {
  view?.gone?.();
  [view, model, me] = [null, null, null];
  fill(nav);
  fill(who);
  find.hidden = true;
  const unknown = error instanceof RestError && error.status === 401;
  const token = el("input", {
    id: "token",
    type: "password",
    autocomplete: "off",
    maxlength: 512,
    required: true,
  });
  const words = !unknown ? error.message : hasToken() ? "This token is not known." : "";
  fill(
    main,
    el("h1", {}, "Log in"),
    words ? el("p", { class: "bad", role: "alert" }, words) : null,
    unknown
      ? null
      : el(
          "p",
          {},
          button("Try again", () => start()),
        ),
    el(
      "form",
      {
        class: "log-in",
        on: {
          submit: (event) => {
            event.preventDefault();
            useToken(token.value.trim());
            start();
          },
        },
      },
      el("label", { for: "token" }, "Token "),
      token,
      " ",
      el("button", { type: "submit" }, "Log in"),
      el(
        "p",
        { class: "none" },
        "`retinue pki token` makes one. It is kept for this tab, until it is closed. With a client " +
          "certificate in the browser no token is needed.",
      ),
    ),
  );
  useToken("");
  if (unknown) token.focus();
}

function showWho() {
  const role = me.manages ? "" : ", who may look and change nothing";
  fill(
    who,
    me.name || "nobody in particular",
    role,
    " ",
    hasToken()
      ? button("Log out", () => {
          useToken("");
          location.reload();
        })
      : null,
  );
}

function show() {
  if (!model) return;
  const [name = "", ...rest] = location.hash.replace(/^#\/?/, "").split("/").map(decoded);
  const part = PARTS.find(([id]) => id === name) || PARTS[0];
  const make = rest.length && rest[0] && part[3] ? part[3] : part[2];
  view?.gone?.();
  view = make(model, rest, { manages: me.manages, say, sure, go });
  fill(
    nav,
    ...PARTS.map(([id, title]) => link(`#/${id}`, title, id === part[0] ? { "aria-current": "page" } : {})),
  );
  main.replaceChildren(view.node);
  view.shown();
  document.title = `${view.title} · retinue`;
  model.listen(forward);
  main.focus({ preventScroll: true });
}

function forward(topics) {
  view?.update(topics);
}

function go(hash) {
  location.hash = hash;
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** Do something that may be rejected: the reason is said. */
async function say(act) {
  said.textContent = "";
  try {
    await act();
  } catch (error) {
    said.textContent = error.message;
    setTimeout(() => {
      if (said.textContent === error.message) said.textContent = "";
    }, SAID_MS);
  }
}

/** Ask before something is done; whether it is to be. */
function sure(question, yes) {
  return new Promise((answer) => {
    const dialog = el(
      "dialog",
      {
        "aria-label": question,
        on: {
          close: () => {
            dialog.remove();
            answer(dialog.returnValue === "yes");
          },
        },
      },
      el("p", {}, question),
      button(yes, () => dialog.close("yes"), { id: "sure" }),
      " ",
      button("Leave it", () => dialog.close("")),
    );
    document.body.append(dialog);
    dialog.showModal();
  });
}

find.addEventListener("submit", (event) => {
  event.preventDefault();
  const text = findText.value.trim();
  if (!text || !model) return;
  const places = [
    ["vms", model.vms],
    ["servers", model.servers],
    ["switches", model.switches],
    ["moves", model.migrations],
    ["images", model.images],
  ];
  const fits = [(id) => id === text, (id) => id.startsWith(text), (id) => id.includes(text)];
  for (const fit of fits) {
    for (const [name, things] of places) {
      const id = [...things.keys()].find(fit);
      if (id) {
        go(name === "moves" ? moveHash(id) : `#/${name}/${encodeURIComponent(id)}`);
        return;
      }
    }
  }
  say(() => Promise.reject(new Error(`Nothing here is called ${text}.`)));
});

document.addEventListener("keydown", (event) => {
  if (
    event.ctrlKey ||
    event.metaKey ||
    event.altKey ||
    /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)
  )
    return;
  if (event.key === "/" && model) {
    event.preventDefault();
    findText.focus();
  }
  const number = "1234567890".indexOf(event.key);
  if (number >= 0 && PARTS[number] && model) go(`#/${PARTS[number][0]}`);
});

document.getElementById("skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});

window.addEventListener("hashchange", () => {
  if (/^#token=/.test(location.hash)) start();
  else show();
});

start();
