element.addEventListener('click', (event) => {
  const word = event.target.closest('[data-word]');
  if (word) trigger('select', {word: Number(word.dataset.word)});
});
