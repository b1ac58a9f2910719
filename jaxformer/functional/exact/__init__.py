"""Ways to compute the same numbers so that a row's bits depend on nothing but the row (``numerics: exact``)."""
