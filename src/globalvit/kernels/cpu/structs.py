"""The structures that the C kernels take, as ctypes declares them, and the signatures of the kernels.

A structure's name in the comment is that of the C file; `library` compares their sizes when it loads the kernels.
"""

import ctypes
from collections.abc import Iterable
from ctypes import POINTER, c_float, c_int, c_int64, c_void_p
from typing import Any


def _fields(kind: type, names: str) -> Iterable[tuple[str, type]]:
    return ((name, kind) for name in names.split())


class Task(ctypes.Structure):
    """`Task` of attention.h."""

    _fields_ = (
        *_fields(c_int64, "images height width rows columns heads dim type"),
        *_fields(c_void_p, "query key value no_query no_key no_value"),
        *_fields(c_int64, "stride is_global"),
        ("table", c_void_p),
        ("table_type", c_int64),
        *_fields(c_void_p, "taps offsets"),
        ("scale", c_float),
    )


class Gradients(ctypes.Structure):
    """`Gradients` of attention_back.c."""

    _fields_ = (
        *_fields(c_void_p, "query key value"),
        ("stride", c_int64),
        *_fields(c_void_p, "global_query table taps offsets"),
        *_fields(c_int64, "parts windows_a_part"),
    )


class Sequences(ctypes.Structure):
    """`Sequences` of sequences.c."""

    _fields_ = (
        *_fields(c_int64, "images queries keys heads dim type"),
        *_fields(c_void_p, "query key value out"),
        ("scale", c_float),
    )


class Layer(ctypes.Structure):
    """`Layer` of linear.h."""

    _fields_ = (*_fields(c_int64, "inputs outputs"), *_fields(c_void_p, "weight bias"), ("activation", c_int64))


class Norm(ctypes.Structure):
    """`Norm` of linear.h."""

    _fields_ = (("dim", c_int64), *_fields(c_void_p, "factors offsets"), ("eps", c_float))


class Chain(ctypes.Structure):
    """`Chain` of linear.c."""

    _fields_ = (
        *_fields(c_int64, "rows type"),
        ("x", c_void_p),
        ("x_type", c_int64),
        ("norm", Norm),
        ("gates", c_void_p),
        ("gate_rows", c_int64),
        *_fields(c_void_p, "kept residual out"),
        *_fields(Layer, "first second"),
    )


class Back(ctypes.Structure):
    """`Back` of linear_back.c."""

    _fields_ = (
        *_fields(c_int64, "rows type"),
        *_fields(c_void_p, "d_out kept d_kept activated x"),
        ("x_type", c_int64),
        ("norm", Norm),
        *_fields(c_void_p, "d_x d_norm"),
        *_fields(Layer, "first second"),
    )


class Outer(ctypes.Structure):
    """`Outer` of linear_back.c."""

    _fields_ = (
        *_fields(c_int64, "rows type"),
        ("d_out", c_void_p),
        ("outputs", c_int64),
        ("x", c_void_p),
        *_fields(c_int64, "x_type inputs"),
        ("norm", Norm),
        *_fields(c_void_p, "d_weight d_bias"),
        ("parts", c_int64),
    )


class Convolution(ctypes.Structure):
    """`Convolution` of convolution.c."""

    _fields_ = (
        *_fields(c_int64, "images height width inputs type"),
        ("x", c_void_p),
        *_fields(c_int64, "kernel stride padding out_height out_width outputs"),
        ("weight", c_void_p),
        ("packed_row", c_int64),
        ("bias", c_void_p),
        ("norm", Norm),
        ("out", c_void_p),
    )


SHAPE = "images height width channels type"


class Depthwise(ctypes.Structure):
    """`Depthwise` of depthwise.c."""

    _fields_ = (
        *_fields(c_int64, SHAPE),
        *_fields(c_void_p, "x taps offsets"),
        ("activation", c_int64),
        *_fields(c_void_p, "out sums"),
    )


class DepthwiseBack(ctypes.Structure):
    """`DepthwiseBack` of depthwise_back.c."""

    _fields_ = (*_fields(c_int64, SHAPE), *_fields(c_void_p, "x taps d_out d_every d_residual d_x d_taps"))


class GatesBack(ctypes.Structure):
    """`GatesBack` of depthwise_back.c."""

    _fields_ = (*_fields(c_int64, SHAPE), *_fields(c_void_p, "x gates d_x gated d_gates"))


# The name of a constant in C, without `size_of_` → the structure whose size it holds.
STRUCTURES: dict[str, type[ctypes.Structure]] = {
    "task": Task,
    "gradients": Gradients,
    "sequences": Sequences,
    "chain": Chain,
    "back": Back,
    "outer": Outer,
    "convolution": Convolution,
    "depthwise": Depthwise,
    "depthwise_back": DepthwiseBack,
    "gates_back": GatesBack,
}
# Function → what it returns, what it takes.
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "has_pairs": (c_int, ()),
    "arena_bytes_kept": (c_int64, ()),
    "attention_forward": (c_int, (POINTER(Task), c_void_p, c_int64)),
    "attention_backward": (c_int, (POINTER(Task), c_void_p, c_int64, POINTER(Gradients))),
    "attention_sequences": (c_int, (POINTER(Sequences),)),
    "linear_packed_size": (c_int64, (c_int64, c_int64, c_int64)),
    "linear_pack": (None, (c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64)),
    "linear_pack_transposed": (None, (c_int64, c_int64, c_void_p, c_int64, c_void_p, c_int64)),
    "linear_chain": (c_int, (POINTER(Chain),)),
    "linear_back_blocks": (c_int64, (c_int64,)),
    "linear_back": (c_int, (POINTER(Back),)),
    "linear_outer": (c_int, (POINTER(Outer),)),
    "layer_norm": (c_int, (c_int64, POINTER(Norm), c_void_p, c_void_p, c_int64)),
    "convolution": (c_int, (POINTER(Convolution),)),
    "depthwise": (None, (POINTER(Depthwise),)),
    "depthwise_chunks": (c_int64, (c_int64,)),
    "depthwise_back": (c_int, (POINTER(DepthwiseBack),)),
    "gates_back": (None, (POINTER(GatesBack),)),
}
