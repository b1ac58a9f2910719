"""An HTTP server with the interface of OpenAI's for generating models, encoders, classifiers and cross-encoders."""
