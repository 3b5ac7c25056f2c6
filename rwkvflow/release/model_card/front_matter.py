"""The card's front matter: what the Hugging Face Hub reads of a README.md, as YAML that cannot be misread.

Keys: https://huggingface.co/docs/hub/model-cards. The hub reads YAML 1.2, others 1.1, so every text that is not a
plain word stands in double quotes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rwkvflow.base.text import yaml_shown
from rwkvflow.documents.formats import family_of
from rwkvflow.release.artifacts import Row
from rwkvflow.release.provenance.materials import hub_repositories
from rwkvflow.worker.model.versions import HYBRIDS

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_]*(-[A-Za-z0-9_]+)*")
_WORDS = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"})
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


def front_matter(name: str, rows: Sequence[Row], params: Mapping[str, Any]) -> dict[str, Any]:
    """What the hub is told of a release, in the usual order of keys; what is not known is left out."""
    card = params.get("card") or {}
    kinds = sorted({family_of(row.format) for row in rows})
    versions = sorted({_tag(version) for row in rows if (version := _version(row))})
    tags = ["rwkv", *versions, *kinds, "rwkvflow", *card.get("tags", ())]
    found: dict[str, Any] = {
        "license": card.get("license"),
        "license_name": card.get("license_name"),
        "license_link": card.get("license_link"),
        "language": list(card.get("language", ())),
        "base_model": list(card.get("base_model", ())) or hub_repositories(params),
        "base_model_relation": "quantized",
        "library_name": card.get("library_name") or "rwkv",
        "pipeline_tag": card.get("pipeline_tag") or "text-generation",
        "tags": list(dict.fromkeys(tags)),
        "quantized_by": card.get("quantized_by") or "rwkvflow",
        "model-index": list(_index(rows, params)),
    }
    if not found["base_model"]:
        del found["base_model_relation"]
    return {key: value for key, value in found.items() if value}


def _tag(version: str) -> str:
    return version if version in HYBRIDS else f"rwkv{version[0]}"


def _version(row: Row) -> str | None:
    version = (row.facts.get("architecture") or {}).get("version")
    return str(version) if version else None


def _index(rows: Iterable[Row], params: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    text = params.get("smoke_text")
    for row in rows:
        perplexity = row.smoke.get("perplexity")
        if not isinstance(perplexity, int | float):
            continue
        tokens = row.smoke.get("text_tokens")
        yield {
            "name": row.path.rpartition("/")[2],
            "results": [
                {
                    "task": {"type": "text-generation", "name": "Text generation"},
                    "dataset": {
                        "type": "text",
                        "name": f"first {tokens} tokens of {text or 'the smoke text that ships with rwkvflow'}",
                    },
                    "metrics": [{"type": "perplexity", "name": "Perplexity", "value": perplexity}],
                }
            ],
        }


def yaml_text(value: Mapping[str, Any]) -> str:
    """Block YAML of mappings, lists, texts, numbers and booleans; every reader gets back exactly `value`."""
    return "".join(f"{line}\n" for line in _mapping(value, ""))


def _mapping(value: Mapping[str, Any], indent: str) -> Iterator[str]:
    for key, item in value.items():
        yield from _entry(f"{indent}{_scalar(key)}:", item, indent)


def _entry(start: str, item: Any, indent: str) -> Iterator[str]:
    if isinstance(item, Mapping) and item:
        yield start
        yield from _mapping(item, indent + "  ")
    elif isinstance(item, list | tuple) and item:
        yield start
        for member in item:
            yield from _member(member, indent)
    else:
        yield f"{start} {_scalar(item)}"


def _member(member: Any, indent: str) -> Iterator[str]:
    if isinstance(member, Mapping) and member:
        first, *rest = _mapping(member, indent + "  ")
        yield f"{indent}- {first[len(indent) + 2 :]}"
        yield from rest
    elif isinstance(member, list | tuple) and member:
        raise TypeError("a list of lists does not occur in a card")
    else:
        yield f"{indent}- {_scalar(member)}"


def _scalar(value: Any) -> str:
    if isinstance(value, Mapping | list | tuple):
        return "{}" if isinstance(value, Mapping) else "[]"
    if isinstance(value, str):
        if _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
            return value
        return yaml_shown(_ESCAPED.sub(_escape, json.dumps(value, ensure_ascii=False)))
    if isinstance(value, float):
        return repr(value) if "e" not in repr(value) else f"{value:.12f}".rstrip("0")
    return json.dumps(value)


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"
