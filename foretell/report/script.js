"use strict";
// The page is whole without this. It remembers the language, reads the charts out, and unfolds everything for print.
(function () {
  const doc = document, $ = (id) => doc.getElementById(id), titles = doc.querySelector("title");
  const chosen = (name) => { const r = doc.querySelector(`input[name=${name}]:checked`); return r ? r.value : null; };
  const zh = () => chosen("language") === "zh";

  function remembered() {
    const hash = /(?:^#|&)lang=(en|zh)\b/.exec(location.hash);
    if (hash) return hash[1];
    try { const kept = localStorage.getItem("foretell-language"); if (kept === "en" || kept === "zh") return kept; } catch (e) { /* storage may be forbidden */ }
    return /^zh\b/i.test(navigator.language || "") ? "zh" : "en";
  }
  function speak(language) {
    $("language-" + language).checked = true;
    doc.documentElement.lang = language === "zh" ? "zh-CN" : "en";
    doc.title = titles.dataset.titles.split("\n")[language === "zh" ? 1 : 0];
  }
  speak(remembered());
  for (const radio of doc.querySelectorAll("input[name=language]")) radio.addEventListener("change", () => {
    speak(radio.value);
    try { localStorage.setItem("foretell-language", radio.value); } catch (e) {
      try { history.replaceState(null, "", "#lang=" + radio.value); } catch (e2) { /* then it is forgotten */ }
    }
  });

  const short = (v, whole) => {
    const a = Math.abs(v);
    if (a >= 1e15) return v.toExponential(2).replace("+", "");
    if (whole && a < 1e5) return Math.round(v).toLocaleString("en");
    for (const [size, unit] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e4, "k"]]) if (a >= size) return (v / (size === 1e4 ? 1e3 : size)).toPrecision(3) + " " + unit;
    return a >= 1000 ? Math.round(v).toLocaleString("en") : a >= 1e-3 || a === 0 ? String(+v.toPrecision(4)) : v.toExponential(2);
  };
  const unitOf = (axis, name) => axis.units[chosen(name)] || Object.values(axis.units)[0];
  const place = (axis, v) => axis.log ? Math.log(v / axis.low) / Math.log(axis.high / axis.low) : (v - axis.low) / (axis.high - axis.low);
  const nearest = (xs, x) => {
    let low = 0, high = xs.length - 1;
    while (high - low > 1) { const mid = (low + high) >> 1; if (xs[mid] < x) low = mid; else high = mid; }
    return Math.abs(xs[low] - x) <= Math.abs(xs[high] - x) ? low : high;
  };

  for (const frame of doc.querySelectorAll("[data-chart]")) {
    const chart = JSON.parse(frame.dataset.chart), plot = frame.querySelector(".plot"), cursor = frame.querySelector(".cursor");
    const out = frame.parentElement.querySelector(".readout"), bar = cursor.querySelector("line");
    const main = chart.lines.reduce((a, b) => (b.x.length > a.x.length ? b : a), { x: [] });
    if (!main.x.length) continue;
    const dots = chart.lines.map((line) => {
      const dot = doc.createElementNS("http://www.w3.org/2000/svg", "circle");
      dot.setAttribute("r", "4"); dot.setAttribute("class", "dot hue" + line.h); cursor.append(dot);
      return dot;
    });
    let at = -1;
    const show = () => {
      const x = main.x[at], xu = unitOf(chart.x, "x"), yu = unitOf(chart.y, "y"), i = zh() ? 1 : 0;
      const percent = 100 * place(chart.x, x) + "%";
      bar.setAttribute("x1", percent); bar.setAttribute("x2", percent); cursor.style.visibility = "visible";
      out.replaceChildren(short(x * xu[2], true) + " " + xu[i]);
      chart.lines.forEach((line, k) => {
        const j = nearest(line.x, x), b = doc.createElement("b");
        dots[k].setAttribute("cx", 100 * place(chart.x, line.x[j]) + "%");
        dots[k].setAttribute("cy", (1 - place(chart.y, line.y[j])) * chart.height);
        b.textContent = short(line.y[j] * yu[2]) + yu[3];
        out.append(" · " + (line.n[i] ? line.n[i] + " " : ""), b);
      });
    };
    const hide = () => { at = -1; cursor.style.visibility = "hidden"; out.replaceChildren(); };
    frame.addEventListener("pointermove", (e) => {
      const box = plot.getBoundingClientRect(), share = (e.clientX - box.left) / box.width;
      const { low, high, log } = chart.x;
      at = nearest(main.x, log ? low * (high / low) ** share : low + share * (high - low)); show();
    });
    frame.addEventListener("pointerleave", hide);
    frame.addEventListener("blur", hide);
    frame.addEventListener("keydown", (e) => {
      const stride = e.shiftKey ? Math.ceil(main.x.length / 20) : 1, last = main.x.length - 1;
      const to = { ArrowRight: at + stride, ArrowLeft: at < 0 ? last : at - stride, Home: 0, End: last }[e.key];
      if (e.key === "Escape") hide();
      if (to === undefined) return;
      e.preventDefault(); at = Math.max(0, Math.min(last, to)); show();
    });
  }
  addEventListener("beforeprint", () => { for (const d of doc.querySelectorAll("details")) d.open = true; });
})();
