element.addEventListener('click', (event) => {
  const button = event.target.closest('[data-act]');
  if (button && !button.disabled) trigger('select', {act: button.dataset.act, name: button.dataset.name});
});
