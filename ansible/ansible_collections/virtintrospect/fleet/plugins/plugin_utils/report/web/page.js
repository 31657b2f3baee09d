// The parts of the page, and what opens what.

const GRIDS = {
  findings: { title: "Findings", columns: ["severity", "rule", "host", "guest", "subject", "detail"], choices: ["severity", "rule", "host"], sort: ["severity", true] },
  hints: { title: "Capacity", columns: ["host", "guest", "resource", "action", "current", "recommended", "gives_back", "confidence", "reason"], choices: ["resource", "action", "host"], sort: ["gives_back", true] },
  guests: { title: "Guests", columns: ["host", "guest", "looked_into", "worst", "findings", "trouble", "memory_total", "memory_available", "gives_back", "release", "processes", "cpus", "not_checked", "message"], choices: ["host", "looked_into", "worst", "release"], sort: ["worst", true] },
  hosts: { title: "Hosts", columns: ["host", "status", "guests", "not_looked_into", "worst", "findings", "trouble", "memory_total", "gives_back", "version", "message"], choices: ["status", "worst"], sort: ["host", false] },
};
const parts = new Map(); // name → {tab, view, grid}
let opened = null;

function gridOf(name) {
  const own = META.more.find((more) => more.name === name);
  return GRIDS[name] ?? { title: own.title, columns: own.columns, choices: ["host", ...own.choices], sort: own.sort };
}

// Show a part; a grid with a filter, as if it had been typed.
async function open(name, typed) {
  if (!parts.has(name)) name = "overview";
  const part = parts.get(name);
  for (const [other, { tab, view }] of parts) {
    tab.setAttribute("aria-selected", other === name);
    tab.tabIndex = other === name ? 0 : -1;
    view.hidden = other !== name;
  }
  opened = name;
  close();
  const hash = typed ? `#${name}?${encodeURIComponent(typed)}` : `#${name}`;
  if (location.hash !== hash) history.replaceState(null, "", hash);
  try {
    part.filling ??= fill(name, part);
    await part.filling;
  } catch (error) {
    part.view.replaceChildren(el("p", { class: "note" }, `This part cannot be shown: ${error.message}. A browser of 2023 or later is needed.`));
    return;
  }
  if (typed !== undefined && part.grid) part.grid.ask(typed);
}

async function fill(name, part) {
  part.view.append(el("p", { class: "empty" }, "Loading …"));
  if (name === "overview") {
    part.view.replaceChildren(await overview(open));
    return;
  }
  const data = await table(name);
  part.grid = new Grid(data, { ...gridOf(name), look });
  part.view.replaceChildren(part.grid.element);
  part.grid.paint(true);
}

// One row in full.
function look(data, row) {
  const aside = document.getElementById("detail");
  const host = data.value("host", row), guest = data.value("guest", row);
  const fields = data.columns.filter((column) => column.value(row) !== undefined)
    .flatMap((column) => [el("dt", {}, label(column.name)), el("dd", { class: META.code.includes(column.name) ? "code" : undefined }, badge(shown(data, column.name, row)))]);
  const links = [...parts.keys()].filter((name) => guest !== undefined && !["overview", "hosts", data.name].includes(name))
    .map((name) => el("button", { type: "button", on: { click: () => open(name, `${exactly("host", host)} ${exactly("guest", guest)}`) } }, name === "guests" ? "The guest" : `Its ${gridOf(name).title.toLowerCase()}`));
  aside.replaceChildren(
    el("button", { type: "button", class: "close", "aria-label": "Close", on: { click: close } }, "×"),
    el("h2", { id: "detail-title" }, data.value("rule", row) ?? guest ?? host ?? ""),
    el("dl", {}, ...fields), el("div", { class: "links" }, ...links));
  aside.hidden = false;
  aside.querySelector(".close").focus();
}

function close() {
  const aside = document.getElementById("detail");
  if (aside.hidden) return;
  aside.hidden = true;
  parts.get(opened)?.grid?.scroller.focus();
}

function keys(event) {
  if (event.key === "Escape") close();
  const typing = event.target.closest?.("input, select, textarea");
  if (event.key === "/" && !typing && parts.get(opened)?.grid) {
    parts.get(opened).grid.input.focus();
    event.preventDefault();
  }
  const tab = event.target.closest?.("[role=tab]");
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (tab && step) {
    const names = [...parts.keys()];
    const next = names[(names.indexOf(opened) + step + names.length) % names.length];
    open(next);
    parts.get(next).tab.focus();
  }
}

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
}

function start() {
  const asked = Object.keys(GRIDS).filter((name) => META.collected[name] ?? true);
  const names = ["overview", ...asked, ...META.more.map((more) => more.name)];
  for (const name of names) {
    const title = name === "overview" ? "Overview" : gridOf(name).title;
    const rows = META.rows[name];
    const tab = el("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": `view-${name}`, on: { click: () => open(name) } },
      title, rows === undefined ? null : el("small", {}, NUMBER.format(rows)));
    const view = el("section", { role: "tabpanel", id: `view-${name}`, "aria-labelledby": `tab-${name}`, hidden: true });
    parts.set(name, { tab, view });
    document.getElementById("tabs").append(tab);
    document.getElementById("main").append(view);
  }
  document.getElementById("theme").addEventListener("click", theme);
  document.addEventListener("keydown", keys);
  addEventListener("beforeprint", () => parts.get(opened)?.grid?.spread());
  addEventListener("afterprint", () => parts.get(opened)?.grid?.paint(true));
  addEventListener("hashchange", follow);
  follow();
}

function follow() {
  const [name, typed] = location.hash.slice(1).split("?");
  let text;
  try { text = typed && decodeURIComponent(typed); } catch { text = undefined; }
  open(name, text).then(() => { document.documentElement.dataset.ready = opened; });
}

start();
