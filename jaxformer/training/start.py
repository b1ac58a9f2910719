"""The state a run begins with: new, or with the parameters of ``model.pretrained`` in their place."""

import dataclasses

import jax
import jax.numpy as jnp

from jaxformer.training.console import Display
from jaxformer.training.pretrained import earlier_params, transfer
from jaxformer.training.run import Run
from jaxformer.training.state import TrainState, frozen_of, init_state, with_frozen


def start_state(run: Run, display: Display | None = None) -> TrainState:
    """A new state, with the parameters of ``model.pretrained`` where there is one.

    Args:
        run: prepared.
        display: shows what was taken over and what is new; None: nothing is shown.
    """
    state = init_state(run.model, run.optimizer, run.config.seed, run.abstract, run.adapter, run.carried)
    source = run.config.model.pretrained
    if source is None:
        return state
    earlier, elsewhere = earlier_params(source, run.model, tuple(getattr(run.model, "labels", ())))
    whole = state.params if run.adapter is None else run.adapter.joined(frozen_of(state), state.params)
    params, done = transfer(whole, earlier)
    done.left += elsewhere
    if display is not None:
        display.say(f"took {len(done.taken)} parameters from {source}")
        if done.left:
            display.say(f"left there: {', '.join(done.left)}")
        if done.grown:
            display.say(f"tables with new rows: {', '.join(done.grown)}")
        if done.new:
            display.warn(f"newly initialised, train before use: {', '.join(done.new)}")
    frozen = None
    if run.adapter is not None:
        frozen, params = run.adapter.begin_from(state.params, params)
    # A copy, since the state's buffers are donated and no buffer can be donated twice.
    ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
    return with_frozen(dataclasses.replace(state.saved, params=params, ema=ema), frozen)
