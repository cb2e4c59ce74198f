// Whether two answers have the same bits.

const word = new DataView(new ArrayBuffer(8));

/** The 64 bits of a number, in hexadecimal. A JSON number is the shortest text of its double. */
export function bitsOf(number) {
  word.setFloat64(0, number);
  return word.getBigUint64(0).toString(16).padStart(16, "0");
}

/** The numbers 0 to `count` - 1 in a random order. */
export function shuffled(count) {
  const order = Array.from({ length: count }, (_, i) => i);
  for (let i = count - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [order[i], order[j]] = [order[j], order[i]];
  }
  return order;
}
