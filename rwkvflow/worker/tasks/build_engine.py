"""Task build-engine: configure a CMake project, patch what CMake wrote, build, strip, collect.

Everything happens in out/.build (a container's /tmp may hold no programs), laid out as source/, build/ and tools/, and
removed afterwards. The output folder holds lib/<library>, bin/rwkv where the project builds it, patch.diff and
build.json, none of which knows this machine.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rwkvflow.worker.build import binaries, cmake_patch, elf, toolchain
from rwkvflow.worker.build.cmake_patch import CMakeRule, Report, Situation
from rwkvflow.worker.build.messages import failure
from rwkvflow.worker.build.patch_rules import shipped_rules, with_recipe
from rwkvflow.worker.build.scratch import copy_tree, cores, scratch
from rwkvflow.worker.build.space import DiskSpace
from rwkvflow.worker.digest import canonical, file_digest, json_digest, tree_digest
from rwkvflow.worker.errors import WorkerError
from rwkvflow.worker.protocol import emit, progress

PREBUILT = Path("/opt/rwkvflow/engine")
SOURCE = Path("in/source")
DEFAULT_LIBRARY = "**/librwkv.*"
STEPS = ("configure", "patch", "build", "strip", "collect")
STATE_FILES = re.compile(r"CMakeCache\.txt|CMakeFiles/[^/]+/CMake\w+\.cmake")
LARGEST_PATCHED = 64 << 20
WRITTEN = ("TMPDIR", "ZIG_GLOBAL_CACHE_DIR", "ZIG_LOCAL_CACHE_DIR")  # folders that compilers write to besides
RESERVED = ("CMAKE_TOOLCHAIN_FILE", "CMAKE_SUPPRESS_REGENERATION", "CMAKE_MAKE_PROGRAM")


@dataclass(frozen=True)
class Params:
    """The task's parameters, checked."""

    toolchain: str
    target: str | None
    cmake: Mapping[str, str]
    rules: tuple[CMakeRule, ...]
    library: str
    folder: str
    stem: str = "librwkv"  # the library's name in the output

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Params:
        """From the request. Raises WorkerError for what is wrong in it."""
        options = {}
        for key, setting in sorted((value.get("cmake") or {}).items()):
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_.+-]*", key):
                raise WorkerError(f"engine: cmake: {key!r} is no name of a CMake variable")
            if key in RESERVED:
                raise WorkerError(f"engine: cmake: {key} is set by rwkvflow and cannot be changed")
            options[key] = {True: "ON", False: "OFF"}[setting] if isinstance(setting, bool) else str(setting)
        rules = tuple(CMakeRule.from_json(rule) for rule in value.get("patches") or ())
        names = [rule.name for rule in rules]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise WorkerError(f"engine: patches: two rules are called {', '.join(twice)}")
        folder = value.get("folder") or "."
        if Path(folder).is_absolute() or ".." in Path(folder).parts:
            raise WorkerError(f"engine: folder {folder!r} leads out of the source")
        stem = value.get("stem") or "librwkv"
        if not re.fullmatch(r"lib[a-z]+", stem):
            raise WorkerError(f"engine: {stem!r} is no name of a library")
        return cls(
            value.get("toolchain") or "zig",
            value.get("target"),
            options,
            rules,
            value.get("library") or DEFAULT_LIBRARY,
            folder,
            stem,
        )


def run(request: dict[str, Any]) -> None:
    """Build the engine, or copy the image's own where it was made from the same request."""
    job = request["jobs"][0]
    out = Path(job["outputs"]["engine"])
    identity = request_digest(request.get("params") or {}, SOURCE)
    prebuilt, reason = _prebuilt(identity)
    if prebuilt is not None:
        print(f"engine: taken from the image ({prebuilt})", flush=True)
        copy_tree(prebuilt, out)
    else:
        print(f"engine: built here, because {reason}", flush=True)
        params = Params.from_json(request.get("params") or {})
        with scratch(out.parent) as (root, spellings):
            BuildRun(params, root, spellings).run(identity, out)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    emit(output={"job": job["id"], "name": "engine", "sha256": tree_digest(out)[7:], "size": size})


def request_digest(params: Mapping[str, Any], source: Path) -> str:
    """What a built engine is made from: parameters and source, "sha256:<hex>". Its name is only a label."""
    relevant = {key: value for key, value in params.items() if key != "name"}
    return json_digest({"params": relevant, "source": tree_digest(source)})


class BuildRun:
    """One build below `root`; `spellings` are all absolute paths that lead there."""

    def __init__(self, params: Params, root: Path, spellings: Sequence[str]) -> None:
        self.params = params
        self.source = root / "source"
        self.build = root / "build"
        self.tools = toolchain.prepare(params.toolchain, params.target, root)
        self.places = {
            "@SOURCE@": [f"{path}/source" for path in spellings],
            "@BUILD@": [f"{path}/build" for path in spellings],
            "@ROOT@": list(spellings),
        }
        self.secret = {path: name for name, paths in self.places.items() for path in paths}
        # The kernel's release stands in CMakeSystem.cmake, near what is patched.
        self.redact = {**self.secret, **self.tools.hidden, platform.release(): "@KERNEL@"}

    def run(self, identity: str, out: Path) -> None:
        """All steps; `out` appears complete or not at all."""
        self._step("configure")
        copy_tree(SOURCE, self.source)
        self._configure(("-S", str(self.source / self.params.folder), *self._options()))
        self._step("patch")
        diff, reports, patched = self._patch()
        self._step("build")
        self._call((self.tools.cmake, "--build", str(self.build), "--parallel", str(cores())), "build")
        self._still_patched(patched)
        self._step("strip")
        names = self._names()
        library = binaries.choose_library(names, self.params.library)
        tool = binaries.choose_tool(names, lambda name: os.access(self.build / name, os.X_OK))
        files = {f"lib/{self.params.stem}{toolchain.LIBRARY_SUFFIX[self.tools.system]}": self.build / library}
        if tool is not None:
            files[f"bin/{Path(tool).name}"] = self.build / tool
        for path in files.values():
            self._strip(path)
        binaries.check(files, names, self.secret)
        self._step("collect")
        self._collect(files, diff, self._facts(identity, reports), out)
        progress(len(STEPS), len(STEPS), "", "done")

    def _collect(self, files: Mapping[str, Path], diff: str, facts: dict[str, Any], out: Path) -> None:
        part = out.with_name(".engine.part")
        shutil.rmtree(part, ignore_errors=True)
        for name, path in files.items():
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, part / name)
            (part / name).chmod(0o755)
        (part / "patch.diff").write_text(diff, encoding="utf-8", errors="surrogateescape", newline="")
        facts["files"] = {name: file_digest(part / name) for name in sorted([*files, "patch.diff"])}
        (part / "build.json").write_bytes(canonical(facts) + b"\n")
        for name in ("patch.diff", "build.json"):
            (part / name).chmod(0o644)
        part.rename(out)

    def _options(self) -> list[str]:
        settings = {
            "CMAKE_BUILD_TYPE": "Release",
            "CMAKE_EXPORT_COMPILE_COMMANDS": "ON",
            "CMAKE_SKIP_RPATH": "ON",
            **self.params.cmake,
            # Else CMake, seeing files newer than its own, would write over the patches.
            "CMAKE_SUPPRESS_REGENERATION": "ON",
        }
        return [*self.tools.arguments, *(f"-D{key}={value}" for key, value in settings.items())]

    def _configure(self, arguments: Sequence[str]) -> None:
        self._call((self.tools.cmake, "-B", str(self.build), *arguments), "configure")

    def _patch(self) -> tuple[str, list[Report], dict[str, str]]:
        """The diff, what each rule did, and the texts as they are now."""
        rules = with_recipe(shipped_rules(self.tools.platform, self.tools.name), self.params.rules)
        version = self._cmake_version()
        situation = Situation(toolchain.host_platform(), self.tools.platform, version, self.places)
        # What CMake remembers comes first: it takes another run of CMake to come into force.
        before = self._texts(rules, state=True)
        after, first = cmake_patch.apply(rules, before, situation)
        if self._write(before, after):
            print("patched what CMake remembers; configuring again", flush=True)
            self._configure(("-S", str(self.source / self.params.folder)))
        generated = self._texts(rules, state=False)
        texts, second = cmake_patch.apply(rules, generated, situation)
        reports = cmake_patch.merge(first, second)
        originals = {**before, **generated}
        cmake_patch.check(reports, originals, self._names())
        self._write(generated, texts)
        for report in reports:
            if report.total:
                print(f"patch rule {report.rule.name}: {report.total} matches", flush=True)
        changed = {name: text for name, text in texts.items() if text != generated[name]}
        return cmake_patch.unified_diff(originals, {**after, **texts}, self.redact), reports, changed

    def _names(self) -> list[str]:
        """All files of the build folder, POSIX, sorted."""
        return sorted(
            path.relative_to(self.build).as_posix()
            for path in self.build.rglob("*")
            if path.is_file() and not path.is_symlink()
        )

    def _texts(self, rules: Sequence[CMakeRule], state: bool) -> dict[str, str]:
        names = cmake_patch.wanted_files(rules, self._names())
        texts = {}
        for name in names:
            path = self.build / name
            if (STATE_FILES.fullmatch(name) is not None) != state or path.stat().st_size > LARGEST_PATCHED:
                continue
            data = path.read_bytes()
            if b"\0" not in data:
                texts[name] = data.decode("utf-8", "surrogateescape")
        return texts

    def _write(self, before: Mapping[str, str], after: Mapping[str, str]) -> bool:
        changed = [name for name in after if after[name] != before[name]]
        for name in changed:
            (self.build / name).write_bytes(after[name].encode("utf-8", "surrogateescape"))
        return bool(changed)

    def _still_patched(self, texts: Mapping[str, str]) -> None:
        for name, text in texts.items():
            path = self.build / name
            if not path.exists() or path.read_bytes() != text.encode("utf-8", "surrogateescape"):
                raise WorkerError(
                    f"{name} was written again during the build, which undid its patches\n"
                    "  what to do: have the project write it while it is configured, or patch what it is made from"
                )

    def _call(self, argv: Sequence[str], step: str) -> None:
        """Run a program, showing its output with this machine's paths hidden."""
        lines: list[str] = []
        with DiskSpace(
            [self.build.parent, *(self.tools.env[name] for name in WRITTEN if name in self.tools.env)]
        ) as disk:
            code = self._watched(argv, step, lines)
        if code:
            raise WorkerError(failure(step, lines, code, self.tools.name)) from disk.error()

    def _watched(self, argv: Sequence[str], step: str, lines: list[str]) -> int:
        """Run a program; returns its exit code, and what it said in `lines`."""
        try:
            process = subprocess.Popen(
                list(argv),
                cwd=self.source,
                env=dict(self.tools.env),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                encoding="utf-8",
                errors="replace",
            )
        except OSError as error:
            raise WorkerError(f"{Path(argv[0]).name} does not start: {error}") from error
        with process:
            for raw in process.stdout or ():
                line = cmake_patch.hide(raw.rstrip("\r\n"), self.redact)
                lines.append(line)
                print(line, flush=True)
                if step == "build" and (found := re.match(r"\[\s*(\d+)(?:/(\d+)|%)\]", line)):
                    progress(int(found[1]), int(found[2] or 100), "files" if found[2] else "%", "build")
        return process.returncode

    def _strip(self, path: Path) -> None:
        data = path.read_bytes()
        if not elf.is_elf(data) or elf.is_stripped(data):
            return
        strip = shutil.which("strip", path=self.tools.env["PATH"])
        if self.tools.name != "system" or strip is None:
            print(f"{path.name} keeps its symbols: the toolchain has no strip", flush=True)
            return
        self._call((strip, "--strip-unneeded", str(path)), "strip")

    def _cmake_version(self) -> str:
        cache = (self.build / "CMakeCache.txt").read_text(encoding="utf-8", errors="replace")
        parts = [
            re.search(rf"^CMAKE_CACHE_{part}_VERSION:INTERNAL=(\d+)$", cache, re.MULTILINE)
            for part in ("MAJOR", "MINOR", "PATCH")
        ]
        return ".".join(found[1] for found in parts if found)

    def _compiler(self) -> str:
        for language in ("CXX", "C"):
            for path in sorted(self.build.glob(f"CMakeFiles/*/CMake{language}Compiler.cmake")):
                text = path.read_text(encoding="utf-8", errors="replace")
                facts = dict(re.findall(r'^set\((\w+) "([^"]*)"\)', text, re.MULTILINE))
                if name := facts.get(f"CMAKE_{language}_COMPILER_ID"):
                    compiler = f"{name} {facts.get(f'CMAKE_{language}_COMPILER_VERSION', '')}".strip()
                    return f"{compiler} ({self.tools.version})" if self.tools.version else compiler
        return self.tools.version

    def _facts(self, identity: str, reports: Sequence[Report]) -> dict[str, Any]:
        return {
            "request": identity,
            "toolchain": self.tools.name,
            "target": self.tools.target,
            "platform": self.tools.platform,
            "cmake": self._cmake_version(),
            "compiler": self._compiler(),
            "options": dict(self.params.cmake),
            "rules": [
                {
                    "name": report.rule.name,
                    "shipped": report.rule.shipped,
                    "applied": report.applied,
                    "matches": report.total,
                }
                for report in reports
            ],
        }

    def _step(self, name: str) -> None:
        print(f"engine: {name}", flush=True)
        progress(STEPS.index(name), len(STEPS), "", name)


def _prebuilt(identity: str) -> tuple[Path | None, str]:
    """The image's engine with this identity (an image may hold several), or why there is none."""
    reason = "the image holds none"
    for folder in (PREBUILT, *sorted(PREBUILT.glob("*/"))):
        try:
            facts = json.loads((folder / "build.json").read_text(encoding="utf-8"))
            if facts["request"] != identity:
                reason = "the image's was made from another source or other options"
                continue
            files = dict(facts["files"])
            damaged = [name for name, digest in files.items() if file_digest(folder / name) != digest]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            reason = f"the image's cannot be read ({type(error).__name__}: {error})"
            continue
        if files and not damaged:
            return folder, ""
        reason = f"the image's {', '.join(damaged) or 'is empty'} is damaged"
    return None, reason
