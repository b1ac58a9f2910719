"""The Hugging Face format and the Hub: models and tokenizers read from there and written back."""
