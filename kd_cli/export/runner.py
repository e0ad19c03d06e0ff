"""A process of its own: opens one file with its runtime alone, and says how long an image takes.

`cost` starts it. It imports nothing of kd, so that its memory is that of the runtime and the file.
Its one argument is a JSON object: format, file, image (an .npy of one image), threads, seconds.
It prints a JSON object: median_ms, p95_ms, runs, peak_memory_bytes.
"""

import atexit
import json
import re
import sys
import time
from pathlib import Path

import numpy as np

LEAST_RUNS, MOST_RUNS = 30, 500


def litert(file, image, threads):
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        from tensorflow.lite.python.interpreter import Interpreter
    interpreter = Interpreter(model_path=file, num_threads=threads)
    interpreter.allocate_tensors()
    inputs, outputs = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def run():
        interpreter.set_tensor(inputs["index"], image)
        interpreter.invoke()
        return interpreter.get_tensor(outputs["index"])

    return run


def saved_model(file, image, threads):
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1 if threads == 1 else 0)
    tf.config.set_visible_devices([], "GPU")
    loaded = tf.saved_model.load(file)
    signature = loaded.signatures["serving_default"]
    (name,) = signature.structured_input_signature[1]
    constant = tf.constant(image)

    def run(loaded=loaded):  # a signature holds its variables weakly
        return next(iter(signature(**{name: constant}).values())).numpy()

    return run


def onnx(file, image, threads):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda: session.run(None, {name: image})[0]


def page(file, image, threads):
    from py_mini_racer import MiniRacer

    engine = MiniRacer()
    atexit.register(engine.close)  # its threads must end before Python does
    data = re.search(r'id="data">(.*?)</script>', Path(file).read_text("utf-8"), re.DOTALL)[1]
    engine.eval(Path(__file__).with_name("network.js").read_text("utf-8"))
    engine.eval(f"const image = Float32Array.from({json.dumps(image.reshape(-1).tolist())});")
    engine.eval(f"const run = kd.network({data}.networks[0]);")
    return lambda: engine.eval("run(image)[0]")


RUNTIMES = {"litert": litert, "onnx": onnx, "saved_model": saved_model, "page": page}


def peak_memory():
    """The most memory that this process has had, in bytes. (ru_maxrss would count its parent's.)"""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmHWM:\s*(\d+) kB", status)[1])


def main():
    asked = json.loads(sys.argv[1])
    run = RUNTIMES[asked["format"]](asked["file"], np.load(asked["image"]), asked["threads"])
    for _ in range(3):
        run()
    seconds = []
    while len(seconds) < MOST_RUNS:
        if len(seconds) >= LEAST_RUNS and sum(seconds) >= asked["seconds"]:
            break
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    found = {
        "median_ms": 1e3 * float(np.median(seconds)),
        "p95_ms": 1e3 * float(np.percentile(seconds, 95)),
        "runs": len(seconds),
        "peak_memory_bytes": peak_memory(),
    }
    print(json.dumps(found))


main()
