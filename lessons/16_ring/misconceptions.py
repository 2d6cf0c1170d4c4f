"""Wrong variants of the exercise: each is a mistake that somebody made, with what a tutor would say.

`target__mistake` stands in for `target`. Its body may use every name of `exercise.py`, where these are right.
"""

import torch


def ring_attention__no_scale(query, key, value):
    """Your scores are not scaled. What is the variance of a sum of d products, and what does a softmax
    do with scores that far apart?"""
    weights = (query @ key.mT).softmax(dim=-1)
    return weights @ value


def ring_attention__softmax_over_queries(query, key, value):
    """Your weights sum to one over the queries. Each query spreads one unit of attention over the keys:
    along which axis must the sum be one?"""
    scores = torch.einsum("b h t d, b h s d -> b h t s", query, key) * query.shape[-1] ** -0.5
    return scores.softmax(dim=-2) @ value
