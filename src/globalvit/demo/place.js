// Places travel as parts of the image's width and height, so that its size on the page does not matter.
const STEP = 0.05;
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let isFollowed = false;
element.addEventListener("click", (event) => {
  const place = event.target.closest(".is-placed");
  if (!place) return;
  const box = place.getBoundingClientRect();
  trigger("select", { x: (event.clientX - box.left) / box.width, y: (event.clientY - box.top) / box.height });
});
element.addEventListener("keydown", (event) => {
  const place = event.target.closest(".is-placed");
  const arrow = ARROWS[event.key];
  if (!place || !arrow) return;
  event.preventDefault();
  isFollowed = true;
  trigger("select", { x: Number(place.dataset.x) + STEP * arrow[0], y: Number(place.dataset.y) + STEP * arrow[1] });
});
// The new map stands in a new element, which the keyboard goes on with.
watch("value", () => {
  if (isFollowed) element.querySelector(".is-placed")?.focus();
  isFollowed = false;
});
