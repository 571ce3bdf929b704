/** Which names a manifest may list: stages/release/manifest.py, `check_paths`. */

const RESERVED = /^(CON|PRN|AUX|NUL|CONIN\$|CONOUT\$|(COM|LPT)[0-9\u00b9\u00b2\u00b3]) *(\..*)?$/isu;
const UNPRINTABLE = /[\p{C}\p{Z}]/u; // a space is let through before
const SPECIAL = /[\\:*?"<>|]/;

/** Whether a name is a plain path down from the folder: no root, no drive, no "..", no ".", no empty part, no device of
 * Windows', no character that a terminal or a file system would take for something else. */
export function liesInside(name: string): boolean {
  if (SPECIAL.test(name) || UNPRINTABLE.test(name.replaceAll(" ", ""))) return false;
  return name.split("/").every(isPlain);
}

/** What is wrong with a list of paths, beside manifest.json; null: nothing. Each must be plain, name one file on any file
 * system, and be no folder of another's. */
export function wrongPath(paths: readonly string[]): string | null {
  const found = new Map([[folded("manifest.json"), "manifest.json"]]);
  for (const path of paths) {
    if (!liesInside(path)) return `lists ${JSON.stringify(path)}, which is no path inside the bundle`;
    const name = folded(path);
    const other = found.get(name);
    if (other !== undefined) return `lists ${JSON.stringify(path)} beside ${JSON.stringify(other)}, which may be the same file`;
    found.set(name, path);
  }
  for (const [name, path] of found)
    for (let place = name.indexOf("/"); place >= 0; place = name.indexOf("/", place + 1)) {
      const file = found.get(name.slice(0, place));
      if (file !== undefined) return `lists ${JSON.stringify(file)} as a file and as a folder of ${JSON.stringify(path)}`;
    }
  return null;
}

/** What is equal for the names that some file system takes for one: neither case nor the way in which an accent is spelled
 * counts. Character by character: the lower case of a word's last sigma is another. */
function folded(path: string): string {
  return [...path.normalize("NFD")].map((each) => each.toUpperCase().toLowerCase()).join("").normalize("NFC");
}

function isPlain(part: string): boolean {
  return part !== "" && part !== "." && part !== ".." && !/[ .]$/.test(part) && !RESERVED.test(part);
}
