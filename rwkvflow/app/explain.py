"""Questions about a run, answered without running anything: plan, explain, render, engine diff."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rwkvflow.app import engine_diff
from rwkvflow.app.pipeline import Prepared
from rwkvflow.base.errors import StepFailed, UsageError
from rwkvflow.documents.yaml.nearest import did_you_mean, one_of
from rwkvflow.execute.actions import probes
from rwkvflow.plan.explain import differences
from rwkvflow.plan.plan import Standing, input_digests, survey
from rwkvflow.plan.step import Input, Json, LocalInput, Ref, Step, expected, key_of
from rwkvflow.stages.image import dockerfile
from rwkvflow.store.record import Output
from rwkvflow.store.store import Store, run_id


class StoreShelf:
    """The store as a survey sees it."""

    def __init__(self, prepared: Prepared) -> None:
        self.store = prepared.store
        self.run = run_id(prepared.request.recipe)
        self.probes = probes(prepared.store, prepared.sandbox)

    def digests(self, step: Step, key: str) -> Mapping[str, str] | None:
        """Output name → digest of a finished step."""
        record = self.store.lookup(key, expected(step))
        return None if record is None else {name: output.digest for name, output in record.outputs.items()}

    def intact(self, step: Step, key: str) -> bool:
        """Whether what the step made is still there."""
        record = self.store.lookup(key, expected(step))
        outputs: Mapping[str, Output] = record.outputs if record else {}
        probe = self.probes.get(step.action)
        return (
            record is not None
            and all(self.store.obtainable(output) for output in outputs.values())
            and (probe is None or probe(step, key, outputs))
        )

    def last(self, step: str) -> Mapping[str, Json] | None:
        """What the step's key was made of in the last run."""
        return self.store.recall(self.run, step)


def standing(prepared: Prepared) -> list[Standing]:
    """What a run would do, for `rwkvflow plan`."""
    return survey(prepared.plan, StoreShelf(prepared))


def missing(prepared: Prepared) -> dict[str, str]:
    """Steps that a release needs and that nobody has carried out, each with the reason; fetches what others made."""
    shelf = StoreShelf(prepared)
    rows = {row.step: row for row in survey(prepared.plan, shelf)}
    publishing = [step for step in prepared.plan if step.stage == "publish"]
    needed = dict.fromkeys(ref.step for step in publishing for ref in step.inputs.values() if isinstance(ref, Ref))
    found = {name: rows[name].why for name in needed if rows[name].state != "cached"}
    if not found and any(rows[step.id].state != "cached" for step in publishing):
        for name in needed:
            record = prepared.store.lookup(rows[name].key or "", expected(prepared.plan.steps[name]))
            if record is None or not prepared.store.bring(record.outputs.values()):
                found[name] = "what it made is gone or damaged"
    return found


def publishing(prepared: Prepared) -> list[str]:
    """What publishing would change at each place; asks the places, changes nothing. For `publish --dry-run`.

    Call `missing` first: everything that the release needs has to be there. Raises PublishError.
    """
    from rwkvflow.publish.places import publisher
    from rwkvflow.release.release import assemble

    shelf, store = StoreShelf(prepared), prepared.store
    lines: list[str] = []
    for step in prepared.plan:
        parts = parts_now(prepared, step, shelf) if step.stage == "publish" else None
        if parts is None:
            continue
        digests: dict[str, str] = parts["inputs"]
        paths = {name: _place(store, step.inputs[name], digest) for name, digest in digests.items()}
        inputs = {name: path for name, path in paths.items() if path is not None}
        release = assemble(step.params["release"], inputs, digests, step.local)
        lines += publisher(step.params, Path(step.local["folder"]), key_of(parts)).plan(release).lines()
    return lines


def _place(store: Store, value: Input, digest: str) -> Path | None:
    return value.path if isinstance(value, LocalInput) else store.path(digest)


def explanation(prepared: Prepared, name: str) -> list[str]:
    """What a step is, how it stands, and what changed since its last run. Raises UsageError for an unknown step."""
    if name not in prepared.plan.steps:
        longer = [step for step in prepared.plan.steps if step.startswith(f"{name}@")]
        if len(longer) != 1:
            near = f"; did you mean {longer[0]!r}?" if longer else did_you_mean(name, prepared.plan.steps)
            within = [step for step in prepared.plan.steps if name in step]
            remedy = f"steps of that name: {one_of(within, 6)}" if within else "`rwkvflow plan` lists the steps"
            raise UsageError(f"there is no step {name}{near}", remedy=remedy)
        name = longer[0]
    step = prepared.plan.steps[name]
    shelf = StoreShelf(prepared)
    rows = {row.step: row for row in survey(prepared.plan, shelf)}
    row = rows[name]
    lines = [f"{name}: {row.state}" + (f", {row.why}" if row.why else "")]
    if row.key:
        lines.append(f"  key {row.key}")
    for label, value in sorted(step.inputs.items()):
        origin = f"{value.step}:{value.output}" if isinstance(value, Ref) else str(value.path.name)
        lines.append(f"  input {label} from {origin}")
    last = shelf.last(name)
    if last is None:
        return [*lines, "  it has not ended well for this recipe yet"]
    parts = parts_now(prepared, step, shelf)
    if parts is None:
        return [*lines, f"  its key is known once {row.why.removeprefix('for ')} has run"]
    changes = differences(last, parts)
    return [*lines, *(f"  changed since its last run: {change}" for change in changes)] + (
        [] if changes else ["  nothing changed since its last run"]
    )


def parts_now(prepared: Prepared, step: Step, shelf: StoreShelf) -> dict[str, Json] | None:
    """What a step's key is made of now; None while an input is not known."""
    known: dict[Ref, str] = {}
    for row in survey(prepared.plan, shelf):
        if row.state != "waits" and row.key is not None:
            known.update(
                {
                    Ref(row.step, name): d
                    for name, d in (shelf.digests(prepared.plan.steps[row.step], row.key) or {}).items()
                }
            )
    digests = input_digests(step, known.get)
    return None if digests is None else step.parts(digests)


def dockerfiles(prepared: Prepared) -> dict[str, str]:
    """The rendered Dockerfile of each image, whatever sandbox the run would take."""
    return {name: dockerfile(prepared.blueprint, name) for name in prepared.blueprint.images}


def engine_patches(prepared: Prepared) -> list[str]:
    """The CMake patch of each engine, as a unified diff; the engines must have been built."""
    lines = []
    for row in standing(prepared):
        if prepared.plan.steps[row.step].stage != "engine":
            continue
        record = prepared.store.lookup(row.key, expected(prepared.plan.steps[row.step])) if row.key else None
        folder = prepared.store.path(record.outputs["engine"].digest) if record else None
        if folder is None:
            raise StepFailed(f"{row.step} has not been built", remedy="run `rwkvflow engine build` first")
        lines += [f"# {row.step}", engine_diff.render(*engine_diff.read(folder)).rstrip()]
    return lines
