"""What is written of the sums that librwkv gathers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rwkvflow.base.errors import UsageError
from rwkvflow.base.files import remove
from rwkvflow.base.outputs import beside, put
from rwkvflow.stages import fetch

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CALIBRATION = fetch.SHIPPED_CALIBRATION_TEXT


def write_imatrix(
    output: Path,
    version: str,
    sums: Mapping[str, NDArray[np.float64]],
    chunks: int,
    chunk_size: int,
    texts: Sequence[Path],
) -> str:
    """Write the file, whole or not at all; lines that say what it is. Raises UsageError for a version without GGUF."""
    from rwkvflow.worker.formats.gguf.imatrix import imatrix_bytes, of_sums

    matrix = of_sums(version, sums, chunks * chunk_size, [text.name for text in texts], chunk_size)
    if not matrix.sums:
        raise UsageError(f"version {version} has no GGUF files, and nothing else is made with an importance matrix")
    data, partial = imatrix_bytes(matrix), beside(output)
    try:
        partial.write_bytes(data)
        put(partial, output)
    except OSError as error:
        raise UsageError(f"{output} cannot be written: {error.strerror}") from error
    finally:
        remove(partial)
    digest = hashlib.sha256(data).hexdigest()
    said = f"{len(matrix.sums)} matrices over {chunks} chunks of {chunk_size} tokens"
    return f"{output} {len(data)} bytes sha256:{digest}\n  {said}"
