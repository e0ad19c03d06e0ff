"""Exported files: a finished network in the format of another runtime, and checked there.

    formats       the table of formats: suffix, packages, which file here writes and opens them
    tensors       inputs and outputs of a file, and how they hold real numbers
    graph         image -> logits as one function of TensorFlow, in a SavedModel
    litert        LiteRT (TensorFlow Lite): writes, names, refuses, opens
    onnx_file     ONNX: the same, through tf2onnx and onnxruntime
    saved_model   SavedModel: a copy, opened as a teacher's is
    page          a page for a browser (page.html, page.js, network.js), checked in V8
    operations    a network as a list of simple operations, for network.js
    drawing       how large and thick things are in a data set, for drawings like them
    calibration   the training images that set the ranges of int8 numbers
    network       a file as a Keras network that is only asked, for teachers
    check         how far a file is from the network that it was made of, and what to say of that
    cost          latency and peak memory, in processes of their own
    runner        what such a process runs: the file, with NumPy and its runtime alone
    record        NAME.json, written last: where it is, the file is whole and was checked

To add a format: write a file here with two functions,

    convert(graph, path, precision, images) -> None    writes `graph.Graph` to `path`
    open_file(path, threads=None) -> tensors.Opened    opens any such file for inference

and a branch in `runner` that opens it with its runtime alone. Add a row to `formats.FORMATS`, and
its name to `FORMATS` in `config.keys`. `convert` raises `CantConvertError` with what stands in the
way; `open_file` raises ConfigError for a file that can't be read, or that would run code.
"""
