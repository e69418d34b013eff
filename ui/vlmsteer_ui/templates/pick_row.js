const open = (target) => {
  const row = target.closest('[data-item]');
  if (row) trigger('select', {item: Number(row.dataset.item)});
};
element.addEventListener('click', (event) => open(event.target));
element.addEventListener('keydown', (event) => { if (event.key === 'Enter') open(event.target); });
