"use strict";
// Shows, for the patch that is pointed at, the attention of every head of a layer (paper Eq. 7).
// Indices count from 0 here, as in the data; what is shown counts from 1.

const { models, colours, query } = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const sections = [...document.querySelectorAll(".model")];

// Places are [down, right] as shares of the photograph: the models' grids may differ.
const state = { picture: 0, layer: 0, kept: query, pointed: null, head: 0 };
let gates = models.map((model) => model.gates.map((layer) => [...layer]));

// --- Attention -----------------------------------------------------------------------------------

const unpacked = new Map();

/** Returns a promise of a layer's codes: uint8 [heads, tokens, tokens]. */
function unpack(layer) {
  if (!unpacked.has(layer)) {
    const bytes = Uint8Array.from(atob(layer.codes), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    unpacked.set(layer, new Response(stream).arrayBuffer().then((buffer) => new Uint8Array(buffer)));
  }
  return unpacked.get(layer);
}

/** softmax(QKᵀ) of one token in one head: an array over all tokens. */
function contentAttention(layer, codes, head, token) {
  const start = (head * layer.tokens + token) * layer.tokens;
  const row = Array.from(codes.subarray(start, start + layer.tokens));
  return row.map((code) => (code ? Math.exp(layer.low[head] + layer.step[head] * (code - 1)) : 0));
}

/** softmax(v · r) of one patch in one head: an array over the patches. */
function positionalAttention([v1, v2, v3], [rows, columns], [row, column]) {
  const scores = [];
  for (let y = 0; y < rows; y++) {
    for (let x = 0; x < columns; x++) {
      const d1 = x - column, d2 = y - row;
      scores.push(v1 * d1 + v2 * d2 + v3 * (d1 * d1 + d2 * d2));
    }
  }
  const largest = Math.max(...scores);
  const weights = scores.map((score) => Math.exp(score - largest));
  const sum = weights.reduce((a, b) => a + b);
  return weights.map((weight) => weight / sum);
}

/** The layer of a model that is shown: the last, if it has fewer than the layer chosen. */
const shownLayer = (m) => Math.min(state.layer, models[m].depth - 1);

/** The patch of a model at the place that is pointed at: [row, column]. */
function shownPatch(m) {
  const place = state.pointed ?? state.kept;
  return models[m].grid.map((size, axis) => Math.min(size - 1, Math.floor(place[axis] * size)));
}

/**
 * A promise of what a model's heads show: `heads` are their weights over the patches, and
 * `toClassToken` their weights of the class token, [] where there is none.
 */
async function shownAttention(m) {
  const model = models[m], number = shownLayer(m), patch = shownPatch(m);
  const layer = model.images[state.picture].layers[number];
  const classTokens = layer.tokens - model.grid[0] * model.grid[1];
  const fromClassToken = classTokens > 0 && element("class-token").checked;
  const token = fromClassToken ? 0 : classTokens + patch[0] * model.grid[1] + patch[1];
  const codes = await unpack(layer);
  const heads = [], toClassToken = [];
  for (let head = 0; head < model.heads; head++) {
    const gate = gates[m][number]?.[head] ?? 0;
    let weights = contentAttention(layer, codes, head, token);
    toClassToken.push(...weights.splice(0, classTokens));
    if (gate > 0) {
      const position = positionalAttention(model.v_pos[number][head], model.grid, patch);
      weights = weights.map((weight, k) => (1 - gate) * weight + gate * position[k]);
    }
    heads.push(weights);
  }
  return { layer: number, patch, fromClassToken, heads, toClassToken };
}

// --- Drawing -------------------------------------------------------------------------------------

/** The weight at which logarithmic colours begin: a tenth of uniform attention. */
const lowest = (count) => 0.1 / count;

/** Returns a function from a weight to [0, 1], for weights up to `largest` of `count` patches. */
function colourScale(kind, largest, count) {
  if (kind !== "log") return (weight) => weight / (largest || 1);
  const low = Math.log(lowest(count)), high = Math.max(Math.log(largest), low + Math.log(2));
  return (weight) => Math.min(1, Math.max(0, (Math.log(weight) - low) / (high - low)));
}

/** Colours a canvas with a pixel for each patch. */
function paint(canvas, weights, [rows, columns], scale) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, rows);
  const strength = Number(element("strength").value);
  weights.forEach((weight, k) => {
    const t = scale(weight), place = t * (colours.length - 1);
    const below = Math.min(colours.length - 2, Math.floor(place));
    const colour = colours[below].map((v, c) => v + (place - below) * (colours[below + 1][c] - v));
    image.data.set([...colour, 255 * strength * (0.25 + 0.75 * t)], 4 * k);
  });
  context.putImageData(image, 0, 0);
}

/** Puts the frame around a patch; hides it if there is none. */
function frame(stage, patch, grid) {
  const box = stage.querySelector(".frame") ?? stage.appendChild(document.createElement("span"));
  box.className = "frame";
  box.hidden = !patch;
  if (!patch) return;
  const [top, left] = patch.map((index, axis) => (100 * index) / grid[axis]);
  const [height, width] = grid.map((size) => 100 / size);
  box.style.cssText = `top: ${top}%; left: ${left}%; height: ${height}%; width: ${width}%`;
}

const percent = (share) => `${(100 * share).toFixed(share < 0.01 ? 2 : share < 0.1 ? 1 : 0)} %`;
const total = (weights) => weights.reduce((a, b) => a + b, 0);

/** Draws one model's large picture and heads, of what `shownAttention` gives. */
function drawModel(section, m, shown) {
  const model = models[m], learned = model.gates[shown.layer];
  const patch = shown.fromClassToken ? null : shown.patch;
  const kind = element("scale").value, overlay = element("overlay").value;
  const count = shown.heads[0].length, largest = Math.max(...shown.heads.flat());
  const stage = section.querySelector(".stage"), canvas = stage.querySelector("canvas");
  const mean = shown.heads[0].map((_, k) => total(shown.heads.map((head) => head[k])) / model.heads);
  const large = { mean, head: shown.heads[Math.min(state.head, model.heads - 1)],
                  rollout: model.images[state.picture].rollout }[overlay];
  canvas.hidden = !large;
  stage.classList.toggle("grey", Boolean(large));
  const [low, high] = large ? [Math.min(...large), Math.max(...large)] : [];
  if (overlay === "rollout") {
    paint(canvas, large, model.grid, (weight) => (weight - low) / (high - low || 1));
  } else if (large) {
    paint(canvas, large, model.grid, colourScale(kind, kind === "own" ? high : largest, count));
  }
  frame(stage, overlay === "rollout" ? null : patch, model.grid);
  section.querySelector("h3").textContent = `Heads of layer ${shown.layer + 1}, ` +
    (learned ? "GPSA: content and position" : "plain attention: content only");
  section.querySelector(".legend").hidden = kind === "own";
  section.querySelector(".low").textContent = kind === "log" ? percent(lowest(count)) : "0 %";
  section.querySelector(".high").textContent = percent(largest);
  const from = patch ? `Patch in row ${patch[0] + 1}, column ${patch[1] + 1}` : "Class token";
  const toClassToken = percent(total(shown.toClassToken) / model.heads);
  const rest = shown.toClassToken.length ? `; to the class token ${toClassToken} on average` : "";
  const range = `Rollout: ${percent(low)} to ${percent(high)} a patch`;
  section.querySelector(".status").textContent = overlay === "rollout" ? range : from + rest;
  section.querySelectorAll(".head").forEach((panel, head) => {
    const weights = shown.heads[head], top = Math.max(...weights);
    const button = panel.querySelector("button"), slider = panel.querySelector("input");
    paint(button.querySelector("canvas"), weights, model.grid,
          colourScale(kind, kind === "own" ? top : largest, count));
    frame(button, patch, model.grid);
    button.setAttribute("aria-pressed", overlay === "head" && head === state.head);
    button.setAttribute("aria-label", `Head ${head + 1} in the large picture`);
    slider.hidden = !learned;
    let text = "";
    if (learned) {
      const gate = gates[m][shown.layer][head];
      slider.value = gate;
      text = `σ ${learned[head].toFixed(2)}`;
      if (gate !== learned[head]) text += ` → ${gate.toFixed(2)}`;
    }
    panel.querySelector("output").textContent = text;
    panel.querySelector("small").textContent = `at most ${percent(top)}`;
  });
}

/** Shows the photograph and its classes: what does not depend on patch or layer. */
function drawPicture() {
  sections.forEach((section, m) => {
    const image = models[m].images[state.picture], list = section.querySelector(".classes");
    section.classList.toggle("small", image.small);
    section.style.setProperty("--photograph", `url("${image.photograph}")`);
    section.style.setProperty("--ratio", `${image.shape[1]} / ${image.shape[0]}`);
    list.replaceChildren(...image.classes.map(([name, probability]) => {
      const item = document.createElement("li"), meter = document.createElement("meter");
      meter.value = probability;
      meter.ariaLabel = name;
      const share = document.createElement("span");
      share.textContent = percent(probability);
      item.append(name, share, meter);
      return item;
    }));
  });
}

/** Sets what the controls show, which depends on the layer. */
function drawControls() {
  const shown = gates.flatMap((model, m) => model[shownLayer(m)] ?? []);
  element("gate").disabled = element("learned").disabled = !shown.length;
  if (shown.length) element("gate").value = total(shown) / shown.length;
  element("class-token").disabled = !models.some((model, m) =>
    model.images[0].layers[shownLayer(m)].tokens > model.grid[0] * model.grid[1]);
}

let turn = 0;

/** Draws everything, once for all changes before the next frame. */
async function draw() {
  const started = ++turn;
  await new Promise(requestAnimationFrame);
  if (started !== turn) return;
  const shown = await Promise.all(models.map((_, m) => shownAttention(m)));
  // Unpacking a layer takes a moment, in which another may have been chosen.
  if (started !== turn) return;
  drawControls();
  sections.forEach((section, m) => drawModel(section, m, shown[m]));
}

// --- Controls ------------------------------------------------------------------------------------

element("picture").addEventListener("change", (event) => {
  state.picture = Number(event.target.value);
  drawPicture();
  draw();
});
document.querySelectorAll("[name=layer]").forEach((radio) => radio.addEventListener("change", () => {
  state.layer = Number(radio.value) - 1;
  draw();
}));
for (const id of ["overlay", "scale", "class-token"]) element(id).addEventListener("change", draw);
element("strength").addEventListener("input", draw);
element("gate").addEventListener("input", (event) => {
  gates.forEach((model, m) => model[shownLayer(m)]?.fill(Number(event.target.value)));
  draw();
});
element("learned").addEventListener("click", () => {
  gates = models.map((model) => model.gates.map((layer) => [...layer]));
  draw();
});

const STEPS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

sections.forEach((section, m) => {
  const stage = section.querySelector(".stage");
  const placeOf = (event) => {
    const box = stage.getBoundingClientRect();
    const place = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    return place.map((share) => Math.min(1, Math.max(0, share)));
  };
  // The mouse shows a patch while it is over it; pressing keeps it, and so does a finger.
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    state.kept = placeOf(event);
    state.pointed = null;
    draw();
  });
  stage.addEventListener("pointermove", (event) => {
    if (event.buttons) state.kept = placeOf(event);
    state.pointed = event.buttons ? null : placeOf(event);
    draw();
  });
  stage.addEventListener("pointerleave", () => {
    state.pointed = null;
    draw();
  });
  stage.addEventListener("keydown", (event) => {
    const step = STEPS[event.key];
    if (!step) return;
    event.preventDefault();
    const moved = shownPatch(m).map((index, axis) => index + step[axis]);
    const { grid } = models[m];
    state.kept = moved.map((index, axis) =>
      (Math.min(grid[axis] - 1, Math.max(0, index)) + 0.5) / grid[axis]);
    state.pointed = null;
    draw();
  });
  section.querySelectorAll(".head").forEach((panel, head) => {
    panel.querySelector("button").addEventListener("click", () => {
      state.head = head;
      element("overlay").value = "head";
      draw();
    });
    panel.querySelector("input").addEventListener("input", (event) => {
      gates[m][shownLayer(m)][head] = Number(event.target.value);
      draw();
    });
  });
});

const stops = colours.map((colour) => `rgb(${colour})`);
document.body.style.setProperty("--colours", `linear-gradient(to right, ${stops})`);
state.layer = Number(document.querySelector("[name=layer]:checked").value) - 1;
drawPicture();
draw();
