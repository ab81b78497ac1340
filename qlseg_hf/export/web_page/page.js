// Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
// SPDX-License-Identifier: Apache-2.0
// The page: takes an image, has the worker segment it, and shows labels, confidence and legend. Names of labels are a
// stranger's text and are only ever written with textContent.
import { encodePng } from './png.js';

const find = (id) => document.getElementById(id);
let settings = null, worker = null, view = null, newest = 0, name = 'image';

// ------------------------------------------------------------------------------------------------- what is being done

function say(text, isError = false) {
  find('status').textContent = text;
  find('status').classList.toggle('error', isError);
}

function showProgress({ what, done, total, unit }) {
  const bar = find('progress');
  bar.hidden = false;
  if (total) bar.value = done / total; else bar.removeAttribute('value');
  say(total ? `${what}: ${Math.floor(done)} of ${Math.ceil(total)} ${unit}` : `${what} …`);
}

function startWorker() {
  worker = new Worker('worker.js', { type: 'module' });
  worker.onerror = (event) => fail(event.message || 'the thread that segments could not be started');
  worker.onmessage = ({ data }) => {
    if (data.machine) find('machine').textContent = `Runs on: ${data.machine}. ${find('machine').dataset.about}`;
    if (data.id !== undefined && data.id !== newest) return; // a newer image was given meanwhile
    if (data.error) fail(data.error);
    else if (data.result) show(data.result);
    else if (data.what) showProgress(data);
  };
  worker.postMessage({ settings, backend: new URLSearchParams(location.search).get('backend') });
}

function fail(reason) {
  find('progress').hidden = true;
  say(`This did not work: ${reason}.`, true);
}

// ------------------------------------------------------------------------------------------------------ images come in

async function take(source, newName) {
  const id = ++newest;
  name = newName;
  view = null;
  find('result').hidden = true;
  say('Reading the image …');
  try {
    await segment(id, source);
  } catch (error) {
    if (id === newest) fail(error.message);
  }
}

async function segment(id, source) {
  const isFile = source instanceof Blob;
  const bitmap = isFile ? await decode(source) : source;
  const [width, height] = isFile ? [bitmap.width, bitmap.height] : [source.videoWidth, source.videoHeight];
  const { max_pixels, max_file_pixels, max_aspect } = settings.limits;
  if (width * height > max_file_pixels) throw new Error(`${width} × ${height} pixels are too many`);
  if (Math.max(width, height) > max_aspect * Math.min(width, height)) {
    throw new Error(`${width} × ${height} pixels: at most ${max_aspect} times as long as wide is taken`);
  }
  const factor = Math.min(1, Math.sqrt(max_pixels / (width * height)));
  const canvas = find('image'), context = canvas.getContext('2d', { willReadFrequently: true });
  canvas.width = Math.max(1, Math.floor(width * factor));
  canvas.height = Math.max(1, Math.floor(height * factor));
  context.imageSmoothingEnabled = factor < 1;
  context.imageSmoothingQuality = 'high';
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  if (isFile) bitmap.close();
  if (id !== newest) return;
  const rgba = context.getImageData(0, 0, canvas.width, canvas.height).data, remarks = [];
  if (factor < 1) remarks.push(`shrunk from ${width} × ${height}`);
  for (let i = 3; i < rgba.length; i += 4)
    if (rgba[i] < 255) {
      remarks.push('transparent parts are taken as black');
      break;
    }
  view = { id, width: canvas.width, height: canvas.height, remarks };
  if (!worker) startWorker();
  worker.postMessage({ id, rgba, width: view.width, height: view.height }, [rgba.buffer]);
}

async function decode(file) {
  try {
    return await createImageBitmap(file, { colorSpaceConversion: 'none' });
  } catch {
    throw new Error(`${file.name || 'the file'} is no image that this browser reads`);
  }
}

function takeFile(file) {
  if (file) take(file, (file.name || 'image').replace(/\.[^.]*$/, ''));
}

let stream = null;

async function openCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'environment' }, audio: false });
  } catch (error) {
    fail(`the camera cannot be used (${error.message})`);
    return;
  }
  const video = document.querySelector('video');
  video.srcObject = stream;
  await video.play();
  find('viewfinder').hidden = false;
  find('shoot').focus();
}

function closeCamera() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  find('viewfinder').hidden = true;
  find('camera').focus();
}

async function shoot() {
  await take(document.querySelector('video'), 'camera');
  closeCamera();
}

// --------------------------------------------------------------------------------------------------------- what is shown

function show({ labels, confidence, windows, seconds }) {
  const { width, height, remarks } = view, counts = new Map();
  for (const label of labels) counts.set(label, (counts.get(label) || 0) + 1);
  const legend = [...counts].sort(([a, m], [b, n]) => n - m || a - b);
  Object.assign(view, { labels, confidence, shown: new Set(counts.keys()), tint: new ImageData(width, height) });
  Object.assign(find('tint'), { width, height });
  find('legend').replaceChildren(...legend.map(([label, count]) => legendRow(label, count / labels.length)));
  find('stage').setAttribute('aria-label', 'Image with labels: ' + legend.map(([label, count]) => (
    `${settings.labels[label].name} ${share(count / labels.length)}`)).join(', '));
  find('progress').hidden = true;
  find('result').hidden = false;
  find('cross').hidden = find('tip').hidden = true;
  fit();
  paint();
  const count = `${legend.length} ${legend.length === 1 ? 'label' : 'labels'}`;
  const passes = `${windows} ${windows === 1 ? 'window' : 'windows'} in ${seconds.toFixed(1)} s`;
  say([count, `${width} × ${height} pixels`, ...remarks, passes].join(' · '));
}

const share = (part) => (part >= 0.01 ? `${Math.round(100 * part)} %` : '< 1 %');

function legendRow(label, part) {
  const row = document.createElement('label'), box = document.createElement('input');
  const text = (className, content) => {
    const node = document.createElement('span');
    node.className = className;
    node.textContent = content;
    return node;
  };
  const color = text('color', '');
  box.type = 'checkbox';
  box.checked = true;
  box.onchange = () => {
    if (box.checked) view.shown.add(label); else view.shown.delete(label);
    paint();
  };
  color.style.background = `rgb(${settings.labels[label].color.join(' ')})`;
  row.append(box, color, text('name', settings.labels[label].name), text('share', share(part)));
  return row;
}

function paint() { // borders between labels are white
  const { width, height, labels, shown, tint } = view, pixels = new Uint32Array(tint.data.buffer);
  const colors = new Uint32Array(settings.labels.length);
  for (const label of shown) {
    const [r, g, b] = settings.labels[label].color;
    colors[label] = (255 << 24 | b << 16 | g << 8 | r) >>> 0;
  }
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      const color = colors[labels[i]];
      const isBorder = x && labels[i - 1] !== labels[i] || y && labels[i - width] !== labels[i];
      pixels[i] = isBorder && color ? 0xffffffff : color;
    }
  find('tint').getContext('2d').putImageData(tint, 0, 0);
}

function fit() { // small images are enlarged, all stay within the column and 70 % of the window's height
  if (!view || find('result').hidden) return;
  const stage = find('stage'), style = getComputedStyle(find('result')).gridTemplateColumns;
  const scale = Math.min(parseFloat(style) / view.width, 0.7 * innerHeight / view.height);
  stage.style.width = `${Math.round(scale * view.width)}px`;
  stage.style.aspectRatio = `${view.width} / ${view.height}`; // the height, also in a column that is narrower
}

// label and confidence of a pixel, beside it; the cross is for the keyboard
function point(column, row, withCross) {
  const tip = find('tip'), cross = find('cross'), i = row * view.width + column;
  view.place = [column, row];
  tip.textContent = `${settings.labels[view.labels[i]].name} · ${view.confidence[i]} %`;
  const x = (column + 0.5) / view.width, y = (row + 0.5) / view.height;
  for (const node of [tip, cross]) Object.assign(node.style, { left: `${100 * x}%`, top: `${100 * y}%` });
  const shift = (part) => (part > 0.5 ? 'calc(-100% - 12px)' : '14px');
  tip.style.transform = `translate(${shift(x)}, ${shift(y)})`;
  tip.hidden = false;
  cross.hidden = !withCross;
}

function hover(event) {
  if (!view?.labels) return;
  const box = find('tint').getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / box.width * view.width);
  const row = Math.floor((event.clientY - box.top) / box.height * view.height);
  if (column >= 0 && row >= 0 && column < view.width && row < view.height) point(column, row, false);
}

function press(event) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
  if (!steps || !view?.labels) return;
  event.preventDefault();
  const length = Math.max(1, Math.round(Math.max(view.width, view.height) / (event.shiftKey ? 8 : 40)));
  const from = view.place ?? [Math.floor(view.width / 2), Math.floor(view.height / 2)];
  const [column, row] = [view.width, view.height].map((side, axis) => (
    Math.min(Math.max(from[axis] + steps[axis] * length, 0), side - 1)));
  point(column, row, true);
}

async function download() {
  const { labels, width, height } = view, link = document.createElement('a');
  link.href = URL.createObjectURL(await encodePng(labels, width, height, settings.labels.map(({ color }) => color)));
  link.download = `${name}_labels.png`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// --------------------------------------------------------------------------------------------------------------- start

// Threads need a page that is isolated from others. Where the server does not say so, the service worker does, from
// the next load on; inside another page it cannot.
async function isolate() {
  if (self.crossOriginIsolated || !navigator.serviceWorker || self !== self.top) return;
  try {
    if (sessionStorage.getItem('isolate')) return; // tried before
    sessionStorage.setItem('isolate', 'tried');
    await navigator.serviceWorker.register('sw.js');
    await navigator.serviceWorker.ready;
  } catch {
    return; // one thread, which the page says
  }
  location.reload();
  await new Promise(() => {});
}

function addExample(path, number) {
  const button = document.createElement('button'), picture = document.createElement('img');
  button.type = 'button';
  button.setAttribute('aria-label', `Example ${number + 1}`);
  picture.src = path;
  picture.alt = '';
  button.append(picture);
  button.onclick = async () => {
    const answer = await fetch(path);
    take(await answer.blob(), `example_${number + 1}`);
  };
  find('examples').append(button);
}

function listen() {
  const drop = find('drop');
  find('file').onchange = () => {
    takeFile(find('file').files[0]);
    find('file').value = ''; // so that the same file can be chosen again
  };
  document.ondragover = (event) => {
    event.preventDefault();
    drop.classList.add('over');
  };
  document.ondragleave = () => drop.classList.remove('over');
  document.ondrop = (event) => {
    event.preventDefault();
    drop.classList.remove('over');
    takeFile(event.dataTransfer.files[0]);
  };
  find('camera').hidden = !navigator.mediaDevices?.getUserMedia;
  find('camera').onclick = openCamera;
  find('shoot').onclick = shoot;
  find('close').onclick = closeCamera;
  find('opacity').oninput = () => { find('tint').style.opacity = find('opacity').value / 100; };
  find('opacity').oninput();
  find('download').onclick = download;
  const stage = find('stage');
  stage.onpointermove = stage.onpointerdown = hover;
  stage.onpointerleave = () => { find('tip').hidden = find('cross').hidden = true; };
  stage.onkeydown = press;
  stage.onblur = () => { find('tip').hidden = find('cross').hidden = true; };
  new ResizeObserver(fit).observe(document.body);
}

await isolate();
const answer = await fetch('settings.json');
settings = await answer.json();
document.title = find('title').textContent = settings.title;
const size = `${Math.ceil(settings.model.bytes / 1e6)} MB`;
find('machine').dataset.about = `Model: ${size}, weights ${settings.model.weights}. ${settings.runtime}.`;
find('machine').textContent = find('machine').dataset.about;
settings.examples.forEach(addExample);
listen();
say(`Give an image to begin. The first one fetches the model (${size}) from this server.`);
