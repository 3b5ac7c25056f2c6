"""`rwkvflow verify`: what is wrong with a release is found, said, and ends with exit code 9."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from rwkvflow.base.errors import PublishError
from rwkvflow.cli import cli
from rwkvflow.release.check import check_release
from rwkvflow.release.names import RECIPE
from rwkvflow.release.provenance import signature as signing
from tests.helpers.releases import Made, made

Damage = Callable[[Path], object]
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def key_pair(
    folder: Path, name: str = "sign", password: bytes | None = None, curve: ec.EllipticCurve | None = None
) -> Path:
    """A private key, and name.pub beside it."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(curve or ec.SECP256R1())
    how = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    (folder / f"{name}.key").write_bytes(key.private_bytes(PEM, PKCS8, how))
    public = key.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (folder / f"{name}.pub").write_bytes(public)
    return folder / f"{name}.key"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plain/ and signed/, and the keys; copied by each test."""
    root = tmp_path_factory.mktemp("releases")
    run = made(root / "store")
    run.publish(root / "plain")
    run.local["key"] = str(key_pair(root / "keys"))
    key_pair(root / "keys", "other")
    run.publish(root / "signed")
    return root


@pytest.fixture
def plain(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "plain", tmp_path / "plain"))


@pytest.fixture
def signed(originals: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals / "signed", tmp_path / "signed"))


@pytest.fixture
def public(originals: Path) -> Path:
    return originals / "keys" / "sign.pub"


def verify(*arguments: object) -> tuple[int, str]:
    """Exit code and output of the command."""
    result = CliRunner().invoke(cli, ["verify", *map(str, arguments)])
    if isinstance(result.exception, PublishError):
        return result.exception.exit_code, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


# ---- what is right ---------------------------------------------------------------------------------------------


def test_a_release_is_what_it_says_and_what_was_checked_is_printed(plain: Path) -> None:
    code, output = verify(plain)
    assert code == 0
    assert "ok      SHA256SUMS: 17 files, each with the bytes that it lists; none missing or extra" in output
    assert "ok      provenance.json: an in-toto statement about 16 files" in output
    assert "ok      recipe.lock.yaml: pins what provenance.json says went in: 2 checkpoints" in output
    assert "note    not signed" in output
    assert "tiny: 18 files" in output


def test_a_signed_release_is_checked_with_the_key(signed: Path, public: Path) -> None:
    code, output = verify(signed, "--key", public)
    assert code == 0
    assert "ok      model.sig: 18 files, signed with sign.pub" in output
    assert "note" not in output


def test_without_the_key_it_says_that_the_signature_was_not_checked(signed: Path, public: Path) -> None:
    code, output = verify(signed)
    assert code == 0
    assert "note    model.sig was not checked" in output
    assert hashlib.sha256(public.read_bytes()).hexdigest() in output


def test_findings_come_as_json_too(plain: Path) -> None:
    code, output = verify(plain, "--json")
    told = json.loads(output)
    assert (code, told["problems"], told["files"]) == (0, [], 18)
    (plain / RECIPE).unlink()
    code, output = verify(plain, "--json")
    assert code == 9
    assert json.loads(output)["problems"] == ["recipe.yaml is missing; it is listed in provenance.json and SHA256SUMS"]


def test_what_git_and_the_hub_leave_in_a_folder_is_no_part_of_it(signed: Path, public: Path) -> None:
    (signed / ".gitattributes").write_text("*.bin filter=lfs\n")
    (signed / ".git").mkdir()
    (signed / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (signed / ".cache" / "huggingface").mkdir(parents=True)
    (signed / ".cache" / "huggingface" / "x.metadata").write_text("1")
    (signed / ".rwkvflow.json").unlink()
    assert verify(signed, "--key", public)[0] == 0


# ---- what is wrong ---------------------------------------------------------------------------------------------


def flip(name: str, at: int = -9) -> Damage:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[at] ^= 1
        (folder / name).write_bytes(data)

    return damage


def edit(name: str, old: str, new: str) -> Damage:
    def damage(folder: Path) -> None:
        text = (folder / name).read_text()
        assert old in text
        (folder / name).write_text(text.replace(old, new))

    return damage


def drop(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def add(name: str) -> Damage:
    def damage(folder: Path) -> None:
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_text("extra")

    return damage


def drop_line(name: str) -> Damage:
    def damage(folder: Path) -> None:
        lines = (folder / "SHA256SUMS").read_text().splitlines(keepends=True)
        (folder / "SHA256SUMS").write_text("".join(line for line in lines if not line.endswith(f"  {name}\n")))

    return damage


def sums_again(folder: Path) -> None:
    """Make SHA256SUMS agree with the files again, as whoever changes one can."""
    lines = []
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        name = line[66:]
        if (folder / name).exists():
            lines.append(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n")
    (folder / "SHA256SUMS").write_text("".join(lines))


def then_sums(first: Damage) -> Damage:
    def damage(folder: Path) -> None:
        first(folder)
        sums_again(folder)

    return damage


def link(folder: Path) -> None:
    artifact = folder / "tiny7" / "tiny7-Q5_1.bin"
    artifact.rename(folder.parent / "elsewhere.bin")
    artifact.symlink_to(folder.parent / "elsewhere.bin")


def link_folder(folder: Path) -> None:
    (folder / "more").symlink_to(folder / "tiny7")


def digit(folder: Path) -> None:
    text = (folder / "SHA256SUMS").read_text()
    (folder / "SHA256SUMS").write_text(("1" if text[0] == "0" else "0") + text[1:])


ARTIFACT = "tiny7/tiny7-Q5_1.bin"
WRONG: list[tuple[str, Damage, str]] = [
    ("a flipped byte", flip(ARTIFACT), f"{ARTIFACT} was changed: its sha256 is"),
    ("a flipped byte in a header", flip(ARTIFACT, 4), f"{ARTIFACT} was changed"),
    ("a byte more", edit("README.md", "# tiny", "# tiny!"), "README.md was changed"),
    ("an empty file", lambda folder: (folder / ARTIFACT).write_bytes(b""), f"{ARTIFACT} was changed"),
    ("a missing artifact", drop(ARTIFACT), f"{ARTIFACT} is missing; it is listed in provenance.json and SHA256SUMS"),
    ("a missing lock", drop("recipe.lock.yaml"), "recipe.lock.yaml is missing"),
    ("an extra file", add("tiny7/tiny7-Q4_0.bin"), "tiny7/tiny7-Q4_0.bin is extra: nothing lists it"),
    ("an extra hidden file", add(".hidden/x"), ".hidden/x is extra"),
    ("an extra file with an odd name", add("a\nb\x1b[2J"), r"a\nb\x1b[2J: a file of a release is not called so"),
    ("an extra signature-like file", add("tiny7/model.sig"), "tiny7/model.sig is extra"),
    ("a link in the place of a file", link, f"{ARTIFACT}: a link or a device"),
    ("a link to a folder", link_folder, "more: a link or a device"),
    ("another digest in SHA256SUMS", digit, "SHA256SUMS was edited"),
    ("a line less in SHA256SUMS", drop_line(ARTIFACT), f"SHA256SUMS was edited: it does not list {ARTIFACT}"),
    ("SHA256SUMS cut off", lambda f: (f / "SHA256SUMS").write_bytes((f / "SHA256SUMS").read_bytes()[:-5]), "cut off"),
    ("SHA256SUMS gone", drop("SHA256SUMS"), "SHA256SUMS is missing"),
    ("SHA256SUMS with a way out", edit("SHA256SUMS", f"  {ARTIFACT}", "  ../x"), "line 16 is not a digest"),
    ("an edited statement", edit("provenance.json", '": 126800', '": 126801'), "provenance.json was edited: its"),
    ("the statement gone", drop("provenance.json"), "provenance.json is missing"),
    ("the statement damaged", edit("provenance.json", "{", "["), "provenance.json was edited or damaged"),
    ("an artifact and its sum", then_sums(flip(ARTIFACT)), f"provenance.json was edited: for {ARTIFACT} it"),
    ("a file and its sum gone", then_sums(drop(ARTIFACT)), f"{ARTIFACT} is missing; it is listed in provenance.json"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_damage_is_found_and_said(plain: Path, damage: Damage, message: str) -> None:
    damage(plain)
    code, output = verify(plain)
    assert code == 9, output
    assert any(line.startswith("WRONG   ") and message in line for line in output.splitlines()), output


def test_a_statement_that_does_not_fit_the_lock_is_found_although_all_sums_agree(plain: Path) -> None:
    statement = json.loads((plain / "provenance.json").read_text())
    for item in statement["predicate"]["buildDefinition"]["resolvedDependencies"]:
        if item["name"] == "model/tiny4":
            item["digest"]["sha256"] = "9" * 64
    (plain / "provenance.json").write_text(json.dumps(statement))
    sums_again(plain)
    code, output = verify(plain)
    assert code == 9
    assert "provenance.json was edited: model/tiny4 is not what recipe.lock.yaml pins" in output


def test_a_lock_of_another_release_is_found_although_all_sums_agree(plain: Path) -> None:
    edit("recipe.lock.yaml", "size:", "size: ")(plain)
    statement = json.loads((plain / "provenance.json").read_text())
    for subject in statement["subject"]:
        if subject["name"] == "recipe.lock.yaml":
            subject["digest"]["sha256"] = hashlib.sha256((plain / "recipe.lock.yaml").read_bytes()).hexdigest()
    (plain / "provenance.json").write_text(json.dumps(statement))
    sums_again(plain)
    code, output = verify(plain)
    assert code == 9
    assert "provenance.json was edited: it was not made from this recipe.lock.yaml" in output


def test_all_problems_are_found_not_only_the_first(plain: Path) -> None:
    for damage in (flip(ARTIFACT), drop("README.md"), add("x")):
        damage(plain)
    found = check_release(plain)
    assert len(found.problems) == 3
    assert found.checked[:1] != ["SHA256SUMS"], "nothing is called right that is not"
    assert not any("none missing" in line for line in found.checked)


@pytest.mark.parametrize("name", ["absent", "empty", "file"])
def test_what_is_no_release_is_said(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    result = CliRunner().invoke(cli, ["verify", str(tmp_path / name)])
    assert isinstance(result.exception, PublishError)
    assert "no release" in str(result.exception) or "no folder" in str(result.exception)


def test_the_exit_code_is_that_of_the_process(plain: Path) -> None:
    command = [sys.executable, "-m", "rwkvflow", "verify", str(plain)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
    flip(ARTIFACT)(plain)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 9
    assert "is not what it says it is: 1 problem" in done.stderr
    assert "Traceback" not in done.stderr


# ---- signatures ------------------------------------------------------------------------------------------------


SIGNED_WRONG: list[tuple[str, Damage, str]] = [
    ("an edited signature", edit("model.sig", '"sig": "M', '"sig": "N'), "model.sig: it"),
    ("garbage", lambda folder: (folder / "model.sig").write_text("{}"), "model.sig: it cannot be read"),
    ("no signature", drop("model.sig"), "model.sig is missing, and the release is to be checked with a key"),
    ("a file changed with all sums", then_sums(flip(ARTIFACT)), "model.sig: the files are not those that were signed"),
    ("an extra file", add("x"), "model.sig: the files are not those that were signed"),
    ("a missing file", drop(ARTIFACT), "model.sig: the files are not those that were signed"),
    ("an edited statement with sums", then_sums(edit("provenance.json", '"3.11"', '"3.12"')), "not those that were"),
]  # fmt: skip


@pytest.mark.parametrize(("damage", "message"), [row[1:] for row in SIGNED_WRONG], ids=[row[0] for row in SIGNED_WRONG])
def test_a_wrong_signature_is_found(signed: Path, public: Path, damage: Damage, message: str) -> None:
    damage(signed)
    code, output = verify(signed, "--key", public)
    assert code == 9
    assert message in output


def test_a_signature_by_another_key_is_found(signed: Path, originals: Path) -> None:
    code, output = verify(signed, "--key", originals / "keys" / "other.pub")
    assert code == 9
    assert "model.sig: it was made with another key" in output


def test_a_signature_of_another_release_is_found(signed: Path, originals: Path, public: Path) -> None:
    run = made(originals.parent / "another", formats=["safetensors"])
    run.local["key"] = str(originals / "keys" / "sign.key")
    other = {file.path: file.source for file in run.assemble().files}["model.sig"]
    assert isinstance(other, bytes)
    (signed / "model.sig").write_bytes(other)
    assert verify(signed, "--key", public)[0] == 9


def test_a_signed_release_without_its_signature_is_found_without_a_key(signed: Path) -> None:
    drop("model.sig")(signed)
    code, output = verify(signed)
    assert code == 9
    assert "model.sig is missing, and provenance.json says that the release is signed" in output


def test_an_unsigned_release_does_not_pass_with_a_key(plain: Path, public: Path) -> None:
    assert verify(plain, "--key", public)[0] == 9


def test_what_is_no_public_key_is_said(signed: Path, tmp_path: Path) -> None:
    (tmp_path / "x.pub").write_text("-----BEGIN NOTHING-----\n")
    code, output = verify(signed, "--key", tmp_path / "x.pub")
    assert code == 9
    assert "x.pub is no public key" in output


def test_the_package_itself_accepts_the_signature(signed: Path, public: Path) -> None:
    command = [sys.executable, "-m", "model_signing", "verify", "key", str(signed)]
    command += ["--signature", str(signed / "model.sig"), "--public_key", str(public)]
    (signed / ".attestations").mkdir()
    (signed / ".attestations" / "ann.json").write_text("{}")  # comes later than the signature, which allows for it
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    flip(ARTIFACT)(signed)
    assert subprocess.run(command, capture_output=True, check=False).returncode != 0


def test_it_is_the_signature_that_the_package_would_make(signed: Path, originals: Path, tmp_path: Path) -> None:
    from model_signing import hashing
    from model_signing.signing import Config

    (signed / ".rwkvflow.json").unlink()
    (signed / "model.sig").rename(tmp_path / "ours")
    key = originals / "keys" / "sign.key"
    config, hashes = Config(), hashing.Config()  # type: ignore[no-untyped-call]
    config.use_elliptic_key_signer(private_key=key).set_hashing_config(hashes).sign(signed, tmp_path / "its")
    ours, its = (payload(tmp_path / name) for name in ("ours", "its"))
    assert ours["predicate"]["resources"] == its["predicate"]["resources"]
    assert ours["subject"][0]["digest"] == its["subject"][0]["digest"]
    assert ours["predicateType"] == its["predicateType"]
    assert (
        json.loads((tmp_path / "ours").read_text())["mediaType"]
        == json.loads((tmp_path / "its").read_text())["mediaType"]
    )


def payload(path: Path) -> dict[str, Any]:
    import base64

    return dict(json.loads(base64.b64decode(json.loads(path.read_text())["dsseEnvelope"]["payload"])))


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: curve.name)
def test_signing_twice_gives_the_same_bytes(tmp_path: Path, curve: ec.EllipticCurve) -> None:
    key = key_pair(tmp_path / "keys", curve=curve)
    digests = {"b/a": "1" * 64, "b-a": "2" * 64, "b": "3" * 64}
    assert signing.sign("r", digests, key) == signing.sign("r", dict(reversed(digests.items())), key)


def test_a_key_with_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_pair(tmp_path / "keys", password=b"open sesame")
    with pytest.raises(PublishError, match="RWKVFLOW_SIGN_PASSWORD"):
        signing.sign("r", {"a": "1" * 64}, key)
    monkeypatch.setenv(signing.PASSWORD, "open sesame")
    assert signing.sign("r", {"a": "1" * 64}, key)


@pytest.mark.parametrize("kind", ["absent", "folder", "text", "public", "curve", "ed25519"])
def test_a_key_that_cannot_sign_stops_publishing_with_the_reason(tmp_path: Path, kind: str) -> None:
    run: Made = made(tmp_path / "store", formats=["safetensors"])
    path = tmp_path / "keys" / "sign.key"
    key_pair(tmp_path / "keys", curve=ec.SECP256K1() if kind == "curve" else None)
    if kind in ("absent", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    elif kind == "text":
        path.write_text("not a key")
    elif kind == "public":
        path = path.with_suffix(".pub")
    elif kind == "ed25519":
        key = ed25519.Ed25519PrivateKey.generate()
        path.write_bytes(key.private_bytes(PEM, PKCS8, serialization.NoEncryption()))
    run.local["key"] = str(path)
    with pytest.raises(PublishError) as caught:
        run.publish(tmp_path / "out")
    assert "openssl ecparam" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_the_private_key_is_nowhere_in_the_release(signed: Path, originals: Path) -> None:
    key = serialization.load_pem_private_key((originals / "keys" / "sign.key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    secret = key.private_numbers().private_value
    needles = [secret.to_bytes(32, "big"), b"%x" % secret, b"PRIVATE KEY", str(originals).encode()]
    for path in signed.rglob("*"):
        if path.is_file():
            assert not any(needle in path.read_bytes() for needle in needles), path
