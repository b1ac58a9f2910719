"""``AutoModel...``: the classes users of transformers know; each gives a model, which is a function, and parameters."""

from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh

from jaxformer.hub.pretrained import Pretrained, load, read_checkpoint, read_config
from jaxformer.hub.repository import Repository
from jaxformer.hub.sentence_files import MODULES_FILE, read_sentence_format
from jaxformer.hub.sides import load_sides
from jaxformer.models.config import TransformerConfig
from jaxformer.schema import UserError


class AutoConfig:
    """A model's configuration from its ``config.json``."""

    @staticmethod
    def from_pretrained(
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        **overrides: Any,
    ) -> TransformerConfig:
        """The configuration, with keys of ours laid over it; arguments as of ``AutoModel.from_pretrained``.

        Raises:
            UserError: if there is none, or it makes no sense.
        """
        repository = Repository(str(name_or_path), revision, token, cache_dir, local_files_only, subfolder)
        return read_config(repository, overrides).config


class AutoModel:
    """A body without a head: ``last_hidden_state`` and, where it was trained with a pooler, ``pooler_output``."""

    kind: ClassVar[str] = "body"

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | Path,
        *,
        num_labels: int | None = None,
        labels: tuple[str, ...] = (),
        dtype: str = "float32",
        mesh: Mesh | None = None,
        seed: int = 0,
        ignore_mismatched_sizes: bool = False,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        **overrides: Any,
    ) -> Pretrained:
        """The model and its parameters, ``model, params = ...``.

        Weights are read tensor by tensor, from safetensors, Flax msgpack or, with PyTorch installed, its pickles,
        through a reader that executes nothing. Parameters that the checkpoint lacks are initialised and named in a
        warning, as is what was left out of it.

        Args:
            name_or_path: a folder, or ``owner/name`` on the Hub.
            num_labels: classes of a classifier; default: those of ``config.json``.
            labels: their names.
            dtype: of the parameters and of the computation, ``float32`` or ``bfloat16``.
            mesh: devices to spread the parameters over by the rules of ``jaxformer.parallel``; every process then reads
                only what its devices hold. Default: the default device.
            seed: of the parameters that are new.
            ignore_mismatched_sizes: a head's parameter of another shape is initialised instead of refused.
            revision: branch, tag or commit on the Hub.
            token: access token; default: the stored one.
            cache_dir: where downloads are kept; default ``HF_HOME``.
            local_files_only: use what the cache has, ask nobody.
            subfolder: folder inside of the repository that holds the model.
            **overrides: keys of ``TransformerConfig`` that replace what ``config.json`` says, such as ``dropout=0.2``.

        Raises:
            UserError: if there is no such model, its files are broken, or it has no such head.
        """
        return load(
            Repository(str(name_or_path), revision, token, cache_dir, local_files_only, subfolder),
            cls.kind,
            num_labels=num_labels,
            labels=tuple(labels),
            dtype=dtype,
            mesh=mesh,
            seed=seed,
            ignore_mismatched_sizes=ignore_mismatched_sizes,
            overrides=overrides,
        )


class AutoSentenceEncoder:
    """The vector of a text, as a folder of sentence-transformers says: ``embedding``."""

    @staticmethod
    def from_pretrained(
        name_or_path: str | Path,
        *,
        dtype: str = "float32",
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Pretrained:
        """The model and its parameters; arguments as of ``AutoModel.from_pretrained``.

        Raises:
            UserError: if there is no such model, or it says no way from states to a vector.
        """
        repository = Repository(str(name_or_path), revision, token, cache_dir, local_files_only)
        found = read_sentence_format(repository)
        if found is None:
            raise UserError(f"{name_or_path} has no {MODULES_FILE} with a pooling, expected a sentence encoder")
        body, _, loaded, _ = read_checkpoint(repository, "body", dtype=dtype, overrides=overrides)
        params = unflatten_dict(loaded.params, sep="/")
        params.pop("pooler", None)  # not a part of the states
        dense = jax.tree.map(lambda x: jnp.asarray(x, dtype), found[1])
        return Pretrained(found[0].encoder(body.config), params | dense)


class AutoModelForCausalLM(AutoModel):
    """A decoder with its language-model head: ``logits``."""

    kind = "causal_lm"


class AutoModelForMaskedLM(AutoModel):
    """An encoder with its masked-language-model head: ``logits``."""

    kind = "masked_lm"


class AutoModelForPreTraining(AutoModel):
    """An encoder with the heads it was pre-trained with: BERT's and ALBERT's two, ELECTRA's discriminator."""

    kind = "pre_training"


class AutoModelForSeq2SeqLM(AutoModel):
    """An encoder-decoder with its language-model head: ``logits``."""

    kind = "seq2seq_lm"


class EncoderDecoderModel(AutoModelForSeq2SeqLM):
    """An encoder-decoder of an encoder and a decoder of other families: ``logits``."""

    @staticmethod
    def from_encoder_decoder_pretrained(
        encoder: str | Path,
        decoder: str | Path,
        *,
        dtype: str = "float32",
        mesh: Mesh | None = None,
        seed: int = 0,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        **overrides: Any,
    ) -> Pretrained:
        """A model that begins with the weights of an encoder and a language model, ``model, params = ...``.

        The decoder reads the encoder by cross-attention, which is new, as is a linear layer between the two if they are
        of other widths: train the model before use (Rothe et al. 2020, "Leveraging Pre-trained Checkpoints for Sequence
        Generation Tasks"). An encoder, such as BERT, may be either side.

        Args:
            encoder: a folder, or ``owner/name`` on the Hub.
            decoder: the same; one of a family that ``docs/models.md`` lists for it.
            dtype: of the parameters and of the computation, ``float32`` or ``bfloat16``.
            mesh: as of ``from_pretrained``.
            seed: of the parameters that are new.
            token: access token; default: the stored one.
            cache_dir: where downloads are kept; default ``HF_HOME``.
            local_files_only: use what the cache has, ask nobody.
            **overrides: keys of ``TransformerConfig``: ``decoder_start_token_id``, ``pad_token_id`` and
                ``eos_token_id`` of the targets (default: the decoder's own ids, the first its ``bos_token_id``);
                ``encoder_dropout=0.2`` for one side, ``dropout=0.2`` for both.

        Raises:
            UserError: if there is no such model, or one of the two cannot be that side.
        """
        of_hub = (None, token, cache_dir, local_files_only)
        options: dict[str, Any] = {"dtype": dtype, "mesh": mesh, "seed": seed, "overrides": overrides}
        return load_sides(Repository(str(encoder), *of_hub), Repository(str(decoder), *of_hub), **options)


class AutoModelForSequenceClassification(AutoModel):
    """A score per class for the text: ``logits``."""

    kind = "sequence_classification"


class AutoModelForTokenClassification(AutoModel):
    """A score per class for every token: ``logits``."""

    kind = "token_classification"


class AutoModelForQuestionAnswering(AutoModel):
    """Scores of every token as the first and the last of the answer: ``start_logits``, ``end_logits``."""

    kind = "question_answering"


class CLIPTextModelWithProjection(AutoModel):
    """CLIP's text encoder with its projection: ``text_embeds``."""

    kind = "text_projection"


class AutoModelForTextEncoding(AutoModel):
    """The encoder of an encoder-decoder alone: ``last_hidden_state``."""

    kind = "text_encoding"


class AutoModelForNextSentencePrediction(AutoModel):
    """Two scores of a pair of texts: for following each other, and for not doing so."""

    kind = "next_sentence_prediction"


class AutoModelForMultipleChoice(AutoModel):
    """A score per choice: ``logits``."""

    kind = "multiple_choice"
