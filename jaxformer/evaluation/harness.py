"""The adapter of the lm-evaluation-harness: ``import jaxformer.evaluation.harness`` registers the model ``jaxformer``.

Gao et al. 2024, "The Language Model Evaluation Harness". Lengths, truncation and special tokens are those of the
harness's own ``hf`` model, so that scores can be compared.
"""

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs

from jaxformer.generation import generate
from jaxformer.generation.scoring import score, windows
from jaxformer.pipelines import pipeline
from jaxformer.schema import UserError

NEW_TOKENS = 256  # of a task that says no number, as in the harness
# Options of a task that ``generate`` has under the same name.
OPTIONS = ("do_sample", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "num_beams")


@register_model("jaxformer")
class JaxformerLM(TemplateLM):
    """A decoder for the harness.

    Args:
        pretrained: a run, a folder or a name on the Hub; or a pipeline of text generation.
        batch_size: texts that are generated at once.
        max_length: most tokens of a text; default: the model's.
        add_bos_token: put the token that begins a text before it; default: as the tokenizer does.
        prefix_token_id: token before a text without context; default: that which begins a text, else ends one.
        seed: of tasks that sample.
        **options: of ``pipeline``: ``dtype``, ``numerics``, ``weights``, ``revision`` ...
    """

    backend = "causal"

    def __init__(
        self,
        pretrained: Any,
        batch_size: int | str = 8,
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        prefix_token_id: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__()
        # Given by the harness to every model; there is one device and one way to choose a batch.
        for name in ("device", "max_batch_size"):
            options.pop(name, None)
        self.pipe = pipeline(None, pretrained, **options) if isinstance(pretrained, str) else pretrained
        if self.pipe.task != "text-generation":
            raise UserError(f"{self.pipe.name} is a model for {self.pipe.task}, expected a decoder")
        self.batch_size = int(batch_size) if str(batch_size).isdigit() else 8
        self.max_length = max_length or self.pipe.model.config.max_length
        self.tokenizer, self.seed = self.pipe.tokenizer, seed
        self._add_bos, self._prefix = add_bos_token, prefix_token_id

    @property
    def eot_token_id(self) -> int | None:
        """The token that ends a text."""
        end = self.tokenizer.eos_token_id
        return None if end is None else int(end)

    @property
    def prefix_token_id(self) -> int:
        """The token before a text without context."""
        chosen = (self._prefix, self.tokenizer.bos_token_id, self.eot_token_id)
        found = next((token for token in chosen if token is not None), None)
        if found is None:
            raise UserError(f"the tokenizer of {self.pipe.name} has no token that begins or ends a text, expected one")
        return int(found)

    @property
    def tokenizer_name(self) -> str:
        """The name under which the harness keeps requests."""
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The tokens of a text."""
        special = self._add_bos if add_special_tokens is None else add_special_tokens
        begin = self.tokenizer.decode([self.prefix_token_id], skip_special_tokens=False)
        if add_special_tokens is None and string.startswith(begin):
            special = False
        given = {} if special is None else {"add_special_tokens": special}
        return list(self.tokenizer(string, verbose=False, **given)["input_ids"])

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as a text."""
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def _loglikelihood_tokens(self, requests: Sequence[Any], **_: Any) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether greedy search would write it."""
        pairs = []
        for _, context, continuation in requests:
            # As the harness does: what is too long loses its beginning.
            whole = [*context, *continuation][-(self.max_length + 1) :]
            split = max(1, len(whole) - len(continuation))
            pairs.append((whole[:split], whole[split:]))
        found = score(self.pipe.model, self.pipe.params, pairs)
        answers = [(one.total, bool(one.greedy.all())) for one in found]
        for (texts, *_), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of whole texts, in windows without overlap."""
        found = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
            pairs = [(None, *pair) for pair in rolling(ids, self.prefix_token_id, self.max_length)]
            found.append(sum(total for total, _ in self._loglikelihood_tokens(pairs)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found[-1])
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Texts up to a stop string or the end."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        found: dict[int, str] = {}
        for numbers in groups.values():
            rows = sorted(numbers, key=lambda number: -len(requests[number].args[0]))
            for start in range(0, len(rows), self.batch_size):
                some = rows[start : start + self.batch_size]
                found.update(zip(some, self._generate([requests[number].args for number in some]), strict=True))
        for number, request in enumerate(requests):
            self.cache_hook.add_partial("generate_until", request.args, found[number])
        return [found[number] for number in range(len(requests))]

    def _generate(self, arguments: Sequence[Any]) -> list[str]:
        kwargs = normalize_gen_kwargs(arguments[0][1], NEW_TOKENS)
        new = kwargs.pop("max_gen_toks")
        if new >= self.max_length:
            raise UserError(
                f"the task asks for {new} new tokens of a model that reads {self.max_length}; set max_gen_toks lower"
            )
        stops = [stop for stop in handle_stop_sequences(kwargs.pop("until", None), eos=None) if stop]
        prompts = [self.tok_encode(context)[-(self.max_length - new) :] for context, _ in arguments]
        prompts = [prompt or [self.prefix_token_id] for prompt in prompts]
        options = {name: kwargs[name] for name in OPTIONS if kwargs.get(name) is not None}
        if not options.get("do_sample"):
            options = {name: value for name, value in options.items() if name in ("num_beams", "repetition_penalty")}
        written = generate(
            self.pipe.model,
            self.pipe.params,
            prompts,
            tokenizer=self.tokenizer,
            seed=[self.seed] * len(prompts),
            max_new_tokens=new,
            stop_strings=tuple(stops),
            eos_token_id=self.eot_token_id,
            **options,
        )
        assert written.text is not None
        return written.text


def rolling(ids: Sequence[int], prefix: int, length: int) -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations as the harness cuts a text: windows without overlap, the last with a whole context.

    >>> rolling([1, 2, 3, 4, 5], 0, 3)
    [([0], [1, 2, 3]), ([2, 3], [4, 5])]
    """
    return windows(ids, prefix, length, length)
