"""portconv: one `Conv2d` for NumPy, MLX, PyTorch, JAX and every other array API library."""

from .cpu.threads import get_num_threads, set_num_threads
from .errors import UnsupportedError
from .functional import array_namespace, conv2d, conv2d_output_shape, device, plan_conv2d, to_device
from .module import Conv2d
from .registry import available_backends, get_backend, register_backend, use_backend

__all__ = [
    "Conv2d",
    "UnsupportedError",
    "array_namespace",
    "available_backends",
    "conv2d",
    "conv2d_output_shape",
    "device",
    "get_backend",
    "get_num_threads",
    "plan_conv2d",
    "register_backend",
    "set_num_threads",
    "to_device",
    "use_backend",
]

__version__ = "0.1.0"
