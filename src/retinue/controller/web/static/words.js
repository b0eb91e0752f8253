// Values as people read them.

export function time(at) {
  if (at === null || at === undefined) return "";
  const when = new Date(at * 1000);
  const two = (number) => String(number).padStart(2, "0");
  const clock = [when.getHours(), when.getMinutes(), when.getSeconds()].map(two).join(":");
  return `${clock}.${String(when.getMilliseconds()).padStart(3, "0")}`;
}

export function day(at) {
  return at === null || at === undefined
    ? ""
    : `${new Date(at * 1000).toLocaleDateString()} ${time(at).slice(0, 8)}`;
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined || Number.isNaN(seconds)) return "";
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.1 ? 1 : 0)} ms`;
  return seconds < 120 ? `${seconds.toFixed(2)} s` : `${(seconds / 60).toFixed(1)} min`;
}

export function bytes(number) {
  if (number === null || number === undefined) return "";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; number >= 1024 && unit < units.length - 1; unit += 1) number /= 1024;
  return `${number.toFixed(unit && number < 100 ? 1 : 0)} ${units[unit]}`;
}

export function count(number, one, many = `${one}s`) {
  return `${number} ${number === 1 ? one : many}`;
}

/** Order of names in which 10 comes after 9. */
export const byName = new Intl.Collator("en", { numeric: true }).compare;

export function cut(text, most) {
  return text.length <= most ? text : `${text.slice(0, most - 1)}…`;
}
