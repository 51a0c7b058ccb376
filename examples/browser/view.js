// How the page writes what it has to say.

export const $ = (id) => document.getElementById(id);

export const inMegabytes = (bytes) => (bytes / 1e6).toFixed(1);

export function element(tag, properties, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** A button with an image and its name. */
export function makeTile(name, src) {
  const label = element("span", { className: "name", textContent: name, title: name });
  return element("button", { type: "button" }, element("img", { src, alt: "" }), label);
}

/** Tells what is going on, and how far it is where `max` is given; 0 is not known. */
export function say(text, value, max) {
  $("status").textContent = text;
  $("status").ariaBusy = max !== undefined; // a screen reader waits for the outcome
  $("progress").hidden = max === undefined;
  if (max) Object.assign($("progress"), { max, value });
  else $("progress").removeAttribute("value");
}

/** Adds an error to the list. */
export function complain(text) {
  $("errors").append(element("li", { textContent: text }));
}

/** Writes a graph's size beside its radio button. */
export function stateSize(graph, bytes) {
  graph.parentElement.querySelector("small").textContent = bytes ? `${inMegabytes(bytes)} MB` : "";
}
