"""Writes a .npy file whose number of rows is known only at the end."""

import pathlib
from typing import Any, Self

import numpy as np


class GrowingArray:
  """A .npy file to which rows are appended.

  Args:
    path: the file to write.
    dtype: the dtype in the file.
    shape: the shape of a row.
  """

  def __init__(self, path: pathlib.Path, dtype: str, shape: tuple[int, ...]):
    self._dtype, self._shape, self._rows = np.dtype(dtype), shape, 0
    self._file = path.open('wb')
    self._write_header()

  def __enter__(self) -> Self:
    return self

  def __exit__(self, *error: Any) -> None:
    self._file.close()

  def append(self, rows: np.ndarray) -> None:
    """Appends rows, [count, *shape]."""
    if rows.shape[1:] != self._shape:
      raise ValueError(f'rows of shape {rows.shape[1:]} cannot be appended to rows of shape {self._shape}')
    self._file.write(np.ascontiguousarray(rows, self._dtype).data.cast('B') if rows.size else b'')
    self._rows += len(rows)

  def finish(self) -> None:
    """Writes the number of rows into the header. NumPy leaves room for it."""
    end = self._file.tell()
    self._file.seek(0)
    self._write_header()
    self._file.seek(end)

  def _write_header(self) -> None:
    header = {'descr': self._dtype.str, 'fortran_order': False, 'shape': (self._rows, *self._shape)}
    np.lib.format.write_array_header_1_0(self._file, header)
