// The viewer: decodes a case when it is opened, draws three slices with contours, and hands the volumes to NiiVue.
const PLANES = [["axial", 2, 0, 1, "LRPA"], ["coronal", 1, 0, 2, "LRIS"], ["sagittal", 0, 1, 2, "PAIS"]];
const REFERENCE = {width: 4, alpha: 0.55}, PREDICTION = {width: 1.5, alpha: 1};
const VOLUMES = [["image", 1], ["reference", 0.35], ["prediction", 0.6]];  // with their opacity in 3D
const PLANE_EDGE = 320;  // pixels along the longest side of a slice
const element = id => document.getElementById("viewer" + id);
const run = JSON.parse(element("-data").textContent);  // colours, names, cases, folder
const dialog = element(""), chooser = element("-case"), canvas = element("-3d");
const arrived = {};  // volumes of a case whose script lies beside the page
const receiveCase = volumes => { arrived[volumes.case] = volumes; };
let niivueView, shown, turn = 0;

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
    script.onerror = () => reject(new Error(`${run.folder}/${name}.js is missing: keep the folder beside this page`));
    document.head.append(script);
  });
}

function middle(one, across) {  // the slice with most of the reference, else of the prediction, else the middle one
  for (const labels of [one.voxels.reference, one.voxels.prediction]) {
    const counts = new Array(one.shape[across]).fill(0), [width, height] = one.shape;
    labels.forEach((label, at) => { if (label) counts[[at % width, Math.floor(at / width) % height, Math.floor(at / width / height)][across]]++; });
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

function drawSlice(picture, one, [, across, x, y, letters], index) {
  const strides = [1, one.shape[0], one.shape[0] * one.shape[1]], columns = one.shape[x], rows = one.shape[y];
  const at = (column, row) => index * strides[across] + column * strides[x] + row * strides[y];
  const wide = columns * one.spacing_mm[x], high = rows * one.spacing_mm[y], scale = PLANE_EDGE / Math.max(wide, high);
  picture.width = Math.round(wide * scale);
  picture.height = Math.round(high * scale);
  const grey = new ImageData(columns, rows);
  for (let row = 0; row < rows; row++) for (let column = 0; column < columns; column++) {
    const value = one.voxels.image[at(column, row)];
    grey.data.set([value, value, value, 255], 4 * ((rows - 1 - row) * columns + column));
  }
  const small = new OffscreenCanvas(columns, rows), context = picture.getContext("2d");
  small.getContext("2d").putImageData(grey, 0, 0);
  context.drawImage(small, 0, 0, picture.width, picture.height);
  const toPixels = new DOMMatrix([picture.width / columns, 0, 0, picture.height / rows, 0, 0]);
  for (const [labels, style] of [[one.voxels.reference, REFERENCE], [one.voxels.prediction, PREDICTION]])
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

function drawPlanes(one) {
  element("-planes").replaceChildren(...PLANES.map(plane => {
    const [name, across] = plane, figure = document.createElement("figure"), picture = document.createElement("canvas");
    const label = document.createElement("label"), slider = document.createElement("input");
    Object.assign(slider, {type: "range", min: 0, max: one.shape[across] - 1, value: middle(one, across)});
    picture.setAttribute("role", "img");
    const draw = () => {
      label.firstChild.data = `${name} ${Number(slider.value) + 1} of ${one.shape[across]} `;
      picture.setAttribute("aria-label", `${name} slice ${Number(slider.value) + 1} with the contours of reference and mask`);
      drawSlice(picture, one, plane, Number(slider.value));
    };
    picture.addEventListener("wheel", event => { event.preventDefault(); slider.value -= Math.sign(event.deltaY); draw(); }, {passive: false});
    slider.addEventListener("input", draw);
    label.append("", slider);
    figure.append(picture, label);
    draw();
    return figure;
  }));
}

async function loadNiivue() {
  const script = document.createElement("script");
  script.textContent = new TextDecoder().decode(await unpacked(document.getElementById("niivue").textContent));
  document.head.append(script);
  const view = new niivue.Niivue({dragAndDropEnabled: false, isOrientCube: true, show3Dcrosshair: true, crosshairWidth: 0.3, crosshairColor: [1, 0.4, 0.4, 0.8], backColor: [0, 0, 0, 1], multiplanarShowRender: 1, logLevel: "error"});
  await view.attachToCanvas(canvas);
  view.setSliceType(view.sliceTypeMultiplanar);
  return view;
}

function colourTable(pale) {  // of the masks: NiiVue takes one colour per value
  const values = Object.keys(run.colours).map(Number), table = {R: [0], G: [0], B: [0], A: [0], I: [0], labels: [""]};
  for (const value of values) {
    const channels = [1, 3, 5].map(start => parseInt(run.colours[value].slice(start, start + 2), 16));
    ["R", "G", "B"].forEach((channel, index) => table[channel].push(pale ? (channels[index] + 255) >> 1 : channels[index]));
    table.A.push(255); table.I.push(value); table.labels.push("");
  }
  return table;
}

function setOpacity() {
  if (!niivueView || niivueView.volumes.length < 3) return;
  VOLUMES.forEach(([name, opacity], index) => niivueView.setOpacity(index, element(`-${name}`).checked ? opacity : 0));
}

async function drawVolumes(one) {
  niivueView ??= await loadNiivue();
  for (const volume of [...niivueView.volumes]) niivueView.removeVolume(volume);
  for (const [name] of VOLUMES) {
    const volume = await niivue.NVImage.loadFromBase64({base64: one[name], name: `${name}.nii.gz`, colormap: "gray", cal_min: 0, cal_max: 255});
    if (name !== "image") volume.setColormapLabel(colourTable(name === "reference"));
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
  if (!dialog.open) dialog.showModal();
  try {
    const one = await volumesOf(name), count = one.shape[0] * one.shape[1] * one.shape[2];
    const [image, reference, prediction] = await Promise.all(VOLUMES.map(([volume]) => voxels(one[volume], count)));
    if (mine !== turn) return;  // another case was opened meanwhile
    one.voxels = {image, reference, prediction};
    drawPlanes(one);
    element("-status").textContent = one.step.some(every => every > 1) ? `A large scan: one voxel in ${one.step.join(" × ")} is shown.` : "";
    await drawVolumes(one);
    dialog.dataset.ready = name;
  } catch (error) {
    element("-status").textContent = `This case cannot be shown: ${error.message}.`;
  }
}

const step = by => openCase(run.cases[(run.cases.findIndex(one => one.case === shown) + by + run.cases.length) % run.cases.length].case);
chooser.append(...run.cases.map(one => new Option(one.case)));
chooser.addEventListener("change", () => openCase(chooser.value));
element("-previous").addEventListener("click", () => step(-1));
element("-next").addEventListener("click", () => step(1));
for (const [name] of VOLUMES) element(`-${name}`).addEventListener("change", setOpacity);
document.addEventListener("click", event => {
  const button = event.target.closest("button[data-case]");
  if (button) openCase(button.dataset.case);
});
if (location.hash.startsWith("#case=")) openCase(decodeURIComponent(location.hash.slice(6)));
