// Brings every grid viewer of the page to life that is not alive yet.
// `words` names the places, or is empty.
// Bit (s N + i) N + j says whether support s lets query i see key j.
document.querySelectorAll(".attn-grid:not([data-ready])").forEach((viewer) => {
  let { grid, query, titles, words } = JSON.parse(viewer.dataset.shape);
  const bytes = Uint8Array.from(atob(viewer.dataset.bits), (c) => c.charCodeAt(0));
  const one = (selector) => viewer.querySelector(selector);
  const buttons = [...viewer.querySelectorAll(".attn-choices button")];
  const total = grid.reduce((a, b) => a * b);
  const [frames, rows, columns] = [...Array(3 - grid.length).fill(1), ...grid];
  const lines = Math.ceil(columns / 32); // a long line is broken, as text is
  const width = grid.length === 1 ? Math.ceil(columns / lines) : columns; // on the page
  const height = grid.length === 1 ? lines : rows;
  const names = ["frame", "row", "column"].slice(3 - grid.length);
  const cells = [];
  let support = 0;

  const sees = (i, j) => {
    const bit = (support * total + i) * total + j;
    return (bytes[bit >> 3] >> (7 - (bit & 7))) & 1;
  };
  const inText = (count) => count.toLocaleString("en-US").replaceAll(",", "\u2009");
  const placesOf = (i) => [...Array(total).keys()].filter((j) => sees(i, j));
  const counts = titles.map((_, s) => {
    support = s;
    let pairs = 0;
    for (let i = 0; i < total; i++) for (let j = 0; j < total; j++) pairs += sees(i, j);
    return pairs;
  });
  support = 0;

  function nameOf(place) {
    const word = words.length ? ` (${words[place]})` : "";
    if (grid.length === 1) return `place ${place}${word}`;
    const parts = [Math.floor(place / (rows * columns)), Math.floor(place / columns) % rows,
      place % columns].slice(3 - grid.length);
    return names.map((name, axis) => `${name} ${parts[axis]}`).join(", ") + word;
  }

  // One drawing a frame.
  const each = total / frames;
  const draw = (name) => document.createElementNS("http://www.w3.org/2000/svg", name);
  const unit = Math.max(9, Math.min(22, (frames > 1 ? 132 : 400) / width));
  for (let frame = 0; frame < frames; frame++) {
    const panel = document.createElement("div");
    panel.className = "attn-panel";
    if (frames > 1) panel.textContent = `frame ${frame}`;
    const svg = draw("svg");
    svg.setAttribute("viewBox", `-0.2 -0.2 ${width + 0.4} ${height + 0.4}`);
    svg.setAttribute("width", Math.round(unit * (width + 0.4)));
    svg.setAttribute("aria-hidden", "true");
    for (let n = 0; n < each; n++) {
      const rect = draw("rect");
      const at = { x: n % width, y: Math.floor(n / width), width: 1, height: 1 };
      Object.entries(at).forEach(([key, value]) => rect.setAttribute(key, value));
      rect.addEventListener("click", () => choose(frame * each + n));
      cells.push(rect);
      svg.append(rect);
    }
    panel.append(svg);
    one(".attn-places").append(panel);
  }

  function paintPairs() {
    const canvas = one(".attn-pairs canvas");
    canvas.width = canvas.height = total;
    const picture = canvas.getContext("2d").createImageData(total, total);
    for (let i = 0; i < total; i++) {
      for (let j = 0; j < total; j++) {
        picture.data.set([0, 158, 115, sees(i, j) ? 235 : 0], 4 * (i * total + j));
      }
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  function choose(place) {
    query = place;
    const keys = new Set(placesOf(query));
    cells.forEach((cell, j) => {
      cell.classList.toggle("attn-lit", keys.has(j));
      cell.classList.toggle("attn-query", j === query);
    });
    cells[query].parentNode.append(cells[query]); // on top: its frame is drawn last
    const row = one(".attn-row").style;
    row.top = `${(100 * query) / total}%`;
    row.height = `${100 / total}%`;
    const start = titles[support] ? `${titles[support]}: the` : "The";
    const share = ((100 * counts[support]) / total ** 2).toFixed(1);
    const read = [...keys].map((j) => words[j]).join(", ");
    one(".attn-said").textContent =
      `${start} query at ${nameOf(query)} sees ${keys.size} of ${inText(total)} keys` +
      `${words.length && read ? `: ${read}` : ""}. ` +
      `All queries together: ${inText(counts[support])} of ${inText(total ** 2)} pairs (${share} %).`;
  }

  function pick(index) {
    support = index;
    buttons.forEach((button, s) => button.setAttribute("aria-pressed", s === index));
    paintPairs();
    choose(query);
  }

  buttons.forEach((button, index) => button.addEventListener("click", () => pick(index)));
  one(".attn-places").addEventListener("keydown", (event) => {
    const steps = {
      ArrowRight: 1, ArrowLeft: -1, ArrowDown: width, ArrowUp: -width,
      PageDown: rows * columns, PageUp: -rows * columns,
    };
    const next = query + (steps[event.key] || 0);
    if (next === query || next < 0 || next >= total) return;
    event.preventDefault();
    choose(next);
  });
  one(".attn-frame").addEventListener("click", (event) => {
    const box = one(".attn-pairs canvas").getBoundingClientRect();
    const row = Math.floor((total * (event.clientY - box.top)) / box.height);
    choose(Math.min(total - 1, Math.max(0, row)));
  });
  viewer.dataset.ready = "yes";
  pick(0);
});
