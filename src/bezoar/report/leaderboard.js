"use strict";
// Sorts the tables and chooses what their cells show. All texts are in the page already.
(() => {
  const lens = document.querySelector(".lens");
  const attack = lens.querySelector("[name=attack]");
  const images = lens.querySelector("[name=images]");
  const status = lens.querySelector("[role=status]");
  const boards = [...document.querySelectorAll("table.board")];

  function show(cell) {
    const readings = JSON.parse(cell.dataset.readings);
    const pair = readings.length === 1 ? readings[0] : readings[Number(attack.value)];
    const worst = Number(lens.querySelector("[name=worst]:checked").value);
    const shown = cell.querySelector(".shown");
    const bar = cell.querySelector(".whisk");
    const note = cell.querySelector("small");
    if (!pair) {
      const ofAll = readings.length === 1 || attack.value === "0";
      shown.textContent = "–";
      shown.title = note.textContent = ofAll ? cell.dataset.why : "no run on this attack is done";
      delete cell.dataset.value;
      if (bar) bar.style.display = "none";
      return;
    }
    const [text, told, value, low, at, high] = pair[worst];
    shown.textContent = text;
    shown.title = "";
    note.textContent = told;
    cell.dataset.value = value;
    if (bar) {
      bar.style.display = "";
      bar.querySelector(".whisker").setAttribute("x1", (low ?? at) + "%");
      bar.querySelector(".whisker").setAttribute("x2", (high ?? at) + "%");
      bar.querySelector("circle").setAttribute("cx", at + "%");
    }
  }

  function key(row, column) {
    const cell = row.cells[column];
    if (column === 0) return cell.dataset.name;
    return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
  }

  function compare(one, other) {
    return typeof one === "string" ? one.localeCompare(other) : one - other;
  }

  // What has no number comes last, whichever way it is sorted; equal rows keep their order.
  function sort(board) {
    const heads = [...board.tHead.rows[0].cells];
    const column = heads.findIndex((head) => head.ariaSort);
    const body = board.querySelector("tbody.sorted");
    if (column < 0 || !body) return;
    const sign = heads[column].ariaSort === "ascending" ? 1 : -1;
    const rows = [...body.rows].map((row) => [key(row, column), Number(row.dataset.place), row]);
    rows.sort(([one, first], [other, second]) => {
      if (one === null || other === null) return (one === null) - (other === null) || first - second;
      return sign * compare(one, other) || first - second;
    });
    body.append(...rows.map(([, , row]) => row));
  }

  function turn(head) {
    const opposite = { ascending: "descending", descending: "ascending" };
    const next = opposite[head.ariaSort] ?? head.dataset.best;
    for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", next);
    sort(head.closest("table"));
  }

  function tell() {
    const parts = [];
    const worst = lens.querySelector("[name=worst]:checked").value === "1";
    if (attack.value !== "0") {
      const name = attack.selectedOptions[0].textContent;
      parts.push(`ACC drop, ASR and DER are those of ${name}; the pale columns are over all attacks.`);
    }
    if (worst) parts.push("ACC drop, ASR, RA and DER are those of the worst model, not means.");
    if (images.value) parts.push(`Only rows with ${images.selectedOptions[0].textContent}.`);
    status.textContent = parts.join(" ");
  }

  function apply() {
    for (const board of boards) {
      board.classList.toggle("narrowed", attack.value !== "0");
      board.querySelectorAll("[data-readings]").forEach(show);
      sort(board);
    }
    for (const part of document.querySelectorAll("[data-images]")) {
      part.hidden = images.value !== "" && part.dataset.images !== images.value;
    }
    tell();
  }

  for (const board of boards) {
    for (const cell of board.querySelectorAll("[data-readings]")) {
      cell.dataset.why = cell.querySelector(".shown").title;
    }
    board.querySelectorAll("tbody.sorted > tr").forEach((row, place) => (row.dataset.place = place));
    for (const head of board.tHead.rows[0].cells) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => turn(head));
      head.append(button);
    }
  }
  lens.hidden = false;
  lens.addEventListener("change", apply);
  apply();
})();
