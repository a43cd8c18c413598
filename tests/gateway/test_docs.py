"""The gateway's page: its examples run as written, and its table of errors is the code's."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from headwater.core.errors import ConflictError, HeadwaterError, InvalidError, MissingError, RefusedError, UpstreamError
from headwater.gateway import refusals
from headwater.gateway.errors import Failure, failure_of
from toy.desk import Desk, open_desk

PAGE = Path(__file__).parents[2] / "docs" / "gateway.md"
KINDS = {400: InvalidError, 403: RefusedError, 404: MissingError, 409: ConflictError, 503: UpstreamError}


@pytest.fixture(scope="module")
def documented(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A gateway whose models have the names the page uses."""
    with open_desk(tmp_path_factory.mktemp("home")) as desk:
        models = desk.toy.flow.parts.models
        for ours, theirs in (("toy", "smollm2-135m"), ("toy-grounded", "smollm2-135m-grounded")):
            models[theirs] = dataclasses.replace(models[ours], name=theirs)  # type: ignore[index]
        yield desk


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def test_the_python_examples_run_as_written(
    documented: Desk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In order, in one session, as a reader would run them."""
    monkeypatch.setenv("HEADWATER_URL", documented.url)
    monkeypatch.setenv("HEADWATER_KEY", documented.secret)
    session: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, session)

    printed = capsys.readouterr().out
    assert "You said:" in printed
    assert "'status': 'pending'" in printed
    assert re.search(r"^\['(Rivers|Stones|Clouds)'\]$", printed, re.MULTILINE)
    assert str(session["call"]).startswith("call_")


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_shell_examples_run_as_written(documented: Desk) -> None:
    """Each block by itself, with the two variables the page sets; curl fails on any error status."""
    environment = {**os.environ, "HEADWATER_URL": documented.url, "HEADWATER_KEY": documented.secret}
    outputs = [
        subprocess.run(["sh", "-e", "-c", block], env=environment, capture_output=True, text=True, check=True).stdout
        for block in blocks("sh")
    ]

    assert "You said:" in outputs[0]
    assert '"status":"pending"' in outputs[1] or '"status":"final"' in outputs[1]
    assert '"available"' in outputs[1]


def test_the_table_of_errors_is_true() -> None:
    """Every code on the page is told with the status beside it, and retried where the page says so."""
    rows = re.findall(r"^\| (\d{3}) \| (`.*?) \| (.*?) ?\|$", PAGE.read_text("utf-8"), re.MULTILINE)
    assert len(rows) > 15
    for status, codes, note in rows:
        for code in re.findall(r"`(\w+)`", codes):
            kind = KINDS.get(int(status), HeadwaterError)
            if code == "internal_error":
                failure = failure_of(ValueError())
            elif int(status) == 502:  # no error of ours: what another server said, told as such
                failure = Failure(502, code, "x")
                assert f'Failure(502, "{code}"' in Path(refusals.__file__).read_text("utf-8")
            else:
                failure = failure_of(
                    kind("x", code=code) if kind is not HeadwaterError else InvalidError("x", code=code)
                )
            assert (failure.code, failure.status) == (code, int(status)), code
            if "retried" in note:
                assert failure.retried == ("not retried" not in note), code


def test_every_route_on_the_page_is_served_and_every_other_is_on_a_page_of_its_own(documented: Desk) -> None:
    """The page's routes are those of the API's description, with OpenAI's beside them; no route is left unsaid."""
    route = r"`(?:GET|POST|PUT|DELETE) (/\S*?)`"
    named = set(re.findall(route, PAGE.read_text("utf-8")))
    anywhere = {found for page in PAGE.parent.glob("*.md") for found in re.findall(route, page.read_text("utf-8"))}
    served = set(documented.get("/openapi.json")["paths"])
    openai = {
        *("/v1/models", "/v1/models/{id}", "/v1/chat/completions"),
        *("/v1/completions", "/v1/responses", "/v1/embeddings"),
    }
    optional = {"/v1/receipts/{id}/bundle", "/docs", "/openapi.json"}

    assert named <= served | openai | optional
    assert served - openai <= anywhere
