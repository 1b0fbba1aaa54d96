"use strict";
// Charts and pictures of a report, drawn from the JSON that stands in the page. Text that comes from
// files is only ever set as text, never as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set();
const HUES = 10;

function hue(element, run) {
  element.dataset.run = run;
  element.dataset.hue = run % HUES;
  element.dataset.dash = Math.floor(run / HUES) % 2;
  return element;
}

function svg(name, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

function html(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function short(value) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1e6) return +(value / 1e6).toPrecision(4) + "M";
  if (size >= 1e4) return +(value / 1e3).toPrecision(4) + "k";
  return size < 1e-3 ? value.toExponential(2) : String(+value.toPrecision(4));
}

// An axis: value → 0..1, and the values that are labelled, about `count` of them. A wide one goes on
// to the labels around the values.
function axis(low, high, { logarithmic, count, wide }) {
  if (low === high) [low, high] = logarithmic ? [low / 2, low * 2] : [low - (Math.abs(low) / 20 || 1), high + (Math.abs(high) / 20 || 1)];
  const to = logarithmic ? Math.log10 : (x) => x;
  let ticks = [];
  if (logarithmic && high / low > 10) {
    const decades = Math.log10(high / low), every = Math.ceil(decades / count);
    for (let k = Math.floor(Math.log10(low)); 10 ** k <= high; k += every) for (const m of decades > 2 ? [1] : [1, 2, 5]) ticks.push(m * 10 ** k);
  } else {
    const rough = (high - low) / count, ten = 10 ** Math.floor(Math.log10(rough));
    const by = ten * [1, 2, 5, 10].find((m) => m * ten >= rough * 0.999);
    if (wide && !logarithmic) [low, high] = [Math.floor(low / by + 1e-9) * by, Math.ceil(high / by - 1e-9) * by];
    for (let k = Math.ceil(low / by - 1e-9); k * by <= high + by * 1e-9; k++) ticks.push(+(k * by).toPrecision(12));
  }
  const place = (x) => (to(x) - to(low)) / (to(high) - to(low));
  return { place, ticks: ticks.filter((x) => place(x) > -1e-6 && place(x) < 1 + 1e-6) };
}

// Draw lines of {run, x, y, low, high} into a figure; called again when its width or choice changes.
function chart(figure, spec) {
  figure.querySelectorAll("svg, .tip").forEach((old) => old.remove());
  const lines = spec.lines.filter((line) => !hidden.has(line.run));
  const points = lines.flatMap((line) => line.x.map((x, k) => [x, line.y[k], line.low?.[k], line.high?.[k]]));
  const known = (values) => values.filter((value) => value !== null && value !== undefined);
  const xs = [...new Set(points.filter((p) => p[1] !== null).map((p) => p[0]))].sort((a, b) => a - b);
  const ys = known(points.flatMap((p) => p.slice(1)));
  const width = Math.max(240, figure.clientWidth - 20), height = 230;
  const image = svg("svg", { viewBox: `0 0 ${width} ${height}`, tabindex: 0, role: "img" });
  const summary = `${spec.title}, ${spec.unit || spec.title} over ${spec.over}: ` + lines.map((line) => {
    const last = line.y.length - 1;
    return last < 0 ? "" : `${data.runs[line.run]} ends with ${line.y[last] === null ? "no number" : short(line.y[last])} at ${short(line.x[last])}`;
  }).join("; ");
  image.setAttribute("aria-label", summary);
  figure.append(image);
  if (!ys.length) { image.append(svg("text", { x: 12, y: 30 }, "nothing to show")); return; }
  const [low, high] = [Math.min, Math.max].map((of) => ys.reduce((a, b) => of(a, b)));
  const logx = spec.logx && xs[0] > 0, logy = spec.logy && low > 0;
  const yaxis = axis(spec.zero && !logy ? Math.min(0, low) : low, high, { logarithmic: logy, count: 4, wide: true });
  const left = Math.max(...yaxis.ticks.map((t) => short(t).length), 2) * 7 + 12, right = 14, top = 10, bottom = 40, inset = spec.dots ? 8 : 0;
  const xaxis = axis(logx || spec.dots ? xs[0] : 0, xs[xs.length - 1], { logarithmic: logx, count: Math.max(2, Math.floor((width - left) / 90)) });
  const X = (x) => left + inset + xaxis.place(x) * (width - left - right - 2 * inset);
  const Y = (y) => height - bottom - yaxis.place(y) * (height - top - bottom);
  for (const tick of yaxis.ticks) {
    image.append(svg("line", { class: "rule", x1: left, x2: width - right, y1: Y(tick), y2: Y(tick) }));
    image.append(svg("text", { x: left - 6, y: Y(tick) + 4, "text-anchor": "end" }, short(tick)));
  }
  for (const tick of xaxis.ticks) {
    const half = short(tick).length * 3.5, at = Math.min(Math.max(X(tick), left - 4 + half), width - half - 2);
    image.append(svg("text", { x: at, y: height - bottom + 16, "text-anchor": "middle" }, short(tick)));
  }
  image.append(svg("text", { x: (left + width - right) / 2, y: height - 6, "text-anchor": "middle" }, spec.over));
  for (const line of lines) draw(image, line, X, Y, spec.dots);
  pointed(figure, image, { xs, lines, X, Y, top, bottom: height - bottom, left, width, spec });
}

// One line, broken where there is no number, with its shade from the least to the largest.
function draw(image, line, X, Y, dots) {
  let path = "", pen = "M";
  line.x.forEach((x, k) => {
    if (line.y[k] === null) { pen = "M"; return; }
    path += `${pen}${X(x).toFixed(1)} ${Y(line.y[k]).toFixed(1)}`;
    pen = "L";
  });
  const all = line.x.map((x, k) => k).filter((k) => line.low && line.low[k] !== null && line.high[k] !== null);
  if (all.length > 1) {
    const there = all.map((k) => `${X(line.x[k]).toFixed(1)} ${Y(line.high[k]).toFixed(1)}`);
    const back = all.reverse().map((k) => `${X(line.x[k]).toFixed(1)} ${Y(line.low[k]).toFixed(1)}`);
    image.append(hue(svg("path", { class: "shade", d: `M${there.join("L")}L${back.join("L")}Z` }), line.run));
  }
  image.append(hue(svg("path", { class: "curve", d: path || "M0 0" }), line.run));
  const few = dots || line.x.filter((x, k) => line.y[k] !== null).length === 1;
  if (few) line.x.forEach((x, k) => {
    if (line.y[k] !== null) image.append(hue(svg("circle", { cx: X(x), cy: Y(line.y[k]), r: 4 }), line.run));
  });
}

// Values at a place: by pointer, or by arrow keys when the chart has the focus.
function pointed(figure, image, view) {
  const cursor = svg("line", { class: "cursor", y1: view.top, y2: view.bottom, visibility: "hidden" });
  const marks = svg("g"), tip = html("div", "tip");
  tip.hidden = true;
  image.append(cursor, marks);
  figure.append(tip);
  let at = -1;
  const leave = () => { tip.hidden = true; cursor.setAttribute("visibility", "hidden"); marks.replaceChildren(); };
  const show = (number, aloud) => {
    at = number;
    const x = view.xs[at], place = view.X(x), said = [`${view.spec.at} ${x.toLocaleString("en")}`];
    tip.replaceChildren(html("b", "", said[0]));
    marks.replaceChildren();
    for (const line of view.lines) {
      const near = line.x.reduce((best, other, k) => line.y[k] !== null && (best < 0 || Math.abs(view.X(other) - place) < Math.abs(view.X(line.x[best]) - place)) ? k : best, -1);
      if (near < 0 || Math.abs(view.X(line.x[near]) - place) > 5) continue;
      const value = short(line.y[near]) + (view.spec.percent ? "%" : "");
      const row = html("span"), key = svg("svg", { class: "key", viewBox: "0 0 22 10" });
      key.append(svg("line", { x1: 0, y1: 5, x2: 22, y2: 5 }));
      row.append(hue(key, line.run), `${data.runs[line.run]} ${value}`);
      tip.append(row);
      marks.append(hue(svg("circle", { cx: view.X(line.x[near]), cy: view.Y(line.y[near]), r: 4 }), line.run));
      said.push(`${data.runs[line.run]} ${value}`);
    }
    cursor.setAttribute("x1", place);
    cursor.setAttribute("x2", place);
    cursor.setAttribute("visibility", "visible");
    tip.hidden = false;
    const onLeft = place > view.width / 2;
    tip.style.left = onLeft ? `${view.left + 10}px` : "auto";
    tip.style.right = onLeft ? "auto" : "1.2rem";
    if (aloud) document.getElementById("said").textContent = said.join(", ");
  };
  const nearest = (event) => {
    const box = image.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * view.width;
    return view.xs.reduce((best, other, k) => (Math.abs(view.X(other) - x) < Math.abs(view.X(view.xs[best]) - x) ? k : best), 0);
  };
  image.addEventListener("pointermove", (event) => show(nearest(event)));
  image.addEventListener("pointerdown", (event) => show(nearest(event)));
  image.addEventListener("pointerleave", leave);
  image.addEventListener("blur", leave);
  image.addEventListener("keydown", (event) => {
    const last = view.xs.length - 1, by = event.shiftKey ? 10 : 1;
    const to = { ArrowLeft: at < 0 ? last : at - by, ArrowRight: at + by, Home: 0, End: last }[event.key];
    if (event.key === "Escape") leave();
    if (to === undefined) return;
    event.preventDefault();
    show(Math.min(Math.max(to, 0), last), true);
  });
}

function trainingCharts() {
  const [logx, logy] = ["logx", "logy"].map((id) => document.getElementById(id)?.checked);
  for (const figure of document.querySelectorAll("[data-curve]")) {
    const { curve: key, percent, zero } = figure.dataset, lines = [];
    data.curves.forEach((of, run) => {
      if (of.y[key]) { const [y, low, high] = of.y[key]; lines.push({ run, x: of.x, y, low, high }); }
    });
    const [title, unit] = [...figure.querySelector("figcaption").children].map((part) => part.textContent);
    chart(figure, { title, unit, over: "training step", at: "step", lines, logx, logy, percent: +percent, zero: +zero });
  }
}

function judgedCharts() {
  for (const select of document.querySelectorAll("select.judged")) {
    const name = select.dataset.axis, room = document.querySelector(`[data-judged="${name}"]`);
    const group = data.evaluations[name][select.value];
    const over = name === "steps" ? "training step" : "guidance scale";
    room.replaceChildren(...group.charts.map(() => html("figure", "chart")));
    group.charts.forEach((of, k) => {
      const times = of.percent ? 100 : 1, caption = html("figcaption");
      caption.append(html("b", "", of.title), html("span", "dim", of.percent ? " %" : ""));
      room.children[k].append(caption);
      const lines = of.lines.map((line) => ({ ...line, y: line.y.map((y) => (y === null ? null : y * times)) }));
      chart(room.children[k], { title: of.title, unit: of.percent ? "%" : "", over, at: name === "steps" ? "step" : "guidance", lines, dots: true, percent: of.percent });
    });
  }
}

function drawCharts() {
  trainingCharts();
  judgedCharts();
}

// Grids: a series is what was drawn alike; the slider goes over its steps.
function grids() {
  const select = document.getElementById("series");
  if (!select) return;
  const slider = document.getElementById("step"), room = document.getElementById("grids");
  const chosen = () => document.querySelector("[name=shown]:checked").value;
  function show() {
    const series = data.series[select.value], step = series.steps[slider.value];
    document.getElementById("at").textContent = step.toLocaleString("en");
    slider.setAttribute("aria-valuetext", `step ${step}`);
    document.getElementById("note").textContent = series.note;
    const runs = chosen() === "all" ? data.runs.map((_, run) => run) : [+chosen()];
    const made = [];
    for (const run of runs) {
      const own = series.frames.filter((frame) => frame.run === run);
      const figure = html("figure"), caption = html("figcaption");
      const frame = own.filter((f) => f.step <= step).pop() || own[0];
      if (!frame && runs.length > 1) continue;
      caption.append(html("b", "", data.runs[run]), ` ${frame ? `step ${frame.step.toLocaleString("en")}` : "has none of these"}`);
      figure.append(caption);
      if (frame) {
        const image = html("img", frame.width <= 512 ? "small" : "");
        image.alt = frame.alt;
        image.src = frame.src;
        figure.append(image);
      }
      made.push(figure);
    }
    room.replaceChildren(...made);
  }
  function choose() {
    const { steps, frames } = data.series[select.value];
    const runs = (step) => frames.filter((frame) => frame.step === step).length;
    const most = Math.max(...steps.map(runs)); // begin at the last step that most of the runs have
    slider.max = steps.length - 1;
    slider.value = steps.findLastIndex((step) => runs(step) === most);
    slider.disabled = steps.length < 2;
    show();
  }
  select.addEventListener("change", choose);
  slider.addEventListener("input", show);
  document.getElementById("shown").addEventListener("change", show);
  choose();
}

function theme() {
  const select = document.getElementById("theme");
  const set = (name) => { select.value = name; document.documentElement.dataset.theme = name; };
  try { set(localStorage.getItem("sra2-theme") || ""); } catch { set(""); } // some browsers keep nothing of a file
  select.addEventListener("change", () => {
    set(select.value);
    try { localStorage.setItem("sra2-theme", select.value); } catch { /* for this time alone */ }
  });
}

theme();
for (const button of document.querySelectorAll("button.run")) {
  const run = +button.dataset.run;
  hue(button, run);
  button.addEventListener("click", () => {
    if (!hidden.delete(run)) hidden.add(run);
    button.setAttribute("aria-pressed", !hidden.has(run));
    drawCharts();
  });
}
for (const id of ["logx", "logy"]) document.getElementById(id)?.addEventListener("change", trainingCharts);
for (const select of document.querySelectorAll("select.judged")) select.addEventListener("change", judgedCharts);
grids();
drawCharts();
let width = document.body.clientWidth;
addEventListener("resize", () => {
  if (document.body.clientWidth !== width) { width = document.body.clientWidth; drawCharts(); }
});
