element.addEventListener('click', (event) => {
  const cell = event.target.closest('[data-color]');
  if (cell) trigger('select', {color: cell.dataset.color});
});
