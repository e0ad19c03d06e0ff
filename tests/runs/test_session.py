"""What the runs of a command share: found again under its key, and gone before it is made anew."""

import gc
import pickle
import weakref

import numpy as np

from kd_cli.commands.job import Job
from kd_cli.runs.asked import Runs
from kd_cli.runs.session import Last, Session


class Big:
    """Something that refers to itself, as a Keras model does."""

    def __init__(self):
        self.me = self


def test_the_last_thing_is_found_by_its_key():
    last, made = Last(), []

    def make():
        made.append(Big())
        return made[-1]

    assert last.get("a") is None
    first = last.obtain("a", make)
    assert last.obtain("a", make) is first is last.get("a") and len(made) == 1
    assert last.get("b") is None
    assert last.obtain("b", make) is made[1] and last.get("a") is None


def test_the_old_thing_is_gone_before_the_new_one_is_made():
    last = Last()
    old = weakref.ref(last.obtain("a", Big))

    def make():
        gc.collect()
        assert old() is None
        return Big()

    last.obtain("b", make)
    assert last.key == "b"


def test_what_could_not_be_made_is_not_found():
    last = Last()
    last.keep("a", Big())

    def fail():
        raise MemoryError

    for _ in range(2):
        try:
            last.obtain("b", fail)
        except MemoryError:
            pass
        assert last.get("a") is None and last.get("b") is None


def test_a_teacher_goes_with_its_logits_and_the_step_that_asks_it():
    session = Session()
    teacher = session.teacher.keep("t", Big())
    step = session.engine.keep("e", Big())
    step.teacher = teacher
    session.logits["train"] = np.zeros((3, 2))
    session.checked.add(("file", 1, 2))
    alive = weakref.ref(teacher), weakref.ref(step)
    del teacher, step
    session.drop_teacher()
    assert [one() for one in alive] == [None, None]
    assert session.logits == {} and session.checked == {("file", 1, 2)}


def test_another_process_gets_an_empty_session():
    job = Job(Runs(), Session())
    job.session.engine.keep("e", lambda: "can't be pickled")
    job.session.logits["train"] = np.zeros(2)
    copy = pickle.loads(pickle.dumps(job))
    assert copy.session.engine.get("e") is None and copy.session.logits == {}
    assert job.session.engine.get("e") is not None
