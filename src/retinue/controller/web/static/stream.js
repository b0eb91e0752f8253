// The event stream, with a token as an EventSource cannot send one; taken up again where it broke off.

import { request, RestError } from "./rest.js";

const FIRST_WAIT = 500;
const LONGEST_WAIT = 8000;

/**
 * Give `act` every event after the one of id `since`, for ever. `state` is told "live" and "away". `anew` is
 * called when events have been lost, or the controller was restarted: it reads everything anew, and answers
 * with the id from which on to follow. Rejects only when the log-in no longer counts.
 */
export async function follow(since, { act, state, anew }) {
  let wait = FIRST_WAIT;
  for (;;) {
    let lost = false;
    try {
      for await (const event of events(since)) {
        wait = FIRST_WAIT;
        if (event.type === "hello") {
          lost = event.id < since;
          if (lost) break;
          state("live");
        } else if (event.type === "events.lost") {
          lost = true;
          break;
        } else {
          since = event.id;
          act(event);
        }
      }
      state("away");
      if (!lost) await pause(wait);
      else since = await anew();
    } catch (error) {
      if (error instanceof RestError && error.status === 401) throw error;
      state("away");
      await pause(wait);
    }
    wait = Math.min(2 * wait, LONGEST_WAIT);
  }
}

function pause(milliseconds) {
  return new Promise((done) => setTimeout(done, milliseconds));
}

async function* events(since) {
  const answer = await request("GET", `/v1/events?since=${since}`);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    yield* parsed(reader);
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Server-sent events as this controller writes them: the data is one line of JSON, with id and type. */
async function* parsed(reader) {
  let waiting = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (waiting + value).split("\n");
    waiting = lines.pop();
    for (const line of lines) if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
  }
}
