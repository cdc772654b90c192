"""What of a network depends on the sizes of its inputs alone: chains of small integers that say shapes and places.

Networks written by other libraries compute these with a dozen operators each, for every image anew.
"""

from __future__ import annotations

from .model import Graph, Node
from .operators import OPERATORS

__all__ = ["in_order", "of_sizes"]

SAYING = ("Shape", "Size")  # the sizes of their input


def of_sizes(graph: Graph) -> frozenset[str]:
    """The names of values, constants aside, that are the same for all inputs of the same sizes."""
    sized = {"", *graph.constants}  # whose values are known with the sizes of the inputs
    shaped = {*sized, *graph.inputs}  # whose shapes are
    for node in graph.nodes:
        operator = OPERATORS.get(node.operator)
        # the inputs that say sizes or places: others than these change no shape by their values
        saying = [name for k, name in enumerate(node.inputs) if operator is not None and {k, -1} & operator.host]
        if not shaped.issuperset(node.inputs) or not sized.issuperset(saying):
            continue
        shaped.update(node.outputs)
        if node.operator in SAYING or (operator is not None and sized.issuperset(node.inputs)):
            sized.update(node.outputs)
    return frozenset(sized - {"", *graph.constants})


def in_order(graph: Graph, sized: frozenset[str]) -> tuple[Node, ...]:
    """The nodes, those that make such values as soon as they can run: then what they read is still there."""
    found: list[list[Node]] = [[]]  # each other node with those that can run after it
    place = dict.fromkeys(("", *graph.inputs, *graph.constants), 0)
    for node in graph.nodes:
        if sized.issuperset(node.outputs):
            last = max((place[name] for name in node.inputs), default=0)
        else:
            last = len(found)
            found.append([])
        found[last].append(node)
        place |= dict.fromkeys(node.outputs, last)
    return tuple(node for some in found for node in some)
