#!/usr/bin/env python3
"""Gives example 12 tiny models of random weights and compares what it reads and writes with plain Python; no model is needed.

    tiny_model.py PROGRAM
"""
import math
import pathlib
import random
import re
import subprocess
import sys
import tempfile

from gguf_writer import TYPES, bfloat16, dequantised, file_bytes, random_tensor, single

WIDTH, INNER, LAYERS, HEADS, KEY_HEADS, ROTATED, BASE, EPSILON = 96, 71, 2, 6, 2, 8, 1000.0, 1e-5
HEAD = WIDTH // HEADS
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["a b", "ab c", "Ġ a", "Ġ ab"]


def letters():
    """How a vocabulary writes the 256 bytes."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [b for b in range(256) if b not in plain]
    return [chr(b) if b in plain else chr(0x100 + others.index(b)) for b in range(256)]


TOKENS = SPECIAL + letters() + [merge.replace(" ", "") for merge in MERGES]


def keys(**changed):
    """Of a right model; a value of None leaves the key out."""
    all_keys = {
        "general.architecture": "llama", "llama.block_count": LAYERS, "llama.context_length": 128, "llama.embedding_length": WIDTH,
        "llama.feed_forward_length": INNER, "llama.attention.head_count": HEADS, "llama.attention.head_count_kv": KEY_HEADS,
        "llama.attention.layer_norm_rms_epsilon": EPSILON, "llama.rope.dimension_count": ROTATED, "llama.rope.freq_base": BASE,
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm", "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(TOKENS) - len(SPECIAL)), "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.chat_template": "You are a helpful AI assistant named SmolLM, trained by Hugging Face",
    }
    all_keys.update({key.replace("__", "."): value for key, value in changed.items()})
    return [(key, value) for key, value in all_keys.items() if value is not None]


def tensors(seed=5):
    r = random.Random(seed)
    made = [random_tensor(r, "token_embd.weight", (WIDTH, len(TOKENS)), "Q8_0", 1), random_tensor(r, "output_norm.weight", (WIDTH,), "F32", 1)]
    for i in range(LAYERS):
        for name, shape, kind in [("attn_norm", (WIDTH,), "F32"), ("ffn_norm", (WIDTH,), "F32"), ("attn_q", (WIDTH, WIDTH), "Q4_1"),
                                  ("attn_k", (WIDTH, HEAD * KEY_HEADS), "Q5_0"), ("attn_v", (WIDTH, HEAD * KEY_HEADS), "F16"), ("attn_output", (WIDTH, WIDTH), "Q4_0"),
                                  ("ffn_gate", (WIDTH, INNER), "BF16"), ("ffn_up", (WIDTH, INNER), "Q8_0"), ("ffn_down", (INNER, WIDTH), "F32")]:
            made.append(random_tensor(r, f"blk.{i}.{name}.weight", shape, kind, 1 if "norm" in name else 0.3))
    return made


class Model:
    """A token at a time, in double; matrices and, if narrow, keys and values rounded to bfloat16."""

    def __init__(self, content, narrow, window=None, sink=0):
        self.store = bfloat16 if narrow else float
        self.window, self.sink = window, sink
        self.weights = {}
        for name, shape, kind, data in content:
            numbers = dequantised(kind, data)
            rows = [numbers[i:i + shape[0]] for i in range(0, len(numbers), shape[0])]
            self.weights[name] = [[bfloat16(x) for x in row] for row in rows] if len(shape) > 1 else numbers
        self.keys, self.values = [[] for _ in range(LAYERS)], [[] for _ in range(LAYERS)]

    def product(self, name, x):
        return [sum(a * b for a, b in zip(row, x)) for row in self.weights[name]]

    def norm(self, name, x):
        scale = 1 / math.sqrt(sum(a * a for a in x) / len(x) + EPSILON)
        return [a * scale * w for a, w in zip(x, self.weights[name])]

    def turned(self, x, position):
        x = list(x)
        for head in range(0, len(x), HEAD):
            for i in range(0, ROTATED, 2):
                angle = position * BASE ** (-i / ROTATED)
                a, b = x[head + i], x[head + i + 1]
                x[head + i], x[head + i + 1] = a * math.cos(angle) - b * math.sin(angle), a * math.sin(angle) + b * math.cos(angle)
        return x

    def attend(self, layer, q):
        position = len(self.keys[layer]) - 1
        seen = [t for t in range(position + 1) if self.window is None or t > position - self.window or t < self.sink]
        out = []
        for h in range(HEADS):
            first = h // (HEADS // KEY_HEADS) * HEAD
            query = q[h * HEAD:h * HEAD + HEAD]
            scores = [sum(a * b for a, b in zip(query, self.keys[layer][t][first:first + HEAD])) / math.sqrt(HEAD) for t in seen]
            weights = [math.exp(s - max(scores)) for s in scores]
            for e in range(first, first + HEAD):
                out.append(sum(w * self.values[layer][t][e] for w, t in zip(weights, seen)) / sum(weights))
        return out

    def read(self, token):
        x = self.weights["token_embd.weight"][token]
        for i in range(LAYERS):
            n = self.norm(f"blk.{i}.attn_norm.weight", x)
            position = len(self.keys[i])
            q = self.turned(self.product(f"blk.{i}.attn_q.weight", n), position)
            self.keys[i].append([self.store(a) for a in self.turned(self.product(f"blk.{i}.attn_k.weight", n), position)])
            self.values[i].append([self.store(a) for a in self.product(f"blk.{i}.attn_v.weight", n)])
            x = [a + b for a, b in zip(x, self.product(f"blk.{i}.attn_output.weight", self.attend(i, q)))]
            n = self.norm(f"blk.{i}.ffn_norm.weight", x)
            gated = [g / (1 + math.exp(-g)) * u
                     for g, u in zip(self.product(f"blk.{i}.ffn_gate.weight", n), self.product(f"blk.{i}.ffn_up.weight", n))]
            x = [a + b for a, b in zip(x, self.product(f"blk.{i}.ffn_down.weight", gated))]
        return self.product("token_embd.weight", self.norm("output_norm.weight", x))


def greedy(model, prompt, count):
    """Tokens that follow, and the smallest margin of one over the second best."""
    for token in prompt:
        logits = model.read(token)
    chosen, margin = [], math.inf
    while len(chosen) < count:
        order = sorted(range(len(logits)), key=lambda i: -logits[i])
        margin = min(margin, logits[order[0]] - logits[order[1]])
        if order[0] in (0, 2):
            break
        chosen.append(order[0])
        logits = model.read(order[0])
    return chosen, margin


def bytes_of(tokens):
    alphabet = letters()
    return b"".join(TOKENS[t].encode() if t < len(SPECIAL) else bytes(alphabet.index(c) for c in TOKENS[t]) for t in tokens)


failures = 0


def report(name, ok, words=""):
    global failures
    failures += not ok
    print(f"{'ok    ' if ok else 'FAILED'} {name} {words}", flush=True)


def run(*arguments):
    return subprocess.run([sys.argv[1], *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def check_formats(folder):
    """Every number of every format, as the example prints it."""
    r = random.Random(2)
    content = [random_tensor(r, kind, (512, 3), kind) for kind in TYPES]
    for alignment in (32, 64):
        file = folder / f"formats_{alignment}.gguf"
        file.write_bytes(file_bytes([("general.alignment", alignment)], content, version=2 + alignment // 64, alignment=alignment))
        for name, _, kind, data in content:
            printed = run("--model", file, "--tensor", name).stdout.split()
            expected = dequantised(kind, data)
            wrong = sum(single(float(a)) != b for a, b in zip(printed, expected))
            report(f"{kind}, aligned to {alignment}", len(printed) == len(expected) == 1536 and wrong == 0, f"{wrong} numbers differ")


def check_text(folder):
    file = folder / "model.gguf"
    content = tensors()
    file.write_bytes(file_bytes(keys(), content))
    # "ab", "abc", " a" and " ab" are tokens, and so are all bytes, some of which are no text.
    prompt = [TOKENS.index(letters()[b]) for b in "b\n".encode()] + [TOKENS.index(t) for t in ["abc", "Ġab", "Ġab", "Ġa", "ab"]] * 4
    text = bytes_of(prompt)
    count = 24
    for name, options, model in [
        ("all keys, cache in float", ["--float-cache"], Model(content, False)),
        ("all keys, cache in bfloat16", [], Model(content, True)),
        ("window and sinks", ["--float-cache", "--window", 9, "--sink", 2], Model(content, False, 9, 2)),
        ("window without sinks", ["--float-cache", "--window", 5, "--sink", 0], Model(content, False, 5, 0)),
    ]:
        expected, margin = greedy(model, prompt, count)
        result = run("--model", file, "--raw", "--prompt", text.decode(), "--tokens", count, "--threads", 2, *options)
        ok = result.returncode == 0 and result.stdout == text + bytes_of(expected) + b"\n"
        report(name, ok, f"{len(expected)} tokens, smallest margin {margin:.3f}; {len(set(expected))} different ones")
        if not options:
            check_ends(folder, content, text, expected)


def check_ends(folder, content, text, expected):
    """A text ends before the token that the file names, and before <|endoftext|>."""
    last = expected[5]
    renamed = [TOKENS[last] if i == 0 else TOKENS[0] if i == last else token for i, token in enumerate(TOKENS)]
    for name, changed in [("the end of an answer", {"tokenizer__ggml__eos_token_id": last}), ("the end of a text", {"tokenizer__ggml__tokens": renamed})]:
        file = folder / "ends.gguf"
        file.write_bytes(file_bytes(keys(**changed), content))
        result = run("--model", file, "--raw", "--prompt", text.decode(), "--tokens", len(expected), "--threads", 1)
        report(name, result.stdout == text + bytes_of(expected[:expected.index(last)]) + b"\n")


def check_sampling(folder):
    """The best token at a low temperature or of one, the same draws for the same seed, others for another."""
    file = folder / "model.gguf"
    file.write_bytes(file_bytes(keys(), tensors()))

    def text(*options):
        return run("--model", file, "--prompt", "ab abc", "--tokens", 16, "--threads", 1, *options).stdout

    best = text("--greedy")
    draws = [text("--temperature", 2, "--seed", seed) for seed in (7, 7, 8)]
    few = [text("--temperature", 2, "--top-k", 3, "--seed", seed) for seed in (7, 7, 8)]
    report("a low temperature", len(best) > 16 and text("--temperature", 0.001) == best)
    report("the best of one", text("--temperature", 2, "--top-k", 1, "--seed", 9) == best)
    report("draws", draws[0] == draws[1] != draws[2] and draws[0] != best)
    report("draws of three", few[0] == few[1] != few[2] and best != few[0] != draws[0])
    report("any number of threads", text("--threads", 3) == best)


def check_context(folder):
    file, repeated = folder / "model.gguf", folder / "text.txt"
    file.write_bytes(file_bytes(keys(), tensors()))
    repeated.write_text("abc ab ")
    result = run("--model", file, "--context", 100, "--tokens", 7, "--text", repeated, "--window", 20)
    row = rb" \| +[0-9.]+ +[0-9]+ % \| +[0-9.]+ +[0-9]+ %\n"
    expected = rb"100 tokens, 7 of them decoded; .*softmax over all keys" + row + b" *sink 4 and window 20" + row
    report("a long text", result.returncode == 0 and re.search(expected, result.stdout, re.DOTALL) is not None, result.stdout.decode())


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        for check in (check_formats, check_text, check_sampling, check_context):
            check(pathlib.Path(place))
    sys.exit(1 if failures else 0)
