"""Checkpoints elsewhere that are no version of RWKV are refused by their header, before they are downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from rwkvflow.app.starts import choices
from rwkvflow.base.errors import FetchError, UsageError
from rwkvflow.cli import cli
from rwkvflow.lock import header
from rwkvflow.lock.header import refuse_source
from rwkvflow.worker.formats import FORMATS
from rwkvflow.worker.model.architecture import architecture_of
from rwkvflow.worker.model.tensorinfo import TensorInfo
from rwkvflow.worker.read.gguf_file import read_gguf_index
from rwkvflow.worker.read.inspect import describe
from tests.helpers import checkpoints
from tests.standin import StandIn

LARGE = 8 << 20  # bytes of a tensor that nobody has to read


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,127.0.0.2")
    with StandIn(tmp_path / "standin") as standin:
        monkeypatch.setenv("HF_ENDPOINT", standin.endpoint)
        yield standin


def model(path: Path, more: dict[str, tuple[int, ...]]) -> bytes:
    entries = checkpoints.entries("7", layers=1, width=64, vocab=LARGE // 128)
    entries += [checkpoints.array_entry(name, np.ones(shape, np.float32), "bf16") for name, shape in more.items()]
    (checkpoints.write_safetensors if path.suffix == ".safetensors" else checkpoints.write_pth)(path, entries)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"blocks.0.ffn.s_emb.weight": (4, 4)}, "RWKV-7a"),
        ({"blocks.0.att.riddle": (3, 5)}, r"'blocks\.0\.att\.riddle' \[3, 5\]"),
    ],
)
def test_only_ranges_are_asked_for(
    net: StandIn, tmp_path: Path, suffix: str, more: dict[str, tuple[int, ...]], said: str
) -> None:
    data = model(tmp_path / f"m{suffix}", more)
    net.hub.create("owner/model").commit({f"rwkv7-g1{suffix}": data})
    with pytest.raises(UsageError, match=said):
        refuse_source(f"hf://owner/model/rwkv7-g1{suffix}", tmp_path)
    asked = [request.headers.get("range", "") for request in net.requests() if request.method == "GET"]
    assert asked
    assert all(text.startswith("bytes=") for text in asked)
    spans = [text.removeprefix("bytes=").split("-") for text in asked]
    assert sum(int(last) - int(first) + 1 for first, last in set(map(tuple, spans))) <= 4 * header.BLOCK < len(data)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_version_passes_and_so_does_what_is_ignored(net: StandIn, tmp_path: Path, suffix: str) -> None:
    net.hub.create("owner/model").commit(
        {
            f"plain{suffix}": model(tmp_path / f"plain{suffix}", {}),
            f"odd{suffix}": model(tmp_path / f"odd{suffix}", {"blocks.0.att.riddle": (3, 5)}),
            f"damaged{suffix}": b"PK\3\4 and nothing",
        }
    )
    refuse_source(f"hf://owner/model/plain{suffix}", tmp_path)
    refuse_source(f"hf://owner/model/odd{suffix}", tmp_path, ["*.riddle"])
    refuse_source(f"hf://owner/model/damaged{suffix}", tmp_path)
    refuse_source(f"hf://owner/model/absent{suffix}", tmp_path)
    with pytest.raises(UsageError, match="no tensor is called like"):
        refuse_source(f"hf://owner/model/plain{suffix}", tmp_path, ["*.riddle"])


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_checkpoint_elsewhere_is_described_by_its_header(net: StandIn, tmp_path: Path, suffix: str) -> None:
    data = model(tmp_path / f"m{suffix}", {"blocks.0.att.riddle": (3, 5)})
    net.hub.create("owner/model").commit({f"m{suffix}": data, "notes.pth": b"no checkpoint" * 99})
    here, there = describe(tmp_path / f"m{suffix}"), header.describe_source(f"hf://owner/model/m{suffix}")
    assert there["file"] == f"hf://owner/model/m{suffix}"
    same = ("bytes", "format", "architecture", "problem", "parameters", "types", "tensors")
    assert {key: there[key] for key in same} == {key: here[key] for key in same}
    assert all(request.headers.get("range") for request in net.requests() if request.method == "GET")
    with pytest.raises(UsageError, match=r"none of \.pth, \.safetensors, \.gguf, \.bin and \.prefab"):
        header.describe_source("hf://owner/model/notes.pth")
    with pytest.raises(FetchError, match="absent"):
        header.describe_source("hf://owner/model/absent.pth")


def laid_out(path: Path, form: str) -> bytes:
    """A large file of this format, with tensors of zeros."""
    shapes = checkpoints.shapes("7", width=64, vocab=LARGE // 128)
    tensors = {name: TensorInfo(name, "bf16", shape) for name, shape in shapes.items()}
    layout = FORMATS[form].layout(architecture_of(tensors), tensors)  # type: ignore[attr-defined]
    content = bytearray(layout.size)
    for at, data in layout.literals:
        content[at : at + len(data)] = data
    path.write_bytes(content)
    return bytes(content)


def test_a_gguf_elsewhere_is_described_by_what_stands_before_its_data(net: StandIn, tmp_path: Path) -> None:
    data = laid_out(tmp_path / "m.gguf", "gguf-f16")
    flipped = data[:8] + b"\xff" * 8 + data[16:]
    net.hub.create("owner/model").commit(
        {"m.gguf": data, "short.gguf": data[:-9], "odd.gguf": flipped, "a.gguf": b"GG"}
    )
    here, there = describe(tmp_path / "m.gguf"), header.describe_source("hf://owner/model/m.gguf")
    assert there == {**here, "file": "hf://owner/model/m.gguf"}
    asked = {request.headers.get("range", "") for request in net.requests() if request.method == "GET"}
    spans = [text.removeprefix("bytes=").split("-") for text in asked]
    begin = min(tensor.offset for tensor in read_gguf_index(tmp_path / "m.gguf").tensors.values())
    assert sum(int(last) - int(first) + 1 for first, last in spans) <= begin + header.BLOCK < len(data) / 2
    for name, said in (("short", "lies outside the file"), ("odd", "it claims"), ("a", r"none of \.pth")):
        with pytest.raises(UsageError, match=said) as caught:
            header.describe_source(f"hf://owner/model/{name}.gguf")
        assert f"hf://owner/model/{name}.gguf" in caught.value.message
    with pytest.raises(FetchError, match="absent"):
        header.describe_source("hf://owner/model/absent.gguf")
    run = CliRunner().invoke(cli, ["inspect", "hf://owner/model/m.gguf"])
    assert run.exit_code == 0, run.exception
    assert "rwkv7" in run.output


@pytest.mark.parametrize(("form", "suffix"), [("ggml-f16", ".bin"), ("prefab-f16", ".prefab")])
def test_a_file_whose_headers_stand_between_its_data_is_described(
    net: StandIn, tmp_path: Path, form: str, suffix: str
) -> None:
    data = laid_out(tmp_path / f"m{suffix}", form)
    net.hub.create("owner/model").commit({f"m{suffix}": data, f"short{suffix}": data[:-9], f"odd{suffix}": data[:90]})
    here, there = describe(tmp_path / f"m{suffix}"), header.describe_source(f"hf://owner/model/m{suffix}")
    assert there == {**here, "file": f"hf://owner/model/m{suffix}"}
    asked = {request.headers.get("range", "") for request in net.requests() if request.method == "GET"}
    spans = [text.removeprefix("bytes=").split("-") for text in asked]
    assert sum(int(last) - int(first) + 1 for first, last in spans) < len(data) / 2
    for name in ("short", "odd"):
        with pytest.raises(UsageError, match="cut short") as caught:
            header.describe_source(f"hf://owner/model/{name}{suffix}")
        assert f"hf://owner/model/{name}{suffix}" in caught.value.message
    run = CliRunner().invoke(cli, ["inspect", f"hf://owner/model/m{suffix}"])
    assert run.exit_code == 0, run.exception
    assert "RWKV version 7" in run.output


def test_what_wraps_a_model_is_off_its_names_elsewhere_too(net: StandIn, tmp_path: Path) -> None:
    entries = checkpoints.entries("7", layers=1, width=64, vocab=256)
    wrapped = [replace(entry, name=f"module.{entry.name}") for entry in entries]
    checkpoints.write_safetensors(tmp_path / "m.safetensors", wrapped)
    net.hub.create("owner/model").commit({"m.safetensors": (tmp_path / "m.safetensors").read_bytes()})
    here = describe(tmp_path / "m.safetensors")
    there = header.describe_source("hf://owner/model/m.safetensors")
    assert there["architecture"] == here["architecture"]
    assert there["architecture"]["version"] == "7"
    assert there["problem"] is None


def test_of_a_repository_the_checkpoints_are_listed_to_choose_from(net: StandIn, tmp_path: Path) -> None:
    data = model(tmp_path / "m.pth", {})
    net.hub.create("owner/many").commit({"a.pth": data, "b.pth": data, "README.md": b"x"})
    net.hub.create("owner/one").commit({"only.pth": data})
    net.hub.create("owner/folder").commit({"config.json": b"{}", "model.safetensors": data})
    net.hub.create("owner/none").commit({"README.md": b"x"})
    found = choices("hf://owner/many")
    assert [(each.source, each.size, each.version) for each in found or ()] == [
        ("hf://owner/many/a.pth", len(data), "7"),
        ("hf://owner/many/b.pth", len(data), "7"),
    ]
    assert choices("hf://owner/folder") is None
    assert choices("hf://owner/many/a.pth") is None
    assert choices(str(tmp_path)) is None
    with pytest.raises(UsageError, match="has no checkpoint"):
        choices("hf://owner/none")
    run = CliRunner()
    many = run.invoke(cli, ["init", "hf://owner/many"])
    assert isinstance(many.exception, UsageError)
    assert "hf://owner/many/b.pth  RWKV-7" in str(many.exception.remedy)
    one = run.invoke(cli, ["init", "owner/one"])
    assert one.exit_code == 0, one.exception
    assert 'source: "hf://owner/one/only.pth"' in one.output
