"use strict";
// Draws the words, nearest to the front the most frequent, without letting one label cover another.
(function () {
  const doc = document, $ = (id) => doc.getElementById(id);
  const { words, places, group, near } = JSON.parse($("data").textContent);
  const canvas = $("map"), ink = canvas.getContext("2d"), found = $("found"), search = $("search");
  let place = "tsne", view = { x: 0.5, y: 0.5, zoom: 1 }, width = 0, height = 0, over = -1, chosen = -1, colours = {};

  const language = /(?:^#|&)lang=(en|zh)\b/.exec(location.hash);
  if (language ? language[1] === "zh" : /^zh\b/i.test(navigator.language || "")) { $("language-zh").checked = true; doc.documentElement.lang = "zh-CN"; }
  for (const radio of doc.querySelectorAll("input[name=language]")) radio.addEventListener("change", () => { doc.documentElement.lang = radio.value === "zh" ? "zh-CN" : "en"; });

  const scale = () => Math.min(width, height) * 0.92 * view.zoom;
  const at = (n) => { const p = places[place], s = scale(); return [(p[2 * n] - view.x) * s + width / 2, (p[2 * n + 1] - view.y) * s + height / 2]; };
  const read = () => { const style = getComputedStyle(doc.documentElement); for (const name of ["ink", "soft", "halo", "sans", ...Array.from({ length: 8 }, (_, h) => "hue" + h)]) colours[name] = style.getPropertyValue("--" + name).trim(); };

  let waiting = false;
  const redraw = () => { if (!waiting) { waiting = true; requestAnimationFrame(() => { waiting = false; draw(); }); } };
  function size() {
    const box = canvas.getBoundingClientRect(), dots = window.devicePixelRatio || 1;
    width = box.width; height = box.height;
    canvas.width = Math.round(width * dots); canvas.height = Math.round(height * dots);
    ink.setTransform(dots, 0, 0, dots, 0, 0);
    redraw();
  }
  function draw() {
    ink.clearRect(0, 0, width, height);
    const focus = over >= 0 ? over : chosen, close = new Set(focus >= 0 ? near[focus] : []);
    const visible = [];
    for (let n = 0; n < words.length; n++) { const [x, y] = at(n); if (x > -60 && y > -20 && x < width + 60 && y < height + 20) visible.push([n, x, y]); }
    const first = (n) => (n === focus ? 0 : n === chosen ? 1 : close.has(n) ? 2 : 3);
    visible.sort((a, b) => first(a[0]) - first(b[0]) || a[0] - b[0]);
    ink.globalAlpha = focus >= 0 ? 0.45 : 0.75;
    for (const [n, x, y] of visible) { ink.fillStyle = colours["hue" + group[n]]; ink.beginPath(); ink.arc(x, y, n === focus || close.has(n) ? 4 : 2.2, 0, 7); ink.fill(); }
    ink.textBaseline = "middle";
    const cells = new Map(), taken = [], cell = 48;
    const free = (l, t, r, b) => {
      const ids = [];
      for (let i = Math.floor(l / cell); i <= Math.floor(r / cell); i++) for (let j = Math.floor(t / cell); j <= Math.floor(b / cell); j++) {
        const id = i * 4096 + j; ids.push(id);
        for (const k of cells.get(id) || []) { const o = taken[k]; if (l < o[2] && r > o[0] && t < o[3] && b > o[1]) return false; }
      }
      for (const id of ids) { if (!cells.has(id)) cells.set(id, []); cells.get(id).push(taken.length); }
      taken.push([l, t, r, b]);
      return true;
    };
    for (const [n, x, y] of visible) {
      const rank = first(n), px = rank < 2 ? 17 : rank === 2 ? 15 : Math.max(11, 15 - Math.log10(n + 1) * 1.4);
      ink.font = (rank < 3 ? "600 " : "") + px + "px " + colours.sans;
      const w = ink.measureText(words[n]).width;
      if (!free(x - 4, y - px * 0.62, x + w + 9, y + px * 0.62)) continue;
      ink.globalAlpha = focus >= 0 && rank === 3 ? 0.4 : 1;
      ink.lineWidth = 3; ink.lineJoin = "round"; ink.strokeStyle = colours.halo;
      ink.strokeText(words[n], x + 6, y);
      ink.fillStyle = rank < 2 ? colours.ink : colours["hue" + group[n]];
      ink.fillText(words[n], x + 6, y);
    }
    ink.globalAlpha = 1;
  }
  function tell(n) {
    if (n < 0) return;
    found.textContent = "";
    const name = doc.createElement("b"); name.textContent = words[n]; found.append(name);
    for (const k of near[n]) { const b = doc.createElement("button"); b.type = "button"; b.textContent = words[k]; b.addEventListener("click", () => choose(k)); found.append(b); }
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
    const zoom = Math.min(60, Math.max(0.5, view.zoom * factor)), before = scale();
    const px = view.x + (x - width / 2) / before, py = view.y + (y - height / 2) / before;
    view.zoom = zoom;
    view.x = px - (x - width / 2) / scale(); view.y = py - (y - height / 2) / scale();
    redraw();
  }

  const fingers = new Map();
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
    const [x, y] = spot(e);
    fingers.delete(e.pointerId); canvas.classList.remove("moving");
    if (name === "pointerup" && moved < 5) { chosen = nearest(x, y); tell(chosen); redraw(); }
  });
  canvas.addEventListener("pointerleave", () => { over = -1; redraw(); });
  canvas.addEventListener("wheel", (e) => { e.preventDefault(); const [x, y] = spot(e); zoomed(Math.exp(-e.deltaY * (e.deltaMode ? 0.05 : 0.0016)), x, y); }, { passive: false });
  canvas.addEventListener("keydown", (e) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[e.key];
    if (move) { view.x += move[0] * 60 / scale(); view.y += move[1] * 60 / scale(); redraw(); e.preventDefault(); }
    else if (e.key === "+" || e.key === "=") zoomed(1.4, width / 2, height / 2);
    else if (e.key === "-") zoomed(1 / 1.4, width / 2, height / 2);
  });
  $("in").addEventListener("click", () => zoomed(1.6, width / 2, height / 2));
  $("out").addEventListener("click", () => zoomed(1 / 1.6, width / 2, height / 2));
  $("all-of-it").addEventListener("click", () => { view = { x: 0.5, y: 0.5, zoom: 1 }; chosen = over = -1; redraw(); });
  for (const radio of doc.querySelectorAll("input[name=place]")) radio.addEventListener("change", () => { place = radio.value; if (chosen >= 0) choose(chosen); redraw(); });
  const where = new Map(words.map((w, n) => [w.toLowerCase(), n]));
  const list = $("all");
  for (const w of words) { const option = doc.createElement("option"); option.value = w; list.append(option); }
  search.addEventListener("input", () => {
    const typed = search.value.trim().toLowerCase();
    if (!typed) return;
    const n = where.has(typed) ? where.get(typed) : words.findIndex((w) => w.toLowerCase().startsWith(typed));
    if (n >= 0) choose(n);
  });
  const asked = /(?:^#|&)word=([^&]+)/.exec(location.hash);
  read(); size();
  if (asked) { try { const n = where.get(decodeURIComponent(asked[1]).toLowerCase()); if (n !== undefined) choose(n); } catch (e) { /* no word */ } }
  window.addEventListener("resize", size);
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { read(); redraw(); });
})();
