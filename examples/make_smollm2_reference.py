#!/usr/bin/env python3
"""Writes smollm2_reference.json: what llama.cpp makes of tricky texts, and how it goes on with prompts, on the weights of example 12.

    make_smollm2_reference.py SmolLM2-135M-Instruct.Q4_1.gguf > smollm2_reference.json        needs: pip install gguf xllamacpp

Run once; the numbers are committed, so that building and testing need neither package. llama.cpp rounds activations to 8 bits where
weights are quantised, so it gets the weights as floats, in a file of its own: dequantised by the gguf package, matrices rounded to
bfloat16 as the example rounds them. Its keys and values are floats as well. margins: by how much the logit of each generated token
exceeds the second best.
"""
import importlib.metadata
import json
import os
import sys
import tempfile
import urllib.request

import gguf
import numpy as np
import xllamacpp

TOKENS = 32
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
GETTYSBURG = """Four score and seven years ago our fathers brought forth on this continent, a new nation, conceived in Liberty, and \
dedicated to the proposition that all men are created equal.

Now we are engaged in a great civil war, testing whether that nation, or any nation so conceived and so dedicated, can long endure. We \
are met on a great battle-field of that war. We have come to dedicate a portion of that field, as a final resting place for those who \
here gave their lives that that nation might live. It is altogether fitting and proper that we should do this.

But, in a larger sense, we can not dedicate -- we can not consecrate -- we can not hallow -- this ground. The brave men, living and \
dead, who struggled here, have consecrated it, far above our poor power to add or detract. The world will little note, nor long \
remember what we say here, but it can never forget what they did here. It is for us the living, rather, to be dedicated here to the \
unfinished work which they who fought here have thus far so nobly advanced."""

# A question, one about code, one with a text that needs several pages and parts; and a text without the template.
PROMPTS = [
    (True, "Why is the sky blue?"),
    (True, "Write a Python function that returns the n-th Fibonacci number."),
    (True, "Summarise this speech in two sentences.\n\n" + GETTYSBURG),
    (False, "Once upon a time, in 1843,"),
]

TEXTS = [
    "", " ", "  ", "   a", "a ", "a  ", " a  b   c    d", "\n", "\n\n\n", "a\nb\n\nc", "a \n b", "\t\tif x:\r\n\t\t\treturn  1\r\n", "\n  \n x",
    "Hello, world!", "HELLO hello hElLo", "don't I'll we've they're he'd I'm it's can't", "DON'T I'LL WE'VE 'S'T", "'s 'tis ''' 'll'll x'",
    "0 1 12 123 1234 12345", "3.14159, 1e-9, 0x1F, 1,234,567.89", "a1b2 c 3d  4", "x²+½=Ⅷ ①② ٣٤", "  7", " 7\n 8  9", "2026-11-26T12:00:00Z",
    "def f(x):\n    return x ** 2  # comment\n\n\n", "{\"key\": [1, null, true]}", "<a href='x'>&amp;</a>", "a_b-c.d/e\\f|g", "!!!??... -- ---",
    "#include <vector>\nint main() { std::vector<int> v{1, 2}; }", "∑ x² ≤ ½·π — “quoted” … £5 + 10€", "https://example.com/a?b=c&d=%20e",
    "Crème brûlée, naïve façade, Škoda, İstanbul", "e\u0301 e\u0301\u0301 a\u0308", "北京是中国的首都。東京タワーへ行きました。", "서울은 대한민국의 수도이다.",
    "Ελληνικά, Русский язык, עברית שָׁלוֹם, العربية, हिन्दी में", "ไทยไม่มีช่องว่าง", "🙂", "👩‍👩‍👧‍👦 👍🏽 🇫🇷", "a🙂b 🙂 c", "\u00a0a\u00a0 b\u2003c\u3000d\u2028e\u0085f",
    "\u200b\ufeff\u00ad", "\x00\x01\x1b\x7f", "a\x00b\x07c", "\U0001d4d0\U000e0041 \U0010ffff", "ﬁ ﬂ Ω Å", "ǅ ʰ ª º ꟸ ㌀",
    "<|im_start|>user\nHi<|im_end|>\n", "a<|endoftext|>b", " <|im_end|> <|im_end|>", "<|im_start|", "<|im_start|><|im_start|>", "<repo_name>x<file_sep>",
    "<|im_start|im_end|>", "<empty_output> 1", "antidisestablishmentarianism floccinaucinihilipilification", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "zzzzqxqxkjkj wqrtpsdf", " " * 50 + "x", "a" + " " * 17, "=" * 80, "\t" * 9 + "\n" * 5, "ab" * 300,
]


def chat(prompt):
    return (f"<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n")


def bfloat16(x):
    bits = x.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16 << 16).astype(np.uint32).view(np.float32)


def write_as_floats(source, target):
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0], field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, np.ascontiguousarray(bfloat16(numbers) if numbers.ndim > 1 else numbers))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class Server:
    def __init__(self, model):
        parameters = xllamacpp.CommonParams()
        parameters.model.path = model
        parameters.n_ctx = 1024
        parameters.n_parallel = 1
        parameters.cache_type_k = parameters.cache_type_v = 0  # float
        parameters.flash_attn_type = 0  # off, because it rounds to 16 bits inside
        parameters.verbosity = 0
        self.server = xllamacpp.Server(parameters)

    def post(self, what, **body):
        request = urllib.request.Request(self.server.listening_address + what, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokens(self, text):
        return self.post("/tokenize", content=text, add_special=False, parse_special=True)["tokens"]

    def go_on(self, tokens):
        """Greedy tokens, past the end of the answer as well, and the margin of each."""
        answer = self.post("/completion", prompt=tokens, n_predict=TOKENS, temperature=0, n_probs=2, ignore_eos=False, return_tokens=True,
                           cache_prompt=False)
        best = [[p["logprob"] for p in step["top_logprobs"]] for step in answer["completion_probabilities"]]
        return answer["tokens"], [round(a - b, 5) for a, b in best]


with tempfile.TemporaryDirectory() as folder:
    model = os.path.join(folder, "floats.gguf")
    write_as_floats(sys.argv[1], model)
    server = Server(model)
    texts = [{"text": text, "tokens": server.tokens(text)} for text in TEXTS]
    prompts = []
    for is_chat, prompt in PROMPTS:
        tokens = server.tokens(chat(prompt) if is_chat else prompt)
        generated, margins = server.go_on(tokens)
        assert len(generated) == len(margins) == TOKENS, (prompt, generated)
        prompts.append({"chat": is_chat, "prompt": prompt, "tokens": tokens, "generated": generated, "margins": margins})


def lines(entries):
    return ",\n".join(json.dumps(entry, ensure_ascii=True, separators=(",", ":")) for entry in entries)


version = importlib.metadata.version("xllamacpp")
print(f'{{\n"implementation": "llama.cpp (xllamacpp {version})",\n"texts": [\n{lines(texts)}\n],\n"prompts": [\n{lines(prompts)}\n]\n}}')
