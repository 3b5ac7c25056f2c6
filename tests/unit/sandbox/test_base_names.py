"""The names of bootstrapped base images tell how to make them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rwkvflow.base.errors import UsageError
from rwkvflow.documents.names import SUITES
from rwkvflow.sandbox.image.base_names import check_packages, command_for, default_tag
from rwkvflow.sandbox.image.dockerfile import split_reference

PACKAGES = st.lists(st.from_regex(r"[a-z0-9][a-z0-9.-]{1,20}", fullmatch=True), max_size=4)


def test_names() -> None:
    assert default_tag("bookworm") == "rwkvflow-base:bookworm"
    assert default_tag("trixie", ["b1", "a1", "b1"]) == "rwkvflow-base:trixie_a1_b1"
    assert command_for("rwkvflow-base:bookworm_mesa-vulkan-drivers") == (
        "rwkvflow image bootstrap --package mesa-vulkan-drivers"
    )
    assert command_for("rwkvflow-base:mine") == command_for("rwkvflow-base:bookworm") == "rwkvflow image bootstrap"
    assert command_for("rwkvflow-base:bookworm_ --tag x") == "rwkvflow image bootstrap"


@given(suite=st.sampled_from(sorted(SUITES)), packages=PACKAGES)
def test_the_command_is_the_one_that_made_the_name(suite: str, packages: list[str]) -> None:
    tag = default_tag(suite, packages)
    split_reference(tag)
    words = command_for(tag).split()[3:]
    found = {"--suite": [], "--package": []}  # type: dict[str, list[str]]
    for option, value in zip(words[::2], words[1::2], strict=True):
        found[option].append(value)
    (told,) = found["--suite"] or ["bookworm"]
    assert default_tag(told, found["--package"]) == tag


@pytest.mark.parametrize("name", ["", "-x", "a", "A1", "a_b", "a b", "a,b", "a\n"])
def test_what_is_no_package_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name of a Debian package"):
        check_packages([name])
    with pytest.raises(UsageError):
        default_tag("bookworm", [name])


def test_a_name_that_no_tag_can_hold_needs_one() -> None:
    with pytest.raises(UsageError, match=r"cannot hold the name libstdc\+\+6") as error:
        default_tag("bookworm", ["libstdc++6"])
    assert "--tag" in str(error.value.remedy)
