// Documents and tokens beside the text, in the order that is chosen.

const LISTED = 80;

function drawLists() {
  for (const name of ["documents", "tokens"]) {
    $(name).hidden = state.tab !== name;
    $(`tab-${name}`).setAttribute("aria-selected", state.tab === name);
  }
  $("sort").hidden = state.tab !== "documents";
  $("token-sort").hidden = $("scope").hidden = state.tab !== "tokens";
  if (state.tab === "documents") drawDocuments();
  else drawTokens();
}

function drawDocuments() {
  const values = study.documents.map((_, i) => documentValue(study, state, state.step, i));
  const order = values.map((_, i) => i);
  const sign = { order: 0, high: -1, low: 1 }[state.sort];
  if (sign) order.sort((i, j) => sign * (values[i] - values[j]) || i - j);
  const scale = Math.max(...values.map(Math.abs).filter((value) => value >= 0), 1e-9);
  $("list-note").textContent = state.view === "difference"
    ? `mean of ${state.a.label} − ${state.b.label} (nat)`
    : `mean loss of ${(state.view === "loss" ? state.a : state.run).label} (nat)`;
  const focused = document.activeElement?.closest?.("#documents button")?.dataset.document;
  $("documents").replaceChildren(...order.map((i) => documentItem(i, values[i], scale)));
  if (focused) $("documents").querySelector(`[data-document="${focused}"]`).focus({ preventScroll: true });
}

function documentItem(i, value, scale) {
  const { name, domain } = study.documents[i];
  const bar = element("span", { class: "bar" });
  const fill = element("i");
  const isDifference = state.view === "difference";
  const length = (Math.abs(value) / scale) * (isDifference ? 50 : 100) || 0;
  fill.style.width = `${length}%`;
  // the bar points to the side that predicts the document better
  fill.style.left = `${isDifference ? (value > 0 ? 50 : 50 - length) : 0}%`;
  fill.style.background = `var(--${isDifference ? (value > 0 ? "b-tint" : "a-tint") : "loss"})`;
  bar.append(fill);
  const shownValue = isDifference ? signed(value) : number(value);
  const button = element("button", {
    type: "button", "data-document": i, "aria-current": i === state.document,
  }, element("b", {}, name), element("var", {}, shownValue), element("small", {}, domain), bar);
  return element("li", {}, button);
}

function drawTokens() {
  const documents = state.scope === "document" ? [shown]
    : [...study.loaded.values()].filter((loaded) => !(loaded instanceof Promise));
  const found = [];
  for (const of of documents) {
    const { value, color } = of === shown ? seen : coloured(study, of, state, state.step);
    value.forEach((x, token) => {
      if (x === x) found.push({ of, value: x, word: wordOf(token), color: color[token] });
    });
  }
  const size = { high: (x) => -x.value, low: (x) => x.value, size: (x) => -Math.abs(x.value) }[state.tokenSort];
  found.sort((x, y) => size(x) - size(y));
  listed = found.slice(0, LISTED);
  const of = documents.length === 1 ? "this document" : `${documents.length} documents`;
  const unit = seen.measure === "t" ? "t" : "nat";
  $("list-note").textContent = `${listed.length} of ${found.length.toLocaleString("en")} tokens of ` +
    `${of} (${unit}). They lead by luck in part.`;
  $("tokens").replaceChildren(...listed.map(tokenItem));
}

function tokenItem({ of, word, value, color }, i) {
  const [, place] = placeOf(word);
  const at = (offset) => (place + offset >= 0 && place + offset <= study.nPos
    ? visible(textOf(study, of, word + offset)).replace(/␣/g, " ") : "");
  const context = element("b", {}, at(-2) + at(-1),
    element("mark", { class: state.view === "expert" ? "plain" : CLASS_NAMES[color] }, at(0)), at(1));
  const isHere = of === shown && word === state.word;
  const text = state.view === "difference" ? signed(value) : number(value);
  return element("li", {}, element("button", { type: "button", "data-item": i, "aria-current": isHere },
    context, element("var", {}, text), element("small", {}, study.documents[of.number].name)));
}

function chooseListed(i) {
  if (!listed[i]) return;
  const { of, word } = listed[i];
  [state.document, state.word] = [of.number, word];
  show().then(() => choose(word, { scroll: true }));
}

function stepThroughList(direction) {
  if (state.tab !== "tokens") [state.tab] = ["tokens"];
  drawLists();
  const at = listed.findIndex(({ of, word }) => of === shown && word === state.word);
  chooseListed(at < 0 ? 0 : Math.max(0, Math.min(at + direction, listed.length - 1)));
}
