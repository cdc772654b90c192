"""What every backend says of its arrays, and their way from NumPy and back."""

from __future__ import annotations

import numpy as np
import pytest

import portconv
from portconv.core.backend import ArrayInfo


def test_describe(backend):
    library = portconv.get_backend(backend.package)
    default = str(pytest.importorskip("jax").devices()[0]).lower() if backend.package == "jax" else "cpu"
    for dtype in (*backend.dtypes, "uint8", "int32"):
        info = library.describe(backend.array(np.ones((2, 3)), dtype))
        assert isinstance(info, ArrayInfo)
        assert (info.shape, info.dtype, info.traced) == ((2, 3), dtype, False)
        assert default in info.device.lower()
    for value in ([1.0], 1.0, "x", None):
        with pytest.raises(TypeError):
            library.describe(value)


def test_numpy_and_back(backend):
    library = portconv.get_backend(backend.package)
    for dtype in (*backend.dtypes, "uint8", "int32", "bool"):
        values = np.array([[0, 1, 2], [3, 4, 100]])
        array = library.from_numpy(values.astype("float32" if dtype == "bfloat16" else dtype), dtype=dtype)
        backend.check(array)
        assert library.describe(array).dtype.rstrip("_") == dtype
        back = library.to_numpy(array)
        assert type(back) is np.ndarray
        assert back.dtype == ("float32" if dtype == "bfloat16" else dtype)
        np.testing.assert_array_equal(back, values.astype(back.dtype))
        library.synchronize(array)
