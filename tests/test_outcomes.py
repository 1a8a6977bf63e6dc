"""The outcomes that metrics, log lines, the status page and the docs share."""

from __future__ import annotations

import copy
import json
import pickle

import pytest

from bbcache import outcomes
from bbcache.outcomes import FillResult, Outcome, Source
from bbcache.page_service import errors as service_errors
from bbcache.page_service import metrics as service_metrics

KINDS = [
    each
    for module in (outcomes, service_errors, service_metrics)
    for each in vars(module).values()
    if isinstance(each, type) and issubclass(each, Outcome) and each.__module__ == module.__name__
    if each is not Outcome
]
MEMBERS = [member for kind in KINDS for member in kind]
LONGEST = 80


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: f"{type(member).__name__}.{member}")
def test_an_outcome_is_its_value_and_carries_its_text(member: Outcome) -> None:
    """A label, a log line and JSON have the value; the text fits a line of a table."""
    assert str(member) == f"{member}" == member.value == json.loads(json.dumps(member))
    assert member.value == member.name.lower()
    assert type(member)(member.value) is member
    assert member.text == member.text.strip()
    assert 0 < len(member.text) <= LONGEST
    assert not set(member.text) & set("|\n")
    assert not member.text.endswith(".")


@pytest.mark.parametrize("kind", KINDS)
def test_each_outcome_has_a_text_of_its_own(kind: type[Outcome]) -> None:
    """No two members of a kind are explained alike, and the kind itself is explained."""
    assert len({member.text for member in kind}) == len(kind) > 1
    assert kind.__doc__ != Outcome.__doc__


def test_an_outcome_survives_pickling_and_copying() -> None:
    """A member is one object in its process, wherever it comes from."""
    for member in MEMBERS:
        assert pickle.loads(pickle.dumps(member)) is member  # noqa: S301 - our own bytes
        assert copy.deepcopy(member) is member


def test_every_source_is_how_a_fill_ends() -> None:
    """A `get_or_prepare` that returns an archive counts under the archive's source."""
    for source in Source:
        assert FillResult(source).text == source.text
