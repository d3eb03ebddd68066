"""The peer of the models' benchmark: times a model in onnxruntime, one thread, on request.

Reads lines `MODEL INPUT BATCH SECONDS` (tab-separated; INPUT holds little-endian float32) and answers each with one line of JSON:
nanoseconds of one run, and the scores of the first.
"""

import json
import sys
import time

import numpy as np
import onnxruntime

sessions = {}


def session_of(path):
    if path not in sessions:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        sessions[path] = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return sessions[path]


def measure(path, input_path, batch, seconds):
    session = session_of(path)
    given = session.get_inputs()[0]
    shape = [batch, *given.shape[1:]]
    feed = {given.name: np.fromfile(input_path, dtype="<f4").reshape(shape)}
    names = [output.name for output in session.get_outputs()]
    scores = session.run(["score"], feed)[0].reshape(-1)
    runs, spent = 1, 0
    while True:
        begin = time.perf_counter_ns()
        for _ in range(runs):
            session.run(names, feed)
        spent = time.perf_counter_ns() - begin
        if spent >= seconds * 1e9:
            return {"ns": spent / runs, "scores": [float(v) for v in scores]}
        runs = max(2 * runs, int(runs * seconds * 1.1e9 / max(spent, 1)))


print(json.dumps({"version": onnxruntime.__version__}), flush=True)
for line in sys.stdin:
    path, input_path, batch, seconds = line.rstrip("\n").split("\t")
    print(json.dumps(measure(path, input_path, int(batch), float(seconds))), flush=True)
