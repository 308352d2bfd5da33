"""Rewrite a pickle of protocol 1 to 5, opcode by opcode, in protocol 2, which PyTorch's safe reader takes.

Nothing is unpickled and nothing is imported here: bytes go in and bytes come out. Sets become lists, which that reader
knows how to fill.
"""

import pickle
import pickletools
import struct
from io import BytesIO
from typing import Any

PROTOCOL_2 = pickle.PROTO + b"\x02"
LONGEST_NAME = 1000
# Characters of names that are written again because their place in the memo is gone.
MOST_REPEATED = 2**20
# Opcodes that protocol 2 has as well.
SAME = {
    *("MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "SHORT_BINSTRING"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "APPEND", "APPENDS"),
    *("SETITEM", "SETITEMS", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID", "STOP"),
}
# Opcodes with another one in their place.
INSTEAD = {"EMPTY_SET": pickle.EMPTY_LIST, "ADDITEMS": pickle.APPENDS, "FROZENSET": pickle.TUPLE}
STRINGS = {"UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINSTRING", "STRING"}
BYTES = {"SHORT_BINBYTES", "BINBYTES", "BINBYTES8"}
NUMBERS = {"INT", "LONG", "LONG4", "FLOAT"}
STORES = {"PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"}
FETCHES = {"GET", "BINGET", "LONG_BINGET"}
LEFT_OUT = {"PROTO", "FRAME"}


def rewrite(stream: BytesIO) -> bytes:
    """Return the pickle at the stream's position in protocol 2; the stream is left behind its end.

    Raises:
        ValueError: it is cut short, or uses an opcode that the protocols 2 to 5 do not write.
    """
    start = stream.tell()
    rewriter = _Rewriter()
    for opcode, argument, position in pickletools.genops(stream):
        assert position is not None
        raw = stream.getbuffer()[position : stream.tell()]
        rewriter.take(opcode.name, argument, bytes(raw))
    written = b"".join(rewriter.out)
    # A pickle that needs no change is given back as it came, whatever names its memo has.
    return bytes(stream.getbuffer()[start : stream.tell()]) if rewriter.is_same else written


class _Rewriter:
    """The pickle written so far, in protocol 2.

    Attributes:
        out: opcodes with their arguments.
        is_same: whether every opcode so far was one of protocol 2.
    """

    def __init__(self) -> None:
        self.out: list[bytes] = [PROTOCOL_2]
        self.is_same = True
        # (place in `out`, string) of the last two strings, which may turn out to be the name of a global.
        self._strings: list[tuple[int, str]] = []
        self._memo: dict[int, str | None] = {}
        self._stored: dict[int, int] = {}
        # Numbers in the memo whose strings went into the name of a global.
        self._lost: set[int] = set()
        self._repeated = 0

    def take(self, name: str, argument: Any, raw: bytes) -> None:
        """Write the equivalent of this opcode in protocol 2."""
        is_same = name in SAME or name in ("PROTO", "BINUNICODE", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET")
        self.is_same &= is_same and (name != "PROTO" or raw == PROTOCOL_2)
        if name in SAME:
            self.out.append(raw)
        elif name in INSTEAD:
            self.out.append(INSTEAD[name])
        elif name in STRINGS:
            self._push(argument)
        elif name in BYTES:
            self._push_bytes("_codecs\nencode\n", argument)
        elif name == "BYTEARRAY8":
            self._push_bytes("builtins\nbytearray\n", argument)
        elif name in NUMBERS:
            self.out.append(_number(argument))
        elif name in STORES:
            self._store(len(self._memo) if name == "MEMOIZE" else int(argument))
        elif name in FETCHES:
            self._fetch(int(argument))
        elif name == "STACK_GLOBAL":
            self._global()
        elif name not in LEFT_OUT:
            raise ValueError(f"its pickle uses {name}, which torch.save does not")

    def _push(self, text: str) -> None:
        self._strings = [*self._strings[-1:], (len(self.out), text)]
        self.out.append(_string(text))

    def _push_bytes(self, made_by: str, value: bytes) -> None:
        arguments = _string(value.decode("latin-1")) + _string("latin-1") + pickle.TUPLE2
        self.out.append(pickle.GLOBAL + made_by.encode() + arguments + pickle.REDUCE)

    def _store(self, index: int) -> None:
        is_string = bool(self._strings) and self._strings[-1][0] == len(self.out) - 1
        self._memo[index] = self._strings[-1][1] if is_string else None
        self._stored[len(self.out)] = index
        self._lost.discard(index)
        self.out.append(pickle.LONG_BINPUT + struct.pack("<I", index))

    def _fetch(self, index: int) -> None:
        text = self._memo.get(index)
        if text is not None:
            self._push(text)
            if index in self._lost:
                self._repeated += len(text)
                if self._repeated > MOST_REPEATED:
                    raise ValueError("its pickle repeats names more often than torch.save does")
                return
            self.out.pop()
        self.out.append(pickle.LONG_BINGET + struct.pack("<I", index))

    def _global(self) -> None:
        """Put the two strings on top of the stack, which name a global, into the opcode itself."""
        (first, module), (second, name) = self._strings if len(self._strings) == 2 else ((0, ""), (0, ""))
        places = range(first + 1, len(self.out))
        is_name = 0 < len(module) + len(name) < LONGEST_NAME and not {"\n", "\r"} & {*module, *name}
        if not is_name or not all(place == second or place in self._stored for place in places):
            raise ValueError("its pickle names a global in a way that torch.save does not")
        self._lost.update(self._stored.pop(place) for place in places if place in self._stored)
        del self.out[first:]
        self._strings = []
        self.out.append(pickle.GLOBAL + f"{module}\n{name}\n".encode("utf-8", "surrogatepass"))


def _string(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _number(value: bool | int | float) -> bytes:
    if isinstance(value, bool):
        return pickle.NEWTRUE if value else pickle.NEWFALSE
    if isinstance(value, float):
        return pickle.BINFLOAT + struct.pack(">d", value)
    encoded = pickle.encode_long(value)
    if len(encoded) > 255:
        raise ValueError("its pickle holds a number of more than 255 bytes")
    return pickle.LONG1 + bytes([len(encoded)]) + encoded
