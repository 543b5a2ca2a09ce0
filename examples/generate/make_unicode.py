#!/usr/bin/env python3
"""Writes unicode.hpp, the letters and numbers that split text into words, from the Unicode tables of this Python.

    make_unicode.py > unicode.hpp
"""
import textwrap
import unicodedata


def ranges(category):
    runs = []
    for code in range(0x110000):
        if unicodedata.category(chr(code))[0] != category:
            continue
        if runs and runs[-1][1] == code - 1:
            runs[-1][1] = code
        else:
            runs.append([code, code])
    return runs


def table(name, comment, category):
    entries = " ".join(f"{{0x{a:X},~0x{b:X}}}," for a, b in ranges(category))  # ~: a space where no line ends
    body = textwrap.fill(entries, 138, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return f"// {comment}\ninline constexpr code_range {name}[] = {{\n{body}\n}};\n".replace("~", " ")


print(f"""// Letters and numbers of Unicode {unicodedata.unidata_version}, written by make_unicode.py; do not edit.
#pragma once

// clang-format off
namespace llama {{

struct code_range {{
    char32_t first, last;
}};
""")
print(table("letters", r"\p{L}", "L"))
print(table("numerals", r"\p{N}", "N"))
print("}  // namespace llama")
