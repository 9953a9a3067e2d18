"""Rows as Parquet. The only module that imports pyarrow, which the extra `parquet` installs."""

from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final

import pyarrow as pa
from pyarrow import parquet

from scoreboard.ledger.exports import Column, ColumnType

_TYPES: Final[Mapping[ColumnType, pa.DataType]] = {
    "text": pa.string(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "time": pa.timestamp("us", tz="UTC"),
}


class ParquetRows:
    """Writes rows to a binary file, which the caller closes; each call makes a row group."""

    def __init__(self, file: BinaryIO, columns: Sequence[Column]) -> None:
        self._schema = pa.schema([(one.name, _TYPES[one.type]) for one in columns])
        sink = pa.PythonFile(_Sink(file), mode="w")
        self._writer = parquet.ParquetWriter(sink, self._schema, compression="zstd")

    def write(self, rows: Sequence[Sequence[Any]]) -> None:
        """Write rows."""
        values = zip(*rows, strict=True)
        arrays = [
            pa.array(list(column), field.type)
            for column, field in zip(values, self._schema, strict=True)
        ]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def finish(self) -> None:
        """Write the footer. The file stays open."""
        self._writer.close()


class _Sink:
    """A file with a position, which a pipe and an entry of an archive do not have."""

    closed = False

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._position = 0

    def write(self, data: bytes) -> int:
        """Write all of ``data``."""
        self._file.write(data)
        self._position += len(data)
        return len(data)

    def tell(self) -> int:
        """Return the number of bytes written."""
        return self._position

    def flush(self) -> None:
        """Do nothing: the file is flushed when it is complete."""

    def close(self) -> None:
        """Do nothing: the file belongs to the caller."""
