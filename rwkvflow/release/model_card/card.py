"""The card of a release: README.md from a Jinja template, the shipped one or one of the user's.

A template of the user's sees what the shipped one sees (`context` below) and may build on it:

    {% extends "README.md.j2" %}
    {% block about %}Trained by me on …{% endblock %}

Blocks: head, about, files, choice, samples, running, origin, again, check. It is rendered in a sandbox: a recipe may
come from anybody.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rwkvflow.base.text import bytes_text, shown
from rwkvflow.documents.formats import family_of
from rwkvflow.release.artifacts import Row
from rwkvflow.release.choose import Runnable, best_for_some, of_rows
from rwkvflow.release.model_card.front_matter import front_matter, yaml_text
from rwkvflow.release.model_card.runtimes import first_commands, runtimes
from rwkvflow.release.model_card.template import render_apart
from rwkvflow.release.names import (
    CATALOGUE,
    DOMAIN_PLOT,
    ENGINE,
    LOCK,
    PLOT,
    PROVENANCE,
    QUALITY,
    RECIPE,
    SBOM,
    SIGNATURE,
    SUMS,
)
from rwkvflow.release.provenance.materials import public_uri, shown_source
from rwkvflow.worker.model.variants import label_of

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = Path(__file__).resolve().parent / "templates"
DEFAULT = "README.md.j2"


def render_card(
    name: str,
    rows: Sequence[Row],
    left_out: Mapping[str, str],
    params: Mapping[str, Any],
    *,
    template: str | None = None,
    signed_by: str | None = None,
    plots: Collection[str] = (),
) -> str:
    """README.md. Deterministic: nothing of times, machines or paths. `template` is the text of the user's own.

    Whoever wrote them, no control sequences are left in it: people read cards on terminals, too.

    Raises PublishError, with the line, where a template of the user's has a mistake.
    """
    told = context(name, rows, left_out, params, signed_by, plots)
    if template is not None:
        return shown(render_apart(template, told))
    return shown(environment_of().get_template(DEFAULT).render(told))


def environment_of() -> Environment:
    """Jinja as cards are rendered with it: no attribute of Python's insides, nothing that changes what it is given."""
    from jinja2 import FileSystemLoader, StrictUndefined
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; what comes from recipes passes a filter
    )
    environment.filters |= {
        "size": bytes_text,
        "cell": cell,
        "figure": figure,
        "percent": percent,
        "small": small,
        "counts": counts,
        "plain_percent": plain_percent,
        "share": share,
        "rate": rate,
        "quoted": quoted,
        "count": human_count,
        "times": times,
        "source": shown_source,
        "yaml": yaml_text,
    }
    return environment


def context(
    name: str,
    rows: Sequence[Row],
    left_out: Mapping[str, str],
    params: Mapping[str, Any],
    signed_by: str | None,
    plots: Collection[str],
) -> dict[str, Any]:
    """What a template sees."""
    card = params.get("card") or {}
    to = str(params.get("to") or "")
    hub = to.removeprefix("hf://").rstrip("/") if to.startswith("hf://") else None
    return {
        "name": name,
        "title": card.get("title") or name,
        "about": card.get("about") or "",
        "front_matter": front_matter(name, rows, params),
        "rows": rows,
        "left_out": left_out,
        "picks": _picks(rows),
        "first": first_commands(rows, hub),
        "notes": _notes(rows),
        "proofs": _proofs(rows),
        "domains": list(dict.fromkeys(name for row in rows for name in row.quality.get("domains", ()))),
        "machines": _machines(rows),
        "params": params,
        "targets": [target for target in params.get("targets", ()) if f"{ENGINE}/{target}" not in left_out],
        "models": {model: dict(locked) | _model(rows, model, locked) for model, locked in params["models"].items()},
        "runtimes": runtimes(rows),
        "hub": hub,
        "signed_by": signed_by,
        "plot": PLOT if PLOT in plots else None,
        "domain_plot": DOMAIN_PLOT if DOMAIN_PLOT in plots else None,
        "files": {
            "lock": LOCK,
            "recipe": RECIPE,
            "provenance": PROVENANCE,
            "sbom": SBOM,
            "sums": SUMS,
            "signature": SIGNATURE,
            "quality": QUALITY,
            "catalogue": CATALOGUE,
            "engine": ENGINE,
        },
    }


def _model(rows: Sequence[Row], model: str, locked: Mapping[str, Any]) -> dict[str, Any]:
    """What the artifacts of a model say of it, and whether others can fetch its checkpoint."""
    facts = next((row.facts for row in rows if row.model == model and row.facts.get("architecture")), {})
    of = facts.get("architecture") or {}
    words = [label_of(str(of["version"]))] if of.get("version") else []
    if of.get("n_layer") and of.get("n_embd"):
        words.append(f"{of['n_layer']} layers of {of['n_embd']}")
    return {
        "architecture": ", ".join(words) or None,
        "parameters": facts.get("parameters"),
        "remote": public_uri(str(locked["source"])) is not None,
    }


@dataclass(frozen=True)
class Pick:
    """A file that is the best of its family for some size of memory, with what a reader chooses by."""

    path: str
    size: int
    memory: int
    kl_divergence: float | None
    speed_class: float | None
    runtimes: tuple[str, ...]


def _picks(rows: Sequence[Row]) -> list[Pick]:
    """Of each model and family of formats, the files that are the best for some size of memory."""
    kinds: dict[tuple[str, str], list[Runnable]] = {}
    for item in of_rows(rows):
        kinds.setdefault((item.model, family_of(item.format)), []).append(item)
    return [
        Pick(item.path, item.size, item.memory, item.kl_divergence, item.speed_class, item.runtimes)
        for listed in kinds.values()
        for item in best_for_some(listed)
    ]


def _notes(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """What the smoke stage remarked, with the files that it is about; no files where it is about all of them."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        proof = row.smoke.get("proof") if row.smoke.get("evaluated") == "runtime" else None
        not_for = row.smoke.get("not_for") or {}
        for note in (row.smoke.get("note"), proof, *(f"not for {one}: {why}" for one, why in not_for.items())):
            if note:
                notes.setdefault(str(note), []).append(row.path)
    return [(note, [] if len(paths) == len(rows) else paths) for note, paths in notes.items()]


def _proofs(rows: Sequence[Row]) -> list[tuple[str, list[str]]]:
    """How files were tested that no runtime of their own ran, with these files."""
    proofs: dict[str, list[str]] = {}
    for row in rows:
        if row.smoke.get("evaluated") == "tensors":
            consumer = row.smoke.get("consumer") or "its package"
            proofs.setdefault(str(row.smoke.get("proof") or f"{consumer} read it"), []).append(row.path)
    return list(proofs.items())


def _machines(rows: Sequence[Row]) -> list[str]:
    """Where speeds were measured: "8 threads of a processor", most threads first."""
    speeds = [row.smoke["speed"] for row in rows if row.smoke.get("speed")]
    found = {(speed.get("cpu") or "", speed.get("threads")) for speed in speeds}
    ordered = sorted(found, key=lambda one: (one[0], -(one[1] or 0)))
    return [f"{cpu} ({threads} thread{'s' if threads != 1 else ''})" if threads else cpu for cpu, threads in ordered]


def human_count(count: object) -> str:
    """191034368 → "191 M"."""
    if not isinstance(count, int):
        return "–"
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if count >= size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 100 else f"{value:.1f} {unit}"
    return str(count)


def cell(text: object) -> str:
    """Text that may stand in a cell of a Markdown table, or on any one line: no markup of its own."""
    flat = " ".join(str(text).split())
    for character in "\\|`*_[]":
        flat = flat.replace(character, "\\" + character)
    return flat.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def figure(value: object, digits: int) -> str:
    """A measured number, or a dash where there is none."""
    return f"{value:.{digits}f}" if isinstance(value, float | int) else "–"


def percent(value: object) -> str:
    """0.0123 → "+1.23 %"."""
    return f"{value:+.2%}".replace("%", " %") if isinstance(value, float | int) else "–"


def plain_percent(value: object) -> str:
    """0.0123 → "1.23 %": of what has no sign."""
    return percent(value).removeprefix("+")


def counts(found: Mapping[str, object]) -> str:
    """{"q4_k": 12, "q6_k": 2} → "q4_k: 12, q6_k: 2"; safe in Markdown."""
    return cell(", ".join(f"{key}: {value}" for key, value in found.items()))


def small(value: object) -> str:
    """A measured number of any magnitude, in full: 0.000012."""
    if not isinstance(value, float | int):
        return "–"
    return f"{value:.6f}".rstrip("0").rstrip(".") if value < 1 else f"{value:.3g}"


def share(value: object) -> str:
    """0.987 → "98.7 %"."""
    return f"{value:.1%}".replace("%", " %") if isinstance(value, float | int) else "–"


def rate(value: object) -> str:
    """Three digits: 8.25, 81.2, 15400."""
    if not isinstance(value, float | int):
        return "–"
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def times(value: object) -> str:
    """3.5 → "3.5×"."""
    return f"{value:g}×" if isinstance(value, float | int) else "–"


def quoted(text: object) -> str:
    """Text as code on one line, whatever is in it."""
    flat = " ".join(str(text).split()).replace("`", "'")
    return f"`{flat}`"
