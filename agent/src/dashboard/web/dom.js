// Builds elements. Text only ever becomes text nodes: nothing here, and nothing that uses it, parses data as HTML.

const SVG = "http://www.w3.org/2000/svg";

// el("button.quiet", { type: "button", onclick: f }, "Save"): a tag with classes, properties, children.
// `data-*`, `aria-*` and other names with a dash are attributes; functions are listeners; null and false leave out.
export function el(spec, props, ...children) {
  const [tag, ...classes] = spec.split(".");
  const node = document.createElement(tag || "div");
  if (classes.length) node.className = classes.join(" ");
  set(node, props);
  node.append(...flat(children));
  return node;
}

export function svg(tag, attributes, ...children) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  node.append(...flat(children));
  return node;
}

export function set(node, props) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) {
      if (name.includes("-") || name === "hidden" || name === "disabled") node.removeAttribute(name);
    } else if (typeof value === "function") {
      node.addEventListener(name.slice(2), value);
    } else if (name === "class") {
      node.className = value;
    } else if (name === "text") {
      if (node.textContent !== String(value)) node.textContent = value;
    } else if (name === "vars") {
      for (const [key, item] of Object.entries(value)) node.style.setProperty(key, String(item));
    } else {
      node.setAttribute(name, value === true ? "" : String(value));
    }
  }
  return node;
}

function flat(children) {
  return children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false);
}

// Replaces what is in `node`; where the same element is given again it is moved, so that focus stays.
export function fill(node, ...children) {
  const wanted = flat(children);
  const focused = document.activeElement;
  node.replaceChildren(...wanted);
  if (focused && focused !== document.body && node.contains(focused)) focused.focus({ preventScroll: true });
  return node;
}

// Changes text only when it differs, so that a screen reader is not told again.
export function text(node, value) {
  const wanted = String(value ?? "");
  if (node.textContent !== wanted) node.textContent = wanted;
}

// Keeps one element for each key in `parent`, in the order of `items`; elements that stay are not touched by a move.
export function keyed(parent, known, items, keyOf, make) {
  const wanted = new Set();
  let place = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    wanted.add(key);
    let entry = known.get(key);
    if (!entry) {
      entry = make(item);
      known.set(key, entry);
    }
    entry.update(item);
    if (entry.node === place) {
      place = place.nextElementSibling;
    } else {
      const focused = entry.node.contains(document.activeElement) ? document.activeElement : null;
      parent.insertBefore(entry.node, place);
      focused?.focus({ preventScroll: true });
    }
  }
  for (const [key, entry] of known) {
    if (!wanted.has(key)) {
      entry.node.remove();
      known.delete(key);
    }
  }
}
