// Small helpers of the pages. Without this file every table, map and equation is still whole.

// Equations where there is little room. This must be said before MathJax starts. On a phone a
// numbered equation in the middle would keep as much room at its left as its number takes at its
// right.
if (window.MathJax) {
  const phone = matchMedia("(max-width: 600px)").matches;
  if (phone) Object.assign(window.MathJax.svg, { displayAlign: "left", displayIndent: "0" });
  window.MathJax.startup = {
    pageReady() {
      if (phone) document.querySelectorAll(".bd-article div.math").forEach(breakLines);
      const narrow = phone ? ".bd-article div.math" : ".bd-article td div.math";
      return window.MathJax.startup.defaultPageReady().then(() => {
        document.querySelectorAll(narrow).forEach(fitEquation);
      });
    },
  };
}

// Two statements beside each other, `a, \qquad b`, become two lines.
function breakLines(box) {
  const tex = box.textContent;
  const others = tex.replace(/\\(begin|end)\{aligned\}/g, "");
  if (!tex.includes("\\qquad") || /\\begin|\\left\b/.test(others)) return;
  let depth = 0;
  const broken = tex.replace(/\\qquad|\\?[{}]/g, (found) => {
    if (found === "\\qquad") return depth ? found : "\\cr &";
    depth += { "{": 1, "}": -1 }[found] || 0;
    return found;
  });
  const [, start, body, end] = /^(\s*\\\[)([^]*?)((?:\\tag\{[^}]*\})?\s*\\\]\s*)$/.exec(broken) || [];
  if (!start) return;
  const rows = others === tex ? `\\begin{aligned} &${body} \\end{aligned}` : body;
  box.textContent = `${start} ${rows} ${end}`;
}

// What is still too wide becomes smaller, as long as it can be read.
function fitEquation(box) {
  const share = box.clientWidth / box.scrollWidth;
  if (share < 1) box.style.fontSize = `${Math.max(0.76, 0.99 * share)}em`;
}

document.addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".filtered").forEach(filterTable);
  document.querySelectorAll("table.sortable").forEach(sortTable);
  document.querySelectorAll(".map").forEach(quietMap);
  document.querySelectorAll("nav summary").forEach(nameSummary);
  document.querySelectorAll("div.cell.tag_setup").forEach(foldSetup);
  document.querySelectorAll("details.hide > summary").forEach(nameFold);
  document.querySelectorAll("p > strong:first-child").forEach(markExercise);
  document.querySelectorAll(".bd-article span.math").forEach(keepPunctuation);
  document.querySelectorAll("figure.attn-figure:not(.attn-frames) > img").forEach(letScroll);
  document.querySelectorAll(".bd-article :is(.attn-wide, div.math, div.cell_output pre)").forEach(
    (box) => widths.observe(box));
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

// A fold is called by the words that it shows; a folded cell that solves an exercise says so.
function nameFold(summary) {
  summary.removeAttribute("aria-label");
  if (summary.closest(".tag_solution")) summary.textContent = "Solution in code";
}

// An exercise begins with a bold heading line in plain Markdown; give that line its style.
function markExercise(strong) {
  if (strong.textContent.startsWith("Exercise ")) strong.parentElement.classList.add("exercise-head");
}

// A comma or a bracket after inline mathematics stays on its line, and a bracket before it too.
function keepPunctuation(math) {
  const before = touching(math.previousSibling, /[(\[“‘]+$/);
  const after = touching(math.nextSibling, /^[.,;:)\]!?’”…]+/);
  if (!before && !after) return;
  const line = document.createElement("span");
  line.className = "one-line";
  math.before(line);
  line.append(...[before, math, after].filter(Boolean));
}

// The part of a neighbouring text that matches, as a node of its own.
function touching(node, pattern) {
  const found = node?.nodeType === Node.TEXT_NODE && pattern.exec(node.data);
  if (!found) return null;
  const part = found.index ? node.splitText(found.index) : node;
  if (part.length > found[0].length) part.splitText(found[0].length);
  return part;
}

// A picture gets a box of its own, in which a narrow screen scrolls it and not its caption.
function letScroll(image) {
  const box = document.createElement("div");
  box.className = "attn-wide";
  image.before(box);
  box.append(image);
}

// What is wider than its box can be reached by keyboard.
const widths = new ResizeObserver((boxes) => {
  boxes.forEach(({ target }) => {
    if (target.scrollWidth > target.clientWidth) target.tabIndex = 0;
    else target.removeAttribute("tabindex");
  });
});
