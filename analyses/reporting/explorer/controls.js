// Controls and keys; what happens when the page is opened.

function options(select, entries, chosen) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value }, text)));
  select.value = chosen;
}

function sideOptions(select, chosen) {
  const group = (label, sides, text) => {
    const made = element("optgroup", { label });
    made.append(...sides.map((side) => element("option", { value: side.key }, text(side))));
    return made;
  };
  const runs = [...study.sides.values()].filter((side) => !side.isArm);
  const count = ({ label, runs: { length: n } }) => `${label} (${n} run${n > 1 ? "s" : ""})`;
  select.replaceChildren(group("mean of an arm", study.arms, count), group("one run", runs, (side) => side.label));
  select.value = chosen.key;
}

function drawControls() {
  document.querySelector(`[name="view"][value="${state.view}"]`).checked = true;
  sideOptions($("a"), state.a);
  sideOptions($("b"), state.b);
  const routed = study.routed.map((run) => study.runs[run].name);
  options($("run"), routed.map((name) => [`run:${name}`, name]), state.run.key);
  options($("layer"), study.layers.map((layer) => [layer, layer]), state.layer);
  $("measure").value = state.measure;
  const isDifference = state.view === "difference";
  const [high, low] = isDifference
    ? [`${state.b.label} better first`, `${state.a.label} better first`]
    : ["hardest first", "easiest first"];
  options($("sort"), [["order", "in order"], ["high", high], ["low", low]], state.sort);
  const largest = isDifference ? [["size", "largest first"]] : [];
  if (!isDifference && state.tokenSort === "size") state.tokenSort = "high";
  options($("token-sort"), [...largest, ["high", high], ["low", low]], state.tokenSort);
  const all = study.beside ? "documents read so far" : "all documents";
  options($("scope"), [["document", "this document"], ["all", all]], state.scope);
  const [a, b] = sideColors(state.a, state.b);
  document.documentElement.style.setProperty("--a", a);
  document.documentElement.style.setProperty("--b", b);
}

function drawFixed() {
  $("study").textContent = study.study;
  $("step").max = study.steps.length - 1;
  const last = study.steps.length - 1 || 1;
  const every = Math.ceil(study.steps.length / 9);
  study.steps.forEach((step, i) => {
    if (i % every && i !== last) return;
    if (i !== last && last - i < every) return;
    const tick = element("span", {}, step.toLocaleString("en"));
    tick.style.left = `${(100 * i) / last}%`;
    $("ticks").append(tick);
  });
  const expert = document.querySelector('[value="expert"]');
  expert.disabled = !study.routed.length;
  if (expert.disabled) expert.parentElement.title = "no run of this study has experts";
  $("precision").textContent = `${study.runs.length} runs. Losses are rounded to ` +
    `1/${1 / study.grid} nat, so none is off by more than ${(study.grid / 2).toFixed(3)} nat.`;
}

function setStep(step) {
  state.step = Math.max(0, Math.min(step, study.steps.length - 1));
  repaint();
}

function change(changed) {
  Object.assign(state, changed);
  show();
}

function openDocument(number) {
  if (number < 0 || number >= study.documents.length) return;
  change({ document: number, word: null });
}

// The document before or after in the order of the list.
function stepThroughDocuments(direction) {
  const order = [...$("documents").children].map((item) => Number(item.firstChild.dataset.document));
  const at = order.indexOf(state.document);
  openDocument(order.length ? (order[at + direction] ?? -1) : state.document + direction);
}

function play() {
  const stop = () => {
    clearInterval(playing);
    playing = 0;
    $("play").textContent = "▶";
  };
  if (playing) return stop();
  if (state.step === study.steps.length - 1) setStep(0);
  $("play").textContent = "❚❚";
  playing = setInterval(() => {
    setStep(state.step + 1);
    if (state.step === study.steps.length - 1) stop();
  }, 450);
}

function changeTheme() {
  const root = document.documentElement.style;
  const isDark = root.colorScheme ? root.colorScheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.colorScheme = isDark ? "light" : "dark";
}

const KEYS = {
  ArrowLeft: () => setStep(state.step - 1),
  ArrowRight: () => setStep(state.step + 1),
  Home: () => setStep(0),
  End: () => setStep(study.steps.length - 1),
  " ": play,
  ",": () => choose(state.word - 1, { scroll: true }),
  ".": () => choose(state.word + 1, { scroll: true }),
  n: () => stepThroughList(1),
  p: () => stepThroughList(-1),
  j: () => stepThroughDocuments(1),
  k: () => stepThroughDocuments(-1),
  1: () => change({ view: "loss" }),
  2: () => change({ view: "difference" }),
  3: () => study.routed.length && change({ view: "expert" }),
  d: changeTheme,
  "?": () => $("helper").showModal(),
};

function listen() {
  const sides = ["a", "b", "run"];
  for (const key of sides) $(key).onchange = ({ target }) => change({ [key]: study.sides.get(target.value) });
  $("measure").onchange = ({ target }) => change({ measure: target.value });
  $("layer").onchange = ({ target }) => change({ layer: Number(target.value), expert: null });
  $("views").onchange = ({ target }) => change({ view: target.value });
  $("sort").onchange = ({ target }) => change({ sort: target.value });
  $("token-sort").onchange = ({ target }) => change({ tokenSort: target.value });
  $("scope").onchange = ({ target }) => change({ scope: target.value });
  $("step").oninput = ({ target }) => setStep(Number(target.value));
  for (const tab of ["documents", "tokens"]) $(`tab-${tab}`).onclick = () => change({ tab });
  Object.assign($("play"), { onclick: play });
  $("theme").onclick = changeTheme;
  $("help").onclick = KEYS["?"];
  $("documents").onclick = ({ target }) => {
    const button = target.closest("button");
    if (button) openDocument(Number(button.dataset.document));
  };
  $("tokens").onclick = ({ target }) => {
    const button = target.closest("button");
    if (button) chooseListed(Number(button.dataset.item));
  };
  $("legend").onclick = ({ target }) => {
    const expert = target.closest("button")?.dataset.expert;
    if (expert) change({ expert: state.expert === Number(expert) ? null : Number(expert) });
  };
  const wordAt = ({ target }) => (target.dataset.word === undefined ? null : Number(target.dataset.word));
  $("text").onpointerover = (event) => hover(wordAt(event));
  $("text").onpointerleave = () => hover(null);
  $("text").onclick = (event) => wordAt(event) !== null && choose(wordAt(event));
  document.querySelector("aside").onpointerdown = pickStep;
  // after a choice with the mouse, keys are the page's again
  let byPointer = false;
  document.addEventListener("pointerdown", () => (byPointer = true), true);
  document.addEventListener("change", ({ target }) => byPointer && target.matches("select") && target.blur());
  document.onkeydown = (event) => {
    byPointer = false;
    const isTyping = event.target.closest("select, dialog") || event.ctrlKey || event.metaKey || event.altKey;
    const onButton = event.key === " " && event.target.closest("button");
    if (isTyping || onButton || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  };
  addEventListener("hashchange", () => {
    readLink();
    show();
  });
}

function hover(word) {
  if (word === hovered) return;
  hovered = word;
  if (seen) drawToken();
}

// A press on the curves goes to the step that is nearest.
function pickStep(event) {
  const svg = event.target.closest("svg");
  if (!svg) return;
  const box = svg.getBoundingClientRect();
  const x = ((event.clientX - box.left) / box.width) * PLOT.width;
  const distances = study.steps.map((step) => Math.abs(plotX(study, step) - x));
  setStep(distances.indexOf(Math.min(...distances)));
}

// In the background, so that tokens of all documents can be sorted.
async function loadOthers() {
  for (let number = 0; number < study.documents.length; number++) await loadDocument(study, number);
  if (state.scope === "all") drawLists();
}

start();
readLink();
addColors();
drawFixed();
listen();
await show();
performance.mark("shown");
document.body.dataset.ready = "";
if (!study.beside) loadOthers();
