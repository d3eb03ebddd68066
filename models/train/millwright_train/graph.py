"""Building blocks of the ONNX graphs that are written by hand.

Owns the spelling of a file: operator set, names, the input `window` and the outputs `score` and `contribution`. Never
trains. What an engine lacks or is slow at is written with other operators here: scalers as Sub and Mul, an RBF kernel as
MatMul; trees are in `trees`.
"""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

# Within what the gateway's engine is tested with (9 to 18); the intermediate representation that came with it.
OPSET = 13
IR_VERSION = 7
# TreeEnsembleRegressor as all engines know it.
OPSET_ML = 3

# Standardised readings beyond this make no difference; their squares stay finite in float32.
Z_MAX = 1e6


class Graph:
    """A graph under construction; values are known by name."""

    def __init__(self, name, samples, channels):
        self.name = name
        self.samples = samples
        self.channels = channels
        self.window = "window"
        self._nodes = []
        self._constants = []

    def constant(self, values, dtype=np.float32):
        """A constant tensor."""
        name = f"c{len(self._constants)}"
        self._constants.append(numpy_helper.from_array(np.array(values, dtype=dtype, order="C"), name))
        return name

    def op(self, operator, *inputs, domain="", **attributes):
        """A node with one output, whose name is returned."""
        name = f"{operator.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], name=name, domain=domain, **attributes))
        return name

    def sum(self, value, axis, keepdims=0):
        """Sum over one axis."""
        return self.op("ReduceSum", value, self.constant([axis], np.int64), keepdims=keepdims)

    def mean(self, value, axis, keepdims=0):
        """Mean over one axis."""
        return self.op("ReduceMean", value, axes=[axis], keepdims=keepdims)

    def standardise(self, value, centre, scale):
        """`(value − centre) / scale`, clipped to ±`Z_MAX`; the subtraction comes first, where it is exact."""
        centred = self.op("Sub", value, self.constant(centre))
        scaled = self.op("Mul", centred, self.constant(1.0 / np.asarray(scale)))
        return self.op("Clip", scaled, self.constant(-Z_MAX), self.constant(Z_MAX))

    def affine(self, value, matrix, offset=None):
        """`value · matrix + offset`."""
        product = self.op("MatMul", value, self.constant(matrix))
        return product if offset is None else self.op("Add", product, self.constant(offset))

    def square_distances(self, value, vectors):
        """`|value − vector|²`, `[batch, vectors]`, from one MatMul: |x − v|² = |x|² − 2·x·v + |v|²."""
        vectors = np.asarray(vectors, dtype=np.float64)
        square = self.sum(self.op("Mul", value, value), 1, keepdims=1)
        distance = self.op("Add", square, self.affine(value, -2.0 * vectors.T, (vectors**2).sum(axis=1)[None, :]))
        # Rounding may leave a trace below 0.
        return self.op("Relu", distance)

    def log_rbf(self, value, vectors, gamma, weights):
        """`ln Σ weight·exp(−γ·|value − vector|²)`, `[batch]`; the nearest vector is taken out of the sum, which would be 0 in
        `float32` some way off.
        """
        exponent = self.op("Mul", self.square_distances(value, vectors), self.constant(-gamma))
        nearest = self.op("ReduceMax", exponent, axes=[1], keepdims=1)
        near = self.op("Exp", self.op("Sub", exponent, nearest))
        total = self.affine(near, np.asarray(weights).reshape(-1, 1))
        return self.sum(self.op("Add", self.op("Log", total), nearest), 1)

    def finish(self, score, contribution=None):
        """The model, with `score: f32[batch]` and where given `contribution: f32[batch, channels]`."""
        nodes = list(self._nodes)
        outputs = [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])]
        nodes.append(helper.make_node("Identity", [score], ["score"], name="score"))
        if contribution is not None:
            outputs.append(helper.make_tensor_value_info("contribution", TensorProto.FLOAT, ["batch", self.channels]))
            nodes.append(helper.make_node("Identity", [contribution], ["contribution"], name="contribution"))
        window = helper.make_tensor_value_info("window", TensorProto.FLOAT, ["batch", self.samples, self.channels])
        graph = helper.make_graph(nodes, self.name, [window], outputs, self._constants)
        opsets = [helper.make_opsetid("", OPSET)]
        if any(node.domain == "ai.onnx.ml" for node in nodes):
            opsets.append(helper.make_opsetid("ai.onnx.ml", OPSET_ML))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="millwright-train")
        onnx.checker.check_model(model)
        return model


def adopt(model):
    """Takes over a file of an exporter with one input and two outputs: these get their names in the contract, and all between
    them short ones (an exporter's are paths, and may take half of the file).
    """
    ends = [value.name for value in (*model.graph.input, *model.graph.output)]
    if len(ends) != 3:
        raise ValueError(f"one input and two outputs are expected, not {ends}")
    names = dict(zip(ends, ("window", "score", "contribution")))

    def name(old):
        return names.setdefault(old, f"v{len(names)}") if old else old

    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type.lower()}_{number}"
        node.doc_string = ""
        for values in (node.input, node.output):
            values[:] = [name(value) for value in values]
    for constant in model.graph.initializer:
        constant.name = name(constant.name)
    for value in (*model.graph.input, *model.graph.output):
        value.name = name(value.name)
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return model
