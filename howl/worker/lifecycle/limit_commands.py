"""Remote control where Celery's own has no effect: new time limits for a type of task."""

from typing import Any

from celery.worker import control

#: Celery's own command, which ours calls.
_note_time_limit = control.time_limit


def install() -> None:
    """Answer the command in place of Celery, in this process."""
    names = [("task_name", str), ("soft", float), ("hard", float)]
    control.control_command(args=names, signature="<task_name> <soft_secs> [hard_secs]")(time_limit)


def time_limit(state: Any, task_name: str | None = None, **limits: Any) -> Any:
    """Tell worker(s) to modify the time limit for task by type."""
    answer = _note_time_limit(state, task_name, **limits)
    if (task := state.app.tasks.get(task_name)) is not None:
        # The strategy that receives tasks of a type keeps its limits as they were when the worker started.
        state.consumer.strategies[task.name] = task.start_strategy(state.app, state.consumer)
    return answer
