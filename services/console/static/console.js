// What HTML alone cannot do: show a slider's value while it moves, and take a dropped or chosen photo at once.
document.addEventListener("input", (event) => {
  const shown = event.target.dataset.shows && document.getElementById(event.target.dataset.shows);
  if (shown) shown.value = event.target.value;
});

for (const form of document.querySelectorAll("[data-drop]")) {
  const file = form.querySelector("input[type=file]");
  file.addEventListener("change", () => file.files.length && form.requestSubmit());
  for (const name of ["dragenter", "dragover"]) {
    form.addEventListener(name, (event) => { event.preventDefault(); form.classList.add("over"); });
  }
  form.addEventListener("dragleave", () => form.classList.remove("over"));
  form.addEventListener("drop", (event) => {
    event.preventDefault();
    form.classList.remove("over");
    if (event.dataTransfer.files.length) {
      file.files = event.dataTransfer.files;
      form.requestSubmit();
    }
  });
}
