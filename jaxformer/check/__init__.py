"""The correctness contract as checks of the user's own model, data, devices and training step.

``jaxformer check`` on the command line; here the same as functions, each of which returns a list of ``Outcome``.
"""

from collections.abc import Mapping
from typing import Any

from jaxformer.check.outcome import Check, Checks, DoesNotApplyError, Measured, Outcome, outcomes
from jaxformer.check.train_step import failures, train_step
from jaxformer.tokenizers import PreTrainedTokenizer

__all__ = [
    "Check",
    "Checks",
    "DoesNotApplyError",
    "Measured",
    "Outcome",
    "failures",
    "outcomes",
    "run",
    "train_step",
]


def run(
    model: Any, params: Any, batch: Mapping[str, Any], tokenizer: PreTrainedTokenizer | None = None
) -> list[Outcome]:
    """Checks a model and its use: padding, packing, masks, positions, cache, formulas, gradients, export, generation.

    Args:
        model: one of jaxformer's, for instance from ``AutoModelForCausalLM.from_pretrained``.
        params: its parameters.
        batch: some real tokens: ``input_ids [B, T]`` with ``attention_mask`` or ``segment_ids``, of an encoder-decoder
            best with ``decoder_input_ids``. Texts of 23, 14 and 9 tokens are cut from it.
        tokenizer: of the model, for its export and for tokens as text.

    Returns:
        An outcome for each check; ``failures(outcomes)`` are those that did not pass.
    """
    # Imported here: the checks of a run import training, which most callers of a model do not need.
    from jaxformer.check.subjects import check_model

    return list(check_model(model, params, batch, tokenizer))
