"""The figures of the pages on pages and on decoding, drawn from the mechanism itself. Each function returns one SVG."""

import math

import torch
from torch import Tensor

from annotated_attention.flash_merge import merge_attention
from annotated_attention.flash_paged import PagedKVCache
from annotated_attention.flash_triton_decoding import decode_plainly, number_of_parts
from coursekit.drawing import circle, curve, line, path, rect, svg, text

SLOT, PAGE, CELL = 39, 84, 24


def words_of(cache: PagedKVCache, words: list[str]) -> list[list[str]]:
    """What stands in each page, as far as some text reads it."""
    n, found = cache.page_size, [[""] * cache.page_size for _ in cache.readers]
    for row, length in zip(cache.pages, cache.lengths.tolist(), strict=True):
        for j in range(length):
            found[row[j // n]][j % n] = words[int(cache.key_pages[row[j // n], 0, j % n, 0])]
    return found


def append(cache: PagedKVCache, words: list[str], *texts: str) -> None:
    """Every text grows, word by word."""
    rows = [[words.index(word) for word in row.split()] for row in texts]
    for column in torch.tensor(rows, dtype=torch.float32).T:
        cache.append(column.view(-1, 1, 1, 1), column.view(-1, 1, 1, 1))


def pointer(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    """From an entry of a table to a page."""
    reach, back = 0.62 * (y2 - y1), math.copysign(5, y1 - y2)
    bend = f"M{x1:g} {y1:g}C{x1:g} {y1 + reach:g} {x2:g} {y2 - reach:g} {x2:g} {y2:g}"
    return path(f"{bend}m-4 {back:g}l4 {-back:g}l4 {back:g}", colour, 1.3)


def pool(
    cache: PagedKVCache, words: list[str], left: float, top: float, tables: float, gap: float = 58
) -> list[str]:
    """The pages in a row; above them the table of text 0, below that of text 1."""
    width, parts, floor = cache.page_size * SLOT, [], top + CELL + gap
    for page, held in enumerate(words_of(cache, words)):
        x, readers = left + page * PAGE, cache.readers[page]
        parts.append(text(x + 1, floor - 5, str(page), anchor="start", size=12))
        for slot, word in enumerate(held):
            here = x + slot * SLOT
            if word:
                tone = 0.5 if readers > 1 else 0.2
                parts.append(rect(here, floor, SLOT - 2, CELL + 2, "key", tone, 2.5))
                parts.append(text(here + SLOT / 2 - 1, floor + 17.5, word, colour="ink", size=12))
            else:
                right, low = here + SLOT - 2.5, floor + CELL + 1.5
                corners = [(here + 0.5, floor + 0.5), (right, floor + 0.5), (right, low), (here + 0.5, low)]
                parts.append(curve([*corners, corners[0]], "soft", 1, 0.5, "3 3"))
    for b, row in enumerate(cache.table.tolist()):
        y = top if b == 0 else floor + CELL + 2 + gap
        for k, page in enumerate(row):
            x = tables + k * PAGE
            middle = x + width / 2 - 1
            parts.append(rect(x, y, width - 2, CELL, "soft", 0.13 if page >= 0 else 0.05, 2.5))
            parts.append(text(middle, y + 16.5, str(page) if page >= 0 else "–", colour="ink"))
            if page >= 0:
                to, shared = left + page * PAGE + width / 2 - 1, cache.readers[page] > 1
                ends = (y + CELL + 2, floor - 4) if b == 0 else (y - 2, floor + CELL + 6)
                parts.append(pointer(middle, ends[0], to, ends[1], "key" if shared else "soft"))
                held = words_of(cache, words)[page]
                parts.append(text(middle, y - 8 if b == 0 else y + CELL + 16, " ".join(held), size=12))
    return parts


def pages() -> str:
    """The page's two texts: their tables, and five pages of two tokens."""
    words = ["the", "cat", "sat", "on", "mat", "down", "once", "more"]
    cache = PagedKVCache(2, 5, 2)
    append(cache, words, "the cat", "the cat")
    cache.truncate([2, 0])
    cache.share(0, 1, 2)
    append(cache, words, "sat on the mat", "sat down once more")
    cache.truncate([6, 4])
    parts = pool(cache, words, 1, 22, 85)
    for b, y in enumerate((38.5, 38.5 + 2 * 58 + 2 * CELL + 2)):
        parts.append(text(1, y, f"text {b}", anchor="start"))
    title = "Two tables point into a pool of five pages, both of them to page 4, the cat; page 0 is free"
    return svg(420, 22 + 3 * CELL + 2 + 116 + 24, title, parts)


def copied() -> str:
    """Two texts share a page that is not full; then both write into it."""
    words = ["the", "cat", "mat"]
    cache = PagedKVCache(2, 2, 2)
    append(cache, words, "the", "the")
    cache.truncate([1, 0])
    cache.share(0, 1, 1)
    parts = pool(cache, words, 1, 22, 43, 34)
    append(cache, words, "cat", "mat")
    left = 420 - 2 * PAGE + 7
    parts += pool(cache, words, left, 22, left + 42, 34)
    middle = 22 + 34 + 1.5 * CELL + 1
    parts.append(path(f"M192 {middle}H236m-5 -4l5 4l-5 4", "ink", 1.3))
    title = "Before, two tables name one page, which holds one word; when both have written, each has its own"
    return svg(420, 22 + 3 * CELL + 2 + 68 + 24, title, parts)


def multiprocessors() -> str:
    """The heads of Llama-3-8B on an H100: a program a head, and each head's keys dealt out."""
    g, s, a, n_processors, columns, cell = 8, 32768, 64, 132, 12, 15
    rows, bars, left = n_processors // columns, 172, 420 - columns * cell + 2
    top, parts = 30, []
    parts.append(text(bars / 2, 14, f"keys of {g} heads"))
    parts.append(text((left + 418) / 2, 14, f"{n_processors} multiprocessors"))
    for n in (1, number_of_parts(g, s, a, n_processors)):
        height, pitch = rows * cell - 2, rows * cell / g
        for head in range(g):
            for part in range(n):
                width = bars / n
                y = top + head * pitch + 3
                parts.append(rect(part * width, y, width - (n > 1), pitch - 8, "key", 0.6, 1))
        middle = top + height / 2
        parts.append(path(f"M{bars + 10} {middle}H{left - 12}m-5 -4l5 4l-5 4", "ink", 1.3))
        parts.append(text((bars + left) / 2 - 1, middle - 9, f"n = {n}", colour="ink"))
        for processor in range(n_processors):
            x, y = left + processor % columns * cell, top + processor // columns * cell
            for turn in range(2):
                busy = turn * n_processors + processor < n * g
                parts.append(
                    rect(x + turn * 6.5, y, 6, cell - 2, "key" if busy else "soft", 0.6 if busy else 0.16, 1)
                )
        top += rows * cell + 24
    title = f"Undivided, {g} heads keep {g} of {n_processors} multiprocessors busy; dealt out, all"
    return svg(420, top - 22, title, parts)


def dealt(s: int, a: int, n: int) -> list[tuple[int, int]]:
    """Which keys of a text of s go to which of n parts, in whole tiles, as the kernel deals them out."""
    tiles = -(-s // a)
    share = -(-tiles // n) * a
    return [(min(k * share, s), min((k + 1) * share, s)) for k in range(n)]


def attend(key: Tensor, value: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
    """What a program brings that has these keys of a cache."""
    query, length, options = key.new_ones(1, 1, 1, 1), torch.tensor([stop - start]), [None] * 4
    return decode_plainly(query, key[:, :, start:], value[:, :, start:], length, 1.0, *options)


def two_kernels() -> str:
    """Three texts in a cache with room for 16 tiles: their parts, what these bring, and the merge."""
    lengths, room, a, tile, left, gap = (880, 400, 300), 1024, 64, 21, 66, 18
    n, noise = number_of_parts(len(lengths), room, a, 8), torch.Generator().manual_seed(2)
    y, scale, parts, links = 34.0, 0.0, [], []
    for b, s in enumerate(lengths):
        key = torch.randn(1, 1, room, 1, generator=noise)
        value = (0.5 + 0.45 * torch.sin(torch.arange(room) / 75 + 2 * b + 1)).view(1, 1, room, 1)
        whole = attend(key, value, 0, s)
        scale = scale or 19 / float((whole[1] / 2).exp())
        x, middles, answers = float(left), [], []
        for start, stop in dealt(s, a, n):
            width = tile * (stop - start) / a if stop > start else 5
            for j in range(start, stop, a):
                here, long = x + tile * (j - start) / a, tile * min(a, stop - j) / a - 1.5
                parts += [rect(here, y, long, 8, "key", 0.8), rect(here, y + 9.5, long, 8, "value", 0.8)]
            parts.append(outline(x - 4.5, y - 4.5, width + 7.5, 26.5, dashed=start == stop))
            answers.append(attend(key, value, start, stop))
            middles.append(x + width / 2 - 0.75)
            x += width + gap
        merged = answers[0]
        for answer in answers[1:]:
            merged = merge_attention(*merged, *answer)
        assert all(torch.allclose(p, q) for p, q in zip(merged, whole, strict=True))
        centre, low, last = sum(middles) / n, y + 45, y + 92
        for middle, answer in zip(middles, answers, strict=True):
            links += [line(middle, y + 22, middle, low, "soft"), line(middle, low, centre, last, "soft")]
            parts += state(middle, low, answer, scale)
        parts += state(centre, last, merged, scale)
        parts.append(text(0, y + 13, f"s = {s}", anchor="start", colour="ink"))
        if b == 0:
            brace = f"M{left} {y - 8}v-4h{tile - 1.5}v4"
            parts += [path(brace), text(left + tile / 2, y - 16, "a", colour="ink")]
            low_n = '<tspan font-size="9" dy="3">n</tspan>'
            parts.append(text(0, low + 4, f'o{low_n}<tspan dy="-3">, L</tspan>{low_n}', anchor="start"))
            parts.append(text(0, last + 4, "merged", anchor="start"))
        y += 128
    title = (
        f"Three texts, each dealt out to {n} programs; what they bring are circles, merged into one a text"
    )
    return svg(420, y - 15, title, links + parts)


def outline(x: float, y: float, width: float, height: float, dashed: bool = False) -> str:
    """One program's work."""
    corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
    return curve(corners, "soft", 1, 0.7, dash="3 3" if dashed else "")


def state(x: float, y: float, answer: tuple[Tensor, Tensor], scale: float) -> list[str]:
    """Area: the sum behind an answer. Shade: the answer."""
    output, lse = answer
    radius = scale * float((lse / 2).exp())
    if not radius:
        return [circle(x, y, 2.2, "mask")]
    rim = [circle(x, y, radius + 1, "value"), circle(x, y, radius, "paper")]
    return [*rim, circle(x, y, radius, "value", float(output))]
