// The demo page. Words and file names come from people: they only ever become text, never markup.
"use strict";

const $ = id => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";

let about;                                  // what the program said of itself and its example
let file = null;                            // the photograph; null is the example scene
let blobUrl = null;
let result = null;                          // the last answer, complete: the slider only chooses from it
let shapes = [];                            // [box, tag] of every drawn detection, by its number
let held = false;                           // a click keeps the light on
let asked = 0;                              // number of the last question; answers to earlier ones are dropped
const texts = {classes: "", caption: "", question: "", description: ""};
const LABELS = {classes: "Class names, with a full stop between two", caption: "A caption; its noun phrases are found",
                question: "A question; its noun phrases are found, too", description: "The model writes; no words are needed"};

const kind = () => document.querySelector("[name=kind]:checked").value;
const isAsked = () => kind() === "description" || texts[kind()].trim();
const threshold = () => Number($("threshold").value);

async function start() {
  try {
    about = await (await fetch("/about")).json();
  } catch {
    return fail("The program does not answer. Is it still running in its terminal?");
  }
  $("title").textContent = about.title;
  $("threshold").min = about.leastScore;
  for (const input of document.querySelectorAll("[name=kind]")) input.parentElement.hidden = !about.kinds.includes(input.value);
  connect();
  openExample();
}

function connect() {
  $("ask").addEventListener("submit", event => { event.preventDefault(); find(); });
  $("example").addEventListener("click", openExample);
  $("file").addEventListener("change", () => { openPhoto($("file").files[0]); $("file").value = ""; });
  $("text").addEventListener("input", () => { texts[kind()] = $("text").value; });
  $("text").addEventListener("keydown", event => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find();
  });
  for (const input of document.querySelectorAll("[name=kind]")) input.addEventListener("change", changeKind);
  $("threshold").addEventListener("input", draw);
  $("overlaps").addEventListener("change", draw);
  for (const format of ["odvg", "coco"]) $(format).addEventListener("click", () => save(format));
  new ResizeObserver(draw).observe($("frame"));
  document.addEventListener("keydown", event => { if (event.key === "Escape") unlight(true); });
  document.addEventListener("click", event => { if (!event.target.closest(".box, .phrase")) unlight(true); });
  document.addEventListener("paste", event => openPhoto(event.clipboardData.files[0]));
  addEventListener("dragover", event => { event.preventDefault(); document.body.classList.add("dragging"); });
  addEventListener("dragleave", event => { if (!event.relatedTarget) document.body.classList.remove("dragging"); });
  addEventListener("drop", event => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    if (event.dataTransfer.files.length) openPhoto(event.dataTransfer.files[0]);
    else fail("That is not a file. Pictures of other pages are not fetched: save it first, then drop the file.");
  });
}

// Pictures

function openExample() {
  file = null;
  texts.classes = about.classes;
  texts.caption = about.caption;
  texts.question = about.question;
  $("text").value = texts[kind()];
  showPicture(about.picture);
  find();
}

function openPhoto(chosen) {
  if (!chosen) return;
  const megabytes = chosen.size / 2 ** 20;
  if (chosen.size > about.maxBytes) {
    return fail(`${chosen.name} has ${megabytes.toFixed(1)} MB; at most ${about.maxBytes / 2 ** 20} MB are read. ` +
                "Make it smaller first.");
  }
  file = chosen;
  URL.revokeObjectURL(blobUrl);
  blobUrl = URL.createObjectURL(file);
  showPicture(blobUrl);
  // The example's words are not what anybody asks of a photograph.
  for (const name of Object.keys(texts)) if (texts[name] === about[name]) texts[name] = "";
  $("text").value = texts[kind()];
  if (isAsked()) return find();
  asked++;                                   // no answer to an earlier question may come onto this picture
  idle();
  $("status").textContent = "Now say what to look for.";
  $("text").focus();
}

function showPicture(address) {
  result = null;
  draw();
  $("error").hidden = true;
  $("picture").onload = () => $("frame").style.setProperty("--ratio", $("picture").naturalWidth /
                                                                    $("picture").naturalHeight);
  $("picture").src = address;
}

function changeKind() {
  $("text-label").textContent = LABELS[kind()];
  $("text").value = texts[kind()];
  $("text").disabled = kind() === "description";
  if (isAsked()) find(); else $("text").focus();
}

// Questions

async function find() {
  const mine = ++asked, began = performance.now();
  const form = new FormData();
  form.append("kind", kind());
  form.append("text", $("text").value);
  if (file) form.append("image", file, file.name);
  $("error").hidden = true;
  busy(began);
  let answer;
  try {
    const response = await fetch("/find", {method: "POST", body: form});
    // Refusals of the server below the program are not JSON.
    const other = {error: `The program answered ${response.status} ${response.statusText}.`};
    answer = await response.json().catch(() => other);
  } catch {
    answer = {error: "The program does not answer. Is it still running in its terminal?"};
  }
  if (mine !== asked) return;
  idle();
  if (answer.error) {
    result = null;
    draw();
    return fail(answer.error);
  }
  answer.took = (performance.now() - began) / 1000;
  // The picture as the model saw it: upright, and also for formats that the browser cannot show.
  if (file) $("picture").src = answer.picture;
  result = answer;
  result.items = (answer.record.detection || {}).instances || answer.record.grounding.regions;
  $("frame").style.setProperty("--ratio", answer.record.width / answer.record.height);
  draw();
}

let clock;
function busy(began) {
  clearInterval(clock);
  $("find").disabled = true;
  $("picture").classList.add("waiting");
  const tell = () => {
    const seconds = (performance.now() - began) / 1000;
    $("find").textContent = seconds < 1 ? "Looking…" : `Looking… ${Math.floor(seconds)} s`;
    // Said once, not each second: a screen reader reads every change.
    const text = seconds < 2 ? "Looking…" :
      "The model is compiled for the first picture of each shape: up to about a minute for a small model on a CPU, " +
      "a few for a large one. After that it is fast, also after a restart.";
    if ($("status").textContent !== text) $("status").textContent = text;
  };
  tell();
  clock = setInterval(tell, 250);
}

function idle() {
  clearInterval(clock);
  $("find").disabled = false;
  $("find").textContent = "Find";
  $("picture").classList.remove("waiting");
  $("status").textContent = "";
}

function fail(text) {
  $("error").textContent = text;
  $("error").hidden = false;
}

// Results

function shown() {
  const all = [...result.items.keys()];
  return all.filter(k => result.items[k].score > threshold() && (result.best[k] || $("overlaps").checked));
}

function draw() {
  $("threshold-value").textContent = threshold().toFixed(2);
  $("drawing").replaceChildren();
  $("words").replaceChildren();
  unlight(true);
  shapes = [];
  for (const format of ["odvg", "coco"]) $(format).disabled = !result;
  if (!result) return;
  const numbers = shown();
  drawBoxes(numbers);
  drawWords(new Set(numbers.map(k => result.labels[k])));
  const best = result.items.length ? Math.max(...result.items.map(item => item.score)) : 0;
  const found = numbers.length ? `${numbers.length} of ${result.items.length} boxes`
    : best ? `Nothing above ${threshold().toFixed(2)}; the best box has ${best.toFixed(2)}. Move the slider down`
    : `Nothing found, not even at ${about.leastScore}`;
  $("status").textContent = `${found} · ${result.took.toFixed(2)} s`;
}

function drawBoxes(numbers) {
  const scale = $("frame").clientWidth / result.record.width;
  const places = new Map(numbers.map(k => [k, result.items[k].bbox.map(x => x * scale)]));
  const area = k => { const [x1, y1, x2, y2] = places.get(k); return (x2 - x1) * (y2 - y1); };
  const boxes = element("g"), tags = element("g");
  $("drawing").append(boxes, tags);
  // Large ones first: a small box inside a large one stays on top, where the pointer finds it.
  for (const k of [...numbers].sort((a, b) => area(b) - area(a))) {
    const [x, y, right, bottom] = places.get(k), label = result.labels[k], color = result.colors[label];
    const group = element("g", {class: "box", tabindex: 0, role: "button",
                                "aria-label": `${result.names[label]}, score ${result.items[k].score.toFixed(2)}`});
    const corners = {x, y, width: right - x, height: bottom - y, rx: 2}, mask = result.masks[k];
    if (mask) {
      group.append(element("image", {x: mask.x * scale, y: mask.y * scale, width: mask.width * scale,
                                     height: mask.height * scale, href: mask.picture, preserveAspectRatio: "none"}));
    }
    group.append(element("rect", {...corners, class: "halo"}),
                 element("rect", {...corners, class: "edge", stroke: color, fill: color}));
    boxes.append(group);
    listen(group, label, k);
    shapes[k] = [group];
  }
  // Best first, they choose their places first; what comes later is drawn below by being put before.
  const taken = [], said = new Set();
  for (const k of numbers) {
    const tag = drawTag(k, places.get(k), taken, said, tags);
    tags.prepend(tag);
    shapes[k].push(tag);
  }
}

function drawTag(k, [x1, y1, x2, y2], taken, said, tags) {
  const label = result.labels[k], color = result.colors[label], name = result.names[label];
  const tag = element("g", {class: "tag"}), text = element("text", {fill: inkOn(color)});
  text.textContent = `${name.length > 32 ? name.slice(0, 31) + "…" : name} ${result.items[k].score.toFixed(2)}`;
  tags.append(tag);
  tag.append(text);                          // measured in place
  const width = text.getComputedTextLength() + 10, height = 20, room = $("frame").clientWidth;
  const lefts = [x1 - 1, x2 - width + 1].map(x => Math.max(0, Math.min(x, room - width)));
  const tops = [y1 - height - 1, y1 + 2, y2 + 1, y2 - height - 2]
    .map(y => Math.max(0, Math.min(y, $("frame").clientHeight - height)));
  const overlap = (x, y, [a, b, w]) => Math.max(0, Math.min(x + width, a + w) - Math.max(x, a)) *
                                       Math.max(0, height - Math.abs(y - b));
  const spots = lefts.flatMap(x => tops.map(y => [x, y]));
  const cost = spots.map(([x, y]) => taken.reduce((sum, other) => sum + overlap(x, y, other), 0));
  const least = Math.min(...cost), [x, y] = spots[cost.indexOf(least)];
  // In a crowd the colour says the name, once one tag has said which it is.
  if (least > 0.1 * width * height && said.has(label)) tag.classList.add("crowded");
  else taken.push([x, y, width]);
  said.add(label);
  text.setAttribute("x", x + 5);
  text.setAttribute("y", y + 14.5);
  tag.prepend(element("rect", {x, y, width, height, rx: 4, fill: color}));
  return tag;
}

function drawWords(labels) {
  $("said").textContent = result.said;
  $("said").hidden = !result.said;
  const words = $("words"), grounding = result.record.grounding;
  words.classList.toggle("names", !grounding);
  if (!grounding) {
    result.names.forEach((name, label) => words.append(phrase(name, label, labels.has(label)), " "));
    return;
  }
  // Python counts characters, JavaScript halves of some: Array.from counts like Python.
  const letters = Array.from(grounding.caption), owner = letters.map(() => -1);
  const spans = result.spans.flatMap((list, label) => list.map(([begin, end]) => [begin, end, label]));
  // A word inside two phrases belongs to the shorter one, the more exact of the two.
  spans.sort((a, b) => (b[1] - b[0]) - (a[1] - a[0]));
  for (const [begin, end, label] of spans) owner.fill(label, begin, end);
  for (let begin = 0, end; begin < letters.length; begin = end) {
    for (end = begin + 1; end < letters.length && owner[end] === owner[begin];) end++;
    const text = letters.slice(begin, end).join("");
    words.append(owner[begin] < 0 ? text : phrase(text, owner[begin], labels.has(owner[begin])));
  }
}

function phrase(text, label, found) {
  const span = document.createElement("span"), color = result.colors[label];
  span.className = found ? "phrase" : "phrase none";
  span.tabIndex = 0;
  span.setAttribute("role", "button");
  span.dataset.label = label;
  span.style.setProperty("--color", color);
  span.style.setProperty("--on-color", inkOn(color));
  span.textContent = text;
  listen(span, label, null);
  return span;
}

// Light: words light all their boxes, a box only itself and its words

function listen(target, label, number) {
  const on = () => { if (!held) light(label, number); };
  const off = () => { if (!held) unlight(); };
  target.addEventListener("pointerenter", on);
  target.addEventListener("pointerleave", off);
  target.addEventListener("focus", on);
  target.addEventListener("blur", off);
  const hold = () => {
    held = !(held && target.classList.contains("lit"));
    light(label, number);
  };
  target.addEventListener("click", hold);
  target.addEventListener("keydown", event => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    hold();
  });
}

function light(label, number) {
  $("drawing").classList.add("lighting");
  $("words").classList.add("lighting");
  shapes.forEach((pair, k) => {
    const lit = number === null ? result.labels[k] === label : k === number;
    for (const shape of pair) shape.classList.toggle("lit", lit);
  });
  for (const span of $("words").querySelectorAll(".phrase")) {
    span.classList.toggle("lit", span.dataset.label === String(label));
  }
}

function unlight(evenHeld = false) {
  if (evenHeld) held = false;
  for (const part of [$("drawing"), $("words")]) {
    part.classList.remove("lighting");
    for (const lit of part.querySelectorAll(".lit")) lit.classList.remove("lit");
  }
}

// Download: what is shown, as the slider stands

function save(format) {
  const numbers = shown(), record = structuredClone(format === "odvg" ? result.record : result.coco);
  const choose = (part, list) => { if (part) part[list] = numbers.map(k => part[list][k]); };
  choose(record.detection, "instances");
  choose(record.grounding, "regions");
  if (format === "coco") choose(record, "annotations");
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(record, null, 1) + "\n"], {type: "application/json"}));
  link.download = `${result.record.filename.replace(/\.[^.]*$/, "")}.${format}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

// Small things

function element(name, attributes = {}) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function inkOn(color) {
  // Dark or white, whichever has the greater contrast (WCAG relative luminance), as in draw.py.
  const [red, green, blue] = [1, 3, 5].map(n => parseInt(color.slice(n, n + 2), 16) / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue > 0.2 ? "#181a1e" : "#ffffff";
}

start();
