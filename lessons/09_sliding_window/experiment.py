r"""# How far a stack of windows knows

**Claim.** Each layer hands news on by a window, so that a stack of them knows more than its window holds.
Mistral 7B (arXiv:2310.06825, section 2) counts $L$ layers of a window $W$ as $L\,W$ tokens, some 131,000 for
32 layers of 4,096. The exact count is $L(W-1)+1$, the token itself included: a fact that stands further back
than $L(W-1)$ cannot be known.

**Prediction.** (1) The cliff is mathematics. At every distance beyond $L(w-1)$ the logits do not depend on
the fact, not in one bit, before training and after, and the answer is right once in eight times. So the
$L - 1$ places between $L(w-1)$ and $L\,w$, which the paper's count includes, are blind. (2) Whether training
uses the whole reach is not mathematics. Here nothing else competes for the stream, so we expect all models
with up to three layers to answer at every distance up to the cliff, and the deepest to take more steps, or to
fail at the last places for some seeds: the relay has to be learned hop by hop, and at first the furthest
place has one way in $w^L$. (3) Dense attention answers everywhere with one layer. (4) Stacks of the same
$L(w-1)$ have the same cliff; the shallow one learns it in fewer steps.

**Setting.** A document of 80 tokens: a fact (one of eight), then blanks, each of which is asked for the fact.
So one document asks at every distance, and there are eight documents, all of them the test. The course's
decoder without position vectors, its slot filled with `causal_window_attention`: the mask alone says who sees
whom. Measured: the share of right answers by distance; the furthest place whose logits the fact moves; and
the steps until every place within reach is right.

**Outcome.** Not run yet.
"""
