// What is typed above a table: words that must occur, and COLUMN:WORD, COLUMN=TEXT, COLUMN!=TEXT, COLUMN>NUMBER.

const UNITS = { k: 2 ** 10, m: 2 ** 20, g: 2 ** 30, t: 2 ** 40 };

// "a:b" "c>1g" word "two words" -> [{column, sign, text}]
function terms(typed) {
  const found = [];
  for (const match of typed.matchAll(/(?:([a-z_0-9]+)(>=|<=|!=|[:=<>]))?(?:"((?:\\"|[^"])*)"?|(\S+))/gi)) {
    const [, column, sign, quoted, plain] = match;
    found.push({ column, sign: sign || ":", text: (quoted?.replaceAll('\\"', '"') ?? plain).toLowerCase() });
  }
  return found;
}

// A column's value as a term that means just it.
function exactly(column, text) {
  return `${column}="${text.replaceAll('"', '\\"')}"`;
}

function amount(text) {
  const match = /^(-?[0-9.]+)([kmgt]?)/i.exec(text);
  return match ? Number(match[1]) * (UNITS[match[2].toLowerCase()] ?? 1) : NaN;
}

function markTexts(column, fits, marks) {
  const fitting = Uint8Array.from(column.texts, (text) => (text && fits(text.toLowerCase()) ? 1 : 0));
  const codes = column.codes;
  for (let row = 0; row < codes.length; row++) marks[row] |= fitting[codes[row]];
}

function markNumbers(column, fits, marks) {
  const numbers = column.numbers;
  for (let row = 0; row < numbers.length; row++) if (fits(numbers[row])) marks[row] = 1;
}

function markTerm(data, term, marks) {
  const named = term.column && data.byName.get(term.column.toLowerCase());
  const columns = named ? [named] : data.columns;
  const text = term.column && !named ? `${term.column}${term.sign}${term.text}` : term.text;
  const sign = named ? term.sign : ":";
  const number = amount(text);
  const compare = {
    "!=": (value) => value !== number, "=": (value) => value === number, ":": (value) => value === number,
    "<": (value) => value < number, ">": (value) => value > number,
    "<=": (value) => value <= number, ">=": (value) => value >= number,
  }[sign];
  for (const column of columns) {
    if (!column.texts) {
      if (named || /^[0-9]+$/.test(text)) markNumbers(column, compare, marks);
    } else if (RANK.has(text) && "<>".includes(sign[0])) {
      const ranks = { "<": (r, n) => r < n, ">": (r, n) => r > n, "<=": (r, n) => r <= n, ">=": (r, n) => r >= n };
      markTexts(column, (value) => ranks[sign](RANK.get(value) ?? NaN, RANK.get(text)), marks);
    } else if (sign === "!=") {
      markTexts(column, (value) => value !== text, marks);
    } else {
      markTexts(column, sign === "=" ? (value) => value === text : (value) => value.includes(text), marks);
    }
  }
}

// The rows that fit, in the table's own order.
function filtered(data, typed, chosen) {
  const wanted = [...terms(typed), ...chosen.map(([column, text]) => ({ column, sign: "=", text: text.toLowerCase() }))];
  let rest = null;
  for (const term of wanted) {
    const marks = new Uint8Array(data.rows);
    markTerm(data, term, marks);
    if (rest) for (let row = 0; row < data.rows; row++) marks[row] &= rest[row];
    rest = marks;
  }
  const rows = new Uint32Array(data.rows);
  let count = 0;
  for (let row = 0; row < data.rows; row++) if (!rest || rest[row]) rows[count++] = row;
  return rows.subarray(0, count);
}

// Rows in the order of a column; those without a value are last either way.
function sorted(rows, column, descending) {
  const keys = column.sortKeys(), sign = descending ? -1 : 1;
  const some = rows.filter((row) => !Number.isNaN(keys[row]));
  const none = rows.filter((row) => Number.isNaN(keys[row]));
  some.sort((a, b) => sign * (keys[a] - keys[b]) || a - b);
  const result = new Uint32Array(rows.length);
  result.set(some);
  result.set(none, some.length);
  return result;
}
