"""The golden values of alignment are what TRL computes now."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxformer.hub.tokenizer import AutoTokenizer
from jaxformer.tasks.records import Tally
from jaxformer.tasks.responses import ResponseEncoder
from jaxformer.tasks.row_readers import Answered
from tests.golden import alignment, tokenizers

pytestmark = pytest.mark.parity
CHAT = [
    {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "sat on"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "the mat "},
]

CHAT = [
    {"role": "user", "content": "the cat?"},
    {"role": "assistant", "content": "sat on"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "the mat "},
]


def test_the_golden_file_is_what_trl_makes_now():
    stored, made = alignment.load(), alignment.make()
    assert stored.keys() == made.keys()
    for key in stored:
        np.testing.assert_allclose(stored[key], made[key], rtol=1e-10, err_msg=key)


def test_distillation_is_that_of_torch():
    import torch

    from jaxformer import functional as F

    drawn, temperature = alignment.inputs(), 2.5
    logits, teacher = (torch.tensor(drawn[name], requires_grad=name == "student") for name in ("student", "teacher"))
    real = torch.tensor(drawn["mask"][0]).bool()
    student = torch.log_softmax(logits[real] / temperature, -1)
    divergence = torch.nn.KLDivLoss(reduction="sum")(student, torch.softmax(teacher[real] / temperature, -1))
    labels = torch.where(real, torch.tensor(drawn["mask"][1]), -100)
    nll = torch.nn.CrossEntropyLoss(reduction="sum")(logits.flatten(0, 1), labels.flatten())
    # As transformers' example of DistilBERT weighs them.
    loss = 0.7 * temperature**2 * divergence + 0.3 * nll
    loss.backward()

    def ours(logits: jax.Array) -> tuple[jax.Array, F.DistillationSums]:
        # The hidden states are the logits, and the head changes nothing.
        one = F.HeadWeights(jnp.eye(logits.shape[-1]))
        options = {"temperature": temperature, "hard_weight": 0.3, "chunk_tokens": 12}
        there = jnp.asarray(drawn["teacher"], jnp.float32)
        sums = F.chunked_distillation_loss(logits, one, there, one, jnp.asarray(labels.numpy()), **options)
        return sums.total, sums

    start = jnp.asarray(drawn["student"], jnp.float32)
    (total, sums), gradient = jax.value_and_grad(ours, has_aux=True)(start)
    np.testing.assert_allclose(total, loss.item(), rtol=1e-5)
    np.testing.assert_allclose(sums.divergence, temperature**2 * divergence.item(), rtol=1e-5)
    np.testing.assert_allclose(gradient, logits.grad.numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["qwen2_5", "llama3", "phi3", "qwen3_instruct_2507"])
def test_answers_of_a_dialogue_are_those_that_transformers_marks(name, tmp_path):
    import transformers  # here, so that collecting this file needs neither
    import trl

    folder = tokenizers.write("gpt2", tmp_path)
    templates = Path(trl.__file__).parent / "chat_templates"
    marked = (templates / f"{name}_training.jinja").read_text()
    # Phi-3's own writes an end behind every last message; of Qwen 2.5 TRL marks a line end of the prompt too.
    plain = None if name in ("phi3", "qwen2_5") else (templates / f"{name}.jinja").read_text()
    hf = transformers.AutoTokenizer.from_pretrained(folder, chat_template=marked)
    ours = AutoTokenizer.from_pretrained(folder, chat_template=marked)
    expected = hf.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    learned = {}
    for template in filter(None, (marked, plain)):
        encoder = ResponseEncoder(ours, template)
        (found,) = encoder.encode([({}, Answered([], CHAT))], Tally())
        assert found.prompt + found.response == expected["input_ids"]
        learned[template] = [*[0] * len(found.prompt), *map(int, found.learned)]
    assert learned[marked] == expected["assistant_masks"]
    if plain is not None:  # told turn by turn
        assert learned[plain] == learned[marked]
