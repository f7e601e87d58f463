// The text and the chosen token, and what is redrawn when a choice changes.

// ---- words of the text: the first of a stretch is only read, the last only predicted

function placeOf(word) {
  return [Math.floor(word / (study.nPos + 1)), word % (study.nPos + 1)];
}

function predictedOf(word) {
  const [sequence, place] = placeOf(word);
  return place > 0 ? sequence * study.nPos + place - 1 : -1;
}

function readOf(word) {
  const [sequence, place] = placeOf(word);
  return place < study.nPos ? sequence * study.nPos + place : -1;
}

function colouredTokenOf(word) {
  return state.view === "expert" ? readOf(word) : predictedOf(word);
}

function wordOf(predicted) {
  return Math.floor(predicted / study.nPos) * (study.nPos + 1) + (predicted % study.nPos) + 1;
}

// ---- the text

function buildText() {
  const container = $("text");
  container.replaceChildren();
  shownText.visible.clear();
  observer.disconnect();
  shownText.words = [];
  for (let sequence = 0; sequence < shown.nSequences; sequence++) {
    const paragraph = element("p", { "data-sequence": sequence });
    for (let place = 0; place <= study.nPos; place++) {
      const word = sequence * (study.nPos + 1) + place;
      const text = textOf(study, shown, word);
      const span = document.createElement("span");
      // the space before a word stays outside of its colour, so that words stand apart
      const isSpaced = text.startsWith(" ") && text.trim() !== "";
      if (isSpaced) paragraph.append(" ");
      span.textContent = isSpaced ? text.slice(1) : text;
      span.dataset.word = word;
      if (span.textContent.includes("\n")) span.dataset.break = "";
      if (place === 0) span.dataset.context = "";
      shownText.words.push(span);
      paragraph.append(span);
    }
    container.append(paragraph);
    observer.observe(paragraph);
  }
  Object.assign(shownText, { number: shown.number, painted: new Uint8Array(shownText.words.length) });
  const { name, work, domain } = study.documents[shown.number];
  $("title").textContent = name;
  $("about").textContent = `${domain}${work === name ? "" : ` · ${work}`} · ` +
    `${shown.nTokens.toLocaleString("en")} predicted tokens in ${shown.nSequences} ` +
    (shown.nSequences > 1 ? "stretches of text" : "stretch of text");
  document.querySelector("article").scrollTop = 0;
}

// Only what is in view is painted: a document may be long.
const observer = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    const sequence = Number(target.dataset.sequence);
    shownText.visible[isIntersecting ? "add" : "delete"](sequence);
    if (isIntersecting && seen) paintSequence(sequence);
  }
}, { root: document.querySelector("article"), rootMargin: "300px" });

function paintSequence(sequence) {
  const start = sequence * (study.nPos + 1);
  const without = state.view === "expert" && state.expert !== null ? FADED : NONE;
  for (let word = start; word <= start + study.nPos; word++) {
    const token = colouredTokenOf(word);
    const code = token < 0 ? without : seen.color[token];
    if (code === shownText.painted[word]) continue;
    shownText.words[word].className = CLASS_NAMES[code];
    shownText.painted[word] = code;
  }
}

// ---- redrawing: all of it, what depends on the step, and what can wait until the reader rests

async function show() {
  const wanted = state.document;
  try {
    const loaded = await loadDocument(study, wanted);
    if (wanted !== state.document) return;
    shown = loaded;
  } catch (error) {
    $("text").replaceChildren(element("p", { class: "problem" }, error.message));
    return;
  }
  if (shownText.number !== shown.number) buildText();
  document.body.dataset.view = state.view;
  drawControls();
  paint();
  if (state.word === null) state.word = largestWord();
  choose(state.word);
}

function repaint() {
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(paint);
}

function paint() {
  if (!shown) return;
  seen = coloured(study, shown, state, state.step);
  shownText.visible.forEach(paintSequence);
  $("now").textContent = `step ${study.steps[state.step].toLocaleString("en")}`;
  $("step").value = state.step;
  $("step").setAttribute("aria-valuetext", $("now").textContent);
  $("legend").replaceChildren(...drawLegend(study, state, seen));
  drawToken();
  clearTimeout(timer);
  timer = setTimeout(settle, 150);
}

function settle() {
  drawLists();
  writeLink();
}

function largestWord() {
  let best = -1;
  seen.value.forEach((value, token) => {
    if (value === value && (best < 0 || Math.abs(value) > Math.abs(seen.value[best]))) best = token;
  });
  return best < 0 ? 1 : wordOf(best);
}

// ---- the chosen token

function choose(word, { scroll = false } = {}) {
  document.querySelector("[data-chosen]")?.removeAttribute("data-chosen");
  state.word = Math.max(0, Math.min(word, shownText.words.length - 1));
  shownText.words[state.word].dataset.chosen = "";
  if (scroll) shownText.words[state.word].scrollIntoView({ block: "center" });
  paint();
}

function drawToken() {
  const word = hovered ?? state.word;
  const panel = document.querySelector("aside");
  if (word === null) return panel.replaceChildren();
  const [sequence, place] = placeOf(word);
  const [predicted, read] = [predictedOf(word), readOf(word)];
  const mark = element("mark", { class: CLASS_NAMES[seen.color[colouredTokenOf(word)] ?? NONE] },
    visible(textOf(study, shown, word)));
  const parts = [
    element("h2", {}, mark),
    element("p", { class: "where" }, `token ${place} of stretch ${sequence + 1} · id ` +
      `${study.tokenIds[shown.token[word]]}`),
  ];
  if (predicted < 0) parts.push(element("p", { class: "where" }, "Context only: nothing predicts it."));
  else {
    const key = `${shown.number} ${word}`;
    const curves = panel.dataset.key === key ? panel.querySelector("svg") : null;
    panel.dataset.key = key;
    parts.push(curves ?? drawCurves(study, shown, predicted), ...describeLoss(predicted));
    for (const curve of parts[2].querySelectorAll("path")) {
      curve.toggleAttribute("data-aside", !shownRuns().includes(Number(curve.dataset.run)));
    }
    const now = parts[2].querySelector(".now");
    for (const end of ["x1", "x2"]) now.setAttribute(end, plotX(study, study.steps[state.step]));
    if (study.orders.length) parts.push(heading("N-grams of the training text"), drawSurprisal(study, shown, predicted));
  }
  if (study.routed.length) {
    parts.push(heading("Experts it went to ", "when it was read"),
      read < 0 ? element("p", { class: "where" }, "None: the text ends here, it was never read.")
        : drawExperts(study, shown, read, state.step));
  }
  panel.replaceChildren(...parts);
}

// Runs that the view is of; the curves of others stand back.
function shownRuns() {
  if (state.view === "expert") return state.run.runs;
  return state.view === "loss" ? state.a.runs : [...state.a.runs, ...state.b.runs];
}

function heading(text, aside = "") {
  return element("h3", {}, text, element("small", {}, aside));
}

function describeLoss(predicted) {
  const parts = [drawLosses(study, shown, predicted, state.step)];
  if (state.view !== "difference") return parts;
  const { value, t, beyond, hasNoise, first, second } = seen.found;
  let text = `${state.a.label} − ${state.b.label}: ${signed(value[predicted])} nat`;
  if (hasNoise) {
    const error = Math.sqrt(first.variance[predicted] + second.variance[predicted]);
    const critical = criticalValue(study, first, second, predicted);
    text += `, standard error ${number(error)}, t = ${signed(t[predicted], 1)}: ` +
      `${beyond[predicted] ? "beyond" : "within"} noise of seeds (limit ${number(critical, 1)}).`;
  }
  return [...parts, element("p", { class: "verdict" }, text)];
}
