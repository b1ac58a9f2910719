"""Decoding: keys and values of earlier tokens, and weights laid out for products with a few tokens."""
