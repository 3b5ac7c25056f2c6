"""The worker's digests are the host's."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base import hashing
from rwkvflow.plan import step
from rwkvflow.worker import digest

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


def test_a_folders_digest(tmp_path: Path) -> None:
    folder = tmp_path / "tree"
    for name, content in {"a": "1", "b/c.h": "2", "ü/d": "3", ".git/HEAD": "x", "__pycache__/m.pyc": "y"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    (folder / "a").chmod(0o755)
    (folder / "empty").mkdir()
    (folder / "dangling").symlink_to("nowhere")
    first = digest.tree_digest(folder)
    assert first == hashing.tree_digest(folder)
    (folder / ".git/HEAD").write_text("z")
    assert digest.tree_digest(folder) == first
    (folder / "a").chmod(0o644)
    assert digest.tree_digest(folder) == hashing.tree_digest(folder) != first


def test_a_files_digest(tmp_path: Path) -> None:
    file = tmp_path / "f"
    file.write_bytes(bytes(range(256)) * 100)
    assert digest.file_digest(file) == hashing.file_digest(file)


@given(JSON)
def test_canonical_json(value: object) -> None:
    assert digest.canonical(value) == step.canonical(value)
    assert digest.json_digest(value) == hashing.text_digest(step.canonical(value))
