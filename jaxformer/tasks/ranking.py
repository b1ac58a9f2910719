"""Ranking: a cross-encoder, which reads a query and a text as a pair and scores how well they match."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from pydantic import Field

from jaxformer import functional as F
from jaxformer.data.example_rows import Example, ExampleRows
from jaxformer.models import heads
from jaxformer.models.config import TransformerConfig
from jaxformer.tasks import metrics
from jaxformer.tasks import records as R
from jaxformer.tasks.base import Batch, LossSums, Report, Rows, Task
from jaxformer.tasks.preferences import flat_inputs
from jaxformer.tasks.text_pairs import PairConfig, real_texts, shown_pairs
from jaxformer.tokenizers import encode_batch, frame_of


class RankingConfig(PairConfig):
    """Score how well a text matches a query, from labelled pairs or from texts that do and do not."""

    type: Literal["ranking"] = Field("ranking", description="objective")
    loss: Literal["binary", "listwise"] | None = Field(
        None,
        description="binary: cross-entropy of each pair's label; listwise: of the text that belongs to the query among "
        "its negatives; default: listwise with negatives, else binary",
    )

    @property
    def trained_loss(self) -> str:
        """The loss, resolved."""
        return self.loss or ("binary" if self.negatives_column is None else "listwise")

    def check_run(self, run: Any) -> None:
        """Refuses pairs of which nothing can be learned."""
        if self.label_column is None and self.negatives_column is None:
            raise ValueError("task.label_column and task.negatives_column are missing, expected one of them; give one")
        if self.trained_loss == "listwise" and self.negatives_column is None:
            raise ValueError("task.loss is listwise without task.negatives_column, expected it; give it")


@dataclass(frozen=True, eq=False)
class Ranking(Task):
    """Binary cross-entropy of labels, or cross-entropy of the right text among those of its query.

    Inputs are ``[B, n, T]``, a row ``[CLS] query [SEP] text [SEP]`` for each text. The model's output has ``logits
    [B n, 1]``. Nogueira and Cho 2019, "Passage Re-ranking with BERT", section 3; listwise: Gao et al. 2021, "Rethink
    Training of BERT Rerankers in Multi-Stage Retrieval Pipeline".
    """

    config: RankingConfig

    def __post_init__(self) -> None:
        R.check_length(self, 2)

    def model(self, config: TransformerConfig) -> nn.Module:
        """The backbone with one score."""
        return heads.SequenceClassifier(config, 1)

    def rows(self, data: Sequence[R.Record]) -> Rows:
        """One row a record."""
        c, frame, fill = self.config, frame_of(self.tokenizer, pair=True), R.encoder_fill(self.tokenizer)

        def read(record: R.Record) -> tuple[list[str], float]:
            query, *texts = c.texts(record)
            R.require_tokens(self, frame, *([query, text] for text in texts))
            return [query, *texts], 1.0 if c.label_column is None else c.target_of(record)

        usable, tally = R.read_answers(data, read, c.bad_rows)
        ids = iter(encode_batch(self.tokenizer, [text for _, (texts, _) in usable for text in texts]))
        examples: list[Example] = []
        for _, (texts, label) in usable:
            query, *others = (next(ids) for _ in texts)
            inputs = [R.encoder_input(frame, query, other, self.sequence_length) for other in others]
            examples.append({**R.stack_rows(inputs, fill), "labels": label})
        return R.answered_rows(ExampleRows(examples, self.sequence_length, fill), usable, tally)

    def _logits(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> jax.Array:
        """``[B, n]`` float32, very small where there is no text."""
        real = real_texts(batch)
        logits = R.apply(model, params, flat_inputs(batch), dropout_key).logits
        return jnp.where(real, logits.reshape(real.shape).astype(jnp.float32), F.MASKED)

    def loss(self, model: nn.Module, params: Any, batch: Batch, dropout_key: jax.Array | None) -> LossSums:
        """Sums over the pairs, or listwise over the queries."""
        logits, real = self._logits(model, params, batch, dropout_key), real_texts(batch)
        if self.config.trained_loss == "listwise":
            found = F.cross_entropy(logits, jnp.where(real[:, 0], 0, F.IGNORE))
            return LossSums(found.total, found.tokens, {"loss": found.total})
        first = jnp.arange(real.shape[1]) == 0
        labels = jnp.where(first, jnp.asarray(batch["labels"])[:, None], 0.0)
        pairs = F.binary_cross_entropy(logits, jnp.where(real, labels, F.IGNORE))
        return LossSums(pairs.total, pairs.weight, {"loss": pairs.total})

    def predict(self, model: nn.Module, params: Any, batch: Batch) -> dict[str, jax.Array]:
        """``logits [B, n]``."""
        return {"logits": self._logits(model, params, batch, None)}

    def report(self, data: Sequence[R.Record], outputs: dict[str, np.ndarray]) -> Report:
        """Metrics of the order of each query's texts, or the correlation with labels that are not only 0 and 1."""
        c, logits = self.config, outputs["logits"].astype(np.float64)
        scores = 1 / (1 + np.exp(-np.clip(logits, -100, 100)))
        if c.label_column is None:
            counts = [len(c.texts(record)) - 1 for record in data]
            found = metrics.ranking([(np.arange(n) == 0, row[:n]) for n, row in zip(counts, logits, strict=True)])
            rows = zip(shown_pairs(c, data), counts, scores, strict=True)
            return Report(found, [texts | {"scores": R.rounded(row[:count])} for texts, count, row in rows])
        targets = np.array([c.target_of(record) for record in data])
        pairs = zip(shown_pairs(c, data), R.rounded(targets), R.rounded(scores[:, 0]), strict=True)
        shown = [texts | {"label": label, "score": score} for texts, label, score in pairs]
        if not np.isin(targets, (0, 1)).all():
            values = metrics.regression(targets, scores[:, 0])
            return Report({name: values[name] for name in ("spearman", "pearson")}, shown)
        groups: dict[str, list[int]] = {}
        for number, record in enumerate(data):
            groups.setdefault(record[c.text_column], []).append(number)
        return Report(metrics.ranking([(targets[g] == 1, logits[g, 0]) for g in groups.values()]), shown)
