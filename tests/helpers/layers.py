"""The rooms of the package from high to low: the one list for the test of imports, README and the docs."""

from __future__ import annotations

import ast
from pathlib import Path

#: (room, what it is for), from high to low. A room imports from itself and from what stands below it.
ROOMS: tuple[tuple[str, str], ...] = (
    ("api", "the names that other programs may import; the only public room"),
    ("cli", "commands and options, one module a group of commands"),
    ("app", "use cases: run, lock, plan and explain, rebuild, measure, find the engine's library"),
    ("serve", "an OpenAI-like server and its page on librwkv"),
    ("display", "what you see: live bars, plain lines, JSON, the report"),
    ("execute", "carries a plan out: executors, the action of each step, publishing"),
    ("stages", "one module a stage: builds its steps; `blueprint` is what all of them start from"),
    ("sandbox", "where commands run: docker and host, base images, Dockerfiles, doctor"),
    ("lock", "brings every input of a recipe down to digests"),
    ("publish", "where a release goes: folder, hub, OCI registry, bucket"),
    ("net", "all that talks to the network: HTTP, downloads, hub, git, wheels, OCI registries"),
    ("release", "what a release is: artifacts, card, quality, bill of materials, statement, signature, check"),
    ("plan", "what a step is, its key, the graph; the matrix of a recipe; CI files"),
    ("store", "finished work by digest; a remote store below it; collecting, history"),
    ("documents", "recipe, workflow, lock: loading, checking, every message about them"),
    ("worker", "what runs inside the sandbox, and imports nothing of the above"),
    ("engine", "librwkv in C++, and Python's binding of it"),
    ("base", "errors and their exit codes, events, files, hashing, processes"),
)

#: The same inside `worker/`.
WORKER_ROOMS: tuple[tuple[str, str], ...] = (
    ("__main__", "carries out one task"),
    ("tasks", "one module a task, thin: a request in, files out"),
    ("conversion", "one read of a checkpoint, many artifacts"),
    ("formats", "one folder a family of formats: its layout, and the runner that tries it out"),
    ("smoke", "questions, answers, scores, the judge; what an artifact holds, compared with the checkpoint"),
    ("reference", "versions 4 to 7 in readable numpy: the truth for the smoke test"),
    ("write", "what a file is made of: layouts, changes of values, encoders, writers"),
    ("read", "every model file as a checkpoint, lazily and safely"),
    ("maps", "what the tensors are called in the files of other projects, both ways"),
    ("build", "building an engine: toolchains, patch rules, what a build made"),
    ("model", "what an RWKV model is: versions, weight types, dimensions, tokenizers, exact arithmetic"),
    ("protocol", "how host and worker talk"),
    ("places", "reading and writing at a place of an open file, on every system"),
    ("requests", "what stages ask of tasks, as types"),
    ("digest", "digests, as the host computes them"),
    ("advice", "what messages advise, which differs without a recipe"),
    ("errors", "the one kind of error"),
)


def imported_rooms(package: Path) -> dict[str, set[str]]:
    """The rooms that each room imports, itself or through others: what has to be understood to understand it."""
    rooms = [room for room, _ in ROOMS]
    found: dict[str, set[str]] = {}
    for room in reversed(rooms):  # from low to high, so that those below are known
        direct = {name for path in (package / room).rglob("*.py") for name in _rooms_of(path)} & set(rooms) - {room}
        found[room] = direct.union(*(found.get(other, set()) for other in direct))
    return found


def _rooms_of(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("rwkvflow."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "rwkvflow":
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.Import):
            found.update(alias.name.split(".")[1] for alias in node.names if alias.name.startswith("rwkvflow."))
    return found
