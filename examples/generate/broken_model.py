#!/usr/bin/env python3
"""Gives example 12 files that are cut off, damaged or not for it; each must end in exit code 1 and one sentence on stderr.

    broken_model.py PROGRAM
"""
import json
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

from gguf_writer import ARRAY, STRING, file_bytes, text
from tiny_model import TOKENS, WIDTH, keys, tensors

RIGHT = file_bytes(keys(), tensors())
DATA = sum(len(content) for _, _, _, content in tensors())


def with_keys(**changed):
    return file_bytes(keys(**changed), tensors())


def with_tensor(name, shape=None, kind=None, content=None, offset=None):
    changed = []
    for t in tensors():
        if t[0] == name:
            t = (name, shape or t[1], kind or t[2], t[3] if content is None else content, *([] if offset is None else [offset]))
        changed.append(t)
    return file_bytes(keys(), changed)


def find(key):
    return RIGHT.index(text(key))


Q, UP, NORM = "blk.1.attn_q.weight", "blk.1.ffn_up.weight", "blk.0.attn_norm.weight"
CASES = [
    ("an empty file", b"", r"is cut off in its header, at byte 0 in its first four bytes"),
    ("no GGUF file", b"<!DOCTYPE html><html>", r"is no GGUF file: it does not begin with GGUF"),
    ("an old version", file_bytes(keys(), tensors(), version=1), r"has GGUF version 1; this program reads versions 2 and 3"),
    ("the other byte order", file_bytes(keys(), tensors(), version=3 << 24), r"has GGUF version 50331648"),
    ("cut in the version", RIGHT[:6], r"cut off in its header, at byte 6 in its version"),
    ("cut in the counts", RIGHT[:20], r"at byte 20 in its number of keys"),
    ("cut in a key", RIGHT[:find("llama.block_count") + 15], r"at byte \d+ in a key"),
    ("cut in a value", RIGHT[:find("llama.block_count") + 29], r"at byte \d+ in llama\.block_count"),
    ("cut in a list", RIGHT[:find("tokenizer.ggml.tokens") + 700], r"at byte \d+ in tokenizer\.ggml\.tokens"),
    ("cut in a tensor's name", RIGHT[:find(Q) + 14], r"in the name of a tensor"),
    ("cut in a tensor's shape", RIGHT[:find(Q) + 35], r"at byte \d+ in blk\.1\.attn_q\.weight"),
    ("cut before the data", RIGHT[:-DATA - 40], r"is cut off"),
    ("cut in the data", RIGHT[:-1], r"is cut off or damaged: tensor blk\.1\.ffn_down\.weight takes 27264 bytes at \d+, but behind the header there are \d+"),
    ("a text longer than the file", with_keys(general__name=struct.pack("<IQ", STRING, 1 << 62)), r"cut off in its header, .* general\.name"),
    ("a list longer than the file", with_keys(general__name=struct.pack("<IIQ", ARRAY, STRING, 1 << 40)), r"cut off .* general\.name"),
    ("a type of values that is none", with_keys(general__name=struct.pack("<I", 13)), r"key general\.name has a value of type 13"),
    ("a list of lists", with_keys(general__name=struct.pack("<IIQ", ARRAY, ARRAY, 1)), r"general\.name is a list of lists"),
    ("a key twice", file_bytes(keys() + keys()[:1], tensors()), r"has key general\.architecture twice"),
    ("a tensor twice", file_bytes(keys(), tensors() + tensors()[:1]), r"has tensor token_embd\.weight twice"),
    ("no dimension", file_bytes(keys(), tensors() + [("x", (), "F32", b"")]), r"tensor x has 0 dimensions"),
    ("five dimensions", file_bytes(keys(), tensors() + [("x", (1,) * 5, "F32", b"")]), r"tensor x has 5 dimensions"),
    ("an empty dimension", with_tensor(Q, shape=(WIDTH, 0)), r"attn_q\.weight has dimension 0, which is too small or too large"),
    ("a product that wraps", with_tensor(Q, shape=(1 << 32, 1 << 32)), r"has dimension 4294967296, which is too small or too large"),
    ("an unknown type", with_tensor(Q, kind=20), r"attn_q\.weight has type 20; this program reads F32 \(0\), .*Q6_K \(14\)"),
    ("rows of half a block", with_tensor(Q, shape=(WIDTH // 2 * 3, WIDTH), kind="Q4_K"), r"has rows of 144, but Q4_K needs multiples of 256"),
    ("a tensor outside the file", with_tensor(Q, offset=DATA), r"cut off or damaged: tensor blk\.1\.attn_q\.weight takes 5760 bytes at \d+"),
    ("a place that wraps", with_tensor(Q, offset=(1 << 64) - 32), r"cut off or damaged: tensor blk\.1\.attn_q\.weight"),
    ("a tensor missing", file_bytes(keys(), [t for t in tensors() if t[0] != UP]), r"has no tensor blk\.1\.ffn_up\.weight"),
    ("a wrong shape", with_tensor(UP, shape=(WIDTH // 3 * 2, WIDTH)), r"ffn_up\.weight must have 71 rows of 96, but has 96 of 64"),
    ("a number that is none", with_tensor(NORM, content=struct.pack("<f", float("nan")) * WIDTH), r"attn_norm\.weight holds NaN or infinity"),
    ("a tensor too many", file_bytes(keys(), tensors() + [("output.weight", (1,), "F32", bytes(4))]),
     r"has tensor output\.weight, which this program does not know"),
    ("another architecture", with_keys(general__architecture="qwen2"), r"holds a model of architecture qwen2"),
    ("stretched positions", with_keys(llama__rope__scaling__type="yarn"), r"has key llama\.rope\.scaling\.type, which"),
    ("experts", with_keys(llama__expert_count=8), r"has key llama\.expert_count, which"),
    ("no layers", with_keys(llama__block_count=0), r"llama\.block_count \(0\) must lie between 1 and 16777216"),
    ("a size of another type", with_keys(llama__block_count="2"), r"key llama\.block_count must be a whole number"),
    ("a base of another type", with_keys(llama__rope__freq_base=1000), r"freq_base must be a floating-point number"),
    ("tokens of another type", with_keys(tokenizer__ggml__tokens=[1, 2]), r"tokenizer\.ggml\.tokens must be a list of texts"),
    ("heads that do not divide", with_keys(llama__attention__head_count=5), r"embedding_length \(96\) must be a multiple of .*head_count \(5\)"),
    ("groups that do not divide", with_keys(llama__attention__head_count_kv=4), r"head_count \(6\) must be a multiple of .*_kv \(4\)"),
    ("an odd turn", with_keys(llama__rope__dimension_count=7), r"dimension_count \(7\) must be even and at most the features of a head \(16\)"),
    ("a turn of too much", with_keys(llama__rope__dimension_count=18), r"dimension_count \(18\) must be even and at most"),
    ("another tokenizer", with_keys(tokenizer__ggml__model="llama"), r"tokenizer\.ggml\.model is llama; this program knows gpt2 alone"),
    ("another rule for words", with_keys(tokenizer__ggml__pre="qwen2"), r"tokenizer\.ggml\.pre is qwen2; this program knows smollm alone"),
    ("a token in front", with_keys(tokenizer__ggml__add_bos_token=True), r"add_bos_token is true; this program adds no token in front"),
    ("kinds of other tokens", with_keys(tokenizer__ggml__token_type=[1]), rf"has {len(TOKENS)} tokens, but 1 kinds of tokens"),
    ("a merge of no tokens", with_keys(tokenizer__ggml__merges=["a b", "q q"]), r'merge 1 \("q q"\) is not of tokens'),
    ("a merge of one", with_keys(tokenizer__ggml__merges=["a"]), r'merge 0 \("a"\) is not of tokens'),
    ("an end that is no token", with_keys(tokenizer__ggml__eos_token_id=999), r"eos_token_id \(999\) must be below its tokens \(263\)"),
    ("no chat template", with_keys(tokenizer__chat_template=None), r"has no chat template .*; --raw goes without one"),
    ("another chat template", with_keys(tokenizer__chat_template="[INST]"), r"has no chat template .*; --raw goes without one"),
]
OPTIONAL = ["tokenizer.chat_template"]
CASES += [(f"no {key}", with_keys(**{key: None}), rf"has no key {re.escape(key)}") for key, _ in keys() if key not in OPTIONAL]

# Of a right model: arguments and what they are answered.
REFERENCE = {"implementation": "none", "texts": [{"text": "abc", "tokens": [TOKENS.index("abc")]}],
             "prompts": [{"chat": False, "prompt": "abc", "tokens": [TOKENS.index("abc")], "generated": [5], "margins": [100]}]}
CALLS = [
    ("nothing to do", [], None, r"nothing to do: give a prompt with --prompt"),
    ("no tokens in the prompt", ["--raw", "--prompt", ""], None, r"the prompt has no tokens"),
    ("too long a text", ["--prompt", "abc", "--tokens", 128], None, r"\d+ tokens of prompt and continuation exceed the context .* \(128\)"),
    ("too long a context", ["--context", 129], None, r"129 tokens of prompt and continuation exceed the context of the model \(128\)"),
    ("no room for a prompt", ["--context", 50, "--tokens", 50], None, r"--context \(50\) must be above --tokens \(50\)"),
    ("no text to repeat", ["--context", 50, "--tokens", 5, "--text", "missing.txt"], None, r"cannot open missing\.txt"),
    ("no such tensor", ["--tensor", "x"], None, r"has no tensor x"),
    ("no reference file", ["--check", "missing.json"], None, r"cannot open missing\.json"),
    ("a reference file that is none", ["--check"], "{", r"is not valid JSON"),
    ("a reference without texts", ["--check"], {"prompts": []}, r"is not a reference file: .*texts"),
    ("other tokens", ["--check"], {**REFERENCE, "texts": [{"text": "ab", "tokens": [1]}]}, r'"ab" must become the tokens \[1\], but became'),
    ("another continuation", ["--check"], REFERENCE, r"token 5 .* as number 1 behind \"abc\" must have a margin of 100.0000, but has"),
]

failures = 0


def check(name, arguments, expected):
    global failures
    result = subprocess.run([sys.argv[1], *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    sentence = re.fullmatch(r"generate: ([^\n]+)\n", result.stderr)
    ok = result.returncode == 1 and sentence is not None and re.search(expected, sentence[1]) is not None
    failures += not ok
    print(f"{'ok    ' if ok else 'FAILED'} {name}: exit code {result.returncode}, {result.stderr.strip()!r}", flush=True)


with tempfile.TemporaryDirectory() as place:
    folder = pathlib.Path(place)
    model, reference = folder / "model.gguf", folder / "reference.json"
    for name, content, expected in CASES:
        model.write_bytes(content)
        check(name, ["--model", model, "--prompt", "abc", "--tokens", 2], rf"^{re.escape(str(model))}.*{expected}")
    for name, file in [("no file", folder / "missing.gguf"), ("a folder", folder)]:
        check(name, ["--model", file, "--prompt", "abc"], r"^cannot open .*; examples/fetch_smollm2\.py DIRECTORY fetches the model$")
    model.write_bytes(RIGHT)
    for name, arguments, content, expected in CALLS:
        if content is not None:
            reference.write_text(content if isinstance(content, str) else json.dumps(content))
            arguments = arguments + [reference]
        check(name, ["--model", model, *arguments], expected)
sys.exit(1 if failures else 0)
