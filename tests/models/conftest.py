from pathlib import Path

import numpy as np
import pytest

WORDS = "the of and a to in he have it that for they with as not on she at by this we you do but"


@pytest.fixture(scope="session")
def text(tmp_path_factory) -> Path:
    """Forty documents of random words in two domains."""
    folder = tmp_path_factory.mktemp("text")
    rng = np.random.default_rng(0)
    for domain in ("prose", "verse"):
        (folder / domain).mkdir()
        for i in range(20):
            words = rng.choice(WORDS.split(), 400)
            (folder / domain / f"{i}.txt").write_text(" ".join(words), encoding="utf-8")
    return folder
