"""Tiny models whose texts can be read."""

import json

import jaxformer
from tests.pipelines import tiny

TEXT = "Ann said the old mill stood by a river."
TASKS = {
    "text-classification": "classes",
    "token-classification": "tags",
    "question-answering": "spans",
    "fill-mask": "words",
    "zero-shot-classification": "nli",
    "feature-extraction": "states",
    "text-ranking": "number",
    "text-generation": "writes",
    "summarization": "rewrites",
}


def opened(folder, task, chat=False, **options):
    """A pipeline for the task; what it writes is ASCII, never ends by itself, and is a conversation if asked."""
    tiny.save(folder, TASKS[task])
    if task == "text-generation":
        path = folder / "tokenizer_config.json"
        settings = json.loads(path.read_text())
        settings["chat_template"] = settings["chat_template"] if chat else None
        path.write_text(json.dumps({key: value for key, value in settings.items() if value is not None}))
        words = jaxformer.AutoTokenizer.from_pretrained(folder)
        others = [[n] for n in range(len(words)) if not words.decode([n]).isalpha() or not words.decode([n]).isascii()]
        options["bad_words_ids"] = [*others, *([n] for n in range(5))]
    return jaxformer.pipeline(task, str(folder), **options)
