"use strict";
// The numbers under the pointer, or under the cursor that the arrow keys move, are read from the figure's own table.

for (const frame of document.querySelectorAll(".plot .frame")) {
  const table = frame.closest(".plot").querySelector("table.numbers");
  const rows = [...table.querySelectorAll("tbody tr")];
  if (!rows.length) continue;
  const heads = [...table.querySelectorAll("thead th")];
  const places = rows.map((row) => Number(row.dataset.x));
  let cursor, tip, shown = -1;

  const show = (index) => {
    if (!tip) {
      cursor = Object.assign(document.createElement("div"), { className: "cursor" });
      tip = Object.assign(document.createElement("div"), { className: "tip" });
      tip.setAttribute("role", "status");
      frame.append(cursor, tip);
    }
    shown = index;
    cursor.hidden = tip.hidden = false;
    cursor.style.left = `${100 * places[index]}%`;
    const cells = [...rows[index].children];
    tip.replaceChildren(line("b", `${heads[0].textContent} ${cells[0].textContent}`));
    cells.slice(1).forEach((cell, i) => {
      if (cell.textContent === "–" || cell.textContent === "") return;
      const row = document.createElement("div");
      row.append(line("i", "", heads[i + 1].className), line("span", heads[i + 1].textContent), line("em", cell.textContent));
      tip.append(row);
    });
    const room = frame.clientWidth - tip.offsetWidth;
    const at = places[index] * frame.clientWidth;
    tip.style.left = `${Math.max(0, Math.min(at + 12 + tip.offsetWidth > frame.clientWidth ? at - tip.offsetWidth - 12 : at + 12, room))}px`;
  };
  const line = (tag, text, name = "") => Object.assign(document.createElement(tag), { textContent: text, className: name });
  const hide = () => {
    if (tip) cursor.hidden = tip.hidden = true;
  };
  const nearest = (x) => places.reduce((best, place, i) => (Math.abs(place - x) < Math.abs(places[best] - x) ? i : best), 0);

  frame.addEventListener("pointermove", (event) => {
    const box = frame.getBoundingClientRect();
    show(nearest((event.clientX - box.left) / box.width));
  });
  frame.addEventListener("pointerleave", hide);
  frame.addEventListener("blur", hide);
  frame.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -Infinity, End: Infinity }[event.key];
    if (event.key === "Escape") hide();
    if (step === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(rows.length - 1, shown < 0 && step > 0 ? (step === Infinity ? rows.length - 1 : 0) : shown + step)));
  });
}
