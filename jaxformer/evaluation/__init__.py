"""How good a model is: perplexity of texts, tasks of the lm-evaluation-harness, and judges."""
