"use strict";
// Sorts, filters and folds. All that it needs is in the page; without it everything is shown.
(() => {
  const rows = [...document.querySelectorAll("[data-device]")];
  const form = document.querySelector(".controls");
  const words = document.getElementById("filter");
  const show = document.getElementById("show");
  const shown = document.getElementById("shown");
  const unfold = document.getElementById("unfold");
  const folds = [...document.querySelectorAll("details")];

  form.hidden = false;
  form.addEventListener("submit", (event) => event.preventDefault());

  const names = new Map();
  for (const row of document.querySelectorAll("#matrix tbody tr")) {
    names.set(row.dataset.device, row.cells[0].textContent.toLowerCase());
  }

  function filter() {
    const text = words.value.trim().toLowerCase();
    const kind = show.value;
    const fits = (row) => {
      const name = names.get(row.dataset.device) || row.dataset.device;
      if (text && !name.includes(text) && !row.dataset.device.includes(text)) return false;
      if (kind === "blocked") return row.dataset.verdict !== "passed";
      return !kind || kind === "runtime:" + row.dataset.runtime;
    };
    let count = 0;
    for (const row of rows) {
      row.hidden = !fits(row);
      if (!row.hidden && row.closest("#matrix")) count += 1;
    }
    shown.textContent = text || kind ? count + " of " + names.size + " devices" : "";
  }
  words.addEventListener("input", filter);
  show.addEventListener("change", filter);

  for (const label of document.querySelectorAll("#matrix .sorter")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label.textContent;
    button.addEventListener("click", () => sort(button.closest("th")));
    label.replaceChildren(button);
  }

  function sort(head) {
    const body = head.closest("table").tBodies[0];
    const place = head.cellIndex;
    const down = head.getAttribute("aria-sort") === "ascending";
    const numeric = head.classList.contains("number");
    for (const other of head.parentNode.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const key = (row) => row.cells[place].dataset.sort;
    const sorted = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = numeric ? Number(x) - Number(y) : x.localeCompare(y);
      return down ? -order : order;
    });
    body.append(...sorted);
  }

  unfold.addEventListener("click", () => {
    const open = unfold.getAttribute("aria-pressed") !== "true";
    for (const each of folds) each.open = open;
    unfold.setAttribute("aria-pressed", String(open));
    unfold.textContent = open ? "Fold all" : "Unfold all";
  });

  // A link to what is folded unfolds it.
  function reveal() {
    let name = location.hash.slice(1);
    try { name = decodeURIComponent(name); } catch { return; }
    const target = document.getElementById(name);
    for (let each = target; each; each = each.parentElement) if (each.tagName === "DETAILS") each.open = true;
    if (target) target.scrollIntoView();
  }
  window.addEventListener("hashchange", reveal);
  if (location.hash) reveal();

  let before = [];
  window.addEventListener("beforeprint", () => {
    before = folds.filter((each) => !each.open);
    for (const each of before) each.open = true;
  });
  window.addEventListener("afterprint", () => {
    for (const each of before) each.open = false;
  });
})();
