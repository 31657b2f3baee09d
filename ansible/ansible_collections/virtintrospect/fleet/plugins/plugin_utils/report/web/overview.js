// The first part: the fleet in numbers and charts.

function tile(number, text, kind, act) {
  const inside = [el("strong", {}, typeof number === "number" ? NUMBER.format(number) : number), el("span", {}, text)];
  return act ? el("button", { type: "button", class: `tile ${kind}`, on: { click: act } }, ...inside)
    : el("div", { class: `tile ${kind}` }, ...inside);
}

function panel(title, note, ...content) {
  return el("section", { class: "panel" }, el("h2", {}, title), note ? el("p", {}, note) : null, ...content);
}

// Bars of parts: rows of [text, [[class, number], …], said, act].
function bars(rows, empty) {
  if (!rows.length) return el("p", { class: "empty" }, empty);
  const most = Math.max(...rows.map((row) => row[1].reduce((sum, part) => sum + part[1], 0))) || 1;
  return el("div", { class: "bars" }, ...rows.map(([text, parts, said, act]) => {
    const pieces = parts.filter((part) => part[1] > 0).map(([kind, number, tip]) => {
      const piece = el("i", { class: kind, title: tip });
      piece.style.width = `${(100 * number) / most}%`;
      return piece;
    });
    const name = act ? el("button", { type: "button", class: "link", title: text, on: { click: act } }, text) : el("span", { title: text }, text);
    return el("div", { class: "barline" }, name, el("div", { class: "track", "aria-hidden": "true" }, ...pieces), el("b", {}, said));
  }));
}

// How many values fall into each tenth of 0 to 100.
function tenths(values, unit) {
  const counts = new Array(10).fill(0);
  for (const value of values) counts[Math.min(9, Math.max(0, Math.floor(value / 10)))]++;
  const most = Math.max(...counts, 1);
  return el("div", { class: "tenths" }, ...counts.map((number, index) => {
    const bar = el("i");
    bar.style.height = `${number ? Math.max(2, (100 * number) / most) : 0}px`;
    return el("div", { title: `${index * 10} to ${index * 10 + 10} ${unit}: ${count(number, "guest")}` },
      el("b", {}, number ? NUMBER.format(number) : ""), bar, el("span", {}, String(index * 10)));
  }));
}

function grouped(data, by, weigh) {
  const groups = new Map();
  const column = data.byName.get(by);
  if (!column) return groups;
  for (let row = 0; row < data.rows; row++) {
    const name = column.value(row) ?? "";
    if (!groups.has(name)) groups.set(name, {});
    weigh(groups.get(name), row);
  }
  return groups;
}

function bySeverity(findings, by, open) {
  const groups = grouped(findings, by, (group, row) => {
    const severity = findings.value("severity", row);
    group[severity] = (group[severity] ?? 0) + 1;
  });
  const weight = (group) => SEVERITIES.reduce((sum, name) => sum * 1000 + Math.min(999, group[name] ?? 0), 0);
  return [...groups].sort((a, b) => weight(b[1]) - weight(a[1])).slice(0, 12).map(([name, group]) => {
    const parts = SEVERITIES.map((severity) => [severity, group[severity] ?? 0, `${group[severity] ?? 0} ${severity}`]);
    return [name || "(none)", parts, NUMBER.format(parts.reduce((sum, part) => sum + part[1], 0)), () => open("findings", exactly(by, name))];
  });
}

function memoryByHost(guests, open) {
  const groups = grouped(guests, "host", (group, row) => {
    group.total = (group.total ?? 0) + (guests.value("memory_total", row) ?? 0);
    group.back = (group.back ?? 0) + (guests.value("gives_back", row) ?? 0);
  });
  return [...groups].filter(([, group]) => group.total).sort((a, b) => b[1].back - a[1].back || b[1].total - a[1].total).slice(0, 12)
    .map(([name, group]) => {
      const kept = Math.max(0, group.total - group.back);
      return [name, [["kept", kept, `needed: ${bytes(kept)}`], ["back", group.back, `could be given back: ${bytes(group.back)}`]],
        `${bytes(group.back)} of ${bytes(group.total)}`, () => open("guests", exactly("host", name))];
    });
}

function waiting(guests, open) {
  const worst = [];
  for (let row = 0; row < guests.rows; row++) {
    const [number, what] = ["cpu", "memory", "io"].map((name) => [guests.value(`psi_${name}`, row) ?? 0, name])
      .reduce((most, next) => (next[0] > most[0] ? next : most));
    if (number >= 0.5) worst.push([number, what, guests.value("guest", row), guests.value("host", row)]);
  }
  return worst.sort((a, b) => b[0] - a[0]).slice(0, 8).map(([number, what, guest, host]) =>
    [guest, [["warnbar", number]], `${number.toFixed(1)} % ${what}`, () => open("guests", `${exactly("host", host)} ${exactly("guest", guest)}`)]);
}

async function overview(open) {
  const counts = META.counts;
  const [findings, guests, hints, hosts] = await Promise.all(["findings", "guests", "hints", "hosts"].map(table));
  const severities = SEVERITIES.map((name) => tile(counts.findings[name], name, counts.findings[name] ? name : "calm", () => open("findings", `severity=${name}`)));
  const whole = [
    tile(counts.hosts, counts.hosts === 1 ? "host" : "hosts", "", () => open("hosts", "")),
    tile(counts.hosts_failed + counts.hosts_partly, "hosts without a result, or a whole one", counts.hosts_failed + counts.hosts_partly ? "warn" : "calm", () => open("hosts", "status!=ok status!=unasked")),
    tile(counts.guests, counts.guests === 1 ? "guest" : "guests", "", () => open("guests", "")),
    tile(counts.guests_not_looked_into + counts.guests_partly_looked_into, "guests not looked into, or not wholly", counts.guests_not_looked_into + counts.guests_partly_looked_into ? "warn" : "calm", () => open("guests", "looked_into!=yes")),
  ];
  const planned = [
    tile(bytes(counts.memory_to_give_back), "could be given back", "good", () => open("hints", "resource=memory gives_back>0")),
    tile(counts.guests_in_trouble, "guests in trouble", counts.guests_in_trouble ? "warn" : "calm", () => open("guests", "trouble:\":\"")),
    tile(counts.guests_oversized, "guests with more memory or vCPUs than they use", "", () => open("hints", "gives_back>0")),
    tile(counts.vcpus_to_give_back, "vCPUs could be given back", "", () => open("hints", "resource=cpu gives_back>0")),
  ];
  const available = [];
  for (let row = 0; row < guests.rows; row++) {
    const total = guests.value("memory_total", row), left = guests.value("memory_available", row);
    if (total > 0 && left !== undefined) available.push((100 * left) / total);
  }
  const drift = findings.rows ? filtered(findings, "rule:drift", []).length : 0;
  const away = [];
  for (let row = 0; row < hosts.rows && away.length < 8; row++) {
    const status = hosts.value("status", row), name = hosts.value("host", row);
    if (status !== "ok" && status !== "unasked") away.push([`${name}: ${hosts.value("message", row) ?? status}`, [["warnbar", 1]], status, () => open("hosts", exactly("host", name))]);
  }
  const reasons = guests.counts("message").slice(0, 8).map(([text, number]) => [text, [["warnbar", number]], NUMBER.format(number), () => open("guests", "looked_into!=yes")]);
  const releases = guests.counts("release").slice(0, 12).map(([text, number]) => [text, [["plain", number]], NUMBER.format(number), () => open("guests", exactly("release", text))]);
  const trouble = guests.counts("trouble").slice(0, 8).map(([text, number]) => [text, [["warnbar", number]], NUMBER.format(number), () => open("guests", exactly("trouble", text))]);
  const notes = META.notes.map((note) => el("p", { class: "note" }, note));
  const security = [
    el("h2", { class: "part" }, "Security"),
    el("div", { class: "tiles" }, ...severities, tile(drift, "changes against the baseline", drift ? "warn" : "calm", () => open("findings", "rule:drift"))),
    el("div", { class: "panels" },
      panel("Findings by rule", null, bars(bySeverity(findings, "rule", open), "No findings.")),
      panel("Findings by host", null, bars(bySeverity(findings, "host", open), "No findings."))),
  ];
  const fleet = [
    el("div", { class: "tiles" }, ...whole),
    el("div", { class: "panels" },
      panel("Not looked into", "A guest that was not looked into is not a clean one.",
        away.length || reasons.length ? bars([...away, ...reasons], "") : el("p", { class: "empty" }, "Every host and every guest was looked into.")),
      panel("Kernels", "Guests by the kernel they run", bars(releases, "No kernel is known."))),
  ];
  const capacity = [
    el("h2", { class: "part" }, "Capacity"),
    META.collected.hints ? el("div", { class: "tiles" }, ...planned) : null,
    el("div", { class: "panels" },
      panel("Memory of the guests, by host", "What they need, and what could be given back (hatched)", bars(memoryByHost(guests, open), "No memory figures.")),
      panel("Memory available in the guests", "Guests by MemAvailable, in percent of their memory", available.length ? tenths(available, "% available") : el("p", { class: "empty" }, "No memory figures.")),
      panel("Guests in trouble", "What their hints say", bars(trouble, hints.rows ? "No guest is in trouble." : "No hints were collected.")),
      panel("Guests that wait most", "Percent of the last minute in which some task waited for CPU, memory or I/O (PSI)", bars(waiting(guests, open), "No guest waits, or none says so."))),
  ];
  return el("div", { class: "overview" }, ...notes, ...fleet, ...(META.collected.findings ? security : []), ...capacity.filter(Boolean));
}
