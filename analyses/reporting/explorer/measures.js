// What tokens are coloured by. Statistics are those of `analyses/statistics/seed_noise.py`.

// Mean loss of a side on each token of a document, and the variance of that mean over runs.
function sideMean(study, shown, side, step) {
  const observed = side.runs
    .map((run) => lossCodes(study, shown, run, step))
    .filter((codes) => codes[0] !== study.missing);
  const n = observed.length;
  const mean = new Float32Array(shown.nTokens).fill(NaN);
  const variance = new Float32Array(shown.nTokens).fill(NaN);
  if (!n) return { mean, variance, n };
  // rounding to the grid is noise too
  const rounding = study.grid ** 2 / 12;
  for (let token = 0; token < shown.nTokens; token++) {
    let sum = 0;
    let squares = 0;
    let gap = false;
    for (const codes of observed) {
      if (codes[token] === study.missing) gap = true;
      const value = codes[token] * study.grid;
      sum += value;
      squares += value * value;
    }
    if (gap) continue;
    mean[token] = sum / n;
    if (n > 1) {
      const spread = Math.max(0, (squares - (sum * sum) / n) / (n - 1));
      variance[token] = (spread + rounding) / n;
    }
  }
  return { mean, variance, n };
}

// Difference of two sides on each token, its t, and whether that is beyond noise of seeds.
function sideDifference(study, shown, a, b, step) {
  const first = sideMean(study, shown, a, step);
  const second = sideMean(study, shown, b, step);
  const value = new Float32Array(shown.nTokens);
  const t = new Float32Array(shown.nTokens).fill(NaN);
  const beyond = new Uint8Array(shown.nTokens);
  const hasNoise = first.n > 1 && second.n > 1;
  for (let token = 0; token < shown.nTokens; token++) {
    value[token] = first.mean[token] - second.mean[token];
    if (!hasNoise) continue;
    t[token] = value[token] / Math.sqrt(first.variance[token] + second.variance[token]);
    // no quantile is below 1.9, and most tokens need none
    if (Math.abs(t[token]) < 1.9) continue;
    beyond[token] = Math.abs(t[token]) > criticalValue(study, first, second, token) ? 1 : 0;
  }
  return { value, t, beyond, hasNoise, first, second };
}

// The quantile of Student's t that Welch's t is held against.
function criticalValue(study, first, second, token) {
  const u = first.variance[token];
  const v = second.variance[token];
  const dof = (u + v) ** 2 / (u ** 2 / (first.n - 1) + v ** 2 / (second.n - 1));
  const low = Math.max(1, Math.min(Math.floor(dof), first.n + second.n - 2));
  const high = Math.min(low + 1, first.n + second.n - 2);
  // between whole degrees of freedom by the logarithm, in 1/dof
  const share = high > low ? Math.min(1, (1 / low - 1 / dof) / (1 / low - 1 / high)) : 0;
  const [a, b] = [study.critical[low - 1], study.critical[high - 1]];
  return a * (b / a) ** share;
}

// A name of an element's class for every colour; numbers of colours fit into a byte.
const LEVELS = 16;
const EXPERT_COLORS = 8;
const NONE = 0;
const FADED = 1;
const LOSS = 2;
const A = LOSS + LEVELS + 1;
const B = A + LEVELS + 1;
const BEYOND = 2 * (LEVELS + 1);
const EXPERT = B + LEVELS + 1 + BEYOND;
const OTHERS = EXPERT + EXPERT_COLORS;
const CLASS_NAMES = (() => {
  const names = ["none", "faded"];
  for (let i = 0; i <= LEVELS; i++) {
    names[LOSS + i] = `loss${i}`;
    for (const [start, side] of [[A, "a"], [B, "b"]]) {
      names[start + i] = `${side}${i}`;
      names[start + BEYOND + i] = `${side}${i} ${side}beyond`;
    }
  }
  for (let i = 0; i <= EXPERT_COLORS; i++) names[EXPERT + i] = `expert${i}`;
  return names;
})();
const DIFFERENCE_SCALE = { nat: 2, beyond: 2, t: 6 };

function level(value, scale) {
  return Math.min(LEVELS, Math.round((LEVELS * value) / scale));
}

// Colour of each token, predicted tokens for losses, tokens that were read for experts, and the
// number by which they are sorted (NaN: not listed).
function coloured(study, shown, state, step) {
  if (state.view === "expert") return colouredByExpert(study, shown, state, step);
  const color = new Uint8Array(shown.nTokens);
  if (state.view === "loss") {
    const { mean, n } = sideMean(study, shown, state.a, step);
    mean.forEach((x, i) => (color[i] = x >= 0 ? LOSS + level(x, study.lossScale) : NONE));
    return { color, value: mean, observed: n > 0 };
  }
  const found = sideDifference(study, shown, state.a, state.b, step);
  const measure = found.hasNoise ? state.measure : "nat";
  const value = (measure === "t" ? found.t : found.value).slice();
  value.forEach((x, i) => {
    if (Number.isNaN(x)) return;
    if (measure === "beyond" && !found.beyond[i]) {
      color[i] = FADED;
      value[i] = NaN;
      return;
    }
    // a token has the colour of the side that predicts it better
    const start = x > 0 ? B : A;
    color[i] = start + (found.beyond[i] ? BEYOND : 0)
      + level(Math.abs(x), DIFFERENCE_SCALE[measure]);
  });
  const observed = found.first.n > 0 && found.second.n > 0;
  return { color, value, observed, found, measure };
}

function colouredByExpert(study, shown, state, step) {
  const color = new Uint8Array(shown.nTokens);
  const load = new Map();
  const layer = study.layers.indexOf(state.layer);
  const rank = expertRanks(study, shown, state.run.runs[0], layer);
  const routes = routesOf(study, shown, state.run.runs[0], step, layer);
  for (let token = 0; token < shown.nTokens; token++) {
    const place = token * study.topK;
    if (routes[place] === study.missing) continue;
    let isShown = state.expert === null;
    for (let choice = place; choice < place + study.topK; choice++) {
      load.set(routes[choice], (load.get(routes[choice]) ?? 0) + 1);
      if (routes[choice] === state.expert) isShown = true;
    }
    const expert = state.expert ?? routes[place];
    color[token] = isShown ? EXPERT + (rank.get(expert) ?? EXPERT_COLORS) : FADED;
  }
  const { mean } = sideMean(study, shown, state.run, step);
  return { color, value: mean, observed: load.size > 0, load, rank };
}

// Colours go to the experts that take most of the document at the last step, in their own order.
function expertRanks(study, shown, run, layer) {
  const all = Array.from({ length: study.nExperts }, (_, expert) => expert);
  if (study.nExperts <= EXPERT_COLORS) return new Map(all.map((expert) => [expert, expert]));
  const key = `${run} ${layer}`;
  shown.ranks ??= new Map();
  if (!shown.ranks.has(key)) {
    const count = new Map();
    const routes = routesOf(study, shown, run, study.steps.length - 1, layer);
    for (let place = 0; place < routes.length; place += study.topK) {
      if (routes[place] !== study.missing) count.set(routes[place], (count.get(routes[place]) ?? 0) + 1);
    }
    const most = [...count].sort((x, y) => y[1] - x[1]).slice(0, EXPERT_COLORS);
    const sorted = most.map(([expert]) => expert).sort((x, y) => x - y);
    shown.ranks.set(key, new Map(sorted.map((expert, i) => [expert, i])));
  }
  return shown.ranks.get(key);
}

// Mean of a document by what is shown, from the index alone.
function documentValue(study, state, step, number) {
  const mean = (side) => {
    const means = side.runs.map((run) => documentMean(study, run, step, number));
    const known = means.filter((value) => !Number.isNaN(value));
    return known.reduce((sum, value) => sum + value, 0) / known.length;
  };
  if (state.view === "difference") return mean(state.a) - mean(state.b);
  return mean(state.view === "loss" ? state.a : state.run);
}

// Two colours can be told apart, by the colour-blind too, if they differ between blue and yellow.
function sideColors(a, b) {
  const blueness = (color) => {
    const [red, green, blue] = [1, 3, 5].map((at) => parseInt(color.slice(at, at + 2), 16));
    return blue - (red + green) / 2;
  };
  const apart = Math.abs(blueness(a.color) - blueness(b.color)) >= 100;
  return apart ? [a.color, b.color] : ["#6A4FB3", "#C07A00"];
}
