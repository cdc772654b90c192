"""Squeeze and excitation: the channels of an image times gates, which two small products make of their averages.

Source: Hu, Shen, Sun, "Squeeze-and-excitation networks", CVPR 2018. The arrays between are so small that each of these
operations would take longer to call than to compute. So small images are done in one go, each by one thread; of large
ones the threads share the averages, and then the products with the gates.
"""

from __future__ import annotations

from typing import Any

from ..activations import CALL_WORDS, activated
from ..jobs import job_of, take
from ..kernel import address, inner, kernel, words
from ..runs import first_lanes
from ..vectors import I64, VECTOR_BYTES, Vectors, in_groups, intrinsic_of, loop
from ..windows.cells import plane_means
from .geometry import Geometry

__all__ = ["ALL", "GATES", "PRODUCTS", "excite"]

# What a job does: all for each image; the gates of each image out of averages that are there; the products with them.
ALL, GATES, PRODUCTS = range(3)
ABREAST = 4  # vectors of outputs at a time

_geometry = words(len(Geometry._fields))
_means = intrinsic_of(plane_means())


def _dense() -> Any:
    """`out[o] = activation(sum over k of source[k] * weights[k, o] + bias[o]) * factor + term`, vectors of outputs.

    Arguments: out, source, weights, bias, address of factor and term, the call's words, terms, vectors.
    """

    def generate(
        b: Any, v: Vectors, out: Any, source: Any, weights: Any, bias: Any, affine: Any, call: Any, terms: Any,
        vectors: Any,
    ) -> None:  # fmt: skip
        line = b.mul(vectors, I64(VECTOR_BYTES))

        def some(first: Any, many: int) -> None:
            offset = b.mul(first, I64(VECTOR_BYTES))

            def added(k: Any, sums: list[Any]) -> list[Any]:
                value = v.load_splat(v.at(source, b.mul(k, I64(v.size))))
                place = v.at(weights, b.mul(k, line), offset)
                return [v.fma(v.load(v.at(place, n * VECTOR_BYTES)), value, total) for n, total in enumerate(sums)]

            sums = loop(b, terms, [v.zero] * many, added)
            shifts = [v.load(v.at(bias, offset, n * VECTOR_BYTES)) for n in range(many)]
            sums = [b.fadd(total, shift) for total, shift in zip(sums, shifts, strict=True)]
            factor, term = v.load_splat(affine), v.load_splat(v.at(affine, v.size))
            for n, value in enumerate(activated(v, sums, call)):
                v.store(b.fadd(b.fmul(value, factor), term), v.at(out, offset, n * VECTOR_BYTES))

        in_groups(b, vectors, (ABREAST, 1), some)

    return intrinsic_of(generate)


def _scaled() -> Any:
    """`target[p, :] = source[p, :] * factors[p]`, planes that follow each other in memory.

    Arguments: target, source, factors, planes, elements of each.
    """

    def generate(b: Any, v: Vectors, target: Any, source: Any, factors: Any, planes: Any, count: Any) -> None:
        whole, rest = b.sdiv(count, I64(v.n)), b.srem(count, I64(v.n))
        inside = first_lanes(b, v, rest)

        def plane(p: Any, _state: list[Any]) -> list[Any]:
            first = b.mul(b.mul(p, count), I64(v.size))
            factor = v.load_splat(v.at(factors, b.mul(p, I64(v.size))))

            def vector(i: Any, _state: list[Any]) -> list[Any]:
                at = b.add(first, b.mul(i, I64(VECTOR_BYTES)))
                v.store(b.fmul(v.load(v.at(source, at)), factor), v.at(target, at))
                return []

            loop(b, whole, [], vector, may_be_none=True)
            at = b.add(first, b.mul(whole, I64(VECTOR_BYTES)))
            v.masked_store(b.fmul(v.masked_load(v.at(source, at), inside), factor), v.at(target, at), inside)
            return []

        loop(b, planes, [], plane)

    return intrinsic_of(generate)


_product, _scale = _dense(), _scaled()


@inner
def _some_images(job, part, x, y, weights, divisor, scratch, numbers):
    """Tasks are images, or some planes of all of them; each image has its averages, hidden numbers and gates."""
    phase, tasks, some, channels, hidden, pixels, channel_vectors, hidden_vectors = _geometry(address(numbers))
    size = y.itemsize
    calls = address(numbers) + 8 * 8
    lines, hidden_line = channel_vectors * VECTOR_BYTES, hidden_vectors * VECTOR_BYTES
    first = address(weights)
    first_bias = first + channels * hidden_line
    second = first_bias + hidden_line
    second_bias = second + hidden * lines
    affine = second_bias + lines
    image_bytes = channels * pixels * size
    own = 2 * lines + hidden_line
    for _ in range(tasks):
        task = take(job, part, tasks)
        if task >= tasks:
            break
        if phase == PRODUCTS:
            blocks = (channels + some - 1) // some
            image, block = divmod(task, blocks)
            channel = block * some
            at = image * image_bytes + channel * pixels * size
            gates = address(scratch) + image * own + lines + hidden_line + channel * size
            _scale(y, (address(y) + at, address(x) + at, gates, min(some, channels - channel), pixels))
            continue
        means = address(scratch) + task * own
        between, gates = means + lines, means + lines + hidden_line
        image = task * image_bytes
        if phase == ALL:
            _means(y, (means, address(x) + image, channels, pixels, address(divisor)))
        _product(y, (between, means, first, first_bias, affine, calls, channels, hidden_vectors))
        _product(y, (gates, between, second, second_bias, affine + 2 * size, calls + 8 * CALL_WORDS, hidden,
                     channel_vectors))  # fmt: skip
        if phase == ALL:
            _scale(y, (address(y) + image, address(x) + image, gates, channels, pixels))


_excite = job_of(_some_images)


@kernel
def excite(job, parts, patience, x, y, weights, divisor, scratch, numbers):
    """One phase, or all, as a job of the team."""
    return _excite(job, parts, patience, (x, y, weights, divisor, scratch, numbers))
