"""The few names that a torch file's pickle may refer to: those of torch/storage.py and torch/_utils.py for tensors."""

from __future__ import annotations

from dataclasses import dataclass

_STORAGES = {
    "DoubleStorage": "f64",
    "FloatStorage": "f32",
    "HalfStorage": "f16",
    "BFloat16Storage": "bf16",
    "LongStorage": "i64",
    "IntStorage": "i32",
    "ShortStorage": "i16",
    "CharStorage": "i8",
    "ByteStorage": "u8",
    "BoolStorage": "bool",
    "UntypedStorage": "bytes",
}
_DTYPES = {
    "float64": "f64",
    "double": "f64",
    "float32": "f32",
    "float": "f32",
    "float16": "f16",
    "half": "f16",
    "bfloat16": "bf16",
    "float8_e4m3fn": "f8_e4m3",
    "float8_e5m2": "f8_e5m2",
    "int64": "i64",
    "long": "i64",
    "int32": "i32",
    "int": "i32",
    "int16": "i16",
    "short": "i16",
    "int8": "i8",
    "uint64": "u64",
    "uint32": "u32",
    "uint16": "u16",
    "uint8": "u8",
    "bool": "bool",
}
_CALLS = {
    "collections.OrderedDict": "ordered",
    "torch._utils._rebuild_tensor": "tensor",
    "torch._utils._rebuild_tensor_v2": "tensor",
    "torch._utils._rebuild_tensor_v3": "tensor-v3",
    "torch._utils._rebuild_parameter": "parameter",
    "torch._utils._rebuild_parameter_with_state": "parameter",
    "torch._utils._rebuild_meta_tensor_no_storage": "meta",
    "torch._tensor._rebuild_from_type": "typed",
    "torch._tensor._rebuild_from_type_v2": "typed",
    "torch.Tensor": "class",
    "torch._tensor.Tensor": "class",
    "torch.nn.parameter.Parameter": "class",
    "torch.Size": "size",
}


@dataclass(frozen=True, slots=True)
class Name:
    """A global that is allowed.

    kind  ordered, size, storage, dtype, class (of a tensor), or what rebuilds one: tensor, tensor-v3, parameter, meta
          (no values), typed (one that has Python attributes)
    """

    kind: str
    text: str
    dtype: str = ""


def allowed(module: str, name: str) -> Name | None:
    """The name, if tensors need it."""
    full = f"{module}.{name}"
    if full in _CALLS:
        return Name(_CALLS[full], full)
    if module in ("torch", "torch.storage", "torch.cuda") and name in _STORAGES:
        return Name("storage", full, _STORAGES[name])
    if module == "torch" and name in _DTYPES:
        return Name("dtype", full, _DTYPES[name])
    return None
