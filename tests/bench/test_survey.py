"""What there is to run, and what is worth its time."""

from __future__ import annotations

import pytest

from portconv.bench import report, survey
from portconv.bench.runner import Task
from tests.bench.helpers import SETTINGS, TINY


def test_survey():
    found = survey.survey([TINY], ["numpy"], SETTINGS)
    offers = found["numpy"]["devices"]["cpu"]["layers"][TINY.id]
    assert offers["chosen"] in {c["engine"] for c in offers["candidates"] if c["why_not"] is None}
    with pytest.raises(survey.SurveyError, match="`backend` must be one of"):
        survey.survey([TINY], ["nonesuch"], SETTINGS)


def found_of(**seconds):
    candidates = [
        {"engine": name, "seconds": None if isinstance(s, str) else s, "why_not": s if isinstance(s, str) else None}
        for name, s in seconds.items()
    ]
    offers = {TINY.id: {"chosen": "a", "candidates": candidates}}
    return {"lib": {"devices": {"dev": {"hardware": "", "layers": offers}}}}


def test_engines_worth_their_time_are_chosen():
    found = found_of(a=1.0, b=29.0, c=31.0, d="because")
    choice = survey.choose(found, [TINY], [], [])
    assert [task.engine for task in choice.tasks["lib"]] == ["auto", "a", "b"]
    assert {task.engine: why for (_, task), why in choice.left_out.items()} == {
        "c": "its estimate is 31 times the least",
        "d": "because",
    }
    choice = survey.choose(found, [TINY], ["c", "d"], ["dev"])
    assert choice.tasks == {"lib": [Task(TINY, "c", "dev")]}
    assert choice.left_out == {("lib", Task(TINY, "d", "dev")): "because"}


def test_the_librarys_own_routine_comes_beside_portconvs_choice_whatever_its_estimate():
    choice = survey.choose(found_of(a=1.0, b=31.0, native=1000.0), [TINY], [], [])
    assert [task.engine for task in choice.tasks["lib"]] == ["auto", "native", "a"]


def test_dask_and_checking_libraries_must_be_asked_for(monkeypatch):
    handlers = []
    monkeypatch.setattr(survey, "serve", lambda hello, handle: handlers.append(handle))
    monkeypatch.setattr(survey.portconv, "available_backends", lambda: ["array_api_strict", "dask", "numpy"])
    monkeypatch.setattr(survey, "_backend", lambda name, layers, layout: {"devices": {}})
    survey.main()
    (handle,) = handlers
    for named, found in (None, ["numpy"]), (["dask"], ["dask"]):
        assert list(handle({"backends": named, "layers": [], "layout": "NCHW"})["backends"]) == found


def test_unknown_engines_and_devices():
    with pytest.raises(survey.SurveyError, match="engine 'x' is none of a, auto"):
        survey.choose(found_of(a=1.0), [TINY], ["x"], [])
    with pytest.raises(survey.SurveyError, match="device 'x' is none of dev"):
        survey.choose(found_of(a=1.0), [TINY], [], ["x"])


def test_a_layer_that_nothing_can_run():
    found = found_of(a=1.0)
    found["lib"]["devices"]["dev"]["layers"][TINY.id] = {"why_not": "too large"}
    choice = survey.choose(found, [TINY], [], [])
    assert choice.tasks == {}
    assert report.without_row([TINY], {}, choice.left_out) == ["left out: lib dev auto, given/tiny: too large"]
