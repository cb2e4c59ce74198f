// Pasted text to items.

/** Lines that are not blank, without the spaces around them. */
export function parseLines(text) {
  return text.split(/\r\n|\r|\n/).map((line) => line.trim()).filter((line) => line !== "");
}

/**
 * Rows of fields, as RFC 4180 has them: a field in quotes may hold separators, line ends, and
 * quotes written twice. Rows that are blank are left out.
 */
export function parseCsv(text, separator = separatorOf(text)) {
  const rows = [];
  let row = [];
  let start = 0;
  // Perhaps a part in quotes, the rest, and what ends the field.
  const field = new RegExp(
    `("(?:[^"]|"")*(?:"|$))?([^${separator}\\r\\n]*)(${separator}|\\r\\n|\\r|\\n|$)`, "y");
  while (start <= text.length) {
    field.lastIndex = start;
    const [whole, quoted, rest, end] = field.exec(text);
    row.push(unquoted(quoted ?? "") + rest);
    start += whole.length;
    if (end === separator) continue;
    if (row.length > 1 || row[0].trim() !== "") rows.push(row);
    row = [];
    if (end === "") break;
  }
  return rows;
}

const unquoted = (text) => text.slice(1).replace(/"$/, "").replaceAll('""', '"');

/** The separator of the first row: a tab, a semicolon or a comma. */
export function separatorOf(text) {
  const first = text.replace(/"(?:[^"]|"")*"/g, "").split(/\r\n|\r|\n/, 1)[0];
  return ["\t", ";"].find((each) => first.includes(each)) ?? ",";
}

/** Whether a text looks like a table: several rows with the same number of fields, above one. */
export function looksLikeCsv(text) {
  const rows = parseCsv(text.slice(0, 100_000));
  if (rows.length < 2 || rows[0].length < 2) return false;
  const some = rows.slice(0, Math.max(2, Math.min(50, rows.length - 1)));
  const evenly = some.every((row) => row.length === rows[0].length);
  // A comma in each of some lines of prose is no table; a header, a tab or quotes make it one.
  return evenly && (text.includes('"') || separatorOf(text) !== "," || isHeader(rows[0], rows[1]));
}

/** Whether a first row names columns: short words, unlike the numbers or texts below them. */
export function isHeader(first, second) {
  const word = /^[A-Za-z_][\w .-]{0,30}$/;
  const distinct = new Set(first).size === first.length;
  const named = first.every((name) => word.test(name) && !name.startsWith(" "));
  const unlike = (name, below = "") => below.length > name.length || /^\d/.test(below);
  return distinct && named && first.some((name, i) => unlike(name, second[i]));
}

/** The column with the longest texts, where items most likely are. */
export function likelyColumn(rows) {
  const sizeOf = (column) => rows.slice(0, 200).reduce((sum, row) => sum + (row[column] ?? "").length, 0);
  const sizes = (rows[0] ?? []).map((_, column) => sizeOf(column));
  return Math.max(0, sizes.indexOf(Math.max(...sizes)));
}
