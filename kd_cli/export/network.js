// Computes a network that kd has written as a list of operations (kd_cli/export/operations.py).
// Plain JavaScript without a page: a browser, or an engine by itself, runs it.
"use strict";

const kd = (() => {
  const bytesOf = (text) => { // of base64; an engine by itself has no atob
    const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const value = new Uint8Array(128);
    for (let i = 0; i < 64; i++) value[digits.charCodeAt(i)] = i;
    const padding = text.endsWith("==") ? 2 : text.endsWith("=") ? 1 : 0;
    const bytes = new Uint8Array((text.length / 4) * 3);
    for (let i = 0, j = 0; i < text.length; i += 4, j += 3) {
      const four = (value[text.charCodeAt(i)] << 18) | (value[text.charCodeAt(i + 1)] << 12)
        | (value[text.charCodeAt(i + 2)] << 6) | value[text.charCodeAt(i + 3)];
      bytes[j] = four >> 16; bytes[j + 1] = four >> 8; bytes[j + 2] = four;
    }
    return bytes.slice(0, bytes.length - padding);
  };

  const half = (bits) => { // a float16 number
    const fraction = bits & 1023, exponent = (bits >> 10) & 31, sign = bits >> 15 ? -1 : 1;
    if (exponent === 31) return fraction ? NaN : sign * Infinity;
    return sign * (exponent ? (1 + fraction / 1024) * 2 ** (exponent - 15) : fraction * 2 ** -24);
  };

  const size = (shape) => shape.reduce((a, b) => a * b, 1);

  // Calls visit(place in a, place in b) for each number of an array of this shape, in its order;
  // places move by the steps of each axis.
  const walk = (shape, a, b, startA, startB, visit) => {
    const axes = shape.length, index = new Array(axes).fill(0);
    let x = startA, y = startB;
    for (let left = size(shape); left > 0; left--) {
      visit(x, y);
      for (let axis = axes - 1; axis >= 0; axis--) {
        x += a[axis]; y += b[axis];
        if (++index[axis] < shape[axis]) break;
        index[axis] = 0; x -= a[axis] * shape[axis]; y -= b[axis] * shape[axis];
      }
    }
  };
  const zeros = (shape) => shape.map(() => 0);

  // Sums over a window. Numbers next to each other in the image are so in the kernel, so where all
  // channels count, a row of the window is one run. Four filters share it: this is the slowest part.
  const convolution = (o, [image, kernel, bias], out) => {
    const [, height, width, channels] = o.image, [, rows, columns, filters] = o.shape;
    const [high, wide] = o.kernel, filter = kernel.length / filters, inner = filter / (high * wide);
    const add = bias || new Float32Array(filters), perGroup = filters / (channels / inner);
    const run = o.dilation[1] === 1 && inner === channels;
    for (let r = 0, place = 0; r < rows; r++) for (let c = 0; c < columns; c++, place += filters) {
      const top = r * o.strides[0] - o.before[0], left = c * o.strides[1] - o.before[1];
      const together = run ? filters - (filters % 4) : 0;
      const from = run ? Math.max(0, -left) : 0, to = run ? Math.min(wide, width - left) : wide;
      for (let f = 0; f < filters; f += f < together ? 4 : 1) {
        const group = inner * Math.floor(f / perGroup);
        let a = 0, b = 0, d = 0, e = 0;
        for (let i = 0; i < high; i++) {
          const y = top + i * o.dilation[0];
          if (y < 0 || y >= height) continue;
          for (let j = from; j < to; j += run ? wide : 1) {
            const x = left + j * o.dilation[1];
            if (x < 0 || x >= width) continue;
            const length = run ? (to - from) * inner : inner;
            let k = f * filter + (i * wide + j) * inner, p = (y * width + x) * channels + group;
            if (f < together) {
              for (const end = k + length; k < end; k++, p++) {
                const pixel = image[p];
                a += kernel[k] * pixel;
                b += kernel[k + filter] * pixel;
                d += kernel[k + 2 * filter] * pixel;
                e += kernel[k + 3 * filter] * pixel;
              }
            } else for (const end = k + length; k < end; k++, p++) a += kernel[k] * image[p];
          }
        }
        out[place + f] = a + add[f];
        if (f < together) {
          out[place + f + 1] = b + add[f + 1];
          out[place + f + 2] = d + add[f + 2];
          out[place + f + 3] = e + add[f + 3];
        }
      }
    }
  };

  // Calls visit(place in the image, place in the window, place in the result) for every channel of
  // every pixel of every window; end(place in the result, pixels of its window) after each window.
  const windows = (o, visit, end) => {
    const [, height, width, channels] = o.image, [, rows, columns, depth] = o.shape;
    const [down, across] = o.dilation || [1, 1];
    for (let r = 0, place = 0; r < rows; r++) for (let c = 0; c < columns; c++, place += depth) {
      let pixels = 0;
      for (let i = 0; i < o.kernel[0]; i++) {
        const y = r * o.strides[0] - o.before[0] + i * down;
        if (y < 0 || y >= height) continue;
        for (let j = 0; j < o.kernel[1]; j++) {
          const x = c * o.strides[1] - o.before[1] + j * across;
          if (x < 0 || x >= width) continue;
          visit((y * width + x) * channels, (i * o.kernel[1] + j) * depth, place);
          pixels++;
        }
      }
      if (end) end(place, pixels);
    }
  };

  const depthwise = (o, [image, kernel, bias], out) => {
    const depth = o.shape[3], each = depth / o.image[3];
    for (let i = 0; i < out.length; i++) out[i] = bias ? bias[i % depth] : 0;
    windows(o, (p, k, place) => {
      for (let f = 0; f < depth; f++) {
        out[place + f] += kernel[k + f] * image[p + (each === 1 ? f : Math.floor(f / each))];
      }
    });
  };
  const maxPool = (o, [image], out) => {
    const depth = o.shape[3];
    out.fill(-Infinity);
    windows(o, (p, k, place) => {
      for (let f = 0; f < depth; f++) {
        if (image[p + f] > out[place + f]) out[place + f] = image[p + f];
      }
    });
  };
  const averagePool = (o, [image], out) => {
    const depth = o.shape[3];
    windows(o, (p, k, place) => {
      for (let f = 0; f < depth; f++) out[place + f] += image[p + f];
    }, (place, pixels) => {
      for (let f = 0; f < depth; f++) out[place + f] /= pixels;
    });
  };

  const dense = (o, [input, weights, bias], out) => {
    const units = o.shape[o.shape.length - 1], inner = weights.length / units;
    for (let i = 0; i < out.length; i++) {
      const unit = i % units, start = ((i - unit) / units) * inner;
      let sum = bias ? bias[unit] : 0;
      for (let j = 0, k = unit * inner; j < inner; j++, k++) sum += input[start + j] * weights[k];
      out[i] = sum;
    }
  };
  const matmul = (o, [first, second], out) => {
    const outer = o.shape.slice(0, -2), [rows, columns] = o.shape.slice(-2), [a, b] = o.operands;
    let place = 0;
    walk(outer, a.outer, b.outer, 0, 0, (x, y) => {
      for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
        let sum = 0;
        for (let i = 0; i < o.inner; i++) {
          sum += first[x + r * a.rows + i * a.columns] * second[y + i * b.rows + c * b.columns];
        }
        out[place++] = sum;
      }
    });
  };

  const pointwise = (function_) => (o, [x], out) => {
    for (let i = 0; i < out.length; i++) out[i] = function_(x[i], o);
  };
  const pairwise = (function_) => (o, [a, b], out) => {
    let place = 0;
    walk(o.shape, o.steps[0], o.steps[1], 0, 0, (x, y) => { out[place++] = function_(a[x], b[y]); });
  };
  const reduction = (start, function_, end = (sum) => sum) => (o, [x], out) => {
    const sums = new Float64Array(out.length).fill(start);
    let from = 0;
    walk(o.over, o.steps, o.steps, 0, 0, (place) => { sums[place] = function_(sums[place], x[from++]); });
    for (let i = 0; i < out.length; i++) out[i] = end(sums[i], o.count);
  };
  const softmax = (logarithm) => (o, [x], out) => {
    const run = o.shape[o.shape.length - 1];
    for (let start = 0; start < out.length; start += run) {
      let largest = -Infinity, sum = 0;
      for (let i = start; i < start + run; i++) largest = Math.max(largest, x[i]);
      for (let i = start; i < start + run; i++) sum += Math.exp(o.beta * (x[i] - largest));
      for (let i = start; i < start + run; i++) {
        const shifted = o.beta * (x[i] - largest);
        out[i] = logarithm ? shifted - Math.log(sum) : Math.exp(shifted) / sum;
      }
    }
  };

  const copy = (o, [x], out) => {
    let place = 0;
    walk(o.shape, o.steps, o.steps, o.start, 0, (from) => { out[place++] = x[from]; });
  };
  const pad = (o, [x], out) => {
    let from = 0;
    out.fill(o.value);
    walk(o.image, o.steps, o.steps, o.start, 0, (place) => { out[place] = x[from++]; });
  };
  const join = (o, inputs, out) => {
    for (let place = 0, run = 0; place < out.length; run++) inputs.forEach((input, i) => {
      out.set(input.subarray(run * o.runs[i], (run + 1) * o.runs[i]), place);
      place += o.runs[i];
    });
  };
  const resize = (nearest) => (o, [image], out) => {
    const [, height, width, depth] = o.image, [, rows, columns] = o.shape;
    const source = (i, scale) => (o.half ? (i + 0.5) * scale - (nearest ? 0 : 0.5) : i * scale);
    const at = (y, x, f) => image[(y * width + x) * depth + f];
    const whole = o.corners ? Math.round : Math.floor;
    for (let r = 0, place = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
      const y = Math.max(source(r, o.scale[0]), 0), x = Math.max(source(c, o.scale[1]), 0);
      const top = Math.min(nearest ? whole(y) : Math.floor(y), height - 1);
      const left = Math.min(nearest ? whole(x) : Math.floor(x), width - 1);
      const bottom = Math.min(top + 1, height - 1), right = Math.min(left + 1, width - 1);
      const down = nearest ? 0 : y - top, across = nearest ? 0 : x - left;
      for (let f = 0; f < depth; f++) {
        out[place++] = (1 - down) * ((1 - across) * at(top, left, f) + across * at(top, right, f))
          + down * ((1 - across) * at(bottom, left, f) + across * at(bottom, right, f));
      }
    }
  };

  // Numerical Recipes, 2nd edition, section 6.2: a fractional error below 1.2e-7.
  const erf = (x) => {
    const t = 1 / (1 + Math.abs(x) / 2);
    const terms = [-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806, 0.27886807,
      -1.13520398, 1.48851587, -0.82215223, 0.17087277];
    const tail = t * Math.exp(-x * x + terms.reduceRight((sum, term) => sum * t + term, 0));
    return x < 0 ? tail - 1 : 1 - tail;
  };
  const between = (x, low, high) => Math.min(Math.max(x, low), high);
  const sigmoid = (x) => 1 / (1 + Math.exp(-x));

  const OPERATIONS = {
    convolution, depthwise, dense, matmul, copy, pad, join, max_pool: maxPool, average_pool: averagePool,
    relu: pointwise((x) => Math.max(x, 0)),
    relu6: pointwise((x) => between(x, 0, 6)),
    leaky_relu: pointwise((x, o) => (x < 0 ? o.slope * x : x)),
    elu: pointwise((x) => (x < 0 ? Math.expm1(x) : x)),
    logistic: pointwise(sigmoid),
    tanh: pointwise(Math.tanh),
    hard_swish: pointwise((x) => (x * between(x + 3, 0, 6)) / 6),
    gelu: pointwise((x) => (x * (1 + erf(x / Math.SQRT2))) / 2),
    gelu_tanh: pointwise((x) => x * sigmoid(2 * Math.sqrt(2 / Math.PI) * (x + 0.044715 * x ** 3))),
    exp: pointwise(Math.exp), log: pointwise(Math.log), sqrt: pointwise(Math.sqrt),
    rsqrt: pointwise((x) => 1 / Math.sqrt(x)), neg: pointwise((x) => -x), abs: pointwise(Math.abs),
    square: pointwise((x) => x * x),
    add: pairwise((x, y) => x + y), sub: pairwise((x, y) => x - y),
    mul: pairwise((x, y) => x * y), div: pairwise((x, y) => x / y),
    squared_difference: pairwise((x, y) => (x - y) ** 2), pow: pairwise(Math.pow),
    maximum: pairwise(Math.max), minimum: pairwise(Math.min),
    sum: reduction(0, (sum, x) => sum + x),
    mean: reduction(0, (sum, x) => sum + x, (sum, count) => sum / count),
    reduce_max: reduction(-Infinity, Math.max),
    softmax: softmax(false), log_softmax: softmax(true),
    resize_bilinear: resize(false), resize_nearest_neighbor: resize(true),
  };

  // A function from the pixels of an image, 0..255 in the order [height, width, channels], to its
  // logits.
  const network = (program) => {
    const bytes = bytesOf(program.weights), constants = {};
    let start = 0;
    for (const { value, count, half: short } of program.constants) {
      const stored = bytes.slice(start, start += count * (short ? 2 : 4)).buffer;
      constants[value] = short ? Float32Array.from(new Uint16Array(stored), half) : new Float32Array(stored);
    }
    return (pixels) => {
      const values = { ...constants, [program.image]: Float32Array.from(pixels) };
      for (const operation of program.operations) {
        const inputs = operation.in.map((number) => values[number]);
        if (operation.op === "reshape") [values[operation.out]] = inputs;
        else {
          values[operation.out] = new Float32Array(size(operation.shape));
          OPERATIONS[operation.op](operation, inputs, values[operation.out]);
        }
      }
      return values[program.logits];
    };
  };

  const probabilities = (logits) => {
    const out = new Float32Array(logits.length);
    softmax(false)({ shape: [logits.length], beta: 1 }, [logits], out);
    return out;
  };

  return { network, probabilities, bytesOf };
})();
