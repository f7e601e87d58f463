// What the page holds: an index of the study, and a payload for each document, unpacked when shown.

async function inflated(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

// 16-bit numbers: all high bytes, then all low bytes
async function unpacked(text) {
  const planes = await inflated(text);
  const n = planes.length / 2;
  const numbers = new Uint16Array(n);
  for (let i = 0; i < n; i++) numbers[i] = (planes[i] << 8) | planes[n + i];
  return numbers;
}

// The study with its runs gathered into arms; a side is an arm or a run, by its name in the link.
async function openStudy() {
  const study = JSON.parse(document.getElementById("index").textContent);
  const means = await inflated(study.means);
  study.means = new Float32Array(means.buffer);
  study.sides = new Map();
  study.runs.forEach((run, i) => {
    const key = `arm:${run.arm}`;
    if (!study.sides.has(key)) {
      study.sides.set(key, { key, label: run.arm, color: run.color, isArm: true, runs: [] });
    }
    study.sides.get(key).runs.push(i);
  });
  study.arms = [...study.sides.values()];
  study.runs.forEach(({ name, color }, i) => {
    const key = `run:${name}`;
    study.sides.set(key, { key, label: name, color, isArm: false, runs: [i] });
  });
  study.loaded = new Map();
  return study;
}

// Mean loss of a document under a run; NaN where not observed.
function documentMean(study, run, step, number) {
  return study.means[(run * study.steps.length + step) * study.documents.length + number];
}

async function loadDocument(study, number) {
  if (!study.loaded.has(number)) {
    // kept only if it could be read, so that a reader can try again
    const promise = readDocument(study, number);
    study.loaded.set(number, promise);
    promise.catch(() => study.loaded.delete(number));
  }
  return study.loaded.get(number);
}

// Arrays of a document: token (sequence, pos + 1), loss (run, step, token), expert (routed run,
// step, layer, token, choice), surprisal (order, token). The token of `loss` is the one predicted.
async function readDocument(study, number) {
  const payload = await payloadOf(study, number);
  const names = Object.keys(payload);
  const arrays = await Promise.all(names.map((name) => unpacked(payload[name])));
  tokenExplorer.parts.delete(number);
  const { nSequences } = study.documents[number];
  const shown = { number, nSequences, nTokens: nSequences * study.nPos };
  names.forEach((name, i) => (shown[name] = arrays[i]));
  study.loaded.set(number, shown);
  return shown;
}

function payloadOf(study, number) {
  const here = tokenExplorer.parts.get(number);
  if (here || !study.beside) return Promise.resolve(here);
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    const file = `documents/${String(number).padStart(5, "0")}.js`;
    script.src = file;
    script.onload = () => resolve(tokenExplorer.parts.get(number));
    script.onerror = () =>
      reject(new Error(`${file} cannot be read; keep the folder "documents" beside this page`));
    document.head.append(script);
    script.addEventListener("load", () => script.remove());
  });
}

// Losses of one run at one step as they are packed, one number a token.
function lossCodes(study, shown, run, step) {
  const start = (run * study.steps.length + step) * shown.nTokens;
  return shown.loss.subarray(start, start + shown.nTokens);
}

function lossOf(study, shown, run, step, token) {
  const code = shown.loss[(run * study.steps.length + step) * shown.nTokens + token];
  return code === study.missing ? NaN : code * study.grid;
}

function surprisalOf(study, shown, order, token) {
  const code = shown.surprisal[order * shown.nTokens + token];
  return code === study.missing ? NaN : code * study.grid;
}

// Experts of all tokens in one layer of one run at one step, (token, choice).
function routesOf(study, shown, run, step, layer) {
  const size = shown.nTokens * study.topK;
  const place = (study.routed.indexOf(run) * study.steps.length + step) * study.layers.length + layer;
  return shown.expert.subarray(place * size, (place + 1) * size);
}

// Experts that a token went to, first choice first; null where not observed.
function expertsOf(study, shown, run, step, layer, token) {
  const start = token * study.topK;
  const chosen = [...routesOf(study, shown, run, step, layer).slice(start, start + study.topK)];
  return chosen[0] === study.missing ? null : chosen;
}

function textOf(study, shown, word) {
  return study.tokenTexts[shown.token[word]];
}
