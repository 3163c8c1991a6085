"""Files in, folders out: reading whatever holds rows, dataset folders that are whole or not there."""

from mmpo.pipeline.storage.accounting import RowAccounting
from mmpo.pipeline.storage.dataset import (
    MANIFEST,
    PartWriter,
    card,
    check_out,
    describe,
    made_of,
    manifest_of,
    read_manifest,
    replacing,
    sources_table,
    write_feedback,
    write_manifest,
)
from mmpo.pipeline.storage.files import (
    FileDigest,
    Identity,
    atomic_file,
    atomic_folder,
    digest,
    file_digest,
    file_lock,
    identity,
    is_leftover,
    remove,
    text_digest,
)
from mmpo.pipeline.storage.inputs import input_bytes, resolve_inputs
from mmpo.pipeline.storage.manifest import manifest_text, plain, safe_name
from mmpo.pipeline.storage.objects import apart, cache_folder, dataset_at, name_of, on_disk, refuse_url, url_of
from mmpo.pipeline.storage.parts import about_part, batches, part_files, part_schema, read_parquet, read_parts, split_files
from mmpo.pipeline.storage.rows import plan, rows, table
from mmpo.pipeline.storage.text_files import InputFile, split_lines
