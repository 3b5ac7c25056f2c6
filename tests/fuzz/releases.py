"""Readers of what others publish: releases, what they say of each other's, records of stores."""

from __future__ import annotations

import json
import shutil
from functools import cache, partial
from pathlib import Path
from typing import Any

from rwkvflow.execute.cluster.words import AnswerError
from rwkvflow.store import failures
from tests.fuzz.reader import Reader, either

_KEPT: dict[str, Any] = {}


def _release(folder: Path) -> Path:
    """A whole release, made once."""
    if "release" not in _KEPT:
        from tests.helpers.releases import made

        kept = folder.parent / "release-of-seeds"
        _KEPT["release"] = made(kept / "store").publish(kept / "release")
    found: Path = _KEPT["release"]
    return found


def _file(name: str) -> Any:
    return lambda folder: [(_release(folder) / name).read_bytes()]


def _replaced(name: str) -> Any:
    """A whole release is checked in which one file is another."""

    def read(data: bytes, folder: Path) -> None:
        from rwkvflow.release.check import check_release

        source = _KEPT["release"]
        shutil.copytree(source, folder / "r", copy_function=lambda a, b: Path(b).hardlink_to(a))
        (folder / "r" / name).unlink()
        (folder / "r" / name).write_bytes(data)
        found = check_release(folder / "r")
        for line in (*found.problems, *found.faults, found.name):
            assert line.isprintable(), line

    return read


def _of_quality(data: bytes, folder: Path) -> None:
    from rwkvflow.release.catalogue import of_catalogue, read_catalogue
    from rwkvflow.release.choose import best_for_some, choices, of_quality
    from rwkvflow.release.plot import plot_svg
    from rwkvflow.release.quality import quality_bytes, read_quality

    def of_quality_json() -> None:
        quality = read_quality(data)
        best_for_some(choices(of_quality(quality)))
        quality_bytes(quality)
        plot_svg(quality)

    either(ValueError, [of_quality_json, lambda: best_for_some(choices(of_catalogue(read_catalogue(data))))])


def _statement(data: bytes, folder: Path) -> None:
    from rwkvflow.release.provenance.attestation import rebuildable
    from rwkvflow.release.provenance.material_check import material_problems
    from rwkvflow.release.provenance.statement import dependencies, read_statement, stated_name

    stated_name(data)
    statement = read_statement(data)
    dependencies(statement)
    rebuildable(statement)
    material_problems(statement, None)


def _sums(data: bytes, folder: Path) -> None:
    from rwkvflow.release.sums import parse_sums

    parse_sums(data.decode("utf-8", "replace"))


@cache
def _signed() -> tuple[bytes, bytes, Any]:
    """(bundle with a key, bundle of an identity, statement) about a release."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    from rwkvflow.release.provenance.attestation import Circumstances, rebuild_statement, sign_rebuild
    from rwkvflow.release.provenance.statement import read_statement
    from tests.helpers.sigstore_root import SigstoreOfOnesOwn

    release = _KEPT["release"]
    statement = read_statement((release / "provenance.json").read_bytes())
    payload = rebuild_statement(
        statement, "0" * 64, "ann", ["x differs"], Circumstances("host", "x86_64", "cpu", "2026")
    )
    key = ec.derive_private_key(12345, ec.SECP256R1())
    place = release.parent / "ann.key"
    place.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
    _KEPT["public"] = key.public_key()
    sigstore = SigstoreOfOnesOwn()
    _KEPT["root"] = sigstore.trusted_root(release.parent / "root.json")
    return sign_rebuild(payload, place), sigstore.sign(payload, "ann@example.org", "https://issuer.example"), statement


def _bundles(folder: Path) -> list[bytes]:
    _release(folder)
    key, identity, _ = _signed()
    return [key, identity, json.dumps(json.loads(key)["dsseEnvelope"]).encode()]


def _attestation(data: bytes, folder: Path) -> None:
    from rwkvflow.release.provenance.attestation import (
        check_subject,
        in_words,
        read_attestation,
        signed_with,
        statement_of,
    )
    from rwkvflow.release.provenance.keyless import Identity, KeylessVerifier

    attestation = read_attestation(data)
    signed_with(attestation, _KEPT["public"])
    if attestation.keyless:
        if "verifier" not in _KEPT:
            _KEPT["verifier"] = KeylessVerifier(_KEPT["root"])
        _KEPT["verifier"].signer(attestation, [Identity("ann@example.org", "https://issuer.example")])
    said = statement_of(attestation)
    in_words(said)
    check_subject(said, _signed()[2], "0" * 64)


def _payloads(folder: Path) -> list[bytes]:
    import base64

    return [base64.b64decode(json.loads(_bundles(folder)[0])["dsseEnvelope"]["payload"])]


def _payload(data: bytes, folder: Path) -> None:
    from rwkvflow.release.provenance.attestation import Attestation, check_subject, in_words, statement_of

    said = statement_of(Attestation(data, data, (), "", False))
    in_words(said)
    check_subject(said, _signed()[2], "0" * 64)


def _signatures(folder: Path) -> list[bytes]:
    from rwkvflow.release.provenance.signature import sign

    _bundles(folder)
    release = _KEPT["release"]
    _KEPT["digests"] = {"a": "0" * 64, "b/c": "1" * 64}
    from cryptography.hazmat.primitives import serialization as form

    public = _KEPT["public"].public_bytes(form.Encoding.PEM, form.PublicFormat.SubjectPublicKeyInfo)
    (release.parent / "ann.pub").write_bytes(public)
    return [sign("tiny", _KEPT["digests"], release.parent / "ann.key")]


def _signature(data: bytes, folder: Path) -> None:
    from rwkvflow.release.provenance.signature import check_signature

    check_signature(data, _KEPT["release"].parent / "ann.pub", _KEPT["digests"])


def _keys(folder: Path) -> list[bytes]:
    _signatures(folder)
    parent = _KEPT["release"].parent
    return [(parent / "ann.key").read_bytes(), (parent / "ann.pub").read_bytes()]


def _key(data: bytes, folder: Path) -> None:
    from rwkvflow.base.errors import RwkvflowError
    from rwkvflow.release.provenance.attestation import load_public
    from rwkvflow.release.provenance.signature import private_key
    from rwkvflow.store.keys import load_signer

    (folder / "k").write_bytes(data)
    path = folder / "k"
    either(RwkvflowError, [partial(read, path) for read in (load_public, private_key, load_signer)])


def _records(folder: Path) -> list[bytes]:
    from rwkvflow.store.keys import new_key
    from rwkvflow.store.record import Output, Record, record_json

    record = Record(
        "convert/a/ggml-f16@py3.11", {"artifact": Output("sha256:" + "0" * 64, "file", 12)}, 1.5, {"a": "b"}
    )
    signer = new_key(folder / "store.key")
    _KEPT["store-key"] = signer.key
    signature = signer.sign("k" * 64, record)
    from dataclasses import replace

    both = (record, replace(record, signature=signature, remote="x"))
    return [json.dumps({"key": "k" * 64, **record_json(each)}).encode() for each in both]


def _record(data: bytes, folder: Path) -> None:
    from rwkvflow.store import remote
    from rwkvflow.store.record import Wanted, record_json
    from rwkvflow.store.trust import Trust, TrustedKey

    record = remote._record("k" * 64, data)
    Trust([TrustedKey(_KEPT["store-key"], "ann", "2026-11-30T12:00:00Z")]).problem("k" * 64, record)
    Wanted("convert/a/x", {"artifact": "file"}).problem(record)
    json.dumps(record_json(record))


def _trusted(folder: Path) -> list[bytes]:
    from rwkvflow.store.keys import new_key
    from rwkvflow.store.trust import add

    add(folder, new_key(folder / "store.key").key, "ann")
    return [(folder / "trust.json").read_bytes()]


def _trust(data: bytes, folder: Path) -> None:
    from rwkvflow.store.trust import Trust, kept_keys

    (folder / "trust.json").write_bytes(data)
    Trust(kept_keys(folder))


def _runs(folder: Path) -> list[bytes]:
    step = {
        "step": "convert/a/ggml-f16@py3.11",
        "status": "done",
        "seconds": 1.0,
        "outputs": {"artifact": "sha256:" + "0" * 64},
    }
    lines = [{"event": "RunStarted", "time": 1.0}, {"event": "StepStarted", **step}, {"event": "StepFinished", **step}]
    return ["".join(json.dumps(line) + "\n" for line in lines).encode()]


def _history(data: bytes, folder: Path) -> None:
    from rwkvflow.store.history import read

    (folder / "run.jsonl").write_bytes(data)
    list(read(folder / "run.jsonl"))


def _failures(folder: Path) -> list[bytes]:
    told = {"worker": "a", "message": "it failed", "remedy": None, "code": 5, "final": False}
    return [json.dumps(told).encode(), json.dumps({**told, "remedy": "mend it", "final": True}).encode()]


def _failure(data: bytes, folder: Path) -> None:
    from rwkvflow.store.failures import _parsed

    _parsed(data)


def _greetings(folder: Path) -> list[bytes]:
    said = {"cores": 4.0, "memory": 1 << 30, "name": "a", "version": "1", "code": "c", "platform": "linux-x86_64"}
    return [json.dumps({**said, "sandbox": "host", "problem": "", "protocol": 1}).encode()]


def _greeting(data: bytes, folder: Path) -> None:
    from rwkvflow.execute.cluster.fitness import parse_greeting

    parse_greeting(data.decode("utf-8", "replace"))


def _answers_of_workers(folder: Path) -> list[bytes]:
    output = {"digest": "sha256:" + "ab" * 32, "kind": "file", "size": 12}
    done = {"status": "done", "outputs": {"artifact": output}, "notes": {"a": "b"}, "seconds": 1.5, "error": None}
    told = {"kind": "StepFailed", "message": "it failed", "remedy": None}
    failed = {"status": "failed", "outputs": {}, "notes": {}, "seconds": 2, "error": told}
    said = {"protocol": 1, "worker": "a", "steps": {"x": done}, "refused": "", "lost": []}
    every = [said, {**said, "steps": {"x": failed}}, {**said, "refused": "full disk", "lost": ["sha256:" + "cd" * 32]}]
    every += [
        {"kind": "started", "name": "a"},
        {"kind": "log", "step": "x", "lines": ["one", "two"]},
        {"kind": "progress", "step": "x", "done": 1, "total": 2, "unit": "B", "label": "l"},
    ]
    return [json.dumps(one).encode() for one in every]


def _answer_of_a_worker(data: bytes, folder: Path) -> None:
    """As an answer and as an event: of either, what is odd is refused."""
    from rwkvflow.execute.cluster.words import parse_answer, parse_event

    text = data.decode("utf-8", "replace")
    try:
        parse_answer(text, ["x"])
    except AnswerError as error:
        refused = error
    else:
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise refused from None
    if parse_event(value) is None:
        raise refused


def _shelf(data: bytes, folder: Path) -> None:
    """A release that somebody serves: its list of artifacts and their reports are a stranger's."""
    from rwkvflow.serve.shelf import find_models

    release = folder / "r"
    (release / "tiny7" / "smoke").mkdir(parents=True)
    (release / "quality.json").write_bytes(data)
    for name in ("tiny7/tiny7-Q5_1.bin", "outside.bin"):
        (release / name if name.startswith("tiny7") else folder / name).write_bytes(b"fmgg" + bytes(60))
    (release / "tiny7/smoke/tiny7-Q5_1.bin.json").write_bytes(data)
    for found in find_models([release]):
        assert found.path.resolve().is_relative_to(release.resolve()), found.path


def _folder_states(folder: Path) -> list[bytes]:
    return [(_release(folder) / ".rwkvflow.json").read_bytes()]


def _folder_state(data: bytes, folder: Path) -> None:
    """What a folder says of itself that a release is to be published to."""
    from rwkvflow.publish.folder import _name, _ours, _published, is_intact

    (folder / ".rwkvflow.json").write_bytes(data)
    is_intact(folder, "k")
    _name(folder), _ours(folder), _published(folder)


def _problem_type() -> tuple[type[Exception], ...]:
    from rwkvflow.base.errors import RwkvflowError
    from rwkvflow.release.provenance.attestation import AttestationProblem
    from rwkvflow.release.provenance.signature import SignatureProblem

    return (AttestationProblem, SignatureProblem, RwkvflowError)


PROBLEMS = _problem_type()
PROVENANCE = "release/provenance/"
READERS = {
    "provenance": Reader(
        "provenance",
        (f"{PROVENANCE}statement", f"{PROVENANCE}material_check", f"{PROVENANCE}materials"),
        _file("provenance.json"),
        _statement,
        errors=(ValueError,),
        text=True,
    ),
    "checked": Reader(
        "whole releases with another provenance",
        ("release/check",),
        _file("provenance.json"),
        _replaced("provenance.json"),
        text=True,
    ),
    "checked-lists": Reader(
        "whole releases with another catalogue",
        ("release/catalogue", "release/check"),
        _file("catalogue.json"),
        _replaced("catalogue.json"),
        text=True,
    ),
    "figures": Reader(
        "quality.json, catalogue.json",
        ("release/quality", "release/catalogue", "release/choose", "release/plot", "release/labels"),
        lambda folder: [*_file("quality.json")(folder), *_file("catalogue.json")(folder)],
        _of_quality,
        errors=(ValueError,),
        text=True,
    ),
    "sums": Reader("SHA256SUMS", ("release/sums",), _file("SHA256SUMS"), _sums, text=True),
    "attestation": Reader(
        "attestations: DSSE, Sigstore's bundles",
        (f"{PROVENANCE}attestation", f"{PROVENANCE}keyless"),
        _bundles,
        _attestation,
        errors=PROBLEMS,
        text=True,
    ),
    "statement": Reader(
        "statements inside of them", (f"{PROVENANCE}attestation",), _payloads, _payload, errors=PROBLEMS, text=True
    ),
    "signature": Reader("signatures", (f"{PROVENANCE}signature",), _signatures, _signature, errors=PROBLEMS, text=True),
    "key": Reader("keys", (f"{PROVENANCE}attestation", "store/keys"), _keys, _key, text=True),
    "record": Reader(
        "records of a remote store",
        ("store/record", "store/remote", "store/keys", "store/trust"),
        _records,
        _record,
        errors=(ValueError,),
        text=True,
    ),
    "trust": Reader("kept keys", ("store/trust",), _trusted, _trust, text=True),
    "failure": Reader(
        "failures that other workers tell", ("store/failures",), _failures, _failure, errors=failures.ODD, text=True
    ),
    "greeting": Reader(
        "greetings of a cluster's workers",
        ("execute/cluster/fitness",),
        _greetings,
        _greeting,
        errors=(ValueError,),
        text=True,
    ),
    "cluster-words": Reader(
        "answers and events of a cluster's workers",
        ("execute/cluster/words",),
        _answers_of_workers,
        _answer_of_a_worker,
        errors=(AnswerError,),
        text=True,
    ),
    "shelf": Reader(
        "releases that are served",
        ("serve/shelf",),
        _file("quality.json"),
        _shelf,
        text=True,
        words=(b"../outside.bin",),
    ),
    "folder-state": Reader("folders to publish to", ("publish/folder",), _folder_states, _folder_state, text=True),
    "history": Reader("runs that were kept", ("store/history",), _runs, _history, text=True),
}
