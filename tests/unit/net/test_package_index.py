"""What pip's configuration says, what pages of indexes list, and which wheel of several is taken."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.errors import EnvironmentMissing, LockError
from rwkvflow.net.packages import package_index, uv
from rwkvflow.net.packages.package_index import Distribution, access_to, best_wheel, files_of, wheels_of, without_login
from rwkvflow.net.packages.pip_settings import PYPI, PipSettings, settings_of_environment
from rwkvflow.net.packages.target import Target

LINUX = Target("3.11", "linux-x86_64")


def test_settings_replace_each_other_as_pips_do(tmp_path: Path) -> None:
    (tmp_path / "xdg/pip").mkdir(parents=True)
    (tmp_path / "xdg/pip/pip.conf").write_text(
        "[global]\nindex-url = https://user:secret@one.example/simple\nfind_links =\n  /a\n  https://b.example/links\n"
        "constraint = c.txt\n[install]\npre = yes\n[list]\nindex-url = https://not.this\n"
    )
    (tmp_path / "named.conf").write_text("[global]\ncert = /certs.pem\ntrusted-host = a.example b.example:8443\n")
    variables = {
        "HOME": str(tmp_path),
        "XDG_CONFIG_DIRS": str(tmp_path / "none"),
        "XDG_CONFIG_HOME": str(tmp_path / "xdg"),
        "PIP_CONFIG_FILE": str(tmp_path / "named.conf"),
        "PIP_EXTRA_INDEX_URL": "https://two.example/simple https://three.example/simple",
        "PIP_CERT": "/other.pem",
        "PIP_PROXY": "http://proxy.example:3128",
        "PIP_TRUSTED_HOST": "",
    }
    found = settings_of_environment(variables)
    assert found.indexes[0] == "https://user:secret@one.example/simple"
    assert found.indexes[1:] == ("https://two.example/simple", "https://three.example/simple")
    assert found.find_links == (str(Path("/a").absolute()), "https://b.example/links")
    assert found.constraints == (str(Path("c.txt").absolute()),)
    assert (found.certificates, found.proxy, found.prereleases) == ("/other.pem", "http://proxy.example:3128", True)
    assert found.trusted == ("a.example", "b.example:8443")
    bare = settings_of_environment({"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/dev/null"})
    assert bare == PipSettings()
    assert bare.indexes == (PYPI,)
    assert settings_of_environment({"PIP_CONFIG_FILE": "/dev/null", "PIP_NO_INDEX": "true"}).indexes == ()
    uvs = {"PIP_CONFIG_FILE": "/dev/null", "UV_INDEX": "torch=https://t.example/cpu https://u.example/x=y"}
    assert settings_of_environment(uvs).indexes == (PYPI, "https://t.example/cpu", "https://u.example/x=y")


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    (tmp_path / "pip.conf").write_text("index-url = x\n")
    with pytest.raises(LockError, match=r"pip\.conf"):
        settings_of_environment({"PIP_CONFIG_FILE": str(tmp_path / "pip.conf")})


def test_pages_of_an_index() -> None:
    html = (
        '<a href="../files/a-1.0-py3-none-any.whl#sha256=' + "a" * 64 + '">x</a>'
        '<a href="https://cdn.example/a-2.0%2Bcpu-py3-none-any.whl" data-requires-python="&gt;=3.12">x</a>'
        '<a data-yanked href="a-3.0-py3-none-any.whl">x</a><a name="top">x</a><a href="../">up</a>'
    )
    found = list(package_index._from_html(html, "https://u:p@index.example/simple/a/"))
    assert [file.filename for file in found] == ["a-1.0-py3-none-any.whl", "a-2.0+cpu-py3-none-any.whl"]
    assert found[0].address == "https://u:p@index.example/simple/files/a-1.0-py3-none-any.whl"
    assert (found[0].sha256, found[1].sha256, found[1].requires_python) == ("a" * 64, None, ">=3.12")
    assert found[1].address.startswith("https://cdn.example/")  # no login goes to another host
    rows = [
        {"filename": "a-1.0.tar.gz", "url": "a.tar.gz", "hashes": {"sha256": "b" * 64}, "requires-python": ">=3"},
        {"filename": "a-2.0.tar.gz", "url": "b.tar.gz", "hashes": {}, "yanked": "broken"},
    ]
    page = json.loads(json.dumps({"files": rows}))
    [file] = package_index._from_json(page, "https://index.example/simple/a/")
    assert file == Distribution("a-1.0.tar.gz", "https://index.example/simple/a/a.tar.gz", "b" * 64, ">=3")


def test_a_login_goes_to_its_own_host_only() -> None:
    address = "https://user:se%40cret@index.example/simple/a/#x"
    assert without_login(address) == "https://index.example/simple/a/"
    access = access_to(address, PipSettings(trusted=("other.example",)))
    assert access.authorize("https://index.example/x")["Authorization"] == "Basic dXNlcjpzZUBjcmV0"
    assert access.authorize("https://elsewhere.example/x") == {}
    assert access.authorize("http://index.example/x") == {}
    assert access.verify
    assert not access_to("https://other.example/", PipSettings(trusted=("other.example",))).verify


def test_local_indexes_and_folders(tmp_path: Path) -> None:
    (tmp_path / "links").mkdir()
    for name in ("Some_Thing-1.0-py3-none-any.whl", "some_thing_else-1.0-py3-none-any.whl", "some-thing-0.9.tar.gz"):
        (tmp_path / "links" / name).touch()
    (tmp_path / "index/some-thing").mkdir(parents=True)
    (tmp_path / "index/some-thing/index.html").write_text(
        '<a href="../f/some_thing-2.0-cp312-cp312-macosx_11_0_arm64.whl">x</a>'
        '<a href="../f/some_thing-1.5-py3-none-any.whl" data-requires-python=">=3.12">x</a>'
        '<a href="../f/some_thing-1.4-cp38-abi3-manylinux2014_x86_64.whl">x</a>'
    )
    settings = PipSettings((f"file://{tmp_path}/index",), (str(tmp_path / "links"), str(tmp_path / "absent")))
    names = [file.filename for file in files_of("some.thing", settings)]
    assert names[:2] == ["Some_Thing-1.0-py3-none-any.whl", "some-thing-0.9.tar.gz"]
    assert len(names) == 5
    assert list(map(str, wheels_of("Some_Thing", settings, LINUX))) == ["1.0", "1.4"]
    assert files_of("absent", settings) == []


@given(st.data())
def test_the_best_wheel_does_not_depend_on_the_order(data: st.DataObject) -> None:
    """The best tag first, then the highest build; never one for another machine."""
    ranked = [
        "a-1.0-2-cp311-cp311-manylinux_2_28_x86_64.whl",
        "a-1.0-cp311-cp311-manylinux_2_28_x86_64.whl",
        "a-1.0-cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "a-1.0-cp311-abi3-manylinux_2_17_x86_64.whl",
        "a-1.0-cp38-abi3-manylinux_2_28_x86_64.whl",
        "a-1.0-py3-none-manylinux1_x86_64.whl",
        "a-1.0-py3-none-any.whl",
    ]
    others = ["a-1.0-cp312-cp312-manylinux_2_17_x86_64.whl", "a-1.0-cp311-cp311-win_amd64.whl", "a-1.0.tar.gz"]
    chosen = data.draw(st.lists(st.sampled_from(ranked + others), unique=True))
    found = best_wheel([Distribution(name, "", None) for name in chosen], LINUX)
    wanted = next((name for name in ranked if name in chosen), None)
    assert (found.filename if found else None) == wanted


def test_every_target_has_tags_and_a_name_for_uv() -> None:
    for python, platform in itertools.product(("3.9", "3.14"), ("linux-x86_64", "linux-aarch64", "macos-arm64")):
        target = Target(python, platform)
        assert len(set(target.tags())) > 50
        assert target.uv_platform.startswith(("x86_64-", "aarch64-"))


def test_without_uv_it_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "uv", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentMissing, match="uv, which resolves the wheels"):
        uv.find_uv()
