// Elements made from data. Text of the data is only ever text: `textContent`, never markup.

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function svgElement(name, attributes = {}, text = "") {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.textContent = text;
  return made;
}

function chip(color) {
  const made = element("i", { class: "chip" });
  made.style.setProperty("--color", color);
  return made;
}

function number(value, digits = 2) {
  if (Number.isNaN(value)) return "–";
  const text = value.toFixed(digits);
  return Number(text) === 0 ? text.replace("-", "") : text.replace("-", "−");
}

function signed(value, digits = 2) {
  return (Number(value.toFixed(digits)) > 0 ? "+" : "") + number(value, digits);
}

// White space as signs, so that it can be seen where a token stands alone.
function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "↵").replace(/\t/g, "⇥").replace(/\r/g, "␍");
}

// A rule for each colour: mixes with the paper, so that ink stays legible in light and dark.
function addColors() {
  const light = ["#77AADD", "#EE8866", "#EEDD88", "#FFAABB", "#99DDFF", "#44BB99", "#BBCC33", "#AAAA00"];
  const mixed = (color, share) => `color-mix(in oklab, ${color} ${share}%, transparent)`;
  const rules = [];
  for (let i = 0; i <= LEVELS; i++) {
    const share = Math.round((58 * i) / LEVELS);
    for (const [name, color] of [["loss", "loss"], ["a", "a-tint"], ["b", "b-tint"]]) {
      rules.push(`.${name}${i} { background: ${mixed(`var(--${color})`, share)}; }`);
    }
  }
  light.forEach((color, i) => {
    rules.push(`.expert${i} { background: light-dark(${mixed(color, 72)}, ${mixed(color, 38)}); }`);
  });
  rules.push(`.expert${EXPERT_COLORS} { background: ${mixed("var(--faint)", 30)}; }`);
  document.head.append(element("style", {}, rules.join("\n")));
}

function drawLegend(study, state, seen) {
  const scale = element("div", { class: "scale" });
  const ends = (...texts) => {
    const row = element("div", { class: "ends" });
    row.append(...texts.map((text) => element("span", {}, ...[text].flat())));
    return row;
  };
  const name = (side) => element("b", {}, side.label);
  if (!seen.observed) return [element("p", { class: "problem" }, "Not observed at this step.")];
  if (state.view === "expert") return expertLegend(study, state, seen);
  if (state.view === "loss") {
    for (let i = 0; i <= LEVELS; i++) scale.append(element("i", { class: `loss${i}` }));
    const n = state.a.runs.length;
    const of = n > 1 ? ["loss of ", name(state.a), `, mean of ${n} runs (nat)`]
      : ["loss of ", name(state.a), " (nat)"];
    return [scale, ends("0", of, `${study.lossScale} or more`)];
  }
  for (let i = LEVELS; i > 0; i--) scale.append(element("i", { class: `a${i}` }));
  for (let i = 0; i <= LEVELS; i++) scale.append(element("i", { class: `b${i}` }));
  const limit = DIFFERENCE_SCALE[seen.measure];
  const unit = seen.measure === "t" ? "standard errors" : "nat";
  const row = ends(["← ", name(state.a), " better"], `0 … ${limit} ${unit} or more`,
    [name(state.b), " better →"]);
  return [scale, row, element("div", {}, noiseSentence(study, state, seen))];
}

function noiseSentence(study, state, { found }) {
  if (found.hasNoise) {
    const share = found.beyond.reduce((sum, is) => sum + is, 0) / found.beyond.length;
    const sizes = [found.first.n, found.second.n].sort((x, y) => x - y);
    const chance = study.chance[sizes];
    return `${(100 * share).toFixed(1)}% of tokens here are beyond noise of seeds, and underlined or ` +
      `overlined; chance gives ${chance === undefined ? "up to 5" : (100 * chance).toFixed(1)}%.`;
  }
  const single = [state.a, state.b].filter((side) => side.runs.length < 2);
  return `Noise of seeds is not known: ${single.map((side) => side.label).join(" and ")} ` +
    `${single.length > 1 ? "are single runs" : "is a single run"}.`;
}

function expertLegend(study, state, { load, rank }) {
  const total = [...load.values()].reduce((sum, n) => sum + n, 0);
  const most = [...load].sort((x, y) => (study.nExperts > 16 ? y[1] - x[1] : x[0] - y[0]));
  const buttons = element("div", { class: "experts" });
  for (const [expert, n] of most) {
    const color = `expert${rank.get(expert) ?? EXPERT_COLORS}`;
    const share = ((100 * n) / total).toFixed(0);
    buttons.append(element("button", {
      type: "button", class: color, "data-expert": expert,
      "aria-pressed": state.expert === expert, title: `show expert ${expert} alone`,
    }, `${expert} · ${share}%`));
  }
  return [buttons, element("div", {}, "Expert and its share of this document. Press one to see it alone.")];
}

// Losses of all runs on one token over training, on the axis log(1 + step).
const PLOT = { width: 318, height: 190, left: 26, right: 8, top: 20, bottom: 18 };

function plotX(study, step) {
  const last = Math.log1p(study.steps.at(-1)) || 1;
  const width = PLOT.width - PLOT.left - PLOT.right;
  return PLOT.left + (Math.log1p(step) / last) * width;
}

function drawCurves(study, shown, token) {
  const { width, height, left, right, top, bottom } = PLOT;
  const svg = svgElement("svg", {
    viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": "loss of all runs on this token over training",
  });
  const losses = study.runs.map((_, run) => study.steps.map((_, step) => lossOf(study, shown, run, step, token)));
  const order = study.orders.length - 1;
  const surprisal = order >= 0 ? surprisalOf(study, shown, order, token) : NaN;
  const largest = Math.max(1, ...losses.flat().filter((x) => x >= 0), surprisal || 0);
  const tick = [1, 2, 5, 10, 20, 50].find((size) => largest / size <= 5) ?? 100;
  const limit = Math.ceil(largest / tick) * tick;
  const y = (value) => height - bottom - (value / limit) * (height - top - bottom);
  for (let value = 0; value <= limit; value += tick) {
    svg.append(svgElement("line", { class: "axis", x1: left, x2: width - right, y1: y(value), y2: y(value) }));
    svg.append(svgElement("text", { x: left - 6, y: y(value) + 3.5, "text-anchor": "end" }, value));
  }
  for (let step = 0; step <= study.steps.at(-1); step = step * 10 || 1) {
    svg.append(svgElement("text", { x: plotX(study, step), y: height - 4, "text-anchor": "middle" }, step.toLocaleString("en")));
  }
  svg.append(svgElement("text", { x: width - right, y: height - 4, "text-anchor": "end" }, "step"));
  svg.append(svgElement("text", { x: 0, y: 9 }, "loss (nat)"));
  if (surprisal >= 0) {
    svg.append(svgElement("line", { class: "ngram", x1: left, x2: width - right, y1: y(surprisal), y2: y(surprisal) }));
    svg.append(svgElement("text", { x: left + 3, y: y(surprisal) - 3 }, `${study.orders[order]}-gram`));
  }
  losses.forEach((curve, run) => svg.append(curvePath(study, curve, run, y)));
  svg.append(svgElement("line", { class: "now", y1: top, y2: height - bottom }));
  return svg;
}

function curvePath(study, curve, run, y) {
  let [line, pen] = ["", "M"];
  curve.forEach((value, step) => {
    if (Number.isNaN(value)) return (pen = "M");
    line += `${pen}${plotX(study, study.steps[step]).toFixed(1)},${y(value).toFixed(1)}`;
    pen = "L";
  });
  const path = svgElement("path", { d: line, "data-run": run });
  path.style.stroke = study.runs[run].color;
  return path;
}

// Losses of all runs on one token at one step, by arm.
function drawLosses(study, shown, token, step) {
  const rows = study.arms.map((arm) => {
    const losses = arm.runs.map((run) => lossOf(study, shown, run, step, token));
    const known = losses.filter((loss) => !Number.isNaN(loss));
    const mean = known.reduce((sum, loss) => sum + loss, 0) / known.length;
    return element("tr", {},
      element("td", {}, chip(arm.color), arm.label),
      element("td", {}, number(mean)),
      element("td", { class: "runs" }, known.length > 1 ? losses.map((x) => number(x)).join(" ") : ""));
  });
  return table(["loss (nat)", "mean", "runs"], rows);
}

function drawExperts(study, shown, token, step) {
  const arms = study.arms.filter((arm) => study.routed.includes(arm.runs[0]));
  const rows = study.layers.map((label, layer) => {
    const cells = arms.map((arm) => arm.runs.map((run) => {
      const chosen = study.routed.includes(run) && expertsOf(study, shown, run, step, layer, token);
      return chosen ? chosen.join(",") : "–";
    }));
    return element("tr", {}, element("td", {}, label),
      ...cells.map((experts) => element("td", { class: "runs" }, experts.join(" "))));
  });
  return table(["layer", ...arms.map((arm) => element("span", {}, chip(arm.color), arm.label))], rows);
}

function drawSurprisal(study, shown, token) {
  const values = study.orders.map((_, order) => element("td", {}, number(surprisalOf(study, shown, order, token))));
  const row = element("tr", {}, element("td", {}, "surprisal (nat)"), ...values);
  return table(["n", ...study.orders], [row]);
}

function table(names, rows) {
  const head = element("tr", {}, ...names.map((name) => element("th", { scope: "col" }, name)));
  return element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows));
}
