#!/bin/sh
# arize-phoenix 20.26.1 with arize-phoenix-client 3.5.0: annotations of a span are kept one for each name and identifier, and who made them (HUMAN, LLM, CODE)
# is no part of that key. Without an identifier, which add_span_annotation does not ask for, a judge's score silently takes the place of a person's of the same
# name, as the second of two people takes the first one's; the score that was there is gone. With identifiers all stay.
# Seen: "without identifiers: LLM 1.0; with identifiers: HUMAN 5.0, LLM 1.0".
set -eu
folder=$(mktemp -d)
trap 'kill "$(cat "$folder/pid" 2>/dev/null)" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install -q arize-phoenix==20.26.1 arize-phoenix-client==3.5.0
export PHOENIX_WORKING_DIR="$folder/data" PHOENIX_PORT=16116 PHOENIX_GRPC_PORT=14417 PHOENIX_TELEMETRY_ENABLED=false
mkdir "$folder/data"
"$folder/venv/bin/phoenix" serve >"$folder/log" 2>&1 & echo $! >"$folder/pid"
"$folder/venv/bin/python" -W ignore - <<'PYTHON' || { tail -20 "$folder/log"; exit 1; }
import time
import urllib.request
from datetime import datetime, timezone

from phoenix.client import Client

address = "http://127.0.0.1:16116"
for _ in range(120):
    try:
        urllib.request.urlopen(f"{address}/healthz", timeout=2)
        break
    except OSError:
        time.sleep(1)
client, now = Client(base_url=address), datetime.now(timezone.utc).isoformat()
names = {"without identifiers": {}, "with identifiers": {"HUMAN": "anna", "LLM": "a-judge"}}
told = []
for place, (title, identifiers) in enumerate(names.items(), 1):
    span = f"{place:016x}"
    about = {"name": "chat", "context": {"trace_id": f"{place:032x}", "span_id": span}, "span_kind": "LLM", "start_time": now, "end_time": now}
    client.spans.log_spans(project_identifier="default", spans=[{**about, "status_code": "OK", "attributes": {"input.value": "q"}}])
    time.sleep(2)
    for kind, score in (("HUMAN", 5.0), ("LLM", 1.0)):
        more = {"identifier": identifiers[kind]} if identifiers else {}
        client.spans.add_span_annotation(span_id=span, annotation_name="quality", annotator_kind=kind, score=score, **more)
        time.sleep(2)
    frame = client.spans.get_span_annotations_dataframe(span_ids=[span], project_identifier="default")
    found = sorted(zip(frame["annotator_kind"], frame["result.score"]))
    told.append(f"{title}: {', '.join(f'{kind} {score}' for kind, score in found)}")
print("; ".join(told))
PYTHON
