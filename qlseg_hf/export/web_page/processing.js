// Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
// SPDX-License-Identifier: Apache-2.0
// What the image processor and `segment` do around the network, with the same numbers: resize, windows, normalisation,
// average of overlapping scores, label map. Letters: K labels, H x W the image, h x w the resized image.
const { fround, floor, min, max } = Math;

// [h, w] of the resized image
export function resizedSize(height, width, processor) {
  const { do_resize, size } = processor;
  if (!do_resize) return [height, width];
  if (!size.shortest_edge) return [size.height, size.width];
  const factor = size.shortest_edge / min(height, width);
  return [height, width].map((side) => floor(side * factor + 0.5));
}

// [{ top, left, height, width }, ...] of the windows, row by row; the last ones end at the border
export function placeWindows([h, w], processor) {
  const { do_sliding_window, window_size, window_stride } = processor;
  const [window, stride] = do_sliding_window ? [window_size, window_stride] : [max(h, w), max(h, w)];
  const starts = (length) => {
    const last = max(length - window, 0), count = floor(max(length - window + stride - 1, 0) / stride) + 1;
    return Array.from({ length: count }, (_, i) => min(i * stride, last));
  };
  return starts(h).flatMap((top) => starts(w).map((left) => (
    { top, left, height: min(window, h), width: min(window, w) })));
}

function roundHalfEven(value) {
  const lower = floor(value), rest = value - lower;
  return rest > 0.5 || (rest === 0.5 && lower % 2) ? lower + 1 : lower;
}

// for each of `size` pixels along a side of `old`: the two it lies between, and 2048 times the second's weight
function fixedPointNeighbours(old, size) {
  const first = new Int32Array(size), second = new Int32Array(size), share = new Int32Array(size);
  for (let i = 0; i < size; i++) {
    const centre = fround((i + 0.5) * (1 / (size / old)) - 0.5), before = floor(centre);
    share[i] = roundHalfEven((centre - before) * 2048);
    first[i] = min(max(before, 0), old - 1);
    second[i] = min(max(before + 1, 0), old - 1);
  }
  return [first, second, share];
}

// H x W RGBA bytes -> 3 planes of h x w bytes: bilinear in integers, as `resize_picture`
export function resizeImage(rgba, [H, W], [h, w]) {
  const planes = new Uint8Array(3 * h * w);
  if (H === h && W === w) {
    for (let i = 0; i < h * w; i++) for (let c = 0; c < 3; c++) planes[c * h * w + i] = rgba[4 * i + c];
    return planes;
  }
  const [top, bottom, lower] = fixedPointNeighbours(H, h), [left, right, share] = fixedPointNeighbours(W, w);
  for (let x = 0; x < w; x++) if (left[x] === right[x]) share[x] = 0;
  for (let y = 0; y < h; y++) {
    const down = lower[y], upper = 4 * top[y] * W, under = 4 * bottom[y] * W;
    for (let x = 0; x < w; x++) {
      const l = 4 * left[x], r = 4 * right[x], s = share[x];
      for (let c = 0; c < 3; c++) {
        const above = (rgba[upper + l + c] * (2048 - s) + rgba[upper + r + c] * s) >> 4;
        const below = (rgba[under + l + c] * (2048 - s) + rgba[under + r + c] * s) >> 4;
        planes[(c * h + y) * w + x] = (((above * (2048 - down)) >> 16) + ((below * down) >> 16) + 2) >> 2;
      }
    }
  }
  return planes;
}

// a window of 3 planes of h x w bytes -> fp32, rescaled and normalised
export function windowPixels(planes, [h, w], place, processor) {
  const { do_rescale, rescale_factor, do_normalize, image_mean, image_std } = processor;
  const { top, left, height, width } = place, pixels = new Float32Array(3 * height * width);
  for (let c = 0; c < 3; c++) {
    const table = Float32Array.from({ length: 256 }, (_, byte) => {
      let value = do_rescale ? fround(byte * fround(rescale_factor)) : byte;
      if (do_normalize) value = fround(fround(value - fround(image_mean[c])) / fround(image_std[c]));
      return value;
    });
    for (let y = 0, i = c * height * width; y < height; y++) {
      let from = (c * h + top + y) * w + left;
      for (let x = 0; x < width; x++) pixels[i++] = table[planes[from++]];
    }
  }
  return pixels;
}

// Sum of the scores of windows in the resized image; `average` divides by how many cover a pixel.
export class Scores {
  constructor(K, [h, w]) {
    Object.assign(this, { K, h, w, values: null, count: null });
  }

  add(scores, { top, left, height, width }) {
    const { K, h, w } = this;
    if (height === h && width === w) {
      this.values = scores;
      return;
    }
    this.values ??= new Float32Array(K * h * w);
    this.count ??= new Uint16Array(h * w);
    for (let k = 0; k < K; k++)
      for (let y = 0; y < height; y++) {
        let to = (k * h + top + y) * w + left, from = (k * height + y) * width;
        for (let x = 0; x < width; x++) this.values[to++] += scores[from++];
      }
    for (let y = 0; y < height; y++) {
      const from = (top + y) * w + left;
      for (let x = 0; x < width; x++) this.count[from + x]++;
    }
  }

  average() {
    const { K, h, w, values, count } = this;
    for (let k = 0; count && k < K; k++)
      for (let i = 0; i < h * w; i++) if (count[i] > 1) values[k * h * w + i] /= count[i];
    return values;
  }
}

function neighbours(old, size) {
  const first = new Int32Array(size), second = new Int32Array(size), share = new Float32Array(size);
  const factor = fround(old / size);
  for (let i = 0; i < size; i++) {
    const centre = max(fround(fround((i + 0.5) * factor) - 0.5), 0);
    first[i] = floor(centre);
    second[i] = min(first[i] + 1, old - 1);
    share[i] = centre - first[i];
  }
  return [first, second, share];
}

// (K, h, w) scores -> H x W: the best label of the resized scores, the first of equal ones, and its share of the sum of
// all scores in whole percent
export function labelMap(values, K, [h, w], [H, W], report) {
  const labels = new Uint16Array(H * W), confidence = new Uint8Array(H * W);
  const [top, bottom, down] = neighbours(h, H), [left, right, across] = neighbours(w, W);
  const line = new Float32Array(w), best = new Float32Array(W), total = new Float32Array(W);
  const label = new Uint16Array(W);
  for (let y = 0; y < H; y++) {
    best.fill(-1);
    total.fill(0);
    label.fill(0);
    for (let k = 0; k < K; k++) {
      const upper = (k * h + top[y]) * w, under = (k * h + bottom[y]) * w, d = down[y];
      for (let x = 0; x < w; x++) line[x] = values[upper + x] * (1 - d) + values[under + x] * d;
      for (let x = 0; x < W; x++) {
        const a = across[x], score = fround(line[left[x]] * (1 - a) + line[right[x]] * a);
        total[x] += score;
        if (score > best[x]) {
          best[x] = score;
          label[x] = k;
        }
      }
    }
    labels.set(label, y * W);
    for (let x = 0; x < W; x++) {
      confidence[y * W + x] = total[x] > 0 ? Math.round(100 * min(best[x] / total[x], 1)) : 0;
    }
    if (y % 64 === 63) report(y / H);
  }
  return { labels, confidence };
}
