"""The statement: well formed, about exactly the files of the release, and the same on every machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from rwkvflow.release.names import UNLISTED_IN_STATEMENT, is_plain
from rwkvflow.release.provenance.materials import TREE, materials, public_uri, shown_source
from rwkvflow.release.provenance.statement import BUILD_TYPE, dependencies, read_statement
from rwkvflow.release.sums import parse_sums, sums_text
from tests.helpers.releases import COMMIT, WHEEL, Made, made

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run(tmp_path: Path) -> Made:
    return made(tmp_path / "store")


def statement_of(run: Made) -> dict[str, Any]:
    files = {file.path: file.source for file in run.assemble().files}
    data = files["provenance.json"]
    assert isinstance(data, bytes)
    return read_statement(data)


def test_the_package_reads_it_as_a_statement_with_slsa_provenance(run: Made) -> None:
    statement = statement_of(run)
    message = json_format.ParseDict(statement, statement_pb2.Statement())
    Statement.copy_from_pb(message).validate()
    assert statement["predicateType"] == "https://slsa.dev/provenance/v1"
    predicate = json_format.ParseDict(statement["predicate"], provenance_pb2.Provenance())
    assert predicate.build_definition.build_type == BUILD_TYPE
    assert predicate.run_details.builder.version["rwkvflow"]
    assert not predicate.run_details.HasField("metadata")


def test_its_subjects_are_the_files_of_the_release(run: Made) -> None:
    release = run.assemble()
    subjects = {subject["name"]: subject for subject in statement_of(run)["subject"]}
    wanted = {file.path: file.digest[7:] for file in release.files if file.path not in UNLISTED_IN_STATEMENT}
    assert {name: subject["digest"]["sha256"] for name, subject in subjects.items()} == wanted
    notes = {"model": "tiny7", "format": "ggml-q5_1", "images": ["py3.11"]}
    assert subjects["tiny7/tiny7-Q5_1.bin"]["annotations"] == notes
    assert "annotations" not in subjects["README.md"]


def test_it_says_what_went_in_and_what_was_built(run: Made) -> None:
    statement = statement_of(run)
    inputs = dependencies(statement)
    assert inputs["model/tiny7"] == {"sha256": run.params["models"]["tiny7"]["sha256"]}
    assert inputs["recipe.lock.yaml"] == {"sha256": run.params["lock"][7:]}
    assert inputs[f"wheel/{WHEEL}"] == {"sha256": "a" * 64}
    assert inputs["base/py3.11"] == {"sha256": "d" * 64}
    assert inputs["worker"] == {TREE: "1" * 64}, "a folder's digest is not passed off as a file's"
    definition = statement["predicate"]["buildDefinition"]
    uris = {item["name"]: item.get("uri") for item in definition["resolvedDependencies"]}
    assert uris["model/tiny7"] == f"hf://someone/tiny7@{COMMIT}/tiny7.safetensors"
    assert uris["model/tiny4"] is None, "nobody else can fetch a file of this machine"
    assert definition["externalParameters"]["recipe"]["digest"]["sha256"] == run.params["recipe"][7:]
    engine = definition["internalParameters"]["engine"]
    assert engine["built"]["py3.11"]["compiler"] == "Clang 20 (zig 0.17.0)"
    assert engine["cmakePatches"] == {"py3.11": "engine/cmake-patch@py3.11.diff"}
    built = {item["name"]: item["digest"]["sha256"] for item in statement["predicate"]["runDetails"]["byproducts"]}
    assert set(built) == {f"engine@py3.11/{name}" for name in ("build.json", "lib/librwkv.so", "patch.diff")}
    sizes = [item["annotations"]["size"] for item in definition["resolvedDependencies"] if "size" in str(item)]
    assert all(isinstance(size, int) for size in sizes)


def test_an_engine_from_git_is_named_by_its_commit(run: Made) -> None:
    run.params["engine"] |= {"source": "https://example.org/rwkv.git@" + "c" * 40, "digest": None}
    statement = statement_of(run)
    assert dependencies(statement)["engine"] == {"gitCommit": "c" * 40}
    run.params["engine"]["source"] = "/home/me/rwkv.git@" + "c" * 40
    assert [item.uri for item in materials(run.params) if item.name == "engine"] == [None]


@pytest.mark.parametrize("source", ["/home/me/secret/x.pth", "~/models/x.pth", "file:/home/me/secret/x.pth"])
def test_paths_of_this_machine_are_not_told(run: Made, source: str) -> None:
    run.params["models"]["tiny4"]["source"] = source
    for file in run.assemble().files:
        if isinstance(file.source, bytes):
            assert b"/home/me" not in file.source, file.path
            assert b"~/models" not in file.source, file.path
    assert shown_source(source) == "x.pth"
    assert public_uri(source) is None


def test_what_was_left_out_is_said_with_the_reason(run: Made) -> None:
    del run.inputs["smoke/tiny7/ggml-q5_1@py3.11"]
    internal = statement_of(run)["predicate"]["buildDefinition"]["internalParameters"]
    assert internal["leftOut"] == {"tiny7/ggml-q5_1@py3.11": "it did not pass its smoke"}


def test_a_time_is_in_it_only_where_source_date_epoch_gives_one(run: Made) -> None:
    run.params["epoch"] = 1704067200
    statement = statement_of(run)
    assert statement["predicate"]["runDetails"]["metadata"] == {"finishedOn": "2024-01-01T00:00:00Z"}


CODE = """
import hashlib, sys
from pathlib import Path
from tests.helpers.releases import made
for file in made(Path(sys.argv[1])).assemble().files:
    print(file.digest, file.path)
"""


def test_the_bytes_do_not_depend_on_place_time_locale_or_hash_seed(tmp_path: Path) -> None:
    told = []
    for seed, zone, locale, folder in (("1", "UTC", "C", "a"), ("77", "Asia/Tokyo", "de_DE.UTF-8", "somewhere/else")):
        env = {**os.environ, "PYTHONHASHSEED": seed, "TZ": zone, "LC_ALL": locale, "PYTHONPATH": str(ROOT)}
        (tmp_path / folder).parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", CODE, str(tmp_path / folder)],
            env=env, cwd=tmp_path, capture_output=True, text=True, check=True,
        )  # fmt: skip
        told.append(done.stdout)
    assert told[0] == told[1]
    assert len(told[0].splitlines()) == 18


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda s: s.update(_type="https://in-toto.io/Statement/v2"), "Wrong statement type"),
        (lambda s: s.update(predicateType="https://example.org/x"), "its predicate is"),
        (lambda s: s.update(subject=[]), "At least one subject"),
        (lambda s: s["subject"][0].pop("digest"), "At least one digest"),
        (lambda s: s["subject"][0].update(more=1), "no in-toto statement"),
        (lambda s: s["predicate"]["runDetails"].update(host="mine"), "no in-toto statement"),
        (lambda s: s["predicate"].pop("buildDefinition"), "no in-toto statement"),
        (lambda s: s["predicate"]["buildDefinition"].update(buildType="other"), "build type"),
    ],
)
def test_what_is_no_statement_of_ours_is_refused_with_the_reason(run: Made, damage: Any, message: str) -> None:
    statement = statement_of(run)
    damage(statement)
    with pytest.raises(ValueError, match=message):
        read_statement(json.dumps(statement).encode())


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b"null", b"\xff\xfe", b"[" * 100000, b'{"_type": 7}'])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        read_statement(data)


NAMES = st.text(st.characters(categories=["L", "N"], include_characters="._-+ "), min_size=1).filter(is_plain)


@given(st.dictionaries(NAMES, st.from_regex(r"[0-9a-f]{64}", fullmatch=True)))
def test_sums_are_read_back_as_written(digests: dict[str, str]) -> None:
    assert parse_sums(sums_text(digests)) == (digests, [] if digests else ["its last line is cut off"])


@given(st.text())
def test_sums_of_any_text_are_read_without_a_crash(text: str) -> None:
    found, problems = parse_sums(text)
    assert problems or sums_text(found) == text


@pytest.mark.parametrize(
    "line", ["0" * 64 + " x", "0" * 63 + "  x", "A" * 64 + "  x", "0" * 64 + "  ../x", "0" * 64 + "  /x", "x", ""]
)
def test_lines_that_we_never_write_are_named(line: str) -> None:
    assert parse_sums(f"{'1' * 64}  a\n{line}\n")[1] == ["line 2 is not a digest and the name of a file of the release"]
