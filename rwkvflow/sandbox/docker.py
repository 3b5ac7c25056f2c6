"""The Docker sandbox: an image for each environment, a locked-down container for each command."""

from __future__ import annotations

import contextlib
import os
import queue
import stat
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.base.errors import EnvironmentMissing, StepFailed
from rwkvflow.base.lines import LineSplitter, Tail
from rwkvflow.base.process import MESSAGE
from rwkvflow.plan.step import StepLimits
from rwkvflow.sandbox.base import WAITING, Command, EnvironmentSpec, OnLine, Result
from rwkvflow.sandbox.daemon import (
    RUN_LABEL,
    connect,
    is_orphan,
    owner_labels,
    plain_errors,
    platform_of,
    remedy_for,
    seen_by_engine,
)
from rwkvflow.sandbox.image.archive import context
from rwkvflow.sandbox.image.base_image import ensure_base, local_image
from rwkvflow.sandbox.image.dockerfile import NOBODY
from rwkvflow.sandbox.image.image_build import ImageBuild, LayerLost
from rwkvflow.sandbox.image.image_id import settle
from rwkvflow.sandbox.isolation.disk import DiskLimit

if TYPE_CHECKING:
    import docker
    from docker.models.containers import Container

REPOSITORY = "rwkvflow/worker"
TAG_LABEL = "org.rwkvflow.tag"
POLL_S = 0.1
TMP_BYTES = 256 << 20  # of /tmp in memory; counts toward the memory limit
KILLED = 137
BUILDS = 3  # of an image whose layers others remove meanwhile
_Piece = tuple[bytes | None, bytes | None]  # of standard output and standard error


class DockerSandbox:
    """Commands run with no network, a read-only root, no capabilities and a user that is not root."""

    name = "docker"
    description = "containers: no network, read-only root, no capabilities, not root, limits enforced by the kernel"

    def __init__(self, client: docker.DockerClient | None = None) -> None:
        self._given = client
        self._facts: dict[str, Any] | None = None
        self._lock = threading.Lock()

    @property
    def client(self) -> docker.DockerClient:
        """The connection, made on first use. Raises EnvironmentMissing."""
        with self._lock:
            if self._given is None:
                self._given = connect()
            return self._given

    @property
    def info(self) -> Mapping[str, Any]:
        """The engine's /info, asked once."""
        if self._facts is None:
            with plain_errors("docker info"):
                self._facts = dict(self.client.info())
        return self._facts

    @cached_property
    def platform(self) -> str:
        """The platform of the engine's containers, which may differ from this machine's: "linux-aarch64" on a Mac."""
        return platform_of(self.info)

    # ---- environments --------------------------------------------------------------------------------------------

    def has(self, tag: str) -> bool:
        """Whether the engine has the image of this environment; one that was only named like it does not count."""
        image = local_image(reference(tag), self.client)
        return image is not None and image.labels.get(TAG_LABEL) == tag

    def build(self, spec: EnvironmentSpec, limits: StepLimits, on_line: OnLine, cancel: threading.Event) -> None:
        """Build the image, without network. Raises StepFailed, or EnvironmentMissing for the base."""
        if spec.base is None:
            raise StepFailed(f"image {spec.image}: no base image is locked", remedy="run `rwkvflow lock`")
        ensure_base(spec.base, self.client, on_line)
        for left in reversed(range(BUILDS)):
            build = ImageBuild(self.client, self._possible(limits), on_line, cancel)
            try:
                build.run(context(spec), reference(spec.tag), {**spec.labels, TAG_LABEL: spec.tag})
                settle(reference(spec.tag), self.client, on_line)
                return
            except LayerLost:
                if not left:
                    raise
                on_line("a layer was removed while it was built upon (an image prune?): building again")

    def tags(self) -> list[str]:
        """The tags of all environments in this engine."""
        with plain_errors("listing images"):
            images = self.client.images.list(name=REPOSITORY, filters={"label": TAG_LABEL})
        return sorted({image.labels[TAG_LABEL] for image in images})

    def remove(self, tag: str) -> None:
        """Remove an environment's image; nothing happens where there is none."""
        import docker.errors

        with contextlib.suppress(docker.errors.ImageNotFound), plain_errors(f"removing {reference(tag)}"):
            if self.has(tag):
                self.client.images.remove(reference(tag))

    def prune(self) -> int:
        """Remove what builds left for the builder's cache and nothing refers to. Returns bytes freed."""
        with plain_errors("pruning build stages"):
            filters = {"dangling": True, "label": "org.rwkvflow.stage"}
            return int(self.client.images.prune(filters=filters).get("SpaceReclaimed") or 0)

    # ---- commands ------------------------------------------------------------------------------------------------

    def run(
        self,
        tag: str,
        command: Command,
        workdir: Path,
        limits: StepLimits,
        on_line: OnLine,
        cancel: threading.Event,
    ) -> Result:
        """Run to the end in a container that is gone afterwards, whatever happens. Outputs stand in workdir/out."""
        start = time.monotonic()
        limits = self._possible(limits)
        user = user_for(self.info.get("SecurityOptions") or (), os.getuid(), os.getgid())
        out = workdir / "out"
        out.mkdir(parents=True, exist_ok=True)
        tail = Tail(on_line)
        with (
            plain_errors(f"container of {reference(tag)}"),
            lent(out, user),
            self._container(self._options(tag, command, workdir, limits, user)) as container,
        ):
            disk = DiskLimit(limits.disk, [out])
            watch = _Watch(container, limits, cancel, disk, start)
            watch.attach(command.on_output or tail, tail)  # before the start, so that no line is missed
            container.start()
            exit_code = watch.to_the_end()
            state = _state(container)
        oom = bool(state.get("OOMKilled"))
        if exit_code == KILLED and not (oom or watch.ended):
            oom = bool(limits.memory) and self._is_podman()  # which does not set the flag
            if not oom:
                tail("killed by signal 9, neither by rwkvflow nor for its memory limit")
        return Result(
            exit_code=exit_code,
            seconds=time.monotonic() - start,
            out_of_memory=oom,
            timed_out=watch.timed_out,
            cancelled=watch.cancelled,
            over_disk=disk.exceeded,
            tail=str(tail),
        )

    def sweep(self) -> int:
        """Remove containers whose rwkvflow is gone (kill -9, power cut). Returns how many."""
        import docker.errors

        count = 0
        with plain_errors("listing containers"):
            containers = self.client.containers.list(all=True, filters={"label": RUN_LABEL}, ignore_removed=True)
        for container in containers:
            if is_orphan(container.labels, running=container.status in ("running", "paused")):
                with contextlib.suppress(docker.errors.APIError):
                    container.remove(force=True, v=True)
                    count += 1
        return count

    # ---- how -----------------------------------------------------------------------------------------------------

    def _possible(self, limits: StepLimits) -> StepLimits:
        """The engine refuses more cores than it has; a limit is an upper bound, so take all there are."""
        there = self.info.get("NCPU")
        if limits.cores is None or not there:
            return limits
        return replace(limits, cores=min(limits.cores, float(there)))

    def _is_podman(self) -> bool:
        with plain_errors("docker version"):
            components = self.client.version().get("Components") or ()
        return any("podman" in str(item.get("Name", "")).lower() for item in components)

    def _options(self, tag: str, command: Command, workdir: Path, limits: StepLimits, user: str) -> dict[str, Any]:
        """Arguments of the engine's create call."""
        from docker.types import LogConfig, Mount

        mounts = [Mount("/job/out", str((workdir / "out").resolve()), type="bind")]
        inputs = dict(command.inputs)
        if command.request is not None:
            request = workdir / "request.json"
            request.write_bytes(command.request)
            request.chmod(0o644)
            inputs["request.json"] = request
        for name, path in sorted(inputs.items()):
            check_input(name, path, user)
            place = seen_by_engine(path, workdir / "shipped" / name)
            mounts.append(Mount(f"/job/in/{name}", str(place.resolve()), type="bind", read_only=True))
        api = self.client.api
        tmp = min(TMP_BYTES, limits.memory // 4) if limits.memory else TMP_BYTES
        host = api.create_host_config(
            network_mode="none",
            read_only=True,
            tmpfs={"/tmp": f"rw,noexec,nosuid,nodev,size={tmp}"},  # noqa: S108 - of the container
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            mem_limit=limits.memory,
            memswap_limit=limits.memory,
            pids_limit=limits.pids,
            nano_cpus=int(limits.cores * 1e9) if limits.cores else None,
            init=True,
            mounts=mounts,
            log_config=LogConfig(type="none"),
        )
        return {
            "image": reference(tag),
            "command": list(command.argv),
            "user": user,
            "environment": {**WAITING, **command.env},
            "working_dir": "/job",
            "labels": owner_labels(),
            "host_config": host,
            "network_disabled": True,
            "use_config_proxy": False,  # a proxy's address can hold a password, and there is no network anyway
        }

    @contextlib.contextmanager
    def _container(self, options: dict[str, Any]) -> Iterator[Container]:
        import docker.errors

        try:
            made = self.client.api.create_container(**options)
        except docker.errors.ImageNotFound as error:
            raise EnvironmentMissing(
                f"the Docker engine has no image {options['image']}", remedy="run again: the image step makes it"
            ) from error
        container = self.client.containers.get(made["Id"])
        try:
            yield container
        finally:
            with contextlib.suppress(Exception):  # engine gone: `sweep` finds it by its label
                container.remove(force=True, v=True)


class _Watch:
    """Follows one container's output and ends it when it must."""

    def __init__(
        self, container: Container, limits: StepLimits, cancel: threading.Event, disk: DiskLimit, start: float
    ) -> None:
        self.timed_out = self.cancelled = self.ended = False
        self._container, self._limits, self._cancel, self._start = container, limits, cancel, start
        self._disk = disk

    def attach(self, on_output: OnLine, on_line: OnLine) -> None:
        """Follow standard output and standard error."""
        # Not logs(): its end can be lost (seen with engine 20.10). And with no log driver nothing fills the disk.
        self._output = self._container.attach(stream=True, stdout=True, stderr=True, demux=True)
        self._lines = (LineSplitter(on_output, MESSAGE), LineSplitter(on_line))

    def to_the_end(self) -> int:
        """Exit code; lines are handed on in the calling thread."""
        pieces: queue.Queue[_Piece | None] = queue.Queue(maxsize=1000)
        left = threading.Event()
        threading.Thread(target=self._pump, args=(pieces, left), daemon=True).start()
        try:
            while True:
                self._check()
                try:
                    piece = pieces.get(timeout=POLL_S)
                except queue.Empty:
                    continue
                if piece is None:
                    break
                for splitter, data in zip(self._lines, piece, strict=True):
                    if data:
                        splitter.feed(data)
        finally:
            left.set()
        for splitter in self._lines:
            splitter.close()
        # The output can end before the container does (closed by it, or a lost connection): only its state counts.
        while (state := _state(self._container)).get("Running"):
            self._check()
            time.sleep(POLL_S)
        if state.get("Error"):
            raise StepFailed(f"container: {state['Error']}", remedy=remedy_for(str(state["Error"])))
        return int(state.get("ExitCode", 1))

    def _pump(self, pieces: queue.Queue[_Piece | None], left: threading.Event) -> None:
        def put(piece: _Piece | None) -> None:
            while not left.is_set():
                with contextlib.suppress(queue.Full):
                    pieces.put(piece, timeout=1)
                    break

        with contextlib.suppress(Exception):  # whatever went wrong, the state tells
            for piece in self._output:
                put(piece)
        put(None)

    def _check(self) -> None:
        if self.ended:
            return
        limit = self._limits.time_s
        self.cancelled = self._cancel.is_set()
        self.timed_out = not self.cancelled and limit is not None and time.monotonic() - self._start > limit
        self.ended = self.timed_out or self.cancelled or self._disk.poll()
        if self.ended:
            import docker.errors

            with contextlib.suppress(docker.errors.APIError):  # ended by itself just now
                self._container.kill()


def _state(container: Container) -> dict[str, Any]:
    container.reload()
    return dict(container.attrs["State"])


def reference(tag: str) -> str:
    """Name of an environment's image in the engine."""
    return f"{REPOSITORY}:{tag[:24]}"


def user_for(security_options: Any, uid: int, gid: int) -> str:
    """uid:gid for a container: the caller, so that outputs are theirs; nobody where the caller is root.

    In a rootless engine root inside *is* the caller outside, without any right that the caller lacks.
    """
    if any("name=rootless" in str(option) for option in security_options):
        return "0:0"
    return NOBODY if uid == 0 else f"{uid}:{gid}"


def check_input(name: str, path: Path, user: str) -> None:
    """Say before the start what would be a bare "permission denied" inside. Raises StepFailed."""
    if not path.exists():
        raise StepFailed(f"input {name}: {path} does not exist")
    status = path.stat()
    if os.getuid() == 0 and user == NOBODY and not status.st_mode & stat.S_IROTH:
        raise StepFailed(
            f"input {name}: {path} is readable for its owner only, and the container does not run as root",
            remedy=f"chmod o+r {path}, or run rwkvflow as its owner",
        )


@contextlib.contextmanager
def lent(out: Path, user: str) -> Iterator[None]:
    """Let the container's user write to `out`; what it leaves there is the container's until it is taken over."""
    uid, gid = (int(part) for part in user.split(":"))
    if os.getuid() != 0 or uid == 0:
        yield
        return
    os.chown(out, uid, gid)
    for path in out.iterdir():  # what the caller left for the command
        os.chown(path, uid, gid, follow_symlinks=False)
    try:
        yield
    finally:
        os.chown(out, os.getuid(), os.getgid())
