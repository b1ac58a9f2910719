"""The initial state of a run: new, or with the parameters of ``model.pretrained``."""

from typing import Any

import jax

from jaxformer.functional import purpose_key
from jaxformer.parallel.mesh import parameter_shardings
from jaxformer.training.adapter import STUDENT, TEACHER
from jaxformer.training.console import Display
from jaxformer.training.pretrained import begin_with
from jaxformer.training.run import Run
from jaxformer.training.state import TrainState, init_state, state_of
from jaxformer.training.teacher import read_teacher
from jaxformer.training.transfer import Transfer, start_params


def start_state(run: Run, display: Display | None = None) -> tuple[TrainState, Any]:
    """The initial state and the frozen parameters, from ``model.pretrained`` if there is one.

    The display shows which parameters were loaded and which are new.
    """
    if not run.config.model.sources:
        state = init_state(run.model, run.optimizer, run.config.seed, run.abstract, run.task.carried)
        return state, start_frozen(run)
    frozen, trained = _parts(run, display)
    return state_of(trained, run.optimizer, run.abstract, run.task.carried), frozen


def start_frozen(run: Run, display: Display | None = None) -> Any:
    """The frozen parameters alone, for a resumed run."""
    return _with_teacher(run, {STUDENT: None}) if run.config.lora is None else _parts(run, display)[0]


def start_trained(run: Run) -> Any:
    """The trained parameters alone, without an optimizer's state."""
    if not run.config.model.sources:
        return init_state(run.model, run.optimizer, run.config.seed, run.abstract).params
    return _parts(run, None)[1]


def _parts(run: Run, display: Display | None) -> tuple[Any, Any]:
    """The frozen and the trained part, with the parameters of ``model.pretrained``."""
    sources, division = run.config.model.sources, run.division
    earlier, elsewhere = begin_with(sources, run.model, run.task.labels)
    shardings = parameter_shardings(division.boxed, run.mesh)
    params, done = start_params(run.model, run.config.seed, earlier, shardings, division.kept)
    done.left.extend(elsewhere)
    if display is not None:
        _say(display, " and ".join(dict.fromkeys(sources.values())), done)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, run.abstract.params)
    frozen, trained = division.begin(purpose_key(run.config.seed, "lora"), params, shardings)
    return _with_teacher(run, frozen), trained


def _with_teacher(run: Run, frozen: Any) -> Any:
    """The frozen part with the teacher read into it, where there is one."""
    if run.teacher is None or run.task.teacher is None:
        return {**frozen, TEACHER: None}
    return {**frozen, TEACHER: read_teacher(run.teacher.source, run.task.teacher, run.abstract_frozen[TEACHER])}


def _say(display: Display, source: str, done: Transfer) -> None:
    """Shows which parameters were loaded and which are new."""
    display.say(f"took {len(done.taken)} parameters from {source}")
    if done.left:
        display.say(f"left there: {', '.join(done.left)}")
    if done.grown:
        display.say(f"tables with new rows: {', '.join(done.grown)}")
    if done.new:
        display.warn(f"newly initialised, train before use: {', '.join(done.new)}")
