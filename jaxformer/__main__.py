"""``python -m jaxformer COMMAND``."""

from jaxformer.cli import main

main()
