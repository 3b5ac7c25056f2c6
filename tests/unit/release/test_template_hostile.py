"""A card's template of a stranger's: no insides of Python, no end of time, memory or text, no word of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rwkvflow.base.errors import PublishError
from rwkvflow.release.model_card import template as module
from rwkvflow.release.model_card.template import render_apart

TOLD: dict[str, Any] = {"name": "demo", "rows": [], "numbers": [1, 2]}


@pytest.mark.parametrize(
    "text",
    [
        "{{ ''.__class__.__mro__ }}",
        "{{ numbers.__class__.__base__.__subclasses__() }}",
        "{{ name.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__['os'].environ }}",
        "{{ numbers.append(3) }}",
        "{{ '{0.__class__}'.format(name) }}",
        "{% include '/etc/passwd' %}",
        "{% include '../../../../../../etc/passwd' %}",
        "{% extends '../card.py' %}",
        "{% import 'os' as os %}",
        "{{ open('/etc/passwd') }}",
        "{{ range(10000000) }}",
        "{{ ([[]] * 3) | map('attribute', '__class__') | list | first | attr('__mro__') }}",
    ],
)
def test_no_template_gets_out(text: str) -> None:
    with pytest.raises(PublishError, match="the card's template"):
        render_apart(text, TOLD)


@pytest.mark.parametrize(
    "text",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{{ 'x' * 9999999999 }}",
        "{{ 10 ** (10 ** 9) }}",
        "{% set ns = namespace(x='x') %}{% for a in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}",
    ],
)
def test_no_template_goes_on_for_ever(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SECONDS", 3)
    with pytest.raises(PublishError, match="the card's template"):
        render_apart(text, TOLD)


def test_a_template_knows_nothing_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "canary")
    assert render_apart("{{ name }} {{ numbers | sum }} {{ 1536 | size }}\n", TOLD) == "demo 3 1.54 kB\n"
    text = "{% for key, value in numbers.__dict__ %}{% endfor %}"
    with pytest.raises(PublishError) as caught:
        render_apart(text, TOLD)
    assert "canary" not in str(caught.value)
    assert str(Path.home()) not in str(caught.value) or str(Path.home()) == "/"
