(() => {
  const figure = (target) => target.closest && target.closest('.figure');
  const tell = (target) => {
    const cell = target.closest && target.closest('[data-tip]');
    const place = cell && figure(cell).querySelector('.tip');
    if (place && !figure(cell).querySelector('.locked')) place.textContent = cell.dataset.tip;
  };
  document.addEventListener('pointerover', (event) => tell(event.target));
  document.addEventListener('focusin', (event) => tell(event.target));
  document.addEventListener('click', (event) => {
    const full = event.target.closest('.figure .full'), cell = event.target.closest('[data-tip]');
    if (full) document.fullscreenElement ? document.exitFullscreen() : figure(full).requestFullscreen();
    if (!cell) return;
    const before = figure(cell).querySelector('.locked');
    if (before) before.classList.remove('locked');
    tell(cell);
    if (before !== cell) cell.classList.add('locked');
  });
  document.addEventListener('keydown', (event) => {
    if (event.key === 'Enter' && event.target.matches('#panel input[type="number"]')) event.target.blur(); // takes effect
    const cell = event.target.closest && event.target.closest('td [data-tip]');
    const step = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[event.key];
    if (!cell || !step) return;
    const at = cell.closest('td'), row = at.parentElement.parentElement.rows[at.parentElement.sectionRowIndex + step[0]];
    const next = row && row.cells[at.cellIndex + step[1]]?.querySelector('[data-tip]');
    if (next) { event.preventDefault(); next.focus(); }
  });
})();
