"""The training loop: step, log, evaluate, save, stop, in that order."""

import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer.data.loader import load
from jaxformer.generation import compile_options, parse_options, search
from jaxformer.models import Decoder
from jaxformer.parallel.hosts import is_first
from jaxformer.schema import UserError
from jaxformer.signals import handling
from jaxformer.tasks.base import Report
from jaxformer.tokenizers import decode, encode, find_special
from jaxformer.training.checkpoint import Checkpoints
from jaxformer.training.config import RunConfig
from jaxformer.training.console import Display, number
from jaxformer.training.evaluation import Evaluator, headline, in_words, make_evaluator, write_report
from jaxformer.training.flops import peak_flops
from jaxformer.training.forecast import start_warnings
from jaxformer.training.initial_state import start_frozen, start_state
from jaxformer.training.memory import Settling, peak_memory_used, return_freed_memory
from jaxformer.training.metrics import MetricsLog, best_is_old
from jaxformer.training.profile import Profile
from jaxformer.training.receipt import Receipts
from jaxformer.training.reference_log_probs import fill_reference
from jaxformer.training.rollout import PolicyStep, Rollouts
from jaxformer.training.run import Run
from jaxformer.training.run_folder import Kept, jump_warning, keep_config, open_folder
from jaxformer.training.run_page import RunPage
from jaxformer.training.sources import CHECKPOINTS
from jaxformer.training.step import StepMetrics


@dataclass(frozen=True)
class Result:
    """The end of a run.

    ``loss`` is the last validation loss, ``report`` the objective's at the end; the sample is drawn only there.
    ``stopped_by`` names the signal that ended the run early.
    """

    step: int
    loss: float | None
    sample: str | None
    report: Report | None
    folder: Path
    stopped_by: str | None


# Any of several processes may be asked to stop. The request travels in the step itself and is read this many steps
# later, so that all stop at the same step and reading it blocks nothing.
AGREEMENT_LAG = 2


class StopRequest:
    """A stop after the current step, requested by SIGTERM or Ctrl-C; a second Ctrl-C stops at once."""

    def __init__(self) -> None:
        self.signal: str | None = None  # name of the one that this process got
        self._agreed: str | None = None
        self._requests: deque[Any] = deque()

    @property
    def agreed(self) -> str | None:
        """The signal that the run is to stop for, the same in all processes."""
        return self.signal if jax.process_count() == 1 else self._agreed

    @property
    def request(self) -> int:
        """The number of the signal, 0 if there was none."""
        return 0 if self.signal is None else signal.Signals[self.signal].value

    def agree(self, request: Any) -> None:
        """Records the largest request of all processes, as a step returned it."""
        self._requests.append(request)
        if len(self._requests) > AGREEMENT_LAG and (number := int(self._requests.popleft())):
            self._agreed = signal.Signals(number).name

    def _ask(self, number: int, _: Any) -> None:
        if self.signal is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number).name

    @contextmanager
    def listening(self) -> Iterator["StopRequest"]:
        """Listens while the block runs; only the main thread can."""
        with handling(self._ask):
            yield self


@dataclass
class Clock:
    """Time spent training (without evaluation and saving) and waiting for data."""

    training: float = 0.0
    waiting: float = 0.0
    steps: int = 0
    _since: float = field(default_factory=time.perf_counter)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in the block does not count as training."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    def lap(self) -> None:
        """Records the time since the last lap."""
        now = time.perf_counter()
        self.training, self._since = now - self._since, now

    def reset(self) -> None:
        """Starts a new interval."""
        self.waiting, self.steps, self._since = 0.0, 0, time.perf_counter()


class Trainer:
    """One process of a run: compiled steps, state, logs and checkpoints."""

    def __init__(self, run: Run, display: Display, stop: StopRequest, earlier: RunConfig | None = None) -> None:
        """Restores the newest intact checkpoint of the run's folder, or makes a new state.

        ``earlier`` is the configuration that the folder had.
        """
        c = run.config
        self.run, self.display, self.stop = run, display, stop
        self.checkpoints = Checkpoints(run.folder / CHECKPOINTS, c.training.keep_last, c.training.keep_best)
        restored = self.checkpoints.restore(run.abstract)
        if restored is None:
            self.step, (self.state, self.frozen) = 0, start_state(run, display)
            fill_reference(run, display, run.division.assemble(self.frozen, self.state.params))
        else:
            self.step, self.state = restored
            self.frozen = start_frozen(run, display)
            fill_reference(run, display)
        self.log = MetricsLog(run.folder, c.logging, self.step, c.model_dump(mode="json"))
        if restored is not None:
            said = "nothing is left to train" if self.bound else "resuming"
            display.say(f"{said} at step {self.step} of {c.training.steps}")
        rollouts = Rollouts(run, self.frozen) if c.task.generates else None
        self.device_step: Any = run.device_step if rollouts is None else PolicyStep(run, rollouts)
        self.evaluator = make_evaluator(run, self.frozen, rollouts)
        kept = Kept({}, None) if earlier is None else keep_config(run, earlier, self.bound)
        jump = None if earlier is None or self.bound else jump_warning(run, earlier, self.step)
        for warning in (kept.warning, jump):
            if warning is not None:
                display.warn(warning)
        self.page = RunPage(run, display, self.step, kept.changes) if c.logging.report else None
        # The report and the sample of the last evaluation, with the step they were made at.
        self.report: tuple[int, Report | None] = (-1, None)
        self.sampled: tuple[int, str | None] = (-1, None)
        self.clock = Clock()
        self.profile = Profile(run.folder, c.training.profile)
        self.receipts = Receipts(run, self.checkpoints)

    def train(self) -> None:
        """Runs the remaining steps, or until asked to stop."""
        c = self.run.config
        t, data = c.training, c.data
        batches = load(self.run.train_batches, self.step, data.num_threads, data.prefetch)
        step, first = self.device_step, self.step
        # A step that is dispatched ahead already holds its memory, and on a CPU dispatching ahead gains nothing.
        in_turn, metrics, settle = self.run.mesh.devices.flat[0].platform == "cpu", None, Settling()
        self.receipts.resume(self.step)
        try:
            while self.step < t.steps and not self.stopping:
                before = time.perf_counter()
                batch = step.put(next(batches))
                self.clock.waiting += time.perf_counter() - before
                if in_turn:
                    jax.block_until_ready(metrics)
                    settle()
                self.profile.before(self.step + 1)
                self.state, metrics, request = step(self.state, batch, self.stop.request, self.frozen)
                self.stop.agree(request)
                self.step += 1
                self.receipts.follow(self.step, self.state, metrics)
                if self.profile.after(self.step, metrics):
                    self.display.say(f"profile: tensorboard --logdir {self.profile.folder} (needs tensorboard, xprof)")
                self.clock.steps += 1
                if self.step == first + 1:
                    # The first step compiles; the clock starts behind it.
                    jax.block_until_ready(metrics)
                    self.clock.reset()
                if self.step % t.log_every == 0 or self.step in (1, t.steps):
                    self.record(metrics)
                loss = None
                if self.due(t.eval_every):
                    loss = self.evaluate()
                    self.show()
                if self.due(t.save_every):
                    self.save(loss)
            if self.stopping:
                self.save(None)
        finally:
            self.profile.close()
            batches.close()

    @property
    def bound(self) -> str | None:
        """The key by which no step is left to be trained; None if there is one."""
        if self.step >= self.run.config.training.steps:
            return "training.steps"
        return "training.early_stopping" if self.stale else None

    @property
    def stopping(self) -> bool:
        """True if a signal or early stopping ends the run now."""
        return self.stop.agreed is not None or self.stale

    @property
    def stale(self) -> bool:
        """True if the last ``early_stopping`` evaluations brought no new best; a function of the records alone."""
        patience = self.run.config.training.early_stopping
        return patience is not None and best_is_old(self.log.losses("eval"), patience)

    def due(self, every: int | None) -> bool:
        """True if something that is done every ``every`` steps is due now; at the last step everything is."""
        return self.step == self.run.config.training.steps or (every is not None and self.step % every == 0)

    def record(self, metrics: StepMetrics) -> None:
        """Writes the record of this step and shows it. The loss is this step's own, so a resumed run repeats it."""
        c, clock = self.run.config, self.clock
        metrics = jax.device_get(metrics)
        weight = float(metrics.weight) or 1.0
        clock.lap()
        values = {name: float(total) / weight for name, total in metrics.sums.items()}
        values |= self.device_step.facts
        in_a_row, skipped = int(metrics.skipped_in_a_row), int(metrics.skipped)
        if in_a_row >= c.training.max_nonfinite:
            raise UserError(
                f"loss or gradient was inf or nan in each of {in_a_row} steps from step {self.step - in_a_row + 1} on "
                f"(training.max_nonfinite is {c.training.max_nonfinite}); lower optimizer.learning_rate, add "
                "schedule.warmup_steps, or look at the data of these steps"
            )
        record: dict[str, Any] = {"step": self.step, "split": "train", **values}
        record["learning_rate"] = float(self.run.schedule(self.step - 1 - skipped))
        record["gradient_norm"] = float(metrics.gradient_norm)
        record[f"trained_{c.task.unit}"] = int(metrics.weight)
        if skipped:
            record["skipped_updates"] = skipped
        seconds_left = None
        if clock.steps:
            seconds = clock.training / clock.steps
            seconds_left = seconds * (c.training.steps - self.step)
            record |= self.speeds(seconds)
        self.log.write(record)
        self.display.record(self.step, c.training.steps, _summary(record), seconds_left)
        clock.reset()

    def speeds(self, seconds: float) -> dict[str, float]:
        """Throughput of a step of this duration, and the most memory that was in use so far."""
        c, mesh = self.run.config, self.run.mesh
        memory = {} if (used := peak_memory_used(mesh.local_devices)) is None else {"peak_memory_bytes": used}
        if c.task.generates:
            return {"responses_per_second": c.training.batch_size / seconds, **memory}
        speeds: dict[str, float] = {
            "tokens_per_second": c.training.batch_size * c.sequence_length / seconds,
            "model_flops_per_second": self.run.flops_per_step / seconds,
            "data_wait": self.clock.waiting / self.clock.training,
        }
        peak = peak_flops(mesh.devices.flat[0])
        if peak is not None:
            speeds["mfu"] = self.run.flops_per_step / seconds / peak / mesh.size
        return speeds | memory

    def evaluate(self) -> float | None:
        """Mean loss over the whole validation set, written as an eval record; None without a validation set."""
        if self.run.validation_rows is None:
            return None
        with self.clock.paused():
            values, weight = self.evaluator.losses(self.state)
            task = self.run.config.task
            said = f"step {self.step}: validation {headline(values, weight, task)}"
            if self.step >= self.run.config.training.steps or not task.report_at_end:
                report = self.current_report()
                values |= {} if report is None else report.metrics
                said += "" if report is None else f", {in_words(report)}"
            self.log.write({"step": self.step, "split": "eval", **values, task.unit: int(weight)})
            self.display.say(said)
        return values["loss"]

    def show(self) -> None:
        """Writes the page of the run anew."""
        if self.page is None:
            return
        with self.clock.paused():
            if (text := self.sample()) is not None:
                self.page.add_sample(self.step, text)
            if self.report[0] == self.step and self.report[1] is not None:
                self.page.add_report(self.step, self.report[1])
            if isinstance(self.evaluator, Evaluator) and self.run.validation_rows is not None:
                losses = self.evaluator.label_losses(self.state, self.page.loss_batch)
                if losses is not None:
                    self.page.add_losses(self.step, losses)
            self.page.write(self.log.records, self.words)

    @property
    def words(self) -> str:
        """The state of the run, in words."""
        steps = self.run.config.training.steps
        where = f"step {self.step:,} of {steps:,}"
        if self.stop.agreed is not None:
            return f"stopped by {self.stop.agreed} at {where}"
        return f"finished at {where}" if self.bound else f"training, {where}"

    def current_report(self) -> Report | None:
        """The objective's report on its predictions now; made once a step."""
        if self.report[0] != self.step and self.run.validation_rows is not None:
            self.report = self.step, self.evaluator.report(self.state)
        return self.report[1]

    def save(self, loss: float | None) -> None:
        """Starts a checkpoint of this step."""
        with self.clock.paused():
            self.checkpoints.save(self.step, self.state, loss)
            self.receipts.begin(self.step, self.state)

    def sample(self) -> str | None:
        """Text from the model now, as ``sample.*`` asks; only a decoder goes on with a text. Drawn once a step."""
        asked = self.run.config.sample.max_new_tokens > 0 and isinstance(self.run.model, Decoder)
        if asked and self.sampled[0] != self.step:
            prompt, draw = self._draw
            params = self.run.merged(self.state.evaluation_params, self.frozen)
            new = np.asarray(draw(params, np.array([prompt], np.int32)))[0].tolist()
            self.sampled = self.step, decode(self.run.tokenizer, prompt + new)
        return self.sampled[1] if asked else None

    @cached_property
    def _draw(self) -> tuple[list[int], Any]:
        """The prompt of the sample, and the compiled function that goes on with it."""
        s, tokenizer, model = self.run.config.sample, self.run.tokenizer, self.run.config.model
        end = find_special(tokenizer, "eos")
        prompt = encode(tokenizer, s.prompt) or [end or 0]
        new = min(s.max_new_tokens, model.max_length - 1)
        prompt = prompt[-(model.max_length - new) :]
        ends = () if end is None else (end,)
        sampling = {"do_sample": True, "temperature": s.temperature, "top_k": s.top_k, "top_p": s.top_p}
        options = parse_options({"eos_token_id": ends, **(sampling if s.temperature > 0 else {})})
        rules, numbers = compile_options(options, model)

        def draw(params: Any, ids: jax.Array) -> jax.Array:
            seeds = jnp.array([[self.run.config.seed, 0]])
            drawn = search(
                self.run.model, params, ids, ids >= 0, rules=rules, numbers=numbers, max_new_tokens=new, seeds=seeds
            )
            return drawn.tokens

        return prompt, self.run.jit(draw)

    def close(self) -> None:
        """Finishes writing the checkpoint and the logs."""
        try:
            self.checkpoints.close()
        finally:
            self.log.close()


def train(run: Run, display: Display) -> Result:
    """Trains a run to its end or until it is asked to stop; called again, it resumes from the newest checkpoint."""
    steps = run.config.training.steps
    with open_folder(run) as earlier, StopRequest().listening() as stop:
        if (newest := max(Checkpoints(run.folder / CHECKPOINTS).steps(), default=0)) < steps:
            lines = start_warnings(run, newest)
            return_freed_memory()  # of the compiler
            for line in lines:
                display.warn(line)
        trainer = Trainer(run, display, stop, earlier)
        try:
            already_done = trainer.bound is not None
            if not already_done:
                with display.training(steps, trainer.step):
                    trainer.train()
            losses = trainer.log.losses("eval")
            finished = already_done or stop.agreed is None
            text = trainer.sample() if finished else None
            report = trainer.current_report() if finished else None
            if report is not None and is_first():
                write_report(report, run.folder)
            if already_done:
                trainer.show()
            elif trainer.page is not None:
                trainer.page.write(trainer.log.records, trainer.words)
        finally:
            trainer.close()
    loss, signal_name = losses[-1] if losses else None, None if finished else stop.agreed
    return Result(trainer.step, loss, text, report, run.folder, signal_name)


def _summary(record: dict[str, Any]) -> str:
    parts = [f"loss {record['loss']:.4f}"]
    if "score" in record:
        parts = [f"score {record['score']:.3f}", f"KL {record['kl']:.2f}", f"length {record['length']:.0f}"]
        if "responses_per_second" in record:
            parts.append(f"{number(record['responses_per_second'])} responses/s")
    if "tokens_per_second" in record:
        parts.append(f"{number(record['tokens_per_second'])} tokens/s")
        # Loading runs ahead in threads; a share worth naming means the devices wait for data.
        if record["data_wait"] > 0.05:
            parts.append(f"waiting for data {record['data_wait']:.0%}")
    if "mfu" in record:
        parts.append(f"MFU {record['mfu']:.1%}")
    if record.get("skipped_updates"):
        parts.append(f"{record['skipped_updates']} updates skipped")
    return "  ".join(parts)
