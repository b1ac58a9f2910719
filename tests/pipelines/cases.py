"""Calls that both libraries answer; what transformers says of them is in ``tests/golden/pipelines.json``."""

from tests.pipelines import tiny

TEXTS = [
    "Ann said the old mill stood by a river.",
    "rain fell",
    "nobody worked in it for six years, it ran over the hills past Ann and a good old river, said nobody",
    "bad",
    "the mills ran? é Ann worked.",
]
LONG = "Ann said rain fell over the old mill by a river for six years. " * 4
PAIRS = [{"text": TEXTS[0], "text_pair": "it stood in the hills"}, {"text": "rain", "text_pair": TEXTS[2]}]
MASKED = ["the old [MASK] stood by a river.", "Ann [MASK] it."]
STRATEGIES = ("none", "simple", "first", "average", "max")
CHAT = [{"role": "user", "content": "rain?"}]
GREEDY = {"do_sample": False, "max_new_tokens": 8}

# Name: task, model, options of the pipeline, what it is called with, options of the call.
CASES = {
    "classes": ("text-classification", "classes", {}, TEXTS, {}),
    "one text": ("text-classification", "classes", {}, TEXTS[0], {}),
    "one text, two labels": ("text-classification", "classes", {}, TEXTS[1], {"top_k": 2}),
    "one text, pipeline of all labels": ("text-classification", "classes", {"top_k": None}, TEXTS[1], {}),
    "all labels": ("sentiment-analysis", "classes", {}, TEXTS[:2], {"top_k": None}),
    "each label by itself": ("text-classification", "classes", {"function_to_apply": "sigmoid"}, TEXTS, {}),
    "logits": ("text-classification", "classes", {"function_to_apply": "none"}, TEXTS[:2], {"top_k": 3}),
    "pairs": ("text-classification", "classes", {}, PAIRS, {}),
    "one pair": ("text-classification", "classes", {}, PAIRS[0], {}),
    "a single label": ("text-classification", "number", {}, TEXTS, {}),
    "several labels": ("text-classification", "several", {}, TEXTS[:3], {"top_k": None}),
    "regression": ("text-classification", "regression", {}, TEXTS, {}),
    **{
        f"entities, {strategy}": ("token-classification", "tags", {"aggregation_strategy": strategy}, TEXTS, {})
        for strategy in STRATEGIES
    },
    "entities of one text": ("ner", "tags", {"ignore_labels": ["O", "I-LOC"]}, TEXTS[2], {}),
    "entities of windows": (
        "token-classification",
        "tags",
        {"aggregation_strategy": "simple", "stride": 8},
        [LONG, TEXTS[1]],
        {},
    ),
    "entities of words": (
        "token-classification",
        "tags",
        {},
        [TEXTS[0].split(), TEXTS[1].split()],
        {"is_split_into_words": True},
    ),
    "masks": ("fill-mask", "words", {}, MASKED, {}),
    "a list of one": ("fill-mask", "words", {"top_k": 2}, MASKED[:1], {}),
    "two masks": ("fill-mask", "words", {"top_k": 3}, "the [MASK] mill [MASK] by.", {}),
    "targets": ("fill-mask", "words", {}, MASKED[0], {"targets": ["mill", "river", "good"]}),
    "states": ("feature-extraction", "states", {}, TEXTS[:2], {}),
    "states of one text": ("feature-extraction", "states", {}, TEXTS[1], {}),
    "zero-shot": ("zero-shot-classification", "nli", {}, TEXTS[:2], {"candidate_labels": ["rain", "river", "Ann"]}),
    "zero-shot, several": (
        "zero-shot-classification",
        "nli",
        {"hypothesis_template": "it is {}."},
        TEXTS[0],
        {"candidate_labels": "rain, river", "multi_label": True},
    ),
    "prompts": ("text-generation", "writes", GREEDY, TEXTS[:2], {}),
    "one prompt, new text": ("text-generation", "writes", GREEDY, TEXTS[0], {"return_full_text": False}),
    "two beams": ("text-generation", "writes", GREEDY, TEXTS[1], {"num_beams": 2, "num_return_sequences": 2}),
    "a conversation": ("text-generation", "writes", GREEDY, CHAT, {}),
    "conversations": (
        "text-generation",
        "writes",
        GREEDY,
        [CHAT, [*CHAT, {"role": "assistant", "content": "it ran"}]],
        {},
    ),
}
MODELS = {
    "several": ("classes", {"problem_type": "multi_label_classification"}),
    "regression": ("number", {"problem_type": "regression"}),
}


def save_models(folder, family="bert", side="right"):
    """The models' folders by name."""
    names = dict.fromkeys(model for _, model, *_ in CASES.values()) | {"spans": None}
    folders = {}
    for name in names:
        what, config = MODELS.get(name, (name, {}))
        folders[name] = tiny.save(folder / f"{family}_{side}_{name}", what, family, side, **config)
    return folders


def answer(pipeline, folders, name):
    """What a library's ``pipeline`` answers."""
    task, model, options, inputs, call = CASES[name]
    return pipeline(task, model=str(folders[model]), **options)(inputs, **call)


def compare(ours, theirs, tolerance=1e-4, where=""):
    """Equal shape, labels and texts; numbers to the tolerance."""
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key in theirs:
            compare(ours[key], theirs[key], tolerance, f"{where}.{key}")
    elif isinstance(theirs, list | tuple):
        assert len(ours) == len(theirs), f"{where}: {ours} {theirs}"
        for number, pair in enumerate(zip(ours, theirs, strict=True)):
            compare(*pair, tolerance, f"{where}[{number}]")
    elif isinstance(theirs, float):
        assert abs(ours - theirs) <= tolerance, f"{where}: {ours} {theirs}"
    else:
        assert ours == theirs, f"{where}: {ours!r} {theirs!r}"
