"""Names of images as Docker reads them, and rows of an index."""

from __future__ import annotations

import pytest

from rwkvflow.net.oci_image import _for_platform, place_of

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


@pytest.mark.parametrize(
    ("name", "registry", "repository"),
    [
        ("python", "docker.io", "library/python"),
        ("docker.io/python", "docker.io", "library/python"),
        ("docker.io/library/python", "docker.io", "library/python"),
        ("team/python", "docker.io", "team/python"),
        ("localhost/python", "localhost", "python"),
        ("registry.example/a/b", "registry.example", "a/b"),
        ("127.0.0.1:5000/library/python", "127.0.0.1:5000", "library/python"),
    ],
)
def test_where_an_image_is(name: str, registry: str, repository: str) -> None:
    place = place_of(name)
    assert (place.registry, place.repository) == (registry, repository)


def test_the_row_of_a_platform() -> None:
    rows = [
        "odd",
        {"digest": ONE},
        {"digest": ONE, "platform": {"os": "windows", "architecture": "amd64"}},
        {"digest": TWO, "platform": {"os": "linux", "architecture": "arm64", "variant": "v8"}},
        {"digest": ONE, "platform": {"os": "linux", "architecture": "amd64"}},
        {"digest": "../x", "platform": {"os": "linux", "architecture": "riscv64"}},
    ]
    assert _for_platform(rows, "linux-x86_64") == ONE
    assert _for_platform(rows, "linux-aarch64") == TWO
    assert _for_platform(rows, "linux-riscv64") is None
    assert _for_platform(rows, "linux-s390x") is None
