"use strict";
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const charts = read("charts"), shared = read("shared");
  const root = document.documentElement;
  const narrow = () => window.innerWidth < 640;
  const touch = window.matchMedia("(pointer: coarse)").matches;

  // ---- time: x counts bars, so that nights and weekends take no room; stamps are runs of equal steps
  const stamps = [];
  for (const [first, step, count] of shared.clock) for (let k = 0; k < count; k++) stamps.push(first + k * step);
  const two = (n) => String(n).padStart(2, "0");
  const months = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split(" ");
  const hour = (d) => `${two(d.getUTCHours())}:${two(d.getUTCMinutes())}${shared.seconds ? ":" + two(d.getUTCSeconds()) : ""}`;
  const when = (k) => {
    const d = new Date(stamps[k] * 1000);
    return `${d.getUTCFullYear()}-${two(d.getUTCMonth() + 1)}-${two(d.getUTCDate())} ${hour(d)}`;
  };
  const names = stamps.map((_, k) => when(k));
  const dayOf = (k) => Math.floor(stamps[k] / 86400);
  const ticks = (low, high, width) => {
    const first = Math.max(0, Math.ceil(low)), last = Math.min(stamps.length - 1, Math.floor(high));
    if (last <= first) return { tickvals: [first], ticktext: [when(first)] };
    const year = stamps[last] - stamps[first] > 300 * 86400;
    const most = Math.max(2, Math.floor(width / (year ? 125 : 85)));
    let at = [];
    for (let k = first; k <= last; k++) if (k > 0 && dayOf(k) !== dayOf(k - 1)) at.push(k);
    if (at.length >= 3) {
      const every = Math.ceil(at.length / most);
      at = at.filter((_, place) => place % every === 0);
      return { tickvals: at, ticktext: at.map((k) => {
        const d = new Date(stamps[k] * 1000);
        return `${d.getUTCDate()} ${months[d.getUTCMonth()]}${year ? " " + d.getUTCFullYear() : ""}`;
      }) };
    }
    const count = Math.min(Math.max(2, Math.floor(width / 110)), last - first + 1);
    at = Array.from({ length: count }, (_, k) => Math.round(first + (k * (last - first)) / (count - 1)));
    return { tickvals: at, ticktext: at.map((k) => {
      const d = new Date(stamps[k] * 1000);
      return `${d.getUTCDate()} ${months[d.getUTCMonth()]} ${hour(d)}`;
    }) };
  };
  const timed = (key) => key === "equity" || key.startsWith("trades-");

  // ---- colours: charts come in light ones
  const isDark = () => {
    const chosen = root.dataset.theme;
    return chosen ? chosen === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
  };
  const hex = (n) => Number(n).toString(16).padStart(2, "0");
  const swap = (colour) => {
    const known = shared.dark[colour.toLowerCase()];
    if (known) return known;
    const parts = /^rgba\((\d+),\s*(\d+),\s*(\d+),\s*([\d.]+)\)$/.exec(colour);
    const other = parts && shared.dark["#" + hex(parts[1]) + hex(parts[2]) + hex(parts[3])];
    if (!other) return colour;
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(other.slice(at, at + 2), 16));
    return `rgba(${r},${g},${b},${parts[4]})`;
  };
  const coloured = (value, key) => {
    if (typeof value === "string") return /color$/i.test(key) ? swap(value) : value;
    if (Array.isArray(value)) return /color$/i.test(key) ? value.map((one) => coloured(one, key)) : value.map((one) => (one && typeof one === "object" ? coloured(one, "") : one));
    if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([name, one]) => [name, coloured(one, name)]));
    return value;
  };

  const figure = (key, width, dark) => {
    const spec = dark ? coloured(charts[key], "") : structuredClone(charts[key]);
    const layout = { ...spec.layout, autosize: true, width };
    if (narrow()) layout.font = { ...layout.font, size: 11.5 };
    const named = spec.data.filter((trace) => trace.showlegend !== false).length;
    if (layout.showlegend && named > 3 && width < 450) layout.height += 15 * (named - 2); // one below the other
    if (touch || narrow()) layout.dragmode = false; // a finger that moves scrolls the page
    if (timed(key)) {
      layout.xaxis = { ...layout.xaxis, type: "category", categoryorder: "array", categoryarray: names,
        tickmode: "array", tickangle: 0, ...ticks(0, stamps.length - 1, width), range: [-0.01 * stamps.length, 1.01 * (stamps.length - 1)] };
      for (const trace of spec.data) if (Array.isArray(trace.x)) trace.x = trace.x.map((k) => names[k]);
    }
    return { data: spec.data, layout };
  };
  const options = { responsive: false, displaylogo: false, displayModeBar: touch ? false : "hover",
    scrollZoom: false, plotlyServerURL: "",
    // All of them by name: Plotly's own choice holds one that sends the data to a cloud.
    modeBarButtons: [["zoom2d", "pan2d", "zoomIn2d", "zoomOut2d", "resetScale2d", "toImage"]] };

  const plots = [...document.querySelectorAll(".plot")];
  const drawn = new Set();
  const draw = async (box, width = box.clientWidth, dark = isDark()) => {
    const key = box.dataset.chart;
    if (!charts[key] || !width) return;
    const { data, layout } = figure(key, width, dark);
    box.style.height = `${layout.height}px`;
    await Plotly.react(box, data, layout, options);
    if (!drawn.has(box)) {
      drawn.add(box);
      if (timed(key)) box.on("plotly_relayout", (change) => {
        if (!("xaxis.range[0]" in change || "xaxis.autorange" in change)) return;
        const range = change["xaxis.autorange"] ? [0, stamps.length - 1] : [change["xaxis.range[0]"], change["xaxis.range[1]"]];
        const found = ticks(range[0], range[1], box.clientWidth);
        Plotly.relayout(box, { "xaxis.tickvals": found.tickvals, "xaxis.ticktext": found.ticktext });
      });
    }
    for (const svg of box.querySelectorAll("svg")) svg.setAttribute("aria-hidden", "true");
    root.dataset.drawn = String(drawn.size);
  };
  const visible = () => plots.filter((box) => box.clientWidth > 0);
  let turn = 0;
  const drawAll = async () => {
    const mine = ++turn;
    delete root.dataset.ready;
    for (const box of visible()) {
      if (mine !== turn) return;
      await draw(box);
      await new Promise((done) => setTimeout(done));
    }
    if (mine === turn) root.dataset.ready = "yes";
  };

  // ---- one symbol's trades at a time
  const picker = document.getElementById("symbol");
  const pick = () => {
    for (const figure of document.querySelectorAll("#trade-charts > figure")) figure.hidden = figure.id !== picker.value;
    for (const box of visible()) if (!drawn.has(box)) draw(box);
  };
  if (picker) { pick(); picker.addEventListener("change", pick); }

  // ---- theme: the system's, or the reader's choice
  const button = document.getElementById("theme");
  const store = { get: () => { try { return localStorage.getItem("hpcrl-theme"); } catch { return null; } },
    set: (value) => { try { value ? localStorage.setItem("hpcrl-theme", value) : localStorage.removeItem("hpcrl-theme"); } catch { /* a page of a file may keep nothing */ } } };
  const themes = ["", "light", "dark"], named = { "": "as the system", light: "light", dark: "dark" };
  const theme = (value) => {
    if (value) root.dataset.theme = value; else delete root.dataset.theme;
    button.textContent = `Theme: ${named[value]}`;
  };
  theme(themes.includes(store.get()) ? store.get() : "");
  button.addEventListener("click", () => {
    const next = themes[(themes.indexOf(root.dataset.theme || "") + 1) % themes.length];
    store.set(next);
    theme(next);
    drawAll();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);

  // ---- widths, and paper
  let width = window.innerWidth, waiting = 0;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return; // a phone's bars that come and go
    width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 150);
  });
  let before = "";
  window.addEventListener("beforeprint", () => {
    before = root.dataset.theme || "";
    root.dataset.theme = "light";
    for (const details of document.querySelectorAll("#data details")) details.open = true;
    for (const box of visible()) draw(box, box.closest(".grid") ? 320 : 680, false);
  });
  window.addEventListener("afterprint", () => { theme(before); drawAll(); });
  drawAll();
})();
