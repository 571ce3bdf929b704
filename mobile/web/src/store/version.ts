/** Whether version `one` is older than `other`: numbers separated by dots first, 0.10.0 above 0.9.0 and 1.2 equal to 1.2.0;
 * then the pre-release after "-", as https://semver.org/#spec-item-11 orders it, below the release itself. What follows "+"
 * does not count. */
export function isOlder(one: string, other: string): boolean {
  return compared(one, other) < 0;
}

/** -1, 0 or 1, as `one` is below, level with or above `other`. */
export function compared(one: string, other: string): number {
  const [core, early] = parsed(one);
  const [otherCore, otherEarly] = parsed(other);
  return rows(core, otherCore, "0") || Number(!early.length) - Number(!otherEarly.length) || rows(early, otherEarly, null);
}

function parsed(version: string): [string[], string[]] {
  const [plain = ""] = version.split("+");
  const dash = plain.indexOf("-");
  const core = dash < 0 ? plain : plain.slice(0, dash);
  return [core.replace(/^v(?=\d)/, "").split("."), dash < 0 ? [] : plain.slice(dash + 1).split(".")];
}

/** missing: what stands for a part that is not there; null: less than any. */
function rows(one: string[], other: string[], missing: string | null): number {
  for (let place = 0; place < Math.max(one.length, other.length); place++) {
    const [left, right] = [one[place] ?? missing, other[place] ?? missing];
    const order = left === null ? -1 : right === null ? 1 : parts(left, right);
    if (order) return order;
  }
  return 0;
}

function parts(one: string, other: string): number {
  const [left, right] = [/^\d+$/.test(one), /^\d+$/.test(other)];
  if (left && right) return Math.sign(Number(BigInt(one) > BigInt(other)) - Number(BigInt(one) < BigInt(other)));
  if (left !== right) return left ? -1 : 1; // numbers are below words
  return Number(one > other) - Number(one < other);
}
