"""Which task is to blame when workers die, with tasks that run nowhere."""

import random

import pytest

from orchestrator.pools.task import Task, TaskQueue

CAUSE = OSError("the process ended")


def tasks(count):
    return [Task("generate", (number,), labels={"problem": f"p{number}"}) for number in range(count)]


@pytest.fixture
def queue():
    return TaskQueue("rollout", max_attempts=2)


def blamed(queue):
    return [error.task for error in queue.poisonous]


def test_a_task_that_was_alone_on_two_dead_workers_is_to_blame(queue):
    [task] = tasks(1)
    queue.take_back([task], CAUSE)
    assert list(queue.tasks) == [task]
    assert queue.take([]) is task
    queue.take_back([task], CAUSE)
    assert blamed(queue) == [task]
    assert not queue.tasks
    assert queue, "it is still to be raised"
    assert str(queue.poisonous[0]).startswith("2 workers of the rollout pool died on generate (problem p0)")


def test_of_several_tasks_the_one_that_was_on_both_dead_workers_is_to_blame(queue):
    poison, *others = tasks(7)
    queue.take_back([poison, *others[:3]], CAUSE)
    queue.take_back([poison, *others[3:]], CAUSE)
    assert blamed(queue) == [poison]


def test_tasks_that_died_together_twice_are_kept_apart_and_the_next_death_decides(queue):
    poison, other, third = tasks(3)
    queue.take_back([poison, other, third], CAUSE)
    queue.take_back([poison, other], CAUSE)
    assert not blamed(queue), "both were there each time"
    queue.tasks.clear()
    queue.tasks.extend([other, third])
    assert queue.take([poison]) is third
    assert queue.take([poison]) is None
    queue.take_back([poison, third], CAUSE)
    assert blamed(queue) == [poison]


def test_tasks_of_a_dead_worker_go_first_in_their_order(queue):
    first, second, third = tasks(3)
    queue.tasks.append(third)
    queue.take_back([first, second], CAUSE)
    assert list(queue.tasks) == [first, second, third]
    queue.take_back([], CAUSE)
    assert not blamed(queue)


def test_the_poison_is_found_among_many_and_no_other_task_is_blamed():
    """A pool of one worker with room for 16."""
    random.seed(0)
    for _ in range(50):
        queue = TaskQueue("rollout", max_attempts=2)
        queue.tasks.extend(tasks(40))
        poison, deaths = random.choice(queue.tasks), 0
        while not queue.poisonous:
            running = []
            while len(running) < 16 and (task := queue.take(running)):
                running.append(task)
            if poison in running:
                deaths += 1
                queue.take_back(running, CAUSE)
        assert blamed(queue) == [poison]
        assert deaths <= 3


def test_a_task_in_words():
    [task] = tasks(1)
    assert str(task) == "generate (problem p0)"
    assert str(Task("ping", ())) == "ping"


def test_a_task_that_was_lost_with_nodes_is_tried_again():
    queue, task = TaskQueue("rollout", max_attempts=2), Task("generate", ())
    for _ in range(5):
        queue.take_back([task], CAUSE, is_loss=True)
        assert queue.take([]) is task
    assert not queue
