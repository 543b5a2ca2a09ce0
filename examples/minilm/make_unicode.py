#!/usr/bin/env python3
"""Writes unicode.hpp, the character tables of the MiniLM tokenizer, by asking the original tokenizer about every code point.

    make_unicode.py TOKENIZER_JSON > unicode.hpp        needs: pip install tokenizers

A fold whose result is not in the vocabulary is left out: such a word becomes [UNK] with or without it.
"""
import json
import sys
import textwrap
import unicodedata

from tokenizers import Tokenizer

path = sys.argv[1]
tokenizer = Tokenizer.from_file(path)
vocabulary = json.load(open(path, encoding="utf-8"))["model"]["vocab"]
known = {c for token in vocabulary for c in token}

dropped, punctuation, chinese, folds = [], [], [], {}
for code in range(0x110000):
    if 0xD800 <= code < 0xE000:
        continue
    c = chr(code)
    folded = tokenizer.normalizer.normalize_str(f"a{c}b")[1:-1]
    if folded == "":
        dropped.append(code)
    elif folded != " " and folded.startswith(" "):
        chinese.append(code)
        folded = folded.strip()
    if len(tokenizer.pre_tokenizer.pre_tokenize_str(f"a{c}b")) == 3:
        punctuation.append(code)
    is_hangul = 0xAC00 <= code < 0xD7A4  # the program computes these
    is_ascii_capital = "A" <= c <= "Z"
    if folded not in ("", c) and not is_hangul and not is_ascii_capital and known.issuperset(folded.replace(" ", "a")):
        folds.setdefault(folded, []).append(c)


def ranges(codes):
    runs = []
    for code in codes:
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return runs


def literal(text):
    """Letters a reader knows stay as they are; what an editor could normalise or reorder is escaped."""
    def one(c):
        if " " <= c <= "~":
            return "\\" + c if c in '"\\' else c
        if c in "\t\n\r":
            return {"\t": "\\t", "\n": "\\n", "\r": "\\r"}[c]
        readable = 0xC0 <= ord(c) < 0x530 or 0x1E00 <= ord(c) < 0x2000
        if readable and unicodedata.normalize("NFC", c) == c and unicodedata.category(c)[0] == "L":
            return c
        return f"\\u{ord(c):04X}" if ord(c) < 0x10000 else f"\\U{ord(c):08X}"
    return 'U"' + "".join(map(one, text)) + '"'


def table(type_name, name, comment, entries):
    body = textwrap.fill(" ".join(entry.replace(" ", "\0") for entry in entries), 118, initial_indent="    ",
                         subsequent_indent="    ", break_long_words=False, break_on_hyphens=False).replace("\0", " ")
    return f"// {comment}\ninline constexpr {type_name} {name}[] = {{\n{body}\n}};\n"


def range_table(name, comment, codes):
    return table("range", name, comment, [f"{{0x{a:X}, 0x{b:X}}}," for a, b in ranges(codes)])


print("""// Character tables of the uncased BERT tokenizer, written by make_unicode.py; do not edit.
// Each question was put to the original tokenizer for every Unicode code point, so the answers are its own, old Unicode
// version included. Folding is lower case after NFD without combining marks. Hangul syllables are folded by formula.
#pragma once

// clang-format off
namespace minilm {

struct range {
    char32_t first, last;
};

struct fold {
    const char32_t* to;
    const char32_t* from;
};
""")
print(range_table("dropped", "Control, format and private characters, combining marks, and U+FFFD, which stands for invalid UTF-8.", dropped))
print(range_table("punctuation", "Each of these is a word of its own.", punctuation))
print(range_table("chinese", "So is each of these ideographs.", chinese))
print(table("fold", "folds", "Any character of `from` becomes the text `to`; white space becomes a space; A to Z are left to arithmetic.",
            [f"{{{literal(to)}, {literal(folds[to])}}}," for to in sorted(folds)]))
print("}  // namespace minilm")
