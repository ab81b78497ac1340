"""app.py of a Hugging Face Space: the page of `qlseg app` for the model in the Space's variable QLSEG_MODEL.

Upload this file as app.py beside the folder `qlseg_hf` (or name qlseg-hf in requirements.txt). QLSEG_PICTURES names a
folder of example pictures; without it the page offers drawn scenes.
"""

import os
from pathlib import Path

from qlseg_hf.app.page import serve

pictures = os.environ.get("QLSEG_PICTURES")
serve(os.environ["QLSEG_MODEL"], Path(pictures) if pictures else None)
