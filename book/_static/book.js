// Small helpers of the pages made from data. Without this file every table and map is still whole.

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".filtered").forEach(filterTable);
  document.querySelectorAll("table.sortable").forEach(sortTable);
  document.querySelectorAll(".map").forEach(quietMap);
  document.querySelectorAll("nav summary").forEach(nameSummary);
  document.querySelectorAll("div.cell.tag_setup").forEach(foldSetup);
  document.querySelectorAll(".tag_solution details.hide > summary").forEach(nameSolution);
  document.querySelectorAll("p > strong:first-child").forEach(markExercise);
});

// Show the rows that hold all the words and match every choice.
function filterTable(box) {
  const controls = [...box.querySelectorAll("[data-filter]")];
  const rows = [...box.querySelectorAll(box.dataset.rows || "tbody tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const count = box.querySelector(".table-count");
  const update = () => {
    let shown = 0;
    rows.forEach((row, place) => {
      row.hidden = !controls.every((control) => matches(control, row, texts[place]));
      shown += !row.hidden;
    });
    count.textContent = `${shown} of ${rows.length}`;
  };
  controls.forEach((control) => control.addEventListener("input", update));
  update();
}

function matches(control, row, text) {
  if (control.dataset.filter === "words") {
    return control.value.toLowerCase().split(/\s+/).every((word) => text.includes(word));
  }
  return !control.value || row.dataset[control.dataset.filter] === control.value;
}

// Turn each heading into a button that sorts by its column; a second press turns the order around.
function sortTable(table) {
  table.querySelectorAll("thead th").forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      sortRows(table.tBodies[0], column, down ? -1 : 1);
    });
  });
}

function sortRows(body, column, direction) {
  const key = (row) => row.cells[column].textContent.trim();
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  [...body.rows].sort((a, b) => direction * compare(key(a), key(b))).forEach((row) => body.append(row));
}

// Escape puts the open note of the map away until the pointer or the focus moves on.
function quietMap(map) {
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") map.classList.add("quiet");
  });
  ["pointerover", "focusin"].forEach((kind) => {
    map.addEventListener(kind, (event) => {
      if (event.target.closest(".map-stop > a")) map.classList.remove("quiet");
    });
  });
}

// The theme folds the pages below a chapter under a sign without words.
function nameSummary(summary) {
  if (!summary.textContent.trim()) summary.setAttribute("aria-label", "pages of this chapter");
}

// Every notebook begins with the same setup cell: one line until it is opened.
function foldSetup(cell) {
  const fold = document.createElement("details");
  fold.innerHTML = "<summary>Setup, the same in every chapter</summary>";
  cell.before(fold);
  fold.append(cell);
}

// The solution of an exercise is a folded cell; its fold says so.
function nameSolution(summary) {
  summary.textContent = "Solution";
}

// An exercise begins with a bold heading line in plain Markdown; give that line its style.
function markExercise(strong) {
  if (strong.textContent.startsWith("Exercise ")) strong.parentElement.classList.add("exercise-head");
}
