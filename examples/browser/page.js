// The page: which images are there, which graph embeds them, and which of them look alike.

import { $, complain, element, inMegabytes, makeTile, say, stateSize } from "./view.js";

const NEIGHBOURS = 6;

const asked = new URLSearchParams(location.search).get("model") ?? "model";
const folder = new URL(asked.replace(/\/*$/, "/"), location.href).href;
const graphs = [...document.querySelectorAll("[name=graph]")];
const worker = new Worker("embedder.js", { type: "module" });

const pictures = []; // in the order in which they came: {file, tile, vector}
let query; // one of them
let wanted, loaded; // the chosen graph's radio button, and the one whose graph is in the worker
let seconds = 0; // spent on embedding with it
let working = false;
let broken; // why the worker answers no more

/** Sends the worker one request and waits for its result; never two at a time. */
function ask(request, onProgress) {
  return new Promise((resolve, reject) => {
    if (broken) return reject(new Error(broken));
    worker.onmessage = ({ data }) => {
      if ("progress" in data) onProgress(data.progress);
      else if ("error" in data) reject(new Error(data.error));
      else resolve(data.result);
    };
    worker.onerror = () => reject(new Error((broken = "embedder.js cannot be loaded")));
    worker.postMessage(request);
  });
}

/** Does what is left to do, one thing after another; what the visitor changes meanwhile is seen at the next turn. */
async function work() {
  if (working) return;
  working = true;
  for (let job = nextJob(); job; job = nextJob()) await job();
  working = false;
  report();
}

function nextJob() {
  if (!wanted) return null;
  if (loaded !== wanted) return () => load(wanted);
  const picture = pictures.find(({ vector }) => !vector);
  return picture && (() => embed(picture));
}

async function load(graph) {
  const name = graph.value;
  say(`Loading ${name}`, 0, 0);
  try {
    const size = await ask({ load: { folder, file: graph.dataset.file } }, ({ received, total }) =>
      say(`Loading ${name}: ${inMegabytes(received)} of ${total ? inMegabytes(total) : "?"} MB`, received, total),
    );
    stateSize(graph, size);
    loaded = graph;
    seconds = 0;
  } catch (error) {
    complain(`The model cannot be loaded: ${error.message}.`);
    loaded = undefined;
    if (graph !== wanted) return;
    graph.checked = false;
    wanted = undefined;
  }
}

async function embed(picture) {
  const done = pictures.filter(({ vector }) => vector).length;
  say(`Embedding ${done + 1} of ${pictures.length}`, done, pictures.length);
  const graph = loaded;
  const start = performance.now();
  try {
    const vector = await ask({ embed: picture.file });
    if (graph !== wanted) return;
    picture.vector = vector;
    seconds += (performance.now() - start) / 1000;
    picture.tile.classList.remove("pending");
    query ??= picture;
  } catch (error) {
    complain(`${picture.file.name}: ${error.message}.`);
    pictures.splice(pictures.indexOf(picture), 1);
    URL.revokeObjectURL(picture.tile.querySelector("img").src);
    picture.tile.parentElement.remove();
    if (query === picture) query = undefined;
  }
  show();
}

function add(files) {
  for (const file of files) {
    const tile = makeTile(file.name, URL.createObjectURL(file));
    const picture = { file, tile };
    tile.classList.add("pending");
    tile.onclick = () => search(picture);
    $("gallery").append(element("li", {}, tile));
    pictures.push(picture);
  }
  show();
  work();
}

function choose(graph) {
  wanted = graph;
  graph.checked = true;
  $("errors").replaceChildren();
  for (const picture of pictures) {
    picture.vector = undefined;
    picture.tile.classList.add("pending");
  }
  show();
  work();
}

function search(picture) {
  query = picture;
  show();
  $("found").scrollIntoView({ block: "nearest" });
}

/** The most similar first. Vectors have length 1, so the dot product is the cosine. */
function nearest(picture) {
  return pictures
    .filter((other) => other !== picture && other.vector)
    .map((other) => ({ other, cosine: picture.vector.reduce((sum, x, i) => sum + x * other.vector[i], 0) }))
    .sort((a, b) => b.cosine - a.cosine)
    .slice(0, NEIGHBOURS);
}

function show() {
  $("all").hidden = !pictures.length;
  $("download").disabled = !pictures.length || pictures.some(({ vector }) => !vector);
  for (const picture of pictures) picture.tile.ariaPressed = picture === query;
  $("found").hidden = !query;
  if (!query) return;
  $("query").src = query.tile.querySelector("img").src;
  $("query-name").textContent = query.file.name;
  const hadFocus = $("neighbours").contains(document.activeElement);
  $("neighbours").replaceChildren(...(query.vector ? nearest(query).map(neighbourTile) : []));
  if (hadFocus) $("found-title").focus();
}

function neighbourTile({ other, cosine }) {
  const tile = makeTile(other.file.name, other.tile.querySelector("img").src);
  tile.append(element("span", { className: "cosine", textContent: cosine.toFixed(3), title: "cosine" }));
  tile.onclick = () => search(other);
  return element("li", {}, tile);
}

function report() {
  if (!loaded) return say("No model is loaded.");
  if (!pictures.length) return say(`Ready: ${loaded.value} is loaded.`);
  const [n, each] = [pictures.length, (1000 * seconds) / pictures.length];
  say(`${n} ${n === 1 ? "image" : "images"} embedded by ${loaded.value}, ${each.toFixed(0)} ms each.`);
}

function save() {
  const images = pictures.map(({ file, vector }) => ({ file: file.name, vector: [...vector] }));
  const content = JSON.stringify({ model: folder, graph: loaded.dataset.file, images });
  const href = URL.createObjectURL(new Blob([content], { type: "application/json" }));
  element("a", { href, download: "vectors.json" }).click();
  setTimeout(() => URL.revokeObjectURL(href), 60_000); // the download has begun by then
}

/** States each graph's size, by its header alone, and takes the first that is there: int8 comes first. */
async function lookForGraphs() {
  const answers = graphs.map((graph) => fetch(folder + graph.dataset.file, { method: "HEAD" }).catch(() => ({})));
  for (const [i, answer] of (await Promise.all(answers)).entries()) {
    graphs[i].disabled = !answer.ok;
    if (answer.ok) stateSize(graphs[i], Number(answer.headers.get("content-length")));
  }
  const first = graphs.find(({ disabled }) => !disabled);
  if (first) return choose(first);
  complain(`No model can be read at ${folder}. Put a model folder there, or name another by ?model=URL.`);
  report();
}

$("model").textContent = folder;
$("files").onchange = ({ target }) => {
  add(target.files);
  target.value = ""; // so that the same file can be chosen again
};
$("graphs").onchange = ({ target }) => choose(target);
$("download").onclick = save;
ondragover = (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
};
ondragleave = ({ relatedTarget }) => relatedTarget || $("drop").classList.remove("over");
ondrop = (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  add(event.dataTransfer.files);
};
lookForGraphs();
