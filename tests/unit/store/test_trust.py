"""A store that strangers write to: only what a trusted key signed is there, up to the day on which it was revoked."""

from __future__ import annotations

import json
import os
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.app.pipeline import Request, open_store
from rwkvflow.base.errors import StoreError, UsageError
from rwkvflow.base.events import Event
from rwkvflow.cli import cli
from rwkvflow.documents.workflow import StoreKey, Workflow
from rwkvflow.store import conditional, remote, trust
from rwkvflow.store.keys import StoreSigner, is_signed, new_key, parse_public
from rwkvflow.store.record import Output, Record, RecordSignature, parse_record, record_json
from rwkvflow.store.remote import Remote
from rwkvflow.store.store import Store
from rwkvflow.store.trust import NEVER, Trust, TrustedKey

pytest.importorskip("cryptography")
KEY = "ab" * 32
RECORD = Record("convert/a/b@c", {"artifact": Output("sha256:" + "cd" * 32, "file", 7)}, 1.25, {"perplexity": "3.1"})
OTHER = replace(RECORD, outputs={"artifact": Output("sha256:" + "ef" * 32, "file", 7)})


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StoreSigner]:
    folder = tmp_path_factory.mktemp("keys")
    return {name: new_key(folder / name) for name in ("ann", "bob", "eve")}


class Shared:
    """A remote store, and people who use it with a key and with keys that they trust."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder, self.url = folder, url
        self.told: list[str] = []
        self.fs, self.root = fsspec.core.url_to_fs(url)

    def person(self, signer: StoreSigner | None, *trusted: StoreSigner | TrustedKey, store: str = "") -> Store:
        found = Store(self.folder / (store or uuid.uuid4().hex))
        keys = [key if isinstance(key, TrustedKey) else TrustedKey(key.key) for key in trusted]
        found.remote = Remote(self.url, self.told.append, trust=Trust(keys), signer=signer)
        return found

    def index(self) -> str:
        return f"{self.root}/index/{KEY[:2]}/{KEY}.json"

    def entry(self) -> dict[str, Any]:
        return dict(json.loads(self.fs.cat_file(self.index())))

    def says(self, entry: dict[str, Any]) -> None:
        self.fs.pipe_file(self.index(), json.dumps(entry).encode())


@pytest.fixture(params=["file", "memory"])
def shared(request: pytest.FixtureRequest, tmp_path: Path) -> Shared:
    url = f"file://{tmp_path}/remote" if request.param == "file" else f"memory://{uuid.uuid4().hex}"
    return Shared(tmp_path, url)


def send(store: Store, record: Record = RECORD) -> None:
    store.share(KEY, record, contents=False, again=True)


def test_only_what_a_trusted_key_signed_is_there(shared: Shared, signers: dict[str, StoreSigner]) -> None:
    ann, bob, eve = signers.values()
    send(shared.person(eve, eve))
    assert shared.person(None, ann, bob).lookup(KEY) is None
    assert "does not count" in shared.told[0]
    send(shared.person(ann, bob))  # what counts for nothing is replaced
    assert shared.person(None, ann).lookup(KEY) == RECORD
    assert shared.person(None, bob).lookup(KEY) is None
    assert shared.person(None).lookup(KEY) == RECORD, "without keys everybody's counts"


def test_an_unsigned_record_counts_only_without_keys(shared: Shared, signers: dict[str, StoreSigner]) -> None:
    send(shared.person(None))
    assert "signature" not in shared.entry()
    assert shared.person(None).lookup(KEY) == RECORD
    assert shared.person(None, signers["ann"]).lookup(KEY) is None
    assert "not signed" in shared.told[0]


def test_nothing_unsigned_is_sent_where_only_signed_records_count(
    shared: Shared, signers: dict[str, StoreSigner]
) -> None:
    reader = shared.person(None, signers["ann"], store="reader")
    send(reader)
    send(reader)
    assert not shared.fs.exists(shared.index())
    assert len(shared.told) == 1
    assert "--store-key" in shared.told[0]
    send(shared.person(signers["bob"], signers["ann"], store="reader"))  # and the refusal is not remembered
    assert shared.person(None, signers["bob"]).lookup(KEY) == RECORD


def test_what_was_sent_unsigned_is_sent_again_with_a_key(shared: Shared, signers: dict[str, StoreSigner]) -> None:
    plain = shared.person(None, store="mine")
    plain.share(KEY, RECORD, contents=False, again=False)
    signing = shared.person(signers["ann"], store="mine")
    signing.share(KEY, RECORD, contents=False, again=False)
    assert shared.person(None, signers["ann"]).lookup(KEY) == RECORD


CHANGES: dict[str, Any] = {
    "another step": {"step": "convert/x/y@z"},
    "another key": {"key": "cd" * 32},
    "another output": {"outputs": {"artifact": {"digest": "sha256:" + "ef" * 32, "kind": "file", "size": 7}}},
    "another size": {"outputs": {"artifact": {"digest": "sha256:" + "cd" * 32, "kind": "file", "size": 8}}},
    "another time": {"seconds": 2.0},
    "another figure": {"notes": {"perplexity": "3.0"}},
    "no signature": {"signature": None},
    "a signature that is none": {"signature": "x"},
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_signature_holds_for_the_whole_record(shared: Shared, signers: dict[str, StoreSigner], change: str) -> None:
    ann = signers["ann"]
    send(shared.person(ann, ann))
    shared.says({**shared.entry(), **CHANGES[change]})
    assert shared.person(None, ann).lookup(KEY) is None


@pytest.mark.parametrize("change", [{"at": "2020-01-01T00:00:00Z"}, {"value": "AAAA"}, {"value": "é"}, {"at": "soon"}])
def test_a_signature_holds_for_its_own_time(
    shared: Shared, signers: dict[str, StoreSigner], change: dict[str, str]
) -> None:
    ann = signers["ann"]
    send(shared.person(ann, ann))
    entry = shared.entry()
    shared.says({**entry, "signature": {**entry["signature"], **change}})
    assert shared.person(None, ann).lookup(KEY) is None


def test_a_signature_does_for_no_other_step(shared: Shared, signers: dict[str, StoreSigner]) -> None:
    ann = signers["ann"]
    send(shared.person(ann, ann))
    other = "12" * 32
    entry = {**shared.entry(), "key": other}
    shared.fs.makedirs(f"{shared.root}/index/{other[:2]}", exist_ok=True)
    shared.fs.pipe_file(f"{shared.root}/index/{other[:2]}/{other}.json", json.dumps(entry).encode())
    assert shared.person(None, ann).lookup(other) is None


def test_what_was_taken_counts_no_more_once_its_key_is_revoked(shared: Shared, signers: dict[str, StoreSigner]) -> None:
    ann, bob = signers["ann"], signers["bob"]
    send(shared.person(ann, ann))
    assert shared.person(None, ann, bob, store="mine").lookup(KEY) == RECORD
    assert shared.person(None, TrustedKey(ann.key, before=NEVER), bob, store="mine").lookup(KEY) is None
    shared.fs.rm(shared.root, recursive=True)
    assert shared.person(None, ann, store="mine").lookup(KEY) == RECORD, "it is kept here, for whoever trusts again"


@pytest.mark.parametrize(("before", "counts"), [("2020-06-01T00:00:00Z", True), ("2019-12-31T00:00:00Z", False)])
def test_a_date_keeps_what_was_signed_before(
    tmp_path: Path, signers: dict[str, StoreSigner], monkeypatch: pytest.MonkeyPatch, before: str, counts: bool
) -> None:
    shared, ann = Shared(tmp_path, f"file://{tmp_path}/remote"), signers["ann"]
    signature = ann.sign(KEY, RECORD)
    monkeypatch.setattr("rwkvflow.store.keys.datetime", _At)
    send(shared.person(ann, ann))
    os.utime(shared.index(), (_At.SECONDS, _At.SECONDS))
    assert shared.entry()["signature"]["at"] == "2020-01-01T00:00:00Z" != signature.at
    assert (shared.person(None, TrustedKey(ann.key, before=before)).lookup(KEY) == RECORD) is counts


class _At:
    """The first of January 2020, whenever it is asked."""

    SECONDS = 1577836800

    @staticmethod
    def now(zone: Any) -> Any:
        from datetime import datetime

        return datetime.fromtimestamp(_At.SECONDS, zone)


def test_who_stole_a_key_cannot_sign_for_the_past(
    tmp_path: Path, signers: dict[str, StoreSigner], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, ann = Shared(tmp_path, f"file://{tmp_path}/remote"), signers["ann"]
    monkeypatch.setattr("rwkvflow.store.keys.datetime", _At)
    send(shared.person(ann, ann))  # written now, whatever it says
    entry = shared.entry()
    shared.says({**entry, "signature": {**entry["signature"], "kept": "2020-01-01T00:00:00Z"}})
    assert shared.person(None, TrustedKey(ann.key, before="2020-06-01T00:00:00Z")).lookup(KEY) is None


def test_of_two_that_made_the_same_step_one_is_recorded(shared: Shared, signers: dict[str, StoreSigner]) -> None:
    ann, bob = signers["ann"], signers["bob"]
    send(shared.person(ann, ann, bob))
    first = shared.entry()
    send(shared.person(bob, ann, bob))
    assert shared.entry() == first
    assert not shared.told


def test_another_result_is_told_and_does_not_replace_the_first(
    shared: Shared, signers: dict[str, StoreSigner], tmp_path: Path
) -> None:
    ann, bob = signers["ann"], signers["bob"]
    stores = [shared.person(ann, ann, bob), shared.person(bob, ann, bob)]
    made = []
    for number, store in enumerate(stores):
        (tmp_path / "artifact").write_bytes(b"artifact%d" % number)
        made.append(replace(RECORD, outputs={"artifact": store.put_file(tmp_path / "artifact")}))
        store.share(KEY, made[-1], contents=True, again=True)
    assert shared.person(None, ann, bob).lookup(KEY) == made[0]
    assert "came out otherwise" in shared.told[0]
    name = made[0].outputs["artifact"].digest[7:]
    shared.fs.rm(f"{shared.root}/blobs/{name[:2]}/{name}")  # nobody can use the first any more
    stores[1].share(KEY, made[1], contents=True, again=True)
    assert shared.person(None, ann, bob).lookup(KEY) == made[1]


def test_a_file_is_made_once_by_whoever_comes_first(tmp_path: Path) -> None:
    for url in (f"file://{tmp_path}/x", f"memory://{uuid.uuid4().hex}"):
        system, root = fsspec.core.url_to_fs(url)
        assert conditional.create(system, f"{root}/a/b", b"1")
        assert not conditional.create(system, f"{root}/a/b", b"2")
        assert system.cat_file(f"{root}/a/b") == b"1"
        assert conditional.holds(system, root)
        assert [path.rpartition("/")[2] for path in system.find(root)] == ["b"]


def test_what_keeps_no_conditions_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, root = fsspec.core.url_to_fs(f"memory://{uuid.uuid4().hex}")
    monkeypatch.setattr(system, "pipe_file", lambda place, data, mode: None)  # takes everything
    assert not conditional.holds(system, root)
    assert not conditional.holds(fsspec.filesystem("reference", fo={}), "x"), "nor does one that has none"


@settings(max_examples=60, deadline=None)
@given(
    step=st.text(min_size=1),
    notes=st.dictionaries(st.text(), st.text(), max_size=3),
    seconds=st.floats(allow_nan=False, allow_infinity=False),
    flip=st.integers(min_value=0),
)
def test_a_record_is_the_same_after_a_journey(step: str, notes: dict[str, str], seconds: float, flip: int) -> None:
    signer = _signer()
    record = Record(step, RECORD.outputs, seconds, notes)
    signed = replace(record, signature=signer.sign(KEY, record))
    again = parse_record(json.loads(json.dumps(record_json(signed), ensure_ascii=True)))
    assert again == record
    assert is_signed(KEY, again)
    assert again.signature is not None
    value = bytearray(again.signature.value.encode())
    value[flip % (len(value) - 3)] ^= 1  # the last ones are partly padding
    assert not is_signed(KEY, replace(again, signature=replace(again.signature, value=value.decode("latin-1"))))


_MADE: list[StoreSigner] = []


def _signer() -> StoreSigner:
    if not _MADE:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        _MADE.append(StoreSigner(Ed25519PrivateKey.generate()))
    return _MADE[0]


@pytest.mark.parametrize(
    "text", ["", "ed25519:", "ed25519:AAAA", "rsa:" + "A" * 44, "ed25519:" + "A" * 44, "ed25519:" + "é" * 43 + "="]
)
def test_what_is_no_key_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_public(text)
    assert not is_signed(KEY, replace(RECORD, signature=RecordSignature(text, "2020-01-01T00:00:00Z", "AAAA")))


# ---- the command line --------------------------------------------------------------------------------------------


def run(store: Path, *arguments: str) -> str:
    done = CliRunner().invoke(cli, ["cache", "--store", str(store), *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    assert done.exit_code == 0, done.output
    return done.output.strip()


def test_keys_are_made_trusted_and_revoked(tmp_path: Path) -> None:
    store, file = tmp_path / "store", tmp_path / "ann.key"
    key = run(store, "keys", "--new", str(file))
    assert file.stat().st_mode & 0o777 == 0o600
    assert run(store, "keys", "--of", str(file)) == key
    assert "whoever may write" in run(store, "keys")
    run(store, "trust", key, "--name", "ann")
    assert run(store, "keys") == f"{key}  ann"
    assert "before 2026-11-30T00:00:00Z" in run(store, "revoke", "ann", "--before", "2026-11-30")
    assert "revoked" in run(store, "keys")
    assert trust.kept_keys(store)[0].before == "2026-11-30T00:00:00Z"
    with pytest.raises(UsageError, match="was revoked"):
        trust.add(store, key)
    again = run(store, "keys", "--new", str(tmp_path / "new.key"))
    run(store, "trust", again, "--name", "ann")  # the key is changed, and what the old one signed stays
    assert len(trust.kept_keys(store)) == 2
    assert "nothing that it signed" in run(store, "revoke", "ann")
    assert {item.key: item.before for item in trust.kept_keys(store)} == {key: "2026-11-30T00:00:00Z", again: NEVER}
    assert key in run(store, "revoke", "ann"), "of a name that no trusted key has, the last is meant"
    assert {item.before for item in trust.kept_keys(store)} == {NEVER}
    with pytest.raises(UsageError, match=r"'bob' is no public key of a store, nor the name of one that is kept: ann"):
        trust.revoke(store, "bob", NEVER)
    with pytest.raises(StoreError):
        new_key(file)


def test_what_is_no_key_is_said_without_a_librarys_words(tmp_path: Path) -> None:
    (tmp_path / "x.pem").write_text("no key\n")
    with pytest.raises(UsageError) as error:
        trust.add(tmp_path / "store", str(tmp_path / "x.pem"), "ann")
    assert error.value.message == f"{tmp_path / 'x.pem'} is no public key"
    assert "cache keys --of" in str(error.value.remedy)


def test_a_damaged_list_of_keys_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    for text in ("", "{}", '{"keys": [1]}', '{"keys": [{"nokey": "x"}]}'):
        (tmp_path / trust.FILE).write_text(text)
        with pytest.raises(StoreError, match="damaged"):
            trust.kept_keys(tmp_path)


def test_keys_come_from_the_command_line_the_workflow_and_the_store(
    tmp_path: Path, signers: dict[str, StoreSigner]
) -> None:
    ann, bob, eve = (signer.key for signer in signers.values())
    trust.add(tmp_path / "store" if Store(tmp_path / "store") else tmp_path, ann, "ann")
    workflow = Workflow(trust=(StoreKey(key=bob, name="bob"), StoreKey(key=ann, name="ann", before="2026-01-02")))
    request = Request(tmp_path / "r.yaml", store=tmp_path / "store", remote=f"file://{tmp_path}/x", trust=(eve,))
    store = open_store(request, workflow=workflow)
    assert isinstance(store.remote, remote.Remote)
    found = store.remote.trust.keys
    assert {key: item.before for key, item in found.items()} == {ann: "2026-01-02T00:00:00Z", bob: "", eve: ""}


def test_without_keys_it_is_said_once(tmp_path: Path) -> None:
    told: list[Event] = []
    request = Request(tmp_path / "r.yaml", store=tmp_path / "store", remote=f"file://{tmp_path}/x")
    for _ in range(2):
        open_store(request, told.append, Workflow())
    assert len(told) == 1
    assert "whoever may write" in str(told[0])


def test_a_recipe_cannot_say_whom_to_trust() -> None:
    from rwkvflow.documents.recipe import Recipe

    assert not [name for name in Recipe.model_fields if "trust" in name or "key" in name]
