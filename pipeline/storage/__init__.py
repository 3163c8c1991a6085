"""Files in, folders out: reading whatever holds rows, and dataset folders that are whole or not there."""

from mmpo.pipeline.storage.chunks import input_bytes, plan, resolve_inputs, rows, table
from mmpo.pipeline.storage.dataset import (
    MANIFEST,
    PartWriter,
    card,
    check_out,
    read_manifest,
    replacing,
    split_files,
    write_manifest,
)
from mmpo.pipeline.storage.decompress import split_lines
from mmpo.pipeline.storage.inputs import InputFile, digest
from mmpo.pipeline.storage.parts import batches

__all__ = [
    "MANIFEST",
    "InputFile",
    "PartWriter",
    "batches",
    "card",
    "check_out",
    "digest",
    "input_bytes",
    "plan",
    "read_manifest",
    "replacing",
    "resolve_inputs",
    "rows",
    "split_files",
    "split_lines",
    "table",
    "write_manifest",
]
