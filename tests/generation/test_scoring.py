"""Log-probabilities of continuations, against those of the whole text at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.generation import scoring
from jaxformer.generation.scoring import score, windows
from jaxformer.schema import UserError
from tests.generation.test_scheduler import CONTEXT, made


@pytest.mark.parametrize(("family", "keys"), [("gpt2", {}), ("llama", {"num_kv_heads": 2}), ("mamba", {})])
def test_they_are_those_of_the_whole_text(family, keys, monkeypatch):
    """Contexts that several continuations share, alone, of every size, and a batch that is too small for them."""
    monkeypatch.setattr(scoring, "BUDGET", 128)
    model, params = made(family, **keys)
    generator = np.random.default_rng(0)

    def draw(count):
        return generator.integers(3, 97, count).tolist()

    contexts = [draw(count) for count in (1, 5, 17, 30)]
    requests = [(context, draw(int(generator.integers(1, 30)))) for context in contexts for _ in range(5)]
    requests += [(draw(40), draw(25)), (draw(1), draw(CONTEXT)), (draw(9), draw(1)), (contexts[0], [7])]
    counted, read = [], jax.jit(lambda ids: model.apply({"params": params}, ids).logits[0])
    found = score(model, params, requests, counted.append)
    assert counted[-1] == len(requests) and counted == sorted(counted)
    for (context, continuation), one in zip(requests, found, strict=True):
        ids = [*context, *continuation][:-1]
        logits = read(jnp.array([ids + [0] * (CONTEXT - len(ids))]))[len(context) - 1 : len(ids)].astype(jnp.float32)
        expected = jax.nn.log_softmax(logits)[jnp.arange(len(continuation)), jnp.array(continuation)]
        np.testing.assert_allclose(one.log_probs, expected, atol=1e-4)
        assert one.greedy.tolist() == (jnp.argmax(logits, -1) == jnp.array(continuation)).tolist()
        assert one.total == pytest.approx(float(np.sum(one.log_probs, dtype=np.float64)))


def test_what_cannot_be_scored_is_refused():
    model, params = made("gpt2")
    for pair in (([], [5]), ([5] * 40, [5] * 26)):
        with pytest.raises(UserError, match=f"request 1 has a context of {len(pair[0])} tokens"):
            score(model, params, [([5], [6]), pair])
    with pytest.raises(UserError, match="Encoder is no decoder"):
        score(made("bert")[0], params, [([5], [6])])


@pytest.mark.parametrize(("length", "stride"), [(4, 1), (4, 2), (4, 4), (7, 3)])
def test_windows_predict_each_token_once_after_enough_others(length, stride):
    ids = list(range(1, 24))
    for prefix in (0, None):
        found = windows(ids, prefix, length, stride)
        assert [token for _, part in found for token in part] == (ids if prefix == 0 else ids[1:])
        whole = [*([] if prefix is None else [0]), *ids]
        for context, part in found:
            end = whole.index(part[-1]) + 1
            assert whole[end - len(context) - len(part) : end] == context + part
            assert len(context) + len(part) <= length + 1
        assert all(
            len(context) >= min(length - stride, end)
            for (context, _), end in zip(found[1:], found, strict=False)
            for end in [length]
        )
    for wrong in (0, length + 1):
        with pytest.raises(UserError, match=f"stride is {wrong}, expected 1 to {length}"):
            windows(ids, 0, length, wrong)
