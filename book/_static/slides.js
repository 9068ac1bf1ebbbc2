// Moves through a deck of slides. Without this file the slides are still there, one below the other.

const page = document.documentElement;
const stored = (name) => { try { return localStorage.getItem(name); } catch { return null; } };
const dark = matchMedia("(prefers-color-scheme: dark)");
const theme = { light: "light", dark: "dark" }[stored("theme")] || (dark.matches ? "dark" : "light");
page.dataset.theme = theme;

const WIDE = matchMedia("(min-width: 900px) and (min-aspect-ratio: 5/4)");
const SMALLEST = 0.7, LARGEST = 1.24;
let slides = [], current = 0, speaker = null;

document.addEventListener("DOMContentLoaded", () => {
  slides = [...document.querySelectorAll(".slide")];
  go(Number(location.hash.slice(1)) - 1 || 0);
  if (location.search === "?speaker") showNotes(true);
  document.querySelectorAll(".controls button").forEach((button) => {
    button.addEventListener("click", () => {
      if (button.dataset.move) go(current + Number(button.dataset.move));
      else KEYS[button.dataset.do]();
    });
  });
  document.querySelector(".deck").addEventListener("click", clicked);
});
window.addEventListener("load", () => {
  (window.MathJax?.startup?.promise || Promise.resolve()).then(() => document.fonts.ready).then(() => {
    fitAll();
    page.dataset.ready = "yes";
  });
});
addEventListener("resize", () => { fitAll(); go(current); });

function go(place) {
  current = Math.max(0, Math.min(slides.length - 1, place));
  if (WIDE.matches) slides[current].scrollIntoView({ behavior: "instant" });
  tell();
}

// The reader scrolled to a slide.
let settled = 0;
addEventListener("scroll", () => {
  clearTimeout(settled);
  settled = setTimeout(() => {
    const place = Math.round(scrollY / slides[0].offsetHeight);
    if (WIDE.matches && place !== current && slides[place]) { current = place; tell(); }
  }, 120);
});

// The address names the slide; the speaker's window and ours stay together.
function tell() {
  if (WIDE.matches) {
    try { history.replaceState(null, "", `#${current + 1}`); } catch { /* some browsers, on a disk */ }
  }
  [speaker, window.opener].forEach((other) => other && other.postMessage({ slide: current }, "*"));
}
addEventListener("message", ({ source, data }) => {
  const ours = source && (source === speaker || source === window.opener);
  if (ours && Number.isInteger(data?.slide) && data.slide !== current) go(data.slide);
});

function showNotes(shown) {
  page.classList.toggle("with-notes", shown);
  document.querySelectorAll(".notes").forEach((notes) => { notes.open = page.classList.contains("with-notes"); });
  document.querySelector("[data-do=n]").setAttribute("aria-pressed", page.classList.contains("with-notes"));
  go(current);
}

const KEYS = {
  n: () => showNotes(),
  t: () => { page.dataset.theme = page.dataset.theme === "dark" ? "light" : "dark"; },
  f: () => (document.fullscreenElement ? document.exitFullscreen() : page.requestFullscreen()),
  w: () => { speaker = window.open(`${location.pathname}?speaker#${current + 1}`, "speaker", "width=1100,height=760"); },
};
const MOVES = { ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1 };

addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || !WIDE.matches) return;
  if (event.target.closest?.("input, button, a") && !/^Page|^[a-z]$/.test(event.key)) return;
  const places = { Home: 0, End: slides.length - 1 };
  if (event.key in MOVES) go(current + (event.key === " " && event.shiftKey ? -1 : MOVES[event.key]));
  else if (event.key in places) go(places[event.key]);
  else if (event.key.toLowerCase() in KEYS) KEYS[event.key.toLowerCase()]();
  else return;
  event.preventDefault();
});

// A click moves on, at the left edge back; not one on something that has a use of its own.
function clicked(event) {
  if (!WIDE.matches || !getSelection().isCollapsed) return;
  if (event.target.closest("a, button, input, label, summary, .notes, .code, .print")) return;
  go(current + (event.clientX < innerWidth / 6 ? -1 : 1));
}

let touched = null;
addEventListener("touchstart", (event) => { touched = event.touches[0]; }, { passive: true });
addEventListener("touchend", (event) => {
  const left = event.changedTouches[0], x = left.clientX - touched.clientX;
  if (WIDE.matches && Math.abs(x) > 60 && Math.abs(x) > 2 * Math.abs(left.clientY - touched.clientY)) {
    go(current + (x < 0 ? 1 : -1));
  }
});

let rest = 0;
addEventListener("pointermove", () => {
  page.classList.add("awake");
  clearTimeout(rest);
  rest = setTimeout(() => page.classList.remove("awake"), 2500);
});

// Words, code and cards are as large as their slide allows; beside a picture they stay as they are.
function fitAll() {
  slides.forEach((slide) => {
    slide.style.removeProperty("--fit");
    slide.querySelectorAll("div.math").forEach(fitWidth);
    let size = slide.querySelector(".attn-figure") ? 1 : LARGEST;
    while (WIDE.matches && size > SMALLEST) {
      slide.style.setProperty("--fit", size.toFixed(2));
      slide.querySelectorAll("div.math").forEach(fitWidth);
      if (!tooMuch(slide)) break;
      size -= 0.03;
    }
  });
}

function fitWidth(equation) {
  equation.style.removeProperty("--own");
  const share = equation.clientWidth / equation.scrollWidth;
  if (share < 1) equation.style.setProperty("--own", Math.max(SMALLEST, 0.98 * share).toFixed(3));
}

function tooMuch(slide) {
  const boxes = [...slide.querySelectorAll(".stage, .body, .words, .things, .things > :not(table), pre")];
  const tall = (box) => box.scrollHeight > box.clientHeight + 2;
  const wide = (box) => box.scrollWidth > box.clientWidth + 2;
  const small = (picture) => picture.clientHeight < 0.3 * slide.clientHeight * (page.classList.contains("with-notes") ? 0.68 : 1);
  return boxes.some((box) => tall(box) || wide(box))
    || [...slide.querySelectorAll("div.math")].some(wide)
    || [...slide.querySelectorAll(".picture")].some(small);
}

// A dark page is printed as a light one.
addEventListener("beforeprint", () => { page.dataset.before = page.dataset.theme; page.dataset.theme = "light"; });
addEventListener("afterprint", () => { page.dataset.theme = page.dataset.before; });
