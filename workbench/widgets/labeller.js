// A thin view: shows `state`, sends keys and clicks. Every text goes in as textContent, so markup stays text.

const MARKS = {
  right: ["✓", "right"], neutral: ["~", "neutral"], wrong: ["✗", "wrong"],
  skipped: ["–", "skipped"], unasked: ["", "not asked"], open: ["", ""],
};
const BUTTONS = [  // key, as shown, label, kind
  ["1", "1", "Right", "right"], ["0", "0", "Neutral", "neutral"], ["-", "−", "Wrong", "wrong"],
  [" ", "space", "Skip", "quiet"], ["u", "u", "Undo", "quiet"],
  ["p", "p", "Back", "quiet"], ["n", "n", "Next", "quiet"], ["?", "?", "Help", "quiet"],
];
const SHOWN = { " ": "space", "-": "−", ArrowDown: "↓", ArrowUp: "↑" };

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") node.textContent = value;
    else node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

function dark(element) {
  const [r, g, b] = (getComputedStyle(element).color.match(/[\d.]+/g) || [0, 0, 0]).map(Number);
  return 0.299 * r + 0.587 * g + 0.114 * b > 128;  // light letters: the page around us is dark
}

let views = 0;

function render({ model, el }) {
  const id = `labeller-${Date.now().toString(36)}-${views++}`;
  const at = (name) => ({ "data-testid": name, class: `wl-${name}` });

  const progress = make("span", at("progress"));
  const fill = make("div", { class: "wl-fill" });
  const bar = make("div", { class: "wl-bar", role: "progressbar", "aria-label": "chains labelled", "aria-valuemin": 0 }, fill);
  const problem = make("div", { ...at("problem"), id: `${id}-problem` });
  const list = make("div", {
    ...at("steps"), role: "listbox", tabindex: 0, "aria-label": "Steps of the solution",
    "aria-describedby": `${id}-problem`,
  });
  const buttons = BUTTONS.map(([key, shown, label, kind]) => {
    const button = make(
      "button",
      { type: "button", class: `wl-button wl-${kind}`, "data-testid": `key-${label.toLowerCase()}`,
        "aria-label": label, "aria-keyshortcuts": key === " " ? "Space" : key },
      make("span", { text: label }), make("kbd", { class: "wl-key", text: shown, "aria-hidden": "true" }),
    );
    button.addEventListener("mousedown", (event) => event.preventDefault());  // or Space would press it again
    button.addEventListener("click", (event) => {
      if (event.detail) list.focus({ preventScroll: true });
      press(key);
    });
    return button;
  });
  const actions = make("div", { class: "wl-actions" },
    make("div", { role: "toolbar", "aria-label": "Rate the step" }, ...buttons.slice(0, 4)),
    make("div", { role: "toolbar", "aria-label": "Move" }, ...buttons.slice(4)));
  const note = make("span", { ...at("note"), role: "status", "aria-live": "polite" });
  const error = make("div", { ...at("error"), role: "alert" });
  const stop = make("input", { type: "checkbox", ...at("stop") });
  const who = make("span", at("who"));
  const foot = make("div", { class: "wl-foot" }, note,
    make("label", { class: "wl-switch" }, stop, "stop at the first error"), who);
  const help = make("div", { ...at("help"), role: "region", "aria-label": "Keys" });
  help.hidden = true;
  const root = make(
    "div",
    { class: "workbench-labeller", role: "group", "aria-label": "Step labeller",
      "data-testid": "labeller", "data-lm-suppress-shortcuts": "true" },
    make("div", { class: "wl-head" }, make("span", { class: "wl-title", text: "Problem" }), progress),
    bar, problem, 
    make("div", { class: "wl-head" }, make("span", { class: "wl-title", text: "Steps" }),
      make("span", { class: "wl-hint", text: "click the steps to use the keys", "aria-hidden": "true" })),
    list, actions, help, error, foot,
  );
  el.append(root);

  const keys = new Set(), meanings = {};
  for (const [key, meaning] of model.get("keymap")) {
    keys.add(key);
    (meanings[meaning] ||= []).push(SHOWN[key] || key);
  }
  meanings["this help"] = ["?"];
  const table = make("dl", {});
  for (const [meaning, named] of Object.entries(meanings)) {
    table.append(make("dt", {}, ...named.map((text) => make("kbd", { class: "wl-key", text }))), make("dd", { text: meaning }));
  }
  help.append(table, make("p", { text:
    "Right: the step is correct and leads on. Neutral: correct, but it does not lead on, or is hard to follow. "
    + "Wrong: it says something false. Click a step, or use the arrows, to change what was said of it. "
    + "Mathematics is shown as plain text, as it was written." }));

  const send = (message) => model.send({ chain: model.get("state").chain, ...message });
  function press(key) {
    if (key === "?") help.hidden = !help.hidden;
    else send({ key });
  }

  root.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.key.length === 1) event.stopPropagation();  // a notebook deletes cells on d d
    if ((key === " " || key === "Enter") && event.composedPath()[0].matches("button, input")) return;
    if (key === "Escape" && !help.hidden) help.hidden = true;
    else if (key !== "?" && !keys.has(key)) return;
    else if (!event.repeat || key.startsWith("Arrow")) press(key);
    event.preventDefault();
    event.stopPropagation();
  });
  stop.addEventListener("change", () => send({ stop: stop.checked }));

  let seen = "";
  function draw() {
    const state = model.get("state");
    const all = state.done === state.chains;
    progress.textContent = state.progress;
    fill.style.width = `${(100 * state.done) / state.chains}%`;
    bar.setAttribute("aria-valuenow", state.done);
    bar.setAttribute("aria-valuemax", state.chains);
    problem.textContent = state.problem;
    list.replaceChildren(...state.steps.map((step, i) => {
      const [mark, word] = MARKS[step.said];
      const name = step.final ? "answer" : String(i + 1);
      const row = make(
        "div",
        { id: `${id}-${i}`, role: "option", class: `wl-step wl-said-${step.said}${i === state.step ? " wl-now" : ""}`,
          "data-testid": `step-${i}`, "data-said": step.said, "aria-selected": i === state.step,
          "aria-label": `${step.final ? "Answer" : `Step ${name}`}${word && `, ${word}`}: ${step.text}` },
        make("span", { class: "wl-number", text: name }), make("span", { class: "wl-text", text: step.text }),
        make("span", { class: "wl-mark" }, make("b", { text: mark }), make("span", { text: word })),
      );
      row.addEventListener("click", () => {
        if (getSelection().isCollapsed) send({ step: i });  // selecting text to copy is no choice
      });
      return row;
    }));
    if (state.step === null) list.removeAttribute("aria-activedescendant");
    else list.setAttribute("aria-activedescendant", `${id}-${state.step}`);
    const now = list.children[state.step ?? -1];
    if (now && seen) {  // keep the step in view inside the list, never scroll the page
      const [top, bottom] = [now.offsetTop, now.offsetTop + now.offsetHeight];
      if (top < list.scrollTop) list.scrollTop = top - 8;
      else if (bottom > list.scrollTop + list.clientHeight) list.scrollTop = bottom - list.clientHeight + 8;
    }
    if (seen && seen !== `${state.chain}`) list.scrollTop = now ? Math.max(0, now.offsetTop - 40) : 0;
    seen = `${state.chain}`;
    note.textContent = state.note || (all ? "Every chain is labelled. Thank you." : "");
    error.textContent = state.error;
    error.hidden = !state.error;
    stop.checked = state.stop;
    who.textContent = `${state.labeller} · ${state.journal ? `kept in ${state.journal}` : "not kept: no journal"}`;
    root.classList.toggle("wl-all", all);
  }

  const theme = () => root.setAttribute("data-theme", dark(el) ? "dark" : "light");
  const watch = new MutationObserver(theme);
  for (const node of [document.documentElement, document.body]) watch.observe(node, { attributes: true });
  const media = matchMedia("(prefers-color-scheme: dark)");
  media.addEventListener("change", theme);
  model.on("change:state", draw);
  draw();
  theme();
  const shown = new IntersectionObserver((entries) => {
    if (!entries.some((entry) => entry.isIntersecting)) return;
    shown.disconnect();
    theme();  // only now surely part of the page
    send({ look: true });
  });
  shown.observe(root);

  return () => {
    model.off("change:state", draw);
    media.removeEventListener("change", theme);
    watch.disconnect();
    shown.disconnect();
  };
}

export default { render };
