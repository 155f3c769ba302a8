"""Named arrays as parts of one flat vector: how parameters and gradients travel to and from a parameter server."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from broker.errors import InvalidValue, ProtocolError
from clients.training.optimizers import FloatArray


@dataclass(frozen=True, slots=True)
class Layout:
    """Which part of the vector is which array; the arrays follow one another in C order.

    Attributes:
        shapes: of the arrays, by name, in the order of the vector.
        dtype: of all of them, `float32` or `float64`.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtype: str

    @classmethod
    def of(cls, parameters: Mapping[str, FloatArray]) -> Self:
        """The layout of some arrays.

        Raises:
            InvalidValue: they are no dict of numpy's arrays, there is none, they differ in dtype, or are not of float32
                or float64.
        """
        if not isinstance(parameters, Mapping):
            raise InvalidValue(
                "parameters", type(parameters).__name__, "must be a dict of numpy's arrays by their names"
            )
        for name, array in parameters.items():
            if not isinstance(array, np.ndarray):
                problem = "must be an array of numpy; a torch tensor's detach().numpy() is one over the same memory"
                raise InvalidValue(f"parameter {name!r}", type(array).__name__, problem)
        dtypes = {array.dtype.name for array in parameters.values()}
        if len(dtypes) != 1 or not dtypes <= {"float32", "float64"}:
            problem = "must be one, float32 or float64, for all parameters"
            raise InvalidValue("dtypes of the parameters", sorted(dtypes), problem)
        return cls({name: array.shape for name, array in parameters.items()}, dtypes.pop())

    @classmethod
    def read(cls, told: object) -> Self:
        """What `tell` gave, on the other side.

        Raises:
            ProtocolError: it is something else.
        """
        match told:
            case {"names": [*names], "shapes": [*shapes], "dtype": str(dtype)} if len(names) == len(shapes):
                return cls({str(name): tuple(shape) for name, shape in zip(names, shapes, strict=True)}, dtype)
        raise ProtocolError(f"the parameter server told {told!r} as its layout")

    def tell(self) -> dict[str, object]:
        """The layout as a value that can be sent."""
        shapes = [list(shape) for shape in self.shapes.values()]
        return {"names": list(self.shapes), "shapes": shapes, "dtype": self.dtype}

    @property
    def size(self) -> int:
        """Elements of the vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def pack(self, arrays: FloatArray | Mapping[str, FloatArray]) -> FloatArray:
        """One vector of several arrays; one that is given is checked and returned as it is.

        Raises:
            InvalidValue: names, shapes or the dtype of the vector are not those of the layout.
        """
        if not isinstance(arrays, Mapping):
            if arrays.shape != (self.size,) or arrays.dtype.name != self.dtype:
                problem = f"is not {self.dtype}[{self.size}], all parameters one after another"
                raise InvalidValue("vector", f"{arrays.dtype}{list(arrays.shape)}", problem)
            return arrays
        if arrays.keys() != self.shapes.keys():
            raise InvalidValue("names of the arrays", sorted(arrays), f"are not {sorted(self.shapes)}")
        flat = np.empty(self.size, self.dtype)
        for name, view in self.views(flat).items():
            if arrays[name].shape != view.shape:
                raise InvalidValue(f"array {name!r} of shape", arrays[name].shape, f"is not of shape {view.shape}")
            view[...] = arrays[name]
        return flat

    def views(self, flat: FloatArray) -> dict[str, FloatArray]:
        """The arrays, by name, in the memory of the vector."""
        views = {}
        start = 0
        for name, shape in self.shapes.items():
            stop = start + math.prod(shape)
            views[name] = flat[start:stop].reshape(shape)
            start = stop
        return views
