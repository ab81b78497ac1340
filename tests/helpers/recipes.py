"""Recipes that no command reads."""

from qlseg_hf.training.recipe import Recipe


def small_recipe(**changes) -> Recipe:
    """Two steps of accumulation on one process, of small crops; no data and no folder of its own."""
    recipe = {"data": "-", "output_dir": "-", "crop_size": 32, "max_steps": 10}
    return Recipe(**(recipe | {"total_batch_size": 4, "per_device_batch_size": 2} | changes))
