
// A page without a kernel: behind tree.js in one module. All steps are in the page; this is what the kernel would do with them.

const packed = Uint8Array.from(atob(document.getElementById("steps").textContent), (letter) => letter.charCodeAt(0));
const unpacked = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
const { now: first, sides } = await new Response(unpacked).json();
const last = Math.max(...sides.map((side) => side.tree.length)) - 1;
const slider = document.querySelector("input");
const models = [];
let now = first;

function go(step) {
  const goals = { next: now + 1, previous: now - 1, first: 0, last };
  now = Math.min(last, Math.max(0, goals[step] ?? Number(step)));
  slider.value = now;
  document.querySelector("output").textContent = `${now} (0 to ${last})`;
  for (const model of models) for (const action of model.actions) action();
}

function modelOf(side) {
  const at = () => Math.min(now, side.tree.length - 1);
  return {
    actions: [],
    get: (name) => (name === "code" ? side.code : name === "strip" ? side.strip.replace(`class="step" data-step="${at()}"`, `class="step now" data-step="${at()}"`) : side[name]?.[at()]), // a page is never stale
    on(event, action) {
      if (event === "msg:custom") action({ alive: true });
      else this.actions.push(action);
    },
    off() {},
    send: ({ step }) => step !== undefined && go(step),
  };
}

for (const side of sides) {
  const section = element(document.querySelector(".sides"), "section", "");
  const model = modelOf(side);
  render({ model, el: element(section, "div", "") });
  models.push(model);
}
slider.max = last;
slider.addEventListener("input", () => go(slider.value));
for (const button of document.querySelectorAll("[data-go]")) button.addEventListener("click", () => go(button.dataset.go));
document.addEventListener("keydown", (event) => {
  if (!goalOf(event)) return;
  go(goalOf(event));
  event.preventDefault();
});
try {
  const theme = parent.document.body.dataset.jpThemeLight; // inside a notebook: as JupyterLab's theme is
  if (theme) document.documentElement.dataset.jpThemeLight = theme;
} catch {} // a page that may not look: the browser's own preference
go(first);
