r"""# What sparse patterns know, and what crosses a hub

**Claim.** BigBird (arXiv:2007.14062, table 1, MLM/SQuAD/MNLI): random blocks alone 60.1/83.0/80.2, a window
alone 58.3/76.4/73.1, both 62.7/85.1/80.5, all pairs 64.2/88.5/83.4. Hence global tokens, as in Longformer
(arXiv:2004.05150), through which any distance takes two layers.

**Prediction.** (1) Who can answer is settled by the plan. Where no path of at most $L$ arcs leads from the
fact to the question, the answer is a guess, in every pattern; so accuracy by distance is a cliff for the
window, and for random blocks it falls smoothly with the share of pairs that have a path. (2) With one fact in
the text, training finds nearly every path that there is, up to three layers. Then the paper's order follows
from paths alone: window below random below or near both, all below dense; with a global token two layers
answer everything and random blocks add nothing, while with one layer the hub has heard the fact and nobody has
heard the hub. (3) With many facts, each question asking for one of them, dense attention still looks its
answer up, but whoever passes something on does not know what will be asked and must carry all facts in one
vector. So through one global token the far answers get worse as facts become more, and four global tokens
(a global block) lose less. Random blocks help there, if they help anywhere.

**Setting.** A document of blocks of 4 tokens. A few tokens are facts, each a key with one of eight values; each
other token asks for one of the keys. The course's transformer without position vectors, its slot filled with
`bigbird_attention` by a plan, or with `longformer_attention`, in both directions. The first block holds no
fact, for it is the global one where there is one. Measured: the share of right answers by distance in blocks,
and separately where the plan has a path and where it has none.

**Outcome.** Not run yet.
"""
