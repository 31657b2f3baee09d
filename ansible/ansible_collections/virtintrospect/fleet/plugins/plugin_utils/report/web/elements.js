// Elements of the page, made without HTML: what guests wrote is only ever text.

function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (value !== undefined && value !== false) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== undefined && child !== null));
  return element;
}

const NUMBER = new Intl.NumberFormat("en", { maximumFractionDigits: 2 });

function bytes(number) {
  let unit = 0;
  while (Math.abs(number) >= 1024 && unit < 5) { number /= 1024; unit++; }
  const digits = unit && Math.abs(number) < 100 ? 1 : 0;
  return `${number.toFixed(digits)} ${["B", "KiB", "MiB", "GiB", "TiB", "PiB"][unit]}`;
}

function duration(seconds) {
  const days = Math.floor(seconds / 86400), rest = Math.floor(seconds % 86400);
  const clock = `${Math.floor(rest / 3600)}:${String(Math.floor((rest % 3600) / 60)).padStart(2, "0")}`;
  return days ? `${days} d ${clock}` : clock;
}

function time(seconds) {
  const date = new Date(seconds * 1000);
  return Number.isNaN(date.getTime()) ? String(seconds) : date.toISOString().slice(0, 19).replace("T", " ") + "Z";
}

// A value as people read it.
function shown(data, name, row) {
  const value = data.value(name, row);
  if (value === undefined) return "";
  if (typeof value !== "number") return value;
  const unit = META.units[name];
  if (unit === "bytes") return bytes(value);
  if (unit === "amount") return (data.value("resource", row) ?? "memory") === "memory" ? bytes(value) : NUMBER.format(value);
  if (unit === "duration") return duration(value);
  if (unit === "time") return time(value);
  return unit === "id" ? String(value) : NUMBER.format(value);
}

function label(name) {
  return META.labels[name] ?? name.replaceAll("_", " ");
}

function say(text) {
  document.getElementById("status").textContent = text;
}

// A severity as a coloured word; other values as they are.
function badge(text) {
  return RANK.has(text) ? el("span", { class: `badge ${text}` }, text) : text;
}

function count(number, one, many = `${one}s`) {
  return `${NUMBER.format(number)} ${number === 1 ? one : many}`;
}
