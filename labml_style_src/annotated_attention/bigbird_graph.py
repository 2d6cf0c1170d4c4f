r"""# The graph of a plan

How many layers until the last word of a text has heard of the first? A layer of attention carries a word
back along one arc, from a key to the query that looks at it. So the answer is the length of a shortest path,
and it can be read off the plan, before anything is trained:

$$D_{IJ} = \min\,\{\, L \,:\, (A^L)_{IJ} > 0 \,\},$$

for $(A^L)_{IJ}$ counts the ways that lead from $J$ to $I$ in $L$ steps, those that wait included. Stacked
layers of `bigbird_attention` have a gradient from block $J$ at block $I$ from layer $D_{IJ}$ on, and none
before [check:test_gradients_reach_as_far_as_paths].

![24 blocks in a row, bent round, and the arcs of four plans. The fuller its colour, the fewer layers it takes
until the last block, at the lower right, has heard of a block.](figure:reach)

## A window takes n layers

With $n_w$ blocks in the window a layer comes $\lfloor n_w/2 \rfloor$ blocks further, and the ends of the
text are $\lceil (n - 1) / \lfloor n_w/2 \rfloor \rceil$ layers apart [check:test_window_needs_n_layers].

## Random arcs take log n

A row has at most $n_w + n_r$ blocks if none is global, so within $L$ layers a block hears of
$(n_w + n_r)^L$ blocks at most, in any plan. To hear of all $n$ takes

$$L \;\ge\; \frac{\log n}{\log(n_w + n_r)}$$

layers [check:test_no_plan_beats_the_logarithm]. A window alone stays far from that: what a neighbour sees,
one has mostly seen. What a random block sees is new, as long as little of the text is known. So with random
arcs four times the blocks cost one to three layers more, where a window takes four times as many.

| plan | longest path, $n = 64$ | 256 | 1,024 | gap at 64 | 256 |
|---|---|---|---|---|---|
| window of 3 | 63 | 255 | 1,023 | 0.0008 | 0.00005 |
| window of 3, 1 random | 8 | 11 | 13 | 0.21 | 0.15 |
| window of 3, 3 random | 5 | 6 | 7 | 0.44 | 0.37 |
| window of 3, 1 global | 2 | 2 | 2 | 0.25 | 0.25 |
| window of 3, 2 global, 3 random | 2 | 2 | 2 | 0.57 | 0.52 |

All with seed 0 [check:test_table_of_path_lengths|the table]. The gap says how fast a text mixes, and has a
section of its own below.

![The longest of all shortest paths, against the number of blocks, which doubles from step to step.
](figure:growth)

Random arcs *alone* will not do. Every row draws $n_r$ blocks, but nobody sees to it that a block is drawn: of
$n$ rows, all pass by it with probability $(1 - n_r/(n-1))^{n-1} \approx e^{-n_r}$. With three draws one block
in twenty is seen by no other, and what it says is lost [check:test_some_blocks_are_never_drawn]. The window
mends that: one neighbour is enough.

## A small world

The window has a virtue of its own: neighbours of neighbours are neighbours. Of two blocks that one block
sees, how often does one see the other? That share is the *clustering coefficient*, 0.6 for a long lattice
with a window of 7 and next to nothing for a random graph. Watts and Strogatz (1998) found that a few random
arcs in a lattice shorten its paths long before they dissolve its clusters, and called such graphs small
worlds. Here they are with 256 blocks and 7 arcs from each [check:test_small_world|measured]:

| plan | mean path | clustering |
|---|---|---|
| window of 7 | 28.9 | 0.61 |
| window of 5, 2 random | 3.6 | 0.14 |
| its own block, 6 random | 3.2 | 0.04 |

## A hub takes two layers

One global block, and any two blocks are two layers apart, however long the text
[check:test_a_hub_needs_two_layers]. Random arcs cannot improve on that: in the table, with hubs, they shorten
nothing. What a hub lacks is room. Between distant blocks it has $n_g$ ways of two steps
[check:test_all_ways_lead_through_the_hubs], and $n_g\,u$ tokens must hold all that anybody might want to
know. Random arcs are for plans that have no hub, as in the paper's table 1, or for what the hubs forget.

## What training makes of it

A path is a permission. Is it used? In texts of 16 blocks of 4 tokens a fact was planted, and every other
token asked for it ([a planted fact](../sliding_window_recall/index.md)). With one to three layers and six
plans: where no path of $L$ arcs leads from the fact to the question, no logit moves, and one answer in eight
is right [check:test_no_path_no_answer]. Where there is one, most models answer all. (A few, dense ones too,
confuse one or two of the eight values everywhere; that is their training, not their plan.)

![One fact: right answers by distance, for one layer (strong), two and three (pale); strokes are what the plan
predicts. Mean, least and greatest of three seeds, each with its own lots.](figure:recall)

So who knows is a matter of counting paths. With five blocks a row and two layers, a window knows 57% of the
answers, random blocks 82%, window and random together 77% [check:test_random_blocks_know_most|57, 82, 77%].
In the paper's table 1 the mixture leads. There the task is language, which asks its neighbours most; ours
asks all distances alike.

Then eight facts, and each token asks for one. Whoever passes on does not know what will be asked, and must
carry all. Over two arcs one global token brings 32% of the answers, a global block of four 52%, and with two
random blocks a row 67%; dense attention looks up all [check:test_a_crowd_on_the_bridge|32, 52, 67%]. Here,
where hubs are full, the random arcs earn their keep.

![Two layers: right answers where the way takes two arcs, with one fact and with eight. Red: a guess.
](figure:bridge)

## What the theorems say

- *Theorem 1.* Sparse attention approximates any continuous function of a bounded input, if its graph contains
  a star: one token that sees all and is seen by all. Window and random arcs are not needed, and nothing is
  said of how many layers it takes, or how precise its numbers must be.
- *Turing completeness* (section 3.3) is that of an encoder with a decoder that writes token by token, in
  numbers of unlimited precision.
- *Proposition 1* is the price. For each of $n$ unit vectors find the one furthest from it. Full attention
  does it in one layer, with queries $-\mathbf{x}$, keys and values $\mathbf{x}$ and a cold softmax
  [check:test_full_attention_finds_the_furthest]. A graph with about $n$ arcs needs about $n$ layers,
  $\tilde\Omega(n^{1-o(1)})$, unless a well-believed conjecture about orthogonal vectors is false. For $n^2$
  pairs want to be compared, and short paths do not help: passing a vector on is not comparing it with all.

## Arcs have a direction

In Google's code and in Transformers, random blocks are drawn from the start of the text: of the 64 blocks
of 4,096 tokens, from the first 16. It did better in cross-validation, as somebody reports from the first author
(huggingface/transformers, issue 16566). Then everybody has heard of the start within 3 layers, and the start
hears of nobody: without hubs, what the last block says comes to the first after 49
[check:test_arcs_to_the_start_bring_nothing_back|3 and 49]. For a short way *from* $J$, an arc must end at
$J$. These models have hubs, and do not feel it.

## Notation

| symbol | code | shape | meaning |
|---|---|---|---|
| $n$ | – | scalar | blocks in the text |
| $n_w$, $n_g$, $n_r$ | – | scalar | blocks in the window, global blocks, random blocks in a row |
| $u$ | – | scalar | tokens in a block |
| $A$ | `sees` | `n n` | which block sees which |
| $D$, $D_{IJ}$ | `lengths` | `n n` | layers until $I$ has heard of $J$ |
| $L$ | `layer` | scalar | layers so far |
| $P$ | `walk` | `n n` | one layer with equal scores |
| $\lambda_2$ | `second` | scalar | how slowly a text mixes |

**Source.** Zaheer et al. (2020), arXiv:2007.14062: graphs in section 2, theorems in section 3, their proofs
in appendices A to C. Watts and Strogatz (1998), Nature 393.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from annotated_attention.bigbird import BigBirdPlan, bigbird_plan, plan_mask

__all__ = ["clustering", "path_lengths", "random_walk", "spectral_gap"]


def path_lengths(plan: BigBirdPlan) -> Float[Tensor, "n n"]:
    r"""## Breadth-first search

    The matrix $D$: $D_{IJ}$ is 0 for a block itself, and infinite if nothing of $J$ ever comes to $I$
    [check:test_path_lengths_are_those_of_a_queue].
    """
    sees = plan_mask(plan).float()
    heard = torch.eye(plan.n_blocks, dtype=sees.dtype)
    lengths = torch.full_like(heard, torch.inf)

    # All blocks search at once: one product with $A$ takes every search a layer further. What was heard is
    # not forgotten, as in a residual layer.
    for layer in range(plan.n_blocks):
        lengths[(heard > 0) & lengths.isinf()] = layer
        heard = ((heard + heard @ sees) > 0).to(sees.dtype)
        if not ((heard > 0) & lengths.isinf()).any():
            break
    return lengths


def random_walk(plan: BigBirdPlan) -> Float[Tensor, "n n"]:
    r"""## Mixing

    A path says that something arrives, not how much. Let all scores be equal: then a block takes the same
    share from each block that it sees, $P_{IJ} = A_{IJ} / \sum_K A_{IK}$, and a stack of $L$ layers computes
    $P^L$, which is a random walk along the arcs [check:test_equal_scores_are_a_random_walk].
    """
    sees = plan_mask(plan).double()
    return sees / sees.sum(dim=1, keepdim=True)


def spectral_gap(plan: BigBirdPlan) -> float:
    r"""In the end all blocks hold the same mixture. What still tells them apart shrinks in each layer by the
    second largest eigenvalue of $P$ [check:test_differences_shrink_by_the_second_eigenvalue], so the *spectral
    gap* $1 - |\lambda_2|$ says how fast. That of a window closes as $1/n^2$: four times the text mixes 16
    times as slowly [check:test_gap_of_a_window_closes]. With random arcs, or a hub, it stays open.

    But a gap tells half. The plan whose random arcs all end at the start has a wide one, 0.42, because all but
    the start is soon *forgotten*: of the final mixture, less than a hundredth comes from the last
    three quarters of the text [check:test_a_gap_may_be_forgetting].
    """
    walk = random_walk(plan)
    rates = torch.linalg.eigvals(walk).abs().tolist()
    second = sorted([0.0, *rates])[-2]
    return 1.0 - second


def clustering(plan: BigBirdPlan) -> float:
    r"""## Clustering

    The mean over blocks of the share of pairs of neighbours that are neighbours, with arcs taken both ways
    and blocks of fewer than two neighbours left out. Each closed walk of three steps is such a pair, in one
    of its two orders [check:test_clustering_counts_triangles].
    """
    sees = plan_mask(plan)
    linked = (sees | sees.mT).double().fill_diagonal_(0.0)
    degree = linked.sum(dim=1)
    closed = (linked @ linked @ linked).diagonal()
    counted = degree > 1
    return float((closed / (degree * (degree - 1)))[counted].mean())


def example(axes: dict[str, int]) -> None:
    """A plan for `n` blocks: the shapes beside the code are read off this run."""
    plan = bigbird_plan(axes["n"], n_window=3, n_global=0, n_random=1, seed=0)
    path_lengths(plan)
    random_walk(plan)
    spectral_gap(plan)
    clustering(plan)
