// A table of any length: only the rows in view are in the page.

const ROW = 28; // pixels; style.css has the same
const SLICE = 250000; // rows that can be scrolled through at once: browsers limit heights
const PRINTED = 1000;

// Pixels of a digit.
function measure(within) {
  const probe = el("span", { class: "probe" }, "0".repeat(50));
  within.append(probe);
  const width = probe.getBoundingClientRect().width / 50;
  probe.remove();
  return width || 9;
}

class Grid {
  // columns: names of those shown; choices: those to choose a value from; look: opens a row.
  constructor(data, { columns, choices = [], sort, look, title }) {
    this.data = data;
    this.possible = columns.filter((name) => data.byName.has(name));
    this.widths = new Map(this.possible.map((name) => [name, this.width(name)]));
    this.look = look;
    this.title = title;
    this.sort = sort && data.byName.has(sort[0]) ? sort : [null, false];
    this.slice = 0;
    this.current = 0;
    this.build(choices.filter((name) => data.byName.get(name)?.texts));
    this.apply();
  }

  build(choices) {
    this.input = el("input", {
      type: "search", placeholder: "Filter: words, column:word, column>number", "aria-label": `Filter ${this.title}`,
      autocomplete: "off", spellcheck: "false", on: { input: () => this.later() },
    });
    this.selects = choices.map((name) => this.choice(name)).filter(Boolean);
    this.said = el("span", { class: "said" });
    this.pages = el("span", { class: "pages" });
    const save = el("button", { type: "button", on: { click: () => this.save() } }, "Save as CSV");
    const bar = el("div", { class: "bar" }, this.input, ...this.selects, this.said, this.pages, save);
    this.body = el("tbody");
    this.table = el("table", { "aria-label": this.title });
    this.layOut(Infinity);
    this.scroller = el("div", { class: "scroller", tabindex: "0", on: {
      scroll: () => this.paint(), keydown: (event) => this.key(event),
    } }, this.table);
    this.element = el("div", { class: "grid" }, bar, this.scroller);
    this.body.addEventListener("click", (event) => this.click(event));
    new ResizeObserver(() => this.resized()).observe(this.scroller);
  }

  // The columns for which there is room, in letters; a row in full has the others.
  layOut(room) {
    const chosen = [...this.possible];
    const needed = () => chosen.reduce((sum, name) => sum + (META.wide.includes(name) ? 20 : this.widths.get(name)), 0);
    while (needed() > room && chosen.length > 3) {
      const plain = chosen.findLastIndex((name, index) => index > 1 && !META.wide.includes(name) && name !== this.sort[0]);
      chosen.splice(plain < 0 ? chosen.length - 1 : plain, 1);
    }
    if (this.columns?.join() === chosen.join()) return false;
    this.columns = chosen;
    this.heads = chosen.map((name) => this.head(name));
    const columns = chosen.map((name) => {
      const column = el("col");
      if (!META.wide.includes(name)) column.style.width = `${this.widths.get(name)}ch`; // those share the rest
      return column;
    });
    this.table.replaceChildren(el("colgroup", {}, ...columns), el("thead", {}, el("tr", {}, ...this.heads)), this.body);
    return true;
  }

  resized() {
    const letter = this.letter ??= measure(this.scroller);
    const changed = this.scroller.clientWidth && this.layOut(this.scroller.clientWidth / letter);
    if (changed) this.mark();
    this.paint(changed);
  }

  // Say by which column the rows are sorted.
  mark() {
    const [by, descending] = this.sort;
    this.heads.forEach((head) => {
      if (head.dataset.column === by) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  }

  choice(name) {
    const values = this.data.counts(name).slice(0, 500);
    if (values.length < 2) return null;
    if (values.every(([text]) => RANK.has(text))) values.sort((a, b) => RANK.get(b[0]) - RANK.get(a[0]));
    else values.sort((a, b) => (a[0] < b[0] ? -1 : 1));
    const options = values.map(([text, number]) => el("option", { value: text }, `${text} (${number})`));
    return el("select", { "aria-label": label(name), "data-column": name, on: { change: () => this.apply() } },
      el("option", { value: "" }, `${label(name)}: all`), ...options);
  }

  head(name) {
    const button = el("button", { type: "button", title: `Sort by ${label(name)}`, on: { click: () => this.order(name) } }, label(name));
    return el("th", { scope: "col", "data-column": name, class: this.data.byName.get(name).texts ? "" : "number" }, button);
  }

  width(name) {
    let most = Math.ceil(label(name).length * 1.1) + 1; // heads are bold
    const step = Math.max(1, Math.floor(this.data.rows / 300));
    for (let row = 0; row < this.data.rows; row += step) most = Math.max(most, shown(this.data, name, row).length);
    if (["severity", "worst"].includes(name)) most += 3;
    return Math.min(26, Math.ceil(most * 0.9) + 3); // few letters are as wide as a digit
  }

  later() {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.apply(), this.data.rows > 20000 ? 250 : 60);
  }

  // Show only what fits a filter, as if it had been typed.
  ask(typed) {
    this.input.value = typed;
    for (const select of this.selects) select.value = "";
    this.apply();
  }

  order(name) {
    const numbers = !this.data.byName.get(name).texts || name === "severity" || name === "worst";
    const descending = this.sort[0] === name ? !this.sort[1] : numbers;
    this.sort = [name, descending];
    this.apply();
    say(`sorted by ${label(name)}, ${descending ? "descending" : "ascending"}`);
  }

  apply() {
    clearTimeout(this.timer);
    const chosen = this.selects.filter((select) => select.value).map((select) => [select.dataset.column, select.value]);
    let rows = filtered(this.data, this.input.value, chosen);
    const [by, descending] = this.sort;
    if (by) rows = sorted(rows, this.data.byName.get(by), descending);
    this.rows = rows;
    this.slice = this.current = 0;
    this.mark();
    const all = this.data.rows;
    this.said.textContent = rows.length === all ? count(all, "row") : `${NUMBER.format(rows.length)} of ${count(all, "row")}`;
    this.scroller.scrollTop = 0;
    this.turn(0);
  }

  // Another part of a table that is longer than a browser can scroll.
  turn(by) {
    const slices = Math.ceil(this.rows.length / SLICE);
    this.slice = Math.min(Math.max(0, this.slice + by), Math.max(0, slices - 1));
    this.view = this.rows.subarray(this.slice * SLICE, (this.slice + 1) * SLICE);
    this.pages.replaceChildren();
    if (slices > 1) {
      const go = (text, step, off) => el("button", { type: "button", disabled: off, on: { click: () => { this.turn(step); this.scroller.scrollTop = 0; this.paint(true); } } }, text);
      this.pages.append(go("‹ Before", -1, this.slice === 0), ` part ${this.slice + 1} of ${slices} `, go("Next ›", 1, this.slice === slices - 1));
    }
    this.table.setAttribute("aria-rowcount", this.rows.length + 1);
    this.paint(true);
  }

  paint(anew = false) {
    const height = this.scroller.clientHeight || 600;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / ROW) - 10);
    const last = Math.min(this.view.length, first + Math.ceil(height / ROW) + 20);
    if (!anew && this.painted?.[0] === first && this.painted[1] === last) return;
    this.painted = [first, last];
    const rows = [this.space(first)];
    for (let index = first; index < last; index++) rows.push(this.row(index));
    rows.push(this.space(this.view.length - last));
    if (!this.view.length) rows.push(el("tr", { class: "none" }, el("td", { colspan: this.columns.length }, "Nothing fits.")));
    this.body.replaceChildren(...rows);
  }

  space(rows) {
    const cell = el("td", { colspan: this.columns.length });
    cell.style.height = `${rows * ROW}px`;
    return el("tr", { class: "space", "aria-hidden": "true" }, cell);
  }

  row(index) {
    const row = this.view[index];
    const cells = this.columns.map((name) => {
      const text = shown(this.data, name, row);
      const number = !this.data.byName.get(name).texts;
      return el("td", { class: number ? "number" : undefined, title: text.length > 12 ? text : undefined }, badge(text));
    });
    const current = index === this.current ? "current" : undefined;
    return el("tr", { "data-index": index, "aria-rowindex": this.slice * SLICE + index + 2, class: current }, ...cells);
  }

  click(event) {
    const row = event.target.closest("tr[data-index]");
    if (!row || String(getSelection())) return;
    this.move(Number(row.dataset.index));
    this.look(this.data, this.view[this.current]);
  }

  key(event) {
    const page = Math.floor(this.scroller.clientHeight / ROW) - 2;
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -Infinity, End: Infinity };
    if (event.target !== this.scroller || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" && this.view.length) this.look(this.data, this.view[this.current]);
    else if (event.key in steps) this.move(this.current + steps[event.key]);
    else return;
    event.preventDefault();
  }

  move(to) {
    this.current = Math.max(0, Math.min(this.view.length - 1, to));
    const top = this.current * ROW, height = this.scroller.clientHeight - ROW * 2;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    else if (top > this.scroller.scrollTop + height) this.scroller.scrollTop = top - height;
    this.paint(true);
  }

  // For paper: as many rows as one would print.
  spread() {
    const rows = [];
    for (let index = 0; index < Math.min(this.view.length, PRINTED); index++) rows.push(this.row(index));
    this.body.replaceChildren(...rows);
    this.painted = undefined;
  }

  save() {
    const quoted = (value) => {
      let text = value === undefined ? "" : String(value);
      if (typeof value === "string" && /^[=+\-@\t\r]/.test(text)) text = `'${text}`; // no formula in a spreadsheet
      return /[",\n\r]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const columns = this.data.columns;
    const lines = [columns.map((column) => column.name).join(",")];
    for (const row of this.rows) lines.push(columns.map((column) => quoted(column.value(row))).join(","));
    const url = URL.createObjectURL(new Blob([lines.join("\r\n") + "\r\n"], { type: "text/csv" }));
    el("a", { href: url, download: `${this.data.name}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }
}
