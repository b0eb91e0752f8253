// Requests to the controller, as whoever has logged in: by a token, kept for this tab alone, or by the
// browser's certificate.

const TOKEN = "retinue.token";

export class RestError extends Error {
  constructor(status, message, code) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** A token that stands in the address (#token=...) is taken from there: it is not to stay in the history. */
export function takeToken() {
  const given = /^#token=([\w.~+/=-]{1,512})$/.exec(location.hash);
  if (!given) return;
  useToken(given[1]);
  history.replaceState(null, "", `${location.pathname}#/`);
}

export function useToken(token) {
  if (token) sessionStorage.setItem(TOKEN, token);
  else sessionStorage.removeItem(TOKEN);
}

export function hasToken() {
  return Boolean(sessionStorage.getItem(TOKEN));
}

/** The answer to a request, whose body has not been read. Rejects with RestError. */
export async function request(method, path, { body, signal } = {}) {
  const token = sessionStorage.getItem(TOKEN);
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers,
      signal,
      body: body === undefined ? undefined : JSON.stringify(body),
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new RestError(0, "the controller does not answer", "");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new RestError(
    answer.status,
    said.error || `the controller answered ${answer.status}`,
    said.code || "",
  );
}

export async function get(path) {
  return (await request("GET", path)).json();
}

export async function post(path, body) {
  return (await request("POST", path, { body })).json();
}

/** A path of the interface: path`/v1/vms/${id}`, each value quoted. */
export function path(parts, ...values) {
  return parts.reduce((made, part, index) => made + encodeURIComponent(values[index - 1]) + part);
}
