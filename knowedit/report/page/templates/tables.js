"use strict";
// tables that can be sorted, whenever they came to the page
document.addEventListener("click", (event) => {
  const head = event.target.closest("table.sortable thead th button")?.closest("th");
  if (!head) return;
  const heads = [...head.parentElement.cells];
  const column = heads.indexOf(head);
  const down = head.getAttribute("aria-sort") !== "descending";
  heads.forEach((other) => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const value = (row) => {
    const cell = row.cells[column];
    return cell.dataset.sort ?? cell.querySelector("data")?.value ?? cell.textContent.trim();
  };
  const compare = (a, b) => {
    const [x, y] = [value(a), value(b)];
    const order = Number.isNaN(Number(x)) || Number.isNaN(Number(y)) ? x.localeCompare(y) : Number(x) - Number(y);
    return down ? -order : order;
  };
  const body = head.closest("table").tBodies[0];
  body.append(...[...body.rows].sort(compare));
});
