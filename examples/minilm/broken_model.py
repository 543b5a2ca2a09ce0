#!/usr/bin/env python3
"""Gives example 07 models with missing and cut off weights; each must end in exit code 1 and one sentence that names the file.

    broken_model.py PROGRAM
"""
import json
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

CONFIG = {
    "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8,
    "vocab_size": 3, "type_vocab_size": 1, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
}
TOKENS = {"[CLS]": 0, "[SEP]": 1, "[UNK]": 2}
TOKENIZER = {"model": {"vocab": TOKENS}, "added_tokens": [{"content": text, "id": number} for text, number in TOKENS.items()]}

HEADER = json.dumps({"embeddings.word_embeddings.weight": {"dtype": "F32", "shape": [3, 8], "data_offsets": [0, 96]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(96)

CASES = [
    ("no model", None, r"cannot open .*config\.json; .*fetch_minilm\.py"),
    ("no weights", None, r"cannot open .*model\.safetensors; .*fetch_minilm\.py"),
    ("empty file", b"", r"model\.safetensors .*cut off in its header"),
    ("cut in the header", WEIGHTS[:20], r"model\.safetensors .*cut off in its header"),
    ("cut in the data", WEIGHTS[:-1], r"model\.safetensors is cut off .* 96 bytes .* 95"),
    ("no safetensors", b"<!DOCTYPE html><html>", r"model\.safetensors is not a safetensors file"),
    ("tensors missing", WEIGHTS, r"model\.safetensors has no tensor embeddings\.position_embeddings\.weight"),
]

failures = 0
for name, weights, expected in CASES:
    with tempfile.TemporaryDirectory() as folder:
        model = pathlib.Path(folder)
        if name != "no model":
            (model / "config.json").write_text(json.dumps(CONFIG))
            (model / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8}))
            (model / "tokenizer.json").write_text(json.dumps(TOKENIZER))
        if weights is not None:
            (model / "model.safetensors").write_bytes(weights)
        run = subprocess.run([sys.argv[1], "--model", folder, "A sentence."], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    sentence = re.fullmatch(r"sentence_embedding: ([^\n]+)\n", run.stderr)
    ok = run.returncode == 1 and run.stdout == "" and sentence is not None and re.search(expected, sentence[1]) is not None
    failures += not ok
    print(f"{'ok    ' if ok else 'FAILED'} {name}: exit code {run.returncode}, {run.stderr.strip()!r}")
sys.exit(1 if failures else 0)
