// What happens in the page that kd writes: a picture comes in, and probabilities are shown.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const [height, width, channels] = data.shape;
  const networks = data.networks.map((one) => ({ ...one, run: kd.network(one) }));
  const at = (id) => document.getElementById(id);
  const SHOWN = 20; // classes; of more the most probable ones

  const element = (kind, options = {}, ...children) => {
    const made = Object.assign(document.createElement(kind), options);
    made.append(...children);
    return made;
  };

  const paint = (canvas, pixels) => {
    canvas.width = width; canvas.height = height;
    const context = canvas.getContext("2d"), image = context.createImageData(width, height);
    for (let i = 0; i < width * height; i++) {
      for (let c = 0; c < 3; c++) image.data[4 * i + c] = pixels[i * channels + (channels === 1 ? 0 : c)];
      image.data[4 * i + 3] = 255;
    }
    context.putImageData(image, 0, 0);
  };

  const percent = (share) => `${(100 * share).toFixed(1)}\u00a0%`;
  const word = (role) => role[0].toUpperCase() + role.slice(1);

  // Shows what the networks say of an image: pixels 0..255 in the order [height, width, channels].
  const show = (pixels, truth = null) => {
    paint(at("seen"), pixels);
    const started = performance.now();
    const found = networks.map((one) => {
      const logits = one.run(pixels), shares = kd.probabilities(logits);
      return { ...one, logits: [...logits], shares, top: shares.indexOf(Math.max(...shares)) };
    });
    const took = performance.now() - started;
    const sum = (n) => found.reduce((total, one) => total + one.shares[n], 0);
    let rows = data.classes.map((_, n) => n);
    if (rows.length > SHOWN) {
      rows = rows.sort((a, b) => sum(b) - sum(a)).slice(0, SHOWN);
      if (truth !== null && !rows.includes(truth)) rows.push(truth);
    }
    at("table").tBodies[0].replaceChildren(...rows.map((n) => element("tr", {},
      element("th", { scope: "row" }, data.classes[n], ...(n === truth ? [" ", element("small", {}, "true")] : [])),
      ...found.map((one) => {
        const bar = element("i"), top = n === one.top ? " top" : "";
        bar.style.width = `${100 * one.shares[n]}%`;
        bar.setAttribute("aria-hidden", "true");
        const number = element("span", {}, percent(one.shares[n]));
        return element("td", { className: one.role + top }, element("div", { className: "bar" }, element("div", {}, bar), number));
      }))));
    at("table").hidden = false;
    const says = found.map((one) => `${word(one.role)}: ${data.classes[one.top]}, ${percent(one.shares[one.top])}.`);
    if (truth !== null) says.push(`True class: ${data.classes[truth]}.`);
    at("answer").textContent = says.join(" ");
    const many = found.length > 1 ? "both networks" : "the network";
    at("size").textContent = `${width} × ${height} pixels. Computing ${many} took ${took.toFixed(1)} ms.`;
    return found;
  };

  // One axis of a resized image: for each pixel the first of its sources, and their weights, which
  // fall off to both sides like a triangle. kd resizes the images of a folder in the same way.
  const triangles = (from, to) => {
    const scale = from / to, reach = Math.max(scale, 1);
    return Array.from({ length: to }, (_, i) => {
      const centre = (i + 0.5) * scale;
      const first = Math.max(Math.floor(centre - reach), 0), end = Math.min(Math.ceil(centre + reach), from);
      const weights = [];
      for (let j = first; j < end; j++) weights.push(Math.max(1 - Math.abs(j + 0.5 - centre) / reach, 0));
      const sum = weights.reduce((a, b) => a + b, 0);
      return { first, weights: weights.map((one) => one / sum) };
    });
  };

  // The network's pixels of a picture in red, green, blue and opacity, which does not count.
  const resized = ({ data: source, width: wide, height: high }) => {
    const grey = (i) => Math.round(0.299 * source[i] + 0.587 * source[i + 1] + 0.114 * source[i + 2]);
    const lines = new Float32Array(high * width * channels), out = new Uint8ClampedArray(height * width * channels);
    triangles(wide, width).forEach(({ first, weights }, x) => {
      for (let y = 0; y < high; y++) for (let c = 0; c < channels; c++) {
        let sum = 0;
        weights.forEach((weight, j) => {
          const place = 4 * (y * wide + first + j);
          sum += weight * (channels === 1 ? grey(place) : source[place + c]);
        });
        lines[(y * width + x) * channels + c] = sum;
      }
    });
    triangles(high, height).forEach(({ first, weights }, y) => {
      for (let i = 0; i < width * channels; i++) {
        let sum = 0;
        weights.forEach((weight, j) => { sum += weight * lines[(first + j) * width * channels + i]; });
        out[y * width * channels + i] = sum;
      }
    });
    return out;
  };

  let picture = null;
  const showPicture = () => show(at("swap").checked ? picture.map((pixel) => 255 - pixel) : picture);
  const open = async (file) => {
    if (!file) return;
    try {
      const bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
      const canvas = element("canvas", { width: bitmap.width, height: bitmap.height });
      const context = canvas.getContext("2d", { willReadFrequently: true });
      context.drawImage(bitmap, 0, 0);
      picture = resized(context.getImageData(0, 0, bitmap.width, bitmap.height));
    } catch {
      at("answer").textContent = `Your browser can't read ${file.name || "this"} as a picture.`;
      return;
    }
    if (channels === 1) at("swap-line").hidden = false;
    showPicture();
  };

  // Lines are kept as points in units of the paper's width, and drawn anew at the data set's size.
  let lines = [];
  const trace = (context, scale, x, y, pen) => {
    context.lineCap = context.lineJoin = "round";
    context.lineWidth = pen;
    for (const line of lines) {
      context.beginPath();
      line.forEach((point, i) => context[i ? "lineTo" : "moveTo"](point[0] * scale + x, point[1] * scale + y));
      context.lineTo(line[0][0] * scale + x + (line.length === 1 ? 0.01 : 0), line[line.length - 1][1] * scale + y);
      context.stroke();
    }
  };
  const penOnPaper = () => data.drawing.pen / data.drawing.side * 0.7;

  const drawn = () => {
    const { side, centre, pen, paper, ink } = data.drawing;
    const fine = Math.max(1, Math.round(256 / Math.max(width, height)));
    const canvas = element("canvas", { width: width * fine, height: height * fine });
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const points = lines.flat(), xs = points.map((p) => p[0]), ys = points.map((p) => p[1]);
    const box = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const scale = Math.max(side - pen, 1) / Math.max(box[1] - box[0], box[3] - box[2], 0.1);
    const shares = (x, y) => { // how much ink each pixel gets, with the box's middle at [x, y]
      context.clearRect(0, 0, canvas.width, canvas.height);
      trace(context, scale * fine, (x - scale * (box[0] + box[1]) / 2) * fine, (y - scale * (box[2] + box[3]) / 2) * fine, pen * fine);
      const opacity = context.getImageData(0, 0, canvas.width, canvas.height).data;
      const out = new Float32Array(width * height);
      for (let i = 3, n = 0; i < opacity.length; i += 4, n++) {
        const row = Math.floor(n / canvas.width / fine), column = Math.floor((n % canvas.width) / fine);
        out[row * width + column] += opacity[i] / 255 / fine ** 2;
      }
      return out;
    };
    const first = shares(width / 2, height / 2);
    let sum = 0, x = 0, y = 0;
    first.forEach((share, i) => { sum += share; x += share * (i % width + 0.5); y += share * (Math.floor(i / width) + 0.5); });
    // The centre of mass goes where it is in the data, as far as the box stays inside.
    const inside = (middle, extent, all) => (extent >= all ? all / 2 : Math.min(Math.max(middle, extent / 2), all - extent / 2));
    const places = shares(
      inside(width / 2 + centre[0] - x / sum, scale * (box[1] - box[0]) + pen, width),
      inside(height / 2 + centre[1] - y / sum, scale * (box[3] - box[2]) + pen, height));
    return Uint8ClampedArray.from(places, (share) => Math.round(paper + Math.min(share, 1) * (ink - paper)));
  };

  const refresh = () => {
    const canvas = at("paper"), context = canvas.getContext("2d"), dark = data.drawing.paper < 128;
    context.fillStyle = dark ? "#000" : "#fff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.strokeStyle = dark ? "#fff" : "#000";
    trace(context, canvas.width, 0, 0, penOnPaper() * canvas.width);
  };
  const draw = () => {
    const canvas = at("paper");
    const point = (event) => {
      const box = canvas.getBoundingClientRect();
      return [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.width];
    };
    let drawing = false;
    canvas.addEventListener("pointerdown", (event) => {
      drawing = true;
      lines.push([point(event)]);
      refresh(); show(drawn());
      try { canvas.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone */ }
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!drawing) return;
      lines[lines.length - 1].push(point(event));
      refresh();
    });
    for (const kind of ["pointerup", "pointercancel"]) canvas.addEventListener(kind, () => {
      if (drawing) show(drawn());
      drawing = false;
    });
    at("clear").addEventListener("click", () => { lines = []; refresh(); });
    at("draw").hidden = false;
    refresh();
  };

  const names = networks.map((one) => `${one.role} ${one.name}`).join(" and ");
  document.title = at("title").textContent = `Try ${names} on ${data.dataset}`;
  at("table").tHead.append(element("tr", {}, element("th", { scope: "col" }, "Class"),
    ...networks.map((one) => element("th", { scope: "col", className: one.role }, `${word(one.role)} (${one.name})`))));
  at("examples").append(...data.examples.map(({ pixels, label }) => {
    const image = kd.bytesOf(pixels), canvas = element("canvas");
    const button = element("button", { type: "button" }, canvas, data.classes[label]);
    button.setAttribute("aria-label", `Test image, true class ${data.classes[label]}`);
    paint(canvas, image);
    button.addEventListener("click", () => show(image, label));
    return element("li", {}, button);
  }));
  at("seen").width = width; at("seen").height = height;
  at("file").addEventListener("change", (event) => open(event.target.files[0]));
  at("swap").addEventListener("change", showPicture);
  addEventListener("paste", (event) => open(event.clipboardData.files[0]));
  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("over"); });
  addEventListener("dragleave", () => document.body.classList.remove("over"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("over");
    open(event.dataTransfer.files[0]);
  });
  if (data.drawing) draw();
  globalThis.kdPage = { data, networks, show, open }; // for tests, and for whoever is curious
})();
