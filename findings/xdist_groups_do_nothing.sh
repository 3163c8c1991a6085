#!/bin/sh
# pytest-xdist 3.8.0: `--dist loadgroup` does not keep a group's tests in one process, and says nothing, in two cases.
# With pytest 9.2.0 the mark xdist_group has no effect at all (node ids are structured there, and xdist alters the old text; reported as its issue
# 1386). With pytest 9.1.1 it works where it stands in the file, but not where a conftest.py adds it in pytest_collection_modifyitems, as its
# documentation's own way of marking many tests would be: xdist reads the marks in the same hook, earlier, unless ours is tryfirst.
# What a group shares (a server, a trained model) is then made in every process. `--dist loadfile` keeps a file's tests together with both.
# Seen: processes that ran the one group's tests: "9.2.0: mark 2, conftest 2, tryfirst 2, loadfile 1", "9.1.1: mark 1, conftest 2, tryfirst 1, loadfile 1".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
seen() {
    python3 -m venv "$folder/$1"
    "$folder/$1/bin/python" -m pip install -q "pytest==$1" pytest-xdist==3.8.0
    line="$1:"
    for way in mark conftest tryfirst loadfile; do
        rm -rf "$folder/tests"
        mkdir "$folder/tests"
        mark='' hook='' dist=loadgroup
        case $way in
        mark) mark='@pytest.mark.xdist_group("one")' ;;
        conftest) hook='@pytest.hookimpl' ;;
        tryfirst) hook='@pytest.hookimpl(tryfirst=True)' ;;
        loadfile) dist=loadfile ;;
        esac
        cat >"$folder/tests/test_group.py" <<PYTHON
import os
import time

import pytest


$mark
@pytest.mark.parametrize("number", range(12))
def test_where(number: int) -> None:
    time.sleep(0.2)
    with open(os.environ["SEEN"], "a") as file:
        file.write(os.environ["PYTEST_XDIST_WORKER"] + "\n")
PYTHON
        [ -z "$hook" ] || cat >"$folder/tests/conftest.py" <<PYTHON
import pytest


$hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group("one"))
PYTHON
        SEEN="$folder/seen" "$folder/$1/bin/python" -m pytest -q -p no:cacheprovider -n 2 --dist "$dist" "$folder/tests" >/dev/null
        line="$line $way $(sort -u "$folder/seen" | wc -l | tr -d ' '),"
        rm "$folder/seen"
    done
    echo "${line%,}"
    [ "${line%,}" = "$2" ]
}
seen 9.2.0 "9.2.0: mark 2, conftest 2, tryfirst 2, loadfile 1"
seen 9.1.1 "9.1.1: mark 1, conftest 2, tryfirst 1, loadfile 1"
