let start = null, points = [];
const round = (value) => Math.min(1, Math.max(0, Math.round(value * 10000) / 10000));
const ground = (target) => target.closest && target.closest('.ground');
const mode = () => element.querySelector('.edit-canvas').dataset.mode;
const at = (event, place) => {
  const box = place.getBoundingClientRect();
  return [round((event.clientX - box.left) / box.width), round((event.clientY - box.top) / box.height)];
};
const draw = (place, box) => {
  const rubber = place.querySelector('.rubber');
  rubber.setAttribute('x', 1000 * Math.min(box[0], box[2])); rubber.setAttribute('y', 1000 * Math.min(box[1], box[3]));
  rubber.setAttribute('width', 1000 * Math.abs(box[2] - box[0])); rubber.setAttribute('height', 1000 * Math.abs(box[3] - box[1]));
};
const drawn = (place) => {
  const [x, y, w, h] = ['x', 'y', 'width', 'height'].map((name) => Number(place.querySelector('.rubber').getAttribute(name)) / 1000);
  return w ? [x, y, x + w, y + h] : [0.25, 0.25, 0.75, 0.75];
};
const sorted = (box) => [Math.min(box[0], box[2]), Math.min(box[1], box[3]), Math.max(box[0], box[2]), Math.max(box[1], box[3])].map(round);
element.addEventListener('pointerdown', (event) => {
  const place = ground(event.target);
  if (!place || event.button) return;
  event.preventDefault(); place.focus({preventScroll: true});
  place.setPointerCapture(event.pointerId);
  start = at(event, place); points = [start];
});
element.addEventListener('pointermove', (event) => {
  const place = ground(event.target);
  if (!start || !place) return;
  const here = at(event, place);
  if (mode() === 'box') { draw(place, [...start, ...here]); return; }
  const last = points[points.length - 1];
  if (Math.hypot(here[0] - last[0], here[1] - last[1]) < 0.004) return;
  points.push(here);
  const line = place.querySelector('.stroke');
  line.setAttribute('stroke-width', 1000 * Number(element.querySelector('.edit-canvas').dataset.width));
  line.setAttribute('points', points.map(([x, y]) => `${1000 * x},${1000 * y}`).join(' '));
});
element.addEventListener('pointerup', (event) => {
  const place = ground(event.target);
  if (!start || !place) { start = null; return; }
  const end = at(event, place), first = start;
  start = null;
  if (mode() === 'box') {
    if (Math.abs(end[0] - first[0]) > 0.01 && Math.abs(end[1] - first[1]) > 0.01) trigger('select', {box: sorted([...first, ...end])});
    return;
  }
  trigger('select', {stroke: points, width: Number(element.querySelector('.edit-canvas').dataset.width),
    side: mode() === 'beside' ? 'outside' : 'inside'});
});
element.addEventListener('pointercancel', () => { start = null; });
element.addEventListener('keydown', (event) => {
  const place = ground(event.target);
  if (!place || mode() !== 'box') return;
  const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
  const box = drawn(place);
  if (event.key === 'Enter') { draw(place, box); trigger('select', {box: sorted(box)}); return; }
  if (!step) return;
  event.preventDefault();
  const [x, y] = [0.02 * step[0], 0.02 * step[1]];
  const moved = event.shiftKey ? [box[0], box[1], box[2] + x, box[3] + y] : [box[0] + x, box[1] + y, box[2] + x, box[3] + y];
  if (moved.every((value) => value >= 0 && value <= 1) && moved[2] - moved[0] > 0.02 && moved[3] - moved[1] > 0.02) draw(place, moved);
});
