/** Elements, made and found. */

type Properties = Record<string, string | number | boolean>;

/** A new element. Properties are set as such; those with a dash ("aria-label") as attributes. */
export function element<Tag extends keyof HTMLElementTagNameMap>(
  tag: Tag,
  properties: Properties = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[Tag] {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties))
    if (name.includes("-") || name === "role") made.setAttribute(name, String(value));
    else Object.assign(made, { [name]: value });
  made.append(...children);
  return made;
}

/** The element of the page with this id. */
export function find<Kind extends HTMLElement = HTMLElement>(id: string): Kind {
  const found = document.getElementById(id);
  if (!found) throw new Error(`the page has no #${id}`);
  return found as Kind;
}

/** Sets an element's text where it differs, so that nothing is announced or drawn twice. */
export function say(where: Node, text: string): void {
  if (where.textContent !== text) where.textContent = text;
}
