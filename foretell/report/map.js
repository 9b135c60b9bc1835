"use strict";
// Maps of words: the most frequent stand in front, and no label covers another. One for each figure of class `map`.
(function () {
  const doc = document, HUES = 8;
  for (const figure of doc.querySelectorAll("[data-map]")) start(figure, JSON.parse(figure.dataset.map));

  function start(figure, { words: raw, places, group, near }) {
    const $ = (selector) => figure.querySelector(selector);
    const words = raw.map((w) => w.trim() || w.replace(/\n/g, "⏎").replace(/\s/g, "␣"));
    const canvas = $("canvas"), ink = canvas.getContext("2d"), found = $(".found"), search = $("input[type=search]");
    let place = "tsne", view = { x: 0.5, y: 0.5, zoom: 1 }, width = 0, height = 0, over = -1, chosen = -1;
    const colours = {}, where = new Map();
    words.forEach((w, n) => { const k = w.toLowerCase(); if (!where.has(k)) where.set(k, n); });

    const scale = () => Math.min(width, height) * 0.92 * view.zoom;
    const at = (n) => { const p = places[place], s = scale(); return [(p[2 * n] - view.x) * s + width / 2, (p[2 * n + 1] - view.y) * s + height / 2]; };
    const read = () => { const style = getComputedStyle(doc.documentElement); for (const name of ["ink", "card", "sans", ...Array.from({ length: HUES }, (_, h) => "hue" + h)]) colours[name] = style.getPropertyValue("--" + name).trim(); };

    let waiting = false;
    const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } };
    function size() {
      const box = canvas.getBoundingClientRect(), dots = window.devicePixelRatio || 1;
      width = box.width; height = box.height;
      canvas.width = Math.round(width * dots); canvas.height = Math.round(height * dots);
      ink.setTransform(dots, 0, 0, dots, 0, 0);
      draw();
    }
    function draw() {
      ink.clearRect(0, 0, width, height);
      const focus = over >= 0 ? over : chosen, close = new Set(focus >= 0 ? near[focus] : []);
      const first = (n) => (n === focus ? 0 : n === chosen ? 1 : close.has(n) ? 2 : 3);
      const visible = [];
      for (let n = 0; n < words.length; n++) { const [x, y] = at(n); if (x > -60 && y > -20 && x < width + 60 && y < height + 20) visible.push([n, x, y]); }
      visible.sort((a, b) => first(a[0]) - first(b[0]) || a[0] - b[0]);
      ink.globalAlpha = focus >= 0 ? 0.45 : 0.75;
      for (const [n, x, y] of visible) { ink.fillStyle = colours["hue" + group[n]]; ink.beginPath(); ink.arc(x, y, n === focus || close.has(n) ? 4 : 2.2, 0, 7); ink.fill(); }
      ink.textBaseline = "middle"; ink.lineWidth = 3; ink.lineJoin = "round"; ink.strokeStyle = colours.card;
      const free = room();
      for (const [n, x, y] of visible) {
        const rank = first(n), px = rank < 2 ? 17 : rank === 2 ? 15 : Math.max(11, 15 - Math.log10(n + 1) * 1.4);
        ink.font = (rank < 3 ? "600 " : "") + px + "px " + colours.sans;
        if (!free(x - 4, y - px * 0.62, x + ink.measureText(words[n]).width + 9, y + px * 0.62)) continue;
        ink.globalAlpha = focus >= 0 && rank === 3 ? 0.4 : 1;
        ink.strokeText(words[n], x + 6, y);
        ink.fillStyle = rank < 2 ? colours.ink : colours["hue" + group[n]];
        ink.fillText(words[n], x + 6, y);
      }
      ink.globalAlpha = 1;
    }
    function hint() { found.replaceChildren(...still); }
    function tell(n) {
      if (n < 0) { hint(); return; }
      const name = doc.createElement("b"); name.textContent = words[n];
      found.replaceChildren(name, ...near[n].map((k) => { const b = doc.createElement("button"); b.type = "button"; b.textContent = words[k]; b.addEventListener("click", () => choose(k)); return b; }));
    }
    function choose(n) {
      chosen = n; over = -1; tell(n);
      view = { x: places[place][2 * n], y: places[place][2 * n + 1], zoom: Math.max(view.zoom, 3) };
      redraw();
    }
    function nearest(x, y) {
      let best = -1, least = 22 * 22;
      for (let n = 0; n < words.length; n++) { const [a, b] = at(n), d = (a - x) ** 2 + (b - y) ** 2; if (d < least) { least = d; best = n; } }
      return best;
    }
    function zoomed(factor, x, y) {
      const before = scale(), px = view.x + (x - width / 2) / before, py = view.y + (y - height / 2) / before;
      view.zoom = Math.min(60, Math.max(0.5, view.zoom * factor));
      view.x = px - (x - width / 2) / scale(); view.y = py - (y - height / 2) / scale();
      redraw();
    }

    const still = [...found.childNodes], fingers = new Map();
    let moved = 0;
    const spot = (e) => { const box = canvas.getBoundingClientRect(); return [e.clientX - box.left, e.clientY - box.top]; };
    canvas.addEventListener("pointerdown", (e) => { canvas.setPointerCapture(e.pointerId); fingers.set(e.pointerId, spot(e)); moved = 0; });
    canvas.addEventListener("pointermove", (e) => {
      const [x, y] = spot(e);
      if (!fingers.has(e.pointerId)) { const n = nearest(x, y); if (n !== over) { over = n; tell(n >= 0 ? n : chosen); redraw(); } return; }
      const [ox, oy] = fingers.get(e.pointerId);
      moved += Math.abs(x - ox) + Math.abs(y - oy);
      if (fingers.size === 1) { view.x -= (x - ox) / scale(); view.y -= (y - oy) / scale(); canvas.classList.add("moving"); redraw(); }
      else {
        const [a, b] = [...fingers.entries()].find(([id]) => id !== e.pointerId)[1];
        zoomed(Math.hypot(x - a, y - b) / Math.max(1, Math.hypot(ox - a, oy - b)), (x + a) / 2, (y + b) / 2);
      }
      fingers.set(e.pointerId, [x, y]);
    });
    for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, (e) => {
      fingers.delete(e.pointerId); canvas.classList.remove("moving");
      if (name === "pointerup" && moved < 5) { chosen = nearest(...spot(e)); tell(chosen); redraw(); }
    });
    canvas.addEventListener("pointerleave", () => { over = -1; tell(chosen); redraw(); });
    // Only once the map has been clicked, so that scrolling down the page does not end here.
    canvas.addEventListener("wheel", (e) => {
      if (doc.activeElement !== canvas && !e.ctrlKey) return;
      e.preventDefault(); zoomed(Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : 0.0016)), ...spot(e));
    }, { passive: false });
    canvas.addEventListener("keydown", (e) => {
      const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
      if (move) { view.x += move[0] * 60 / scale(); view.y += move[1] * 60 / scale(); redraw(); e.preventDefault(); }
      else if (e.key === "+" || e.key === "=") zoomed(1.4, width / 2, height / 2);
      else if (e.key === "-") zoomed(1 / 1.4, width / 2, height / 2);
      else if (e.key === "Escape") canvas.blur();
    });
    $(".closer").addEventListener("click", () => zoomed(1.6, width / 2, height / 2));
    $(".farther").addEventListener("click", () => zoomed(1 / 1.6, width / 2, height / 2));
    $(".all").addEventListener("click", () => { view = { x: 0.5, y: 0.5, zoom: 1 }; chosen = over = -1; hint(); redraw(); });
    for (const radio of figure.querySelectorAll("input[type=radio]")) radio.addEventListener("change", () => { place = radio.value; if (chosen >= 0) choose(chosen); redraw(); });
    for (const w of words) { const option = doc.createElement("option"); option.value = w; $("datalist").append(option); }
    search.addEventListener("input", () => {
      const typed = search.value.trim().toLowerCase();
      if (!typed) return;
      const n = where.has(typed) ? where.get(typed) : words.findIndex((w) => w.toLowerCase().startsWith(typed));
      if (n >= 0) choose(n);
    });

    $("svg").remove();
    for (const part of [canvas, found, $(".tools")]) part.hidden = false;
    read();
    new ResizeObserver(size).observe(canvas); // also when a folded run is opened
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { read(); redraw(); });
    const asked = /(?:^#|&)word=([^&]+)/.exec(location.hash);
    if (asked) { try { const n = where.get(decodeURIComponent(asked[1]).toLowerCase()); if (n !== undefined) choose(n); } catch (e) { /* no word */ } }
  }
  // A box is taken once, if it covers none before it; boxes are looked up by the cells they touch.
  function room() {
    const cells = new Map(), taken = [], cell = 48;
    return (l, t, r, b) => {
      const ids = [];
      for (let i = Math.floor(l / cell); i <= Math.floor(r / cell); i++) for (let j = Math.floor(t / cell); j <= Math.floor(b / cell); j++) {
        const id = i * 4096 + j; ids.push(id);
        for (const k of cells.get(id) || []) { const o = taken[k]; if (l < o[2] && r > o[0] && t < o[3] && b > o[1]) return false; }
      }
      for (const id of ids) { if (!cells.has(id)) cells.set(id, []); cells.get(id).push(taken.length); }
      taken.push([l, t, r, b]);
      return true;
    };
  }
})();
