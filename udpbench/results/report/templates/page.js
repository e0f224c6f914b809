
"use strict";
const make = (name, set) => Object.assign(document.createElement(name), set);
const number = (row, i) => row.cells[i].dataset.v === undefined ? NaN : Number(row.cells[i].dataset.v);

function sortable(table) {
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, i) => {
    const button = make("button", {type: "button"});
    button.append(...head.childNodes);
    head.append(button);
    button.onclick = () => {
      const down = head.getAttribute("aria-sort") ? head.getAttribute("aria-sort") === "ascending" : i > 0;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const order = (a, b) => {
        if (!i) return a.cells[0].textContent.localeCompare(b.cells[0].textContent) * (down ? -1 : 1);
        const [x, y] = [number(a, i), number(b, i)];
        return isNaN(x) || isNaN(y) ? isNaN(x) - isNaN(y) : (down ? y - x : x - y);  // without a number last
      };
      table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
    };
  });
}

function filterable(table) {
  const rows = [...table.tBodies[0].rows], tools = make("div", {className: "tools"});
  const words = make("input", {type: "search", placeholder: "filter protections"});
  words.setAttribute("aria-label", "filter protections");
  const only = make("input", {type: "checkbox"}), label = make("label");
  label.append(only, " effects claimed under no attack");
  words.oninput = only.onchange = () => {
    const wanted = words.value.toLowerCase().split(/\s+/);
    rows.forEach(row => {
      const name = row.cells[0].textContent.toLowerCase();
      const shown = wanted.some(word => name.includes(word) && (word || wanted.length === 1));
      row.classList.toggle("off", !shown || only.checked && row.dataset.claimed === undefined);
    });
  };
  tools.append(words, label);
  const attacks = [...table.tHead.rows[0].cells].map((cell, i) => [cell.dataset.of, i]).filter(([name]) => name);
  if (attacks.length > 1) {
    const choice = make("select");
    choice.setAttribute("aria-label", "attacks shown");
    const names = attacks.map(([name]) => name);
    [["", "all attacks"], ["-", "worst case only"], ...names.map(name => [name, "after " + name])].forEach(([value, text]) => choice.append(new Option(text, value)));
    choice.onchange = () => attacks.forEach(([name, i]) => [table.tHead.rows[0], ...rows].forEach(
      row => row.cells[i].classList.toggle("off", choice.value !== "" && choice.value !== name)));
    choice.value = table.dataset.many === undefined ? "" : "-";
    choice.onchange();
    tools.append(choice);
  }
  table.parentElement.before(tools);
}

document.querySelectorAll(".leaderboard").forEach(table => { sortable(table); if (table.tBodies[0].rows.length > 4) filterable(table); });
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
