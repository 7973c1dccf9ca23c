"use strict";
// Sorts a table by the column whose head is clicked: up, down, as it was. Lines of one method in a sheet (published, ours, difference)
// stay together and go by ours; block titles and the line of real images stay where they are.
(() => {
  const NUMBER = /[-+]?\d+(\.\d+)?(e[-+]?\d+)?/i;
  const cellOf = (row, column) => row.cells[column];
  const keyOf = (rows, column) => {
    const own = rows.find((row) => row.classList.contains("ours")) || rows[0];
    for (const row of [own, ...rows]) {
      const cell = cellOf(row, column);
      if (!cell || cell.classList.contains("gap")) continue;
      const text = cell.textContent.replace("\u2248", "").trim();
      const found = column > 0 ? NUMBER.exec(text) : null;
      if (text) return found && text.startsWith(found[0]) ? Number(found[0]) : text;
    }
    return null;
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null) || 0;
    if (typeof a === typeof b && typeof a === "number") return a - b;
    return String(a) < String(b) ? -1 : String(a) > String(b) ? 1 : 0;
  };
  const groupsOf = (body) => {
    const groups = [];
    for (const row of body.rows) {
      const fixed = row.classList.contains("block") || row.classList.contains("floor");
      const follows = !fixed && groups.length && !groups.at(-1).fixed && row.cells[0].textContent.trim() === "";
      if (follows) groups.at(-1).rows.push(row);
      else groups.push({ rows: [row], fixed, place: groups.length });
    }
    return groups;
  };
  const sort = (table, column, direction) => {
    for (const body of table.tBodies) {
      if (!body.original) body.original = groupsOf(body);
      const free = body.original.filter((group) => !group.fixed);
      const keys = new Map(free.map((group) => [group, keyOf(group.rows, column)]));
      if (direction) {
        free.sort((a, b) => {
          const empty = (keys.get(a) === null) - (keys.get(b) === null);
          return empty || direction * compare(keys.get(a), keys.get(b)) || a.place - b.place;
        });
      }
      let next = 0;
      for (const group of body.original) body.append(...(group.fixed ? group : free[next++]).rows);
    }
  };
  for (const table of document.querySelectorAll("table")) {
    const head = table.tHead && table.tHead.rows.length === 1 ? [...table.tHead.rows[0].cells] : [];
    head.forEach((cell, column) => {
      cell.setAttribute("aria-sort", "none");
      cell.tabIndex = 0;
      const turn = () => {
        const next = { none: "ascending", ascending: "descending", descending: "none" }[cell.getAttribute("aria-sort")];
        for (const other of head) other.setAttribute("aria-sort", "none");
        cell.setAttribute("aria-sort", next);
        sort(table, column, { none: 0, ascending: 1, descending: -1 }[next]);
      };
      cell.addEventListener("click", turn);
      cell.addEventListener("keydown", (event) => event.key === "Enter" && turn());
    });
  }
  const open = () => {
    const target = location.hash ? document.getElementById(location.hash.slice(1)) : null;
    const details = target && target.closest("details");
    if (details && !details.open) {
      details.open = true;
      target.scrollIntoView({ block: "center" });
    }
  };
  addEventListener("hashchange", open);
  open();
})();
