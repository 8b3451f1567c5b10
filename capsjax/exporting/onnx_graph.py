"""ONNX graphs, written as arithmetic on their values.

The operators are of version 18, so that runtimes since 2023 read the files.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
import onnx
from jaxtyping import Float
from onnx import helper, numpy_helper

_OPERATORS, _FILE_FORMAT = 18, 8

# The type in which weights are stored. They are float32 in every product.
Storage = Literal["float32", "float16", "int8"]


@dataclasses.dataclass(frozen=True, eq=False)
class Value:
    """An array in a graph; arithmetic on it adds nodes.

    Attributes:
        graph: The graph.
        name: The array's name there.
    """

    graph: "Graph"
    name: str

    # An array of NumPy on the left leaves the operator to this class.
    __array_ufunc__ = None

    def __add__(self, other: Any) -> "Value":
        return self.graph.node("Add", self, other)

    def __radd__(self, other: Any) -> "Value":
        return self.graph.node("Add", other, self)

    def __sub__(self, other: Any) -> "Value":
        return self.graph.node("Sub", self, other)

    def __rsub__(self, other: Any) -> "Value":
        return self.graph.node("Sub", other, self)

    def __mul__(self, other: Any) -> "Value":
        return self.graph.node("Mul", self, other)

    def __rmul__(self, other: Any) -> "Value":
        return self.graph.node("Mul", other, self)

    def __truediv__(self, other: Any) -> "Value":
        return self.graph.node("Div", self, other)

    def __rtruediv__(self, other: Any) -> "Value":
        return self.graph.node("Div", other, self)

    def __matmul__(self, other: Any) -> "Value":
        return self.graph.node("MatMul", self, other)

    def __neg__(self) -> "Value":
        return self.graph.node("Neg", self)

    def apply(self, kind: str, *others: Any, **attributes: Any) -> "Value":
        """Adds a node of an operator by its name in ONNX."""
        return self.graph.node(kind, self, *others, **attributes)

    def reshape(self, *shape: int) -> "Value":
        """Changes the shape; 0 keeps the size of the axis at that place."""
        return self.apply("Reshape", np.array(shape))

    def transpose(self, *axes: int) -> "Value":
        """Changes the order of the axes."""
        return self.apply("Transpose", perm=axes)

    def sum(self, axis: int) -> "Value":
        """Adds up along an axis, which keeps the size one."""
        return self.apply("ReduceSum", np.array([axis]))

    def norm(self) -> "Value":
        """Computes the norm along the last axis, which keeps the size one."""
        return self.apply("ReduceL2", np.array([-1]))

    def clip(self, low: Any = "", high: Any = "") -> "Value":
        """Limits the numbers from below, from above, or both."""
        return self.apply("Clip", low, high)


class Graph:
    """A graph that grows node by node.

    Attributes:
        storage: The type in which weights are stored.
    """

    def __init__(self, storage: Storage = "float32"):
        self.storage = storage
        self._nodes, self._arrays = [], []

    def node(self, kind: str, *operands: Any, **attributes: Any) -> Value:
        """Adds a node, and constants for the operands that are numbers."""
        names = [self._name_of(operand) for operand in operands]
        result = f"{kind}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, names, [result], **attributes))
        return Value(self, result)

    def _name_of(self, operand: Any) -> str:
        if isinstance(operand, Value):
            return operand.name
        if isinstance(operand, str):  # Empty: an optional operand is left out.
            return operand
        array = np.asarray(operand)
        is_whole = array.dtype.kind in "iu" and array.ndim > 0  # Axes and shapes.
        array = array.astype(np.int64 if is_whole else np.float32)
        return self._keep(array, f"constant_{len(self._arrays)}")

    def _keep(self, array: np.ndarray, name: str) -> str:
        self._arrays.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, name: str, array: Float[Any, "..."], *, axis: int) -> Value:
        """Adds a large array, in the type of the storage.

        Args:
            name: Its name in the file.
            array: The numbers.
            axis: The axis with one scale for each index, if they are stored as int8.
        """
        array = np.asarray(array, np.float32)
        if self.storage == "float32":
            return Value(self, self._keep(array, name))
        if self.storage == "float16":
            stored = Value(self, self._keep(array.astype(np.float16), name))
            return stored.apply("Cast", to=onnx.TensorProto.FLOAT)
        others = tuple(one for one in range(array.ndim) if one != axis)
        largest = np.abs(array).max(others, keepdims=True)
        scale = np.where(largest > 0, largest, 1) / np.float32(127)
        stored = Value(self, self._keep(np.rint(array / scale).astype(np.int8), name))
        scales = Value(self, self._keep(scale.reshape(-1), f"{name}/scale"))
        return stored.apply("DequantizeLinear", scales, axis=axis)

    def input(self, name: str) -> Value:
        """Returns the input of that name."""
        return Value(self, name)

    def model(
        self,
        name: str,
        inputs: Mapping[str, jax.ShapeDtypeStruct],
        outputs: Mapping[str, jax.ShapeDtypeStruct],
        values: Mapping[str, Value],
    ) -> onnx.ModelProto:
        """Makes a checked file of the graph.

        Args:
            name: The graph's name.
            inputs: Type and shape of each input; the first axis may have any size.
            outputs: Type and shape of each output, in the same way.
            values: The value of each output.
        """
        for output in outputs:
            node = helper.make_node("Identity", [values[output].name], [output])
            self._nodes.append(node)
        graph = helper.make_graph(
            self._nodes,
            name,
            [_info(*each) for each in inputs.items()],
            [_info(*each) for each in outputs.items()],
            self._arrays,
        )
        opset = helper.make_opsetid("", _OPERATORS)
        model = helper.make_model(
            graph,
            opset_imports=[opset],
            ir_version=_FILE_FORMAT,
            producer_name="capsjax",
        )
        onnx.checker.check_model(model, full_check=True)
        return model


def _info(name: str, array: jax.ShapeDtypeStruct) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(array.dtype))
    return helper.make_tensor_value_info(name, kind, ["batch", *array.shape[1:]])
