"""Other ways to compute attention: the same numbers, faster on some hardware for some masks."""
