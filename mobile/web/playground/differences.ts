/** What sets two answers apart, word by word. */

export interface Piece {
  text: string;
  same: boolean;
}

/** The words of `text`, those in a row that are alike in it as one piece: same where they belong to the longest run of
 * words, in order, that `other` has too. */
export function pieces(text: string, other: string): Piece[] {
  const [words, others] = [split(text), split(other)];
  const lengths = Array.from({ length: words.length + 1 }, () => new Uint16Array(others.length + 1));
  for (let row = words.length - 1; row >= 0; row--)
    for (let column = others.length - 1; column >= 0; column--)
      lengths[row]![column] =
        words[row] === others[column]
          ? lengths[row + 1]![column + 1]! + 1
          : Math.max(lengths[row + 1]![column]!, lengths[row]![column + 1]!);
  const found: Piece[] = [];
  let column = 0;
  for (const [row, word] of words.entries()) {
    while (column < others.length && word !== others[column] && lengths[row]![column + 1]! >= lengths[row + 1]![column]!)
      column++;
    const same = column < others.length && word === others[column];
    if (same) column++;
    const last = found.at(-1);
    if (last?.same === same) last.text += ` ${word}`;
    else found.push({ text: word, same });
  }
  return found;
}

function split(text: string): string[] {
  return text.split(/\s+/u).filter(Boolean).slice(0, 2000);
}
