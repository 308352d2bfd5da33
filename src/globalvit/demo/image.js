// One file at a time, whichever way it comes. The server checks everything again.
const send = async (file) => {
  if (!file || element.ariaBusy === "true") return;
  const about = { name: file.name, size: file.size };
  if (file.size > props.limit) return trigger("upload", about);
  element.ariaBusy = "true";
  try {
    about.path = (await upload(file)).path;
  } catch (error) {
    console.warn(error);
  } finally {
    element.ariaBusy = "false";
  }
  trigger("upload", about);
};
const hover = (isOver) => element.classList.toggle("is-over", isOver);
element.addEventListener("change", (event) => {
  if (event.target.type !== "file") return;
  send(event.target.files[0]);
  event.target.value = "";
});
element.addEventListener("dragover", (event) => {
  event.preventDefault();
  hover(true);
});
element.addEventListener("dragleave", () => hover(false));
element.addEventListener("drop", (event) => {
  event.preventDefault();
  hover(false);
  send(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (event.clipboardData.files.length) send(event.clipboardData.files[0]);
});
