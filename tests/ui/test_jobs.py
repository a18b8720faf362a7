"""Jobs have the edits of their tab on, leave nothing behind, and can be stopped."""

import warnings
from concurrent.futures import CancelledError, ThreadPoolExecutor
from threading import Event

import pytest
from support.commands import LIMIT
from support.edits import random_edit, same, weights, with_edits
from support.trained import facts, trained

from knowedit import InputError, ask, edits_on
from knowedit.errors import KnoweditWarning
from knowedit.ui.jobs import Desk, Doing, Report, Stopped


@pytest.fixture
def desk():
    desk = Desk(trained())
    yield desk
    desk.worker.shutdown()


def run(job):
    steps = list(job)
    return job.value, steps


def test_a_job_has_its_edits_on_and_leaves_the_model_as_it_was(desk):
    model, base = desk.model, weights(desk.model)
    edits = [random_edit(model, 0, 1), random_edit(model, 1, seed=1)]
    seen, _ = run(desk.job(lambda report: weights(model), lambda: edits))
    assert same(seen, with_edits(model, base, *edits))
    assert same(weights(model), base) and not edits_on(model)


def test_an_edit_made_on_another_can_stay_when_that_one_is_set_aside(desk):
    model = desk.model
    first = random_edit(model, 0)
    second, _ = run(desk.job(lambda report: random_edit(model, 0, seed=1), lambda: [first]))
    seen, _ = run(desk.job(lambda report: weights(model), lambda: [second]))
    assert same(seen, with_edits(model, weights(model), second))


def test_a_stopped_job_ends_at_the_next_block_and_takes_its_edits_off(desk):
    model, base = desk.model, weights(desk.model)
    query = model.query_of(facts()[0])

    def work(report):
        job.stop()
        return ask(model, [query])

    edit = random_edit(model, 0)
    job = desk.job(work, lambda: [edit])
    with pytest.raises(Stopped):
        run(job)
    assert same(weights(model), base) and not edits_on(model)
    (answer,), _ = run(desk.job(lambda report: ask(model, [query])))
    assert answer.known


def test_a_desk_that_is_closed_stops_what_runs_and_waits():
    desk, begun = Desk(trained()), Event()
    query = trained().query_of(facts()[0])

    def work(report):
        begun.set()
        while True:
            ask(desk.model, [query])

    running, waiting = desk.job(work), desk.job(lambda report: None)
    with ThreadPoolExecutor(2) as tabs:
        ends = [tabs.submit(list, running)]
        assert begun.wait(LIMIT)
        ends.append(tabs.submit(list, waiting))
        desk.close()
        for end in ends:
            with pytest.raises((Stopped, CancelledError)):
                end.result(LIMIT)
    assert not edits_on(desk.model)


def test_a_job_that_is_given_up_in_the_middle_stops(desk):
    given_up = Event()

    def work(report):
        report("first")
        given_up.wait(60)
        report("second")

    job = iter(desk.job(work))
    assert next(job).what in ("first", "waiting for what was asked before, here or in another tab")
    job.close()
    given_up.set()
    after = desk.job(lambda report: "done")
    assert run(after)[0] == "done"


def test_a_job_waits_for_the_one_before_it_and_says_so(desk):
    go_on = Event()
    desk.worker.submit(go_on.wait, 60)
    waiting = iter(desk.job(lambda report: None))
    assert next(waiting).what.startswith("waiting")
    go_on.set()
    assert list(waiting) == []


def test_a_job_that_waits_is_stopped_at_once(desk):
    go_on = Event()
    desk.worker.submit(go_on.wait, 60)
    job = desk.job(lambda report: pytest.fail("it was stopped before it began"))
    waiting = iter(job)
    next(waiting)
    job.stop()
    with pytest.raises(Stopped, match="nothing was changed"):
        list(waiting)
    go_on.set()


def test_the_edits_are_those_of_when_the_job_begins(desk):
    go_on, edits = Event(), []
    desk.worker.submit(go_on.wait, 60)
    job = desk.job(lambda report: edits_on(desk.model), lambda: edits)
    waiting = iter(job)
    next(waiting)
    edits.append(random_edit(desk.model, 0))
    go_on.set()
    assert list(waiting) == [] and len(job.value) == 1


def test_what_is_wrong_and_what_is_warned_of_reaches_the_tab(desk):
    def wrong(report):
        raise InputError("no such fact")

    def doubtful(report):
        warnings.warn("look twice", KnoweditWarning, stacklevel=1)
        warnings.warn("of torch", UserWarning, stacklevel=1)

    with pytest.raises(InputError, match="no such fact"):
        run(desk.job(wrong))
    job = desk.job(doubtful)
    run(job)
    assert job.notes == ["look twice"]


def test_progress_is_counted_until_the_job_is_to_stop():
    said, stop = [], Event()
    report = Report(said.append, stop)
    report("reading", 4)(3)
    with report.bars("searching", 2, "edit") as step:
        step(1)
        stop.set()
        with pytest.raises(Stopped):
            step(2)
    assert said == [Doing("reading", 0, 4), Doing("reading", 3, 4), Doing("searching", 0, 2), Doing("searching", 1, 2)]
