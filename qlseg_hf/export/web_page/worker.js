// Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
// SPDX-License-Identifier: Apache-2.0
// The network, in a thread of its own. Messages in: { settings, backend } once, then { id, rgba, height, width }.
// Messages out: { id, done, total, what } while working, { machine } when loaded, { id, result } or { id, error }.
import { labelMap, placeWindows, resizedSize, resizeImage, Scores, windowPixels } from './processing.js';

const MOST_SCORES = 2 ** 28; // of a resized image: 1 GiB
const TOLERANCE = 0.02; // of the largest score
let ort = null, session = null, settings = null, machine = '';

async function fetchModel() {
  const { file, bytes } = settings.model, answer = await fetch(file);
  if (!answer.ok) throw new Error(`${file} cannot be fetched: the server answers ${answer.status}`);
  const content = new Uint8Array(bytes), reader = answer.body.getReader();
  let length = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    if (length + value.length > bytes) throw new Error(`${file} is longer than ${bytes} bytes; copy the folder again`);
    content.set(value, length);
    length += value.length;
    postMessage({ what: 'Fetching the model', done: length / 1e6, total: bytes / 1e6, unit: 'MB' });
  }
  if (length !== bytes) throw new Error(`${file} has ${length} bytes instead of ${bytes}; copy the folder again`);
  return content;
}

async function run(pixels, height, width) {
  const input = new ort.Tensor('float32', pixels, [1, 3, height, width]);
  const { logits } = await session.run({ pixel_values: input }, ['logits']);
  const values = await logits.getData();
  logits.dispose();
  return values;
}

// Drivers of graphics cards compute wrongly at times: known input must give known scores.
async function checkScores() {
  const { height, width, scores } = settings.check, pixels = new Float32Array(3 * height * width);
  for (let c = 0, i = 0; c < 3; c++)
    for (let y = 0; y < height; y++)
      for (let x = 0; x < width; x++, i++) pixels[i] = ((7 * c + 3 * y + 5 * x) % 17) / 8 - 1;
  const found = await run(pixels, height, width), step = Math.floor(found.length / scores.length);
  const largest = Math.max(...scores.map(Math.abs));
  const isEqual = scores.every((score, i) => Math.abs(found[i * step] - score) <= TOLERANCE * largest);
  if (!isEqual) throw new Error('it computes other scores than it should');
}

async function start(model, build, provider, threads) {
  ort = await import(`./runtime/${build}`);
  ort.env.wasm.wasmPaths = new URL('runtime/', self.location.href).href;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = 'error';
  postMessage({ what: 'Preparing the model', done: 0, total: 0 });
  session = await ort.InferenceSession.create(model, { executionProviders: [provider] });
  await checkScores();
}

async function load(backend) {
  const model = await fetchModel(), notes = [];
  if (backend !== 'wasm' && navigator.gpu && await navigator.gpu.requestAdapter()) {
    try {
      await start(model, 'ort.webgpu.min.mjs', 'webgpu', 1);
      machine = 'WebGPU';
      return;
    } catch (error) {
      notes.push(`WebGPU failed (${error.message})`);
    }
  } else if (backend !== 'wasm') notes.push('this browser offers no WebGPU');
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency, 8) : 1;
  if (!self.crossOriginIsolated) notes.push('this server or browser does not allow more threads');
  await start(model, 'ort.wasm.min.mjs', 'wasm', threads);
  const note = notes.length ? `; ${notes.join('; ')}` : '';
  machine = `WebAssembly, ${threads} ${threads === 1 ? 'thread' : 'threads'}${note}`;
}

async function segment({ id, rgba, height, width }) {
  const { processor, labels } = settings, began = performance.now();
  const size = resizedSize(height, width, processor), places = placeWindows(size, processor);
  if (labels.length * size[0] * size[1] > MOST_SCORES) {
    throw new Error(`${labels.length} scores for each of ${size[1]} × ${size[0]} pixels are too many; crop the image`);
  }
  const planes = resizeImage(rgba, [height, width], size), scores = new Scores(labels.length, size);
  for (const [index, place] of places.entries()) {
    postMessage({ id, what: 'Segmenting', done: index, total: places.length, unit: 'windows' });
    scores.add(await run(windowPixels(planes, size, place, processor), place.height, place.width), place);
  }
  const report = (part) => postMessage({ id, what: 'Choosing labels', done: 100 * part, total: 100, unit: '%' });
  const result = labelMap(scores.average(), labels.length, size, [height, width], report);
  return { ...result, windows: places.length, seconds: (performance.now() - began) / 1000 };
}

let loading = null, waiting = Promise.resolve();
onmessage = ({ data }) => {
  if (data.settings) {
    settings = data.settings;
    loading = load(data.backend).then(() => postMessage({ machine }));
    loading.catch(() => {}); // told to whoever waits for it
    return;
  }
  waiting = waiting.then(async () => {
    try {
      await loading;
      const result = await segment(data);
      postMessage({ id: data.id, result }, [result.labels.buffer, result.confidence.buffer]);
    } catch (error) {
      postMessage({ id: data.id, error: error.message });
    }
  });
};
