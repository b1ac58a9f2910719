"""The half of a tokenizer that writes conversations in the model's own format."""

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers as hf

from jaxformer.hub.chat import Rendered, choose_template, render_chat, require_tools
from jaxformer.hub.tokenizer_batch import BatchEncoding, to_array
from jaxformer.hub.tokenizer_vocabulary import Vocabulary
from jaxformer.schema import UserError

# What apply_chat_template hands on to the tokenizer's call; all else is the template's.
_CALL_OPTIONS = (
    *("padding", "truncation", "max_length", "stride", "pad_to_multiple_of", "padding_side", "truncation_side"),
    *("return_tensors", "return_attention_mask", "return_token_type_ids", "return_offsets_mapping"),
    *("return_special_tokens_mask", "return_length"),
)


class ChatTokenizer(Vocabulary):
    """A tokenizer with chat templates.

    Attributes:
        chat_template: the chat template, or several by name; None without.
    """

    chat_template: str | dict[str, str] | None = None

    def __call__(self, *texts: Any, **options: Any) -> BatchEncoding:
        """The inputs of a model for a text or many."""
        raise NotImplementedError

    def apply_chat_template(
        self,
        conversation: Sequence[Any],
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool | str = False,
        tokenize: bool = True,
        return_dict: bool = True,
        return_assistant_tokens_mask: bool = False,
        tokenizer_kwargs: Mapping[str, Any] | None = None,
        **variables: Any,
    ) -> Any:
        """A conversation in the model's own format.

        Args:
            conversation: messages like ``{"role": "user", "content": "Hi"}``, or a list of such conversations.
            tools: the JSON schemas of what the model may call.
            chat_template: a Jinja text, or the name of one of the tokenizer's; default the tokenizer's.
            add_generation_prompt: end with what opens the assistant's answer.
            continue_final_message: end within the last message, for the model to go on; or the field it goes on with.
            tokenize: return ids, else the text.
            return_dict: return a batch, else its ``input_ids`` alone.
            return_assistant_tokens_mask: add ``assistant_masks``, 1 for what stands in ``{% generation %}`` blocks.
            tokenizer_kwargs: further arguments of the tokenizer's call.
            **variables: padding, truncation, max_length, return_tensors and the like, as of a call; all others are
                variables of the template.

        Returns:
            A batch, ids, or text; a list of texts for several conversations.

        Raises:
            UserError: there is no template, or it is wrong, refuses the conversation, or is stopped by the sandbox.
        """
        if return_assistant_tokens_mask and not (tokenize and return_dict):
            raise UserError("return_assistant_tokens_mask needs tokenize=True and return_dict=True")
        if continue_final_message and (add_generation_prompt or return_assistant_tokens_mask):
            raise UserError(
                "continue_final_message goes on with a message that add_generation_prompt and "
                "return_assistant_tokens_mask take as ended; expected one of them"
            )
        options = {name: variables.pop(name) for name in _CALL_OPTIONS if name in variables}
        template = choose_template(self.chat_template, chat_template, tools is not None)
        own = {"tools": require_tools(tools), "add_generation_prompt": add_generation_prompt}
        given = {**self.special_tokens_map, "documents": None, **variables, **own}
        many = bool(conversation) and isinstance(conversation[0], list | tuple)
        chats = [
            render_chat(template, chat, given, continue_final_message, return_assistant_tokens_mask)
            for chat in (conversation if many else [conversation])
        ]
        texts: Any = [chat.text for chat in chats] if many else chats[0].text
        if not tokenize:
            return texts
        batch = self(texts, **{"add_special_tokens": False, **options, **(tokenizer_kwargs or {})})
        if return_assistant_tokens_mask:
            batch["assistant_masks"] = _masks(batch, chats)
        return batch if return_dict else batch["input_ids"]


def _masks(batch: BatchEncoding, chats: list[Rendered]) -> Any:
    """The rows of ``assistant_masks``, in the form of the ``input_ids``."""
    masks = [_mask(row, chat) for row, chat in zip(batch.encodings or [], chats, strict=True)]
    ids = batch["input_ids"]
    if isinstance(ids, list):
        return masks if ids and isinstance(ids[0], list) else masks[0]
    return to_array("assistant_masks", masks, "np" if hasattr(ids, "setflags") else "jax")


def _mask(row: hf.Encoding, chat: Rendered) -> list[int]:
    """1 for the tokens that share a character with what the assistant said."""
    return [
        int(end > start and any(start < stop and end > begin for begin, stop in chat.generated))
        for start, end in row.offsets
    ]
