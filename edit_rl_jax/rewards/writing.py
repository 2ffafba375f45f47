"""What judges that write their answers share: how they are drawn, what ends them, and asking the engine for them."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from tqdm import tqdm

from edit_rl_jax.rewards.editscore.prompts import END
from edit_rl_jax.vlm.engine.engine import Answer, Engine
from edit_rl_jax.vlm.engine.prompt import Prompt
from edit_rl_jax.vlm.engine.sampler import TokenSampling, greedy


class Sampled:
    """Options that say how answers are drawn: what these fields mean together."""

    passes: int
    temperature: float | None
    top_k: int
    top_p: float
    max_new_tokens: int

    @property
    def sampling(self) -> TokenSampling:
        """How answers are drawn: greedily for a single pass, unless a temperature is given."""
        temperature = (0.7 if self.passes > 1 else 0.0) if self.temperature is None else self.temperature
        if not temperature:
            return greedy(self.max_new_tokens)
        return TokenSampling(temperature, self.top_k, self.top_p, self.max_new_tokens)


def ended(sampling: TokenSampling | None, tokenizer: Any) -> TokenSampling:
    """Lets answers end where a turn does; default: greedy ones of up to 512 tokens."""
    stops = {tokenizer.convert_tokens_to_ids(t) for t in (END, "<|endoftext|>")} - {None}
    return dataclasses.replace(sampling or greedy(512), stop_tokens=tuple(sorted(stops)))


def answers(
    engine: Engine, asked: Mapping[bytes, Prompt], read: Callable[[bytes, Answer], Any], progress: bool, **options: Any
) -> dict[bytes, tuple[Any, ...] | str]:
    """Asks the engine; gives by prompt its answers as `read(name, answer)` reads them, or a text that says why there
    are none. options: of `Engine.generate`."""
    names, found = list(asked), {}
    with tqdm(total=len(asked), desc="scoring", unit="prompt", disable=None if progress else True) as bar:
        for one in engine.generate(list(asked.values()), **options):
            name = names[one.index]
            whole = tuple(read(name, a) for a in one.answers)
            found[name] = whole if one.problem is None else str(one.problem)
            bar.update()
    return found
