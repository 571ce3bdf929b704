"""Real handwritten digits: scikit-learn's copy of the UCI optical recognition set, 1,797 images of 8 x 8."""

from functools import cache

import numpy as np
from numpy.typing import NDArray


@cache
def handwritten(test: bool) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (N, 8, 8) with ink in 0..1 and labels (N,), of the training or the test half of the split
    `train_test_split(test_size=0.25, random_state=0, stratify=labels)`."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    parts = train_test_split(images, labels, test_size=0.25, random_state=0, stratify=labels)
    chosen, target = (parts[1], parts[3]) if test else (parts[0], parts[2])
    return (chosen.reshape(-1, 8, 8) / 16).astype(np.float32), target.astype(np.int64)
