// The viewer: decodes a case when it is opened, draws slices in three planes, and hands the volumes to NiiVue.
// Masks are contours over the scan. Predicted values, which have colour tables, are pictures of their own below it.
const PLANES = [["axial", 2, 0, 1, "LRPA"], ["coronal", 1, 0, 2, "LRIS"], ["sagittal", 0, 1, 2, "PAIS"]];
const REFERENCE = {width: 4, alpha: 0.55}, PREDICTION = {width: 1.5, alpha: 1};
const element = id => document.getElementById("viewer" + id);
const run = JSON.parse(element("-data").textContent);  // colours, names, cases, folder
const tables = run.tables && {reference: run.tables.values, prediction: run.tables.values, difference: run.tables.difference};
const VOLUMES = [["image", 1], ["reference", tables ? 0.6 : 0.35], ["prediction", 0.6], ...tables ? [["difference", 0.8]] : []];  // with their opacity in 3D
const PLANE_EDGE = tables ? 220 : 320;  // pixels along the longest side of a slice
const PICTURES = tables ? VOLUMES.map(([name]) => name) : ["image"];  // of each plane
const dialog = element(""), chooser = element("-case"), channel = element("-channel"), canvas = element("-3d");
const arrived = {};  // volumes of a case whose script lies beside the page
const receiveCase = volumes => { arrived[volumes.case] = volumes; };
let niivueView, shown, drawn, turn = 0;

async function unpacked(base64) {
  const bytes = Uint8Array.from(atob(base64), letter => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).arrayBuffer();
}

async function voxels(base64, count) {
  const buffer = await unpacked(base64), offset = new DataView(buffer).getFloat32(108, true);
  return buffer.byteLength - offset > count ? new Uint16Array(buffer, offset, count) : new Uint8Array(buffer, offset, count);
}

function volumesOf(name) {
  const inside = document.querySelector(`script[data-volumes="${CSS.escape(name)}"]`);
  if (inside) return Promise.resolve(JSON.parse(inside.textContent));
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = `${run.folder}/${encodeURIComponent(name)}.js`;
    script.onload = () => { resolve(arrived[name]); delete arrived[name]; script.remove(); };
    script.onerror = () => reject(new Error(`${run.folder}/${name}.js is missing: keep the folder beside this page, or make both anew with --forcerun report`));
    document.head.append(script);
  });
}

function middle(one, across) {  // the slice with most of the reference, or its highest values, else of the prediction, else the middle one
  for (const labels of [one.voxels.reference, one.voxels.prediction]) {
    const counts = new Array(one.shape[across]).fill(0), [width, height] = one.shape;
    labels.forEach((label, at) => { if (label) counts[[at % width, Math.floor(at / width) % height, Math.floor(at / width / height)][across]] += tables ? label : 1; });
    const most = Math.max(...counts);
    if (most) return counts.indexOf(most);
  }
  return one.shape[across] >> 1;
}

function contours(context, label, columns, rows, style) {  // along the edges of the pixels of each label
  const paths = {};
  for (let y = 0; y < rows; y++) for (let x = 0; x < columns; x++) {
    const own = label(x, y);
    if (!own) continue;
    const path = paths[own] ??= new Path2D(), top = rows - y;
    if (x === 0 || label(x - 1, y) !== own) { path.moveTo(x, top - 1); path.lineTo(x, top); }
    if (x === columns - 1 || label(x + 1, y) !== own) { path.moveTo(x + 1, top - 1); path.lineTo(x + 1, top); }
    if (y === 0 || label(x, y - 1) !== own) { path.moveTo(x, top); path.lineTo(x + 1, top); }
    if (y === rows - 1 || label(x, y + 1) !== own) { path.moveTo(x, top - 1); path.lineTo(x + 1, top - 1); }
  }
  return Object.entries(paths).map(([own, path]) => ({path, colour: run.colours[own], ...style}));
}

const rgb = colour => [1, 3, 5].map(start => parseInt(colour.slice(start, start + 2), 16));

function drawSlice(picture, one, [, across, x, y, letters], index, volume) {
  const strides = [1, one.shape[0], one.shape[0] * one.shape[1]], columns = one.shape[x], rows = one.shape[y];
  const at = (column, row) => index * strides[across] + column * strides[x] + row * strides[y];
  const wide = columns * one.spacing_mm[x], high = rows * one.spacing_mm[y], scale = PLANE_EDGE / Math.max(wide, high);
  picture.width = Math.round(wide * scale);
  picture.height = Math.round(high * scale);
  const pixels = new ImageData(columns, rows), colours = tables?.[volume]?.map(rgb);
  for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
    const value = one.voxels[volume][at(column, row)];
    pixels.data.set([...colours ? colours[value] : [value, value, value], 255], 4 * ((rows - 1 - row) * columns + column));
  }
  const small = new OffscreenCanvas(columns, rows), context = picture.getContext("2d");
  small.getContext("2d").putImageData(pixels, 0, 0);
  context.drawImage(small, 0, 0, picture.width, picture.height);
  const toPixels = new DOMMatrix([picture.width / columns, 0, 0, picture.height / rows, 0, 0]);
  if (!tables) for (const [labels, style] of [[one.voxels.reference, REFERENCE], [one.voxels.prediction, PREDICTION]])
    for (const {path, colour, width, alpha} of contours(context, (column, row) => labels[at(column, row)], columns, rows, style)) {
      const line = new Path2D();
      line.addPath(path, toPixels);
      Object.assign(context, {strokeStyle: colour, lineWidth: width, globalAlpha: alpha, lineCap: "square"});
      context.stroke(line);
    }
  Object.assign(context, {globalAlpha: 1, fillStyle: "white", strokeStyle: "black", lineWidth: 3, font: "12px sans-serif", textAlign: "center", textBaseline: "middle"});
  const places = [[9, picture.height / 2], [picture.width - 9, picture.height / 2], [picture.width / 2, picture.height - 9], [picture.width / 2, 9]];
  places.forEach((place, number) => { context.strokeText(letters[number], ...place); context.fillText(letters[number], ...place); });
}

function drawPlanes(one) {  // of the case that is drawn already, the same slices
  const same = drawn === one.case ? [...element("-planes").querySelectorAll("input")].map(slider => slider.value) : [];
  element("-planes").replaceChildren(...PLANES.map((plane, place) => {
    const [name, across] = plane, figure = document.createElement("figure"), pictures = PICTURES.map(() => document.createElement("canvas"));
    const label = document.createElement("label"), slider = document.createElement("input");
    Object.assign(slider, {type: "range", min: 0, max: one.shape[across] - 1, value: same[place] ?? middle(one, across)});
    const draw = () => {
      label.firstChild.data = `${name} ${Number(slider.value) + 1} of ${one.shape[across]} `;
      pictures.forEach((picture, number) => {
        const volume = PICTURES[number], what = tables ? `: ${volume === "image" ? "scan" : volume}` : " with the contours of reference and mask";
        picture.setAttribute("role", "img");
        picture.setAttribute("aria-label", `${name} slice ${Number(slider.value) + 1}${what}`);
        drawSlice(picture, one, plane, Number(slider.value), volume);
      });
    };
    const wheel = event => { event.preventDefault(); slider.value -= Math.sign(event.deltaY); draw(); };
    pictures.forEach(picture => picture.addEventListener("wheel", wheel, {passive: false}));
    slider.addEventListener("input", draw);
    label.append("", slider);
    figure.append(...pictures, label);
    draw();
    return figure;
  }));
  drawn = one.case;
}

function drawScale(name, table, low, high) {  // the colours of values, with their ends in words
  const context = element(name).getContext("2d");
  table.forEach((colour, index) => { context.fillStyle = colour; context.fillRect(index, 0, 1, 12); });
  element(`${name}-text`).textContent = `${Number(low.toPrecision(3))} to ${Number(high.toPrecision(3))}`;
}

async function loadNiivue() {
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await unpacked(document.getElementById("niivue").textContent));
  document.head.append(script);
  const view = new niivue.Niivue({dragAndDropEnabled: false, isOrientCube: true, show3Dcrosshair: true, crosshairWidth: 0.3, crosshairColor: [1, 0.4, 0.4, 0.8], backColor: [0, 0, 0, 1], multiplanarShowRender: 1, logLevel: "error"});
  await view.attachToCanvas(canvas);
  view.setSliceType(view.sliceTypeMultiplanar);
  for (const name in tables) view.addColormap(name, valueColours(name));
  return view;
}

function labelColours(pale) {  // of the masks: NiiVue takes one colour per value
  const table = {R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""]};
  for (const [value, colour] of Object.entries(run.colours)) {
    rgb(colour).forEach((part, index) => table["RGB"[index]].push(pale ? (part + 255) >> 1 : part));
    table.A.push(255); table.I.push(Number(value)); table.labels.push("");
  }
  return table;
}

function valueColours(name) {  // what is nothing, or no error, is clear
  const colours = tables[name].map(rgb), nothing = name === "difference" ? 128 : 0, steps = colours.map((_, value) => value);
  const [R, G, B] = [0, 1, 2].map(part => colours.map(colour => colour[part]));
  return {R, G, B, A: steps.map(value => Math.min(255, 4 * Math.abs(value - nothing))), I: steps};
}

function setOpacity() {
  if (!niivueView || niivueView.volumes.length < VOLUMES.length) return;
  VOLUMES.forEach(([name, opacity], index) => niivueView.setOpacity(index, element(`-${name}`).checked ? opacity : 0));
}

async function drawVolumes(one) {
  niivueView ??= await loadNiivue();
  for (const volume of [...niivueView.volumes]) niivueView.removeVolume(volume);
  for (const [name] of VOLUMES) {
    const volume = await niivue.NVImage.loadFromBase64({base64: one[name], name: `${name}.nii.gz`, colormap: tables?.[name] ? name : "gray", cal_min: 0, cal_max: 255});
    if (name !== "image" && !tables) volume.setColormapLabel(labelColours(name === "reference"));
    niivueView.addVolume(volume);
  }
  setOpacity();
}

async function openCase(name) {
  const mine = ++turn, about = run.cases.find(one => one.case === name);
  if (!about) return;
  chooser.value = shown = name;
  element("-title").textContent = name;
  element("-scores").textContent = about.scores;
  element("-status").textContent = "Reading the scan.";
  delete dialog.dataset.ready;
  if (!dialog.open) dialog.showModal();
  try {
    const one = await volumesOf(name), count = one.shape[0] * one.shape[1] * one.shape[2];
    one.image = one.images[channel.value];
    const decoded = await Promise.all(VOLUMES.map(async ([volume]) => [volume, await voxels(one[volume], count)]));
    if (mine !== turn) return;  // another case or channel was chosen meanwhile
    one.voxels = Object.fromEntries(decoded);
    drawPlanes(one);
    if (tables) {
      drawScale("-values", tables.reference, ...one.values);
      drawScale("-errors", tables.difference, -one.most, one.most);
    }
    element("-status").textContent = one.step.some(every => every > 1) ? `A large scan: one voxel in ${one.step.join(" × ")} is shown.` : "";
    await drawVolumes(one);
    dialog.dataset.ready = name;
  } catch (error) {
    element("-status").textContent = `This case cannot be shown: ${error.message}.`;
  }
}

const step = by => openCase(run.cases[(run.cases.findIndex(one => one.case === shown) + by + run.cases.length) % run.cases.length].case);
chooser.append(...run.cases.map(one => new Option(one.case)));
channel.append(...run.channels.map((name, index) => new Option(name, index)));
channel.addEventListener("change", () => openCase(shown));
chooser.addEventListener("change", () => openCase(chooser.value));
element("-previous").addEventListener("click", () => step(-1));
element("-next").addEventListener("click", () => step(1));
for (const [name] of VOLUMES) element(`-${name}`).addEventListener("change", setOpacity);
document.addEventListener("click", event => {
  const button = event.target.closest("button[data-case]");
  if (button) openCase(button.dataset.case);
});
if (run.folder) {
  const end = document.createElement("script");
  end.src = `${run.folder}/${run.end}`;
  end.onerror = () => { element("-missing").hidden = false; };
  document.head.append(end);
}
if (location.hash.startsWith("#case=")) openCase(decodeURIComponent(location.hash.slice(6)));
