"""Writes small GGUF files for the tests of example 12, right ones and broken ones, and dequantises blocks by another way than the example."""
import struct

UINT32, FLOAT32, BOOL, STRING, ARRAY = 4, 6, 7, 8, 9
# name: number of the type, numbers in a block, bytes of a block
TYPES = {"F32": (0, 1, 4), "F16": (1, 1, 2), "BF16": (30, 1, 2), "Q4_0": (2, 32, 18), "Q4_1": (3, 32, 20), "Q5_0": (6, 32, 22),
         "Q8_0": (8, 32, 34), "Q4_K": (12, 256, 144), "Q6_K": (14, 256, 210)}


def text(value):
    value = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(value)) + value


def typed(value):
    """Type and bytes of a value of Python; bytes are taken as they are, type included."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", UINT32, value)
    if isinstance(value, float):
        return struct.pack("<If", FLOAT32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + text(value)
    elements = [typed(x) for x in value]
    return struct.pack("<I", ARRAY) + elements[0][:4] + struct.pack("<Q", len(elements)) + b"".join(x[4:] for x in elements)


def file_bytes(keys, tensors, magic=b"GGUF", version=3, alignment=32):
    """keys: pairs of key and value. tensors: (name, shape with the fastest dimension first, type, bytes) and, if given, an offset."""
    header = magic + struct.pack("<IQQ", version, len(tensors), len(keys))
    header += b"".join(text(key) + typed(value) for key, value in keys)
    data = b""
    for name, shape, kind, content, *offset in tensors:
        data += bytes(-len(data) % alignment)
        number = TYPES[kind][0] if kind in TYPES else kind
        header += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, *(offset or [len(data)]))
        data += content
    return header + bytes(-len(header) % alignment) + data


def single(x):
    return struct.unpack("<f", struct.pack("<f", x))[0]


def to_bfloat16(x):
    bits = struct.unpack("<I", struct.pack("<f", x))[0]
    return (bits + 0x7FFF + (bits >> 16 & 1)) >> 16


def bfloat16(x):
    return struct.unpack("<f", struct.pack("<I", to_bfloat16(x) << 16))[0]


def half(b, at):
    return struct.unpack_from("<e", b, at)[0]


def nibbles(packed):
    return [x & 15 for x in packed] + [x >> 4 for x in packed]


def q4_k(b):
    """Scales and minima as the eight six-bit numbers of each that the twelve bytes hold."""
    p = b[4:16]
    scales = [x & 63 for x in p[0:4]] + [(p[8 + i] & 15) + 16 * (p[i] >> 6) for i in range(4)]
    minima = [x & 63 for x in p[4:8]] + [(p[8 + i] >> 4) + 16 * (p[4 + i] >> 6) for i in range(4)]
    q = [x for group in range(4) for x in nibbles(b[16 + 32 * group:48 + 32 * group])]
    return [single(half(b, 0) * scales[i // 32] * q[i] - half(b, 2) * minima[i // 32]) for i in range(256)]


def q6_k(b):
    """Two halves of 128 numbers; in each, the low nibbles of 64 bytes, then their high ones, and two bits more from 32 bytes."""
    numbers = []
    for n in range(2):
        low, high = nibbles(b[64 * n:64 * n + 64]), b[128 + 32 * n:160 + 32 * n]
        for i in range(128):
            scale = struct.unpack_from("<b", b, 192 + 8 * n + i // 16)[0]
            q = low[i] + 16 * (high[i % 32] // 4 ** (i // 32) % 4) - 32
            numbers.append(single(single(half(b, 208) * scale) * q))
    return numbers


def dequantised(kind, content):
    """The numbers of whole blocks; products and sums in double, rounded once, as float gives them because they are short."""
    _, _, size = TYPES[kind]
    numbers = []
    for at in range(0, len(content), size):
        b = content[at:at + size]
        if kind == "F32":
            numbers += struct.unpack("<f", b)
        elif kind == "F16":
            numbers.append(half(b, 0))
        elif kind == "BF16":
            numbers += struct.unpack("<f", bytes(2) + b)
        elif kind == "Q4_0":
            numbers += [half(b, 0) * (q - 8) for q in nibbles(b[2:])]
        elif kind == "Q4_1":
            numbers += [single(half(b, 0) * q + half(b, 2)) for q in nibbles(b[4:])]
        elif kind == "Q5_0":
            high = int.from_bytes(b[2:6], "little")
            numbers += [half(b, 0) * (q + 16 * (high >> i & 1) - 16) for i, q in enumerate(nibbles(b[6:]))]
        elif kind == "Q8_0":
            numbers += [half(b, 0) * q for q in struct.unpack("<32b", b[2:])]
        else:
            numbers += q4_k(b) if kind == "Q4_K" else q6_k(b)
    return numbers


def random_block(random, kind, size=0.1):
    """Any bits for the quants; scales of float16 such that numbers are about as large as `size`."""
    _, count, bytes_of_block = TYPES[kind]
    scale = lambda levels: struct.pack("<e", random.choice([-1, 1]) * random.uniform(0.5, 1) * size / levels)
    bits = lambda n: bytes(random.randrange(256) for _ in range(n))
    if kind == "F32":
        return struct.pack("<f", random.gauss(0, size))
    if kind == "F16":
        return struct.pack("<e", random.gauss(0, size))
    if kind == "BF16":
        return struct.pack("<H", to_bfloat16(random.gauss(0, size)))
    if kind == "Q4_1":
        return scale(8) + scale(2) + bits(16)
    if kind == "Q4_K":
        return scale(8 * 32) + scale(32) + bits(140)
    if kind == "Q6_K":
        return bits(208) + scale(32 * 64)
    return scale({"Q4_0": 8, "Q5_0": 16, "Q8_0": 128}[kind]) + bits(bytes_of_block - 2)


def random_tensor(random, name, shape, kind, size=0.1):
    blocks = shape[0] * (shape[1] if len(shape) > 1 else 1) // TYPES[kind][1]
    return name, shape, kind, b"".join(random_block(random, kind, size) for _ in range(blocks))
