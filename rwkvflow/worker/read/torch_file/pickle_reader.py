"""Reads the pickle inside a torch file without executing it.

A pickle is a program; Python's own module would import and call whatever it names. This is a machine of its own that
knows only the opcodes and the handful of names that tensors need. It builds plain dicts, tuples, numbers and the three
records below, and refuses everything else by name. Opcodes are those of `pickletools`; what torch writes with them is
torch/_utils.py (`_rebuild_tensor_v2` and relatives) and torch/serialization.py (the persistent ids).

Hostile pickles are bounded in bytes, steps, objects and length of integers. Keys of dicts are text or integers only
(hashing a tuple that shares its parts takes exponential time), nothing here compares, prints or walks nested values,
and unknown values are never called.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.model.tensorinfo import ITEM_BYTES
from rwkvflow.worker.read.torch_file.remedies import NOT_RUN, PROTOCOL_0, REMEDY, for_name
from rwkvflow.worker.read.torch_file.torch_names import Name, allowed

MAX_BYTES: Final = 16 << 20
MAX_STEPS: Final = 2_000_000
MAX_CONTAINERS: Final = 400_000
MAX_MEMO: Final = 500_000
MAX_DIMENSIONS: Final = 16
MAX_INTEGER: Final = 2**63 - 1


@dataclass(frozen=True, slots=True)
class StorageRef:
    """A storage: the record `data/<key>` of the file, `nbytes` long, of `dtype` ("bytes" when untyped)."""

    key: str
    dtype: str
    nbytes: int


@dataclass(frozen=True, slots=True)
class TensorRef:
    """A view of a storage; offset and stride count values of `dtype`, as torch counts them.

    `storage` is None for a tensor on the device "meta", which has no values. The values of a `negated` one are those
    of the storage with the other sign (torch's lazy negative bit).
    """

    storage: StorageRef | None
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    negated: bool = False


class _StackMark:
    """Where a group starts on the stack."""


_MARK = _StackMark()


@dataclass(slots=True)
class PickleReader:
    """One pass over one pickle; `where` names the file in messages."""

    data: bytes
    where: str
    at: int = 0
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)
    containers: int = 0

    def load(self) -> Any:
        """The value that the pickle describes: dict, list, tuple, str, bytes, int, float, bool, None, TensorRef.

        Raises WorkerError when it holds anything else, is damaged, or is larger than any checkpoint's.
        """
        if len(self.data) > MAX_BYTES:
            raise WorkerError(
                f"{self.where}: its pickle has {len(self.data)} bytes, more than any checkpoint needs ({MAX_BYTES}). "
                + REMEDY
            )
        for _ in range(MAX_STEPS):
            code = self._take(1)[0]
            if code == 0x2E:  # STOP
                value = self._pop()
                if self.stack:
                    raise self._damaged("values are left over at its end")
                return value
            action = _ACTIONS.get(code)
            if action is None:
                raise self._refuse_opcode(code)
            action(self)
        raise WorkerError(f"{self.where}: its pickle takes more than {MAX_STEPS} steps. " + REMEDY)

    # -- what the actions use

    def _damaged(self, what: str) -> WorkerError:
        return WorkerError(
            f"{self.where}: the pickle that lists its tensors is damaged at byte {self.at}: {what}. "
            "Download or copy the file again."
        )

    def _refuse_opcode(self, code: int) -> WorkerError:
        import pickletools

        known = {ord(op.code): op.name for op in pickletools.opcodes}
        if code not in known:
            return self._damaged(f"0x{code:02x} is no pickle opcode")
        if self.data[:1] != b"\x80" and b"P('storage'" in self.data:
            return WorkerError(f"{self.where}: its pickle is of protocol 0; {NOT_RUN}. {PROTOCOL_0}")
        return WorkerError(
            f"{self.where}: its pickle uses the opcode {known[code]}, which tensors never need. " + REMEDY
        )

    def _take(self, count: int) -> bytes:
        start, end = self.at, self.at + count
        if end > len(self.data):
            raise self._damaged("it ends in the middle of a value")
        self.at = end
        return self.data[start:end]

    def _number(self, layout: str) -> int:
        return int(struct.unpack(layout, self._take(struct.calcsize(layout)))[0])

    def _line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + 1024)
        if end < 0:
            raise self._damaged("a name has no end")
        return self._decode(self._take(end + 1 - self.at)[:-1])

    def _decode(self, raw: bytes) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._damaged("a text is not UTF-8") from error

    def _push(self, value: Any) -> None:
        self.stack.append(value)

    def _pop(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self._damaged("a value is missing")
        return self.stack.pop()

    def _top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise self._damaged("a value is missing")
        return self.stack[-1]

    def _group(self) -> list[Any]:
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is _MARK:
                group = self.stack[start + 1 :]
                del self.stack[start:]
                return group
        raise self._damaged("a group has no start")

    def _container(self, value: Any) -> None:
        self.containers += 1
        if self.containers > MAX_CONTAINERS:
            raise WorkerError(f"{self.where}: its pickle makes more than {MAX_CONTAINERS} containers. " + REMEDY)
        self._push(value)

    def _set(self, target: Any, items: list[Any]) -> None:
        if not isinstance(target, dict):
            raise self._damaged("items are set on something that is not a dict")
        if len(items) % 2:
            raise self._damaged("a key has no value")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) not in (str, int):
                raise self._damaged("a key is neither text nor a number")
            target[key] = value

    # -- names and calls

    def _global(self, module: str, name: str) -> None:
        found = allowed(module, name)
        if found is None:
            text = ascii(f"{module}.{name}"[:200])[1:-1]
            raise WorkerError(
                f"{self.where}: refused: its pickle asks for {text}, which is none of the few names that tensors "
                f"need. {for_name(module)}"
            )
        self._push(found)

    def _persistent(self) -> None:
        parts = self._pop()
        if not isinstance(parts, tuple) or len(parts) < 5 or type(parts[0]) is not str or parts[0] != "storage":
            raise self._damaged("a persistent id is not that of a storage")
        kind, key, numel = parts[1], parts[2], parts[4]
        if not isinstance(kind, Name) or kind.kind != "storage":
            raise self._damaged("a storage has no type")
        if type(key) is not str or not key.isascii() or not key.isdigit() or len(key) > 20:
            raise self._damaged("a storage's key is not a number")
        size = ITEM_BYTES.get(kind.dtype, 1)
        if type(numel) is not int or not 0 <= numel <= MAX_INTEGER // size:
            raise self._damaged(f"storage {key} has an impossible size")
        self._push(StorageRef(key, kind.dtype, numel * size))

    def _reduce(self) -> None:
        args, call = self._pop(), self._pop()
        if not isinstance(call, Name) or not isinstance(args, tuple):
            raise self._damaged("something that is no function is called")
        if call.kind == "ordered":
            made: dict[Any, Any] = {}
            if len(args) > 1 or (args and not isinstance(args[0], list)):
                raise self._damaged("an OrderedDict is made of something odd")
            self.containers += len(args[0]) if args else 0  # the same list may be named again and again
            for pair in args[0] if args and self.containers <= MAX_CONTAINERS else ():
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise self._damaged("an OrderedDict is made of something odd")
                self._set(made, list(pair))
            self._container(made)
        elif call.kind == "size" and len(args) == 1:
            self._push(self._sizes(args[0], "a size"))
        else:
            self._push(self._rebuilt(call, args))

    def _rebuilt(self, call: Name, args: tuple[Any, ...]) -> TensorRef:
        """What a function of torch makes a tensor of."""
        if call.kind == "typed":  # function, class, arguments, attributes: the last are nothing that a conversion needs
            if len(args) < 3 or not isinstance(args[0], Name) or not isinstance(args[2], tuple):
                raise self._damaged("a tensor is rebuilt of something odd")
            if not isinstance(args[1], Name) or args[1].kind != "class" or args[0].kind == "typed":
                raise self._damaged("a tensor is rebuilt as something odd")
            call, args = args[0], args[2]
        if call.kind == "tensor":
            return self._tensor(args, None, args[6:7])
        if call.kind == "tensor-v3":
            if len(args) < 7 or not isinstance(args[6], Name) or args[6].kind != "dtype":
                raise self._damaged("a tensor has no dtype")
            return self._tensor(args, args[6].dtype, args[7:8])
        if call.kind == "parameter":
            if not args or not isinstance(args[0], TensorRef):
                raise self._damaged("a parameter holds no tensor")
            return args[0]
        if call.kind == "meta":
            if len(args) < 3 or not isinstance(args[0], Name) or args[0].kind != "dtype":
                raise self._damaged("a meta tensor has no dtype")
            return TensorRef(None, args[0].dtype, 0, self._sizes(args[1], "a shape"), self._sizes(args[2], "a stride"))
        raise self._damaged(f"{call.text} is called, which is no function of tensors")

    def _sizes(self, value: Any, what: str) -> tuple[int, ...]:
        if not isinstance(value, tuple | list) or len(value) > MAX_DIMENSIONS:
            raise self._damaged(f"{what} is not a short list of numbers")
        if any(type(item) is not int or not 0 <= item <= MAX_INTEGER for item in value):
            raise self._damaged(f"{what} holds something that is no size")
        return tuple(value)

    def _tensor(self, args: tuple[Any, ...], dtype: str | None, more: tuple[Any, ...]) -> TensorRef:
        if len(args) < 4 or not isinstance(args[0], StorageRef):
            raise self._damaged("a tensor has no storage")
        storage, offset = args[0], args[1]
        if type(offset) is not int or not 0 <= offset <= MAX_INTEGER:
            raise self._damaged("a tensor's offset is impossible")
        shape, stride = self._sizes(args[2], "a shape"), self._sizes(args[3], "a stride")
        if len(shape) != len(stride):
            raise self._damaged("a tensor's shape and stride differ in length")
        kind = dtype or storage.dtype
        if kind == "bytes":
            raise self._damaged("a tensor without a dtype lies in an untyped storage")
        bits = more[0] if more and more[0] is not None else {}
        if not isinstance(bits, dict) or any(type(value) is not bool for value in bits.values()):
            raise self._damaged("a tensor's metadata is odd")
        if unknown := [key for key, value in bits.items() if value and key != "neg"]:
            raise WorkerError(
                f"{self.where}: refused: a tensor is marked {str(unknown[0])[:40]!a}, which no tensor of a "
                f"checkpoint is. {REMEDY}"
            )
        return TensorRef(storage, kind, offset, shape, stride, bool(bits.get("neg")))

    def _build(self) -> None:
        # The state of an OrderedDict is its _metadata (versions of modules): nothing that a conversion needs.
        state = self._pop()
        if not isinstance(state, dict) or not isinstance(self._top(), dict):
            raise self._damaged("attributes are set on something that has none")

    # -- simple opcodes

    def _protocol(self) -> None:
        version = self._take(1)[0]
        if version > 5:
            raise self._damaged(f"it claims pickle protocol {version}")

    def _stack_global(self) -> None:
        name, module = self._pop(), self._pop()
        if type(name) is not str or type(module) is not str:
            raise self._damaged("a name is not text")
        self._global(module, name)

    def _long(self) -> None:
        length = self._take(1)[0]
        if length > 9:
            raise self._damaged(f"it holds an integer of {length} bytes")
        self._push(int.from_bytes(self._take(length), "little", signed=True))

    def _decimal(self) -> None:
        """INT and LONG of protocol 1: a number, and where it is 00 or 01, a truth."""
        text = self._line()
        if text in ("00", "01"):
            self._push(text == "01")
            return
        digits = text.removesuffix("L").removeprefix("-")
        if len(digits) > 20 or not digits.isascii() or not digits.isdigit():
            raise self._damaged("a number is none")
        self._push(int(text.removesuffix("L")))

    def _tuple(self, count: int) -> None:
        if count == 0:
            self._push(())
            return
        items = [self._pop() for _ in range(count)]
        self._container(tuple(reversed(items)))

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise self._damaged("items are added to something that is not a list")
        target.extend(items)

    def _put(self, index: int) -> None:
        if len(self.memo) >= MAX_MEMO:
            raise WorkerError(f"{self.where}: its pickle remembers more than {MAX_MEMO} values. " + REMEDY)
        self.memo[index] = self._top()

    def _get(self, index: int) -> None:
        if index not in self.memo:
            raise self._damaged("it refers to a value that it has not made")
        self._push(self.memo[index])

    def _set_item(self) -> None:
        value, key = self._pop(), self._pop()
        self._set(self._top(), [key, value])

    def _set_group(self) -> None:
        items = self._group()
        self._set(self._top(), items)


_ACTIONS: dict[int, Callable[[PickleReader], Any]] = {
    ord(code): action
    for code, action in {
        "\x80": PickleReader._protocol,
        "\x95": lambda r: r._take(8),  # FRAME
        "(": lambda r: r._push(_MARK),
        ")": lambda r: r._tuple(0),
        "\x85": lambda r: r._tuple(1),
        "\x86": lambda r: r._tuple(2),
        "\x87": lambda r: r._tuple(3),
        "t": lambda r: r._container(tuple(r._group())),
        "}": lambda r: r._container({}),
        "]": lambda r: r._container([]),
        "a": lambda r: r._append([r._pop()]),
        "e": lambda r: r._append(r._group()),
        "s": PickleReader._set_item,
        "u": PickleReader._set_group,
        "X": lambda r: r._push(r._decode(r._take(r._number("<I")))),
        "\x8c": lambda r: r._push(r._decode(r._take(r._number("<B")))),
        "\x8d": lambda r: r._push(r._decode(r._take(r._number("<Q")))),
        "B": lambda r: r._push(r._take(r._number("<I"))),
        "C": lambda r: r._push(r._take(r._number("<B"))),
        "J": lambda r: r._push(r._number("<i")),
        "I": PickleReader._decimal,
        "L": PickleReader._decimal,
        "K": lambda r: r._push(r._number("<B")),
        "M": lambda r: r._push(r._number("<H")),
        "\x8a": PickleReader._long,
        "G": lambda r: r._push(struct.unpack(">d", r._take(8))[0]),
        "N": lambda r: r._push(None),
        "\x88": lambda r: r._push(True),
        "\x89": lambda r: r._push(False),
        "c": lambda r: r._global(r._line(), r._line()),
        "\x93": PickleReader._stack_global,
        "Q": PickleReader._persistent,
        "R": PickleReader._reduce,
        "b": PickleReader._build,
        "q": lambda r: r._put(r._number("<B")),
        "r": lambda r: r._put(r._number("<I")),
        "\x94": lambda r: r._put(len(r.memo)),
        "h": lambda r: r._get(r._number("<B")),
        "j": lambda r: r._get(r._number("<I")),
    }.items()
}
