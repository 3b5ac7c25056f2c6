"""Publishing to the hub: the real client against the stand-in, on loopback."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from rwkvflow.base.errors import FetchError, PublishError, StoreError
from rwkvflow.base.text import bytes_text
from rwkvflow.cli import cli
from rwkvflow.net.progress import Told
from rwkvflow.publish.hub import LARGEST, HubOptions, HubPublisher, weight_suffixes
from rwkvflow.release.artifacts import from_file
from rwkvflow.release.names import PROVENANCE, SUMS
from rwkvflow.release.provenance.statement import BUILD_TYPE, PREDICATE_TYPE
from rwkvflow.release.release import Release
from tests.helpers import publishing
from tests.helpers import releases as runs
from tests.helpers.hub_releases import NEW, OLD, REPO, TOKEN, commits, holds, publish, uploads
from tests.helpers.publishing import POLICY, contents, release
from tests.standin import StandIn

# ---- the way it is meant ---------------------------------------------------------------------------------------


def test_a_release_is_one_commit_and_a_tag(net: StandIn) -> None:
    made = publish(OLD)
    repository = net.hub.repositories[REPO]
    assert holds(repository, OLD)
    assert commits(net) == 1
    assert uploads(net) == 3  # .bin, .bin, .safetensors; the rest is inside the commit
    sums = hashlib.sha256(contents(release(OLD))[SUMS]).hexdigest()
    assert repository.tags == {f"release-{sums[:12]}": repository.branches["main"]}
    assert made.to == f"hf://{REPO}@release-{sums[:12]}"
    assert made.facts["commit"] == repository.branches["main"]


def test_publishing_again_does_nothing(net: StandIn) -> None:
    publish(OLD)
    before = dict(net.hub.repositories[REPO].branches)
    net.seen.clear()
    made = publish(OLD)
    assert net.hub.repositories[REPO].branches == before
    assert {seen.method for seen in net.seen} <= {"GET", "HEAD"}
    assert made.facts["changed"] == "0"


def test_one_changed_artifact_is_one_commit_and_one_upload(net: StandIn) -> None:
    publish(OLD)
    net.seen.clear()
    changed = {**OLD, "tiny7/tiny7-Q5_1.bin": b"other" * 999}
    publish(changed)
    assert (commits(net), uploads(net)) == (1, 1)
    assert holds(net.hub.repositories[REPO], changed)
    assert len(net.hub.repositories[REPO].tags) == 2


def test_files_that_are_no_longer_in_the_release_go_and_files_of_others_stay(net: StandIn) -> None:
    publish(OLD)
    net.hub.repositories[REPO].commit({"notes.md": b"mine"})
    publish(NEW)
    there = net.hub.repositories[REPO].contents()
    assert "gone/gone.bin" not in there
    assert there.pop("notes.md") == b"mine"
    there.pop(".gitattributes")
    assert there == contents(release(NEW))


def test_weights_go_to_lfs_whatever_their_size_and_empty_files_do_not(net: StandIn) -> None:
    publish({"a/a.gguf": b"small", "a/empty.bin": b"", "a/a.json": b"{}"})
    repository = net.hub.repositories[REPO]
    head = repository.find("main")
    assert head is not None
    assert {path for path, entry in head.files.items() if entry.lfs} == {"a/a.gguf"}
    lines = repository.contents()[".gitattributes"].decode().splitlines()
    for suffix in weight_suffixes():
        assert lines.count(f"*{suffix} filter=lfs diff=lfs merge=lfs -text") == 1


def test_large_files_go_in_parts(net: StandIn, tmp_path: Path) -> None:
    data = os.urandom(1 << 20) * 30
    made = release({"big/big.safetensors": data}, tmp_path / "big")
    told: list[tuple[int, int]] = []
    HubPublisher(REPO, policy=POLICY).apply(made, Told(progress=lambda done, total: told.append((done, total))))
    assert uploads(net) == 4  # of 8 MiB at most
    assert net.hub.repositories[REPO].contents()["big/big.safetensors"] == data
    assert told[-1][0] == told[-1][1] >= 30 << 20
    assert [done for done, _ in told] == sorted(done for done, _ in told)
    assert len({done for done, _ in told}) > 10  # told while it goes


def test_the_plan_says_it_beforehand_and_changes_nothing(net: StandIn) -> None:
    publisher = HubPublisher(REPO, HubOptions(private=True, tag="v1"), POLICY)
    plan = publisher.plan(release(OLD))
    assert plan.lines()[:3] == [f"hf://{REPO}:", "  creates the private repository", "  sets the tag v1"]
    assert f"  + gone/gone.bin  {bytes_text(len(OLD['gone/gone.bin']))}" in plan.lines()
    publisher.apply(release(OLD), Told())
    assert publisher.plan(release(OLD)).lines()[0] == f"hf://{REPO}: nothing to do"
    net.seen.clear()
    plan = HubPublisher(REPO, policy=POLICY).plan(release(NEW))
    kinds = {change.path: change.kind for change in plan.changes}
    assert kinds == {
        "tiny7/tiny7-Q5_1.bin": "replace",
        "tiny7/smoke/tiny7-Q5_1.bin.json": "replace",
        "provenance.json": "replace",
        "SHA256SUMS": "replace",
        "added/added.gguf": "add",
        "gone/gone.bin": "delete",
    }
    assert plan.unchanged == 3  # the safetensors, the card, .gitattributes
    assert {seen.method for seen in net.seen} == {"GET"}


def test_private_repositories_branches_and_tags(net: StandIn) -> None:
    publish(OLD, private=True, tag="v1")
    repository = net.hub.repositories[REPO]
    assert repository.private
    assert repository.tags == {"v1": repository.branches["main"]}
    publish(NEW, branch="next", tag="v2")
    assert holds(repository, OLD)
    assert holds(repository, NEW, "next")
    with pytest.raises(PublishError, match=r"is private, and the recipe says that it is to be public"):
        publish(NEW, private=False)
    with pytest.raises(PublishError, match=r"has a tag v1 already") as caught:
        publish(NEW, tag="v1")
    assert "another tag" in str(caught.value.remedy)
    assert holds(repository, OLD)


def test_going_back_to_an_older_release(net: StandIn) -> None:
    publish(OLD)
    publish(NEW)
    net.seen.clear()
    publish(OLD)
    assert holds(net.hub.repositories[REPO], OLD)
    assert uploads(net) == 0  # the hub has the contents still
    assert len(net.hub.repositories[REPO].tags) == 2


# ---- what cannot be ---------------------------------------------------------------------------------------------


def test_without_a_token(net: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    with pytest.raises(PublishError, match="needs a token") as caught:
        publish(OLD)
    assert "HF_TOKEN" in str(caught.value.remedy)
    assert net.seen == []


@pytest.mark.parametrize(
    ("token", "repo", "message"),
    [
        ("hf_nobody_knows_this_one", REPO, "the hub does not know this token"),
        (TOKEN, "someone/else", "may not write to hf://someone/else"),
        (TOKEN, "other/theirs", "may not write to hf://other/theirs"),
    ],
)
def test_tokens_that_may_not(
    net: StandIn, monkeypatch: pytest.MonkeyPatch, token: str, repo: str, message: str
) -> None:
    net.hub.create("other/theirs").commit({"README.md": b"# theirs"})
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(PublishError, match=message) as caught:
        publish(OLD, repo=repo)
    assert token not in str(caught.value)
    assert net.hub.repositories["other/theirs"].contents() == {"README.md": b"# theirs"}


def test_a_file_over_the_hubs_limit_is_refused_before_anything_is_asked(net: StandIn, tmp_path: Path) -> None:
    made = release(OLD)
    large = tmp_path / "large.bin"
    with large.open("wb") as file:
        file.truncate(LARGEST + 1)
    file_of = type(made.files[0])("large.bin", "sha256:" + "0" * 64, LARGEST + 1, large)
    with pytest.raises(PublishError, match=r"large\.bin has 50\.00 GB"):
        HubPublisher(REPO, policy=POLICY).apply(Release("tiny", (*made.files, file_of), ()), Told())
    assert net.seen == []


def test_files_that_rwkvflow_did_not_publish_are_not_replaced(net: StandIn) -> None:
    theirs = net.hub.create(REPO)
    theirs.commit({"README.md": b"# by hand", "tiny7/tiny7-Q5_1.bin": b"by hand"})
    with pytest.raises(PublishError, match="that rwkvflow did not publish"):
        publish(OLD)
    assert theirs.contents() == {"README.md": b"# by hand", "tiny7/tiny7-Q5_1.bin": b"by hand"}
    theirs.commit({"tiny7/tiny7-Q5_1.bin": None})
    publish(OLD)  # a card made on the hub's own page is replaced; its history keeps it
    assert holds(theirs, OLD)


def test_a_users_file_where_the_release_has_one_is_refused_by_name(net: StandIn) -> None:
    publish(OLD)
    theirs = net.hub.repositories[REPO]
    theirs.commit({"added/added.gguf": b"mine", "notes.md": b"mine"})
    before = theirs.contents()
    with pytest.raises(PublishError, match=r"has a added/added\.gguf that is no file of the release there"):
        publish(NEW)
    assert theirs.contents() == before
    theirs.commit({"added/added.gguf": None})
    publish(NEW)
    assert theirs.contents()["notes.md"] == b"mine"


def test_another_recipes_release_is_not_replaced(net: StandIn) -> None:
    statement = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": "a.bin", "digest": {"sha256": "0" * 64}}],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {"buildType": BUILD_TYPE, "externalParameters": {"name": "other"}},
            "runDetails": {"builder": {"id": "https://example.org/builder"}},
        },
    }
    publish({**OLD, PROVENANCE: json.dumps(statement).encode()})
    before = net.hub.repositories[REPO].contents()
    with pytest.raises(PublishError, match="holds the release other, and this recipe's is tiny"):
        publish(NEW)
    assert net.hub.repositories[REPO].contents() == before


def test_damage_in_the_store_is_not_published(net: StandIn, tmp_path: Path) -> None:
    made = release(OLD, tmp_path / "store")
    damaged = tmp_path / "store" / "gone" / "gone.bin"
    damaged.write_bytes(b"GONE" * 100)
    with pytest.raises(StoreError, match=r"gone/gone\.bin"):
        HubPublisher(REPO, policy=POLICY).apply(made, Told())
    assert set(net.hub.repositories[REPO].contents()) == {".gitattributes"}


def test_a_gitignore_that_keeps_files_out_is_noticed(net: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.standin.writing import Writing

    original = Writing.write_commit

    def forgetful(self: Writing, values: dict[str, str], query: object, headers: dict[str, str], body: bytes) -> object:
        kept = b"\n".join(line for line in body.splitlines() if b"smoke" not in line)
        return original(self, values, query, headers, kept)

    monkeypatch.setattr(Writing, "write_commit", forgetful)
    with pytest.raises(PublishError, match=r"does not hold what was sent: tiny7/smoke"):
        publish(OLD)


def test_release_files_come_from_disk_too(tmp_path: Path) -> None:
    made = release(OLD, tmp_path / "r")
    assert contents(publishing.from_folder(tmp_path / "r")) == contents(made)
    assert from_file("x", tmp_path / "r" / "README.md").size == len(publishing.CARD_TEXT)


def test_choose_asks_a_repository_for_its_catalogue_alone(
    net: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = runs.made(tmp_path / "run").assemble()
    HubPublisher(REPO, policy=POLICY).apply(made, Told())
    monkeypatch.setenv("RWKVFLOW_STORE", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    net.seen.clear()
    done = CliRunner().invoke(cli, ["choose", REPO, "--memory", "1GB", "--runtime", "librwkv", "--model", "tiny7"])
    assert done.exit_code == 0, done.exception
    assert done.output.startswith("* tiny7/tiny7-Q5_1.bin")
    assert {
        str(request.path).rpartition("/")[2] for request in net.requests("GET") if "/resolve/" in str(request.path)
    } <= {"catalogue.json"}
    missing = CliRunner().invoke(cli, ["choose", "me/others", "--memory", "1GB"])
    assert isinstance(missing.exception, FetchError)
