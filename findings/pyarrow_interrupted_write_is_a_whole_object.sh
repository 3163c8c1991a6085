#!/bin/sh
# pyarrow 26.0.1: a block `with S3FileSystem.open_output_stream(key) as out:` that ends by an error writes what it has so far as a whole object under the
# final name: leaving the block closes the stream, and closing completes the upload; nothing in Python aborts it. Even a stream that is merely dropped, `del out`,
# completes. A local file would be short as well, but S3 promises objects that are whole or not there, and readers take half of a Parquet or JSON lines
# file for all of it. What holds: a name that no reader knows until something else names it, and a size that is compared.
# A sibling: FileSystem.from_uri("s3://...") goes to AWS_ENDPOINT_URL, S3FileSystem() does not, and asks Amazon with the keys of another store.
# Seen: after a KeyboardInterrupt the object has 1 of 3 lines, after `del` too; the constructor reaches for bucket.s3.us-east-1.amazonaws.com
set -eu
folder=$(mktemp -d)
server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q pyarrow==26.0.1 'moto[s3]==5.2.5' flask==3.1.3 flask-cors==6.0.5 python-dateutil==2.9.0.post0
port=$(python3 -c 'import socket; one = socket.socket(); one.bind(("127.0.0.1", 0)); print(one.getsockname()[1])')
"$folder/venv/bin/moto_server" -H 127.0.0.1 -p "$port" >"$folder/said.txt" 2>&1 &
server=$!
until grep -q "Running on" "$folder/said.txt"; do sleep 0.2; done
AWS_ACCESS_KEY_ID=testing AWS_SECRET_ACCESS_KEY=testing AWS_EC2_METADATA_DISABLED=true \
    "$folder/venv/bin/python" - "http://127.0.0.1:$port" <<'PYTHON'
import os
import sys

from pyarrow import fs

url = sys.argv[1]
s3 = fs.S3FileSystem(endpoint_override=url, region="us-east-1", allow_bucket_creation=True)
s3.create_dir("bucket")


def size(key):
    return s3.get_file_info(f"bucket/{key}").size


try:
    with s3.open_output_stream("bucket/interrupted.jsonl") as out:
        for row in range(3):
            out.write(b'{"row": 1}\n')
            raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
out = s3.open_output_stream("bucket/dropped.jsonl")
out.write(b'{"row": 1}\n')
del out
print(f"bytes of 3 lines of 11: interrupted {size('interrupted.jsonl')}, dropped {size('dropped.jsonl')}")
assert size("interrupted.jsonl") == size("dropped.jsonl") == 11

os.environ["AWS_ENDPOINT_URL"] = url
found, path = fs.FileSystem.from_uri("s3://bucket/dropped.jsonl")
assert found.get_file_info(path).size == 11
quick = fs.AwsStandardS3RetryStrategy(max_attempts=1)
try:
    fs.S3FileSystem(region="us-east-1", retry_strategy=quick, connect_timeout=3).get_file_info("bucket/dropped.jsonl")
    raise SystemExit("the constructor goes to AWS_ENDPOINT_URL, too")
except OSError as error:
    print(f"S3FileSystem() beside AWS_ENDPOINT_URL={url}: {str(error).partition('Details: ')[2] or error}")
PYTHON
