"""How each family of formats is run, as commands that can be pasted into a shell in the folder of the release."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rwkvflow.release.artifacts import Row
from rwkvflow.release.names import RECIPE
from rwkvflow.worker.formats.chatrwkv.strategy import from_slug


@dataclass(frozen=True)
class Runtime:
    """What the card says of one family: a heading, a sentence, and the commands for each of its files."""

    title: str
    text: str
    setup: tuple[str, ...]
    commands: tuple[tuple[str, tuple[str, ...]], ...]  # (path, its commands)


@dataclass(frozen=True)
class _Family:
    prefixes: tuple[str, ...]
    title: str
    text: str
    setup: tuple[str, ...]
    commands: Callable[[Row], tuple[str, ...]]
    only: str = ""  # the one version that it is about; the families behind it have the others


ENGINE = f'ENGINE="$(rwkvflow engine build {RECIPE} --print-path)"'
ONNX = """\
import numpy as np, onnxruntime
session = onnxruntime.InferenceSession({path!r})
token, *states = session.get_inputs()
# Version 4 keeps a largest exponent, which begins very low.
state = [np.full(x.shape, -1e30 if x.name.endswith("_3") else 0, np.float32) for x in states]
for index in (1, 2, 3):
    *state, logits = session.run(None, {{token.name: np.array(index), **{{x.name: y for x, y in zip(states, state)}}}})
print(logits)"""
NCNN = """\
import ncnn
net = ncnn.Net()
assert not net.load_param({param!r}) and not net.load_model({weights!r})
print(net.input_names(), net.output_names())"""


def _version(row: Row) -> str:
    return str((row.facts.get("architecture") or {}).get("version") or "")


def _python(code: str) -> str:
    return f"python -c {shlex.quote(code)}"


def _rwkv(row: Row, pth: str, strategy: str) -> str:
    """The author's package, which wants a path without its .pth."""
    variables = "RWKV_JIT_ON=0 RWKV_V7_ON=1" if _version(row).startswith("7") else "RWKV_JIT_ON=0"
    use = f"from rwkv.model import RWKV; print(RWKV({pth!r}, {strategy!r}).forward([1, 2, 3], None)[0])"
    return f'{variables} python -c "{use}"'


def _librwkv(row: Row) -> tuple[str, ...]:
    return (f'"$ENGINE/bin/rwkv" eval {shlex.quote(row.path)} 1 2 3',)


def _ggml(row: Row) -> tuple[str, ...]:
    return (*_librwkv(row), f'python rwkv.cpp/python/generate_completions.py "$PWD"/{shlex.quote(row.path)}')


def _safetensors(row: Row) -> tuple[str, ...]:
    pth = row.path.removesuffix(".safetensors").removesuffix("-safetensors")
    files = [path for path in row.files if path.endswith(".safetensors")]
    tensors = f"load_file({row.path!r})"
    if len(files) > 1:
        tensors = f"{{k: v for f in sorted(glob({row.path + '/*.safetensors'!r})) for k, v in load_file(f).items()}}"
    glob = "from glob import glob; " if len(files) > 1 else ""
    load = f"import torch; {glob}from safetensors.torch import load_file; torch.save({tensors}, {pth + '.pth'!r})"
    return (f'python -c "{load}"', _rwkv(row, pth, "cpu fp32"))


def _chatrwkv(row: Row) -> tuple[str, ...]:
    short = row.format.removeprefix("chatrwkv-")
    strategy = from_slug(short) or short.replace("-", " ")
    return (_rwkv(row, row.path.removesuffix(".pth"), strategy),)


def _faster_rwkv(row: Row) -> tuple[str, ...]:
    kind = "fp32" if row.format.endswith("f32") else "fp16"
    return (f'faster-rwkv/build/chat faster-rwkv/tokenizer_model {shlex.quote(row.path)} "cuda {kind}"',)


def _onnx(row: Row) -> tuple[str, ...]:
    return (_python(ONNX.format(path=f"{row.path}/model.onnx")),)


def _ncnn(row: Row) -> tuple[str, ...]:
    return (_python(NCNN.format(param=f"{row.path}/model.param", weights=f"{row.path}/model.bin")),)


def _gguf(row: Row) -> tuple[str, ...]:
    shards = sorted(path for path in row.files if path.endswith(".gguf"))  # it finds the others from the first
    return (f'llama-cli -m {shlex.quote(shards[0] if shards else row.path)} -p "The " -n 64',)


def _web_rwkv(row: Row) -> tuple[str, ...]:
    return (f'python -c "from web_rwkv_py import Model; print(Model({row.path!r}).run([1, 2, 3]))"',)


def _transformers(row: Row) -> tuple[str, ...]:
    version = _version(row)
    if version.startswith("6"):
        return (f"python llama.cpp/convert_hf_to_gguf.py {shlex.quote(row.path)}",)
    fla = "import fla; " if version.startswith("7") else ""
    call = f"pipeline('text-generation', {row.path!r}, trust_remote_code=True)('The ')"
    return (f'python -c "{fla}from transformers import pipeline; print({call})"',)


FAMILIES = (
    _Family(
        tuple(f"ggml-q{bits}_k" for bits in range(2, 7)),
        "librwkv (`.bin`, blocks of 256)",
        "`rwkvflow engine build` builds librwkv and its tool `rwkv`, which takes and gives tokens. "
        "rwkv.cpp has these types since 2025.",
        (ENGINE,),
        _librwkv,
    ),
    _Family(
        ("ggml-",),
        "librwkv (`.bin`, version 5.1)",
        "`rwkvflow engine build` builds librwkv and its tool `rwkv`, which takes and gives tokens. "
        "rwkv.cpp takes this version for 5.2 and reads past its decay: it computes another model.",
        (ENGINE,),
        _librwkv,
        only="5.1",
    ),
    _Family(
        ("ggml-",),
        "librwkv and rwkv.cpp (`.bin`)",
        "`rwkvflow engine build` builds librwkv and its tool `rwkv`, which takes and gives tokens; "
        "[rwkv.cpp](https://github.com/RWKV/rwkv.cpp) reads the same files and has scripts for text and chat.",
        (
            ENGINE,
            "git clone --recursive https://github.com/RWKV/rwkv.cpp && (cd rwkv.cpp && cmake . && cmake --build .)",
        ),
        _ggml,
    ),
    _Family(
        ("gguf-",),
        "llama.cpp (`.gguf`)",
        "Any build of [llama.cpp](https://github.com/ggml-org/llama.cpp) that knows this version of RWKV.",
        (),
        _gguf,
    ),
    _Family(
        ("safetensors",),
        "Plain weights (`.safetensors`)",
        "The checkpoint's own names and types. The author's `rwkv` package wants a `.pth`, which is one command away.",
        ("pip install rwkv safetensors torch",),
        _safetensors,
    ),
    _Family(
        ("web-rwkv",),
        "web-rwkv and Ai00 (`.st`)",
        "[web-rwkv](https://github.com/cryscan/web-rwkv) runs on any GPU with Vulkan, or on Mesa's drivers.",
        ("pip install web-rwkv-py",),
        _web_rwkv,
    ),
    _Family(
        ("transformers",),
        "transformers (folder)",
        "Version 4 runs in transformers itself. 7 has the names of "
        "[flash-linear-attention](https://github.com/fla-org/flash-linear-attention), which wants a GPU and "
        "`pip install flash-linear-attention`. 6 and 7 can be read by the converter of "
        "[llama.cpp](https://github.com/ggml-org/llama.cpp). `trust_remote_code` runs the folder's own "
        "`tokenization_rwkv.py`, where there is one.",
        ("pip install transformers torch",),
        _transformers,
    ),
    _Family(
        ("chatrwkv-",),
        "The `rwkv` package, ChatRWKV and text-generation-webui (`.pth`)",
        "The strategy has been applied already, so it loads in no time, and with this strategy only.",
        ("pip install rwkv torch",),
        _chatrwkv,
    ),
    _Family(
        ("faster-rwkv-",),
        "faster-rwkv (`.fr`)",
        "[faster-rwkv](https://github.com/daquexian/faster-rwkv) runs it on CUDA; its README says how to build it.",
        ("git clone --recursive https://github.com/daquexian/faster-rwkv",),
        _faster_rwkv,
    ),
    _Family(
        ("onnx-",),
        "ONNX Runtime (folder)",
        "One token and the states in, the logits and the next states out.",
        ("pip install onnxruntime",),
        _onnx,
    ),
    _Family(
        ("ncnn-",),
        "ncnn (folder)",
        "For faster-rwkv (versions 4 and 5) and rwkv-mobile (6 and 7), or [ncnn](https://github.com/Tencent/ncnn) "
        "itself: one token (int32) and the states in, the logits and the next states out. States begin with zeros, of "
        "version 4 those that end in 3 with -1e30.",
        ("pip install ncnn",),
        _ncnn,
    ),
)


def runtimes(rows: Sequence[Row]) -> list[Runtime]:
    """What to say of these files, a family at a time; an unknown one is described by its consumer."""
    found = []
    left = list(rows)
    for family in FAMILIES:
        own = [
            row
            for row in left
            if row.format.startswith(family.prefixes) and (not family.only or _version(row) == family.only)
        ]
        if own:
            commands = tuple((row.path, family.commands(row)) for row in own)
            found.append(Runtime(family.title, family.text, family.setup, commands))
        left = [row for row in left if row not in own]
    for consumer in sorted({str(row.smoke.get("consumer", "")) for row in left}):
        names = ", ".join(sorted({row.format for row in left if str(row.smoke.get("consumer", "")) == consumer}))
        found.append(Runtime(names, f"Run and compared with {consumer}." if consumer else "", (), ()))
    return found
