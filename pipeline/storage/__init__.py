"""Files in, folders out: reading whatever holds rows, dataset folders that are whole or not there, and other tools' formats."""

from mmpo.pipeline.storage.accounting import RowAccounting
from mmpo.pipeline.storage.dataset import (
    MANIFEST,
    PartWriter,
    batches,
    card,
    check_out,
    manifest_of,
    read_manifest,
    replacing,
    split_files,
    write_manifest,
)
from mmpo.pipeline.storage.export import EXPORTS, export
from mmpo.pipeline.storage.files import atomic_file, atomic_folder, digest, file_lock, is_leftover, text_digest
from mmpo.pipeline.storage.inputs import input_bytes, resolve_inputs
from mmpo.pipeline.storage.rows import plan, rows, table
from mmpo.pipeline.storage.text_files import InputFile, split_lines
