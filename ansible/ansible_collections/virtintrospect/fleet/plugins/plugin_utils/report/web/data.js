// Tables as plugin_utils/report/pack.py packs them.

const SEVERITIES = ["critical", "high", "medium", "low", "info"];
const RANK = new Map([...SEVERITIES].reverse().map((name, index) => [name, index + 1]));

async function unpacked(id) {
  const element = document.getElementById(id);
  const text = element.textContent.trim();
  element.remove(); // it is not needed twice, and is large
  let bytes;
  if (Uint8Array.fromBase64) bytes = Uint8Array.fromBase64(text);
  else bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

class Column {
  constructor(entry, body, rows) {
    this.name = entry.name;
    this.kind = entry.kind;
    const [start, size] = entry.at;
    const part = body.subarray(start, start + size);
    if (entry.kind === "float") {
      this.numbers = new Float64Array(part.slice().buffer);
      return;
    }
    const codes = new Uint32Array(rows);
    for (let plane = 0; plane < entry.width; plane++) {
      const from = plane * rows, shift = 8 * plane;
      for (let row = 0; row < rows; row++) codes[row] |= part[from + row] << shift;
    }
    if (entry.kind === "int") {
      const scale = entry.scale, numbers = new Float64Array(rows);
      for (let row = 0; row < rows; row++) {
        numbers[row] = codes[row] ? (codes[row] - 1) * scale : NaN;
      }
      this.numbers = numbers;
    } else {
      const [first, length] = entry.texts;
      const listed = body.subarray(first, first + length);
      this.texts = ["", ...JSON.parse(new TextDecoder().decode(listed))];
      this.codes = codes;
    }
  }

  // A number, a text, or undefined for nothing.
  value(row) {
    if (this.texts) return this.codes[row] ? this.texts[this.codes[row]] : undefined;
    const number = this.numbers[row];
    return Number.isNaN(number) ? undefined : number;
  }

  // Of each row a number that sorts as its value does; NaN for nothing.
  sortKeys() {
    if (!this.texts) return this.numbers;
    if (!this.keys) {
      const order = this.texts.map((_, index) => index).slice(1);
      const texts = this.texts;
      if (texts.every((text) => !text || RANK.has(text))) {
        order.sort((a, b) => RANK.get(texts[a]) - RANK.get(texts[b]));
      } else if (order.length < 20000) {
        const collator = new Intl.Collator("en", { numeric: true });
        order.sort((a, b) => collator.compare(texts[a], texts[b]));
      } else {
        order.sort((a, b) => (texts[a] < texts[b] ? -1 : 1));
      }
      const ranks = new Float64Array(texts.length);
      ranks[0] = NaN;
      order.forEach((code, rank) => { ranks[code] = rank; });
      this.keys = Float64Array.from(this.codes, (code) => ranks[code]);
    }
    return this.keys;
  }
}

class Table {
  constructor(name, bytes) {
    const length = new DataView(bytes.buffer, bytes.byteOffset).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
    const body = bytes.subarray(4 + length);
    this.name = name;
    this.rows = header.rows;
    this.columns = header.columns.map((entry) => new Column(entry, body, header.rows));
    this.byName = new Map(this.columns.map((column) => [column.name, column]));
  }

  value(name, row) {
    return this.byName.get(name)?.value(row);
  }

  // How often each value of a column of texts occurs: [text, count], most frequent first.
  counts(name) {
    const column = this.byName.get(name);
    if (!column?.texts) return [];
    const counts = new Uint32Array(column.texts.length);
    for (const code of column.codes) counts[code]++;
    return column.texts
      .map((text, code) => [text, counts[code]])
      .filter(([text, count]) => text && count)
      .sort((a, b) => b[1] - a[1]);
  }
}

const loading = new Map();
const META = JSON.parse(document.getElementById("meta").textContent);

// A table of the report, unpacked when it is first asked for.
function table(name) {
  if (!loading.has(name)) {
    loading.set(name, unpacked(`data-${name}`).then((bytes) => new Table(name, bytes)));
  }
  return loading.get(name);
}
