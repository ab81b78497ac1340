const find = (name) => element.querySelector(name);
let view = null;

async function inflate(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream('deflate'));
  return new Uint16Array(await new Response(stream).arrayBuffer());
}

function fit() {  // small pictures are enlarged, all stay within the column and 70 % of the window's height
  if (!view) return;
  const scale = Math.min(find('.place').clientWidth / view.width, 0.7 * innerHeight / view.height);
  find('img').style.width = scale * view.width + 'px';
  find('img').style.height = scale * view.height + 'px';
}

function paint() {
  const { width, height, labels, colors, shown, near, image } = view, table = new Uint32Array(65536);
  for (const label of shown) {
    const alpha = near === null || near === label ? 255 : 70;
    table[label] = (alpha << 24 | colors.get(label)) >>> 0;
  }
  const pixels = new Uint32Array(image.data.buffer), white = 0xffffffff;
  for (let y = 0, i = 0; y < height; y++)
    for (let x = 0; x < width; x++, i++) {
      const label = labels[i], tint = table[label];
      const border = x && labels[i - 1] !== label || y && labels[i - width] !== label;
      pixels[i] = border && tint ? white : tint;
    }
  find('canvas').getContext('2d').putImageData(image, 0, 0);
}

function emphasise(label, scroll) {
  if (view.near === label) return;
  view.near = label;
  const legend = find('.legend');
  for (const row of legend.children) {
    const near = Number(row.dataset.label) === label;
    row.classList.toggle('near', near);
    if (near && scroll) legend.scrollTop = row.offsetTop - legend.offsetTop - legend.clientHeight / 2;
  }
  paint();
}

function hover(event) {
  const box = find('canvas').getBoundingClientRect(), tip = find('.tip');
  const x = event.clientX - box.left, y = event.clientY - box.top;
  const column = Math.floor(x / box.width * view.width), row = Math.floor(y / box.height * view.height);
  const label = view.labels[row * view.width + column];
  const inside = column >= 0 && row >= 0 && column < view.width && row < view.height;
  tip.hidden = !inside || !view.shown.has(label);
  emphasise(tip.hidden ? null : label, true);
  if (tip.hidden) return;
  tip.textContent = view.names.get(label);
  tip.style.left = x + 'px';
  tip.style.top = y + 'px';
  const right = x > box.width / 2, low = y > box.height / 2;
  tip.style.transform = `translate(${right ? 'calc(-100% - 10px)' : '14px'}, ${low ? 'calc(-100% - 10px)' : '14px'})`;
}

function choose(labels) {
  view.shown = new Set(labels);
  for (const row of find('.legend').children)
    row.querySelector('input').checked = view.shown.has(Number(row.dataset.label));
  paint();
}

function part(kind, className, text) {
  const node = document.createElement(kind);
  node.className = className;
  node.textContent = text;
  return node;
}

function legendRow([label, name, color, share]) {
  const row = part('label', '', ''), box = document.createElement('input'), patch = part('span', 'color', '');
  row.dataset.label = label;
  row.title = name;
  box.type = 'checkbox';
  box.checked = true;
  patch.style.background = color;
  row.append(box, patch, part('span', 'name', name), part('span', 'share', share));
  box.onchange = () => {
    if (box.checked) view.shown.add(label); else view.shown.delete(label);
    paint();
  };
  row.onpointerenter = () => emphasise(view.shown.has(label) ? label : null);
  row.onpointerleave = () => emphasise(null);
  return row;
}

async function show() {
  const value = props.value;
  view = null;
  find('.message').textContent = value ? value.error || value.summary : 'Choose a picture, then press Segment.';
  find('.message').classList.toggle('error', Boolean(value && value.error));
  find('.view').hidden = true;
  if (!value || value.error) return;
  const labels = await inflate(value.labels);
  if (props.value !== value) return;  // another result came meanwhile
  const { width, height, legend } = value, canvas = find('canvas');
  const abgr = (color) => parseInt(color.slice(5) + color.slice(3, 5) + color.slice(1, 3), 16);
  view = {
    width, height, labels, near: null, image: new ImageData(width, height),
    names: new Map(legend.map(([label, name]) => [label, name])),
    colors: new Map(legend.map(([label, , color]) => [label, abgr(color)])),
    shown: new Set(legend.map(([label]) => label)),
  };
  find('img').src = value.picture;
  Object.assign(canvas, { width, height });
  Object.assign(find('.download'), { href: value.label_map, download: value.file });
  find('.legend').replaceChildren(...legend.map(legendRow));
  canvas.onpointermove = canvas.onpointerdown = hover;
  canvas.onpointerleave = () => { find('.tip').hidden = true; emphasise(null); };
  find('.opacity').oninput = () => { canvas.style.opacity = find('.opacity').value / 100; };
  find('.opacity').oninput();
  find('.all').onclick = () => choose(view.names.keys());
  find('.none').onclick = () => choose([]);
  find('.view').hidden = false;
  fit();
  paint();
}

new ResizeObserver(fit).observe(element);
watch('value', show);
show();
