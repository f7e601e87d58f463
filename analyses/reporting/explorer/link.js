// What is chosen, and the link to it.

const $ = (id) => document.getElementById(id);
const study = await openStudy();
const state = {};
const shownText = { number: null, words: [], painted: new Uint8Array(), visible: new Set() };
let shown = null; // the document that is read
let seen = null; // its colours at the step that is shown
let listed = []; // tokens of the list
let [hovered, timer, frame, playing] = [null, 0, 0, 0];

function start() {
  const isMoe = new Set(study.routed);
  const several = study.arms.filter((arm) => arm.runs.length > 1);
  const dense = several.find((arm) => !isMoe.has(arm.runs[0])) ?? study.arms[0];
  const moes = several.filter((arm) => arm !== dense && isMoe.has(arm.runs[0]));
  const moe = moes.find((arm) => sideColors(dense, arm)[0] === dense.color) ?? moes[0];
  const other = moe ?? study.arms.find((arm) => arm !== dense);
  const runs = study.runs.map((run) => study.sides.get(`run:${run.name}`));
  Object.assign(state, {
    view: other ? "difference" : "loss", a: dense, b: other ?? runs[1], measure: "nat",
    run: runs[study.routed[0] ?? 0], layer: study.layers.at(-1) ?? null, expert: null,
    step: study.steps.length - 1, document: 0, word: null,
    tab: "documents", sort: "order", tokenSort: "size", scope: "document",
  });
}

function readLink() {
  const link = new URLSearchParams(location.hash.slice(1));
  const choose = (key, options, name = (x) => x) => {
    const found = options.find((option) => String(name(option)) === link.get(key));
    if (found !== undefined) state[key] = found;
  };
  const sides = [...study.sides.values()];
  const routed = study.routed.map((run) => study.sides.get(`run:${study.runs[run].name}`));
  choose("view", study.routed.length ? ["loss", "difference", "expert"] : ["loss", "difference"]);
  for (const key of ["a", "b"]) choose(key, sides, (side) => side.key);
  choose("run", routed, (side) => side.key);
  choose("measure", ["nat", "beyond", "t"]);
  choose("layer", study.layers);
  choose("tab", ["documents", "tokens"]);
  state.expert = /^\d+$/.test(link.get("expert") ?? "") ? Number(link.get("expert")) : null;
  const step = study.steps.findIndex((value) => String(value) === link.get("step"));
  if (step >= 0) state.step = step;
  const number = study.documents.findIndex(({ name }) => name === link.get("document"));
  if (number >= 0) [state.document, state.word] = [number, null];
  const [sequence, place] = (link.get("token") ?? "").split(".").map(Number);
  const { nSequences } = study.documents[state.document];
  if (sequence >= 0 && sequence < nSequences && place >= 0 && place <= study.nPos) {
    state.word = sequence * (study.nPos + 1) + place;
  }
}

function writeLink() {
  const link = new URLSearchParams({ view: state.view });
  if (state.view !== "expert") link.set("a", state.a.key);
  if (state.view === "difference") link.set("b", state.b.key);
  if (state.view === "difference") link.set("measure", state.measure);
  if (state.view === "expert") {
    link.set("run", state.run.key);
    link.set("layer", state.layer);
    if (state.expert !== null) link.set("expert", state.expert);
  }
  link.set("step", study.steps[state.step]);
  link.set("document", study.documents[state.document].name);
  if (state.word !== null) link.set("token", placeOf(state.word).join("."));
  if (state.tab === "tokens") link.set("tab", "tokens");
  history.replaceState(null, "", `#${link}`);
}
