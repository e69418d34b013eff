element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-step]");
  if (button) trigger("select", { step: Number(button.dataset.step) });
});
