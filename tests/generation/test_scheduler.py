"""Continuous batching: the tokens of a text are those of the same text alone, whatever else is written."""

import queue
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxformer
from jaxformer.families import build_model, model_config
from jaxformer.generation import scheduler as module
from jaxformer.generation import slots as device
from jaxformer.generation.scheduler import End, Job, QueueFullError, Scheduler, Scores, Tokens
from jaxformer.generation.slots import NEUTRAL
from jaxformer.models import TransformerConfig
from jaxformer.schema import UserError

VOCABULARY = 100
CONTEXT = 64


def made(family, **keys):
    sizes = {"hidden_size": 32, "num_heads": 4, "num_layers": 2, "vocab_size": VOCABULARY, "max_length": CONTEXT}
    model = build_model(TransformerConfig(**model_config({"type": family, **sizes, **keys})))
    params = model.init(jax.random.key(0), jnp.zeros((1, 4), int))["params"]
    # Larger than initial ones, so that texts are no repetition of a token.
    return model, jaxformer.prepare(model, jax.tree.map(lambda leaf: 3 * leaf if leaf.ndim > 1 else leaf, params))


@pytest.fixture(scope="module")
def gpt2():
    return made("gpt2")


@pytest.fixture
def scheduler(gpt2):
    with Scheduler(*gpt2, slots=2, waiting=4) as running:
        yield running


class Caller:
    """Collects the events of one text."""

    def __init__(self, enough=lambda ids: False):
        self.ids, self.log_probs, self.top, self.scores = [], [], [], None
        self.enough, self.end = enough, queue.Queue()

    def __call__(self, event):
        match event:
            case Tokens(ids, log_probs, top):
                self.ids += ids
                self.log_probs += log_probs
                self.top += top
                return self.enough(self.ids)
            case Scores():
                self.scores = event
            case End():
                self.end.put(event)
        return False

    def wait(self):
        return self.end.get(timeout=60)


def settings(new=8, **numbers):
    return NEUTRAL._replace(max_new_tokens=new, **numbers)


def written(scheduler, prompt, chosen, **job):
    caller = Caller()
    scheduler.submit(Job(prompt, chosen, caller, **job))
    return caller, caller.wait()


def alone(pair, prompt, new, seed=0, **options):
    out = jaxformer.generate(*pair, [prompt], max_new_tokens=new, seed=[seed], **options)
    return out.tokens[0, : out.lengths[0]].tolist(), out.log_probs[0, : out.lengths[0]], out.finish_reasons[0]


@pytest.mark.default_cases("llama*", "mamba*")
@pytest.mark.parametrize(
    ("family", "keys"),
    [("llama", {"num_kv_heads": 2}), ("mistral", {"window": 4}), ("bloom", {}), ("mamba", {}), ("gemma3", {})],
)
def test_every_text_is_that_of_generate(family, keys):
    """More texts than slots, of all lengths, greedy and sampled beside each other, half of them with one beginning."""
    pair = made(family, **keys)
    generator = np.random.default_rng(0)

    def draw(count):
        return generator.integers(3, 97, count).tolist()

    common, cases = draw(25), []
    for number in range(10):
        prompt = [*(common[: generator.integers(25)] if number % 2 else []), *draw(generator.integers(1, 20))]
        chosen = {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "top_k": 30} if number % 3 else {}
        cases.append((prompt, int(generator.integers(1, 20)), chosen))
    with Scheduler(*pair, slots=3) as running:
        callers = [Caller() for _ in cases]
        for number, ((prompt, new, chosen), caller) in enumerate(zip(cases, callers, strict=True)):
            numbers = {name: value for name, value in chosen.items() if name != "do_sample"}
            numbers = numbers or {"temperature": 0.0}
            running.submit(Job(prompt, settings(new, **numbers), caller, seed=(number, 0)))
        ends = [caller.wait() for caller in callers]
        counts = running.counts
    for number, ((prompt, new, chosen), caller, end) in enumerate(zip(cases, callers, ends, strict=True)):
        tokens, log_probs, reason = alone(pair, prompt, new, number, **chosen)
        assert (caller.ids, end.reason, end.error) == (tokens, reason, None)
        np.testing.assert_allclose(caller.log_probs, log_probs, atol=3e-5)
    assert counts.prompt_tokens == sum(len(prompt) for prompt, *_ in cases)
    assert (counts.kept_tokens > 0) == (family != "mamba")
    assert counts.written_tokens == sum(len(caller.ids) for caller in callers)


@pytest.mark.parametrize(
    ("numbers", "options"),
    [
        ({"repetition_penalty": 1.5}, {"repetition_penalty": 1.5}),
        ({"presence_penalty": 2.0, "frequency_penalty": 0.5}, {"presence_penalty": 2.0, "frequency_penalty": 0.5}),
        ({"temperature": 0.7, "min_p": 0.2}, {"do_sample": True, "temperature": 0.7, "min_p": 0.2}),
        ({"temperature": 1.0, "top_k": 3}, {"do_sample": True, "top_k": 3}),
    ],
)
def test_the_options_are_those_of_generate(scheduler, gpt2, numbers, options):
    prompt = [5, 6, 7, 5, 6]
    caller, _ = written(scheduler, prompt, settings(12, **numbers), seed=(3, 0))
    assert caller.ids == alone(gpt2, prompt, 12, 3, **options)[0]


def test_biases_ends_and_the_most_probable_tokens(gpt2, scheduler):
    prompt = [5, 6, 7]
    first = alone(gpt2, prompt, 1)[0][0]
    caller, _ = written(scheduler, prompt, settings(6), bias={first: -np.inf})
    assert first not in caller.ids
    assert caller.ids == alone(gpt2, prompt, 6, suppress_tokens=(first,))[0]
    caller, _ = written(scheduler, prompt, settings(3, alternatives=True))
    logits = gpt2[0].apply({"params": gpt2[1]}, jnp.array([[*prompt, *caller.ids]])).logits[0]
    expected = jax.nn.log_softmax(logits.astype(jnp.float32))
    for place, (token, value, top) in enumerate(zip(caller.ids, caller.log_probs, caller.top, strict=True)):
        row = np.asarray(expected[len(prompt) - 1 + place])
        assert list(top) == np.argsort(-row, kind="stable")[: device.ALTERNATIVES].tolist() and next(iter(top)) == token
        np.testing.assert_allclose(list(top.values()), np.sort(row)[::-1][: device.ALTERNATIVES], atol=1e-5)
        assert value == pytest.approx(row[token], abs=1e-5)


def test_an_end_token_ends_a_text_unless_it_is_ignored_or_comes_too_early(gpt2):
    prompt, options = [5, 6, 7], {"do_sample": True, "temperature": 3.0}
    free = alone(gpt2, prompt, 20, 1, **options)[0]
    end = free[4]
    config = module.GenerationConfig(eos_token_id=(end,))
    with Scheduler(*gpt2, slots=2, config=config) as running:
        caller, ended = written(running, prompt, settings(20, temperature=3.0), seed=(1, 0))
        assert (caller.ids, ended.reason) == (free[: free.index(end) + 1], "stop")
        caller, ended = written(running, prompt, settings(20, temperature=3.0, ends=False), seed=(1, 0))
        assert (caller.ids, ended.reason) == (free, "length")
        caller, _ = written(running, prompt, settings(20, temperature=3.0, min_new_tokens=9), seed=(1, 0))
        expected = alone(gpt2, prompt, 20, 1, min_new_tokens=9, eos_token_id=end, **options)[0]
        assert caller.ids == expected and len(expected) >= 9


def test_the_prompt_itself_is_scored(gpt2, scheduler):
    prompt = np.random.default_rng(1).integers(3, 97, CONTEXT).tolist()
    logits = gpt2[0].apply({"params": gpt2[1]}, jnp.array([prompt])).logits[0]
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))[jnp.arange(CONTEXT - 1), jnp.array(prompt[1:])]
    for _ in range(2):  # what was read before is read again
        caller, end = written(scheduler, prompt, settings(0), score=True)
        assert caller.ids == [] and end.reason == "length"
        np.testing.assert_allclose(caller.scores.log_probs, log_probs, atol=2e-5)
        assert [max(top, key=top.get) for top in caller.scores.top] == jnp.argmax(logits[:-1], -1).tolist()


def test_a_guide_limits_the_tokens(gpt2, scheduler):
    class Alternate:
        """Even tokens, then odd ones."""

        def __init__(self):
            self.parity = 0

        def allowed(self):
            word = 0x55555555 if self.parity == 0 else -0x55555556  # the other bits
            return np.full(-(-VOCABULARY // 32), word, np.int32)

        def take(self, token):
            assert token % 2 == self.parity
            self.parity = 1 - self.parity

    callers = [Caller(), Caller()]
    scheduler.submit(Job([5, 6], settings(9), callers[0], guide=Alternate()), Job([7, 8, 9], settings(9), callers[1]))
    assert [caller.wait().reason for caller in callers] == ["length", "length"]
    assert [token % 2 for token in callers[0].ids] == [0, 1] * 4 + [0]
    assert callers[1].ids == alone(gpt2, [7, 8, 9], 9)[0]


def test_a_caller_has_enough_leaves_or_fails(gpt2, scheduler):
    enough = Caller(lambda ids: len(ids) >= 2)
    scheduler.submit(Job([5, 6, 7], settings(50), enough))
    assert enough.wait().reason == "stop" and 2 <= len(enough.ids) <= 2 + module.STEPS

    def fails(event):
        raise ValueError("a caller's own fault")

    scheduler.submit(Job([5, 6, 7], settings(50), fails))
    late = Caller()
    scheduler.submit(Job([5, 6, 7], settings(50), late, deadline=time.monotonic() - 1))
    assert late.wait().reason == "time" and not late.ids
    first = queue.Queue()
    leaving = Caller(first.put)
    job = Job([5, 6, 7], settings(60), leaving)
    scheduler.submit(job)
    first.get(timeout=60)
    scheduler.cancel(job)
    assert leaving.wait().reason in ("cancelled", "length")
    assert written(scheduler, [5, 6], settings(4))[0].ids == alone(gpt2, [5, 6], 4)[0]
    assert scheduler.running == scheduler.waiting == 0


def test_too_many_texts_are_refused_and_bad_ones_in_one_line(gpt2):
    release = queue.Queue()
    with Scheduler(*gpt2, slots=1, waiting=2) as running:
        holds = Caller(lambda ids: release.get(timeout=60))
        running.submit(Job([5], settings(60), holds))
        while not running.running:
            time.sleep(0.01)
        callers = [Caller() for _ in range(2)]
        running.submit(*[Job([5], settings(2), caller) for caller in callers])
        with pytest.raises(QueueFullError, match="2 texts wait already, expected at most 2"):
            running.submit(Job([5], settings(2), Caller()))
        release.put(True)
        assert [caller.wait().reason for caller in callers] == ["length", "length"]
        for prompt, new, said in (
            ([], 2, "the prompt is empty"),
            ([5] * 60, 5, "60 tokens and 5 more are asked for, expected at most 64"),
            ([5, 100], 2, "the prompt has token 100, expected 0 to 99"),
        ):
            with pytest.raises(UserError, match=said):
                running.submit(Job(prompt, settings(new), Caller()))


def test_a_fault_ends_the_texts_it_met_and_no_other(gpt2, scheduler, monkeypatch):
    def fault(*arguments, **options):
        monkeypatch.undo()
        raise RuntimeError("out of memory")

    for program in ("begin", "read", "advance"):
        monkeypatch.setattr(device, program, fault)
        caller, end = written(scheduler, [5, 6, 7], settings(4))
        assert (end.reason, str(end.error), caller.ids) == ("error", "out of memory", [])
    assert written(scheduler, [5, 6, 7], settings(4))[0].ids == alone(gpt2, [5, 6, 7], 4)[0]


def test_closing_finishes_what_runs_or_cancels_it(gpt2):
    finished, cancelled = [Caller() for _ in range(3)], [Caller() for _ in range(3)]
    running = Scheduler(*gpt2, slots=1)
    running.submit(*[Job([5, 6], settings(9), caller) for caller in finished])
    running.close(finish=True)
    assert [caller.wait().reason for caller in finished] == ["length"] * 3
    running = Scheduler(*gpt2, slots=1)
    running.submit(*[Job([5, 6], settings(50), caller) for caller in cancelled])
    running.close()
    assert cancelled[-1].wait().reason == "cancelled"


def test_nothing_compiles_after_warming(monkeypatch):
    """Texts of every size of the cache, growing and shrinking, with chunks of every length."""
    monkeypatch.setattr(module, "SHORTEST", 16)
    programs = (device.begin, device.read, device.advance, device.resize, device.release)
    with Scheduler(*made("gpt2"), slots=2) as running:
        sizes = []
        running.warm(sizes.append)
        assert sizes == [f"texts of up to {places} tokens" for places in (16, 32, 64)]
        before = [program._cache_size() for program in programs]
        for length, new, score in ((3, 4, False), (50, 10, False), (3, 4, True), (40, 0, True), (17, 1, False)):
            caller, end = written(running, list(range(3, 3 + length)), settings(new), score=score)
            assert end.error is None and len(caller.ids) == new
        assert [program._cache_size() for program in programs] == before
