#!/usr/bin/env python3
"""Writes minilm_reference.json: tokens and vectors of the original all-MiniLM-L6-v2, computed by sentence-transformers.

    make_minilm_reference.py MODEL_DIRECTORY > minilm_reference.json        needs: pip install sentence-transformers

Run once; the numbers are committed, so that building and testing need no PyTorch. Computed in double, written with nine
digits, which is more than float holds.
"""
import json
import sys

import sentence_transformers

SENTENCES = [
    "A cat sits on the mat.",
    "",
    " \t\n ",
    "The quick brown fox jumps over the lazy dog, while 1,234 others (all of them asleep!) don't even notice: e.g. me@example.com.",
    "Crème brûlée déjà-vu: Łódź, Ærøskøbing, naïve façade, Škoda, İstanbul, Nguyễn, groß, Å and A\u030a.",
    "北京是中国的首都。東京タワーへ行きました。",
    "서울은 대한민국의 수도이다.",
    "Ελληνικά ΟΔΥΣΣΈΑΣ, Русский язык Йод, עברית שָׁלוֹם, العربية, हिन्दी में",
    "donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft " + "x" * 100 + " " + "y" * 101,
    "control\u0000\u0007\u200b\ufeff\ufffd characters\u00a0and\u2003spaces vanish, emoji 🙂 do not; a [SEP] in the text is one",
    "∑ x² ≤ ½·π — “quoted” … £5 + 10€ = 20% ~ #tag_name C++20 a/b\\c ^ | `code`",
    "Attention lets every word of a long text look at every other word. " * 30 + "This end is never read.",
]

original = sentence_transformers.SentenceTransformer(sys.argv[1], device="cpu").double()
entries = []
for sentence in SENTENCES:
    tokens = original.preprocess([sentence])["input_ids"][0].tolist()
    vector = original.encode(sentence)
    entries.append({"text": sentence, "tokens": tokens, "vector": [float(f"{x:.9g}") for x in vector.tolist()]})

print('{\n"model": "sentence-transformers/all-MiniLM-L6-v2",\n"sentences": [')
print(",\n".join(json.dumps(entry, ensure_ascii=True, separators=(",", ":")) for entry in entries))
print("]\n}")
