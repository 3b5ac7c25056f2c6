"""What Ollama reads beside a GGUF: `template` and `params` of a repository, and a `Modelfile` beside a model's files.

`ollama run hf.co/owner/name:Q4_K_M` takes `template` and `params` from the root of a hub repository, `ollama create`
takes a Modelfile. Templates there are Go's text/template, which cannot replace in a text: unlike the Jinja template in
the file, this one leaves blank lines inside a turn as they are. What it makes of messages is in
tests/golden/ollama/rendered.json, rendered by Go itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import PurePosixPath

from rwkvflow.documents.formats import family_of, quantization_of
from rwkvflow.engine.prompts import ASSISTANT, RESULT, STOPS, SYSTEM, USER
from rwkvflow.release.artifacts import ReleaseFile, Row, from_bytes
from rwkvflow.worker.model.versions import HYBRIDS

TEMPLATE, PARAMS, MODELFILE = "template", "params", "Modelfile"
#: What most people load comes first; a model without it is begun with the next.
LIKED = ("q4_k_m", "q4_k_s", "iq4_xs", "q5_k_m", "q6_k", "q8_0")
WORLD = "world"
PLAIN = "{{ .Prompt }}"  # of a model whose conversations nobody described

CHAT = f"""\
{{{{- range $i, $_ := .Messages }}}}
{{{{- $last := eq (len (slice $.Messages $i)) 1 }}}}
{{{{- if eq .Role "assistant" }}}}{ASSISTANT}:{{{{ if .Content }}}} {{{{ .Content }}}}{{{{ end }}}}
{{{{- if not $last }}}}

{{{{ end }}}}
{{{{- else }}}}
{{{{- if eq .Role "system" }}}}{SYSTEM}:{{{{ else }}}}{USER}:{{{{ end }}}}
{{{{- if eq .Role "tool" }}}} {RESULT.rstrip()}
{{{{ .Content }}}}
{{{{- else if .Content }}}} {{{{ .Content }}}}
{{{{- end }}}}

{{{{ if $last }}}}{ASSISTANT}:{{{{ end }}}}
{{{{- end }}}}
{{{{- end }}}}"""


def ollama_files(rows: Sequence[Row], license_id: str | None) -> list[ReleaseFile]:
    """The files for a release's GGUFs; none where it has none in one piece."""
    models: dict[str, list[Row]] = {}
    for row in rows:
        if family_of(row.format) == "gguf" and row.files == (row.path,):
            models.setdefault(row.model, []).append(row)
    found = [
        from_bytes(f"{model}/{MODELFILE}", modelfile(files, license_id).encode()) for model, files in models.items()
    ]
    if models and all(_talks(row) for files in models.values() for row in files):
        found.append(from_bytes(TEMPLATE, CHAT.encode()))
        found.append(from_bytes(PARAMS, (json.dumps({"stop": list(STOPS)}, indent=2) + "\n").encode()))
    return found


def modelfile(rows: Sequence[Row], license_id: str | None) -> str:
    """A Modelfile for the files of one model, which lie beside it. Ollama takes what is quoted as it is: no escapes."""
    first, *others = sorted(rows, key=_order)
    lines = ["# ollama create NAME -f Modelfile"]
    lines += [f"# or FROM ./{PurePosixPath(row.path).name}" for row in others]
    lines.append(f"FROM ./{PurePosixPath(first.path).name}")
    if not _brings_its_own(first):
        lines.append(f'TEMPLATE """{CHAT if _talks(first) else PLAIN}"""')
    if _talks(first):
        lines += [f'PARAMETER stop """{stop}"""' for stop in STOPS]
    if license_id:
        lines.append(f"LICENSE {license_id}")
    return "\n".join(lines) + "\n"


def _talks(row: Row) -> bool:
    """Whether the file has the chat template of World models."""
    return row.smoke.get("tokenizer") == WORLD


def _brings_its_own(row: Row) -> bool:
    """Whether the file is of a hybrid, whose folder's chat template it holds: Ollama takes that where none is given."""
    return (row.facts.get("architecture") or {}).get("version") in HYBRIDS


def _order(row: Row) -> tuple[int, int, str]:
    kind = quantization_of(row.format)
    return LIKED.index(kind) if kind in LIKED else len(LIKED), row.size, row.path
