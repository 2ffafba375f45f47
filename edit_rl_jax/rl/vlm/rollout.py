"""The rollout: N replies to each image of each pair, from one shared prefill, read and scored."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.example import Example, Tokens
from edit_rl_jax.rewards.edit_rrm import replies as replies_lib
from edit_rl_jax.rewards.writing import ended
from edit_rl_jax.rl.advantages import AdvantageConfig, advantages, win_share_advantages, win_shares
from edit_rl_jax.rl.vlm import hosts
from edit_rl_jax.rl.vlm.packing import Packer
from edit_rl_jax.rl.vlm.pairs import Pair
from edit_rl_jax.vlm.engine.engine import Answer, Engine
from edit_rl_jax.vlm.engine.prompt import Prompt, Shape
from edit_rl_jax.vlm.engine.sampler import TokenSampling
from edit_rl_jax.vlm.image_prompts import ImagePrompts
from edit_rl_jax.vlm.patches import ImageSettings

SIDES = ("better", "worse")


@dataclasses.dataclass(frozen=True)
class Rollout:
    """What was written about P pairs: answers [P][2][N] and what was read from them; scores, valid [P, 2, N]."""

    pairs: list[Pair]
    answers: list[list[tuple[Answer, ...]]]
    read: list[list[list[replies_lib.Reply]]]
    scores: np.ndarray
    valid: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each reply, [P, 2, N]."""
        return np.array([[[len(a.tokens) for a in side] for side in two] for two in self.answers], np.float32)


def shape_of(rl: Any, rows: int) -> Shape:
    """Gives the engine's shape for a config's rollouts; rows: over which its mesh divides rows."""
    up, B, each = lambda n: -(-n // rows) * rows, rl.slots, 2 * rl.group
    Q = min(max(1 << (each - 1).bit_length(), 8), B)
    P, G = up(-(-7 * B // (4 * rl.group))), up(max(-(-B // Q) + -(-B // each), -(-rl.group // Q)) + 1)
    return Shape(rl.shared, rl.own, B, P, rl.group, G, Q)


def sampling_of(rl: Any) -> TokenSampling:
    """Says how a config's replies are sampled, without what ends them."""
    return TokenSampling(rl.temperature, 0, 1.0, rl.max_new_tokens)


class Writer:
    """Writes replies with the engine: always as many pairs at once, in stores of one shape."""

    def __init__(self, config: Any, model: Any, tokenizer: Any, prompts: Any, images: ImageSettings, mesh: Any):
        r, self.config, self.tokenizer, self.prompts = config.rl, config, tokenizer, prompts
        sampling = ended(sampling_of(r), tokenizer)
        self.mesh = hosts.own(mesh)
        over = self.mesh if self.mesh.size > 1 else None
        self.make = ImagePrompts(model.cfg, tokenizer, images)
        self.engine = Engine(model, sampling, slots=r.slots, seed=config.seed, mesh=over, unit=r.shared)
        self.shape = shape_of(r, self.engine.rows)

    def parts(self, pair: Pair, side: int) -> tuple:
        """Gives the prompt about one image of a pair, text and images in turn. Raises ValueError."""
        mode = self.config.rl.mode
        return self.prompts.build(pair.source, pair.images[side], pair.instruction, pair.principles, mode)

    def asked(self, pair: Pair, item: int = 0, purpose: int = 0) -> list[Prompt]:
        """Makes both prompts of a pair. Raises RecordError or ImageError for one that is too long or has no images."""
        out = []
        for side in range(2):
            more = dict(item=(2 * item + side) & 0x7FFFFFFF, purpose=purpose)
            made = self.make.make(self.parts(pair, side), f"{pair.key}/{SIDES[side]}", **more)
            if not self.shape.fits(made):
                last = made.pieces()[-1]
                sizes = f"{last.start} + {last.stop - last.start} tokens, rl.shared and rl.own"
                raise RecordError(pair.key, "prompt too long", sizes)
            out.append(made)
        return out

    def write(self, pairs: Sequence[Pair], first: int, step: int) -> Rollout:
        """Writes N replies to each image, a process those of its share of the pairs. Random numbers follow from (run
        seed, step, a pair's number, N): first is the number of the first pair. Raises what a picture that cannot be
        loaded raised."""
        asked = [p for i in hosts.share(len(pairs)) for p in self.asked(pairs[i], first + i, step)]
        found: list[Any] = [None] * len(asked)
        N, seed = self.config.rl.group, self.config.seed
        for one in self.engine.generate(asked, answers=N, shape=self.shape, seed=seed, log_probs=True):
            if one.problem is not None:
                raise one.problem
            found[one.index] = one.answers
        found = hosts.gather(found, len(pairs), N, self.config.rl.max_new_tokens)
        answers = [found[2 * i : 2 * i + 2] for i in range(len(pairs))]
        read = [[[self.read(p, a) for a in side] for side in two] for p, two in zip(pairs, answers)]
        scores = [[[np.nan if x.score is None else x.score for x in side] for side in two] for two in read]
        scores = np.array(scores, np.float32)
        return Rollout(list(pairs), answers, read, np.nan_to_num(scores), np.isfinite(scores))

    def read(self, pair: Pair, answer: Answer) -> replies_lib.Reply:
        """Reads one reply."""
        tokens = answer.tokens[:-1] if answer.stopped else answer.tokens
        return replies_lib.parse(self.tokenizer.decode(tokens), pair.principles, self.config.rl.mode)


def check(writer: Writer, packer: Packer) -> Callable[[Pair], None]:
    """Makes what raises RecordError or ImageError for a pair that cannot be asked about, or whose images no row of an
    update takes."""

    def checked(pair: Pair) -> None:
        writer.asked(pair)
        for side, name in enumerate(SIDES):
            packer.check(Example(writer.parts(pair, side), Tokens(np.zeros(1, np.int32)), f"{pair.key}/{name}"))

    return checked


def advantages_of(config: Any, rollout: Rollout) -> tuple[np.ndarray, dict[str, float]]:
    """Gives the advantages [P, 2, N] of `rl.algorithm` and the figures of the rollout.

    A reply is as right as the share of comparisons that it won; lengths of right and wrong ones are weighted so.
    """
    r, (P, _, N) = config.rl, rollout.scores.shape
    given = [jnp.asarray(x[:, side]) for x in (rollout.scores, rollout.valid) for side in (0, 1)]
    shares, lengths = jax.device_get(win_shares(*given, r.invalid)), rollout.lengths
    share = np.stack([shares.winner, shares.loser], 1)
    counted = np.stack([shares.winner_counted, shares.loser_counted], 1)
    more: dict[str, float] = {}
    if r.algorithm == "gcpo":
        a = np.stack(jax.device_get(win_share_advantages(*given, r.invalid)), 1)
    else:
        rewards = rewards_of(r.algorithm, rollout)
        labelled = np.array([bool(_labels(r.algorithm, p)) for p in rollout.pairs])[:, None, None]
        if r.invalid == "lose":  # the least reward there is
            rewards = np.where(labelled & ~rollout.valid, 0.0, rewards)
        known = np.isfinite(rewards)
        groups = np.repeat(np.arange(2 * P, dtype=np.int32), N)
        settings = AdvantageConfig(**r.advantage.to_dict())
        flat = np.where(known, rewards, 0).astype(np.float32).ravel()
        given = map(jnp.asarray, (flat, known.ravel(), groups))
        a = np.asarray(advantages(*given, settings).values).reshape(known.shape)
        more = {"reward_mean": _mean(rewards, known), "without_label": 2.0 * float((~labelled).sum())}
    ok = rollout.valid
    means = np.where(ok.any(2), np.where(ok, rollout.scores, 0).sum(2) / np.maximum(ok.sum(2), 1), np.nan)
    both = np.isfinite(means).all(1)
    verdicts = rewards_of("verdicts", rollout)
    figures = {
        "pair_accuracy": float(np.mean(both & (means[:, 0] > means[:, 1]))),  # of mean scores; unread is wrong
        "win_share": _mean(share, counted),
        "zero_advantage_share": float(np.mean((a == 0).all((1, 2)))),
        "advantage_abs": float(np.abs(a).mean()),
        "weighted_advantage": float((a / np.maximum(lengths, 1)).mean()),
        "parse_failures": float((~ok).sum()),
        "replies": float(ok.size),
        "images": 2.0 * P,
        "length": float(lengths.mean()),
        "length_right": float((share * lengths).sum() / max(share.sum(), 1e-9)),
        "length_wrong": float(((1 - share) * lengths)[counted].sum() / max((1 - share)[counted].sum(), 1e-9)),
        "score_better": _mean(rollout.scores[:, 0], ok[:, 0]),
        "score_worse": _mean(rollout.scores[:, 1], ok[:, 1]),
    }
    if np.isfinite(verdicts).any():
        figures["verdict_accuracy"] = _mean(verdicts, np.isfinite(verdicts))
    return a.astype(np.float32), figures | more


def rewards_of(algorithm: str, rollout: Rollout) -> np.ndarray:
    """Gives pointwise rewards [P, 2, N], NaN where there is no label or no reply: "grpo_pointwise", 1 less a tenth of
    the distance from the gold score; "verdicts", the share of verdicts that are the gold ones."""
    out = np.full(rollout.scores.shape, np.nan)
    for i, pair in enumerate(rollout.pairs):
        labels = _labels(algorithm, pair)
        for side, n in np.ndindex(*out.shape[1:]) if labels else ():
            reply, label = rollout.read[i][side][n], labels[side]
            if reply.valid and algorithm == "grpo_pointwise":
                out[i, side, n] = 1 - abs(reply.score - label) / 10
            elif reply.valid and reply.average is not None:
                out[i, side, n] = np.mean([v == w for v, w in zip(reply.verdicts, label, strict=True)])
    return out


def examples(config: Any, writer: Writer, rollout: Rollout, advantage: np.ndarray, which: range) -> list[Example]:
    """Makes the replies of pairs `which` as an update takes them, without those that have nothing to learn from: of
    advantage 0, unless there is a KL."""
    out, N = [], config.rl.group
    for i in which:
        for side, n in np.ndindex(2, N):
            answer, value = rollout.answers[i][side][n], float(advantage[i, side, n])
            length = len(answer.tokens)
            if not length or (value == 0 and not (config.rl.loss.kl_weight and rollout.valid[i, side, n])):
                continue
            full = lambda x: np.full(length, x, np.float32)  # noqa: B023
            arrays = {"weights": full(1 / (2 * N * length)), "advantage": full(value), "old": full(0.0)}
            tokens = Tokens(answer.tokens, arrays | {"engine": answer.log_probs})
            key = f"{rollout.pairs[i].key}/{SIDES[side]}/{n}"
            out.append(Example(writer.parts(rollout.pairs[i], side), tokens, key))
    return out


def _labels(algorithm: str, pair: Pair) -> tuple | None:
    """Chooses the labels of both images that an algorithm learns from; None where the record has none."""
    return pair.gold if algorithm == "grpo_pointwise" else pair.verdicts


def _mean(values: np.ndarray, at: np.ndarray) -> float:
    return float(values[at].mean()) if at.any() else float("nan")
