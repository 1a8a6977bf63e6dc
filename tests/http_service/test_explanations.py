"""``/why``: the explanation of a timeline over HTTP."""

from __future__ import annotations

import json
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING

import pytest
from support.cache_helpers import LSN_A, LSN_B, Gate, Worker, put
from support.helpers import wait_until

if TYPE_CHECKING:
    from http_service.conftest import Whole

    from bbcache.testing import MemoryTimeline


def path_of(whole: Whole, timeline: MemoryTimeline, suffix: str = "") -> str:
    """The path that explains a timeline."""
    tenant_id = whole.bench.harness.shard_of(timeline).tenant_id
    return f"/why/{tenant_id}/{timeline.timeline_id}{suffix}"


def asking_threads() -> int:
    """How many calls of the host `/why` has under way."""
    return sum(thread.name == "bbcache-http-why" for thread in threading.enumerate())


def test_the_text(whole: Whole) -> None:
    """A text for people, as `str` of an explanation gives it."""
    harness = whole.bench.harness
    timeline = harness.prepared()
    harness.prepare(timeline, LSN_A)
    response = whole.routes.respond(path_of(whole, timeline), "")
    assert (response.status, response.content_type) == (200, "text/plain; charset=utf-8")
    text = response.body.decode()
    assert f"entry: at {LSN_A}, " in text
    assert "prepare at 0/1000: up_to_date (" in text


def test_json(whole: Whole) -> None:
    """The same facts for programs, also of a timeline without an entry."""
    harness = whole.bench.harness
    timeline = harness.timeline(LSN_B)
    harness.prepare(timeline, LSN_A)
    response = whole.routes.respond(path_of(whole, timeline, ".json"), "")
    assert response.content_type == "application/json"
    document = json.loads(response.body)
    assert (document["entry"], document["host"]["tip"]) == (None, str(LSN_B))
    assert document["outcomes"][0]["result"] == "tip_moved"


@pytest.mark.parametrize("ids", ["", "x", "/", "0" * 32, f"{'0' * 32}/{'g' * 32}", "\x1b/\x1b"])
def test_what_is_no_id(whole: Whole, ids: str) -> None:
    """A path without two ids is a bad request that says what to ask for."""
    response = whole.routes.respond(f"/why/{ids}", "")
    assert response.status == HTTPStatus.BAD_REQUEST
    assert b"hint: The path is /why/TENANT/TIMELINE" in response.body
    assert b"\x1b" not in response.body


def test_the_page_links_to_each_timeline(whole: Whole) -> None:
    """The link of an entry leads to its explanation."""
    timeline = whole.bench.harness.prepared()
    page = whole.routes.respond("/", "").body.decode()
    assert f'<a href="{path_of(whole, timeline)}">' in page


def test_a_host_that_does_not_answer(whole: Whole) -> None:
    """The client gets what the cache knows; few threads wait for the host, however many ask."""
    harness = whole.bench.harness
    timeline = harness.prepared()
    ask = timeline.get_last_record_lsn
    with Gate() as gate:

        def hang() -> object:
            if threading.current_thread().name == "bbcache-http-why":
                gate()
            return ask()

        put(timeline, "get_last_record_lsn", hang)
        asked = [
            Worker(whole.routes.respond, path_of(whole, timeline, ".json"), "") for _ in range(6)
        ]
        documents = [json.loads(each.result().body) for each in asked]  # type: ignore[attr-defined]
        assert asking_threads() == 4
    for document in documents:
        assert document["host"]["problem"] == "the host did not answer within 1 s"
        assert document["entry"]["lsn"] == str(LSN_A)
    wait_until(lambda: asking_threads() == 0)
    document = json.loads(whole.routes.respond(path_of(whole, timeline, ".json"), "").body)
    assert document["host"]["tip"] == str(LSN_A)
