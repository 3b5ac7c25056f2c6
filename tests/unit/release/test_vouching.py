"""Others who say that a release is what its recipe makes: what counts, and what is only said."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from hypothesis import given, settings
from hypothesis import strategies as st

from rwkvflow.app import rebuild
from rwkvflow.app.rebuild import Comparison
from rwkvflow.app.vouching import Rebuilders, attest, rebuilders_of, vouched
from rwkvflow.base.errors import PublishError, UsageError
from rwkvflow.cli import cli
from rwkvflow.release.check import check_release
from rwkvflow.release.names import ATTESTATIONS, PROVENANCE
from rwkvflow.release.provenance.attestation import (
    AttestationProblem,
    Circumstances,
    read_attestation,
    rebuild_statement,
    rebuildable,
    statement_of,
)
from rwkvflow.release.provenance.keyless import Identity
from rwkvflow.release.provenance.statement import read_statement
from tests.helpers.releases import made
from tests.helpers.sigstore_root import SigstoreOfOnesOwn
from tests.unit.release.test_verify import PEM, PKCS8, key_pair

NAMES = ("ann", "bob")
WORKFLOW = "https://github.com/someone/models/.github/workflows/rebuild.yml@refs/heads/main"
ISSUER = "https://token.actions.githubusercontent.com"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """release/, other/ (another one), keys/ and said/ with what ann, bob and eve say of the release."""
    root = tmp_path_factory.mktemp("vouching")
    made(root / "store").publish(root / "release")
    made(root / "store2", ["safetensors"]).publish(root / "other")
    for name in NAMES:
        key_pair(root / "keys", name)
    edwards = ed25519.Ed25519PrivateKey.generate()  # eve's is of the other kind
    (root / "keys/eve.key").write_bytes(edwards.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    public = edwards.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (root / "keys/eve.pub").write_bytes(public)
    (root / "said").mkdir()
    for name in (*NAMES, "eve"):
        attest(root / "release", whole(root / "release"), key(root, name), who=name, output=said(root, name))
    return root


def key(root: Path, name: str) -> Path:
    return root / "keys" / f"{name}.key"


def said(root: Path, name: str) -> Path:
    return root / "said" / f"{name}.json"


def statement(release: Path) -> dict[str, Any]:
    return read_statement((release / PROVENANCE).read_bytes())


def whole(release: Path) -> Comparison:
    """What a rebuild finds in which all came out equal."""
    return Comparison("docker", same=sorted(rebuildable(statement(release))))


def trusted(root: Path, *names: str) -> Rebuilders:
    return rebuilders_of([f"{name}={root}/keys/{name}.pub" for name in names], [])


def verify(root: Path, *arguments: str, release: Path | None = None) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["verify", str(release or root / "release"), *arguments])
    if isinstance(done.exception, PublishError | UsageError):
        return done.exception.exit_code, done.output + str(done.exception)
    assert done.exception is None, done.output
    return 0, done.output


def rebuilders(root: Path, *names: str) -> list[str]:
    return [text for name in names for text in ("--rebuilder", f"{name}={root}/keys/{name}.pub")]


def test_two_trusted_people_are_enough_and_one_is_not(world: Path) -> None:
    asked = ("--require-rebuilds", "2", "--attestations", str(world / "said"))
    code, text = verify(world, *asked, *rebuilders(world, "ann", "bob"))
    assert code == 0, text
    assert "rebuilt by ann with the same bytes (" in text
    assert "docker" in text
    assert "eve.json: it is signed by a key with the SHA-256" in text, "whom nobody trusts does not count"
    shutil.copytree(world / "said", world / "fewer", ignore=lambda *_: ["bob.json"], dirs_exist_ok=True)
    code, text = verify(
        world, "--require-rebuilds", "2", "--attestations", str(world / "fewer"), *rebuilders(world, "ann", "bob")
    )
    assert code == 9
    assert "2 asked for, 1 here: ann vouches for it; nothing that counts came from bob" in text
    assert "too few have made it again" in text, "and not: download it again"
    code, text = verify(world, *asked, *rebuilders(world, "ann"))
    assert code == 2
    assert "as many people" in text


def test_a_key_of_the_other_kind_does_too(world: Path) -> None:
    assert set(vouched(world / "release", [str(said(world, "eve"))], trusted(world, "eve")).by) == {"eve"}


def test_one_person_counts_once(world: Path, tmp_path: Path) -> None:
    for number in range(3):
        shutil.copy(said(world, "ann"), tmp_path / f"{number}.json")
    found = vouched(world / "release", [str(tmp_path)], trusted(world, "ann", "bob"))
    assert set(found.by) == {"ann"}
    assert "nobody else" not in str(found.problem(2, trusted(world, "ann", "bob")))
    shutil.copy(world / "keys/ann.pub", tmp_path / "twin.pub")
    with pytest.raises(UsageError, match="the same key"):
        rebuilders_of([f"ann={world}/keys/ann.pub", f"twin={tmp_path}/twin.pub"], [])
    with pytest.raises(UsageError, match="two keys"):
        rebuilders_of([f"ann={world}/keys/ann.pub", f"ann={world}/keys/bob.pub"], [])


def test_what_is_said_beside_the_release_is_found_and_is_no_part_of_it(world: Path, tmp_path: Path) -> None:
    release = Path(shutil.copytree(world / "release", tmp_path / "r"))
    (release / ATTESTATIONS).mkdir()
    shutil.copy(said(world, "ann"), release / ATTESTATIONS)
    assert not check_release(release).problems
    assert set(vouched(release, [], trusted(world, "ann")).by) == {"ann"}


def test_of_another_release_nothing_counts(world: Path) -> None:
    found = vouched(world / "other", [str(world / "said")], trusted(world, *NAMES))
    assert not found.by
    assert "about another release" in found.notes[0]


def resigned(world: Path, change: Callable[[dict[str, Any]], object]) -> str:
    """What ann's statement is said to be after a change, which ann signs."""
    from rwkvflow.release.provenance.attestation import sign_rebuild

    content = json.loads(read_attestation(said(world, "ann").read_bytes()).payload)
    change(content)
    path = world / "changed.json"
    path.write_bytes(sign_rebuild(json.dumps(content).encode(), key(world, "ann")))
    found = vouched(world / "release", [str(path)], trusted(world, "ann"))
    return "counts" if found.by else found.notes[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: None, "counts"),
        (lambda content: content["predicate"].update(result="different"), "does not say that the bytes were equal"),
        (lambda content: content["subject"].pop(1), "leaves out"),
        (lambda content: content["subject"][1]["digest"].update(sha256="0" * 64), "about another"),
        (lambda content: content["subject"].append(content["subject"][0]), "names a file twice"),
        (lambda content: content.update(predicateType="https://slsa.dev/provenance/v1"), "another kind"),
        (lambda content: content.update(_type="x"), "another kind"),
        (lambda content: content.update(subject=None), "no in-toto statement"),
        (lambda content: content.update(predicate=[]), "says nothing"),
    ],
)
def test_a_trusted_person_must_say_all_of_it(
    world: Path, change: Callable[[dict[str, Any]], object], words: str
) -> None:
    assert words in resigned(world, change)


def test_a_changed_statement_is_not_signed(world: Path, tmp_path: Path) -> None:
    content = json.loads(said(world, "ann").read_bytes())
    payload = json.loads(base64.b64decode(content["dsseEnvelope"]["payload"]))
    payload["predicate"]["rebuilder"]["id"] = "somebody else"
    content["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    (tmp_path / "x.json").write_text(json.dumps(content))
    assert not vouched(world / "release", [str(tmp_path)], trusted(world, *NAMES)).by


@settings(max_examples=80, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text(max_size=200).map(str.encode),
        st.recursive(
            st.none() | st.booleans() | st.text(max_size=5) | st.integers(),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(
                        ["dsseEnvelope", "payload", "payloadType", "signatures", "sig", "verificationMaterial"]
                    ),
                    inner,
                    max_size=4,
                )
            ),
            max_leaves=8,
        ).map(lambda value: json.dumps(value).encode()),
    )
)
def test_no_bytes_end_the_look(data: bytes) -> None:
    with contextlib.suppress(AttestationProblem):
        statement_of(read_attestation(data))


def test_nothing_is_attested_that_was_not_made_again(world: Path, tmp_path: Path) -> None:
    compared = whole(world / "release")
    compared.same.pop()
    with pytest.raises(PublishError, match="not all of"):
        attest(world / "release", compared, key(world, "ann"), output=tmp_path / "x.json")
    compared = whole(world / "release")
    compared.problems.append("x differs")
    with pytest.raises(PublishError):
        attest(world / "release", compared, key(world, "ann"), output=tmp_path / "x.json")
    assert not (tmp_path / "x.json").exists()


def test_the_same_key_and_time_give_the_same_bytes(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1780000000")
    compared = whole(world / "release")
    paths = [
        attest(world / "release", compared, key(world, "ann"), output=tmp_path / f"{number}.json") for number in (1, 2)
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    content = json.loads(read_attestation(paths[0].read_bytes()).payload)
    assert content["predicate"]["finishedOn"] == "2026-05-28T20:26:40Z"
    assert content["predicate"]["environment"]["sandbox"] == "docker"
    assert content["predicate"]["environment"]["processor"]


def test_verify_writes_an_attestation_and_says_how_to_offer_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {}

    def again(release: Path, emit: object, **options: Any) -> Comparison:
        told.update(options)
        return whole(release)

    monkeypatch.setattr(rebuild, "rebuild", again)
    out = tmp_path / "x.json"
    arguments = ("--rebuild", "--attest", str(key(world, "ann")), "-o", str(out), "--store", str(tmp_path / "s"))
    code, text = verify(world, *arguments)
    assert code == 0, text
    assert told["store"] == tmp_path / "s"
    assert ATTESTATIONS in text
    assert "oras attach" in text
    assert set(vouched(world / "release", [str(out)], trusted(world, "ann")).by) == {"ann"}
    code, text = verify(world, "--attach", "oci://registry.test/team/model:v1")
    assert code == 2
    assert "--attest" in text
    code, text = verify(world, "--attest", str(key(world, "ann")))
    assert code == 2
    assert "--rebuild" in text


def test_a_key_that_cannot_sign_is_told_before_anything_is_made_again(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rebuild, "rebuild", lambda *_, **__: pytest.fail("it was made again"))
    (tmp_path / "x.key").write_text("no key\n")
    code, text = verify(world, "--rebuild", "--attest", str(tmp_path / "x.key"))
    assert code != 0
    assert "x.key is no private key that can be used" in text


@pytest.mark.parametrize(
    ("name", "said"),
    [("keys/ann.key", "is no public key but a private one"), ("none.pub", "cannot be read"), ("release", "read")],
)
def test_what_is_no_public_key_is_told_with_what_to_do(world: Path, name: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        rebuilders_of([f"ann={world / name}"], [])
    assert said in error.value.message
    assert "Errno" not in error.value.message
    assert "openssl pkey" in str(error.value.remedy)


# ---- identities that sign without a key -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyless(world: Path) -> tuple[Path, Path]:
    """(the trusted root of a Sigstore of one's own, what a workflow said of the release)."""
    here, release = SigstoreOfOnesOwn(), world / "release"
    where = Circumstances("host", "x86_64", "a processor", "2026-06-01T12:00:00Z")
    provenance = hashlib.sha256((release / PROVENANCE).read_bytes()).hexdigest()
    payload = rebuild_statement(statement(release), provenance, WORKFLOW, [], where)
    (world / "keyless").mkdir()
    (world / "keyless/x.json").write_bytes(here.sign(payload, WORKFLOW, ISSUER))
    return here.trusted_root(world / "root.json"), world / "keyless"


def test_an_identity_counts_with_its_issuer_and_no_other(world: Path, keyless: tuple[Path, Path]) -> None:
    root, place = keyless
    asked = ("--require-rebuilds", "1", "--attestations", str(place), "--trust-root", str(root))
    code, text = verify(world, *asked, "--rebuilder-identity", WORKFLOW, ISSUER)
    assert code == 0, text
    assert f"rebuilt by {WORKFLOW}" in text
    for identity, issuer in ((WORKFLOW, "https://accounts.example"), (WORKFLOW.replace("main", "dev"), ISSUER)):
        code, text = verify(world, *asked, "--rebuilder-identity", identity, issuer)
        assert code == 9, text
        assert f"nothing that counts came from {identity}" in text


def test_a_key_and_an_identity_are_two(world: Path, keyless: tuple[Path, Path]) -> None:
    root, place = keyless
    trust = rebuilders_of([f"ann={world}/keys/ann.pub"], [(WORKFLOW, ISSUER)], root)
    found = vouched(world / "release", [str(place), str(world / "said")], trust)
    assert set(found.by) == {"ann", WORKFLOW}


def test_another_trust_root_counts_for_nothing(world: Path, keyless: tuple[Path, Path], tmp_path: Path) -> None:
    other = SigstoreOfOnesOwn().trusted_root(tmp_path / "root.json")
    found = vouched(world / "release", [str(keyless[1])], Rebuilders({}, (Identity(WORKFLOW, ISSUER),), other))
    assert not found.by
    assert found.notes


def test_of_a_bundle_nothing_can_be_changed(world: Path, keyless: tuple[Path, Path], tmp_path: Path) -> None:
    root, place = keyless
    whole_bundle = json.loads((place / "x.json").read_text())
    entry = whole_bundle["verificationMaterial"]["tlogEntries"][0]
    changes: dict[str, Callable[[dict[str, Any]], object]] = {
        "no log entry": lambda content: content["verificationMaterial"].update(tlogEntries=[]),
        "another time": lambda content: _entry(content).update(integratedTime=str(int(entry["integratedTime"]) + 1)),
        "no promise": lambda content: _entry(content).pop("inclusionPromise"),
        "another signature": lambda content: content["dsseEnvelope"]["signatures"][0].update(sig="MEUCIQ=="),
        "no certificate": lambda content: content["verificationMaterial"].pop("certificate"),
    }
    trust = Rebuilders({}, (Identity(WORKFLOW, ISSUER),), root)
    for what, change in changes.items():
        content = json.loads(json.dumps(whole_bundle))
        change(content)
        (tmp_path / "x.json").write_text(json.dumps(content))
        assert not vouched(world / "release", [str(tmp_path)], trust).by, what


def _entry(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["verificationMaterial"]["tlogEntries"][0]
    return found


# ---- attached in a registry -----------------------------------------------------------------------------------------


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


class Registry:
    """Answers as a registry does, without a network; `api`: whether it has the list of referrers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, api: bool) -> None:
        import httpx

        self.answers: dict[str, bytes] = {}
        self.api = api
        self.image = self.manifest({"layers": [], "config": {}}, "v1")
        monkeypatch.setattr(httpx, "Client", partial(httpx.Client, transport=httpx.MockTransport(self.answer)))

    def manifest(self, content: dict[str, Any], *names: str) -> str:
        data = json.dumps({"schemaVersion": 2, **content}).encode()
        for name in (*names, _digest(data)):
            self.answers[f"/v2/team/model/manifests/{name}"] = data
        return _digest(data)

    def attach(self, data: bytes, subject: str) -> str:
        self.answers[f"/v2/team/model/blobs/{_digest(data)}"] = data
        layer = {
            "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
            "digest": _digest(data),
            "size": len(data),
        }
        return self.manifest({"layers": [layer], "subject": {"digest": subject}})

    def list(self, *digests: str) -> None:
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{"digest": digest} for digest in digests],
        }
        place = f"referrers/{self.image}" if self.api else f"manifests/{self.image.replace(':', '-')}"
        self.answers[f"/v2/team/model/{place}"] = json.dumps(index).encode()

    def answer(self, request: Any) -> Any:
        import httpx

        found = self.answers.get(request.url.path)
        return httpx.Response(404 if found is None else 200, content=found or b"{}")


@pytest.mark.parametrize("api", [True, False])
def test_what_is_attached_in_a_registry_counts(world: Path, monkeypatch: pytest.MonkeyPatch, api: bool) -> None:
    registry = Registry(monkeypatch, api=api)
    right = registry.attach(said(world, "ann").read_bytes(), registry.image)
    elsewhere = registry.attach(said(world, "bob").read_bytes(), "sha256:" + "0" * 64)  # listed, and of another image
    registry.list(right, elsewhere, "sha256:" + "1" * 64, "x")
    found = vouched(world / "release", ["oci://registry.test/team/model:v1"], trusted(world, *NAMES))
    assert set(found.by) == {"ann"}


@pytest.mark.parametrize("times", [0, 1, 100])
def test_a_row_that_somebody_else_writes_over_is_written_again(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """`times` is how often another writer's index comes after ours."""
    from rwkvflow.net import oci_referrers

    rows: list[dict[str, Any]] = [{"digest": "theirs"}]
    writes: list[int] = []

    class Shared:
        place = "oci://registry.test/team/model"

        def manifest(self, reference: str) -> tuple[str, dict[str, Any]]:
            assert reference == "sha256-0"
            return "x", {"manifests": list(rows)}

        def put_manifest(self, reference: str, data: bytes, kind: str) -> None:
            writes.append(1)
            if len(writes) > times:
                rows[:] = json.loads(data)["manifests"]

    shared: Any = Shared()
    if times > oci_referrers.TRIES:
        with pytest.raises(PublishError, match="does not list what was attached"):
            oci_referrers._list(shared, "sha256:0", {"digest": "ours"})
        return
    oci_referrers._list(shared, "sha256:0", {"digest": "ours"})
    assert [row["digest"] for row in rows] == ["theirs", "ours"]
    assert len(writes) == times + 1


def test_an_image_without_any_is_no_error(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Registry(monkeypatch, api=False)
    assert not vouched(world / "release", ["oci://registry.test/team/model:v1"], trusted(world, "ann")).by


def test_the_bundle_is_one_of_sigstores(world: Path, keyless: tuple[Path, Path]) -> None:
    from sigstore.models import Bundle

    Bundle.from_json((keyless[1] / "x.json").read_bytes())
    content = json.loads(said(world, "ann").read_bytes())
    assert content["mediaType"].endswith("bundle.v0.3+json")
    assert content["dsseEnvelope"]["payloadType"] == "application/vnd.in-toto+json"
