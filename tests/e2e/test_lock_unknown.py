"""Checkpoints elsewhere that are no version of RWKV are refused by their header, before they are downloaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers import checkpoints

from rwkvflow.base.errors import UsageError
from rwkvflow.lock import header
from rwkvflow.lock.header import refuse_source
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
