"""Which operations of a detector's graph are not computed in int8, and which not in bfloat16."""

from vovnet.export.operations import Operation, float32_operations, float_operations

GRAPH = {
    "image": Operation("Parameter", []),
    "normalised": Operation("Subtract", ["image", None]),
    "stem": Operation("Convolution", ["normalised", None]),
    "relu": Operation("Relu", ["stem"]),
    "map": Operation("Convolution", ["relu", None]),
    "logits": Operation("Convolution", ["map", None]),
    "decoded": Operation("Exp", ["logits"]),
    "pooled": Operation("ROIAlign", ["map", "decoded", None]),
    "side": Operation("Subtract", ["decoded", "decoded"]),
    "inside": Operation("Less", ["side", None]),
    "cut": Operation("Multiply", ["pooled", "inside"]),
    "flat": Operation("Reshape", ["cut", None]),
    "score": Operation("MatMul", ["flat", None]),
    "softmax": Operation("Softmax", ["score"]),
    "pasted": Operation("MatMul", ["softmax", "decoded"]),
}


def test_only_the_network_before_its_last_layers_is_quantized() -> None:
    kept = ["image", "normalised", "logits", "decoded", "score", "softmax", "pasted"]
    assert float_operations(GRAPH) == kept


def test_arithmetic_with_coordinates_alone_is_not_the_networks() -> None:
    network = ["stem", "relu", "map", "pooled", "cut", "flat"]
    assert float32_operations(GRAPH) == [name for name in GRAPH if name not in network]
