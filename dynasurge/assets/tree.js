// The page's side of the tree: pan, zoom, hover and keys. What is drawn comes from Python (dynasurge/plots/tree_svg.py), as SVG and HTML
// text whose tokens are escaped there; nothing is fetched. The host element takes the keyboard once it is clicked.

const READABLE = 0.75; // the smallest scale at which a tree is shown unasked: letters of 9 pixels
const LARGEST = 1.25;
const PATIENCE = 4000; // milliseconds that a kernel may take to say that it is there
const LEGEND = { accepted: "accepted", stop: "verification stopped", bonus: "bonus", rejected: "rejected", untried: "never looked at" };
const KEYS = { ArrowRight: "next", ArrowLeft: "previous", Home: "first", End: "last" };

/** Where a key leads, if it is one that steps. */
const goalOf = (event) => (event.ctrlKey || event.metaKey || event.altKey ? undefined : KEYS[event.key]);

function element(parent, tag, className, text = "") {
  const node = document.createElement(tag);
  node.className = className;
  node.textContent = text;
  parent.append(node);
  return node;
}

/** Zoom and pan of the drawing inside `stage`; returns what the buttons and keys call. */
function viewport(stage) {
  let svg, size, view, moved; // moved: by the reader, whose view a new size of the page must not change
  const apply = () => svg?.setAttribute("viewBox", `${view.x} ${view.y} ${stage.clientWidth / view.k} ${stage.clientHeight / view.k}`);
  const zoom = (factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) => {
    if (!svg) return;
    const k = Math.min(4, Math.max(0.05, view.k * factor));
    view = { k, x: view.x + x / view.k - x / k, y: view.y + y / view.k - y / k };
    moved = true;
    apply();
  };
  const fit = (whole = true) => {
    if (!svg || !stage.clientWidth) return;
    moved = false;
    const [width, height] = [stage.clientWidth, stage.clientHeight];
    const room = Math.min(LARGEST, width / size.width, height / size.height);
    const k = whole ? room : Math.max(READABLE, room);
    // The root stays at the left edge, so that the eye need not look for it after each step.
    view = { k, x: 0, y: (size.height - height / k) / 2 };
    // Too large to be shown whole at a readable size: what verification did is in sight.
    const stop = (svg.querySelector("rect.stop") ?? svg.querySelector(".root rect")).getBBox();
    const inSight = (middle, all, shown) => Math.min(Math.max(0, middle - shown / 2), all - shown);
    if (size.height * k > height) view.y = inSight(stop.y + stop.height / 2, size.height, height / k);
    if (size.width * k > width) view.x = inSight(stop.x + stop.width / 2, size.width, width / k);
    apply();
  };
  const show = (markup) => {
    stage.innerHTML = markup;
    svg = stage.querySelector("svg");
    if (!svg) return;
    size = { width: svg.viewBox.baseVal.width, height: svg.viewBox.baseVal.height };
    svg.setAttribute("width", "100%");
    svg.setAttribute("height", "100%");
    for (const title of svg.querySelectorAll("title")) {
      title.parentNode.dataset.tip = title.textContent; // shown by us, at once and in the page's style
      title.remove();
    }
    fit(false);
  };
  let held = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button || !svg) return;
    held = { x: event.clientX, y: event.clientY, view };
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (!held) return;
    moved = true;
    view = { ...view, x: held.view.x - (event.clientX - held.x) / view.k, y: held.view.y - (event.clientY - held.y) / view.k };
    apply();
  });
  for (const name of ["pointerup", "pointercancel"]) stage.addEventListener(name, () => (held = null));
  stage.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // a plain wheel scrolls the page
      event.preventDefault();
      const box = stage.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY / 300), event.clientX - box.left, event.clientY - box.top);
    },
    { passive: false },
  );
  /** Bring a node into sight, once the page has its new size. */
  const reveal = (node) =>
    requestAnimationFrame(() => {
      if (!svg?.contains(node)) return;
      const box = node.getBBox();
      const inside = (at, size, start, shown) => Math.max(Math.min(start, at - 8), at + size + 8 - shown);
      view = { ...view, x: inside(box.x, box.width, view.x, stage.clientWidth / view.k), y: inside(box.y, box.height, view.y, stage.clientHeight / view.k) };
      moved = true;
      apply();
    });
  const observer = new ResizeObserver(() => (moved ? apply() : fit(false)));
  observer.observe(stage);
  return { show, zoom, fit, reveal, held: () => held !== null, stop: () => observer.disconnect() };
}

function hover(el, stage, tip, busy) {
  stage.addEventListener("pointermove", (event) => {
    const node = busy() ? null : event.target.closest?.("[data-tip]");
    tip.hidden = !node || node.classList.contains("pinned"); // the panel has its facts
    if (tip.hidden) return;
    const [name, ...facts] = node.dataset.tip.split("\n");
    tip.replaceChildren();
    element(tip, "b", "", name);
    for (const fact of facts) element(tip, "div", "", fact);
    const box = el.getBoundingClientRect();
    const x = Math.min(event.clientX - box.left + 14, box.width - tip.offsetWidth - 4);
    const below = event.clientY - box.top + 16;
    tip.style.left = `${Math.max(0, x)}px`;
    tip.style.top = `${below + tip.offsetHeight > box.height ? below - tip.offsetHeight - 26 : below}px`;
  });
  stage.addEventListener("pointerleave", () => (tip.hidden = true));
}

/** A click on a node, or Enter for the one where verification stopped, pins what both models thought likely in its place. */
function pinning(el, stage, panel, tip, reveal) {
  let node = null;
  const unpin = () => {
    if (panel.contains(document.activeElement)) el.focus(); // or the arrow keys would go to the page
    panel.hidden = true;
    node?.classList.remove("pinned");
    node = null;
  };
  const pin = (chosen) => {
    const again = chosen === node;
    unpin();
    const lists = JSON.parse(stage.querySelector("svg")?.dataset.likely || "[]")[chosen?.dataset.parent];
    if (again || !lists) return;
    node = chosen;
    node.classList.add("pinned");
    panel.replaceChildren();
    panel.hidden = false;
    const [name, ...facts] = node.dataset.tip.split("\n");
    element(panel, "b", "", name);
    for (const fact of facts) element(panel, "div", "", fact);
    element(panel, "div", "what", "The likeliest tokens in its place:");
    for (const [title, guesses] of Object.entries(lists)) {
      const table = element(panel, "table", "");
      element(table, "caption", "", title);
      for (const [text, chance, token] of guesses) {
        const row = element(table, "tr", String(token) === node.dataset.token ? "own" : "");
        element(row, "td", "", text);
        element(row, "td", "", chance);
      }
      if (!guesses.length) element(element(table, "tr", ""), "td", "", "not read");
    }
    const close = element(panel, "button", "", "×");
    close.title = "close (Esc)";
    close.setAttribute("aria-label", "close");
    close.addEventListener("click", unpin);
    tip.hidden = true;
    reveal(node);
  };
  let down = null;
  stage.addEventListener("pointerdown", (event) => (down = event.button ? null : [event.clientX, event.clientY, event.target.closest?.(".node")]));
  stage.addEventListener("pointercancel", () => (down = null));
  stage.addEventListener("pointerup", (event) => {
    const still = down && Math.hypot(event.clientX - down[0], event.clientY - down[1]) < 4; // not the end of a drag
    if (still) down[2] ? pin(down[2]) : unpin();
    down = null;
  });
  el.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !panel.hidden) unpin();
    else if (event.key === "Enter" && event.target === el) pin(stage.querySelector(".node.bonus") ?? stage.querySelector("rect.stop")?.closest(".node"));
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  return unpin;
}

function render({ model, el }) {
  el.classList.add("dynasurge");
  el.tabIndex = 0;
  el.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys for its cells
  const code = element(el, "code", "code");
  const status = element(el, "div", "status");
  status.setAttribute("aria-live", "polite");
  const text = element(el, "div", "text");
  const frame = element(el, "div", "frame");
  const view = element(frame, "div", "view");
  const stage = element(view, "div", "stage");
  const buttons = element(view, "div", "buttons");
  const strip = element(el, "div", "bars");
  const legend = element(el, "div", "hint");
  for (const [name, meaning] of Object.entries(LEGEND)) element(legend, "span", name, meaning);
  element(el, "div", "hint", "← → Home End: step · + − 0 or Ctrl+wheel: zoom · drag: move · click, or Enter: what both models thought likely there · round: sampled, square: chosen outright · ◌: a part of a letter · in the text: underlined as in the legend, struck out: drafted and not accepted");
  const tip = element(el, "div", "tip");
  tip.hidden = true;
  const panel = element(frame, "div", "panel");
  panel.hidden = true;
  panel.setAttribute("role", "status");

  const tree = viewport(stage);
  hover(el, stage, tip, tree.held);
  const unpin = pinning(el, stage, panel, tip, tree.reveal);
  const ask = (step) => model.send({ step });
  for (const [label, title, action] of [
    ["−", "zoom out", () => tree.zoom(1 / 1.3)],
    ["+", "zoom in", () => tree.zoom(1.3)],
    ["fit", "show the whole tree", () => tree.fit()],
  ]) {
    const button = element(buttons, "button", "", label);
    button.title = title;
    button.addEventListener("click", action);
  }
  strip.addEventListener("click", (event) => {
    const step = event.target.closest?.("[data-step]");
    if (step) ask(Number(step.dataset.step));
  });
  el.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (KEYS[event.key]) return step(event);
    if (event.key === "+" || event.key === "=") tree.zoom(1.3);
    else if (event.key === "-") tree.zoom(1 / 1.3);
    else if (event.key === "0") tree.fit();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });

  const update = {
    code: () => (code.textContent = model.get("code")),
    status: () => (status.textContent = model.get("status")),
    text: () => {
      text.innerHTML = model.get("text");
      text.scrollTop = text.scrollHeight;
    },
    tree: () => {
      tip.hidden = true;
      unpin();
      tree.show(model.get("tree"));
    },
    strip: () => (strip.innerHTML = model.get("strip")),
    stale: () => el.classList.toggle("stale", Boolean(model.get("stale"))),
  };
  const step = (event) => {
    if (!goalOf(event)) return;
    ask(goalOf(event));
    event.preventDefault();
    event.stopPropagation();
  };
  // In JupyterLab the keys hold in the whole explorer, after a click on a button, too. A field has its own use for them.
  let host = null;
  const elsewhere = (event) => event.target.closest("input, select, textarea, [role=slider]") || step(event);
  const adopt = () => {
    const output = el.closest(".jp-OutputArea-child");
    if (host || !output || output.dataset.lmSuppressShortcuts) return; // another view of this explorer has it
    host = output;
    host.dataset.lmSuppressShortcuts = "true";
    host.addEventListener("keydown", elsewhere);
  };
  const follow = new ResizeObserver(() => {
    text.scrollTop = text.scrollHeight; // a narrower page has more lines
    adopt();
  });
  follow.observe(text);
  for (const [name, action] of Object.entries(update)) {
    model.on(`change:${name}`, action);
    action();
  }
  // A view that was saved and opened again has no kernel: the page after it then takes its place (dynasurge/plots/page.py).
  let waiting;
  const waitOn = () => {
    waiting = setTimeout(() => (model.widget_manager?.kernel?.status === "busy" ? waitOn() : el.classList.add("dead")), PATIENCE);
  };
  const answered = ({ alive }) => {
    if (!alive) return;
    clearTimeout(waiting);
    el.classList.remove("dead");
  };
  waitOn();
  model.on("msg:custom", answered);
  model.send({ alive: true });
  return () => {
    clearTimeout(waiting);
    model.off("msg:custom", answered);
    tree.stop();
    follow.disconnect();
    host?.removeEventListener("keydown", elsewhere);
    if (host) delete host.dataset.lmSuppressShortcuts;
    for (const [name, action] of Object.entries(update)) model.off(`change:${name}`, action);
  };
}

export default { render }; // in a page of its own, page.js follows
