"""The bounds between two values: as close as the dtype that computed them makes them, on any processor.

Processors, numbers of threads, widths of batches and divisions over processes add the same terms in another order.
What was rounded on the way therefore differs a little, and never by more than its precision. Orders, accuracies,
weights and whatever else is not rounded are compared by ``==`` and ``torch.equal``.
"""

import io

import numpy as np
import pandas as pd
import torch

# The relative error of sums of products, through all layers and back: sums of fp32 differ by about 1e-5 of the largest.
PRECISION = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2**-7, torch.bfloat16: 2**-4}
FACTORS = 3  # norms that a score multiplies; each adds its relative error to the logarithm of the product


def close(found, expected, dtype=torch.float32, scale=None):
    """Values computed in ``dtype`` are equal but for rounding: within its precision of the largest expected one.

    found, expected: tensors, arrays, lists or numbers. scale: how large the terms are, where they cancel and the values
    are smaller. Values that are not finite are equal.
    """
    found, expected = _alike(found, expected)
    if scale is None:
        finite = expected[expected.isfinite()]
        scale = float(finite.abs().max()) if len(finite) else 0.0
    torch.testing.assert_close(found, expected, rtol=0, atol=PRECISION[dtype] * scale, equal_nan=True)


def close_logs(found, expected, dtype=torch.float32):
    """The same of natural logarithms of products of norms, such as scores: their error is absolute."""
    close(found, expected, dtype, scale=FACTORS)


def differ(found, expected, dtype=torch.float32):
    """Some value differs by ten times more than rounding explains."""
    found, expected = _alike(found, expected)
    difference, largest = (found - expected).abs().max(), expected.abs().max()
    assert difference > 10 * PRECISION[dtype] * largest, f"{difference:.3g} is within the precision of {dtype}"


def close_tables(found, expected, dtype=torch.float32, logs=False):
    """Tables, such as those of runs: numbers with a fraction are close, all else is equal. logs: scores are such."""
    assert list(found.columns) == list(expected.columns)
    for name, column in expected.items():
        if column.dtype.kind != "f":
            pd.testing.assert_series_equal(found[name], column)
        elif name == "smallest gap" or (name == "score" and logs):
            close_logs(found[name], column, dtype)
        else:
            close(found[name], column, dtype)


def close_files(found, expected, dtype=torch.float32):
    """Folders as {path: bytes}: scores in trajectories' tables are close, and all else in all files is equal."""
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        if found[name] == content:
            continue
        if name.endswith(".csv"):
            tables = [pd.read_csv(io.BytesIO(each)) for each in (found[name], content)]
            close_tables(*tables, dtype)
        elif name.endswith(".npz"):
            with np.load(io.BytesIO(found[name])) as arrays, np.load(io.BytesIO(content)) as others:
                assert arrays.files == others.files
                assert all(np.array_equal(arrays[each], others[each]) for each in others.files), name
        else:
            assert found[name] == content, name


def _alike(*values):
    """Tensors as they are where all are, without gradients; else all as float64."""
    if all(isinstance(value, torch.Tensor) for value in values):
        return [value.detach() for value in values]
    return [torch.tensor(np.asarray(value, dtype=np.float64)) for value in values]
