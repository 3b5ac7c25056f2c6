"""The server does what its own OpenAPI page says, and whatever is sent, it answers as that says."""

from __future__ import annotations

import os

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable, UnsatisfiedAssumption
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from rwkvflow.serve.guard import Guard, Rules
from rwkvflow.serve.openai.openapi import CALLS, described
from rwkvflow.serve.openai.work import RequestLimits

from .conftest import Running, Start

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
    checks.ignored_auth,
]
# Not positive_data_acceptance: what is well formed may name a model that is not there, or a token without a meaning.
MODEL = "rwkv7-demo-q8_0"


@pytest.fixture(scope="module")
def running(start: Start) -> Running:
    return start(
        [MODEL], rules=Rules(keys=("secret",), body=1 << 16, state=1 << 16), limits=RequestLimits(prompt=200, tokens=20)
    )


SCHEMA = schemathesis.openapi.from_dict(described())
HEADERS = {"authorization": "Bearer secret"}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
@pytest.mark.parametrize(("method", "path"), list(CALLS))
@settings(
    max_examples=200 if os.environ.get("RWKVFLOW_SOAK") else 6,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_whatever_is_sent_is_answered_as_the_page_says(
    data: st.DataObject, method: str, path: str, mode: GenerationMode, running: Running
) -> None:
    operation = SCHEMA[path][method.upper()]
    try:
        case = data.draw(operation.as_strategy(generation_mode=mode))
    except (Unsatisfiable, UnsatisfiedAssumption):  # nothing about it can be wrong
        return
    answer = case.call(base_url=running.url, headers=HEADERS, timeout=60)
    assert answer.status_code < 500 or answer.status_code == 503
    case.validate_response(answer, headers=HEADERS, checks=CHECKS)


def test_every_route_is_described_and_nothing_else(running: Running) -> None:
    app = running.server.config.app
    assert isinstance(app, Guard)
    routes = {
        (method.lower(), route.path)
        for route in app.app.routes  # type: ignore[attr-defined]
        for method in route.methods
        if method != "HEAD"
    }
    assert set(CALLS) == routes
    page = httpx.get(f"{running.url}/openapi.json", headers={"authorization": "Bearer secret"}).json()
    assert page == described()
