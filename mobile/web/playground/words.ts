/** Figures in words, three digits of each. */

const GROUP = "\u202f"; // narrow no-break space

/** 0.42, 7.3, 128, 12 400 */
export function figure(value: number): string {
  if (!Number.isFinite(value)) return "–";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 10 ? 1 : 2;
  const text = value.toFixed(digits);
  return digits ? text.replace(/\.?0+$/, "") : text.replace(/\B(?=(\d{3})+$)/g, GROUP);
}

/** Milliseconds as [number, unit]: 12.5 ms, 3.2 s. */
export function duration(ms: number): [string, string] {
  return ms >= 10_000 ? [figure(ms / 1000), "s"] : [figure(ms), "ms"];
}

/** Bytes as [number, unit]: 512 KiB, 3.2 MiB. */
export function bytes(count: number): [string, string] {
  return count >= 1 << 20 ? [figure(count / 2 ** 20), "MiB"] : [figure(count / 1024), "KiB"];
}

export function joined([value, unit]: [string, string]): string {
  return `${value} ${unit}`;
}

export function counted(count: number, word: string): string {
  return `${count} ${word}${count === 1 ? "" : "s"}`;
}
