"""The proof of `flash_paged`: each test is a claim that its page makes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests import proof
from tests.annotated_attention.test_sliding_window_details import model_of
from tests.proof import Case, assert_close, normal

from annotated_attention.flash_paged import PagedKVCache, filled, gather_pages
from annotated_attention.flash_triton_decoding import flash_decoding_triton, paged_attention_triton
from annotated_attention.kv_cache import KVCache, make_caches, prefill
from annotated_attention.language_model import Cache, causal_attention, generate

shares = st.sampled_from([0.0, 0.4, 0.8, 1.0])
steps = st.lists(
    st.one_of(
        st.integers(0, 7),
        st.lists(shares, min_size=3, max_size=3),
        st.tuples(st.integers(0, 2), st.integers(0, 2), shares),
    ),
    max_size=20,
)


def consistent(cache: PagedKVCache, texts: list[list[float]]) -> None:
    """Every page is free or has as many readers as texts name it, and no text has one more than it needs."""
    named = [page for row in cache.pages for page in row]
    assert [named.count(page) for page in range(len(cache.readers))] == cache.readers
    assert sorted([*cache.free, *set(named)]) == list(range(len(cache.readers)))
    for row, text in zip(cache.pages, texts, strict=True):
        assert len(row) == -(-len(text) // cache.page_size)


@given(steps=steps, n=st.sampled_from([1, 3, 4]))
def test_texts_are_what_was_written(steps: list, n: int, device: str) -> None:
    """Any sequence of growing, forgetting and sharing, beside plain lists of numbered tokens."""
    cache, texts, count = PagedKVCache(3, 200, n), [[], [], []], 0
    assert isinstance(cache, Cache)
    for step in steps:
        if isinstance(step, list):
            kept = [int(share * len(row)) for share, row in zip(step, texts, strict=True)]
            texts = [row[:m] for row, m in zip(texts, kept, strict=True)]
            cache.truncate(kept)
        elif isinstance(step, tuple):
            source, target, share = step
            if source != target:
                cache.truncate([len(row) * (n != target) for n, row in enumerate(texts)])
                texts[target] = texts[source][: int(share * len(texts[source]))]
                cache.share(source, target, len(texts[target]))
        else:
            new = 1.0 + torch.arange(count, count + 3 * step).view(3, 1, step, 1)
            count += 3 * step
            keys, values = cache.update(new.to(device), -new.to(device))
            texts = [row + more for row, more in zip(texts, new.view(3, step).tolist(), strict=True)]
            longest = max(map(len, texts))
            assert keys.shape == (3, 1, longest, 1)
            for row, text in enumerate(texts):
                assert keys[row].flatten().tolist() == text + [0.0] * (longest - len(text))
            assert torch.equal(values, -keys)
        consistent(cache, texts)
    for row, text in zip(cache.positions.tolist(), texts, strict=True):
        assert row == [*range(len(text)), *([-1] * (max(map(len, texts)) - len(text)))]


def test_a_shared_page_is_copied_before_it_is_written(device: str) -> None:
    """Ten tokens in pages of four. Of three texts that begin with all of them, two get a copy of the third page."""
    key = normal("key", 3, 2, 10, 5, device=device)
    cache = PagedKVCache(3, 9, 4)
    cache.append(key, key)
    cache.truncate([10, 0, 0])
    for target in (1, 2):
        cache.share(0, target, 10)
    assert cache.table[:, :3].unique(dim=0).shape[0] == 1
    assert len(cache.free) == 6
    more = normal("more", 3, 2, 1, 5, device=device)
    keys, _ = cache.update(more, more)
    assert torch.equal(keys, torch.cat([key[:1].expand(3, -1, -1, -1), more], 2))
    assert len(cache.free) == 4
    assert [len(column.unique()) for column in cache.table.T] == [1, 1, 3]
    consistent(cache, [[0.0] * 11] * 3)


def test_the_cat_sat_down() -> None:
    """The page's example: two texts with two words in common, in pages of two words."""
    mat, down = (text.split() for text in ("the cat sat on the mat", "the cat sat down once more"))
    words = sorted({*mat, *down})
    key = torch.tensor([[words.index(word) + 1.0 for word in text] for text in (mat, down)])[:, None, :, None]
    cache = PagedKVCache(2, 5, 2)
    cache.append(key[:, :, :2], key[:, :, :2])
    cache.truncate([2, 0])
    cache.share(0, 1, 2)
    for word in range(2, 6):
        cache.append(key[:, :, word : word + 1], key[:, :, word : word + 1])
    cache.truncate([6, 4])
    assert cache.table.tolist() == [[4, 3, 1], [4, 2, -1]]
    held = [[words[int(x) - 1] for x in page] for page in cache.key_pages[1:, 0, :, 0]]
    assert [" ".join(page) for page in held] == ["the mat", "sat down", "sat on", "the cat"]
    assert cache.free == [0]


def test_pages_come_back(device: str) -> None:
    key = torch.ones(2, 1, 5, 1, device=device)
    cache = PagedKVCache(2, 6, 2)
    cache.append(key, key)
    assert not cache.free
    with pytest.raises(ValueError, match="cache has 0 free pages of 2 tokens: 4 are wanted"):
        cache.append(key[:, :, :4], key[:, :, :4])
    cache.append(key[:, :, :1], key[:, :, :1])
    cache.truncate([0, 1])
    assert len(cache.free) == 5
    cache.append(2 * key, 2 * key)
    assert (
        cache.update(key[:, :, :0], key[:, :, :0])[0].flatten().tolist() == [2.0] * 5 + [0.0, 1.0] + [2.0] * 5
    )


def test_the_last_copy_needs_no_page(device: str) -> None:
    """Two texts read one page that is not full. One copy is enough, and one free page; for three it is not."""
    key = torch.ones(2, 1, 1, 1, device=device)
    cache = PagedKVCache(2, 2, 3)
    cache.append(key, key)
    cache.truncate([1, 0])
    cache.share(0, 1, 1)
    assert len(cache.free) == 1
    keys, _ = cache.update(2 * key, 2 * key)
    assert keys.flatten().tolist() == [1.0, 2.0] * 2
    key = torch.ones(3, 1, 1, 1, device=device)
    cache = PagedKVCache(3, 3, 3)
    cache.append(key, key)
    cache.truncate([1, 0, 0])
    cache.share(0, 1, 1)
    cache.share(0, 2, 1)
    cache.free = cache.free[:1]
    with pytest.raises(ValueError, match="cache has 1 free pages of 3 tokens: 2 are wanted"):
        cache.append(key, key)
    cache.free = []
    cache.append(key[:, :, :0], key[:, :, :0])
    assert cache.lengths.tolist() == [1, 1, 1]


def test_what_is_refused_changes_nothing() -> None:
    key, value = torch.ones(2, 3, 4, 5), torch.ones(2, 3, 4, 7)
    cache = PagedKVCache(2, 4, 4)
    cache.append(key, value)
    wrong = [
        (lambda: cache.append(key[:1], value[:1]), r"key is torch.float32 of shape \(1, 3, 4, 5\)"),
        (lambda: cache.append(key, value.double()), "value is torch.float64"),
        (lambda: cache.append(key, value[..., :5]), "value is"),
        (lambda: cache.append(key.clone().requires_grad_(), value), "key wants a gradient"),
        (
            lambda: cache.append(torch.cat([key] * 2, 2), torch.cat([value] * 2, 2)),
            "2 free pages of 4 .*: 4 are",
        ),
        (lambda: cache.truncate([4, 5]), r"lengths is \[4, 5\]: of each text, at most \[4, 4\]"),
        (lambda: cache.truncate([4]), r"lengths is \[4\]"),
        (lambda: cache.share(0, 1, 2), "text 1 has 4 tokens, length is 2: an empty text and at most 4 are"),
        (lambda: PagedKVCache(0, 1), "n_texts is 0, n_pages is 1, page_size is 16: at least 1"),
        (lambda: PagedKVCache(1, 1, 0), "page_size is 0"),
        (lambda: filled([], 4, 4), r"lengths is \[\], reserved is 4, n is 4: some tokens"),
        (lambda: filled([5], 4, 4), "none longer than what is reserved"),
    ]
    before = cache.key_pages.clone(), cache.value_pages.clone(), cache.table, cache.lengths
    for call, message in wrong:
        with pytest.raises(ValueError, match=message):
            call()
    after = cache.key_pages, cache.value_pages, cache.table, cache.lengths
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))
    cache.truncate([4, 0])
    with pytest.raises(ValueError, match="text 1 has 0 tokens, length is 5: an empty text and at most 4 are"):
        cache.share(0, 1, 5)
    fresh = PagedKVCache(2, 4, 4)
    with pytest.raises(ValueError, match="4 free pages of 4 tokens: 10 are wanted"):
        fresh.append(torch.ones(2, 3, 17, 5), torch.ones(2, 3, 17, 7))
    assert not fresh.nbytes


def test_a_model_writes_the_same(device: str) -> None:
    """Prompts of different lengths, read together and gone on with, as with a cache in one piece."""
    model = model_of(causal_attention, 2).to(device)
    prompts = [torch.arange(n, device=device) ** 2 % 17 for n in (7, 2, 5)]
    written = []
    for caches in (make_caches(model, 32), [PagedKVCache(3, 20, 4) for _ in model.blocks]):
        with torch.no_grad():
            first = proof.bare(prefill)(model, prompts, caches).argmax(-1)[:, None]
        written.append(generate(model, first, 12, temperature=0.0, caches=caches))
    assert torch.equal(*written)


def test_the_kernel_reads_the_cache(device: str) -> None:
    """Two texts that share a beginning and go on by themselves: by the table, and gathered."""
    key, value = Case("cache", b=2, g=1, s=21).inputs(torch.float32, device)[1:]
    query = normal("query", 2, 2, 3, 11, dtype=torch.float32, device=device)
    cache = PagedKVCache(2, 20, 4)
    cache.append(key, value)
    cache.truncate([21, 0])
    cache.share(0, 1, 14)
    new = key[:, :, :3], value[:, :, :3]
    keys, values = cache.update(*new)
    found = paged_attention_triton(query, cache.key_pages, cache.value_pages, cache.table, cache.lengths)
    whole = flash_decoding_triton(query, keys, values, lengths=cache.lengths)
    assert all(torch.equal(x, y) for x, y in zip(found, whole, strict=True))
    exact = torch.cat([key[:1, :, :14], new[0][1:]], 2)
    assert torch.equal(keys[1:, :, :17], exact)
    assert torch.equal(gather_pages(cache.key_pages, cache.table, cache.lengths)[:, :, :24], keys)


@given(lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4), n=st.integers(1, 9))
def test_a_text_wastes_less_than_a_page(lengths: list[int], n: int) -> None:
    cache, longest = PagedKVCache(len(lengths), 200, n), max(lengths)
    key = torch.zeros(len(lengths), 1, longest, 1)
    cache.append(key, key)
    cache.truncate(lengths)
    for row, m in zip(cache.pages, lengths, strict=True):
        assert 0 <= len(row) * n - m < n
    if sum(lengths):
        used = 200 - len(cache.free)
        assert filled(lengths, longest, n) == (
            sum(lengths) / (len(lengths) * longest),
            sum(lengths) / (used * n),
        )


def test_slots_that_hold_a_token() -> None:
    contiguous, paged = filled(range(1, 2049), 2048, 16)
    assert (round(contiguous, 3), round(paged, 3)) == (0.5, 0.993)
    cache, pages = KVCache(16), PagedKVCache(2, 2, 8)
    for each in (cache, pages):
        each.update(torch.zeros(2, 1, 5, 3), torch.zeros(2, 1, 5, 3))
    assert cache.nbytes == 2 * pages.nbytes
    assert_close(torch.tensor(contiguous), torch.tensor(2049 / 4096), torch.tensor(2049 / 4096).double())


def test_table_entries_without_a_page_are_below_zero() -> None:
    cache = PagedKVCache(2, 9, 4)
    cache.append(torch.zeros(2, 1, 9, 1), torch.zeros(2, 1, 9, 1))
    cache.truncate([9, 3])
    assert (cache.table[1] == -1).tolist() == [False, True, True]
    assert cache.table.dtype == torch.int32
    assert proof.bare(PagedKVCache)(1, 1).table.shape == (1, 0)
