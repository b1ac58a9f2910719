"""Rollouts: responses drawn from the model, their scores, and the updates on them."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxformer import functional as F
from jaxformer.data.loader import evaluation_batches
from jaxformer.generation import compile_options, parse_options, search
from jaxformer.generation.best_of_n import DEVIATIONS
from jaxformer.generation.prompts import align
from jaxformer.parallel.batch import put_batch
from jaxformer.schema import UserError
from jaxformer.tasks.base import Batch, Report
from jaxformer.tasks.policy import ROW, Policy, Response
from jaxformer.tokenizers import decode, special_id
from jaxformer.training.initial_state import start_trained
from jaxformer.training.rewards import Sample, open_reward
from jaxformer.training.run import Run
from jaxformer.training.state import TrainState

# Numbers that keep the draws of training and evaluation apart.
_TRAINING, _EVALUATION = 11, 12


class Written(NamedTuple):
    """Scored responses: the batch for the step in NumPy, the texts, and ``[R]`` scores before any penalty."""

    batch: Batch
    samples: list[Sample]
    scores: np.ndarray

    @property
    def facts(self) -> dict[str, float]:
        """Means over the responses."""
        deviation = {"score_deviation": float(self.scores.std())}
        return {"score": float(self.scores.mean()), **deviation, **_sizes(self.samples)}


def _sizes(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean length in tokens, and the share without an end."""
    return {
        "length": float(np.mean([len(sample.response) for sample in samples])),
        "truncated": float(np.mean([not sample.ended for sample in samples])),
    }


class Rollouts:
    """Draws responses to prompts from the policy and scores them; each is a function of seed, step and its number."""

    def __init__(self, run: Run, frozen: Any) -> None:
        """Opens reward and reference; a ``UserError`` if the reward does not fit or there are several processes."""
        c = run.config
        if jax.process_count() > 1:
            raise UserError(
                f"task.type {c.task.type} with {jax.process_count()} processes, expected one: its responses are "
                "written and scored by one process, on all of its devices"
            )
        self.run, self.task, self.frozen = run, cast(Policy, run.task), frozen
        # Of the initial model, read again, since a resumed run has another in its state; with LoRA that is the frozen
        # base, of which there is no second copy.
        self.reference = run.division.joined(frozen, start_trained(run))
        self.score = open_reward(self.task.config.reward, run.tokenizer, c.sequence_length)
        options: dict[str, Any] = {"do_sample": True, "temperature": self.task.config.temperature}
        chosen = parse_options({**options, "eos_token_id": (self.task.end_id,)})
        self._rules, self._numbers = compile_options(chosen, c.model)

    @cached_property
    def _write(self) -> Any:
        """Compiled for each length of the prompts, which are powers of two."""
        task, model = self.task, self.run.model
        start = special_id(self.task.tokenizer, self.task.start) if self.task.two_sided else 0

        def write(params: Any, ids: jax.Array, real: jax.Array, seeds: jax.Array) -> tuple[jax.Array, jax.Array]:
            new, starts = task.config.max_new_tokens, jnp.full(len(ids), start) if task.two_sided else None
            options: dict[str, Any] = {"rules": self._rules, "numbers": self._numbers, "max_new_tokens": new}
            written = search(model, params, ids, real, seeds=seeds, start_ids=starts, **options)
            return written.tokens, written.log_probs

        return self.run.jit(write)

    @cached_property
    def log_probs(self) -> Any:
        """Jitted log-probabilities of the responses' tokens."""
        task, model = self.task, self.run.model
        return self.run.jit(lambda params, batch: task.log_probs_and_values(model, params, batch)[0])

    def responses(self, params: Any, prompts: Sequence[Sequence[int]], seeds: np.ndarray) -> list[Response]:
        """Draws one response to each prompt with ``seeds [R, 2]``."""
        aligned = align(list(prompts), None, None)
        arrays = {"ids": aligned.ids, "real": aligned.real, "seeds": seeds.astype(np.int32)}
        placed = put_batch(arrays, len(prompts), self.run.mesh)
        tokens, log_probs = map(np.asarray, self._write(params, placed["ids"], placed["real"], placed["seeds"]))
        found = []
        for prompt, row, each in zip(prompts, tokens, log_probs, strict=True):
            ends = np.flatnonzero(row == self.task.end_id)
            length = int(ends[0]) + 1 if len(ends) else len(row)
            found.append(Response(list(prompt), row[:length].tolist(), each[:length], bool(len(ends))))
        return found

    def written(
        self,
        params: Any,
        prompts: Batch,
        records: Sequence[Mapping[str, Any]],
        key: Sequence[int],
        copies: int = 1,
    ) -> Written:
        """``copies`` responses to each of a batch of prompts, scored, with their log-probabilities under the reference.

        ``prompts`` are rows of the task with the numbers of their records; all draws depend on ``key``.
        """
        c = self.task.config
        rows = [int(row) for row in prompts[ROW] for _ in range(copies)]
        # What the last batch of an evaluation lacks is filled up with prompts of one token.
        texts = [
            ids[mask > 0].tolist() or [self.task.end_id]
            for ids, mask in zip(prompts["input_ids"], prompts["attention_mask"], strict=True)
        ]
        texts = [text for text in texts for _ in range(copies)]
        first = int(np.random.SeedSequence(key).generate_state(1)[0]) >> 1
        seeds = np.stack([np.full(len(texts), first), np.arange(len(texts))], axis=1)
        responses = self.responses(params, texts, seeds)
        samples = [
            self._sample(response, records[row]) for response, row in zip(responses, rows, strict=True) if row >= 0
        ]
        scores = self.score(samples)
        shaped = np.zeros(len(responses), np.float32)
        shaped[: len(samples)] = scores
        shaped -= c.missing_eos_penalty * np.array([not response.ended for response in responses], np.float32)
        batch = {**self.task.batch(responses), "scores": shaped}
        placed = put_batch(batch, len(responses), self.run.mesh)
        batch["reference_log_probs"] = np.asarray(self.log_probs(self.reference, placed))
        return Written(batch, samples, scores)

    def _sample(self, response: Response, record: Mapping[str, Any]) -> Sample:
        # As one text with the response, an encoder's input has no end of its own.
        after = len(self.task.encoder.frame.after) if self.task.two_sided else 0
        prompt = response.prompt[: len(response.prompt) - after]
        texts = (decode(self.run.tokenizer, ids) for ids in (prompt, response.tokens))
        return Sample(record, prompt, response.tokens, response.ended, *texts)


class PolicyStep:
    """A training step of a policy, with the interface of ``DeviceStep``: prompts in, updated state out."""

    def __init__(self, run: Run, rollouts: Rollouts) -> None:
        """Wraps the program of the updates.

        Attributes:
            facts: means over the latest responses, beside what the program measures.
        """
        self.run, self.program, self.rollouts = run, run.device_step, rollouts
        self.facts: dict[str, float] = {}

    def put(self, batch: Mapping[str, np.ndarray]) -> Any:
        """The prompts, which stay in host memory."""
        return batch

    def __call__(
        self, state: TrainState, batch: Batch, request: int = 0, frozen: Any = None
    ) -> tuple[TrainState, Any, Any]:
        """New state, metrics, and ``request`` as it came; arguments as ``DeviceStep``'s."""
        key = (_TRAINING, self.run.config.seed, int(state.step))
        task = self.rollouts.task
        records = self.run.train_batches.rows.records or ()
        copies = task.config.responses_per_prompt
        written = self.rollouts.written(self.run.merged(state.params, frozen), batch, records, key, copies)
        self.facts = written.facts
        return self.program(state, self.program.put(written.batch), request, frozen)


class PolicyEvaluator:
    """Evaluates a policy by its responses to all prompts of the validation data."""

    def __init__(self, run: Run, rollouts: Rollouts) -> None:
        """Takes the run and its rollouts."""
        self.run, self.rollouts = run, rollouts
        # The last report and the step of its state, since a loss and a report are asked for one after the other.
        self._reported: tuple[int, Report] | None = None

    def report(self, state: TrainState) -> Report:
        """The metrics (``kl`` in nats per response) and every response; the draws are the same in every evaluation."""
        step = int(state.step)
        if self._reported is None or self._reported[0] != step:
            self._reported = step, self._report(state)
        return self._reported[1]

    def _report(self, state: TrainState) -> Report:
        run, task = self.run, self.rollouts.task
        params = run.merged(state.evaluation_params, self.rollouts.frozen)
        c, rows = run.config, run.validation_rows
        assert rows is not None and rows.records is not None
        size = run.eval_batch_size
        samples: list[Sample] = []
        predictions: list[dict[str, Any]] = []
        for number, batch in enumerate(evaluation_batches(rows, size, c.seed, task.features)):
            written = self.rollouts.written(params, batch, rows.records, (_EVALUATION, c.seed, number))
            placed = put_batch(written.batch, size, run.mesh)
            now = np.asarray(self.rollouts.log_probs(params, placed))
            gaps = (now - written.batch["reference_log_probs"]).sum(axis=1, where=written.batch["labels"] != F.IGNORE)
            for sample, score, gap in zip(written.samples, written.scores, gaps, strict=False):
                where = getattr(sample.record, "where", "")
                predictions.append(
                    {"where": where, "prompt": sample.prompt_text, "response": sample.text, "score": float(score)}
                    | {"ended": sample.ended, "kl": float(gap)}
                )
            samples += written.samples
        scores = np.array([prediction["score"] for prediction in predictions])
        error = DEVIATIONS * scores.std(ddof=1) / len(scores) ** 0.5 if len(scores) > 1 else float("nan")
        metrics = {
            "score": float(scores.mean()),
            "score_error": float(error),
            "kl": float(np.mean([prediction["kl"] for prediction in predictions])),
            **_sizes(samples),
        }
        return Report(metrics, predictions)

    def losses(self, state: TrainState) -> tuple[dict[str, float], float]:
        """The negative score, so that the lowest is the best, and the number of prompts."""
        report = self.report(state)
        return {"loss": -report.metrics["score"], **report.metrics}, float(len(report.predictions))
