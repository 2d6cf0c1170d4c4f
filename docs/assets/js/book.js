// What the page does when scripts run: symbols light up together, code can be copied, records open beside their check.
// Everything is readable without it.

const all = (selector, root = document) => [...root.querySelectorAll(selector)];

// --- Symbols -------------------------------------------------------------------------------------------------------
// A symbol of a notation table, wherever it stands in formulas, prose or code, carries data-sym. Pointing at one or
// focusing it lights every place up; a click or tap keeps it lit and puts it into the address, so it can be shared.

const symbols = {
  pinned: null,
  note: null,

  places(id) {
    return all(`[data-sym="${CSS.escape(id)}"]`);
  },

  // The row of the notation table that defines the symbol.
  definition(id) {
    return this.places(id).map((place) => place.closest("td")?.closest("tr")).find(Boolean);
  },

  light(id) {
    for (const place of all(".lit")) place.classList.remove("lit");
    if (id) for (const place of this.places(id)) place.classList.add("lit");
  },

  show(place) {
    const id = place.dataset.sym;
    this.light(id);
    const row = this.definition(id);
    if (!row || row.contains(place)) return this.hideNote();
    const [symbol, , shape, meaning] = row.cells;
    this.note ??= document.body.appendChild(Object.assign(document.createElement("div"), { className: "symbol-note" }));
    this.note.setAttribute("role", "status");
    this.note.innerHTML = `${symbol.innerHTML} &nbsp;<code>${shape.textContent}</code><br>${meaning.innerHTML}`;
    this.note.hidden = false;
    const box = place.getBoundingClientRect();
    const left = Math.min(box.left, document.documentElement.clientWidth - this.note.offsetWidth - 12);
    const above = box.top - this.note.offsetHeight - 8;
    this.note.style.left = `${Math.max(8, left) + scrollX}px`;
    this.note.style.top = `${(above > 64 ? above : box.bottom + 8) + scrollY}px`;
  },

  hideNote() {
    if (this.note) this.note.hidden = true;
  },

  rest() {
    this.hideNote();
    this.light(this.pinned);
  },

  pin(id) {
    this.pinned = this.pinned === id ? null : id;
    history.replaceState(null, "", this.pinned ? `#sym=${encodeURIComponent(this.pinned)}` : location.pathname);
    this.light(this.pinned);
  },

  fromAddress() {
    const match = location.hash.match(/^#sym=(.+)$/);
    if (!match) return;
    this.pinned = decodeURIComponent(match[1]);
    this.light(this.pinned);
    (this.definition(this.pinned) ?? this.places(this.pinned)[0])?.scrollIntoView({ block: "center" });
  },

  start() {
    const symbolAt = (event) => event.target.closest?.("[data-sym]");
    document.addEventListener("pointerover", (event) => {
      const place = symbolAt(event);
      if (place) this.show(place);
      else if (!document.activeElement?.dataset?.sym) this.rest();
    });
    document.addEventListener("focusin", (event) => (symbolAt(event) ? this.show(symbolAt(event)) : this.rest()));
    document.addEventListener("click", (event) => {
      const place = symbolAt(event);
      if (place && !event.target.closest("a")) this.pin(place.dataset.sym);
    });
    document.addEventListener("keydown", (event) => {
      const id = document.activeElement?.dataset?.sym;
      if (id && (event.key === "Enter" || event.key === " ")) {
        event.preventDefault();
        this.pin(id);
      }
      if (event.key === "Escape" && this.pinned) this.pin(this.pinned);
      if (event.key === "Escape") this.hideNote();
    });
    addEventListener("hashchange", () => this.fromAddress());
    this.fromAddress();
  },
};

// --- Copying -------------------------------------------------------------------------------------------------------
// One button a function: its source, signature and docstring rows joined, without line numbers or shapes.

function copyButtons() {
  const sources = new Map();
  for (const cell of all(".code[data-qualname]")) {
    const owner = cell.dataset.qualname.split(".")[0];
    sources.set(owner, [...(sources.get(owner) ?? []), cell]);
  }
  for (const [name, cells] of sources) addButton(cells[0], name, () => cells.map(codeOf).join("\n"));
  for (const block of all(".highlight, .cell-code")) addButton(block, "code", () => codeOf(block));
}

function codeOf(cell) {
  const lines = all(".line", cell);
  const text = lines.length ? lines.map((line) => line.textContent.replace(/\n$/, "")).join("\n") : cell.querySelector("code").textContent;
  return text.replace(/\n+$/, "");
}

function addButton(host, name, text) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "copy", textContent: "Copy" });
  button.setAttribute("aria-label", `Copy ${name}`);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text());
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  host.prepend(button);
}

// --- Records -------------------------------------------------------------------------------------------------------
// The browser opens them (popover); this only moves them next to the pill.

function placeRecords() {
  let opened = 0;
  for (const record of all(".record[popover]")) {
    record.addEventListener("beforetoggle", () => (opened = scrollY));
    record.addEventListener("toggle", (event) => {
      if (event.newState !== "open") return;
      const pill = document.querySelector(`[popovertarget="${record.id}"]`).getBoundingClientRect();
      const left = Math.min(pill.left, document.documentElement.clientWidth - record.offsetWidth - 12);
      const below = pill.bottom + 8;
      const fits = below + record.offsetHeight < innerHeight;
      record.style.inset = `${fits ? below : pill.top - record.offsetHeight - 8}px auto auto ${Math.max(8, left)}px`;
    });
  }
  const leave = () => Math.abs(scrollY - opened) > 60 && all(".record:popover-open").forEach((record) => record.hidePopover());
  addEventListener("scroll", leave, { passive: true });
}

// --- The switch for shapes is remembered -----------------------------------------------------------------------------

function rememberShapes() {
  const box = document.getElementById("shapes");
  if (!box) return;
  try {
    box.checked = localStorage.getItem("shapes") !== "off";
    box.addEventListener("change", () => localStorage.setItem("shapes", box.checked ? "on" : "off"));
  } catch {
    // Storage is off: the switch works, and forgets.
  }
}

// --- Code that scrolls inside itself can be reached with the keyboard ------------------------------------------------

function scrollableCode() {
  for (const block of all("pre, .katex-display, table")) {
    if (block.scrollWidth > block.clientWidth) block.tabIndex = 0;
    else block.removeAttribute("tabindex");
  }
}

symbols.start();
copyButtons();
placeRecords();
rememberShapes();
scrollableCode();
addEventListener("resize", scrollableCode);
