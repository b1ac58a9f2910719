"""The state a run begins with: new, or with the parameters of ``model.pretrained`` in their place."""

from typing import Any

import jax

from jaxformer.functional import purpose_key
from jaxformer.parallel.mesh import parameter_shardings
from jaxformer.tasks import Distillation
from jaxformer.training.console import Display
from jaxformer.training.pretrained import Transfer, earlier_params, start_params
from jaxformer.training.run import Run
from jaxformer.training.state import TrainState, abstract_params, frozen_of, init_state, state_of, with_frozen
from jaxformer.training.teacher import STUDENT, TEACHER, Taught, read_teacher


def start_state(run: Run, display: Display | None = None) -> TrainState:
    """A new state, with the parameters of ``model.pretrained`` where there is one.

    Args:
        run: prepared.
        display: shows what was taken over and what is new; None: nothing is shown.
    """
    if run.config.model.pretrained is None:
        state = init_state(run.model, run.optimizer, run.config.seed, run.saved, run.carried)
        return with_frozen(state, None if run.adapter is None else start_frozen(run, display))
    frozen, trained = _parts(run, display)
    return with_frozen(state_of(trained, run.optimizer, run.saved, run.carried), frozen)


def start_frozen(run: Run, display: Display | None = None) -> Any:
    """The frozen part alone, as a run that goes on needs it; None where all is trained."""
    if run.adapter is None:
        return None
    if run.config.model.pretrained is None:
        return _with_teacher(run, {STUDENT: None})
    return _parts(run, display)[0]


def start_trained(run: Run) -> Any:
    """The trained part alone, without what an optimizer keeps of it."""
    if run.config.model.pretrained is None:
        return init_state(run.model, run.optimizer, run.config.seed, run.saved, run.carried).params
    return _parts(run, None)[1]


def _parts(run: Run, display: Display | None) -> tuple[Any, Any]:
    """The frozen and the trained part, with the parameters of ``model.pretrained``."""
    source = run.config.model.pretrained
    assert source is not None
    earlier, elsewhere = earlier_params(source, run.model, tuple(getattr(run.model, "labels", ())))
    shardings = parameter_shardings(abstract_params(run.model), run.mesh)
    kept = () if run.adapter is None else (run.adapter.kept,)
    params, done = start_params(run.model, run.config.seed, earlier, shardings, *kept)
    done.left += elsewhere
    if display is not None:
        _say(display, source, done)
    if run.adapter is None:
        return None, params
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract.params)
    frozen, trained = run.adapter.begin_from(purpose_key(run.config.seed, "lora"), params, shardings)
    return _with_teacher(run, frozen), trained


def _with_teacher(run: Run, frozen: Any) -> Any:
    """The frozen part with the teacher read into it, where there is one."""
    if not isinstance(run.adapter, Taught):
        return frozen
    assert run.teacher is not None and isinstance(run.task, Distillation) and run.task.teacher is not None
    abstract = frozen_of(run.abstract)[TEACHER]
    return {**frozen, TEACHER: read_teacher(run.teacher.source, run.task.teacher, abstract)}


def _say(display: Display, source: str, done: Transfer) -> None:
    """Shows what was taken over and what is new."""
    display.say(f"took {len(done.taken)} parameters from {source}")
    if done.left:
        display.say(f"left there: {', '.join(done.left)}")
    if done.grown:
        display.say(f"tables with new rows: {', '.join(done.grown)}")
    if done.new:
        display.warn(f"newly initialised, train before use: {', '.join(done.new)}")
