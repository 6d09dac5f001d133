"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const images = data.images, key = "clearhead-tags-" + data.run;
  const element = (id) => document.getElementById(id);
  const make = (name, text, attributes = {}) => {
    const node = document.createElement(name);
    if (text) node.textContent = text;
    for (const [attribute, value] of Object.entries(attributes)) node.setAttribute(attribute, value);
    return node;
  };
  const colour = (value) => `var(--series-${[2, 3, 5, 4, 6, 1][value % 6]})`;

  let state = { values: data.values, tags: {}, history: [], at: 0 };
  let kept = true, saved = true;
  try {
    const stored = JSON.parse(localStorage.getItem(key));
    if (stored && Array.isArray(stored.values) && stored.tags) state = { ...state, ...stored };
  } catch { kept = false; }

  const save = () => {
    try {
      localStorage.setItem(key, JSON.stringify(state));
    } catch { kept = false; }
    if (!kept) {
      element("notice").textContent = "This browser does not keep progress for this page: download tags.csv before you close it.";
      element("notice").hidden = false;
    }
  };
  addEventListener("beforeunload", (event) => { if (!kept && !saved) event.preventDefault(); });

  const untagged = (from) => {
    for (let step = 0; step < images.length; step++) {
      const i = (from + step) % images.length;
      if (!(i in state.tags)) return i;
    }
    return -1;
  };
  const go = (i) => { state.at = (i + images.length) % images.length; save(); draw(); };
  const tag = (value) => {
    if (value >= state.values.length) return;
    const previous = state.at in state.tags ? state.tags[state.at] : null;
    state.history.push([state.at, previous]);
    state.tags[state.at] = value;
    saved = false;
    const next = untagged(state.at);
    go(next < 0 ? Math.min(state.at + 1, images.length - 1) : next);
  };
  const undo = () => {
    const last = state.history.pop();
    if (!last) return;
    if (last[1] === null) delete state.tags[last[0]]; else state.tags[last[0]] = last[1];
    saved = false;
    go(last[0]);
  };
  const remove = (value) => {
    state.values.splice(value, 1);
    for (const i of Object.keys(state.tags)) if (state.tags[i] > value) state.tags[i]--;
    state.history = [];
    save(); drawValues(); draw();
  };

  const drawValues = () => {
    element("choices").replaceChildren(...state.values.map((name, value) => {
      const button = make("button", "", { type: "button" });
      button.style.setProperty("--value", colour(value));
      button.append(make("i"), make("span", name), make("kbd", String(value + 1)));
      button.addEventListener("click", () => tag(value));
      return button;
    }));
    element("values").replaceChildren(...state.values.map((name, value) => {
      const row = make("li"), input = make("input", "", { "aria-label": `Name of tag ${value + 1}`, maxlength: "60" });
      input.value = name;
      input.addEventListener("change", () => {
        state.values[value] = input.value.trim().replace(/\s+/g, " ") || `tag ${value + 1}`;
        saved = false;
        save(); drawValues(); draw();
      });
      const button = make("button", "×", { type: "button", "aria-label": `Remove ${name}` });
      button.addEventListener("click", () => remove(value));
      row.append(make("kbd", String(value + 1)), input, button);
      return row;
    }));
    element("add").disabled = state.values.length >= 9;
  };

  const thumbs = images.map((image, i) => {
    const button = make("button", "", { type: "button" });
    button.append(make("img", "", { src: image.src, alt: "", loading: "lazy" }));
    button.addEventListener("click", () => { go(i); element("image").scrollIntoView({ block: "center" }); });
    const item = make("li");
    item.append(button);
    element("thumbs").append(item);
    return button;
  });

  const draw = () => {
    const image = images[state.at], own = state.tags[state.at], count = Object.keys(state.tags).length;
    element("image").src = image.src;
    element("image").alt = `${image.label}: ${image.file}`;
    element("image").className = image.tiny ? "tiny" : "";
    element("label").textContent = image.label;
    element("about").textContent = (image.predicted === image.label ? "predicted correctly" : `predicted ${image.predicted}`) + ` · ${image.file}`;
    element("position").textContent = `Image ${state.at + 1} of ${images.length}`;
    element("tagged").textContent = count === images.length ? "All images are tagged" : `${count} tagged`;
    element("bar").firstElementChild.style.width = `${100 * count / images.length}%`;
    element("bar").setAttribute("aria-valuemax", images.length);
    element("bar").setAttribute("aria-valuenow", count);
    element("undo").disabled = !state.history.length;
    element("download").textContent = `Download tags.csv (${count} tagged)`;
    element("download").disabled = !count;
    [...element("choices").children].forEach((button, value) => button.setAttribute("aria-pressed", value === own));
    [...element("values").children].forEach((row, value) => {
      const used = Object.values(state.tags).includes(value), button = row.querySelector("button");
      button.disabled = used || state.values.length <= 2;
      button.title = used ? "Images have this tag" : "";
    });
    thumbs.forEach((button, i) => {
      const value = state.tags[i], name = i in state.tags ? state.values[value] : "not tagged";
      button.className = i in state.tags ? "tagged" : "";
      button.style.setProperty("--value", colour(value || 0));
      button.setAttribute("aria-label", `${images[i].label}, ${name}`);
      button.setAttribute("aria-current", i === state.at);
    });
    drawCounts();
  };
  const drawCounts = () => {
    const head = make("tr");
    head.append(make("td"), ...state.values.map((name) => make("th", name, { scope: "col", class: "n" })));
    element("head").replaceChildren(head);
    element("counts").replaceChildren(...[...new Set(images.map((image) => image.label))].sort().map((label) => {
      const row = make("tr");
      row.append(make("th", label, { scope: "row" }), ...state.values.map((_, value) => {
        const number = images.filter((image, i) => image.label === label && state.tags[i] === value).length;
        return make("td", String(number), { class: "n" });
      }));
      return row;
    }));
  };

  const cell = (text) => /[",;\t\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  const download = () => {
    const rows = images.map((image, i) => [image.file, i in state.tags ? state.values[state.tags[i]] : "", image.label]);
    const text = [["file", "tag", "label"], ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
    const url = URL.createObjectURL(new Blob([text], { type: "text/csv;charset=utf-8" }));
    make("a", "", { href: url, download: "tags.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60000);
    saved = true;
  };

  element("undo").addEventListener("click", undo);
  element("previous").addEventListener("click", () => go(state.at - 1));
  element("next").addEventListener("click", () => go(state.at + 1));
  element("download").addEventListener("click", download);
  element("add").addEventListener("click", () => {
    state.values.push(`tag ${state.values.length + 1}`);
    save(); drawValues(); draw();
    element("values").lastElementChild.querySelector("input").select();
  });
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "INPUT") return;
    if (/^[1-9]$/.test(event.key)) tag(Number(event.key) - 1);
    else if (event.key === "z" || event.key === "Z" || event.key === "Backspace") undo();
    else if (event.key === "ArrowLeft") go(state.at - 1);
    else if (event.key === "ArrowRight") go(state.at + 1);
    else return;
    event.preventDefault();
  });
  drawValues();
  draw();
})();
