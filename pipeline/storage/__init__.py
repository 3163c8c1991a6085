"""Files in, folders out: reading whatever holds rows, dataset folders that are whole or not there, and other tools' formats."""

from mmpo.pipeline.storage.accounting import RowAccounting
from mmpo.pipeline.storage.chunks import input_bytes, plan, resolve_inputs, rows, table
from mmpo.pipeline.storage.dataset import (
    MANIFEST,
    PartWriter,
    batches,
    card,
    check_out,
    read_manifest,
    replacing,
    split_files,
    write_manifest,
)
from mmpo.pipeline.storage.decompress import split_lines
from mmpo.pipeline.storage.export import EXPORTS, export
from mmpo.pipeline.storage.files import atomic_file, atomic_folder, digest, file_lock, is_leftover, text_digest
from mmpo.pipeline.storage.inputs import InputFile

__all__ = [
    "EXPORTS",
    "MANIFEST",
    "InputFile",
    "PartWriter",
    "RowAccounting",
    "atomic_file",
    "atomic_folder",
    "batches",
    "card",
    "check_out",
    "digest",
    "export",
    "file_lock",
    "input_bytes",
    "is_leftover",
    "plan",
    "read_manifest",
    "replacing",
    "resolve_inputs",
    "rows",
    "split_files",
    "split_lines",
    "table",
    "text_digest",
    "write_manifest",
]
