"""What a run of the tests says of those that it left out: how many, and what each would need."""

from __future__ import annotations

from tests.conftest import left_out


def test_what_is_missing_is_named() -> None:
    reasons = [
        "Skipped: no Docker engine: DockerException: …",
        "Skipped: no Docker engine: DockerException: …",
        "Skipped: no qemu-aarch64-static on this machine (Debian: apt-get install qemu-user-static)",
        "Skipped: no g++ on this machine",
        "Skipped: no clang++ on this machine (Debian: apt-get install clang libclang-rt-14-dev)",
        "Skipped: no chromium: apt-get install chromium",
        "Skipped: docker-registry is not installed (apt-get install docker-registry)",
        "Skipped: mounting a small file system takes root",
        "Skipped: no fixtures at fixtures/ beside the checkout; set RWKVFLOW_FIXTURES",
        "Skipped: the format cannot hold this version",
        "Skipped: it is Tuesday",
    ]
    assert left_out(reasons) == (
        "11 tests were not run: 2 that need a Docker engine (none answers), "
        "1 that need an emulator (qemu-user-static, bochs, wine), 2 that need the system's compiler (g++, clang), "
        "1 that need a browser (chromium), 1 that need another program, 1 that need root, "
        "1 that need files from outside of the project, 1 of a version that its format does not hold, "
        "1 for other reasons; `.ci/run` insists on all"
    )
