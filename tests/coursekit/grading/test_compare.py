"""What is right, what is wrong, and how it is said."""

import numpy as np
import pytest
import torch

from coursekit.grading.compare import complaint, same
from coursekit.grading.values import BFLOAT16, Other

RIGHT = np.arange(6.0).reshape(2, 3)


def changed(*index: int, by: float = 0.5, dtype: type = np.float64) -> np.ndarray:
    array = RIGHT.astype(dtype)
    array[index] += by
    return array


def test_the_right_answer_is_not_complained_about():
    assert complaint(RIGHT.copy(), torch.from_numpy(RIGHT)) is None
    assert complaint(1, 1.0) is None
    assert complaint(np.array(2.0), 2.0) is None
    assert complaint(np.full(2, -np.inf), np.full(2, -np.inf)) is None
    assert complaint(np.zeros((0, 3)), np.zeros((0, 3))) is None


@pytest.mark.parametrize(
    ("actual", "said"),
    [
        (None, "weights is None, expected an array of shape (2, 3) (query, key): is a return missing?"),
        (
            [1.0, 2.0],
            "weights is a list, expected a tensor of shape (2, 3) (query, key): "
            "torch.tensor(...) makes one of it",
        ),
        (
            (RIGHT[0], RIGHT[1]),
            "weights is a tuple of 2, expected a tensor of shape (2, 3) (query, key): "
            "torch.stack(...) makes one of it",
        ),
        (Other("generator"), "weights is a generator, expected an array of shape (2, 3) (query, key)"),
        (RIGHT.T, "weights has shape (3, 2), expected an array of shape (2, 3) (query, key)"),
        (3.0, "weights is 3.0, expected an array of shape (2, 3) (query, key)"),
        (RIGHT.astype(int), "weights holds whole numbers (int64), expected floating point"),
        (RIGHT > 2, "weights holds true or false (bool), expected floating point"),
        (changed(1, 2), "weights: query 1, key 2 is 5.5, expected 5 (1 of 6 entries is wrong)"),
        (changed(1), "weights: query 1, key 0 is 3.5, expected 3 (3 of 6 entries are wrong)"),
        (RIGHT + 1, "weights: query 0, key 0 is 1, expected 0 (every entry is wrong)"),
        (changed(0, 1, by=np.nan), "weights: query 0, key 1 is nan, expected 1 (1 of 6 entries is wrong)"),
        (changed(0, 1, by=np.inf), "weights: query 0, key 1 is inf, expected 1 (1 of 6 entries is wrong)"),
        (changed(1, 0, by=1e-6), "weights: query 1, key 0 is 3.000001, expected 3 (1 of 6 entries is wrong)"),
    ],
)
def test_the_first_thing_that_is_wrong_is_said_in_words(actual, said: str):
    assert complaint(actual, RIGHT, axes="query key", what="weights") in (said, f"{said}{FLOAT32}")


FLOAT32 = "\nThe error is as small as float32's rounding: did a step run in float32?"


def test_a_remark_may_follow():
    def explain(index):
        return f"key {index['key']} lies in the future" if index["key"] > index["query"] else None

    said = complaint(changed(0, 2), RIGHT, axes="query key", what="weights", explain=explain)
    assert said is not None
    assert said.endswith("(1 of 6 entries is wrong): key 2 lies in the future")
    said = complaint(changed(1, 0), RIGHT, axes="query key", what="weights", explain=explain)
    assert said is not None
    assert said.endswith("wrong)")


def test_scalars_and_arrays_without_words():
    assert complaint(0.5, 0.25, what="scale") == "scale is 0.5, expected 0.25"
    assert (
        complaint(changed(1, 1), RIGHT)
        == "the result: entry [1, 1] is 4.5, expected 4 (1 of 6 entries is wrong)"
    )
    assert complaint(np.array([1, 2]), np.array([1, 3])) == (
        "the result: entry [1] is 2, expected 3 (1 of 2 entries is wrong)"
    )


def test_words_that_do_not_fit_are_the_check_authors_mistake():
    with pytest.raises(ValueError, match="names 1 axes, the expected value has 2"):
        complaint(RIGHT[0], RIGHT, axes="query")


def test_an_expected_value_made_from_a_wrong_answer_is_not_its_author_s_mistake():
    said = complaint(RIGHT, RIGHT, axes="head query key", what="weights")
    assert said == "weights has shape (2, 3), expected 3 axes (head, query, key)"
    assert complaint(None, RIGHT[0], axes="query key") == "the result is None, expected 2 axes (query, key)"


def test_minus_zero_is_zero():
    said = complaint(np.array([-0.0, 1.0]), np.array([0.5, 1.0]))
    assert said == "the result: entry [0] is 0, expected 0.5 (1 of 2 entries is wrong)"
    assert complaint(-0.0, RIGHT) == "the result is 0.0, expected an array of shape (2, 3)"


def test_a_step_in_float32_is_suspected():
    given = (RIGHT / 3).astype(np.float32).astype(np.float64)
    said = complaint(given, RIGHT / 3)
    assert said is not None
    assert said.endswith(FLOAT32)
    # The same numbers handed in as float32 are judged as such.
    assert complaint(given.astype(np.float32), RIGHT / 3) is None


@pytest.mark.parametrize("seed", range(50))
def test_another_order_of_summation_passes_and_mutants_do_not(seed: int):
    generator = torch.Generator().manual_seed(seed)
    query, key, value = (torch.randn(2, 13, 8, generator=generator, dtype=torch.float64) for _ in range(3))

    def attention(query, key, value, scale=8**-0.5, extra=0.0):
        scores = torch.einsum("htd,hsd->hts", query, key) * scale
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        return torch.einsum("hts,hse->hte", weights / (weights.sum(-1, keepdim=True) + extra), value)

    wanted = attention(query, key, value)
    order = torch.randperm(13, generator=generator)
    width = torch.randperm(8, generator=generator)
    rewritten = (query[..., width] * 8**-0.5) @ key[:, order][..., width].mT
    rewritten = rewritten.softmax(-1) @ value[:, order]
    assert complaint(rewritten.numpy(), wanted) is None
    loops = np.stack(
        [
            np.exp(s) / np.exp(s).sum(-1, keepdims=True) @ v
            for s, v in zip((query @ key.mT / 8**0.5).numpy(), value.numpy(), strict=True)
        ]
    )
    assert complaint(loops, wanted) is None
    single = attention(query.float(), key.float(), value.float())
    assert complaint(single.numpy(), wanted) is None
    for mutant in (
        attention(query, key, value, scale=9**-0.5),
        attention(query, key, value, extra=1e-9),
        attention(query, key, value, extra=1.0),
        attention(query, key, value + 1e-10),
    ):
        assert complaint(mutant.numpy(), wanted) is not None


def test_a_peer_gives_what_it_needs_itself():
    wanted = np.array([1.0, 2.0])
    peer = np.array([1.0, 2.001], np.float32)
    assert complaint(np.array([1.001, 2.0], np.float32), wanted, peer=peer) is None
    assert complaint(np.array([1.003, 2.0], np.float32), wanted, peer=peer) is not None
    assert complaint(np.array([1.003, 2.0], np.float32), wanted, peer=peer, factor=4) is None


def test_half_precision_may_round_once_and_not_more():
    wanted = np.linspace(0, 1, 7)
    rounded = torch.from_numpy(wanted).bfloat16()
    assert complaint(rounded.float().numpy().astype(BFLOAT16), wanted) is None
    assert complaint(rounded.float().numpy(), wanted) is not None


def test_large_intermediates_widen_the_bound():
    wanted = np.ones(3)
    assert complaint(wanted + 1e-11, wanted) is not None
    assert complaint(wanted + 1e-11, wanted, largest=1e4) is None


def test_sameness_looks_through_rounding_only():
    assert same(RIGHT, RIGHT * (1 + 1e-14))
    assert not same(RIGHT, RIGHT + 1e-6)
    assert not same(RIGHT, RIGHT.astype(int))
    assert not same(RIGHT, RIGHT.T)
    assert same(np.array([np.nan, -np.inf]), np.array([np.nan, -np.inf]))
    assert same((1, [RIGHT, None], {"a": 2.0}), (1, [RIGHT, None], {"a": 2.0}))
    assert not same((1, RIGHT), (1,))
    assert not same(None, 0)
    assert same(Other("generator"), Other("generator"))
