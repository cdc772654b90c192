"""The public names, which `portconv` has: what they stand for is loaded here."""

from .arrays import array_namespace, device, is_mlx_array, size, to_device
from .core.errors import UnsupportedError
from .cpu.threads import get_num_threads, set_num_threads
from .dispatch.registry import available_backends, get_backend, register_backend, use_backend
from .functional import conv2d, conv2d_output_shape, plan_conv2d, tune, warmup
from .gradient import conv2d_vjp
from .machine import environment
from .module import Conv2d
from .one_dimensional import conv1d, conv1d_vjp, conv_transpose1d, conv_transpose1d_vjp
from .one_dimensional_modules import Conv1d, ConvTranspose1d
from .transposed import conv_transpose2d, conv_transpose2d_vjp
from .transposed_module import ConvTranspose2d
from .volumes import conv3d, conv3d_vjp
from .volumes_module import Conv3d
from .volumes_transposed import conv_transpose3d, conv_transpose3d_vjp
from .windows import avg_pool2d, global_avg_pool2d, interpolate2d, max_pool2d

__all__ = [
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "UnsupportedError",
    "array_namespace",
    "available_backends",
    "avg_pool2d",
    "conv1d",
    "conv1d_vjp",
    "conv2d",
    "conv2d_output_shape",
    "conv2d_vjp",
    "conv3d",
    "conv3d_vjp",
    "conv_transpose1d",
    "conv_transpose1d_vjp",
    "conv_transpose2d",
    "conv_transpose2d_vjp",
    "conv_transpose3d",
    "conv_transpose3d_vjp",
    "device",
    "environment",
    "get_backend",
    "get_num_threads",
    "global_avg_pool2d",
    "interpolate2d",
    "is_mlx_array",
    "max_pool2d",
    "plan_conv2d",
    "register_backend",
    "set_num_threads",
    "size",
    "to_device",
    "tune",
    "use_backend",
    "warmup",
]
