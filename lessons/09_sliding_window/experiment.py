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

**Outcome.** The cliff stands where it must, bit for bit, and every model of every seed uses its whole reach:
among blanks this is easier than was expected, and none failed at the last places. (Untrained, at a reach of
60, the last few places may weigh so little that float32 rounds them away: there is less before the cliff,
never more behind it.) Asking each blank teaches each hop; so, after first trials, stacks were added of which
only the last token is asked. There too all models find the whole reach, four layers of 8 after twice as many
steps. That one more layer always costs more steps does not hold over all seeds: three and four layers
overlap. What this cannot show is a relay that must choose: here whoever sees something other than blanks
takes it. Lesson 12 asks for one fact of eight.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from math import inf

import torch
import torch.nn.functional as F
from torch import Tensor

from annotated_attention.language_model import LanguageModel, causal_attention
from annotated_attention.sliding_window import causal_window_attention, receptive_field
from annotated_attention.sliding_window_recall import reader, teach
from coursekit.experiments import Claim, Runs

VALUES, EVERY = 8, 10


def plan(size: str, seeds: Sequence[int]) -> list[dict]:
    """`asked` is "everywhere" or "at the end"; window 0 is dense attention."""
    if size not in ("quick", "default"):
        raise ValueError(f"size is {size!r}: quick or default is wanted")
    shapes = [(8, 1), (8, 2), (0, 1)]
    length, steps, asked_at_the_end = 40, 120, []
    if size == "default":
        length, steps = 80, 200
        equal = [(29, 1), (15, 2)]
        shapes = [(w, n) for w in (8, 16, 0) for n in (1, 2, 3, 4)] + equal
        asked_at_the_end = [(8, n) for n in (1, 2, 3, 4)] + equal
    runs = []
    for window, layers in shapes:
        runs.append({"asked": "everywhere", "window": window, "layers": layers})
        runs[-1] |= {"length": length, "steps": steps}
    for window, layers in asked_at_the_end:
        runs.append({"asked": "at the end", "window": window, "layers": layers})
        runs[-1] |= {"length": layers * window + 1, "steps": 2 * steps}
    return [{**run, "seed": seed} for run in runs for seed in seeds]


def run(settings: dict, report: Callable[[float], None]) -> dict:
    window, layers, length = settings["window"], settings["layers"], settings["length"]
    attend = partial(causal_window_attention, window=window) if window else causal_attention
    reach = receptive_field(layers, window) - 1 if window else length - 1
    torch.manual_seed(settings["seed"])
    model = reader(attend, n_layers=layers, n_facts=1, n_values=VALUES, length=length)

    documents = everywhere if settings["asked"] == "everywhere" else at_the_end
    tokens, targets = documents(length)
    before, learned = furthest(judge(model, tokens, targets)[1]), []

    def draw() -> tuple[Tensor, Tensor]:
        few = torch.randint(len(tokens), (32,)) if len(tokens) > 32 else slice(None)
        return tokens[few], targets[few]

    def watch(step: int) -> None:
        report(step / settings["steps"])
        if step % EVERY == 0 and not learned:
            right, _ = judge(model, tokens, targets)
            if min(right[:reach]) == 1:
                learned.append(step)

    teach(model, draw, steps=settings["steps"], report=watch)
    right, moved = judge(model, tokens, targets)
    measured = {"right": right, "reach": reach, "moved_before": before, "moved": furthest(moved)}
    return {**measured, "learned": learned[0] if learned else None}


def everywhere(length: int) -> tuple[Tensor, Tensor]:
    """Eight documents: the fact stands at place 0, and each later place is asked."""
    fact = 1 + torch.arange(VALUES)
    tokens = F.pad(fact[:, None], (0, length - 1))
    targets = fact[:, None].repeat(1, length)
    targets[:, 0] = -100
    return tokens, targets


def at_the_end(length: int) -> tuple[Tensor, Tensor]:
    """Eight for each distance: the fact stands that far before the last place, which alone is asked."""
    fact, back = 1 + torch.arange(VALUES), torch.arange(1, length)
    tokens = torch.zeros(VALUES, length - 1, length, dtype=torch.long)
    tokens[:, back - 1, -1 - back] = fact[:, None]
    targets = torch.full_like(tokens, -100)
    targets[..., -1] = fact[:, None]
    return tokens.flatten(0, 1), targets.flatten(0, 1)


@torch.no_grad()
def judge(model: LanguageModel, tokens: Tensor, targets: Tensor) -> tuple[list[float], list[bool]]:
    """For each distance from 1 on: the share of right answers in the eight documents that differ in the fact
    alone, and whether any two of them have different logits there."""
    asked = targets >= 0
    logits = model(tokens)[asked].unflatten(0, (VALUES, -1))
    right = logits.argmax(dim=-1) == targets[asked].unflatten(0, (VALUES, -1))
    moved = (logits != logits[:1]).any(dim=-1).any(dim=0)
    return right.double().mean(dim=0).tolist(), moved.tolist()


def furthest(moved: list[bool]) -> int:
    return max((r for r, is_moved in enumerate(moved, start=1) if is_moved), default=0)


def claims(runs: Runs) -> list[Claim]:
    windows = Runs(run for run in runs if run.settings["window"])
    blind = [run.measured["right"][run.measured["reach"] :] for run in windows]
    blind = [share for shares in blind for share in shares]
    moved = [max(run.measured["moved"], run.measured["moved_before"]) for run in windows]
    within = sum(far <= reach for far, reach in zip(moved, windows.values("reach"), strict=True))
    chance = 1 / VALUES
    found = [
        Claim(
            "A fact further back than $L(w-1)$ moves no logit, before training or after",
            "$L\\,W$ tokens",
            f"{within} of {len(windows)} models",
            within == len(windows),
            quick=True,
        ),
        Claim(
            "Beyond the cliff the answers are a guess among eight",
            "–",
            f"{min(blind):.1%} to {max(blind):.1%} right",
            min(blind) == max(blind) == chance,
            quick=True,
        ),
        whole_reach(windows.where(asked="everywhere"), "asked everywhere", quick=True),
    ]
    dense = runs.where(window=0, layers=1)
    least = [min(right) for right in dense.values("right")]
    one = Claim(
        "One dense layer answers at every distance",
        "–",
        f"{min(least):.0%} right at the worst distance",
        min(least) == 1,
        quick=True,
    )
    found.append(one)
    if not any(run.settings["asked"] == "at the end" for run in runs):
        return found

    end = runs.where(asked="at the end")
    found.append(whole_reach(end, "asked at the end only"))
    ladder = [learned(end.where(window=8, layers=n)) for n in (1, 2, 3, 4)]
    shapes = [learned(end.where(window=w, layers=n)) for w, n in ((29, 1), (15, 2), (8, 4))]
    steps = "steps until all within reach is right"
    return [
        *found,
        Claim(
            "Asked at the end, a relay of more hops takes longer to learn (1 to 4 layers of 8)",
            "–",
            f"{', '.join(map(told, ladder))} {steps}",
            all(max(a) < min(b) for a, b in pairwise(ladder)),
        ),
        Claim(
            "Of stacks that reach 28, one layer of 29 learns first, then two of 15, then four of 8",
            "–",
            f"{', '.join(map(told, shapes))} {steps}",
            all(max(a) < min(b) for a, b in pairwise(shapes)),
        ),
    ]


def whole_reach(runs: Runs, when: str, *, quick: bool = False) -> Claim:
    whole = [min(run.measured["right"][: run.measured["reach"]]) == 1 for run in runs]
    says = f"Training uses the whole reach: right at every distance up to the cliff, {when}"
    return Claim(says, "–", f"{sum(whole)} of {len(whole)} models", all(whole), quick=quick)


def learned(runs: Runs) -> list[float]:
    """The step of each seed; infinite for a model that never was right everywhere within its reach."""
    return [inf if step is None else step for step in runs.values("learned")]


def told(steps: list[float]) -> str:
    return f"{min(steps):.0f} to {max(steps):.0f}" if max(steps) < inf else "never for some"
