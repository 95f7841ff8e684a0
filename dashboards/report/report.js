// Draws the report's curves, scores and samples from the numbers in #data. Texts of runs and solutions are
// untrusted: the page takes them as textContent, and plots take them through `plain`, since
// Plotly reads a few tags.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const shown = data.points.map(() => true);
let smooth = data.points.length > 3; // many noisy lines hide one another

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");
const DASHES = ["solid", "dash", "dot", "dashdot"];
const CONFIG = { displayModeBar: false, responsive: true };
const COARSE = matchMedia("(pointer: coarse)").matches;

function theme() {
  const style = getComputedStyle(document.documentElement);
  const read = (name) => style.getPropertyValue(`--${name}`).trim();
  const names = [
    "ink",
    "soft",
    "line",
    "grid",
    "card",
    "right",
    "wrong",
    "trunk",
    "accent",
    "heat-low",
    "heat-high",
  ];
  return {
    ...Object.fromEntries(names.map((name) => [name, read(name)])),
    series: read("series").split(" "),
  };
}

const seriesColour = (colours, number) => colours.series[number % colours.series.length];
const seriesDash = (colours, number) => DASHES[Math.floor(number / colours.series.length) % DASHES.length];

function translucent(colour, share) {
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return `rgba(${red},${green},${blue},${share})`;
}

function between(low, high, share) {
  const parts = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const [from, to] = [parts(low), parts(high)];
  return `rgb(${from.map((value, at) => Math.round(value + (to[at] - value) * share)).join(",")})`;
}

function axis(colours, more = {}) {
  return {
    gridcolor: colours.grid,
    zeroline: false,
    linecolor: colours.line,
    tickcolor: colours.line,
    automargin: true,
    ticks: "outside",
    ticklen: 3,
    tickfont: { size: 11, color: colours.soft },
    title: { font: { size: 11, color: colours.soft }, standoff: 6 },
    nticks: 6,
    exponentformat: "e",
    ...more,
  };
}

const titled = (colours, text) => ({ text, font: { size: 11, color: colours.soft }, standoff: 6 });

function layout(colours, more = {}) {
  return {
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 46, r: 10, t: 8, b: 24 },
    showlegend: false,
    font: {
      family: 'system-ui, -apple-system, "Segoe UI", Roboto, sans-serif',
      size: 11,
      color: colours.ink,
    },
    hoverlabel: {
      bgcolor: colours.card,
      bordercolor: colours.line,
      font: { size: 12, color: colours.ink },
      namelength: -1,
    },
    dragmode: COARSE ? false : "zoom",
    hovermode: "closest",
    xaxis: axis(colours),
    yaxis: axis(colours),
    ...more,
  };
}

// Curves ------------------------------------------------------------------------------------------

// A debiased exponential mean over earlier values only: a trial's curve begins where that of its trunk ends.
function smoothed(values, keep) {
  let mean = 0;
  let weight = 0;
  return values.map((value) => {
    mean = keep * mean + (1 - keep) * value;
    weight = keep * weight + (1 - keep);
    return mean / weight;
  });
}

function bandOf(curve) {
  return {
    steps: curve.steps,
    mean: curve.mean,
    low: curve.low || curve.mean,
    high: curve.high || curve.mean,
  };
}

// A point's curve from the branch on. It begins at the trunk's last value, so that the two are one line.
function joined(trunk, own) {
  const before = trunk ? bandOf(trunk) : { steps: [], mean: [], low: [], high: [] };
  const after = own ? bandOf(own) : { steps: [], mean: [], low: [], high: [] };
  const whole = Object.fromEntries(Object.keys(before).map((key) => [key, [...before[key], ...after[key]]]));
  return { whole, from: after.steps.length ? Math.max(before.steps.length - 1, 0) : before.steps.length };
}

// `keep` is the weight of earlier values in smoothing; 0 is no smoothing.
function curveTraces(curve, from, colour, dash, width, name, markers, keep) {
  const values = Object.fromEntries(
    ["mean", "low", "high"].map((key) => [key, smoothed(curve[key], keep).slice(from)]),
  );
  const steps = curve.steps.slice(from);
  const traces = [];
  if (steps.length > 1 && values.low.some((low, at) => low !== values.high[at])) {
    traces.push({
      x: [...steps, ...[...steps].reverse()],
      y: [...values.high, ...[...values.low].reverse()],
      fill: "toself",
      mode: "lines",
      fillcolor: translucent(colour, Math.max(0.04, Math.min(0.14, 1 / shown.filter(Boolean).length))),
      line: { width: 0 },
      hoverinfo: "skip",
    });
  }
  const spread = values.low.map((low, at) =>
    low === values.high[at] ? "" : `<br>${low.toPrecision(4)} to ${values.high[at].toPrecision(4)}`,
  );
  traces.push({
    x: steps,
    y: values.mean,
    mode: (markers && steps.length < 40) || steps.length === 1 ? "lines+markers" : "lines",
    line: { color: colour, width, dash },
    marker: { size: 5, color: colour },
    customdata: spread,
    hovertemplate: `<b>${plain(name)}</b><br>step %{x}: %{y:.4g}%{customdata}<extra></extra>`,
  });
  return traces;
}

function drawChart(element, chart, colours) {
  const training = chart.source === "training";
  const traces = [];
  const branches = new Set();
  const curves = data.points.map((point, number) => {
    const trunk = point.trunk === null ? null : data.trunks[point.trunk][chart.source][chart.metric];
    return joined(trunk, data[chart.source][number][chart.metric]);
  });
  // All curves are smoothed alike, over about a twentieth of the longest one's steps.
  const keep =
    training && smooth
      ? 1 - 1 / Math.max(3, Math.max(0, ...curves.map(({ whole }) => whole.steps.length)) / 20)
      : 0;
  for (const [number, trunk] of data.trunks.entries()) {
    const curve = trunk[chart.source][chart.metric];
    if (!curve || trunk.part || !data.points.some((point, at) => point.trunk === number && shown[at]))
      continue;
    traces.push(
      ...curveTraces(bandOf(curve), 0, colours.trunk, "solid", 1.75, `trunk ${trunk.name}`, !training, keep),
    );
  }
  const order = [...data.points.keys()].sort((a, b) => data.points[a].best - data.points[b].best);
  for (const number of order) {
    const point = data.points[number];
    if (!shown[number]) continue;
    const { whole, from } = curves[number];
    if (from >= whole.steps.length) continue;
    point.branches.forEach((step) => branches.add(step));
    traces.push(
      ...curveTraces(
        whole,
        from,
        seriesColour(colours, number),
        seriesDash(colours, number),
        point.best ? 2.75 : 1.5,
        point.label,
        !training,
        keep,
      ),
    );
  }
  // For a constant, Plotly's own axis is from -1 to 1, where 0.01 looks like 0.
  const values = traces.flatMap((trace) => trace.y);
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const constant =
    high - low <= 1e-9 * Math.abs(high)
      ? { range: low ? [low - Math.abs(low) / 2, low + Math.abs(low) / 2] : [-0.5, 1] }
      : {};
  const shapes = [...branches].map((step) => ({
    type: "line",
    x0: step,
    x1: step,
    y0: 0,
    y1: 1,
    yref: "paper",
    line: { color: colours.soft, width: 1, dash: "dot" },
    layer: "below",
  }));
  Plotly.react(
    element,
    traces,
    layout(colours, {
      shapes,
      xaxis: axis(colours, { rangemode: "tozero" }),
      yaxis: axis(colours, constant),
    }),
    CONFIG,
  );
}

function drawParts(element, colours) {
  const visible = data.parts.filter((part) =>
    data.points.every((point, at) => point.label !== part.label || shown[at]),
  );
  const names = Object.keys(data.parts[0].mean);
  const legend = {
    orientation: "h",
    x: 0,
    y: 1.02,
    yanchor: "bottom",
    font: { size: 11, color: colours.soft },
    traceorder: "normal",
    itemwidth: 30,
    entrywidth: 88,
  };
  const single = data.parts.length === 1 && data.parts[0].curves;
  const traces = names.map((name, number) => {
    const colour = seriesColour(colours, [0, 4, 2, 3][number]);
    if (single) {
      const { steps, mean } = data.parts[0].curves[name];
      return {
        x: steps,
        y: mean,
        name,
        stackgroup: "parts",
        mode: "lines",
        line: { width: 0.5, color: colour },
        fillcolor: translucent(colour, 0.65),
        hovertemplate: `${name}<br>step %{x}: %{y:.3g} s<extra></extra>`,
      };
    }
    return {
      y: visible.map((_, at) => at),
      x: visible.map((part) => part.mean[name]),
      name,
      type: "bar",
      orientation: "h",
      marker: { color: colour },
      customdata: visible.map((part) => plain(part.label)),
      hovertemplate: `%{customdata}<br>${name}: %{x:.3g} s<extra></extra>`,
    };
  });
  const ticks = {
    tickvals: visible.map((_, at) => at),
    ticktext: visible.map((part) =>
      plain(part.label.length > 24 ? part.label.slice(0, 23) + "…" : part.label),
    ),
  };
  const bars = {
    barmode: "stack",
    bargap: 0.25,
    yaxis: axis(colours, { ...ticks, autorange: "reversed", showgrid: false, ticks: "" }),
    xaxis: axis(colours, { title: titled(colours, "seconds") }),
  };
  element.style.height = single ? "" : `${100 + 20 * visible.length}px`;
  Plotly.react(
    element,
    traces,
    layout(colours, {
      showlegend: true,
      legend,
      margin: { l: 46, r: 10, t: 44, b: single ? 24 : 40 },
      ...(single ? {} : bars),
    }),
    CONFIG,
  );
}

function makeLegend() {
  const legend = document.querySelector(".legend");
  if (!legend || data.points.length < 2) return;
  data.points.forEach((point, number) => {
    const button = document.createElement("button");
    button.type = "button";
    button.dataset.point = number;
    button.append(swatch(number), point.label + (point.best ? " ★" : ""));
    button.onclick = () => {
      shown[number] = !shown[number];
      refresh();
    };
    legend.append(button);
  });
  const extras = [["all", () => true]];
  if (data.points.some((point) => point.best) && data.points.length > 2)
    extras.push(["best only", (point) => point.best]);
  for (const [text, wanted] of extras) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.onclick = () => {
      data.points.forEach((point, at) => {
        shown[at] = wanted(point);
      });
      refresh();
    };
    document.querySelector("#curves .bar .spacer").before(button);
  }
  const refresh = () => {
    all("button[data-point]", legend).forEach((button) =>
      button.setAttribute("aria-pressed", shown[button.dataset.point]),
    );
    draw("#curves");
  };
  refresh();
}

// A short line in a point's colour and dash, as in the plots.
function swatch(number) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
  const dash = { solid: "", dash: "6 3", dot: "2 2", dashdot: "6 2 2 2" }[seriesDash(theme(), number)];
  for (const [name, value] of Object.entries({ width: 20, height: 8, "aria-hidden": "true" }))
    svg.setAttribute(name, value);
  for (const [name, value] of Object.entries({
    x1: 0,
    x2: 20,
    y1: 4,
    y2: 4,
    "stroke-width": 3,
    "stroke-dasharray": dash,
  }))
    line.setAttribute(name, value);
  line.dataset.series = number;
  svg.append(line);
  return svg;
}

// Plots over ranges of values, and over more than two settings -----------------------------------

const numeric = (values) => values.every((value) => typeof value === "number");
const wide = (values) =>
  values.length > 4 && Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) >= 30;

const pointText = (sweep, point) =>
  plain(point.texts.map((text, at) => `${sweep.keys[at].name} ${text}`).join(", "));

function drawScatter(element, sweep, figure, colours) {
  const [first, second] = sweep.axes;
  const points = sweep.points.filter((point) => point.figures[figure] !== null);
  const values = points.map((point) => point.figures[figure]);
  const scale = (key) => ({
    title: titled(colours, plain(sweep.keys[key].name)),
    type: numeric(sweep.keys[key].values) && wide(sweep.keys[key].values) ? "log" : "-",
    ...(numeric(sweep.keys[key].values) && wide(sweep.keys[key].values) ? { dtick: "D2" } : {}),
  });
  const two = second !== undefined;
  const traces = [
    {
      x: points.map((point) => point.values[first]),
      y: two ? points.map((point) => point.values[second]) : values,
      mode: "markers",
      text: points.map((point) => pointText(sweep, point)),
      customdata: values,
      hovertemplate: "%{text}<br>%{customdata:.4f}<extra></extra>",
      marker: {
        size: 13,
        color: values,
        colorscale: [
          [0, colours["heat-low"]],
          [1, two ? colours.accent : colours["heat-high"]],
        ],
        showscale: two,
        line: { width: 1, color: colours.soft },
        colorbar: { thickness: 10, outlinewidth: 0, tickfont: { size: 11, color: colours.soft } },
      },
    },
  ];
  Plotly.react(
    element,
    traces,
    layout(colours, { xaxis: axis(colours, scale(first)), yaxis: axis(colours, two ? scale(second) : {}) }),
    CONFIG,
  );
}

function drawParallel(element, sweep, colours) {
  const keys = [...sweep.keys.map((key) => ({ ...key })), { name: "objective" }];
  const points = sweep.points
    .filter((point) => point.figures.objective !== null)
    .sort((a, b) => a.figures.objective - b.figures.objective);
  const found = points.map((point) => point.figures.objective);
  const [low, high] = [Math.min(...found), Math.max(...found)];
  const share = (value, from, to) => (to > from ? (value - from) / (to - from) : 0.5);
  const height = (key, point) => {
    const values = sweep.keys[key].values;
    if (values.length > 12 && numeric(values))
      return share(point.values[key], values[0], values[values.length - 1]);
    return share(sweep.keys[key].texts.indexOf(point.texts[key]), 0, values.length - 1);
  };
  const traces = points.map((point) => ({
    x: keys.map((_, at) => at),
    y: [...sweep.keys.map((_, key) => height(key, point)), share(point.figures.objective, low, high)],
    mode: "lines+markers",
    line: {
      width: 2,
      color: between(colours.grid, colours.accent, 0.15 + 0.85 * share(point.figures.objective, low, high)),
    },
    marker: { size: 5 },
    customdata: keys.map(() => point.figures.objective),
    hovertemplate: `${pointText(sweep, point)}<br>objective %{customdata:.4f}<extra></extra>`,
  }));
  const label = (x, y, text) => ({
    x,
    y,
    text: plain(text),
    showarrow: false,
    xanchor: "left",
    xshift: 7,
    font: { size: 11, color: colours.ink },
    bgcolor: translucent(colours.card, 0.8),
  });
  const annotations = sweep.keys.flatMap((key, at) =>
    key.values.length > 12 && numeric(key.values)
      ? [label(at, 0, key.texts[0]), label(at, 1, key.texts[key.texts.length - 1])]
      : key.texts.map((text, value) => label(at, share(value, 0, key.texts.length - 1), text)),
  );
  if (points.length)
    annotations.push(label(keys.length - 1, 0, low.toFixed(3)), label(keys.length - 1, 1, high.toFixed(3)));
  const shapes = keys.map((_, at) => ({
    type: "line",
    x0: at,
    x1: at,
    y0: 0,
    y1: 1,
    line: { color: colours.soft, width: 1 },
    layer: "below",
  }));
  Plotly.react(
    element,
    traces,
    layout(colours, {
      annotations,
      shapes,
      yaxis: { visible: false, range: [-0.06, 1.06] },
      margin: { l: 20, r: 20, t: 12, b: 34 },
      xaxis: axis(colours, {
        tickvals: keys.map((_, at) => at),
        ticktext: keys.map((key) => plain(key.name)),
        range: [-0.2, keys.length - 0.6],
        showgrid: false,
        ticks: "",
        linecolor: "rgba(0,0,0,0)",
      }),
    }),
    CONFIG,
  );
}

// Scores ------------------------------------------------------------------------------------------

const selected = () => data.scores[data.selected];
const fixed = (value, digits = 3) => (value === null ? "–" : value.toFixed(digits));

function showFacts() {
  const entry = selected();
  const facts = [
    ["evaluation", `${entry.set}, step ${entry.step}`],
    ["solutions", entry.samples],
    ["right", entry.right],
    ["wrong", entry.wrong],
    ["unfinished", entry.unfinished],
    ["calibration error (ECE)", fixed(entry.ece)],
  ];
  if (entry.unverified) facts.push(["not verified", entry.unverified]);
  if (entry.outside)
    facts.push([
      `beyond ${entry.edges[0]} to ${entry.edges[entry.edges.length - 1]}, in the outermost bars`,
      entry.outside,
    ]);
  const scored = entry.right + entry.wrong > 0;
  const element = document.getElementById("facts");
  element.replaceChildren(
    ...(scored ? facts : facts.slice(0, 2)).map(([name, value]) => {
      const item = document.createElement("span");
      const number = document.createElement("b");
      number.textContent = value;
      item.append(`${name} `, number);
      return item;
    }),
  );
  if (!scored)
    element.append(
      "No solution has a score: this run trains without self-reward (plain GRPO), or none finished.",
    );
  document.getElementById("score-plots").hidden = !scored;
  return scored;
}

function drawHistogram(element, colours) {
  const { edges, histogram, right, wrong } = selected();
  const centres = edges.slice(1).map((edge, at) => (edge + edges[at]) / 2);
  const trace = (counts, total, name, colour) => ({
    x: centres,
    y: counts.map((count) => (total ? count / total : 0)),
    customdata: counts,
    type: "bar",
    name: `${name} (${total})`,
    width: edges[1] - edges[0],
    marker: { color: translucent(colour, 0.6), line: { width: 0 } },
    hovertemplate: `${name}, score about %{x:.2f}<br>%{customdata} of ${total}<extra></extra>`,
  });
  Plotly.react(
    element,
    [
      trace(histogram.right, right, "right", colours.right),
      trace(histogram.wrong, wrong, "wrong", colours.wrong),
    ],
    layout(colours, {
      barmode: "overlay",
      showlegend: true,
      legend: { orientation: "h", x: 0, y: 1.02, yanchor: "bottom", font: { size: 12, color: colours.ink } },
      margin: { l: 50, r: 12, t: 30, b: 40 },
      xaxis: axis(colours, {
        title: titled(colours, "score"),
        range: [edges[0], edges[edges.length - 1]],
        nticks: 9,
      }),
      yaxis: axis(colours, { title: titled(colours, "share of its class"), tickformat: ".0%" }),
      shapes: [
        {
          type: "line",
          x0: 0.5,
          x1: 0.5,
          y0: 0,
          y1: 1,
          yref: "paper",
          line: { color: colours.ink, width: 1, dash: "dash" },
        },
      ],
      annotations: [
        {
          x: 0.5,
          y: 1,
          yref: "paper",
          xanchor: "left",
          yanchor: "top",
          xshift: 3,
          text: "threshold 0.5",
          showarrow: false,
          bgcolor: translucent(colours.card, 0.75),
          font: { size: 11, color: colours.soft },
        },
      ],
    }),
    CONFIG,
  );
}

function drawReliability(element, colours) {
  const bins = selected().bins.filter((bin) => bin.count);
  const largest = Math.max(...bins.map((bin) => bin.count), 1);
  const diagonal = {
    x: [0, 1],
    y: [0, 1],
    mode: "lines",
    line: { color: colours.soft, width: 1, dash: "dot" },
    hoverinfo: "skip",
  };
  const discs = {
    x: bins.map((bin) => bin.score),
    y: bins.map((bin) => bin.correct),
    mode: "lines+markers+text",
    line: { color: colours.accent, width: 1.5 },
    cliponaxis: false,
    marker: {
      size: bins.map((bin) => 7 + 19 * Math.sqrt(bin.count / largest)),
      color: translucent(colours.right, 0.55),
      line: { width: 1, color: colours.right },
    },
    text: bins.map((bin) => String(bin.count)),
    textposition: bins.map((bin) => (bin.correct > 0.85 ? "bottom center" : "top center")),
    textfont: { size: 11, color: colours.soft },
    customdata: bins.map((bin) => [bin.low, bin.high, bin.count]),
    hovertemplate:
      "scores %{customdata[0]:.1f} to %{customdata[1]:.1f}<br>mean score %{x:.3f}<br>right %{y:.3f}<br>" +
      "%{customdata[2]} solutions<extra></extra>",
  };
  Plotly.react(
    element,
    [diagonal, discs],
    layout(colours, {
      xaxis: axis(colours, { title: titled(colours, "mean score"), range: [-0.04, 1.04] }),
      yaxis: axis(colours, { title: titled(colours, "share right"), range: [-0.06, 1.06] }),
      margin: { l: 50, r: 12, t: 10, b: 40 },
      annotations: [
        {
          x: 0.02,
          y: 0.98,
          xref: "paper",
          yref: "paper",
          xanchor: "left",
          yanchor: "top",
          showarrow: false,
          text: `ECE ${fixed(selected().ece)}`,
          font: { size: 13, color: colours.ink },
        },
      ],
    }),
    CONFIG,
  );
}

// Samples -----------------------------------------------------------------------------------------

const UNVERIFIED = ["timeout", "memory", "error"];
const FILTERS = {
  all: () => true,
  high: (row) => row.score > 0.5 && row.off !== null && row.status !== "correct",
  low: (row) => row.score !== null && row.score <= 0.5 && row.off !== null && row.status === "correct",
  unfinished: (row) => !row.finished,
};
let filter = "all";

function sampleRow(row) {
  const line = document.createElement("tr");
  const cell = (label, content, kind, value) => {
    const element = document.createElement("td");
    element.className = kind;
    element.dataset.label = label;
    if (value !== undefined) element.dataset.value = value;
    element.append(content);
    line.append(element);
  };
  const text = (content) => {
    const block = document.createElement("pre");
    block.textContent = content;
    if (content.length < 330 && content.split("\n").length < 7) return block;
    const part = document.createElement("div");
    const more = document.createElement("button");
    block.className = "folded";
    more.type = "button";
    more.className = "more";
    more.textContent = "show all";
    more.onclick = () => {
      more.textContent = block.classList.toggle("folded") ? "show all" : "show less";
    };
    part.append(block, more);
    return part;
  };
  const number = (label, value) => cell(label, fixed(value), "number", value === null ? "" : value);
  const mark = row.status === "correct" ? "✓ " : UNVERIFIED.includes(row.status) ? "? " : "✗ ";
  const kind = row.status === "correct" ? "correct" : UNVERIFIED.includes(row.status) ? "none" : "wrong";
  cell("problem", text(row.problem), "problem");
  cell("solution", text(row.solution), "solution");
  cell("reference", text(row.reference), "");
  cell("answer", text(row.answer === null ? "–" : row.answer), "");
  const verdict = document.createElement("div");
  const why = document.createElement("small");
  why.textContent = row.detail;
  verdict.append(mark + row.status.replace("_", " ") + (row.finished ? "" : ", unfinished"), why);
  cell("verdict", verdict, kind);
  number("score", row.score);
  number("off by", row.off);
  return line;
}

// At first the table shows so many rows. The style sheet hides the others, by the same number.
const FEW = 30;
function fold(few) {
  const table = document.querySelector("#samples table");
  const more = document.getElementById("more-samples");
  const count = table.tBodies[0].rows.length;
  table.classList.toggle("few", few);
  more.hidden = count <= FEW;
  more.textContent = few ? `show all ${count}` : `show the first ${FEW} only`;
  more.onclick = () => fold(!few);
}

function showSamples() {
  const rows = data.samples[selected().run];
  const table = document.querySelector("#samples table");
  const found = (rows || []).filter(FILTERS[filter]);
  table.tBodies[0].replaceChildren(...found.map(sampleRow));
  document.querySelector("#samples .scroll").hidden = !found.length;
  fold(true);
  all("#samples [data-filter]").forEach((button) => {
    const count = (rows || []).filter(FILTERS[button.dataset.filter]).length;
    button.setAttribute("aria-pressed", button.dataset.filter === filter);
    button.textContent = `${button.textContent.replace(/ \(\d+\)$/, "")} (${count})`;
  });
  const total = selected().samples;
  document.getElementById("samples-note").textContent = !rows
    ? "This page holds the solutions of the best runs only, to stay small; those of this run are not in it."
    : rows.length < total
      ? `${found.length} of ${rows.length} solutions, chosen from ${total}: ` +
        "the most confident mistakes of both kinds, and others spread over all scores."
      : `${found.length} of ${total} solutions.`;
  all("#samples th").forEach((head) => head.setAttribute("aria-sort", "none"));
  const off = all("#samples th").at(-1);
  if (rows && rows.some((row) => row.off !== null)) off.setAttribute("aria-sort", "descending");
}

// Tables ------------------------------------------------------------------------------------------

// Orders numbers in texts by size: `alpha=0.05` before `alpha=0.1`, `run-2` before `run-10`.
function naturally(a, b) {
  const parts = (text) => text.split(/(\d+(?:\.\d+)?(?:e-?\d+)?)/);
  const [left, right] = [parts(a), parts(b)];
  for (let at = 0; at < Math.min(left.length, right.length); at += 1) {
    const order = at % 2 ? Number(left[at]) - Number(right[at]) : left[at].localeCompare(right[at]);
    if (order) return order;
  }
  return left.length - right.length;
}

function sortBy(head) {
  const table = head.closest("table");
  const column = [...head.parentNode.children].indexOf(head);
  const value = (row) => {
    const cell = row.children[column];
    return "value" in cell.dataset ? cell.dataset.value : cell.textContent.trim();
  };
  const rows = [...table.tBodies[0].rows];
  const isNumber = (text) => text !== "" && !Number.isNaN(Number(text));
  const number =
    head.classList.contains("number") ||
    rows.every((row) => isNumber(value(row)) || ["–", ""].includes(value(row)));
  const was = head.getAttribute("aria-sort");
  // The first click shows the highest figures first, or words from A to Z.
  const down = was === "none" ? head.classList.contains("number") : was === "ascending";
  const compare = (a, b) => (number ? Number(a) - Number(b) : naturally(a, b));
  const missing = (text) => text === "–" || text === "";
  rows.sort((a, b) => {
    const [left, right] = [value(a), value(b)];
    if (missing(left) || missing(right)) return missing(left) - missing(right);
    return down ? compare(right, left) : compare(left, right);
  });
  table.tBodies[0].append(...rows);
  [...head.parentNode.children].forEach((other) => other.setAttribute("aria-sort", "none"));
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
}

// The page ----------------------------------------------------------------------------------------

function draw(within = "body") {
  const colours = theme();
  const root = document.querySelector(within);
  if (!root) return;
  const charts = Object.fromEntries(data.charts.map((chart) => [chart.id, chart]));
  all("line[data-series]", root).forEach((line) =>
    line.setAttribute("stroke", seriesColour(colours, line.dataset.series)),
  );
  all("[data-chart]", root).forEach((element) => drawChart(element, charts[element.dataset.chart], colours));
  all("[data-parts]", root).forEach((element) => drawParts(element, colours));
  all("[data-scatter]", root).forEach((element) =>
    drawScatter(element, data.sweeps[element.dataset.scatter], element.dataset.figure, colours),
  );
  all("[data-parallel]", root).forEach((element) =>
    drawParallel(element, data.sweeps[element.dataset.parallel], colours),
  );
  if (data.scores.length && within !== "#curves" && showFacts()) {
    drawHistogram(document.getElementById("histogram"), colours);
    drawReliability(document.getElementById("reliability"), colours);
  }
}

if (data.points.length > 1)
  all(".runs th[data-point]").forEach((head) => head.prepend(swatch(Number(head.dataset.point)), " "));
all(".sortable thead th").forEach((head) => {
  head.firstChild.onclick = () => sortBy(head);
});
all("[data-smooth]").forEach((button) => {
  button.setAttribute("aria-pressed", smooth === (button.dataset.smooth === "1"));
  button.onclick = () => {
    smooth = button.dataset.smooth === "1";
    all("[data-smooth]").forEach((other) => other.setAttribute("aria-pressed", other === button));
    draw("#curves");
  };
});
all("[data-filter]").forEach((button) => {
  button.onclick = () => {
    filter = button.dataset.filter;
    showSamples();
  };
});
all("[data-run]").forEach((select) => {
  select.onchange = () => {
    data.selected = Number(select.value);
    all("[data-run]").forEach((other) => {
      other.value = select.value;
    });
    draw("#scores");
    showSamples();
  };
});
makeLegend();
if (data.scores.length) showSamples();
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
addEventListener("beforeprint", () => {
  document.documentElement.classList.add("printing");
  draw();
});
addEventListener("afterprint", () => {
  document.documentElement.classList.remove("printing");
  draw();
});
document.documentElement.dataset.drawn = all(".js-plotly-plot").length;
