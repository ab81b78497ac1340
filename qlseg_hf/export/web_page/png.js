// Copyright 2026 The QLSeg for transformers authors. Licensed under the Apache License, Version 2.0.
// SPDX-License-Identifier: Apache-2.0
// PNG files whose pixel values are labels, as `qlseg predict` writes them: a palette up to 256 labels, else 16 bits.
const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function chunk(name, content) {
  const bytes = new Uint8Array(12 + content.length), view = new DataView(bytes.buffer);
  view.setUint32(0, content.length);
  bytes.set(new TextEncoder().encode(name), 4);
  bytes.set(content, 8);
  let crc = ~0;
  for (const byte of bytes.subarray(4, 8 + content.length)) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  view.setUint32(8 + content.length, ~crc);
  return bytes;
}

// `labels` Uint16Array of width * height, `colors` [[r, g, b], ...] of all labels -> Blob
export async function encodePng(labels, width, height, colors) {
  const depth = colors.length > 256 ? 16 : 8, bytesPerPixel = depth / 8, stride = 1 + width * bytesPerPixel;
  const rows = new Uint8Array(stride * height);
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0, to = y * stride + 1; x < width; x++, i++) {
      if (depth === 16) rows[to++] = labels[i] >> 8;
      rows[to++] = labels[i] & 255;
    }
  const stream = new Blob([rows]).stream().pipeThrough(new CompressionStream('deflate'));
  const deflated = new Uint8Array(await new Response(stream).arrayBuffer());
  const head = new Uint8Array(13), view = new DataView(head.buffer);
  view.setUint32(0, width);
  view.setUint32(4, height);
  head.set([depth, depth === 8 ? 3 : 0], 8);
  const palette = new Uint8Array(768);
  palette.set(colors.slice(0, 256).flat());
  const parts = [Uint8Array.of(137, 80, 78, 71, 13, 10, 26, 10), chunk('IHDR', head)];
  if (depth === 8) parts.push(chunk('PLTE', palette));
  parts.push(chunk('IDAT', deflated), chunk('IEND', new Uint8Array()));
  return new Blob(parts, { type: 'image/png' });
}
