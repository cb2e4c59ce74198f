// Reads /metrics, and makes rates and quantiles of two readings.

/** Samples by name and labels as written, such as `itemwise_pages{state="used"}`. */
export function parseMetrics(text) {
  const found = new Map();
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const cut = line.lastIndexOf(" ");
    found.set(line.slice(0, cut), Number(line.slice(cut + 1)));
  }
  return found;
}

/** What a counter grew by a second between two readings; 0 if the server began anew. */
export function rate(name, before, after) {
  const grown = (after.samples.get(name) ?? 0) - (before.samples.get(name) ?? 0);
  return Math.max(0, grown) / Math.max(1e-3, (after.at - before.at) / 1000);
}

/**
 * The value below which a share of a histogram's new observations lie, between the bounds of its
 * bucket in proportion; null if there are none.
 */
export function quantile(name, share, before, after) {
  const buckets = [];
  for (const [key, value] of after.samples) {
    const found = key.startsWith(`${name}_bucket{`) && /le="([^"]+)"/.exec(key);
    if (!found) continue;
    const bound = found[1] === "+Inf" ? Infinity : Number(found[1]);
    buckets.push([bound, value - (before.samples.get(key) ?? 0)]);
  }
  buckets.sort(([a], [b]) => a - b);
  const total = buckets.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  let [lower, below] = [0, 0];
  for (const [bound, upTo] of buckets) {
    if (upTo >= share * total && upTo > below) {
      if (bound === Infinity) return lower;
      return lower + ((bound - lower) * (share * total - below)) / (upTo - below);
    }
    [lower, below] = [bound, upTo];
  }
  return lower;
}
