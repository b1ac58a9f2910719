"""The base of the pipelines that generate text: options, defaults, batches of prompts."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from jaxformer.generation import GenerationConfig, Piece, generate, prepare, stream
from jaxformer.pipelines.base_pipeline import Pipeline
from jaxformer.pipelines.batching import Row, bucket, in_batches
from jaxformer.schema import UserError

NEW_TOKENS = 256


class GenerationOptions(GenerationConfig):
    """Options of a pipeline that generates text: those of ``generate`` and its own."""

    max_new_tokens: int = Field(NEW_TOKENS, ge=0, description="most new tokens; default: as many as fit")
    seed: int = Field(0, ge=0, description="random seed; a text depends on its prompt and the seed only")
    weights: Literal["float32", "bfloat16", "int8"] | None = Field(
        None, description="type in which the weights are stored; an option of the pipeline, not of a call"
    )
    cache_dtype: Literal["float32", "bfloat16", "int8"] | None = Field(
        None, description="type in which keys and values are cached"
    )


class GenerationPipeline(Pipeline):
    """Base of the pipelines that generate text."""

    Options: ClassVar[type[Any]] = GenerationOptions
    # Generation is slow: a small window returns results sooner.
    window_batches = 4
    list_windows = 1
    own_defaults: ClassVar[Mapping[str, Any]] = {}

    def prepare(self) -> None:
        """Converts the parameters to the layout of decoding, once."""
        self.params = prepare(self.model, self.params, self.weights)

    @property
    def defaults(self) -> dict[str, Any]:
        """The task's defaults, overridden by ``generation_config.json`` and by ``task_specific_params``."""
        found = {**self.own_defaults, **self.opened.generation, **super().defaults}
        if found.get("max_length") is not None:
            # Not asked for: what fits.
            longest = self.model.config.decoder_side.max_length + (1 if self.encoder_decoder else 0)
            found["max_length"] = min(int(found["max_length"]), longest)
        # ``room`` may lower the default of max_new_tokens.
        return {name: value for name, value in found.items() if name != "max_new_tokens"}

    def parse(self, options: Mapping[str, Any]) -> Any:
        """The options of a call; defaults that conflict with what is given give way."""
        given = {**self.given, **options}
        eased: dict[str, Any] = {}
        if given.get("do_sample") and "num_beams" not in given:
            eased["num_beams"] = 1
        if given.get("num_beams", 1) > 1 and "do_sample" not in given:
            eased["do_sample"] = False
        latest = options if "max_length" in options else given
        if "max_new_tokens" in latest:
            eased["max_length"] = None
        if "min_new_tokens" in (options if "min_length" in options else given):
            eased["min_length"] = None
        if given.get("max_new_tokens") is not None and "min_new_tokens" not in given:
            eased["min_new_tokens"] = min(self.defaults.get("min_new_tokens", 0), given["max_new_tokens"])
        try:
            return super().parse({**options, **eased})
        except UserError as error:
            brought = {name: value for name, value in self.defaults.items() if name in self.opened.generation}
            if not brought:
                raise
            said = ", ".join(f"{name}: {value!r:.40}" for name, value in brought.items())
            raise UserError(f"{error} ({self.opened.settings_from} has {said})") from None

    def least(self, row: Row, options: Any) -> int:
        """Minimum number of tokens to generate after a row."""
        if options.min_length is None:
            return int(options.min_new_tokens)
        return max(int(options.min_length) - (1 if self.encoder_decoder else len(row)), 0)

    def room(self, row: Row, options: Any) -> int:
        """Maximum number of tokens to generate after a row; refuses it if there is no room for what was asked."""
        prompt = 0 if self.encoder_decoder else len(row)
        longest = int(self.model.config.decoder_side.max_length)
        if options.max_length is not None:
            asked = options.max_length - (1 if self.encoder_decoder else prompt)
        elif "max_new_tokens" in options.model_fields_set:
            asked = options.max_new_tokens
        else:
            # Not asked for: what fits.
            asked = min(self.opened.generation.get("max_new_tokens", NEW_TOKENS), longest - prompt)
        if asked < 1 or prompt + asked > longest:
            what = f"max_length={options.max_length}" if options.max_length is not None else f"{asked} new tokens"
            raise UserError(
                f"the prompt has {prompt} tokens, and {what} were asked of a model of {longest}; expected room for at "
                "least one and for all of them: shorten the prompt, or set max_new_tokens="
            )
        return asked

    @property
    def encoder_decoder(self) -> bool:
        """True if the generated tokens do not follow the prompt in one sequence."""
        return bool(self.model.config.architecture == "encoder_decoder")

    def run(self, rows: Sequence[Row], options: Any) -> list[Any]:
        """The texts of each row."""
        found: list[Any] = [None] * len(rows)
        for numbers in in_batches([len(row) for row in rows], self.batch_size):
            # A batch has one number of new tokens.
            rooms: dict[tuple[int, int], list[int]] = {}
            for number in numbers:
                row = rows[number]
                rooms.setdefault((self.room(row, options), self.least(row, options)), []).append(number)
            for some in rooms.values():
                for number, texts in zip(some, self._write([rows[n] for n in some], options), strict=True):
                    found[number] = texts
        return found

    def pieces(self, item: Any, **options: Any) -> Iterator[Piece]:
        """Streams the text of one input; the tokens are those of a call. Beams are not possible.

        Raises:
            UserError: as a call.
        """
        chosen = self.parse(options)
        row = self.encode([item], chosen)[0][0]
        return stream(
            self.model,
            self.params,
            [row.inputs["input_ids"]],
            tokenizer=self.tokenizer,
            seed=[chosen.seed],
            cache_dtype=chosen.cache_dtype,
            config=self.config(row, chosen),
        )

    def config(self, row: Row, options: Any) -> GenerationConfig:
        """The options of ``generate`` for a row, and for others with as much room."""
        room = self.room(row, options)
        chosen = {name: getattr(options, name) for name in GenerationConfig.model_fields} | self.forced(options)
        chosen |= {"max_new_tokens": room, "min_new_tokens": min(self.least(row, options), room)}
        chosen |= {"max_length": None, "min_length": None}
        if chosen["pad_token_id"] is None:
            chosen["pad_token_id"] = self.tokenizer.pad_token_id
        return GenerationConfig(**chosen)

    def _write(self, rows: list[Row], options: Any) -> list[list[str]]:
        # Pads the batch to few sizes with copies of a row, which end when it does.
        filled = [*rows, *[rows[0]] * (bucket(len(rows), self.batch_size, 1) - len(rows))]
        texts = generate(
            self.model,
            self.params,
            [row.inputs["input_ids"] for row in filled],
            tokenizer=self.tokenizer,
            seed=[options.seed] * len(filled),
            cache_dtype=options.cache_dtype,
            config=self.config(rows[0], options),
        ).text
        assert texts is not None
        count = options.num_return_sequences
        return [texts[number * count : (number + 1) * count] for number in range(len(rows))]

    def forced(self, options: Any) -> dict[str, Any]:
        """Options of ``generate`` that follow from others."""
        return {}

    def record(self, result: Any) -> dict[str, Any]:
        """The only text, or the list of them."""
        return dict(result[0]) if len(result) == 1 else {"output": result}
