"""`accelerate launch examples/train.py RECIPE` does what `accelerate launch -m qlseg_hf.cli.train RECIPE` does."""

from qlseg_hf.cli.train import command

if __name__ == "__main__":
    command()
