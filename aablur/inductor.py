"""An Inductor pass, opt-in: the unfused blur pools of a model that nobody edited are fused as it is compiled."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import reduce
from types import TracebackType
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import _disable_current_modes

from . import reference
from .geometry import Geometry, binomial

_CONVS: dict[Any, int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
_MAX_POOLS: dict[Any, int] = {}
for _rank, _name in enumerate(("max_pool1d", "max_pool2d", "max_pool3d"), 1):
    _MAX_POOLS |= {getattr(F, _name): _rank, getattr(torch, _name): _rank}
_PADS = (F.pad, torch._C._nn.pad)  # pyright: ignore[reportAttributeAccessIssue]
_PAD_MODES = {"constant": "zeros", "reflect": "reflect", "replicate": "replicate", "circular": "circular"}
_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_MAX_ARGUMENTS = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")
_PAD_ARGUMENTS = ("input", "pad", "mode", "value")
# What filters are made with. It is run on the filter's values, so all that is pure may stand here.
_PURE_METHODS = frozenset(
    (
        "to", "type", "type_as", "float", "half", "bfloat16", "double", "contiguous", "clone", "detach", "repeat",
        "tile", "expand", "broadcast_to", "view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze", "permute",
        "transpose", "t", "flip", "sum", "mul", "div", "outer", "ger", "matmul", "repeat_interleave",
    )
)  # fmt: skip
_PURE_FUNCTIONS: frozenset[Any] = frozenset(
    (
        torch.tensor, torch.as_tensor, torch.outer, torch.ger, torch.einsum, torch.matmul, torch.mul, torch.div,
        torch.true_divide, torch.sum, torch.squeeze, torch.unsqueeze, torch.reshape, torch.flatten, torch.permute,
        torch.transpose, torch.flip, torch.tile, torch.broadcast_to, torch.cat, torch.stack, torch.repeat_interleave,
        operator.getitem, operator.mul, operator.matmul, operator.truediv,
    )
)  # fmt: skip


def compile_passes() -> CompilePasses:
    """Makes ``torch.compile`` (backend "inductor") rewrite unfused blur pools into the fused ops, until removed.

    In each graph, before its backward is derived, so that both directions are fused:

    1. Find depthwise convolutions whose weight is a constant or a buffer equal to the outer product of binomial
       filters, without bias or dilation: the blur, with its stride, and zero padding if it pads itself.
    2. Take in the ``F.pad`` before it (constant 0, reflect, replicate, circular), and before that a max pool at
       stride 1, where nothing else reads what lies between.
    3. Put `aablur.blur_pool2d` or `aablur.max_blur_pool2d` (or their 1-D and 3-D relatives) in their place.

    The graph is guarded on the filter: a buffer that is replaced or written to (``load_state_dict``) compiles the graph
    again, and so does another number of channels than a filter is held for. Left alone, never approximated: filters
    that are not binomial or that require a gradient, filters given as arguments, results that autocast casts to another
    dtype.

    Returns:
        A handle: ``rewritten`` lists what was rewritten so far, ``remove()`` takes the pass away, for graphs compiled
        from then on. As a context manager it removes itself at the end.
    """
    from torch._inductor import config

    passes = CompilePasses(config.pre_grad_custom_pass, getattr(config, "pre_grad_pass_timing", None))
    # The pass looks at the values of buffers, which no cache key holds: it must run before a cache is asked.
    if passes._timing is not None:
        config.pre_grad_pass_timing = "early"
    config.pre_grad_custom_pass = _as_inductor_pass(passes)
    return passes


@dataclass
class CompilePasses:
    """The handle that `compile_passes` returns."""

    _before: Any
    _timing: Any
    rewritten: list[str] = field(default_factory=list)  # one line each: the op, its arguments

    def remove(self) -> None:
        """Graphs compiled from now on are left as they are; those compiled already stay fused."""
        from torch._inductor import config

        config.pre_grad_custom_pass = self._before
        if self._timing is not None:
            config.pre_grad_pass_timing = self._timing

    def __enter__(self) -> CompilePasses:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


def _as_inductor_pass(passes: CompilePasses) -> Any:
    from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

    class FuseBlurPools(CustomGraphPass):
        def __call__(self, graph: Graph) -> None:
            before = passes._before
            for run in before if isinstance(before, Sequence) else [before] if before else []:
                run(graph)
            passes.rewritten += rewrite(graph)

        def uuid(self) -> Any:
            return get_hash_for_files((__file__,))

        def __reduce__(self) -> Any:
            """torch 2.10 pickles all settings, for its caches and its workers: another pass that does the same."""
            return _as_inductor_pass, (CompilePasses(None, None),)

        def __deepcopy__(self, memo: Any) -> Any:
            return self

    return FuseBlurPools()


def rewrite(graph: Graph) -> list[str]:
    """Rewrites a graph of dynamo's in place; a line for each op that was put in."""
    done = []
    for node in list(graph.nodes):
        match = _match(node)
        if match is not None:
            _replace(node, match)
            done.append(str(match))
    if done:
        graph.eliminate_dead_code()
        graph.lint()
    return done


@dataclass
class _Match:
    x: Node
    geometry: Geometry
    weight: Node

    def __str__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.geometry.arguments().items())
        return f"{self.geometry.op}({self.x.name}, {shown})"


def _match(conv: Node) -> _Match | None:
    rank = _called(conv, _CONVS)
    if rank is None:
        return None
    given = _arguments(conv, _CONV_ARGUMENTS)
    weight, source = given["weight"], given["input"]
    taps = _binomial_sizes(weight, rank)
    ones = _ints(given.get("dilation", 1), rank)
    inside, stride = _ints(given.get("padding", 0), rank), _ints(given.get("stride", 1), rank)
    if taps is None or inside is None or stride is None or ones != (1,) * rank or given.get("bias") is not None:
        return None
    value, out = _value(source), _value(conv)
    if value is None or out is None or value.dtype != out.dtype:
        return None
    groups = given.get("groups", 1)
    groups = _value(groups) if isinstance(groups, Node) else groups
    if not _one_filter_a_channel(conv.graph, groups, value.shape[-rank - 1], _value(weight).shape[0]):
        return None
    pads, mode = tuple((p, p) for p in inside), "zeros"
    padded = _match_pad(source, rank)
    if padded is not None and (padded[2] == "zeros" or not any(inside)):
        source, outer, mode = padded
        pads = tuple((a + p, b + p) for (a, b), p in zip(outer, inside, strict=True))
    window: tuple[Any, ...] = ()
    pooled = _match_max(source, rank)
    if pooled is not None:
        source, *window_list = pooled
        window = tuple(window_list)
    name = f"{'max_' if window else ''}blur_pool{rank}d"
    try:
        geometry = Geometry(name, taps, stride, pads, mode, *window)
    except ValueError:  # a window that is not served
        return None
    return _Match(source, geometry, weight)


def _one_filter_a_channel(graph: Graph, groups: Any, channels: Any, filters: Any) -> bool:
    """Whether three numbers, ints or SymInts, are one.

    Dynamo makes the channels a variable where it meets a second number of them, as in the blurs of several stages that
    share their code. Filters held for a fixed number then hold the graph to it, by a guard; not where the user has
    marked a size as dynamic, which must not be fixed.
    """
    if str(groups) != str(channels):
        return False
    if str(channels) == str(filters):
        return True
    inputs = [
        node.meta["grapharg"].example for node in graph.nodes if node.op == "placeholder" and "grapharg" in node.meta
    ]
    return not any(getattr(x, "_dynamo_dynamic_indices", ()) for x in inputs) and bool(channels == filters)


def _match_pad(node: Any, rank: int) -> tuple[Node, tuple[tuple[int, int], ...], str] | None:
    """What a pad reads, its pads from the first axis on, its mode."""
    if not _only_use(node) or node.target not in _PADS:
        return None
    given = _arguments(node, _PAD_ARGUMENTS)
    flat, mode = given["pad"], _PAD_MODES.get(given.get("mode", "constant"))
    if mode is None or given.get("value") not in (None, 0) or len(flat) != 2 * rank:
        return None
    if not all(isinstance(p, int) for p in flat):
        return None
    return given["input"], tuple((flat[i], flat[i + 1]) for i in range(2 * rank - 2, -1, -2)), mode


def _match_max(node: Any, rank: int) -> tuple[Any, ...] | None:
    """What a max pool at stride 1 reads, its window, padding and dilation."""
    if not _only_use(node) or _called(node, _MAX_POOLS) != rank:
        return None
    given = _arguments(node, _MAX_ARGUMENTS)
    window = _ints(given["kernel_size"], rank)
    stride = window if given.get("stride") is None else _ints(given["stride"], rank)
    rest = _ints(given.get("padding", 0), rank), _ints(given.get("dilation", 1), rank)
    if window is None or stride != (1,) * rank or None in rest or given.get("return_indices"):
        return None
    return given["input"], window, *rest


def _replace(conv: Node, match: _Match) -> None:
    """The ops themselves, which Inductor's caches know; with codes where a gradient will be asked for."""
    name = "blur_pool"
    if match.geometry.has_max:
        wants = torch.is_grad_enabled() and cast(Tensor, _value(match.x)).requires_grad
        name = "max_blur_pool_codes" if wants else "max_blur_pool"
    op = getattr(torch.ops.aablur, name).default
    graph = conv.graph
    with graph.inserting_before(conv):
        new = graph.call_function(op, (match.x, None, *match.geometry.op_args))
        if name == "max_blur_pool_codes":
            new = graph.call_function(operator.getitem, (new, 0))
        rank = len(match.geometry.axes)
        last = reference.prefers_channels_last(cast(Tensor, _value(conv)), rank)
        if last != reference.prefers_channels_last(cast(Tensor, _value(match.x)), rank):  # circular pads lose it
            layout = reference.channels_last_format(rank) if last else torch.contiguous_format
            new = graph.call_method("contiguous", (new,), {"memory_format": layout})
    new.meta = dict(conv.meta)
    conv.replace_all_uses_with(new)
    graph.erase_node(conv)
    _guard(match.weight)


# ---- nodes -------------------------------------------------------------------------------------------


def _called(node: Any, table: dict[Any, int]) -> int | None:
    return table.get(node.target) if isinstance(node, Node) and node.op == "call_function" else None


def _only_use(node: Any) -> bool:
    return isinstance(node, Node) and node.op == "call_function" and len(node.users) == 1


def _arguments(node: Node, names: Sequence[str]) -> dict[str, Any]:
    return dict(zip(names, node.args, strict=False)) | dict(node.kwargs)


def _ints(value: Any, rank: int) -> tuple[int, ...] | None:
    values = (value,) * rank if isinstance(value, int) else value
    if isinstance(values, (tuple, list)) and len(values) == 1:
        values = tuple(values) * rank
    good = isinstance(values, (tuple, list)) and len(values) == rank and all(isinstance(v, int) for v in values)
    return tuple(values) if good else None


def _value(node: Any) -> Any:
    """The fake tensor that dynamo traced with."""
    return node.meta.get("example_value") if isinstance(node, Node) else None


# ---- constants ---------------------------------------------------------------------------------------


class _NotConstantError(Exception):
    pass


def _binomial_sizes(weight: Node, rank: int) -> list[int] | None:
    """The sizes of the binomial filters of which every channel of the weight is the outer product."""
    with _disable_current_modes():
        try:
            value = _constant(weight)
        except _NotConstantError:
            return None
        if value.ndim != rank + 2 or value.shape[1] != 1 or max(value.shape[2:]) == 1 or value.is_meta:
            return None
        sizes = list(value.shape[2:])
        factors = [torch.tensor(binomial(k), dtype=torch.float64) for k in sizes]
        product = reduce(lambda outer, t: outer.unsqueeze(-1) * t, factors).to(value.dtype).double()
        step = torch.finfo(value.dtype).eps  # a filter made by division in its dtype may be off by one
        exact = value.detach().cpu().double()
        return sizes if len(exact) and bool(((exact - product).abs() <= step * product).all()) else None


def _constant(node: Node) -> Any:
    """The value of a node that depends on constants and buffers alone; numbers of channels that vary count as 1."""
    if node.op == "placeholder" and isinstance(_value(node), torch.SymInt):
        return 1
    held = None
    if node.op == "get_attr":
        held = reduce(getattr, str(node.target).split("."), node.graph.owning_module)
    elif node.op == "placeholder" and _belongs_to_a_module(node):
        held = node.meta["grapharg"].example
    if isinstance(held, Tensor) and not held.requires_grad:
        return held
    if node.op == "call_method" and node.target in _PURE_METHODS:
        value, *rest = node.args
        if node.target in ("to", "type_as") and rest and isinstance(other := _value(rest[0]), Tensor):
            return _constant(cast(Node, value)).to(other.dtype)  # as another tensor, of which no more matters
        return getattr(Tensor, str(node.target))(*_constants(node.args), **_constants(node.kwargs))
    if node.op == "call_function" and node.target in _PURE_FUNCTIONS:
        return cast(Any, node.target)(*_constants(node.args), **_constants(node.kwargs))
    raise _NotConstantError


def _constants(arguments: Any) -> Any:
    return map_arg(arguments, _constant)


def _belongs_to_a_module(placeholder: Node) -> bool:
    """Whether dynamo found a tensor on a module: an argument of the call would be another one each time."""
    source = placeholder.meta["grapharg"].source if "grapharg" in placeholder.meta else None
    while source is not None and "NNModuleSource" not in type(source).__name__:
        source = getattr(source, "base", None)
    return source is not None


def _guard(weight: Node) -> None:
    """Has the graph compiled anew when a tensor that the weight depends on is replaced or written to."""
    from torch._dynamo.guards import GuardBuilder, install_guard
    from torch._dynamo.source import AttrSource

    for node in weight.all_input_nodes:
        _guard(node)
    if weight.op == "placeholder" and "grapharg" in weight.meta and isinstance(weight.meta["grapharg"].example, Tensor):
        argument = weight.meta["grapharg"]
        install_guard(argument.source.make_guard(GuardBuilder.ID_MATCH))
        if not argument.example.is_inference():
            install_guard(AttrSource(argument.source, "_version").make_guard(GuardBuilder.EQUALS_MATCH))
