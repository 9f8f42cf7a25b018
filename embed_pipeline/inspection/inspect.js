"use strict";
// Keys for what links and buttons do as well; a page works without this script.
const typing = element => element && (element.matches("input, textarea, select") || element.isContentEditable);
const rows = [...document.querySelectorAll("[data-row]")];

function step(by) {
  const place = rows.indexOf(document.activeElement);
  const next = rows[place < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, place + by))];
  if (next) next.focus();
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (typing(document.activeElement)) {
    if (event.key === "Escape") document.activeElement.blur();
    return;
  }
  const meant = document.querySelector(`[data-key="${CSS.escape(event.key)}"]`);
  if (rows.length && (event.key === "j" || event.key === "k")) {
    event.preventDefault();
    step(event.key === "j" ? 1 : -1);
  } else if (meant) {
    event.preventDefault();
    if (meant.matches("input, textarea")) {
      const hidden = meant.closest("details");
      if (hidden) hidden.open = true;
      meant.focus();
      if (meant.select) meant.select();
    } else meant.click();
  }
});

if (matchMedia("(max-width: 60rem)").matches)
  for (const panel of document.querySelectorAll("details.facets")) panel.open = false;
