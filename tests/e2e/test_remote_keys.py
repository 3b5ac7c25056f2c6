"""A remote store that somebody poisons: what no trusted key signed reaches no release, and a liar is found."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rwkvflow.base.hashing import file_digest
from rwkvflow.store.keys import load_signer
from rwkvflow.store.record import Output, parse_record, record_json
from tests.e2e.test_remote_s3 import machine

pytest.importorskip("cryptography")
HOST = ("--sandbox", "host")
STEP = "convert/tiny4/ggml-q5_1@py3.11"


def poison(remote: Path, eve: Path) -> str:
    """Put another file in the place of an artifact, in Eve's name; the step's key."""
    for path in sorted((remote / "index").rglob("*.json")):
        entry = json.loads(path.read_text())
        if entry["step"] != STEP:
            continue
        blob = remote / "wicked"
        blob.write_bytes(b"not what was asked for")
        digest = file_digest(blob)
        record = parse_record(entry)
        record = replace(record, outputs={"artifact": Output(digest, "file", blob.stat().st_size)}, signature=None)
        signed = replace(record, signature=load_signer(eve).sign(entry["key"], record))
        place = remote / "blobs" / digest[7:9] / digest[7:]
        place.parent.mkdir(exist_ok=True)
        blob.rename(place)
        path.write_text(json.dumps({"key": entry["key"], **record_json(signed)}))
        return str(entry["key"])
    raise AssertionError("no such step")


def test_a_poisoned_store_reaches_no_release_and_its_liar_is_found(tmp_path: Path) -> None:
    remote, ann, eve = tmp_path / "remote", tmp_path / "ann.key", tmp_path / "eve.key"
    at = ("--remote", f"file://{remote}")
    mine = machine(tmp_path / "mine")
    keys = {name: mine("cache", "keys", "--new", str(path)).out.strip() for name, path in (("ann", ann), ("eve", eve))}
    first = mine("run", "recipe.yaml", *HOST, *at, "--store-key", str(ann), "--json")
    assert first.code == 0, first.err
    assert "whoever may write to it" in first.out, "without keys it is said"
    poison(remote, eve)

    yours = machine(tmp_path / "yours", like=mine)
    yours("cache", "trust", keys["ann"], "--name", "ann")
    checked = yours("cache", "audit", "recipe.yaml", *HOST, *at, "--sample", "1%")
    assert checked.code == 0, checked.err + checked.out
    assert "1 of " in checked.out
    second = yours("run", "recipe.yaml", *HOST, *at, "--json")
    assert second.code == 0, second.err
    assert STEP in second.steps("done"), "what Eve said is not there"
    assert yours.files() == mine.files()

    poison(remote, eve)
    other = machine(tmp_path / "other", like=mine)
    for name, key in keys.items():
        other("cache", "trust", key, "--name", name)
    believed = other("plan", "recipe.yaml", *HOST, *at)
    assert f"= {STEP}" in believed.out
    caught = other("cache", "audit", "recipe.yaml", *HOST, *at, "--sample", "100%", "--purge")
    assert caught.code == 8, caught.out + caught.err
    assert f"LIE     {STEP}" in caught.out
    assert caught.out.count("LIE") == 1
    assert keys["eve"] in caught.out
    listed = other("cache", "keys").out
    assert "revoked" in next(line for line in listed.splitlines() if keys["eve"] in line)
    assert "revoked" not in next(line for line in listed.splitlines() if keys["ann"] in line)
    third = other("run", "recipe.yaml", *HOST, *at, "--json")
    assert third.code == 0, third.err
    assert STEP in third.steps("done")
    assert other.files() == mine.files()
