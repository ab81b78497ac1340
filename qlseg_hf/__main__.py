"""`python -m qlseg_hf` is `qlseg`."""

from .cli.main import main

main()
