"""A tokenizer of one letter a token."""

LETTERS = "abcdefghijklmnopqrstuvwxyz.,!"


class Letters:
    def decode(self, ids, skip_special_tokens=False):
        return "".join(LETTERS[i] for i in ids)
