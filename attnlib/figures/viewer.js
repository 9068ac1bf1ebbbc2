// Brings every attention viewer of the page to life that is not alive yet.
// A weight w is stored as the byte 255 sqrt(w / largest), so small weights keep their digits;
// the same byte is the opacity of its cell.
document.querySelectorAll(".attn-viewer:not([data-ready])").forEach((viewer) => {
  let { layers, heads, queries, keys, largest, head, query } = JSON.parse(viewer.dataset.shape);
  const bytes = Uint8Array.from(atob(viewer.dataset.weights), (c) => c.charCodeAt(0));
  const all = (selector) => [...viewer.querySelectorAll(selector)];
  const one = (selector) => viewer.querySelector(selector);
  const headButtons = all(".attn-heads button");
  const queryButtons = all(".attn-queries button");
  const keyTokens = all(".attn-keys > *");
  const names = keyTokens.map((token) => token.textContent);
  const rows = all("tbody td");

  const byteOf = (h, i, j) => bytes[(h * queries + i) * keys + j];
  const weightOf = (h, i, j) => largest * (byteOf(h, i, j) / 255) ** 2;

  function paint(canvas, h) {
    canvas.width = keys;
    canvas.height = queries;
    const picture = canvas.getContext("2d").createImageData(keys, queries);
    for (let cell = 0; cell < queries * keys; cell++) {
      picture.data.set([46, 143, 208, bytes[h * queries * keys + cell]], 4 * cell);
    }
    canvas.getContext("2d").putImageData(picture, 0, 0);
  }

  function press(buttons, chosen) {
    buttons.forEach((button, index) => {
      button.setAttribute("aria-pressed", index === chosen);
      button.tabIndex = index === chosen ? 0 : -1;
    });
  }

  function draw() {
    press(headButtons, head);
    press(queryButtons, query);
    paint(one(".attn-map canvas"), head);
    const place = one(".attn-row").style;
    place.top = `${(100 * query) / queries}%`;
    place.height = `${100 / queries}%`;
    const weights = names.map((_, j) => weightOf(head, query, j));
    keyTokens.forEach((token, j) => {
      token.style.backgroundColor = `rgba(46, 143, 208, ${(0.55 * weights[j]) / largest})`;
      rows[j].textContent = weights[j].toFixed(2);
    });
    const visible = weights.map((_, j) => j).filter((j) => weights[j] >= 0.005);
    const most = visible.sort((a, b) => weights[b] - weights[a]).slice(0, 3);
    const layer = Math.floor(head / heads) + 1;
    const where = `Layer ${layer}, head ${(head % heads) + 1}`;
    const reads = most.map((j) => `“${names[j]}” ${weights[j].toFixed(2)}`).join(", ");
    const reader = `query ${query} “${queryButtons[query].textContent}”`;
    one(".attn-said").textContent = `${where}: ${reader} reads mostly ${reads || "nothing"}.`;
  }

  function choose(newHead, newQuery) {
    head = newHead;
    query = newQuery;
    draw();
  }

  // Arrow keys move inside a group of buttons; the tab key leaves it.
  function listen(buttons, columns, pick) {
    buttons.forEach((button, index) => {
      button.addEventListener("click", () => pick(index));
      button.addEventListener("keydown", (event) => {
        const steps = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns };
        let next = index + (steps[event.key] || 0);
        if (event.key === "Home") next = 0;
        if (event.key === "End") next = buttons.length - 1;
        if (next === index || !buttons[next]) return;
        event.preventDefault();
        pick(next);
        buttons[next].focus();
      });
    });
  }

  listen(headButtons, heads, (index) => choose(index, query));
  listen(queryButtons, 1, (index) => choose(head, index));
  queryButtons.forEach((button, index) => {
    button.addEventListener("pointerenter", () => choose(head, index));
  });
  one(".attn-frame").addEventListener("pointermove", (event) => {
    const box = one(".attn-map canvas").getBoundingClientRect();
    const row = Math.floor((queries * (event.clientY - box.top)) / box.height);
    choose(head, Math.min(queries - 1, Math.max(0, row)));
  });
  headButtons.forEach((button, h) => paint(button.firstElementChild, h));
  viewer.dataset.ready = "yes";
  draw();
});
