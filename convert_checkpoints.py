#!/usr/bin/env python3
"""`python convert_checkpoints.py CHECKPOINT.pth FOLDER` is `qlseg convert CHECKPOINT.pth FOLDER`."""

from qlseg_hf.cli.convert import command

if __name__ == "__main__":
    command()
