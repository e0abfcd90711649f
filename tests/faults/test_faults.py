"""A short part of `make faults`, two of its kinds of seeds, on fewer clips. The loss of the whole cluster is a long test."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from tests.faults.__main__ import CODE, code_of, outcomes, seeds_left
from tests.faults.bench import Bench
from tests.faults.nodes import TwoNodes
from tests.faults.run_trial import carry_out
from tests.faults.seeds import KINDS, Fault, Step, Trial, steps_of, trial

# "sync receipts": the receipt is there, and its worker dies before it can say so. Machines that go: test_lost_nodes.py.
SHORT = (
    ("index", ("step",), "worker sync receipts"),
    # What it put stays under a name that the next attempt does not use: it has the time of the failure in it. In a minute
    # tests/pipelines/test_retry.py breaks off at each file of a shard, this one too.
    pytest.param("index", ("step",), "worker sync failures", marks=pytest.mark.long),
    ("answer", ("encoder",), ""),
)


@pytest.fixture(scope="module")
def bench(folder: Path, cluster: TwoNodes) -> Bench:
    made = Bench(folder, cluster, copies=6, questions=8)
    made.prepare()
    return made


def first_seed(steps: list[Step], job: str, kinds: tuple[str, ...], step: str) -> Trial:
    """The trial of the first seed that is of such kinds, and early: so short a run may be over before a late one."""
    for seed in itertools.count():
        found = trial(seed, steps)
        first = found.faults[0]
        same = tuple(fault.kind for fault in found.faults) == kinds and first.step == step
        if found.job == job and same and first.after + first.delay_s < 0.3:
            return found
    raise AssertionError("seeds do not end")


@pytest.mark.parametrize(("job", "kinds", "step"), SHORT, ids=str)
def test_nothing_lost_nothing_twice(bench: Bench, job: str, kinds: tuple[str, ...], step: str) -> None:
    asked = first_seed(bench.steps, job, kinds, step)
    print(f"seed {asked.seed}: {', '.join(map(str, asked.faults))}")  # noqa: T201 - shown where the test fails
    outcome = carry_out(bench, asked)
    assert outcome.wrong == [] and outcome.runs == 1


@pytest.mark.long
def test_the_head_is_lost_and_the_job_given_again(bench: Bench) -> None:
    outcome = carry_out(bench, Trial(0, "index", (Fault("head", after=0.3),)))
    assert outcome.wrong == [] and outcome.runs == 2


def test_the_steps_of_a_commit_are_found(bench: Bench) -> None:
    """Each file of a shard, the receipt behind them, and both sides of each: before it is put, and once it is."""
    found = {(step.job, step.name) for step in bench.steps}
    for table in ("tokens", "cells", "failures", "videos", "receipts"):
        assert {("index", f"worker rename {table}"), ("index", f"worker sync {table}")} <= found
    for table in ("answers", "receipts"):
        assert {("answer", f"worker rename {table}"), ("answer", f"worker sync {table}")} <= found
    for name in (
        "link store.json",
        "link lease",
        "link plan",
        "rename runs",
        "rename run_report.json",
        "remove .tmp",
    ):
        assert ("index", f"driver {name}") in found


def test_outcomes_count_for_the_code_that_they_are_of(tmp_path: Path) -> None:
    for folder in CODE:
        (tmp_path / folder).mkdir(parents=True)
    code = code_of(tmp_path)
    (tmp_path / "jobs" / "index.py").write_text("run()")
    assert code_of(tmp_path) != code
    lines = [{"seed": 7, "outcome": "ok"}] + [
        {"seed": seed, "code": made, "outcome": outcome}
        for seed, made, outcome in (
            (0, code, "ok"),
            (1, "other", "ok"),
            (2, code, "wrong"),
            (3, code, "missed"),
        )
    ]
    file = tmp_path / "outcomes.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"seed": 4,')
    known = outcomes(file, code)
    assert seeds_left(None, known) == list(range(1, 96))
    assert seeds_left("0-1", known) == [0, 1] and seeds_left("0,2", known) == [0, 2]


def test_seeds_cover_every_step_and_kind() -> None:
    steps = steps_of("index", "1 worker rename tokens\n2 worker rename tokens\n1 driver link plan\n" * 8)
    assert [(step.name, step.most) for step in steps] == [
        ("driver link plan", 4),
        ("worker rename tokens", 4),
    ]
    trials = [trial(seed, steps) for seed in range(96)]
    assert trials == [trial(seed, steps) for seed in range(96)]
    faults = [(each.job, fault) for each in trials for fault in each.faults]
    assert {fault.step for _, fault in faults} == {"", "driver link plan", "worker rename tokens"}
    assert {(job, fault.kind) for job, fault in faults if fault.kind != "step"} == {
        (job, kind) for job, kinds in KINDS.items() for kind in kinds
    }
